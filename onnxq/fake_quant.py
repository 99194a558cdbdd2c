"""Fake quantization that is written out in float operators, as PyTorch exports modules of one's own.

Mul(Sub(Clip(Add(Round(Div(x, s)), z), low, high), z), s)        z may be missing
Mul(Round(Clip(Div(x, s), low, high)), s)                        as in LSQ
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxq.graph import Array, Graph, Node, Tensor, is_constant, stored_value, weight
from onnxq.layers import clip_limits, only_reader
from onnxq.spec import has_qdq


@dataclass(frozen=True)
class FakeQuant:
    """What a chain of float operators rounds to.

    Attributes:
        source: what is rounded.
        scale: float32, one number or one for each channel.
        zero_point: integers of `dtype`, shaped like the scale.
        low: the smallest integer.
        high: the largest integer.
        axis: of the channels; None for one scale.
        nodes: the chain, from its end to its beginning.
    """

    source: Tensor
    scale: Array
    zero_point: Array
    low: int
    high: int
    axis: int | None
    nodes: tuple[Node, ...]


def brings_scales(graph: Graph) -> bool:
    """Whether the model holds quantization that it was trained with, as Q/DQ or written out."""
    return has_qdq(graph) or any(written_out(graph, node) is not None for node in graph.nodes)


def written_out(graph: Graph, last: Node) -> FakeQuant | None:
    """The fake quantization that ends in this node; None for anything else."""
    if last.op != "Mul" or last.domain or not any(_maker(t) for t in last.inputs):
        return None
    for inner, factor in (last.inputs, reversed(last.inputs)):
        scale = known(factor)
        found = None if scale is None else _chain(graph, last, inner, scale)
        if found is not None:
            return found
    return None


def known(tensor: Tensor) -> Array | None:
    """The numbers of a constant, or of a Constant node; None for anything else."""
    if is_constant(tensor):
        return weight(tensor)
    node = _maker(tensor)
    stored = stored_value(node) if node is not None and node.op == "Constant" else None
    return stored if isinstance(stored, np.ndarray) else None if stored is None else stored.load()


def _maker(tensor: Tensor) -> Node | None:
    return tensor.inputs[0] if tensor.inputs and not tensor.inputs[0].domain else None


def _chain(graph: Graph, last: Node, tensor: Tensor, scale: Array) -> FakeQuant | None:
    """Walk from the factor back to the division, through what may stand between them, each once."""
    nodes, seen, zeros = [last], dict[str, Node](), dict[str, Array]()
    node = _maker(tensor)
    while node is not None and node.op in ("Sub", "Clip", "Add", "Round", "Div") and node.op not in seen:
        if only_reader(graph, node.outputs[0]) is None:
            return None
        if node.op in ("Sub", "Add", "Div"):
            value = known(node.inputs[1])
            if value is None:
                return None
            zeros[node.op] = value
        seen[node.op] = node
        nodes.append(node)
        if node.op == "Div":
            break
        node = _maker(node.inputs[0])
    order = list(seen)
    if order not in ORDERS or not np.array_equal(zeros["Div"], scale):
        return None
    zero = zeros.get("Sub", np.zeros(1, np.float32))
    if "Add" in zeros and not np.array_equal(zeros["Add"], zero):
        return None
    return _on_grid(nodes, scale, zero, clip_limits(seen["Clip"]))


ORDERS = (["Sub", "Clip", "Add", "Round", "Div"], ["Clip", "Round", "Div"], ["Round", "Clip", "Div"])
"""Operators between the last multiplication and the source, from the end."""


def _on_grid(nodes: list[Node], scale: Array, zero: Array, limits: tuple[float, float] | None) -> FakeQuant | None:
    """The chain, where its numbers are those of 8-bit integers."""
    source = nodes[-1].inputs[0]
    if limits is None or scale.dtype != np.float32 or not (np.isfinite(scale).all() and (scale > 0).all()):
        return None
    if zero.size not in (1, scale.size) or any(end != np.rint(end) for end in (*limits, *zero.reshape(-1))):
        return None
    numbers = [*limits, *zero.reshape(-1)]
    dtype = next((t for t, low, high in RANGES if low <= min(numbers) and max(numbers) <= high), None)
    wide = [i for i, size in enumerate(scale.shape) if size > 1]
    rank = len(source.shape) if source.shape is not None else None
    if dtype is None or len(wide) > 1 or (wide and (rank is None or scale.ndim > rank)):
        return None
    axis = wide[0] + rank - scale.ndim if wide and rank is not None else None
    shape = scale.size if wide else ()
    zeros = np.broadcast_to(zero.reshape(-1), scale.size).astype(dtype).reshape(shape)
    return FakeQuant(source, scale.reshape(shape), zeros, int(limits[0]), int(limits[1]), axis, tuple(nodes))


RANGES = ((np.uint8, 0, 255), (np.int8, -128, 127))
"""Integers of 8 bits."""
