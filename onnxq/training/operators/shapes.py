"""Operators that move elements and compute none: shapes, slices, paddings, and tensors made of a shape."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from onnxq.training.operators.calls import Call, Operator, Result, element_type, together


def shape_of(call: Call) -> Tensor:
    """The shape, on the CPU, where it is read without waiting for another device."""
    return torch.tensor(call.data().shape[call.get("start", 0) : call.get("end")], dtype=torch.int64)


def size_of(call: Call) -> Tensor:
    """How many elements there are, on the CPU."""
    return torch.tensor(call.data().numel(), dtype=torch.int64)


def reshape(call: Call) -> Tensor:
    """Another shape; 0 copies the old size of its axis, unless `allowzero` says that it is empty."""
    x, sizes = call.data(), call.numbers(1, "shape") or []
    if not call.get("allowzero", 0):
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(tuple(sizes))


def flatten(call: Call) -> Tensor:
    """A matrix: the axes before `axis`, and those from it on."""
    x = call.data()
    axis = call.get("axis", 1)
    rows = x.shape[: axis + x.ndim if axis < 0 else axis].numel()
    return x.reshape(rows, x.numel() // rows if rows else 0)


def squeeze(call: Call) -> Tensor:
    """Without the axes of size one that are named, or without all of them."""
    x, axes = call.data(), call.numbers(1, "axes")
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def unsqueeze(call: Call) -> Tensor:
    """With axes of size one at the places that they have in the result."""
    x, axes = call.data(), call.numbers(1, "axes") or []
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def transpose(call: Call) -> Tensor:
    """Axes in another order, if not said otherwise in the opposite one."""
    x = call.data()
    return x.permute(call.get("perm", list(range(x.ndim))[::-1]))


def concatenate(call: Call) -> Tensor:
    """Tensors one after the other along an axis."""
    return torch.cat(call.together(), call.get("axis", 1))


def split(call: Call) -> tuple[Tensor, ...]:
    """Pieces of the given sizes, or equal ones of which the last may be smaller."""
    x, axis, sizes = call.data(), call.get("axis", 0), call.numbers(1, "split")
    if sizes is None:
        length, parts = x.shape[axis], call.get("num_outputs", call.outputs)
        part = -(-length // parts)
        sizes = [max(0, min(part, length - part * index)) for index in range(parts)]
    return torch.split(x, sizes, axis)


def expand(call: Call) -> Tensor:
    """Broadcast with a shape, in both directions."""
    x, sizes = call.data(), call.numbers(1, "shape") or []
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(sizes)))


def tile(call: Call) -> Tensor:
    """Copies beside each other along every axis."""
    return call.data().repeat(tuple(call.numbers(1, "repeats") or ()))


def cut(call: Call) -> Tensor:
    """Slices; their bounds are attributes before opset 10, and inputs since."""
    x = call.data()
    starts, ends = call.numbers(1, "starts") or [], call.numbers(2, "ends") or []
    axes = call.numbers(3, "axes") or list(range(len(starts)))
    steps = call.numbers(4, "steps") or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        x = _cut(x, axis % x.ndim, slice(start, end, step))
    return x


def _cut(x: Tensor, axis: int, part: slice) -> Tensor:
    taken = range(*part.indices(x.shape[axis]))
    if taken.step > 0:
        return x[(*[slice(None)] * axis, slice(taken.start, max(taken.stop, taken.start), taken.step))]
    return x.index_select(axis, torch.tensor(list(taken), dtype=torch.int64, device=x.device))  # PyTorch steps up only


def pad(call: Call) -> Tensor:
    """More elements at the ends of axes, or fewer where a number is negative."""
    x = call.data()
    amounts = call.numbers(1, "pads") or []
    axes = call.numbers(3, "axes") or list(range(len(amounts) // 2))
    mode = call.get("mode", "constant")
    before, after = amounts[: len(axes)], amounts[len(axes) :]
    if mode == "constant":
        return _pad_constant(
            x, {a % x.ndim: ends for a, *ends in zip(axes, before, after, strict=True)}, _filling(call)
        )
    for axis, low, high in zip(axes, before, after, strict=True):
        if low or high:
            x = x.index_select(axis, _sources(x.shape[axis], low, high, mode).to(x.device))
    return x


def _filling(call: Call) -> float:
    value = call.at(2)
    return float(call.get("value", 0.0)) if value is None else value.item()


def _pad_constant(x: Tensor, ends: Mapping[int, list[int]], value: float) -> Tensor:
    amounts = [amount for axis in reversed(range(x.ndim)) for amount in ends.get(axis, (0, 0))]
    return functional.pad(x, amounts, value=value)


def _sources(size: int, low: int, high: int, mode: str) -> Tensor:
    """For each place along a padded axis the place that its element comes from."""
    places = torch.arange(-low, size + high)
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places % size
    period = max(2 * (size - 1), 1)  # reflect: 0 1 2 3 2 1 0 ...
    places = places % period
    return torch.minimum(places, period - places)


def crop(call: Call) -> Tensor:
    """A picture without its border, of the experimental operators."""
    x, (left, top, right, bottom) = call.data(), call.get("border")
    height, width = call.get("scale") or (x.shape[2] - top - bottom, x.shape[3] - left - right)
    return x[:, :, top : top + height, left : left + width]


def depth_to_space(call: Call) -> Tensor:
    """Blocks of channels become blocks of pixels."""
    x, block = call.data(), call.get("blocksize")
    batch, channels, height, width = x.shape
    depth = channels // block**2
    if call.get("mode", "DCR") == "DCR":
        pixels = x.reshape(batch, block, block, depth, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        pixels = x.reshape(batch, depth, block, block, height, width).permute(0, 1, 4, 2, 5, 3)
    return pixels.reshape(batch, depth, height * block, width * block)


def space_to_depth(call: Call) -> Tensor:
    """Blocks of pixels become blocks of channels."""
    x, block = call.data(), call.get("blocksize")
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, channels, height // block, block, width // block, block).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(batch, channels * block**2, height // block, width // block)


def filled(call: Call) -> Tensor:
    """A tensor of a shape with one value everywhere."""
    value = call.get("value")
    sizes = call.numbers(0, "shape") or []
    return torch.zeros(tuple(sizes)) if value is None else value.reshape(()).expand(tuple(sizes)).clone()


def counted(call: Call) -> Tensor:
    """start, start + delta, ... below the limit."""
    start, limit, delta = (tensor.reshape(()) for tensor in call.together())
    count = max(0, math.ceil((limit.item() - start.item()) / delta.item()))
    return (start + torch.arange(count, device=start.device) * delta).to(start.dtype)


def triangle(call: Call) -> Tensor:
    """The elements above or below a diagonal; zero elsewhere."""
    x, diagonal = call.data(), call.at(1)
    offset = 0 if diagonal is None else int(diagonal.item())
    return torch.triu(x, offset) if call.get("upper", 1) else torch.tril(x, offset)


def unit(call: Call) -> Tensor:
    """Ones on a diagonal of a matrix of the given one's shape."""
    x = call.data()
    ones = torch.ones(x.shape, dtype=element_type(call, "dtype") or x.dtype, device=x.device)
    return ones.triu(call.get("k", 0)).tril(call.get("k", 0))


def dropout(call: Call) -> Result:
    """Nothing is dropped: a float model is one for inference."""
    x = call.data()
    return x if call.outputs == 1 else (x, torch.ones_like(x, dtype=torch.bool))


def reverse_sequence(call: Call) -> Tensor:
    """The first elements of each sequence in the opposite order, as many as its length says."""
    x, lengths = together(call.data(), call.data(1))
    time, batch = call.get("time_axis", 0), call.get("batch_axis", 1)
    places = torch.arange(x.shape[time], device=x.device)[:, None]
    sources = torch.where(places < lengths, lengths - 1 - places, places)
    sources = sources if time < batch else sources.T
    rest = [1] * (x.ndim - 2)
    return x.gather(time, sources.reshape(*sources.shape, *rest).expand(x.shape))


SHAPES: Mapping[str, Operator] = {
    "Concat": concatenate,
    "ConstantOfShape": filled,
    "Crop": crop,
    "DepthToSpace": depth_to_space,
    "Dropout": dropout,
    "Expand": expand,
    "EyeLike": unit,
    "Flatten": flatten,
    "Pad": pad,
    "Range": counted,
    "Reshape": reshape,
    "ReverseSequence": reverse_sequence,
    "Shape": shape_of,
    "Size": size_of,
    "Slice": cut,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Trilu": triangle,
    "Unsqueeze": unsqueeze,
}
