"""ONNX Runtime's CPU provider. `tools/probe_cpu.py` rebuilds the evidence on the installed version.

Measured: an integer kernel on x86 wants unsigned activations and signed weights; signed ones on both sides run three
to four times slower than float, without an error or a warning, so they are never written. `QLinearConv` always returns
integers; linear layers return floats for free (`MatMulIntegerToFloat`). The stem of a vision model, a convolution over
3 channels, is slower in integers.
"""

from __future__ import annotations

from onnxq.targets.table import Target

NO_KERNEL = "The CPU provider has no integer kernel for {op}."

CPU = Target(
    name="cpu",
    provider="CPUExecutionProvider",
    layers=frozenset({"Conv", "Gemm", "MatMul"}),
    float_output=frozenset({"Gemm", "MatMul"}),
    followers=frozenset({"Add", "Mul", "LeakyRelu", "Relu", "Sigmoid", "AveragePool", "GlobalAveragePool"}),
    movers=frozenset(
        {
            "MaxPool",
            "Pad",
            "Reshape",
            "Transpose",
            "Flatten",
            "Squeeze",
            "Unsqueeze",
            "Slice",
            "Split",
            "Gather",
            "Expand",
            "DepthToSpace",
            "Resize",
        }
    ),
    joins=frozenset({"Concat"}),
    absorbed=frozenset({"Relu", "Clip"}),
    fixed={"Sigmoid": (0.0, 255 / 256)},
    activation="uint8",
    stem_channels=4,
    why_float={
        "ConvTranspose": "The CPU provider has no integer ConvTranspose: it would dequantize on every run.",
        "LSTM": "The CPU provider has no static integer LSTM.",
        "GRU": "The CPU provider has no integer GRU.",
        "RNN": "The CPU provider has no integer RNN.",
        "Attention": "Attention in integers costs as much as in floats at usual sizes, and adds noise.",
    },
)
