"""What a caller holds: a model, a conversation, an answer."""
