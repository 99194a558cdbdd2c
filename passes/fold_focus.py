"""A convolution with a stride reads every second pixel by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxq.graph import Array, Graph, Node, Tensor, is_constant, weight
from onnxq.layers import only_reader
from onnxq.pipeline import Context, Exact, Promise
from onnxq.rewrite import Change
from onnxq.spec import Fact

Corner = tuple[int, int]
"""Which of the interleaved pictures a slice takes: its first row and its first column."""


@dataclass(frozen=True)
class FoldFocus:
    """Let the convolution take the picture apart into interleaved smaller ones.

        Conv(Concat(x[::2, ::2], x[1::2, ::2], x[::2, 1::2], x[1::2, 1::2]), w) => Conv<strides=[2, 2]>(x, w')
        Conv(SpaceToDepth<blocksize=b>(x), w) => Conv<strides=[b, b]>(x, w')

    The kernel becomes as many times wider as the picture does; each weight stays where it meets its pixel. Leaves it
    alone where the convolution has strides, dilations, groups or its own padding rule, where a part is missing or cut
    differently, and where the parts are read elsewhere too.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset()
    gives: ClassVar[frozenset[Fact]] = frozenset()
    promise: ClassVar[Promise] = Exact()

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each convolution behind a picture that was taken apart."""
        for conv in [n for n in graph.nodes if n.op == "Conv" and not n.domain]:
            apart = conv.inputs[0].inputs[0] if conv.inputs[0].inputs else None
            if apart is None or apart.domain or apart.op not in ("Concat", "SpaceToDepth"):
                continue
            found = interleaved(apart)
            if found is None:
                continue
            obstacle = _obstacle(graph, apart, conv)
            if obstacle is None:
                _fold(graph, conv, *found)
                yield Change(apart.name, apart.op, "Conv", f"'{conv.name}' reads with strides.")
            else:
                yield Change(apart.name, apart.op, "", obstacle)


def interleaved(node: Node) -> tuple[Tensor, list[Corner]] | None:
    """The picture, and the corner that each group of channels begins at; None where this takes nothing apart."""
    if node.op == "SpaceToDepth":
        size = int(node.attrs["blocksize"])
        return node.inputs[0], [(row, column) for row in range(size) for column in range(size)]
    if node.attrs.get("axis") != 1:
        return None
    parts = [_corner(tensor) for tensor in node.inputs]
    known = [part for part in parts if part is not None]
    if len(known) != len(parts) or len(parts) != 4 or any(part[0] is not known[0][0] for part in known):
        return None
    corners = [part[1] for part in known]
    return (known[0][0], corners) if len(set(corners)) == 4 else None


def _corner(tensor: Tensor) -> tuple[Tensor, Corner] | None:
    """The tensor that slices over rows and columns take every second number of, and where they begin."""
    starts: dict[int, int] = {}
    while tensor.inputs and tensor.inputs[0].op == "Slice" and not tensor.inputs[0].domain:
        cut = _cut(tensor.inputs[0])
        if cut is None or starts.keys() & cut.keys():
            break
        starts |= cut
        tensor = tensor.inputs[0].inputs[0]
    return (tensor, (starts[2], starts[3])) if starts.keys() == {2, 3} else None


def _cut(node: Node) -> dict[int, int] | None:
    """The first index along each axis, where a Slice takes every second one up to the end."""
    if len(node.inputs) != 5 or not all(is_constant(tensor) for tensor in node.inputs[1:]):
        return None
    starts, ends, axes, steps = (weight(tensor).reshape(-1).tolist() for tensor in node.inputs[1:])
    shape = node.inputs[0].shape or ()
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = shape[axis] if 0 <= axis < len(shape) else None
        whole = end >= (size if isinstance(size, int) else 2**31 - 1)
        if start not in (0, 1) or step != 2 or axis not in (2, 3) or not whole:
            return None
    return dict(zip(axes, starts, strict=True))


def _obstacle(graph: Graph, apart: Node, conv: Node) -> str | None:
    attributes = conv.attrs
    if only_reader(graph, apart.outputs[0]) is not conv:
        return "Its output is read elsewhere too."
    if not is_constant(conv.inputs[1]) or len(conv.inputs[1].shape or ()) != 4:
        return f"The weight of '{conv.name}' is no constant of four axes."
    plain = all(step == 1 for name in ("strides", "dilations") for step in attributes.get(name, ()))
    if not plain or attributes.get("group", 1) != 1 or attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return f"'{conv.name}' has strides, dilations, groups or a padding rule of its own."
    return None


def _fold(graph: Graph, conv: Node, picture: Tensor, corners: list[Corner]) -> None:
    kernel = conv.inputs[1]
    wide = spread_kernel(weight(kernel), corners)
    size = round(len(corners) ** 0.5)
    conv.inputs[0] = picture
    conv.inputs[1] = graph.constant(f"{kernel.name}_wide", wide)
    conv.attrs["kernel_shape"] = list(wide.shape[2:])
    conv.attrs["strides"] = [size, size]
    conv.attrs["pads"] = [pad * size for pad in conv.attrs.get("pads", [0, 0, 0, 0])]
    conv.attrs.pop("auto_pad", None)


def spread_kernel(kernel: Array, corners: list[Corner]) -> Array:
    """Weights [outputs, corners * channels, h, w] as [outputs, channels, size * h, size * w]."""
    outputs, inputs, height, width = kernel.shape
    size, channels = round(len(corners) ** 0.5), inputs // len(corners)
    wide = np.zeros((outputs, channels, size * height, size * width), kernel.dtype)
    for index, (row, column) in enumerate(corners):
        wide[:, :, row::size, column::size] = kernel[:, index * channels : (index + 1) * channels]
    return wide
