"""export(): from a source to a bundle that was compared with it."""
