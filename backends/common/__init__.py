"""What the engines share: rows of a cache, arrays, saved entries and the checks of weights."""
