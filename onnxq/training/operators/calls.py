"""One call of an operator: what a node gives to it, and how the operators read that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onnxq.errors import UnsupportedModel


@dataclass(frozen=True)
class Call:
    """What a node gives to its operator.

    Attributes:
        inputs: the tensors that it reads; None is an optional input left out. Integers may lie on the CPU while the
            data lies on another device, so that shapes are read without waiting for that device.
        attributes: plain Python values, and a tensor for `value`.
        opset: the version of the standard operators.
        outputs: how many outputs the node has.
    """

    inputs: tuple[Tensor | None, ...]
    attributes: Mapping[str, Any]
    opset: int
    outputs: int

    def at(self, index: int) -> Tensor | None:
        """An optional input; None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def data(self, index: int = 0) -> Tensor:
        """An input that is always there."""
        tensor = self.inputs[index]
        assert tensor is not None
        return tensor

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or its default."""
        return self.attributes.get(name, default)

    def numbers(self, index: int, name: str) -> list[Any] | None:
        """A list that newer versions take as input, and older ones as attribute; None where it is left out."""
        tensor = self.at(index)
        if tensor is not None:
            return [*tensor.reshape(-1).tolist()]
        value = self.get(name)
        return value if value is None or isinstance(value, list) else [value]

    def together(self, count: int | None = None) -> tuple[Tensor, ...]:
        """The first `count` inputs on one device, those left out dropped."""
        return together(*(tensor for tensor in self.inputs[:count] if tensor is not None))

    def refuse(self, what: str) -> UnsupportedModel:
        """The error for a form of the operator that is not written here."""
        return UnsupportedModel(f"PyTorch has no {what}. Leave the node out of the training, or export it otherwise.")


Result = Tensor | tuple[Tensor, ...]
Operator = Callable[[Call], Result]


def together(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors on one device: on the first that is not the CPU, if there is one."""
    device = next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), None)
    return tensors if device is None else tuple(tensor.to(device) for tensor in tensors)


def alike(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The same for operators on elements, which take a number without axes from the CPU as it is."""
    device = next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), None)
    return tensors if device is None else tuple(tensor.to(device) if tensor.ndim else tensor for tensor in tensors)


def unary(function: Callable[[Tensor], Tensor]) -> Operator:
    """An operator of one tensor."""
    return lambda call: function(call.data())


def binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """An operator of two tensors that broadcast."""

    def run(call: Call) -> Tensor:
        one, other = alike(call.data(), call.data(1))
        return function(one, other)

    return run


def broadcast(tensor: Tensor, rank: int, axis: int = 1) -> Tensor:
    """A vector along one axis of a tensor of this rank."""
    return tensor.reshape([-1 if place == axis else 1 for place in range(rank)])


CODES: Mapping[int, torch.dtype] = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.uint16,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    12: torch.uint32,
    13: torch.uint64,
    16: torch.bfloat16,
    17: torch.float8_e4m3fn,
    19: torch.float8_e5m2,
}
"""Element types by the number that ONNX gives them."""


def element_type(call: Call, name: str, default: int | None = None) -> torch.dtype | None:
    """The element type that an attribute names; None where it is left out."""
    code = call.get(name, default)
    if code is None:
        return None
    if code not in CODES:
        raise call.refuse(f"element type for ONNX's number {code}")
    return CODES[code]
