"""Rounding that can be trained through: the straight-through estimator, with learned scales and zero points.

    y = scale * clip(round(x / scale), qmin - zero_point, qmax - zero_point)

    dy/dx          = 1 inside the range, 0 outside
    dy/dscale      = round(x / scale) - x / scale inside, qmin - zero_point or qmax - zero_point outside
    dy/dzero_point = 0 inside, -scale outside

Esser et al., Learned Step Size Quantization, arXiv:1902.08153; with zero points: Bhalgat et al., LSQ+,
arXiv:2004.09576. Of scales the logarithm is learned by which they grew: they stay above 0, a step of the optimizer
changes large and small ones by the same share, and what is not trained keeps its bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onnxq.numerics.affine import SMALLEST_SCALE
from onnxq.numerics.formats import Format

LARGEST_SCALE = float(np.finfo(np.float32).max) / 256
"""A larger one makes infinities of 8-bit integers."""

FARTHEST = 80.0
"""How far the logarithm of a scale may move; e to that power is still a float."""


class FakeQuantize(torch.autograd.Function):
    """x on the grid of scale and zero point, each a tensor that broadcasts to x; made for speed and little memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
        """The values of QuantizeLinear and DequantizeLinear, to the bit."""
        ctx.save_for_backward(x, scale, zero_point)
        ctx.ends = qmin, qmax
        steps = torch.round(x / scale)
        return torch.clamp(steps, qmin - zero_point, qmax - zero_point).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients above; rounding is taken for what it does on average."""
        (gradient,) = gradients
        x, scale, zero_point = ctx.saved_tensors
        exact = x / scale
        steps = torch.round(exact)
        cut = torch.clamp(steps, ctx.ends[0] - zero_point, ctx.ends[1] - zero_point)
        inside = cut == steps
        for_scale = for_zero = None
        if ctx.needs_input_grad[1]:
            for_scale = _summed(gradient * torch.where(inside, steps - exact, cut), scale)  # exact may be infinite
        if ctx.needs_input_grad[2]:
            for_zero = _summed(gradient * ~inside * -scale, zero_point)
        return gradient * inside, for_scale, for_zero, None, None


class Straight(torch.autograd.Function):
    """Rounding whose gradient is that of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The nearest integers, halves to even ones."""
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """As it came."""
        return gradients[0]


class Scaled(torch.autograd.Function):
    """The identity whose gradient is multiplied."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        """As it came."""
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Times the factor."""
        return gradients[0] * ctx.factor, None


def _summed(gradient: Tensor, like: Tensor) -> Tensor:
    """The gradient of something that was broadcast."""
    return gradient.sum_to_size(like.shape) if gradient.shape != like.shape else gradient


@dataclass(frozen=True)
class Grid:
    """Where a quantized tensor has its scales.

    Attributes:
        form: the integers that it may hold.
        scale: one number, one for each index of `axis`, or one for each `block` of indices.
        zero_point: likewise.
        axis: None for one scale.
        block: indices along the axis that share a scale; 0 where each has its own.
    """

    form: Format
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int | None = None
    block: int = 0


class Quantizer(nn.Module):
    """Learned scales and zero points, and what they make of a tensor.

    Attributes:
        grid: where it began, and how its scales lie.
        log_scale: the logarithm of what its scales were multiplied by since.
        steady: whether zero points stay: where 0 is the end of the range, or the middle.
        drop: the share of values that pass as they are in training (QDrop, arXiv:2203.05740).
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid, self.drop = grid, 0.0
        form = grid.form
        scale, zero = np.asarray(grid.scale, np.float32), np.asarray(grid.zero_point, np.float32)
        self.steady = bool(np.isin(zero, (form.qmin, form.qmax, form.middle)).all())
        first = np.copysign(np.maximum(np.abs(scale), SMALLEST_SCALE), scale)
        self.first: Tensor
        self.register_buffer("first", torch.from_numpy(np.array(first)))
        self.log_scale = nn.Parameter(torch.zeros_like(self.first))
        self.zero_point = nn.Parameter(torch.from_numpy(zero.copy()), requires_grad=not self.steady)

    def scale(self) -> Tensor:
        """The scales, shaped as the graph holds them; those of blocks may be negative."""
        size = self.first.abs() * torch.exp(self.log_scale.clamp(-FARTHEST, FARTHEST))
        return torch.copysign(size.clamp(float(SMALLEST_SCALE), LARGEST_SCALE), self.first)

    def zero(self) -> Tensor:
        """The zero points as whole numbers within the format, shaped likewise."""
        return Straight.apply(self.zero_point).clamp(self.grid.form.qmin, self.grid.form.qmax)  # type: ignore[no-untyped-call, no-any-return]

    def along(self, parameter: Tensor, shape: torch.Size) -> Tensor:
        """Scales or zero points, shaped so that they broadcast to a tensor of this shape."""
        grid = self.grid
        if grid.axis is None:
            return parameter.reshape(())
        if grid.block:
            return parameter.repeat_interleave(grid.block, grid.axis).narrow(grid.axis, 0, shape[grid.axis])
        return parameter.reshape([-1 if i == grid.axis % len(shape) else 1 for i in range(len(shape))])

    def along_all(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scales and zero points as they are, so that they broadcast to a tensor."""
        with torch.no_grad():
            return self.along(self.scale(), x.shape), self.along(self.zero(), x.shape)

    def forward(self, x: Tensor) -> Tensor:
        """The tensor on the grid."""
        form = self.grid.form
        count = max(1, x.numel() // max(1, self.log_scale.numel()))
        learned = Scaled.apply(self.scale(), (count * max(form.qmax, 1)) ** -0.5)  # type: ignore[no-untyped-call]
        scale, zero = self.along(learned, x.shape), self.along(self.zero(), x.shape)
        found: Tensor = FakeQuantize.apply(x, scale, zero, form.qmin, form.qmax)  # type: ignore[no-untyped-call]
        if self.drop and self.training:
            return torch.where(torch.rand_like(x) < self.drop, x, found)
        return found

    def integers(self, x: Tensor, scale: np.ndarray | None = None) -> np.ndarray:
        """What the graph holds of a weight, with the scales that were learned or with other ones."""
        form = self.grid.form
        with torch.no_grad():
            steps = self.scale() if scale is None else torch.from_numpy(scale).to(x.device)
            along, zero = self.along(steps, x.shape), self.along(self.zero(), x.shape)
            whole = torch.clamp(torch.round(x / along) + zero, form.qmin, form.qmax)
        return whole.cpu().numpy().astype(form.dtype)

    def learned(self) -> Grid:
        """The grid as it is now."""
        with torch.no_grad():
            scale, zero = self.scale().cpu().numpy(), self.zero().cpu().numpy()
        grid = self.grid
        return Grid(grid.form, scale.copy(), zero.astype(grid.zero_point.dtype), grid.axis, grid.block)
