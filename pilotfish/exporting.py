"""export(): from a source to a checked bundle. Where exporters and engines meet."""
