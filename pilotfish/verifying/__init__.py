"""verify(): the comparison of an export with its source, again."""
