"""load(): from a name or a path to a Model."""
