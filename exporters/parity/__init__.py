"""How far an export is from its source."""
