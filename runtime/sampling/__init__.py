"""From logits to a token: distributions, suppressed tokens, accepting drafts."""
