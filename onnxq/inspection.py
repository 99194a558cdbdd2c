"""What is in a model: operators, types, sizes, and what is quantized how."""

from __future__ import annotations

from collections import Counter

from onnxq.graph import Constant, Graph, Node, is_constant
from onnxq.plan import Record
from onnxq.spec import QUANTIZED_OPERATORS

WEIGHT_INPUT = {
    **dict.fromkeys(("Gather", "GatherBlockQuantized"), 0),
    **dict.fromkeys(("Conv", "FusedConv", "ConvTranspose", "ConvInteger", "MatMul", "Gemm", "LSTM", "GRU"), 1),
    **dict.fromkeys(("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits"), 1),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QGemm"), 3),
}
"""Where operators keep their weight."""

SCALE_INPUT = {"QLinearConv": 4, "QLinearMatMul": 4, "QGemm": 4, "MatMulIntegerToFloat": 3, "DynamicQuantizeMatMul": 2}
"""Where integer operators keep the scale of their weight."""


class LayerSummary(Record):
    """One operator with a weight.

    Attributes:
        node: its name.
        op: its operator.
        weight: the weight's name.
        type: the weight's element type.
        shape: the weight's shape.
        bytes: the weight's size as it is stored.
        scales: how many scales the weight has: 1 is per tensor, 0 is float.
    """

    node: str
    op: str
    weight: str
    type: str
    shape: list[int]
    bytes: int
    scales: int


class Summary(Record):
    """What is in a model.

    Attributes:
        opset: version of the standard operators.
        domains: version of every operator domain.
        ir_version: version of the file format.
        producer: what wrote it.
        inputs: one line for each.
        outputs: one line for each.
        operators: how many nodes of each operator.
        weight_bytes: bytes of weights by element type.
        parameters: how many numbers the weights hold.
        layers: every operator with a weight.
        integer_layers: how many of them run on integers.
        quantized: how: `float`, `half precision`, `Q/DQ` or `integer operators`.
    """

    opset: int
    domains: dict[str, int]
    ir_version: int
    producer: str
    inputs: list[str]
    outputs: list[str]
    operators: dict[str, int]
    weight_bytes: dict[str, int]
    parameters: int
    layers: list[LayerSummary]
    integer_layers: int
    quantized: str


def has_scales(graph: Graph) -> bool:
    """Whether a model is quantized, in whatever way."""
    return summarize(graph).quantized in ("Q/DQ", "integer operators")


def summarize(graph: Graph) -> Summary:
    """Look at a graph; nothing is run, and no weight is read."""
    counts = Counter(node.op for node in graph.nodes)
    weights = [t for t in graph.tensors().values() if isinstance(t, Constant)]
    sizes: Counter[str] = Counter()
    for tensor in weights:
        sizes[str(tensor.dtype)] += int(tensor._values.nbytes)
    layers = [found for node in graph.nodes if (found := _layer(node)) is not None]
    integer = sum(1 for layer in layers if layer.op in QUANTIZED_OPERATORS)
    held = "half precision" if sizes["float16"] > sizes["float32"] else "float"
    if counts.keys() & {"QuantizeLinear", "DequantizeLinear"}:
        held = "Q/DQ"
    if counts.keys() & QUANTIZED_OPERATORS:
        held = "integer operators"
    interface = graph.interface()
    return Summary(
        opset=graph.opset,
        domains={domain or "ai.onnx": version for domain, version in sorted(graph.opsets.items())},
        ir_version=int(graph.shell.ir_version),
        producer=f"{graph.shell.producer_name} {graph.shell.producer_version}".strip(),
        inputs=[str(spec) for spec in interface.inputs],
        outputs=[str(spec) for spec in interface.outputs],
        operators=dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        weight_bytes=dict(sorted(sizes.items(), key=lambda item: -item[1])),
        parameters=sum(_count(tensor.shape) for tensor in weights),
        layers=layers,
        integer_layers=integer,
        quantized=held,
    )


def _layer(node: Node) -> LayerSummary | None:
    place = WEIGHT_INPUT.get(node.op)
    if place is None or len(node.inputs) <= place or (node.domain or "") not in ("", "com.microsoft"):
        return None
    weight, scale = node.inputs[place], None
    maker = weight.inputs[0] if weight.inputs else None
    if maker is not None and maker.op == "DequantizeLinear" and len(maker.inputs) > 1:
        weight, scale = maker.inputs[0], maker.inputs[1]
    elif maker is not None and maker.op == "Cast" and maker.inputs:
        weight = maker.inputs[0]
    elif node.op in SCALE_INPUT:
        scale = node.inputs[SCALE_INPUT[node.op]]
    elif node.op in ("MatMulNBits", "GatherBlockQuantized"):
        scale = node.inputs[2]
    if not isinstance(weight, Constant) or (node.op == "Gather" and len(weight.shape or ()) != 2):
        return None
    return LayerSummary(
        node=node.name,
        op=node.op,
        weight=weight.name,
        type=str(weight.dtype),
        shape=[int(size) for size in weight.shape or ()],  # type: ignore[arg-type]
        bytes=int(weight._values.nbytes),
        scales=_count(scale.shape) if scale is not None and is_constant(scale) else 0,
    )


def _count(shape: object) -> int:
    total = 1
    for size in shape or ():  # type: ignore[attr-defined]
        total *= int(size)
    return total
