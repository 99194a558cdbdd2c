"""The same steps under other names: signed activations become unsigned ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxq.graph import Graph, Node, Tensor, is_constant, weight
from onnxq.pipeline import Context, Exact, Promise
from onnxq.rewrite import Change
from onnxq.spec import Fact

MOVERS = frozenset(
    {"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand"}
    | {"DepthToSpace", "Resize", "Identity"}
)
"""Operators whose first input may be shifted, and their output with it."""

BETWEEN = MOVERS | {"Clip", "Pad", "Concat"}
"""Operators that integers go through between QuantizeLinear and DequantizeLinear."""

CONSTANTS = {"QuantizeLinear": (2,), "DequantizeLinear": (2,), "Clip": (1, 2), "Pad": (2,)}
"""Inputs that are shifted with the integers: zero points, limits, and what padding is filled with."""


@dataclass(frozen=True)
class UnsignedActivations:
    """Shift int8 activations by 128.

        DQ(Q(x, zero_point: int8), zero_point) => DQ(Q(x, zero_point + 128: uint8), zero_point + 128)
        DQ(Clip(Q(x), low, high))              => DQ(Clip(Q(x), low + 128, high + 128))

    Integer kernels on x86 run signed activations three to four times slower than floats. Shifts all together that
    Clip, Concat and operators that only move integers connect. Leaves a tensor alone that anything else but
    DequantizeLinear reads, and zero points that are no constants.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})
    promise: ClassVar[Promise] = Exact()

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each tensor that is shifted."""
        if context.target.activation != "uint8":
            return
        shifted: dict[str, Tensor] = {}
        for node in [n for n in graph.nodes if n.op == "QuantizeLinear" and not n.domain]:
            if not _signed(node):
                continue
            together = _connected(node)
            obstacle = _obstacle(graph, together)
            if obstacle is not None:
                yield Change(node.name, node.op, "", obstacle)
                continue
            for user in together:
                _shift(graph, user, shifted)
                if user.op == "QuantizeLinear":
                    yield Change(user.name, user.op, "uint8", "Shifted by 128; the steps are the same.")


def _signed(node: Node) -> bool:
    return len(node.inputs) > 2 and node.inputs[2].dtype == np.int8


def _integers(node: Node) -> list[Tensor]:
    """The signed tensors that a node reads and makes."""
    if node.op == "QuantizeLinear":
        return [node.outputs[0]]
    if node.op == "DequantizeLinear" or node.op not in BETWEEN:
        return [node.inputs[0]]
    return [*(node.inputs if node.op == "Concat" else node.inputs[:1]), node.outputs[0]]


def _connected(start: Node) -> list[Node]:
    """All that must be shifted together with what a QuantizeLinear makes, and what stands in the way of it."""
    found, tensors = {start: None}, _integers(start)
    while tensors:
        tensor = tensors.pop()
        for node in (*tensor.inputs, *tensor.outputs):
            if node not in found:
                found[node] = None
                tensors.extend(_integers(node) if node.op in BETWEEN else ())
    return list(found)


def _obstacle(graph: Graph, together: list[Node]) -> str | None:
    """The sentence why these nodes cannot be shifted; None where they can."""
    for node in together:
        made = node.op == "QuantizeLinear" and _signed(node)
        read = node.op == "DequantizeLinear" and len(node.inputs) > 2
        passed = node.op in BETWEEN and not any(t.outputs for t in node.outputs[1:])
        if node.domain or not (made or read or passed) or any(graph.kept(t) for t in _integers(node)):
            return "Something else than DequantizeLinear reads its int8 output."
        if not all(is_constant(t) for i in CONSTANTS.get(node.op, ()) for t in node.inputs[i : i + 1] if t.name):
            return "Its zero point is no constant." if node.op != "Clip" else "A limit of its Clip is no constant."
        if any(is_constant(t) for t in _integers(node)):
            return "A constant is joined to its int8 output."
    return None


def _shift(graph: Graph, node: Node, shifted: dict[str, Tensor]) -> None:
    """Shift what a node makes, and the constants that belong to it."""
    if node.op == "Pad" and node.attrs.get("mode", "constant") == "constant" and not _filled(node):
        fill = graph.constant(f"{node.name}_fill", np.asarray(0, np.int8))
        if len(node.inputs) > 2:
            node.inputs[2] = fill
        else:
            node.inputs.append(fill)
    for index in CONSTANTS.get(node.op, ()):
        if len(node.inputs) > index and node.inputs[index].name:
            node.inputs[index] = _unsigned(graph, node.inputs[index], shifted)
    if node.op != "DequantizeLinear":
        node.outputs[0].dtype = np.dtype(np.uint8)
        node.attrs.pop("output_dtype", None)


def _filled(node: Node) -> bool:
    return len(node.inputs) > 2 and bool(node.inputs[2].name)


def _unsigned(graph: Graph, values: Tensor, shifted: dict[str, Tensor]) -> Tensor:
    if values.name not in shifted:
        moved = (weight(values).astype(np.int16) + 128).astype(np.uint8)
        shifted[values.name] = graph.constant(f"{values.name}_unsigned", moved)
    return shifted[values.name]
