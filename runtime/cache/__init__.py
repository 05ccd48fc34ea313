"""The tokens a session has seen: everything, compressed, selected, or gated by quality."""
