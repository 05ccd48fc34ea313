"""A text-correction model of our own: its text, its noise, its training and its evaluation. README.md tells how."""
