"""Weights in, checked bundle out. Nothing here is needed to run a bundle that exists."""
