"""Package onnx."""
