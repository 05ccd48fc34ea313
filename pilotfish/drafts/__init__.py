"""Draft models: do they pay, and how one is made."""
