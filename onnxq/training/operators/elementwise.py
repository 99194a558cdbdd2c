"""Operators that treat each element alone: arithmetic, comparisons, logic, functions of one number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional

from onnxq.training.operators.calls import Call, Operator, alike, binary, broadcast, element_type, unary


def divide(x: Tensor, y: Tensor) -> Tensor:
    """A quotient; that of integers is cut towards zero."""
    return torch.div(x, y) if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def power(x: Tensor, y: Tensor) -> Tensor:
    """A power in the type of its base."""
    return torch.pow(x, y).to(x.dtype)


def modulo(call: Call) -> Tensor:
    """A remainder with the sign of the divisor, or with `fmod` that of the dividend."""
    x, y = call.together()
    return torch.fmod(x, y) if call.get("fmod", 0) else torch.remainder(x, y)


def shift(call: Call) -> Tensor:
    """The bits of each element, moved left or right."""
    x, y = call.together()
    return torch.bitwise_left_shift(x, y) if call.get("direction") == "LEFT" else torch.bitwise_right_shift(x, y)


def clip(call: Call) -> Tensor:
    """Bounds are attributes before opset 11, and inputs since; a bound that is left out does not bind."""
    x = call.data()
    if call.opset < 11:
        return _between(x, call.get("min", -torch.inf), call.get("max", torch.inf))
    bounds = [None if bound is None else bound.reshape(()) for bound in (call.at(1), call.at(2))]
    if all(bound is None or (bound.device.type == "cpu" and not bound.requires_grad) for bound in bounds):
        low, high = (None if bound is None else bound.item() for bound in bounds)
        return _between(x, -torch.inf if low is None else low, torch.inf if high is None else high)
    return torch.clamp(x, *(None if bound is None else bound.to(x.device) for bound in bounds))


def _between(x: Tensor, low: float, high: float) -> Tensor:
    if not x.is_floating_point() or low > high:
        return torch.clamp(x, low, high)
    if (low, high) == (0, torch.inf):
        return torch.relu(x)
    return functional.hardtanh(x, low, high)  # its gradient takes less than half the time of that of clamp


def cast(call: Call) -> Tensor:
    """Another element type; floats are cut towards zero to become integers."""
    return call.data().to(element_type(call, "to"))


def is_infinite(call: Call) -> Tensor:
    """Where an element is infinite, of the signs that are asked for."""
    x = call.data()
    high = torch.isposinf(x) if call.get("detect_positive", 1) else torch.zeros_like(x, dtype=torch.bool)
    return high | torch.isneginf(x) if call.get("detect_negative", 1) else high


def _all_alike(call: Call) -> tuple[Tensor, ...]:
    return alike(*(tensor for tensor in call.inputs if tensor is not None))


def fold(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """An operator of any number of tensors that broadcast."""
    return lambda call: reduce(function, _all_alike(call))


def mean(call: Call) -> Tensor:
    """The mean of tensors that broadcast."""
    return reduce(torch.add, _all_alike(call)) / len(call.inputs)


def where(call: Call) -> Tensor:
    """Elements of the one or the other tensor."""
    condition, x, y = _all_alike(call)
    return torch.where(condition, x, y)


def affine(call: Call) -> Tensor:
    """alpha*x + beta, of the experimental operators."""
    return call.data() * float(call.get("alpha", 1.0)) + float(call.get("beta", 0.0))


def scale_image(call: Call) -> Tensor:
    """scale*x and a bias per channel, of the experimental operators."""
    x = call.data()
    return x * float(call.get("scale", 1.0)) + broadcast(x.new_tensor(call.get("bias", [0.0])), x.ndim)


UNARY: Mapping[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Identity": lambda x: x,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,  # halves to the even neighbour, as ONNX does
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
}

BINARY: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "CastLike": lambda x, like: x.to(like.dtype),
    "Div": divide,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Pow": power,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}

ELEMENTWISE: Mapping[str, Operator] = {
    **{name: unary(function) for name, function in UNARY.items()},
    **{name: binary(function) for name, function in BINARY.items()},
    "Affine": affine,
    "BitShift": shift,
    "Cast": cast,
    "Clip": clip,
    "ImageScaler": scale_image,
    "IsInf": is_infinite,
    "Max": fold(torch.maximum),
    "Mean": mean,
    "Min": fold(torch.minimum),
    "Mod": modulo,
    "Sum": fold(torch.add),
    "Where": where,
}
