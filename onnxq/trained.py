"""Whether the Q/DQ that a model brings along can be taken at its word: scales, zero points and axes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxq.errors import ModelError
from onnxq.graph import Graph, Node, Tensor, is_constant, weight

AGAIN = "Train or export the model again."


def check_scales(graph: Graph) -> None:
    """Look at every QuantizeLinear and DequantizeLinear with constant parameters.

    A scale of a weight that is 0 or negative passes: the weight is well defined, and its layer stays in float.

    Raises:
        ModelError: a scale is not finite, or that of an activation not above 0; a zero point is of another type than
            its integers; or there is not one scale for each channel.
    """
    for node in graph.nodes:
        if node.op in ("QuantizeLinear", "DequantizeLinear") and len(node.inputs) > 1 and is_constant(node.inputs[1]):
            wrong = next(_wrong(node), None)
            if wrong is not None:
                raise ModelError(f"Node '{node.name}' ({node.op}): {wrong} {AGAIN}")


def _wrong(node: Node) -> Iterator[str]:
    data, scale = node.inputs[0], node.inputs[1]
    values = weight(scale).astype(np.float32)
    zero_point = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    bad = values[~np.isfinite(values)]
    if bad.size:
        yield f"its scale is {bad.reshape(-1)[0]}."
    low = values[~(values > 0)]
    if low.size and not (node.op == "DequantizeLinear" and is_constant(data)):
        yield f"its scale is {low.reshape(-1)[0]:g}, and must be above 0."
    if zero_point is not None:
        yield from _wrong_zero_point(node, zero_point)
    if values.size > 1 and not node.attrs.get("block_size", 0):
        yield from _wrong_axis(node, values.size, _shape(data) or _shape(node.outputs[0]))


def _wrong_zero_point(node: Node, zero_point: Tensor) -> Iterator[str]:
    integers = node.outputs[0] if node.op == "QuantizeLinear" else node.inputs[0]
    kind = _kind(integers)
    if None not in (kind, zero_point.dtype) and kind != zero_point.dtype:
        yield f"its zero point is {zero_point.dtype}, and its integers are {kind}."
    size, scales = _size(zero_point), _size(node.inputs[1])
    if size is not None and size != scales:
        yield f"it has {size} zero points for {scales} scales."
    if zero_point.dtype == np.int32 and is_constant(zero_point) and weight(zero_point).any():
        yield "its integers of 32 bits have a zero point other than 0."


def _wrong_axis(node: Node, count: int, shape: tuple[object, ...] | None) -> Iterator[str]:
    axis = int(node.attrs.get("axis", 1))
    if shape is None:
        return
    if not -len(shape) <= axis < len(shape):
        yield f"its scales lie along axis {axis}, and its input has {len(shape)} axes."
    elif isinstance(shape[axis], int) and shape[axis] != count:
        yield f"it has {count} scales for axis {axis}, which has a size of {shape[axis]}."


def _kind(integers: Tensor) -> np.dtype | None:
    """The type of a quantized tensor, which its QuantizeLinear tells where nothing else does."""
    node = integers.inputs[0] if integers.inputs else None
    while node is not None and node.op == "Clip":
        node = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
    quantized = node is not None and node.op == "QuantizeLinear" and len(node.inputs) > 2
    return integers.dtype or (node.inputs[2].dtype if quantized and node is not None else None)


def _shape(tensor: Tensor) -> tuple[object, ...] | None:
    return None if tensor.shape is None else tuple(tensor.shape)


def _size(tensor: Tensor) -> int | None:
    return int(np.prod([int(size) for size in tensor.shape or ()])) if is_constant(tensor) else None  # type: ignore[arg-type]
