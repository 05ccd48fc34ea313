"""A pack for phones."""
