"""onnxq makes ONNX models small and fast without breaking them."""
