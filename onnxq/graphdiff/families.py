"""Operators that stand for each other: a fused, integer or blocked one does the work of the float one."""

from __future__ import annotations

from collections.abc import Mapping

from onnxq.graph import Node
from onnxq.spec import QUANTIZED_OPERATORS

FAMILIES: Mapping[str, str] = {
    **dict.fromkeys(("QLinearConv", "ConvInteger", "FusedConv", "NhwcConv", "NhwcFusedConv", "QConv"), "Conv"),
    **dict.fromkeys(("QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"), "MatMul"),
    **dict.fromkeys(("MatMulNBits", "FusedMatMul", "TransposeMatMul", "Gemm", "QGemm", "FusedGemm"), "MatMul"),
    **dict.fromkeys(("QAttention", "MultiHeadAttention", "DecoderMaskedMultiHeadAttention"), "Attention"),
    **dict.fromkeys(("SkipLayerNormalization", "SimplifiedLayerNormalization"), "LayerNormalization"),
    **dict.fromkeys(("FastGelu", "BiasGelu", "QuickGelu"), "Gelu"),
    "EmbedLayerNormalization": "EmbedLayerNormalization",
    "QEmbedLayerNormalization": "EmbedLayerNormalization",
    "GatherBlockQuantized": "Gather",
    "DynamicQuantizeLSTM": "LSTM",
}

COMMUTATIVE = frozenset({"Add", "Mul", "Max", "Min", "Sum", "And", "Or", "Xor", "Equal", "Mean"})
"""Operators whose operands may come in any order."""

CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear"})

FOLDED = frozenset({"BatchNormalization", "Mul", "Div", "Add", "Sub", "Pad", "Transpose"})
"""Operators that end in the weights or attributes of the one beside them."""

SLIGHT = frozenset(
    {"Cast", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Relu", "Clip", "Pad", "Dropout"}
    | {"BatchNormalization", "DynamicQuantizeLinear", "Constant"}
    | CONVERSIONS
)
"""Operators that come and go around others; a walk from one pair to the next looks through them."""


def family(op: str) -> str:
    """The operator whose work it does."""
    return FAMILIES.get(op, op.removeprefix("QLinear") or op)


def is_integer(node: Node) -> bool:
    """Whether it computes with integers that stand for other numbers, or with packed weights."""
    return node.op in QUANTIZED_OPERATORS


def rounds(node: Node) -> bool:
    """Whether it makes numbers of another precision, or of its own computes with such."""
    return node.op in CONVERSIONS or node.op in ("Cast", "DynamicQuantizeLinear") or is_integer(node)
