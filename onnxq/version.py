"""The version of onnxq; measurements of another one are not trusted."""

__version__ = "0.1.0"
