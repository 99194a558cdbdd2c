"""A graph as records: what a page and a listing show of its nodes and tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from onnxq.graph import Array, Constant, Node, Tensor, is_constant, weight
from onnxq.graphdiff.findings import ModelView, NodeView, TensorView
from onnxq.graphdiff.indexed import Indexed
from onnxq.interface import TensorSpec

SMALL = 8
"""Numbers of a weight that are shown."""

LONG = 200
"""Characters of an attribute that are shown."""

BLOCKED = frozenset({"MatMulNBits", "GatherBlockQuantized"})
"""Operators whose zero point lies in the middle of the format where it is left out."""

Grid = tuple[Array | None, Array | None, str]
"""Scale and zero point, None where they are computed, and element type, if it is known."""

SCALE, ZERO = "_scale", "_zero_point"


def of_model(side: Indexed, name: str) -> ModelView:
    """A whole graph."""
    graph = side.graph
    return ModelView(
        name=name,
        opsets={domain or "ai.onnx": version for domain, version in sorted(graph.opsets.items())},
        inputs=[str(spec) for spec in graph.interface().inputs],
        outputs=[str(spec) for spec in graph.interface().outputs],
        weight_bytes=sum(int(tensor._values.nbytes) for tensor in graph.weights()),
        nodes=[of_node(side, place) for place in range(len(side.nodes))],
        tensors={name: of_tensor(tensor) for name, tensor in sorted(graph.tensors().items()) if name},
    )


def of_node(side: Indexed, place: int) -> NodeView:
    """One node."""
    node = side.nodes[place]
    return NodeView(
        name=node.name,
        op=operator(node),
        inputs=[tensor.name for tensor in node.inputs],
        outputs=[tensor.name for tensor in node.outputs],
        captured=list(dict.fromkeys(side.captured(place))),
        attributes={key: shown(value) for key, value in sorted(node.attrs.items())},
        grids=grids(side, place),
        bytes=side.holdings[place],
    )


def of_tensor(tensor: Tensor) -> TensorView:
    """One tensor."""
    if not isinstance(tensor, Constant):
        return TensorView(type=type_of(tensor))
    small = math.prod(size for size in tensor.shape or () if isinstance(size, int)) <= SMALL
    value = cut(str(weight(tensor).tolist())) if small else ""
    return TensorView(type=type_of(tensor), bytes=int(tensor._values.nbytes), value=value)


def type_of(tensor: Tensor) -> str:
    """Element type and shape: `float32[batch, 16]`; empty where nothing is known."""
    if tensor.dtype is None and tensor.shape is None:
        return ""
    dtype = np.dtype(tensor.dtype) if tensor.dtype is not None else "?"
    return str(TensorSpec("", dtype, None if tensor.shape is None else tuple(tensor.shape))).removeprefix(": ")  # type: ignore[arg-type]


def operator(node: Node) -> str:
    """`Conv`, `com.microsoft.QLinearAdd`."""
    return f"{node.domain}.{node.op}" if node.domain else node.op


def shown(value: Any) -> str:
    """An attribute as text, cut where it is long."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list) and value and isinstance(value[0], float):
        return cut(f"[{', '.join(map(shown, value))}]")
    if not hasattr(value, "SerializeToString"):
        return cut(str(value))
    if value.HasField("t"):
        return f"tensor of {list(value.t.dims)}"
    if value.HasField("g"):
        return cut(f"graph of {', '.join(node.op_type for node in value.g.node) or 'no node'}")
    return cut(" ".join(str(value).split()))


def cut(text: str) -> str:
    """The beginning of a long text."""
    return text if len(text) <= LONG else f"{text[:LONG]}..."


def grids(side: Indexed, place: int) -> dict[str, str]:
    """How operands of a node become integers, by their name; where that is found at run time, too."""
    return {name: describe(*pair) for name, pair in numbers(side, place)}


def numbers(side: Indexed, place: int) -> Iterator[tuple[str, Grid]]:
    """The grids of the operands of a node that have a scale, by their name."""
    node, roles = side.nodes[place], side.roles(place)
    operands = {role: tensor for role, tensor in zip(roles, node.inputs, strict=True) if tensor.name}
    for role, tensor in operands.items():
        if role.endswith(SCALE):
            name = role.removesuffix(SCALE)
            zero = operands.get(f"{name}{ZERO}")
            stored = zero if zero is not None else operands.get(name)
            kind = str(np.dtype(stored.dtype)) if stored is not None and stored.dtype is not None else ""
            if node.op == "QuantizeLinear" and zero is None:
                kind = "uint8"
            centre = _value(side, zero) if zero is not None else None if node.op in BLOCKED else np.zeros((), np.int32)
            yield name, (_value(side, tensor), centre, kind)


def _value(side: Indexed, tensor: Tensor) -> Array | None:
    found = side.constants.get(tensor.name)
    return weight(found) if found is not None and (is_constant(found)) else None


def describe(scale: Array | None, zero: Array | None, kind: str) -> str:
    """`uint8, scale 0.0235, zero point 128`; `int8, 64 scales from 0.001 to 0.02`."""
    if scale is None:
        return f"{kind}, scale found at run time".removeprefix(", ")
    if scale.size == 1:
        words = [kind, f"scale {_number(scale)}"]
    elif scale.size:
        words = [kind, f"{scale.size} scales from {_number(scale.min())} to {_number(scale.max())}"]
    else:
        words = [kind, "no scale"]
    if zero is not None and zero.size and zero.dtype.kind != "V":
        low, high = zero.astype(np.int32).min(), zero.astype(np.int32).max()
        words += [f"zero point {low}"] if low == high else [f"zero points from {low} to {high}"]
    return ", ".join(word for word in words if word)


def _number(value: Any) -> str:
    return f"{float(np.asarray(value).reshape(-1)[0]):.4g}"
