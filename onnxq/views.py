"""Weights seen another way: what an operator makes of a constant by moving or widening it, without reading it.

    Transpose(w), Reshape(w, s), Squeeze(w), Unsqueeze(w), Identity(w), Cast(w)  =>  a handle

A handle reads the weight when it is read itself. What only moves stays a view of the file that the weight is mapped
from.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxq.graph import Array, Constant, Later, Node, is_constant, is_external, weight

FLOATS = {1: np.dtype(np.float32), 10: np.dtype(np.float16), 11: np.dtype(np.float64)}
"""Element types between which a Cast is a change of width, by their number in ONNX."""

Move = Callable[[Array], Array]


def is_lazy(tensor: Constant, least: int) -> bool:
    """Whether a constant of at least so many bytes is not in memory."""
    return (is_external(tensor) or isinstance(tensor._values, Later)) and tensor._values.nbytes > least


def view(node: Node) -> Later | None:
    """What a node makes of its first operand, a constant; None where it does more than look at it another way."""
    tensor = node.inputs[0] if node.inputs else None
    if not isinstance(tensor, Constant) or node.domain or not all(is_constant(t) for t in node.inputs if t.name):
        return None
    dtype, shape = np.dtype(tensor.dtype), tuple(int(size) for size in tensor.shape or ())  # type: ignore[arg-type]
    if dtype.isbuiltin != 1:  # types that NumPy lacks may share bytes
        return None
    if node.op == "Cast":
        to = FLOATS.get(node.attrs["to"])
        known = to is not None and dtype in FLOATS.values()
        return Later(shape, to, lambda: _cast(weight(tensor), to)) if known else None  # type: ignore[arg-type]
    move = _move(node)
    if move is None:
        return None
    try:
        moved = move(np.broadcast_to(np.zeros((), dtype), shape)).shape
    except (ValueError, IndexError):  # a shape that does not fit: the runtime says so
        return None
    return Later(moved, dtype, lambda: move(weight(tensor)))


def _move(node: Node) -> Move | None:
    """How the numbers of an array are moved; none of it copies a whole array."""
    if node.op == "Identity":
        return lambda values: values
    if node.op == "Transpose":
        return lambda values: values.transpose(node.attrs.get("perm"))
    if node.op == "Reshape":
        return _reshape(node)
    if node.op not in ("Squeeze", "Unsqueeze"):
        return None
    axes = _axes(node)
    if node.op == "Squeeze":
        return lambda values: values.squeeze(axes)
    return None if axes is None else lambda values: np.expand_dims(values, axes)


def _reshape(node: Node) -> Move | None:
    if len(node.inputs) != 2:
        return None
    wanted = [int(size) for size in weight(node.inputs[1])]
    if node.attrs.get("allowzero", 0) and 0 in wanted:
        return None
    return lambda values: values.reshape([size or values.shape[place] for place, size in enumerate(wanted)])


def _axes(node: Node) -> tuple[int, ...] | None:
    """Axes from an attribute, or since opset 13 from an operand."""
    given = node.attrs.get("axes")
    if given is None and len(node.inputs) > 1 and node.inputs[1].name:
        given = weight(node.inputs[1])
    return None if given is None else tuple(int(axis) for axis in given)


def _cast(values: Array, dtype: np.dtype) -> Array:
    with np.errstate(over="ignore"):  # what is too large becomes infinite
        return values.astype(dtype)
