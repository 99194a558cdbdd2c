"""Q/DQ that others placed goes where integer operators look for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxq.graph import Graph, Node, Tensor, is_constant
from onnxq.islands import dq, moves_integers, pads_integers, parameters, q, same_scale, scales, zero_points
from onnxq.layers import clip_limits, only_reader
from onnxq.numerics.affine import representable
from onnxq.numerics.formats import FORMATS
from onnxq.pipeline import Context, Exact, Promise
from onnxq.rewrite import Bind, Change, Match, maker, replace_output
from onnxq.spec import Fact

EIGHT_BITS = frozenset({"int8", "uint8"})
"""The types with integer kernels."""

SHAPERS = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
"""Operators that give every number another place."""

MOVERS = (*SHAPERS, "MaxPool", "Slice", "Gather", "Expand", "DepthToSpace", "Resize", "Pad")
"""Operators that choose and place numbers."""

ACTIVATIONS = ("Relu", "Clip")

FUSED = ("Conv", "Gemm", "MatMul", "Add", "Mul", *ACTIVATIONS)
"""What becomes an integer operator where QuantizeLinear stands right behind it."""


@dataclass(frozen=True)
class SettleQdq:
    """Move Q/DQ of an exported model to where integer operators look for it; every step is exact.

        Q(DQ(x)), both alike    =>  x
        Relu(DQ(x))             =>  DQ(Clip(x, zero_point))
        MaxPool(DQ(x))          =>  DQ(MaxPool(x))                the next layer finds its DQ
        Concat(DQ(x), DQ(y))    =>  DQ(Concat(x, y)), all alike
        Q(Transpose(Conv))      =>  Transpose(Q(Conv))            the layer finds its Q
        Relu(Transpose(Conv))   =>  Transpose(Relu(Conv))

    Leaves alone what has a scale for each channel or more than 8 bits, and what would change a bit of the result.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})
    promise: ClassVar[Promise] = Exact()

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each step, until none is left to take; then one for each that cannot be taken."""
        left, busy = dict[str, Change](), True
        while busy:
            busy, left = False, {}
            for node in list(graph.nodes):
                found = next((f for step in STEPS if node.outputs and (f := step(graph, node, context))), None)
                if found is not None and found.done:
                    busy = True
                    yield found
                elif found is not None:
                    left[found.node] = found
            graph.tidy()
        yield from left.values()


def pair(graph: Graph, node: Node, context: Context) -> Change | None:
    """Q(DQ(x)), both alike  =>  x."""
    match = q(dq("x")).match(node.outputs[0])
    if match is None or graph.kept(node.outputs[0]) or is_constant(match["x"]):
        return None
    first, name = match.nodes["x_dequantize"], node.name
    if first.attrs.get("block_size", 0) or node.attrs.get("block_size", 0):
        return None
    axes = [n.attrs.get("axis", 1) for n in (first, node)] if scales(match, "x").size > 1 else [0, 0]
    if axes[0] != axes[1] or same_scale(match, graph, context) is not None:
        return Change(name, node.op, "", "Its input was quantized before with another scale, so it rounds again.")
    graph.redirect(node.outputs[0], match["x"])
    graph.remove(node)
    return Change(name, "QuantizeLinear", "nothing", "Its input was quantized before with the same parameters.")


def activation(graph: Graph, node: Node, context: Context) -> Change | None:
    """Relu(DQ(x))  =>  DQ(Clip(x, zero_point)); a limit between two steps only where it is rounded right after."""
    if node.domain or node.op not in ACTIVATIONS or (match := _dequantized(node)) is None:
        return None
    limits, behind, name = clip_limits(node), _quantized_alike(match, node), node.name
    if limits is None or (behind is False and node.op == "Relu"):
        return None  # Relu between two scales is one lookup
    scale, zero_point = scales(match, "x"), zero_points(match, "x")
    form = FORMATS[zero_point.dtype.name]
    low, high = (float(end) for end in representable(scale, zero_point, form))
    if limits[0] <= low and limits[1] >= high:
        if graph.kept(node.outputs[0]) and graph.kept(node.inputs[0]):
            return None  # both names are promised
        replace_output(graph, node, node.inputs[0])
        return Change(name, node.op, "nothing", "The integers before it hold nothing else.")
    steps = np.rint(np.asarray(limits, np.float32) / scale)
    inside = [low <= limit <= high for limit in limits]
    if not behind and any(i and s * scale != np.float32(e) for i, s, e in zip(inside, steps, limits, strict=True)):
        return Change(name, node.op, "", "Its limits lie between two steps of the integers before it.")
    if graph.opset < 12:
        return Change(name, node.op, "", "Before opset 12, Clip takes no integers.")
    ends = np.clip(steps + zero_point, form.qmin, form.qmax)
    bounds = [graph.constant(f"{name}_limit", np.asarray(end, form.dtype)) for end in ends]
    _requantize(graph, node, match, "Clip", [match["x"], *bounds], {})
    return Change(name, node.op, "Clip", "It does the same to the integers before it.")


def move(graph: Graph, node: Node, context: Context) -> Change | None:
    """MaxPool(DQ(x))  =>  DQ(MaxPool(x))."""
    if node.domain or node.op not in MOVERS or any(t.outputs for t in node.outputs[1:]):
        return None
    match = _dequantized(node)
    if match is None:
        return None
    obstacle = pads_integers if node.op == "Pad" else moves_integers
    if (reason := obstacle(match, graph, context)) is not None:
        return Change(node.name, node.op, "", reason)
    rest = node.inputs[1:]
    if node.op == "Pad":
        rest = [rest[0], parameters(match, graph, "x")[1], *rest[2:]]
    name, op = node.name, node.op
    _requantize(graph, node, match, op, [match["x"], *rest], node.attrs)
    return Change(name, op, op, "It moves integers as well, and what reads it finds DequantizeLinear.")


def join(graph: Graph, node: Node, context: Context) -> Change | None:
    """Concat(DQ(x), DQ(y))  =>  DQ(Concat(x, y)), all alike, where no QuantizeLinear makes one operator of it."""
    reader = only_reader(graph, node.outputs[0])
    if node.domain or node.op != "Concat" or (reader is not None and reader.op == "QuantizeLinear"):
        return None
    parts = [_dequantized(node, index) for index in range(len(node.inputs))]
    first = parts[0]
    if first is None or not all(part is not None and _alike(first, part) for part in parts):
        return None
    name = node.name
    _requantize(graph, node, first, "Concat", [part["x"] for part in parts if part is not None], node.attrs)
    return Change(name, "Concat", "Concat", "It joins integers as well, and what reads it finds DequantizeLinear.")


def quantize_first(graph: Graph, node: Node, context: Context) -> Change | None:
    """Q(Transpose(Conv))  =>  Transpose(Q(Conv))."""
    match = q(Bind("moved")).match(node.outputs[0])
    mover = None if match is None else maker(match["moved"], (*SHAPERS, "MaxPool"))
    if match is None or mover is None or not _behind_layer(graph, mover, node):
        return None
    if scales(match, "y").size > 1 or zero_points(match, "y").dtype.name not in EIGHT_BITS:
        return None
    if moves_integers(Match({}, {"layer": mover}), graph, context) is not None:
        return None
    output, source, attributes = node.outputs[0], mover.inputs[0], dict(node.attrs)
    attributes.pop("axis", None)
    rest, name, op = mover.inputs[1:], node.name, mover.op
    integers = graph.variable(f"{source.name}_quantized", output.dtype, source.shape)
    graph.remove(node)
    graph.add("QuantizeLinear", [source, *parameters(match, graph, "y")], [integers], name=name, **attributes)
    graph.add(op, [integers, *rest], [output], name=mover.name, **mover.attrs)
    return Change(name, "QuantizeLinear", "QuantizeLinear", f"It goes before {op}, right behind the layer.")


def activate_first(graph: Graph, node: Node, context: Context) -> Change | None:
    """Relu(Transpose(Conv))  =>  Transpose(Relu(Conv)), where QuantizeLinear comes next."""
    mover = maker(node.inputs[0], (*SHAPERS, "MaxPool")) if node.inputs else None
    reader = only_reader(graph, node.outputs[0])
    if node.domain or node.op not in ACTIVATIONS or mover is None or reader is None or reader.op != "QuantizeLinear":
        return None
    if not _behind_layer(graph, mover, node):
        return None
    source, output, rest, name = mover.inputs[0], node.outputs[0], mover.inputs[1:], node.name
    limits, attributes = node.inputs[1:], dict(node.attrs)
    active = graph.variable(f"{source.name}_active", source.dtype, source.shape)
    op = node.op
    graph.remove(node)
    graph.add(op, [source, *limits], [active], name=name, **attributes)
    graph.add(mover.op, [active, *rest], [output], name=mover.name, **mover.attrs)
    return Change(name, op, op, f"It goes before {mover.op}, right behind the layer.")


Step = Callable[[Graph, Node, Context], Change | None]
STEPS: tuple[Step, ...] = (pair, activation, move, join, quantize_first, activate_first)


def _dequantized(node: Node, index: int = 0) -> Match | None:
    """What an operator reads through DequantizeLinear: 8 bits with one scale, and no weight."""
    match = dq("x").match(node.inputs[index]) if len(node.inputs) > index else None
    if match is None or is_constant(match["x"]) or scales(match, "x").size != 1:
        return None
    if zero_points(match, "x").dtype.name not in EIGHT_BITS or match["x_scale"].dtype != np.float32:
        return None
    return match | Match({}, {"layer": node})


def _alike(a: Match, b: Match) -> bool:
    """Whether two inputs have one scale, one zero point and one type."""
    x, y = zero_points(a, "x"), zero_points(b, "x")
    return bool(np.array_equal(scales(a, "x"), scales(b, "x")) and np.array_equal(x, y) and x.dtype == y.dtype)


def _quantized_alike(match: Match, node: Node) -> bool | None:
    """Whether all that reads an activation quantizes it as its input was; None where it is read as a float."""
    found = [q(Bind("float")).match(reader.outputs[0]) for reader in node.outputs[0].outputs]
    behind = [part for part in found if part is not None]
    if not behind or len(behind) < len(found):
        return None
    scale, zero_point = scales(match, "x"), zero_points(match, "x")
    same = [(scales(part, "y"), zero_points(part, "y")) for part in behind]
    return all(
        np.array_equal(s, scale) and np.array_equal(z, zero_point) and z.dtype == zero_point.dtype for s, z in same
    )


def _behind_layer(graph: Graph, mover: Node, reader: Node) -> bool:
    """Whether an operator that moves values stands alone between a layer and its reader."""
    source = mover.inputs[0]
    made = source.inputs[0] if source.inputs else None
    alone = only_reader(graph, source) is mover and only_reader(graph, mover.outputs[0]) is reader
    return alone and made is not None and not made.domain and made.op in FUSED


def _requantize(
    graph: Graph, node: Node, match: Match, op: str, inputs: list[Tensor], attributes: dict[str, Any]
) -> None:
    """Put an operator on integers, with DequantizeLinear behind it, in the place of a float one."""
    output, name, attributes = node.outputs[0], node.name, dict(attributes)
    before = match.nodes["x_dequantize"]
    kept = {key: value for key, value in before.attrs.items() if key not in ("axis", "block_size")}
    integers = graph.variable(f"{output.name}_integers", zero_points(match, "x").dtype, output.shape)
    graph.remove(node)
    graph.add(op, inputs, [integers], name=name, **attributes)
    graph.add(
        "DequantizeLinear",
        [integers, *parameters(match, graph, "x")],
        [output],
        name=f"{name}_dequantize",
        **kept,
    )
