"""Pictures of another size: each element of the result is a weighted sum of few elements along each axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from onnxq.training.operators.calls import Call, Operator

Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]


@dataclass(frozen=True)
class Axis:
    """One axis that changes its size.

    Attributes:
        size: as it is.
        wanted: as it becomes.
        scale: how many times larger, as the model says it; not always the quotient of the two.
    """

    size: int
    wanted: int
    scale: float


def _half_pixel(axis: Axis, places: Floats) -> Floats:
    return (places + 0.5) / axis.scale - 0.5


def _symmetric(axis: Axis, places: Floats) -> Floats:
    adjustment = axis.wanted / (axis.scale * axis.size)
    return axis.size / 2 * (1 - adjustment) + _half_pixel(axis, places)


def _aligned(axis: Axis, places: Floats) -> Floats:
    return places * 0 if axis.wanted == 1 else places * (axis.size - 1) / (axis.wanted - 1)


SOURCES: Mapping[str, Callable[[Axis, Floats], Floats]] = {
    "align_corners": _aligned,
    "asymmetric": lambda axis, places: places / axis.scale,
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _symmetric,
    "pytorch_half_pixel": lambda axis, places: _half_pixel(axis, places) if axis.wanted > 1 else places * 0,
    "tf_half_pixel_for_nn": lambda axis, places: (places + 0.5) / axis.scale,
}
"""Where an element of the result lies on the old axis."""

ROUNDINGS: Mapping[str, Callable[[Floats], Floats]] = {
    "ceil": np.ceil,
    "floor": np.floor,
    "round_prefer_ceil": lambda x: np.floor(x + np.float32(0.5)),
    "round_prefer_floor": lambda x: np.ceil(x - np.float32(0.5)),
}
"""Which of two elements is the nearest."""


def _cubic(x: Floats, a: float) -> Floats:
    """Weights of four neighbours at distances 1 + x, x, 1 - x and 2 - x (Keys, 1981)."""
    near = [((a + 2) * d - (a + 3)) * d * d + 1 for d in (x, 1 - x)]
    far = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in (1 + x, 2 - x)]
    return np.stack([far[0], near[0], near[1], far[1]])


def _taps(call: Call, axis: Axis) -> tuple[Floats, Floats]:
    """For each element of the result the places of its sources, and their weights, as [sources, elements]."""
    known = call.get("coordinate_transformation_mode", "half_pixel" if call.opset > 10 else "asymmetric")
    if known not in SOURCES:
        raise call.refuse(f"resizing by '{known}'")
    x = SOURCES[known](axis, np.arange(axis.wanted, dtype=np.float32)).astype(np.float32)
    mode = call.get("mode", "nearest")
    if mode == "nearest":
        places = _rounding(call, axis)(x)[None]
        return places.clip(0, axis.size - 1), np.ones_like(places)
    if mode in ("linear", "bilinear"):
        x = x.clip(0, axis.size - 1)
    low = np.floor(x)
    if mode in ("linear", "bilinear"):
        places, weights = np.stack([low, low + 1]), np.stack([1 - (x - low), x - low])
    else:
        places = np.stack([low - 1, low, low + 1, low + 2])
        weights = _cubic(x - low, call.get("cubic_coeff_a", -0.75))
    if call.get("exclude_outside", 0):
        weights = np.where((places < 0) | (places >= axis.size), 0, weights)
        weights = weights / weights.sum(0)
    return places.clip(0, axis.size - 1), weights.astype(np.float32)


def _rounding(call: Call, axis: Axis) -> Callable[[Floats], Floats]:
    if call.opset <= 10:  # as ONNX Runtime does it: the specification leaves it open
        return np.floor if axis.scale >= 1 else np.ceil
    return ROUNDINGS[call.get("nearest_mode", "round_prefer_floor")]


def _resized(call: Call, x: Tensor, number: int, axis: Axis) -> Tensor:
    """One axis in its new size."""
    places, weights = _taps(call, axis)
    rows = [x.index_select(number, torch.tensor(row, dtype=torch.int64, device=x.device)) for row in places]
    if len(rows) == 1:
        return rows[0]
    form = [-1 if place == number else 1 for place in range(x.ndim)]
    factors = torch.tensor(weights, dtype=x.dtype, device=x.device)
    return torch.stack([row * f.reshape(form) for row, f in zip(rows, factors, strict=True)]).sum(0)


def resize(call: Call) -> Tensor:
    """Every axis whose size changes, one after the other."""
    x = call.data()
    if call.get("antialias", 0):
        raise call.refuse("resizing with antialias in the way of ONNX")
    for number, axis in _axes(call, x):
        if axis.wanted != axis.size or axis.scale != 1:
            x = _resized(call, x, number, axis)
    return x


def _axes(call: Call, x: Tensor) -> list[tuple[int, Axis]]:
    numbers = [number % x.ndim for number in call.get("axes") or range(x.ndim)]
    old = [x.shape[number] for number in numbers]
    sizes = call.numbers(3, "sizes")
    if sizes:
        scales = _scales(call, sizes, old)
        policy = call.get("keep_aspect_ratio_policy", "stretch")
        wanted = sizes if policy == "stretch" else [round(s * n) for s, n in zip(scales, old, strict=True)]
    else:
        scales = call.numbers(1 if call.opset <= 10 else 2, "scales") or []
        wanted = [int(np.floor(np.float32(n) * np.float32(s))) for n, s in zip(old, scales, strict=True)]
    return [(n, Axis(*row)) for n, row in zip(numbers, zip(old, wanted, scales, strict=True), strict=True)]


def _scales(call: Call, sizes: Sequence[int], old: Sequence[int]) -> list[float]:
    scales = [wanted / size for wanted, size in zip(sizes, old, strict=True)]
    choose = {"not_larger": min, "not_smaller": max}.get(call.get("keep_aspect_ratio_policy", "stretch"))
    return scales if choose is None else [choose(scales)] * len(scales)


def sample(call: Call) -> Tensor:
    """The picture at the places of a grid."""
    x, grid = call.together()
    modes = {"linear": "bilinear", "cubic": "bicubic"}
    mode = call.get("mode", "linear")
    padding, corners = call.get("padding_mode", "zeros"), bool(call.get("align_corners", 0))
    return functional.grid_sample(x, grid, modes.get(mode, mode), padding, corners)


def grid(call: Call) -> Tensor:
    """The places of a picture after an affine map."""
    sizes = call.numbers(1, "size") or []
    return functional.affine_grid(call.data(), sizes, bool(call.get("align_corners", 0)))


RESIZING: Mapping[str, Operator] = {
    "AffineGrid": grid,
    "GridSample": sample,
    "Resize": resize,
    "Upsample": resize,
}
