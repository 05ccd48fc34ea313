"""ONNX graphs traced from a Hugging Face model."""
