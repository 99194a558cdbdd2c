"""Quantization-aware training: a float graph as a PyTorch module, trained with its quantizers in place.

Needs PyTorch: pip install 'onnxq[train]'.
"""
