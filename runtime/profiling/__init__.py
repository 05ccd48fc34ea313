"""What is measured of an engine: costs, row classes, a known answer."""
