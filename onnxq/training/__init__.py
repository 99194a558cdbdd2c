"""Quantization-aware training: a float graph as a PyTorch module, trained with its quantizers in place.

Needs PyTorch: pip install 'onnxq[train]'.

The module is made by an interpreter of our own, not by onnx2torch 1.5.15: of the 19 float models in a zoo and in
models/ that hold no control flow and no custom operators, the interpreter runs 19 and onnx2torch 9 (it lacks
LessOrEqual of opset 16, LSTM, GRU, slices of opset 9 and auto_pad, and stops at the others). What both run differs from
ONNX Runtime by the same: at most 5e-6 of the largest output, 5e-4 for a detector. They take the same time: a run of
ResNet-20 with its gradients, batch 32, 39 ms in both, and of MobileNetV2, batch 8, 229 and 230 ms; with channels last
30 and 134 ms (`python tools/convert_zoo.py --zoo ZOO --onnx2torch --speed`, PyTorch 2.13, 2 CPUs).
"""
