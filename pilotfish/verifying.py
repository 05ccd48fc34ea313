"""verify(): how far each format of a bundle is from its source, measured on the engines themselves."""
