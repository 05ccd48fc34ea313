"""The decode loop, beam search and scoring."""
