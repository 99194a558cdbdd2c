"""A quantized weight takes the shape in which its layer reads it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxq.graph import Array, Constant, Graph, Later, Node, Tensor, is_constant, weight
from onnxq.islands import dq
from onnxq.pipeline import Context, Exact, Promise
from onnxq.rewrite import Change, Match
from onnxq.spec import Fact

RESHAPERS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
"""Operators that keep the order of the numbers."""


@dataclass(frozen=True)
class TurnWeights:
    """Transpose or reshape the integers of a weight once, instead of its floats on every run.

        Transpose(DQ(w, axis)) => DQ(w', axis')        Reshape(DQ(w, axis)) => DQ(w', axis')

    Scales follow their channels. Leaves alone a reshape that takes channels apart or joins them, and one of a weight
    with a scale for each block.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})
    promise: ClassVar[Promise] = Exact()

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each operator behind a weight."""
        for node in list(graph.nodes):
            match = dq("w").match(node.inputs[0]) if node.inputs and not node.domain else None
            if match is None or not is_constant(match["w"]):
                continue
            if node.op == "Transpose":
                _transpose(graph, node, match)
                yield Change(node.name, node.op, "DequantizeLinear", "Its weight is stored transposed.")
            elif node.op in RESHAPERS:
                obstacle = _reshape(graph, node, match)
                done = "" if obstacle else "DequantizeLinear"
                yield Change(node.name, node.op, done, obstacle or "Its weight is stored in this shape.")


def _transpose(graph: Graph, node: Node, match: Match) -> None:
    rank = len(match["w"].shape or ())
    order = [int(axis) for axis in node.attrs.get("perm", range(rank)[::-1])]
    axis = int(match.nodes["w_dequantize"].attrs.get("axis", 1)) % max(rank, 1)

    def turn(values: Array) -> Array:
        return values.transpose(order)

    def turned(tensor: Tensor) -> Tensor:
        shape = [int(size) for size in tensor.shape or ()]  # type: ignore[arg-type]
        return tensor if len(shape) != rank or rank < 2 else _later(graph, tensor, [shape[i] for i in order], turn)

    parts = [turned(match["w"]), *_parameters(match, turned)]  # scales of blocks have the axes of the weight
    _put(graph, node, match, parts, order.index(axis) if axis in order else 0)


def _reshape(graph: Graph, node: Node, match: Match) -> str | None:
    """Store the weight in the new shape, or say why not."""
    old = [int(size) for size in match["w"].shape or ()]  # type: ignore[arg-type]
    new = node.outputs[0].shape
    if new is None or not all(isinstance(size, int) for size in new):
        return "The shape that its weight takes is not known."
    shape, axis = [int(size) for size in new], 0  # type: ignore[arg-type]
    if math.prod(match["w_scale"].shape or ()) > 1:  # type: ignore[arg-type]
        if match.nodes["w_dequantize"].attrs.get("block_size", 0):
            return "Its weight has a scale for each block."
        axis = int(match.nodes["w_dequantize"].attrs.get("axis", 1)) % len(old)
        same = [
            i for i, size in enumerate(shape) if size == old[axis] and math.prod(shape[:i]) == math.prod(old[:axis])
        ]
        if not same:
            return "It takes apart the channels that have a scale each."
        (axis,) = same[:1]
    parts = [_later(graph, match["w"], shape, lambda values: values.reshape(shape)), *_parameters(match)]
    _put(graph, node, match, parts, axis)
    return None


def _parameters(match: Match, turned: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> list[Tensor]:
    found = [match["w_scale"], match.get("w_zero_point")]
    return [turned(tensor) for tensor in found if tensor is not None]


def _later(graph: Graph, tensor: Tensor, shape: list[int], turn: Callable[[Array], Array]) -> Constant:
    """The same numbers, turned when they are read."""
    assert tensor.dtype is not None
    name = graph.fresh(f"{tensor.name}_turned")
    return Constant(name, Later(shape, np.dtype(tensor.dtype), lambda: np.ascontiguousarray(turn(weight(tensor)))))


def _put(graph: Graph, node: Node, match: Match, parts: list[Tensor], axis: int) -> None:
    """DequantizeLinear of the turned weight in the place of the operator behind the old one."""
    before, output, name = match.nodes["w_dequantize"], node.outputs[0], node.name
    attributes = {**before.attrs, "axis": axis} if graph.opset >= 13 else dict(before.attrs)
    graph.remove(node)
    graph.add("DequantizeLinear", parts, [output], name=f"{name}_dequantize", **attributes)
