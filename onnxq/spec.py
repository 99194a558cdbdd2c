"""What is true of a graph at each stage, and the checks that hold passes to it."""

from __future__ import annotations

from enum import StrEnum

from onnxq.graph import Graph, Tensor, is_constant, reads

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
    weights: dict[str, Tensor] = {}
    for tensor in (t for holder in (*(n.inputs for n in graph.nodes), graph.outputs) for t in holder):
        if is_constant(tensor) and weights.setdefault(tensor.name, tensor) is not tensor:
            return f"two weights are called '{tensor.name}'"
    made = {tensor.name for tensor in graph.inputs} | set(graph.pinned) | set(weights)
    made |= {stored.values.name for stored in graph.shell.graph.sparse_initializer}
    names: set[str] = set()
    for node in graph.nodes:
        if node.name in names:
            return f"two nodes are called '{node.name}'"
        names.add(node.name)
        if missing := reads(node) - made:
            return f"node '{node.name}' reads '{min(missing)}' before it is made"
        for tensor in node.outputs:
            if tensor.name in made:
                return f"tensor '{tensor.name}' is made twice"
            made.update({tensor.name} if tensor.name else ())
    lost = [t.name for t in graph.outputs if t.name not in made]
    return f"output '{lost[0]}' is lost" if lost else None
