"""Operators that read and write elements by their place: gather, scatter, sort, one-hot."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from onnxq.training.operators.calls import Call, Operator, together


def _counted_from_end(indices: Tensor, size: int) -> Tensor:
    """Indices from zero on; negative ones count from the end."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


def gather(call: Call) -> Tensor:
    """Slices along an axis by their number."""
    x, indices = call.together()
    axis = call.get("axis", 0) % x.ndim
    if indices.numel() == 1 and indices.device.type == "cpu":
        taken = x.narrow(axis, int(indices.item()) % x.shape[axis], 1)  # quick in arithmetic on shapes
    else:
        taken = x.index_select(axis, _counted_from_end(indices, x.shape[axis]).reshape(-1))
    return taken.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


def gather_elements(call: Call) -> Tensor:
    """Elements along an axis, each by its own number."""
    x, indices = call.together()
    axis = call.get("axis", 0)
    return x.gather(axis, _counted_from_end(indices, x.shape[axis]))


def gather_slices(call: Call) -> Tensor:
    """Slices by their place on several axes, after `batch_dims` axes that both tensors share."""
    x, indices = call.together()
    shared = call.get("batch_dims", 0)
    places = _places(x, indices.to(torch.int64), shared)
    return x[places]


def _places(x: Tensor, indices: Tensor, shared: int = 0) -> tuple[Tensor, ...]:
    """An index per axis: the shared axes run along, the others are read from the last axis of `indices`."""
    rank = indices.ndim - 1
    along = [
        torch.arange(x.shape[axis], device=x.device).reshape([-1 if place == axis else 1 for place in range(rank)])
        for axis in range(shared)
    ]
    return (*along, *indices.unbind(-1))


REDUCTIONS: Mapping[str, str] = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
"""What happens where an element is written more than once: ONNX's word and PyTorch's."""


def scatter_elements(call: Call) -> Tensor:
    """A copy with elements written along an axis, each at its own number."""
    x, indices, updates = call.together()
    axis, how = call.get("axis", 0), call.get("reduction", "none")
    places = _counted_from_end(indices, x.shape[axis])
    if how == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, REDUCTIONS[how])


def scatter_slices(call: Call) -> Tensor:
    """A copy with slices written at places on several axes."""
    x, indices, updates = call.together()
    how = call.get("reduction", "none")
    places = _places(x, indices.to(torch.int64))
    if how in ("none", "add"):
        return x.index_put(places, updates, accumulate=how == "add")
    numbers = torch.arange(x.numel(), device=x.device).reshape(x.shape)[places].reshape(-1)
    return x.reshape(-1).scatter_reduce(0, numbers, updates.reshape(-1), REDUCTIONS[how]).reshape(x.shape)


def one_hot(call: Call) -> Tensor:
    """The second of two values at the place that each index names on a new axis, the first elsewhere."""
    indices, depth, (off, on) = call.data(), int(call.data(1).item()), call.data(2)
    axis = call.get("axis", -1) % (indices.ndim + 1)
    places = torch.arange(depth, device=indices.device)
    hot = (_counted_from_end(indices, depth).unsqueeze(-1) == places).movedim(-1, axis)
    hot, on, off = together(hot, on, off)
    return torch.where(hot, on, off)


def non_zero(call: Call) -> Tensor:
    """Places of the elements that are not zero, one per column."""
    return torch.nonzero(call.data()).T


def compress(call: Call) -> Tensor:
    """The slices along an axis, or elements, whose condition holds."""
    x, condition = call.together()
    axis = call.get("axis")
    x, axis = (x.reshape(-1), 0) if axis is None else (x, axis)
    return x.index_select(axis, torch.nonzero(condition).reshape(-1))


def largest(call: Call) -> tuple[Tensor, Tensor]:
    """The largest or smallest elements along an axis and their places; of equal ones the first."""
    x, axis, (count,) = call.data(), call.get("axis", -1), call.numbers(1, "k") or [1]
    values, places = torch.sort(x, dim=axis, descending=bool(call.get("largest", 1)), stable=True)
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count)


def place_of(function: Callable[..., Tensor]) -> Operator:
    """Where along an axis the extreme element is: the first of equal ones, or the last."""

    def run(call: Call) -> Tensor:
        x, axis, keep = call.data(), int(call.get("axis", 0)), bool(call.get("keepdims", 1))
        if not call.get("select_last_index", 0):
            return function(x, axis, keep)
        return x.shape[axis] - 1 - function(x.flip(axis), axis, keep)

    return run


def running_sum(call: Call) -> Tensor:
    """Sums of all elements up to each along an axis, with it or without it, from either end."""
    x, axis = call.data(), int(call.data(1).item())
    x = x.flip(axis) if call.get("reverse", 0) else x
    sums = torch.cumsum(x, axis, dtype=x.dtype)
    sums = sums - x if call.get("exclusive", 0) else sums
    return sums.flip(axis) if call.get("reverse", 0) else sums


INDEXING: Mapping[str, Operator] = {
    "ArgMax": place_of(torch.argmax),
    "ArgMin": place_of(torch.argmin),
    "Compress": compress,
    "CumSum": running_sum,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_slices,
    "NonZero": non_zero,
    "OneHot": one_hot,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_slices,
    "TopK": largest,
}
