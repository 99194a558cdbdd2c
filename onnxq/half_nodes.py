"""Which operators run in half precision, on a target that computes in it, and why the others stay in float32.

What is computed from integers alone (positions, masks, sizes) stays in float32 until it meets an activation: half
precision counts to 2048 only. So does a mean of squares, from the square to the division by its root: where norms are
spelled out, it is the first number to go past 65504, or below 6e-8.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from onnxq.graph import Constant, Graph, Node, Tensor, bodies, is_constant, weight
from onnxq.half_weights import BY_RECIPE, LEAST, misfit, size
from onnxq.layers import only_reader
from onnxq.numerics.halves import HIGHEST, hides
from onnxq.plan import NodePlan, Treatment
from onnxq.recipe import Recipe
from onnxq.targets import Target
from onnxq.targets.cuda import MOVERS

RUNS = "It runs in half precision."
INTEGERS = "It is computed from integers alone, which half precision holds to 2048 only."
NORM = "A mean of squares goes past half precision, or below it, where the values themselves do not."
BETWEEN = "It only moves float32 numbers from one operator to another."

AS_IS = frozenset({"Shape", "Size", "Cast"})
"""Operators that take whichever width is there."""

ONE_OUTPUT = frozenset({"LayerNormalization", "SkipLayerNormalization", "BatchNormalization", "Dropout"})
"""Operators whose later outputs are float32 whatever they read, or are for training."""

AFTER_MEAN = frozenset({"Add", "Sqrt", "Reciprocal", "Pow", "Max", "Clip", "Mul", "Div"})
"""What may stand between a mean of squares and the division by its root."""

FLOAT32_INPUTS: Mapping[str, frozenset[int]] = {"Resize": frozenset({1, 2}), "Upsample": frozenset({1})}
"""Inputs that the runtime reads in float32 alone: regions and scales."""


def floats(tensors: Collection[Tensor]) -> list[Tensor]:
    """Those of float32."""
    return [tensor for tensor in tensors if tensor.name and tensor.dtype == np.float32]


def takes_any(node: Node) -> bool:
    """Whether an operator takes whichever width is there, and makes no float32 of it."""
    return not node.domain and node.op in AS_IS and not floats(node.outputs)


def halves(node: Node) -> list[Tensor]:
    """The float32 tensors that an operator reads in half precision, where it runs in it."""
    single = FLOAT32_INPUTS.get(node.op, frozenset()) if not node.domain else frozenset()
    return floats([tensor for place, tensor in enumerate(node.inputs) if place not in single])


@dataclass(frozen=True)
class Facts:
    """What decides about a node, beside itself.

    Attributes:
        recipe: what was asked for.
        target: what has kernels.
        opset: of the graph.
        spared: reasons that were measured, by node.
        integers: names of the tensors that are computed from integers alone.
        norms: names of the nodes of means of squares.
        stored: nodes whose weight goes into integers, so that it need not fit into half precision.
    """

    recipe: Recipe
    target: Target
    opset: int
    spared: Mapping[str, str]
    integers: frozenset[str]
    norms: frozenset[str]
    stored: Collection[str]


def half_nodes(
    graph: Graph,
    recipe: Recipe,
    target: Target,
    spared: Mapping[str, str] | None = None,
    stored: Collection[str] = (),
) -> dict[str, NodePlan]:
    """Decide for each node that reads or makes float32 whether it runs in half precision.

    Args:
        graph: the float model, with types.
        recipe: what was asked for.
        target: what has which kernels.
        spared: the reason for each node that stays in float32 because of what was measured.
        stored: nodes whose weight goes into integers.
    """
    integers, norms = from_integers(graph), frozenset(_norms(graph))
    facts = Facts(recipe, target, graph.opset, spared or {}, integers, norms, stored)
    reasons = {
        node.name: _why_single(node, facts)
        for node in graph.nodes
        if (floats(node.inputs) or floats(node.outputs)) and not takes_any(node)
    }
    _keep_between(graph, reasons)
    return {
        node.name: NodePlan(
            op=node.op,
            treatment=Treatment.HALF if (why := reasons[node.name]) is None else Treatment.FLOAT,
            reason=why or RUNS,
        )
        for node in graph.nodes
        if node.name in reasons
    }


def half_beside(
    graph: Graph,
    recipe: Recipe,
    target: Target,
    weights: Mapping[str, NodePlan],
    spared: Mapping[str, str] | None = None,
) -> dict[str, NodePlan]:
    """The same beside nodes whose weight goes into integers; what has to stay in float32 keeps its weight."""
    stored = {name: plan for name, plan in weights.items() if plan.treatment is Treatment.WEIGHT}
    nodes = half_nodes(graph, recipe, target, spared, stored)
    kept = {name for name, plan in nodes.items() if plan.treatment is Treatment.FLOAT}
    return {**nodes, **{name: plan for name, plan in stored.items() if name not in kept}}


def newest(graph: Graph, target: Target) -> int:
    """The version of the standard operators since which the target has all kernels in half precision of a graph."""
    return max((target.half.get(node.op, 1) for node in graph.nodes if not node.domain), default=1)


def _why_single(node: Node, facts: Facts) -> str | None:
    """The sentence why a node stays in float32; None where it runs in half precision."""
    if not facts.recipe.override(node.name, node.op).quantize:
        return BY_RECIPE
    if node.name in facts.spared:
        return facts.spared[node.name]
    if any(bodies(node)):
        return "Its bodies compute in float32."
    if any(tensor.dtype is None or tensor.dtype == object for tensor in (*node.inputs, *node.outputs) if tensor.name):
        return "It reads or makes something else than a tensor of numbers."
    why = _no_kernel(node, facts)
    if why is not None:
        return why
    if node.op in ONE_OUTPUT and len(floats(node.outputs)) > 1:
        return "Its other outputs are float32."
    if any(tensor.name in facts.integers for tensor in node.outputs):
        return INTEGERS
    return NORM if node.name in facts.norms else _constant_misfit(node, facts)


def _no_kernel(node: Node, facts: Facts) -> str | None:
    key = f"{node.domain}.{node.op}" if node.domain else node.op
    if key in facts.target.single:
        return facts.target.single[key]
    since = facts.target.half.get(key)
    if since is None:
        return f"The target '{facts.target.name}' has no kernel for {node.op} in half precision."
    if since > facts.opset:
        return f"{node.op} has kernels in half precision since opset {since}; the model has {facts.opset}."
    return None


def _constant_misfit(node: Node, facts: Facts) -> str | None:
    read = [tensor for tensor in halves(node) if isinstance(tensor, Constant)]
    if node.name in facts.stored:
        read = read[1:]  # the weight stands before the bias
    return next((why for tensor in read if (why := constant_misfit(tensor)) is not None), None)


def constant_misfit(tensor: Constant) -> str | None:
    """Why a constant does not fit; one that hides scores does, and so does a small one of tiny numbers: an epsilon."""
    values = weight(tensor)
    low, high = (float(end) for end in (values.min(initial=0), values.max(initial=0)))  # no copy of a large one
    reached = max(-low, high)
    if reached > HIGHEST and hides(values):
        return None
    if size(tensor) >= LEAST:
        return misfit(tensor)
    return f"Constant '{tensor.name}' reaches {reached:.3g}, more than {HIGHEST:g}." if reached > HIGHEST else None


def from_integers(graph: Graph) -> frozenset[str]:
    """Names of float32 tensors that are computed from integers and small constants alone."""
    made: set[str] = set()
    for node in graph.nodes:
        if not floats(node.outputs) or any(bodies(node)):
            continue
        known = [t for t in node.inputs if t.name and (t.dtype is None or np.dtype(t.dtype).kind not in "biu")]
        if all(t.name in made or (isinstance(t, Constant) and size(t) < LEAST) for t in known):
            made.update(tensor.name for tensor in floats(node.outputs))
    return frozenset(made)


def _norms(graph: Graph) -> Iterator[str]:
    """Names of the nodes from a square through its mean and root to the division."""
    for node in graph.nodes:
        mean = only_reader(graph, node.outputs[0]) if _squares(node) else None
        if mean is None or mean.op not in ("ReduceMean", "ReduceSum"):
            continue
        yield from (node.name, mean.name)
        last: Node | None = mean
        while last is not None and (last := only_reader(graph, last.outputs[0])) is not None:
            if last.op not in AFTER_MEAN:
                break
            others = [t for t in last.inputs if t.name and not is_constant(t)]
            if len(others) == 1 or node.inputs[0] in others:
                yield last.name
            if len(others) > 1:
                break


def _squares(node: Node) -> bool:
    if node.op == "Mul":
        return node.inputs[0] is node.inputs[1]
    if node.op != "Pow" or not is_constant(node.inputs[1]):
        return False
    exponent = weight(node.inputs[1])
    return exponent.size == 1 and float(exponent.item()) == 2.0


def _keep_between(graph: Graph, reasons: dict[str, str | None]) -> None:
    """Keep what only moves numbers in float32 where all that is around it is: no Cast pays there."""
    makers = {tensor.name: node for node in graph.nodes for tensor in node.outputs}
    movers = [n for n in graph.nodes if n.op in MOVERS and n.name in reasons and reasons[n.name] is None]
    between = {node.name for node in movers if all(tensor.name in makers for tensor in floats(node.inputs))}

    def single(node: Node) -> bool:
        return node.name in between or takes_any(node) or reasons.get(node.name) is not None

    wrong = {""}
    while wrong:
        wrong = {
            node.name
            for node in movers
            if node.name in between
            and not (
                all(single(makers[tensor.name]) for tensor in floats(node.inputs))
                and all(single(reader) for tensor in floats(node.outputs) for reader in tensor.outputs)
            )
        }
        between -= wrong
    reasons.update(dict.fromkeys(between, BETWEEN))
