"""Who drafts, how much, and what came of it."""
