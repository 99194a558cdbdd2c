"""Pools: the largest, the mean or the length of what a window sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from onnxq.training.operators.calls import Call, Operator, Result
from onnxq.training.operators.windows import Window, padded, window

MAXIMUM: Mapping[int, Callable[..., Tensor]] = {
    1: functional.max_pool1d,
    2: functional.max_pool2d,
    3: functional.max_pool3d,
}
MEAN: Mapping[int, Callable[..., Tensor]] = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
    3: functional.avg_pool3d,
}
SUM: Mapping[int, Callable[..., Tensor]] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
"""PyTorch's functions by the number of spatial axes."""


def _seen(call: Call, x: Tensor) -> Window:
    return window(call, call.get("kernel_shape"), list(x.shape[2:]))


def _more_behind(call: Call, x: Tensor, seen: Window) -> list[int]:
    """What `ceil_mode` adds behind, so that the last window that begins inside is whole."""
    if not call.get("ceil_mode", 0):
        return [0] * len(seen.kernel)
    more = []
    rows = zip(x.shape[2:], seen.before, seen.after, seen.strides, seen.reach, strict=True)
    for size, low, high, stride, reach in rows:
        steps = -(-(size + low + high - reach) // stride)
        if steps * stride >= size + low:  # this window would see padding alone
            steps -= 1
        more.append(max(steps * stride + reach - (size + low + high), 0))
    return more


def _plus(one: list[int], other: list[int]) -> list[int]:
    return [a + b for a, b in zip(one, other, strict=True)]


def _pads_itself(seen: Window, more: list[int]) -> bool:
    """Whether PyTorch's own padding is the one that is asked for."""
    halves = all(2 * low <= size for low, size in zip(seen.before, seen.kernel, strict=True))
    return seen.even and halves and not any(more)


def maximum(call: Call) -> Result:
    """The largest element that the window sees, and its place in the whole tensor where that is asked for."""
    x = call.data()
    seen = _seen(call, x)
    if call.get("storage_order", 0) and call.outputs > 1:
        raise call.refuse("MaxPool that counts places by columns")
    more = _more_behind(call, x, seen)
    run = MAXIMUM[len(seen.kernel)]
    if call.outputs == 1 and _pads_itself(seen, more):
        return run(x, seen.kernel, seen.strides, seen.before, seen.dilations)
    after = _plus(seen.after, more)
    lowest = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    wide = padded(x, seen.before, after, lowest)
    if call.outputs == 1:
        return run(wide, seen.kernel, seen.strides, 0, seen.dilations)
    values, places = run(wide, seen.kernel, seen.strides, 0, seen.dilations, return_indices=True)
    return values, _in_whole(places, wide, x, seen.before)


def _in_whole(places: Tensor, wide: Tensor, x: Tensor, before: list[int]) -> Tensor:
    """Places in one padded channel as places in the tensor without padding."""
    inner = torch.zeros_like(places)
    step = 1
    for size, padded_size, low in zip(reversed(x.shape[2:]), reversed(wide.shape[2:]), reversed(before), strict=True):
        inner += (places % padded_size - low) * step
        places, step = places // padded_size, step * size
    channels = torch.arange(x.shape[0] * x.shape[1], device=x.device) * step
    return inner + channels.reshape(x.shape[:2] + (1,) * (x.ndim - 2))


def average(call: Call) -> Tensor:
    """The mean of what the window sees, of the padding too where `count_include_pad` says so."""
    x = call.data()
    seen = _seen(call, x)
    more = _more_behind(call, x, seen)
    include = bool(call.get("count_include_pad", 0))
    if _pads_itself(seen, more) and max(seen.dilations) == 1:
        return MEAN[len(seen.kernel)](x, seen.kernel, seen.strides, seen.before, count_include_pad=include)
    ones = torch.ones_like(x[:1, :1])
    if include:
        ones = padded(ones, seen.before, seen.after, 1.0)
        counts = _sums(padded(ones, [0] * len(more), more), seen)
    else:
        counts = _sums(padded(ones, seen.before, _plus(seen.after, more)), seen)
    return _sums(padded(x, seen.before, _plus(seen.after, more)), seen) / counts


def _sums(x: Tensor, seen: Window) -> Tensor:
    """Sums over windows, as a convolution of each channel with ones."""
    ones = torch.ones(1, 1, *seen.kernel, dtype=x.dtype, device=x.device)
    alone = x.reshape(-1, 1, *x.shape[2:])
    y: Tensor = SUM[len(seen.kernel)](alone, ones, None, seen.strides, 0, seen.dilations)
    return y.reshape(*x.shape[:2], *y.shape[2:])


def length(call: Call) -> Tensor:
    """The p-norm of what the window sees."""
    x, order = call.data(), call.get("p", 2)
    seen = _seen(call, x)
    after = _plus(seen.after, _more_behind(call, x, seen))
    return _sums(padded(x.abs().pow(order), seen.before, after), seen).pow(1 / order)


def everywhere(function: Callable[[Tensor, list[int]], Tensor]) -> Operator:
    """A reduction of each channel to one element."""
    return lambda call: function(call.data(), list(range(2, call.data().ndim)))


def whole_length(call: Call) -> Tensor:
    """The p-norm of each channel."""
    x = call.data()
    norm: Tensor = torch.linalg.vector_norm(x, call.get("p", 2), list(range(2, x.ndim)), keepdim=True)
    return norm


POOLS: Mapping[str, Operator] = {
    "AveragePool": average,
    "GlobalAveragePool": everywhere(lambda x, axes: x.mean(axes, keepdim=True)),
    "GlobalLpPool": whole_length,
    "GlobalMaxPool": everywhere(lambda x, axes: x.amax(axes, keepdim=True)),
    "LpPool": length,
    "MaxPool": maximum,
}
