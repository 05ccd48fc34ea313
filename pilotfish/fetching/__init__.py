"""Known models, and how they are fetched."""
