"""Numbers without a graph: NumPy and SciPy only; no ONNX, no files, no state."""
