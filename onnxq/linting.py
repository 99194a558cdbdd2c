"""`lint`: what of a model, made by any tool, will not run as integers on a target, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from onnxq.build import WEIGHTED, Build, Nothing, fold_existing, place_graph, typed
from onnxq.errors import ModelError, RecipeError
from onnxq.graph import Node, Tensor, is_constant
from onnxq.inspection import SCALE_INPUT
from onnxq.intake import named
from onnxq.modelfile import Source, load
from onnxq.passes import NORMALIZE
from onnxq.plan import Record, Treatment
from onnxq.recipe import make_recipe
from onnxq.spec import QUANTIZED_OPERATORS, has_integer_operators, has_qdq
from onnxq.targets import TARGETS

PART_OF_LAYER = "Part of layer"
"""How the reason of a node begins that its layer takes over."""

SIGNED = (
    "Its activations are signed: on x86 such a kernel runs three to four times slower than float. "
    "Quantize the float model again with unsigned ones."
)
ACCUMULATES = (
    "It returns the accumulator, and a Cast and a Mul behind it make floats of that: slower than float. "
    "Take an operator that scales its own output, such as MatMulIntegerToFloat or QLinearConv."
)
DEQUANTIZES = "Its weight is dequantized on every run: nothing fuses with that here."
ALONE = "Q/DQ stands around it, and nothing folds them into one integer operator: it computes in float between them."

SPARED = (
    "It is in float, though integers could run here. Whoever quantized the model may have found that they cost more; "
    "if not, quantize the float model again."
)

CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
"""What stands between floats and integers."""

ACTIVATION_ZERO = {"QLinearConv": 2, "QLinearMatMul": 2, "QGemm": 2, "MatMulIntegerToFloat": 4, "MatMulInteger": 2}
"""Where integer operators keep the zero point of what they read."""


class Complaint(Record):
    """One node that will not run as integers, or not as fast as it could.

    Attributes:
        node: its name.
        op: its operator.
        layer: whether it is an operator with a weight, whose time counts.
        reason: why, and what to do about it where something can be done.
    """

    node: str
    op: str
    layer: bool
    reason: str


class Lint(Record):
    """What `lint` found.

    Attributes:
        kind: what the model is: `float`, `Q/DQ` or `integer operators`.
        target: what it is to run on.
        layers: how many operators with a weight there are.
        integer: how many of them run as integers, or can.
        complaints: about all others, in the order of the graph.
    """

    kind: str
    target: str
    layers: int
    integer: int
    complaints: list[Complaint]

    @property
    def clean(self) -> bool:
        """Whether every operator with a weight runs as integers, or can."""
        return not any(complaint.layer for complaint in self.complaints)


def lint(model: Source, *, target: str = "cpu") -> Lint:
    """Say which operators of a model will not run as integers, and why.

    Of a float model: which of them `optimize` could not quantize. Of a Q/DQ model: which do not fold. Of a model with
    integer operators: which are known to be slow, and which are still in float.

    Args:
        model: a path, the bytes of a model, or a `ModelProto`.
        target: what it is to run on: `cpu`.

    Raises:
        ModelError: the model cannot be read, or the runtime refuses it.
        RecipeError: there is no such target, or it has no integer kernels.
    """
    recipe = make_recipe({"mode": "mixed-int8", "target": target}, {"target": "--target"})
    if TARGETS[target].half:
        raise RecipeError(f"'{target}' has no integer kernels to look for: it computes in halves. Lint for cpu.")
    graph = load(model)
    kind = "integer operators" if has_integer_operators(graph) else "Q/DQ" if has_qdq(graph) else "float"
    looks: dict[str, Callable[[Build], Iterator[Complaint]]] = {"float": _float, "Q/DQ": _folded}
    build = Build(graph.copy(), recipe, "mixed-int8")
    with named(model):
        found = list(looks.get(kind, _integer)(build))
    worst = {complaint.node: complaint for complaint in reversed(found)}
    places = {node.name: place for place, node in enumerate(graph.nodes)}
    complaints = sorted(worst.values(), key=lambda complaint: places.get(complaint.node, len(places)))
    layers = sum(map(_is_layer, graph.nodes))
    return Lint(
        kind=kind,
        target=target,
        layers=layers,
        integer=layers - sum(complaint.layer for complaint in complaints),
        complaints=complaints,
    )


def _is_layer(node: Node) -> bool:
    """Whether a node multiplies with a weight."""
    if node.op in ("MatMul", "MatMulInteger"):
        return any(_is_weight(tensor) for tensor in node.inputs)
    return node.op in WEIGHTED or node.op in SCALE_INPUT or node.op in ("ConvInteger", "MatMulNBits", "FusedConv")


def _is_weight(tensor: Tensor) -> bool:
    """Whether a tensor is stored, perhaps as integers behind DequantizeLinear."""
    makers = tensor.inputs
    behind = bool(makers) and makers[0].op == "DequantizeLinear" and is_constant(makers[0].inputs[0])
    return is_constant(tensor) or behind


def _float(build: Build) -> Iterator[Complaint]:
    """What could not be quantized; in a model that holds integers, layers that could and were not, too."""
    begun = has_integer_operators(build.graph) or has_qdq(build.graph)
    typed(build.graph)
    build.apply(NORMALIZE, frozenset())
    nodes = {node.name: node for node in build.graph.nodes}
    for name, plan in place_graph(build).nodes.items():
        layer, stays = name in nodes and _is_layer(nodes[name]), plan.treatment is Treatment.FLOAT
        if plan.op in QUANTIZED_OPERATORS or plan.op in CONVERSIONS or plan.reason.startswith(PART_OF_LAYER):
            continue
        if stays or (begun and layer):
            yield Complaint(node=name, op=plan.op, layer=layer, reason=plan.reason if stays else SPARED)


def _folded(build: Build) -> Iterator[Complaint]:
    """What stays in float when the Q/DQ is folded."""
    try:
        fold_existing(build)
    except Nothing as nothing:
        raise ModelError(str(nothing)) from None
    nodes = {node.name: node for node in build.graph.nodes}
    said = set()
    for change in build.changes.get("FoldInteger", []):
        if not change.done and change.node in nodes and nodes[change.node].op not in QUANTIZED_OPERATORS:
            said.add(change.node)
            yield Complaint(node=change.node, op=change.op, layer=_is_layer(nodes[change.node]), reason=change.reason)
    for node in build.graph.nodes:
        if node.name not in said and _is_layer(node) and node.op not in QUANTIZED_OPERATORS:
            between = any(t.inputs and t.inputs[0].op == "DequantizeLinear" for t in node.inputs)
            reason = ALONE if between else "It has no Q/DQ in front of it: its input was left in float."
            yield Complaint(node=node.name, op=node.op, layer=True, reason=reason)
    yield from _integer(build)


def _integer(build: Build) -> Iterator[Complaint]:
    """What is there as integers and yet slow, and what is in float beside it."""
    unsigned = build.context.target.activation == "uint8"
    for node in build.graph.nodes:
        if node.op in ("ConvInteger", "MatMulInteger"):
            yield Complaint(node=node.name, op=node.op, layer=True, reason=ACCUMULATES)
        elif unsigned and node.op in ACTIVATION_ZERO and _signed(node):
            yield Complaint(node=node.name, op=node.op, layer=True, reason=SIGNED)
        elif node.op in ("Conv", "Gemm", "ConvTranspose") and _dequantized(node):
            yield Complaint(node=node.name, op=node.op, layer=True, reason=DEQUANTIZES)
    yield from _float(build)


def _signed(node: Node) -> bool:
    place = ACTIVATION_ZERO[node.op]
    return len(node.inputs) > place and node.inputs[place].dtype == np.int8


def _dequantized(node: Node) -> bool:
    maker = node.inputs[1].inputs[0] if len(node.inputs) > 1 and node.inputs[1].inputs else None
    return maker is not None and maker.op == "DequantizeLinear"
