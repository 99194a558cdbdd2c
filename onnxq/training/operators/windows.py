"""Windows that slide over pictures: how far they reach, and the padding that they need.

Everything is a list with one number per spatial axis.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from onnxq.training.operators.calls import Call


@dataclass(frozen=True)
class Window:
    """A sliding window.

    Attributes:
        kernel: its sizes.
        strides: how far it moves.
        dilations: how far its elements lie apart.
        before: padding in front.
        after: padding behind.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: list[int]
    after: list[int]

    @property
    def reach(self) -> list[int]:
        """How many elements it covers, gaps included."""
        return [dilation * (size - 1) + 1 for size, dilation in zip(self.kernel, self.dilations, strict=True)]

    @property
    def even(self) -> bool:
        """Whether the padding is the same on both sides."""
        return self.before == self.after


def window(call: Call, kernel: list[int], sizes: list[int]) -> Window:
    """The window of a convolution or a pool over axes of these sizes, with the padding that `auto_pad` asks for."""
    rank, mode = len(kernel), call.get("auto_pad", "NOTSET")
    strides, dilations = call.get("strides") or [1] * rank, call.get("dilations") or [1] * rank
    if mode == "NOTSET":
        pads = call.get("pads") or [0] * 2 * rank
        return Window(kernel, strides, dilations, pads[:rank], pads[rank:])
    plain = Window(kernel, strides, dilations, [0] * rank, [0] * rank)
    if mode == "VALID":
        return plain
    total = [
        max((-(-size // stride) - 1) * stride + reach - size, 0)
        for size, stride, reach in zip(sizes, strides, plain.reach, strict=True)
    ]
    less, more = [amount // 2 for amount in total], [amount - amount // 2 for amount in total]
    before, after = (less, more) if mode == "SAME_UPPER" else (more, less)
    return Window(kernel, strides, dilations, before, after)


def padded(x: Tensor, before: list[int], after: list[int], value: float = 0.0) -> Tensor:
    """The picture with more elements around it, or fewer where a number is negative."""
    if not any(before) and not any(after):
        return x
    amounts = [amount for ends in zip(reversed(before), reversed(after), strict=True) for amount in ends]
    return functional.pad(x, amounts, value=value)
