"""Convolutions and transposed convolutions over one to three axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor
from torch.nn import functional

from onnxq.training.operators.calls import Call, Operator, broadcast
from onnxq.training.operators.windows import Window, padded, window

FORWARD: Mapping[int, Callable[..., Tensor]] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
TRANSPOSED: Mapping[int, Callable[..., Tensor]] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
"""PyTorch's functions by the number of spatial axes."""


def convolve(call: Call) -> Tensor:
    """A convolution; PyTorch pads evenly itself, and any other padding goes before it."""
    x, weight, *biases = call.together()
    seen = window(call, list(weight.shape[2:]), list(x.shape[2:]))
    if not seen.even:
        x = padded(x, seen.before, seen.after)
    pads = seen.before if seen.even else 0
    run = _known(call, FORWARD, weight.ndim - 2)
    bias = biases[0] if biases else None
    return run(x, weight, bias, seen.strides, pads, seen.dilations, call.get("group", 1))


def _known(call: Call, functions: Mapping[int, Callable[..., Tensor]], rank: int) -> Callable[..., Tensor]:
    if rank not in functions:
        raise call.refuse(f"convolution over {rank} axes")
    return functions[rank]


def spread(call: Call) -> Tensor:
    """A transposed convolution: the whole of it, then what the padding cuts away or `output_padding` adds."""
    x, weight, *bias = call.together()
    seen = window(call, list(weight.shape[2:]), [1] * (weight.ndim - 2))
    run = _known(call, TRANSPOSED, weight.ndim - 2)
    y = run(x, weight, None, seen.strides, 0, 0, call.get("group", 1), seen.dilations)
    before, after = _cut_away(call, seen, list(x.shape[2:]))
    y = padded(y, [-amount for amount in before], [-amount for amount in after])
    return y + broadcast(bias[0], y.ndim) if bias else y


def _cut_away(call: Call, seen: Window, sizes: list[int]) -> tuple[list[int], list[int]]:
    """How much to cut from the whole result on either side."""
    rank, mode = len(sizes), call.get("auto_pad", "NOTSET")
    added = call.get("output_padding") or [0] * rank
    wanted = call.get("output_shape")
    if wanted is None and mode not in ("SAME_UPPER", "SAME_LOWER"):
        return seen.before, [amount - extra for amount, extra in zip(seen.after, added, strict=True)]
    sides = [size * stride for size, stride in zip(sizes, seen.strides, strict=True)]
    wanted = wanted[-rank:] if wanted else sides
    whole = [(n - 1) * s + reach for n, s, reach in zip(sizes, seen.strides, seen.reach, strict=True)]
    total = [max(w + extra - goal, 0) for w, extra, goal in zip(whole, added, wanted, strict=True)]
    less = [amount // 2 for amount in total]
    more = [amount - half for amount, half in zip(total, less, strict=True)]
    before = less if mode == "SAME_UPPER" else more
    return before, [w - goal - cut for w, goal, cut in zip(whole, wanted, before, strict=True)]


CONVOLUTIONS: Mapping[str, Operator] = {"Conv": convolve, "ConvTranspose": spread}
