"""A cache kept by the host, for graphs of fixed shapes."""
