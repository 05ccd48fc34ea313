"""ONNX graphs, written without torch."""
