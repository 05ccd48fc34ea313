"""What can be exported: Hugging Face folders and files of other programs."""
