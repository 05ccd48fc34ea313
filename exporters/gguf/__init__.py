"""GGUF: as a source, and as a format that is written."""
