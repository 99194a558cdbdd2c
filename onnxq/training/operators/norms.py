"""Normalizations, as they run in inference."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from onnxq.training.operators.calls import Call, Operator, Result


def batch(call: Call) -> Tensor:
    """(x - mean)/sqrt(variance + epsilon)*scale + bias with the statistics that are stored."""
    if call.get("training_mode", 0) or not call.get("spatial", 1):
        raise call.refuse("BatchNormalization that computes its own statistics, or counts each place alone")
    x, scale, bias, mean, variance = call.together(5)
    return functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, call.get("epsilon", 1e-5))


def instance(call: Call) -> Tensor:
    """Each channel of each item by its own statistics."""
    x, scale, bias = call.together()
    return functional.instance_norm(x, weight=scale, bias=bias, eps=call.get("epsilon", 1e-5))


def group(call: Call) -> Tensor:
    """Groups of channels by their own statistics; scale and bias are per group before opset 21, per channel since."""
    x, scale, bias = call.together()
    groups = call.get("num_groups")
    if call.opset < 21:
        scale, bias = (vector.repeat_interleave(x.shape[1] // groups) for vector in (scale, bias))
    return functional.group_norm(x, groups, scale, bias, call.get("epsilon", 1e-5))


def layer(call: Call) -> Result:
    """All axes from `axis` on by their own statistics, which may be outputs too; in float32 at least."""
    x, scale, *bias = call.together()
    axis, epsilon = call.get("axis", -1) % x.ndim, call.get("epsilon", 1e-5)
    if call.outputs == 1 and scale.shape == x.shape[axis:] and all(b.shape == scale.shape for b in bias):
        return functional.layer_norm(x, scale.shape, scale, bias[0] if bias else None, epsilon)
    wide = x if x.dtype == torch.float64 else x.float()
    axes = list(range(axis, x.ndim))
    mean = wide.mean(axes, keepdim=True)
    factor = torch.rsqrt((wide - mean).square().mean(axes, keepdim=True) + epsilon)
    y = ((wide - mean) * factor).to(x.dtype) * scale
    return (y + bias[0] if bias else y, mean, factor)[: call.outputs]


def root_mean_square(call: Call) -> Tensor:
    """x/sqrt(mean(x*x) + epsilon)*scale over all axes from `axis` on; in float32 at least."""
    x, scale = call.together()
    axes = list(range(call.get("axis", -1) % x.ndim, x.ndim))
    wide = x if x.dtype == torch.float64 else x.float()
    factor = torch.rsqrt(wide.square().mean(axes, keepdim=True) + call.get("epsilon", 1e-5))
    return (wide * factor).to(x.dtype) * scale


def to_length_one(call: Call) -> Tensor:
    """x divided by its p-norm along an axis; zeros stay."""
    x = call.data()
    norm: Tensor = torch.linalg.vector_norm(x, call.get("p", 2), call.get("axis", -1), keepdim=True)
    return x / norm.clamp(min=torch.finfo(x.dtype).tiny)


def local_response(call: Call) -> Tensor:
    """x/(bias + alpha/size*sum(x*x))^beta, the sum over `size` neighbouring channels."""
    x, size = call.data(), call.get("size")
    before = (size - 1) // 2
    channels = functional.pad(x.square().movedim(1, -1), (before, size - 1 - before))
    sums = channels.unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    total: Tensor = sums * (call.get("alpha", 1e-4) / size) + call.get("bias", 1.0)
    return x / total.pow(call.get("beta", 0.75))


def mean_variance(call: Call) -> Tensor:
    """(x - mean)/(deviation + 1e-9) over the given axes."""
    x, axes = call.data(), call.get("axes", [0, 2, 3])
    centered = x - x.mean(axes, keepdim=True)
    return centered / (centered.square().mean(axes, keepdim=True).sqrt() + 1e-9)


NORMS: Mapping[str, Operator] = {
    "BatchNormalization": batch,
    "GroupNormalization": group,
    "InstanceNormalization": instance,
    "LRN": local_response,
    "LayerNormalization": layer,
    "LpNormalization": to_length_one,
    "MeanVarianceNormalization": mean_variance,
    "RMSNormalization": root_mean_square,
}
