"""What is true of a graph at each stage, and the checks that hold passes to it."""

from __future__ import annotations

from enum import StrEnum

from onnxq.graph import Graph, is_constant

QUANTIZED_OPERATORS = frozenset(
    {
        "QLinearConv",
        "QLinearMatMul",
        "QLinearAdd",
        "QLinearMul",
        "QLinearConcat",
        "QLinearSigmoid",
        "QLinearLeakyRelu",
        "QLinearSoftmax",
        "QLinearAveragePool",
        "QLinearGlobalAveragePool",
        "QLinearWhere",
        "QLinearReduceMean",
        "QGemm",
        "QAttention",
        "QEmbedLayerNormalization",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "DynamicQuantizeLSTM",
        "ConvInteger",
        "MatMulNBits",
        "GatherBlockQuantized",
    }
)


class Fact(StrEnum):
    """Something that passes need and give."""

    NAMED = "every node has a name of its own, and types are known"
    NORMAL = "constants are folded and every layer has one form"
    QDQ = "decisions are written as QuantizeLinear and DequantizeLinear"
    INTEGER = "integer operators stand where the target has them"


def has_qdq(graph: Graph) -> bool:
    """Whether the model already holds Q/DQ, as quantization-aware training exports them."""
    return any(node.op in ("QuantizeLinear", "DequantizeLinear") for node in graph.nodes)


def has_integer_operators(graph: Graph) -> bool:
    """Whether the model already holds integer operators."""
    return any(node.op in QUANTIZED_OPERATORS for node in graph.nodes)


def broken(graph: Graph) -> str | None:
    """The first thing that no stage may break, in a sentence; None where all is well."""
    made: set[str] = {tensor.name for tensor in graph.inputs} | set(graph.pinned)
    names: set[str] = set()
    for node in graph.nodes:
        if node.name in names:
            return f"two nodes are called '{node.name}'"
        names.add(node.name)
        for tensor in node.inputs:
            if tensor.name and not is_constant(tensor) and tensor.name not in made and tensor.inputs:
                return f"node '{node.name}' reads '{tensor.name}' before it is made"
        for tensor in node.outputs:
            if tensor.name in made:
                return f"tensor '{tensor.name}' is made twice"
            made.update({tensor.name} if tensor.name else ())
    lost = [t.name for t in graph.outputs if t.name not in made and not is_constant(t)]
    return f"output '{lost[0]}' is lost" if lost else None
