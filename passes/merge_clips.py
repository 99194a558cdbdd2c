"""Integers are clipped once, and only where something lies beyond the limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxq.graph import Graph, Node, Tensor, is_constant, weight
from onnxq.layers import clip_limits, only_reader
from onnxq.numerics.formats import FORMATS, INT32, Format
from onnxq.pipeline import Context, Exact, Promise
from onnxq.rewrite import Change, maker, replace_output
from onnxq.spec import Fact

MOVERS = (
    "MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand", "DepthToSpace",
    "Resize", "Identity",
)  # fmt: skip
"""Operators that return no other numbers than those of their first input."""

WIDE = 1 << 8
"""Beyond every integer of 8 bits."""

FLOATS = INT32
"""Stands for every type that is not looked at."""


@dataclass(frozen=True)
class MergeClips:
    """Take out a Clip of 8-bit integers whose input lies between its limits, and make one of two.

        Clip(MaxPool(Clip(x, 0, 15)), 0, 15)  =>  MaxPool(Clip(x, 0, 15))
        Clip(Clip(x, 8, 255), 0, 15)          =>  Clip(x, 8, 15)

    Leaves alone floats, limits that are no constants, and limits that lie apart.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.INTEGER})
    gives: ClassVar[frozenset[Fact]] = frozenset()
    promise: ClassVar[Promise] = Exact()

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each Clip that is taken out."""
        for node in list(graph.nodes):
            limits = _limits(node)
            if limits is None:
                continue
            name, (low, high), form = node.name, _reach(node.inputs[0]), _form(node)
            low, high = max(low, form.qmin), min(high, form.qmax)
            if limits[0] <= low and high <= limits[1]:
                source = node.inputs[0]
                if graph.kept(node.outputs[0]) and (not source.inputs or graph.kept(source)):
                    continue
                replace_output(graph, node, source)
                yield Change(name, "Clip", "nothing", f"What it reads lies in {low}..{high}.")
            elif (inner := _inner(graph, node)) is not None:
                before = _limits(inner)
                assert before is not None
                _set_limits(graph, node, max(limits[0], before[0]), min(limits[1], before[1]))
                node.inputs[0] = inner.inputs[0]
                yield Change(name, "Clip", "Clip", f"'{inner.name}' before it is part of it now.")


def _form(node: Node) -> Format:
    """The integers of a Clip; those of its limits, where its input does not say."""
    found = [t.dtype.name for t in node.inputs if t.name and t.dtype is not None]
    return FORMATS.get(found[0], FLOATS) if found else FLOATS


def _limits(node: Node) -> tuple[int, int] | None:
    """The limits of a Clip of 8-bit integers; open ones are those of the type."""
    form = _form(node) if node.op == "Clip" and not node.domain else FLOATS
    ends = clip_limits(node) if form.bits == 8 else None
    return None if ends is None else (int(max(ends[0], form.qmin)), int(min(ends[1], form.qmax)))


def _reach(tensor: Tensor) -> tuple[int, int]:
    """The smallest and the largest integer that a tensor may hold."""
    node = tensor.inputs[0] if tensor.inputs else None
    while node is not None and not node.domain and node.op in MOVERS and node.outputs[0] is tensor:
        tensor = node.inputs[0]
        node = tensor.inputs[0] if tensor.inputs else None
    if is_constant(tensor):
        values = weight(tensor)
        return int(values.min()), int(values.max())
    if node is not None and not node.domain and node.op == "Concat":
        ends = [_reach(part) for part in node.inputs]
        return min(low for low, _ in ends), max(high for _, high in ends)
    limits = _limits(node) if node is not None else None
    if node is None or limits is None:
        return -WIDE, WIDE
    low, high = _reach(node.inputs[0])
    return max(low, limits[0]), min(high, limits[1])


def _inner(graph: Graph, node: Node) -> Node | None:
    """The Clip right before a Clip, with limits that meet its own, and no other reader."""
    inner, limits = maker(node.inputs[0], "Clip"), _limits(node)
    before = _limits(inner) if inner is not None else None
    if inner is None or limits is None or before is None or only_reader(graph, node.inputs[0]) is not node:
        return None
    return inner if max(limits[0], before[0]) <= min(limits[1], before[1]) else None


def _set_limits(graph: Graph, node: Node, low: int, high: int) -> None:
    dtype, source = _form(node).dtype, node.inputs[0]
    bounds = [graph.constant(f"{node.name}_limit", np.asarray(end, dtype)) for end in (low, high)]
    node.inputs.clear()
    node.inputs.extend([source, *bounds])
