"""Activations: functions of one number with parameters, and softmax and its kin along an axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from onnxq.training.operators.calls import Call, Operator, unary


def elu(call: Call) -> Tensor:
    """x, or alpha*(exp(x) - 1) below zero."""
    return functional.elu(call.data(), call.get("alpha", 1.0))


def selu(call: Call) -> Tensor:
    """gamma*elu(x)."""
    scaled = functional.elu(call.data(), call.get("alpha", 1.67326319217681884))
    return scaled * float(call.get("gamma", 1.05070102214813232))


def celu(call: Call) -> Tensor:
    """max(0, x) + min(0, alpha*(exp(x/alpha) - 1))."""
    return functional.celu(call.data(), call.get("alpha", 1.0))


def gelu(call: Call) -> Tensor:
    """x times the normal distribution function, exact or by tanh."""
    return functional.gelu(call.data(), approximate=call.get("approximate", "none"))


def leaky_relu(call: Call) -> Tensor:
    """x, or alpha*x below zero."""
    return functional.leaky_relu(call.data(), call.get("alpha", 0.01))


def sloped_relu(call: Call) -> Tensor:
    """x, or slope*x below zero; the slope broadcasts."""
    x, slope = call.together()
    return torch.where(x < 0, slope * x, x)


def thresholded_relu(call: Call) -> Tensor:
    """x above alpha, else zero."""
    x = call.data()
    return torch.where(x > call.get("alpha", 1.0), x, torch.zeros_like(x))


def hard_sigmoid(call: Call) -> Tensor:
    """alpha*x + beta between 0 and 1."""
    return torch.clamp(call.data() * call.get("alpha", 0.2) + call.get("beta", 0.5), 0, 1)


def swish(call: Call) -> Tensor:
    """x*sigmoid(alpha*x)."""
    x = call.data()
    return x * torch.sigmoid(x * call.get("alpha", 1.0))


def shrink(call: Call) -> Tensor:
    """x moved by `bias` towards zero, and zero within `lambd` of it."""
    x, limit, bias = call.data(), call.get("lambd", 0.5), call.get("bias", 0.0)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, torch.zeros_like(x)))


def hardmax(x: Tensor, axis: int) -> Tensor:
    """One at the first largest element along an axis, zero elsewhere."""
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)


def along(function: Callable[[Tensor, int], Tensor]) -> Operator:
    """A function along an axis; before opset 13 along all axes from `axis` on together."""

    def run(call: Call) -> Tensor:
        x = call.data()
        if call.opset >= 13:
            return function(x, call.get("axis", -1))
        rows = x.shape[: call.get("axis", 1) % max(x.ndim, 1)].numel()
        return function(x.reshape(rows, -1), -1).reshape(x.shape)

    return run


ACTIVATIONS: Mapping[str, Operator] = {
    "Celu": celu,
    "Elu": elu,
    "Gelu": gelu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": unary(functional.hardswish),
    "Hardmax": along(hardmax),
    "LeakyRelu": leaky_relu,
    "LogSoftmax": along(torch.log_softmax),
    "Mish": unary(functional.mish),
    "PRelu": sloped_relu,
    "Relu": unary(torch.relu),
    "Selu": selu,
    "Shrink": shrink,
    "Sigmoid": unary(torch.sigmoid),
    "Softmax": along(torch.softmax),
    "Softplus": unary(functional.softplus),
    "Softsign": unary(functional.softsign),
    "Swish": swish,
    "Tanh": unary(torch.tanh),
    "ThresholdedRelu": thresholded_relu,
}
