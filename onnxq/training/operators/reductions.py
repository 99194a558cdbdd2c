"""Operators that make one number of many along axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from onnxq.training.operators.calls import Call, Operator

Reduction = Callable[[Tensor, list[int], bool], Tensor]


def reduction(function: Reduction) -> Operator:
    """A reduction over the axes of an attribute or an input; without any over all, or over none if so asked."""

    def run(call: Call) -> Tensor:
        x, axes = call.data(), call.numbers(1, "axes")
        if not axes:
            axes = [] if call.get("noop_with_empty_axes", 0) else list(range(x.ndim))
        return function(x, axes, bool(call.get("keepdims", 1))) if axes or x.ndim == 0 else x

    return run


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep, dtype=x.dtype)


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keepdim=keep)
    count = torch.Size(x.shape[axis] for axis in axes).numel()
    return torch.div(_sum(x, axes, keep), count, rounding_mode="trunc")


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def _length(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        length: Tensor = torch.linalg.vector_norm(x, 2, axes, keep)
        return length
    return _sum(x * x, axes, keep).double().sqrt().to(x.dtype)


REDUCTIONS: Mapping[str, Operator] = {
    "ReduceL1": reduction(lambda x, axes, keep: _sum(x.abs(), axes, keep)),
    "ReduceL2": reduction(_length),
    "ReduceLogSum": reduction(lambda x, axes, keep: _sum(x, axes, keep).log()),
    "ReduceLogSumExp": reduction(lambda x, axes, keep: torch.logsumexp(x, axes, keep)),
    "ReduceMax": reduction(lambda x, axes, keep: x.amax(axes, keep)),
    "ReduceMean": reduction(_mean),
    "ReduceMin": reduction(lambda x, axes, keep: x.amin(axes, keep)),
    "ReduceProd": reduction(_product),
    "ReduceSum": reduction(_sum),
    "ReduceSumSquare": reduction(lambda x, axes, keep: _sum(x * x, axes, keep)),
}
