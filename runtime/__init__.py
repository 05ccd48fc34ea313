"""The decode loop and its replaceable parts. Knows no engine."""
