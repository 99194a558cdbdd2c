"""Constants of a quantized graph as numbers, through DequantizeLinear, Transpose and all that reads only constants."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from onnxq.graph import (
    Array,
    Constant,
    Graph,
    Node,
    Tensor,
    Variable,
    bodies,
    evaluate,
    is_constant,
    stored_value,
    weight,
)
from onnxq.numerics.formats import FORMATS, Format


@dataclass(frozen=True, eq=False)
class Numbers:
    """A constant that was quantized.

    Attributes:
        values: what it stands for, float32.
        integers: as it is stored, of the same shape; None where it is packed, or wider or narrower than 8 bits.
        scales: how many scales it has; 0 for floats.
        axis: along which they lie; None for one scale, and for blocks.
    """

    values: Array
    integers: Array | None = None
    scales: int = 0
    axis: int | None = None

    @property
    def format(self) -> Format | None:
        """The integers in use, where they are 8 bits wide."""
        return None if self.integers is None else FORMATS[self.integers.dtype.name]

    def turned(self) -> Numbers:
        """The transposed matrix."""
        axis = None if self.axis is None else 1 - self.axis % 2
        return Numbers(self.values.T, None if self.integers is None else self.integers.T, self.scales, axis)

    def without(self, last: int) -> Numbers:
        """The weight of a convolution without its last input channels."""
        few = slice(0, self.values.shape[1] - last) if last else slice(None)
        return replace(
            self, values=self.values[:, few], integers=None if self.integers is None else self.integers[:, few]
        )


@dataclass(frozen=True)
class Constants:
    """The constants of a graph; each is computed once."""

    graph: Graph
    known: dict[str, Array | None] = field(default_factory=dict)

    def value(self, tensor: Tensor | None) -> Array | None:
        """What a tensor always holds; None where that depends on the input, or where there is no tensor."""
        if tensor is None or not tensor.name:
            return None
        if is_constant(tensor):
            return weight(tensor)
        if tensor.name not in self.known:
            self.known[tensor.name] = self._computed(tensor)
        return self.known[tensor.name]

    def _computed(self, tensor: Tensor) -> Array | None:
        maker = tensor.inputs[0] if tensor.inputs else None
        if maker is None or any(bodies(maker)):
            return None
        if maker.op == "Constant":
            stored = stored_value(maker)
            return None if stored is None else weight(Constant(tensor.name, stored))
        if maker.op == "DequantizeLinear":
            numbers = self.numbers(tensor)
            return None if numbers is None else numbers.values
        read = {t.name: value for t in maker.inputs if t.name and (value := self.value(t)) is not None}
        if not read or len(read) < len({t.name for t in maker.inputs if t.name}):
            return None
        inputs = [Constant(t.name, read[t.name]) if t.name else Variable("") for t in maker.inputs]
        outputs = [Variable(t.name) for t in maker.outputs]
        twin = Node(maker.op, maker.name, dict(maker.attrs), inputs, outputs, maker.domain)
        found = evaluate(self.graph, twin)
        return None if found is None else found[[t.name for t in maker.outputs].index(tensor.name)]

    def numbers(self, tensor: Tensor) -> Numbers | None:
        """A constant with what is known about its integers; None where it is no constant."""
        maker = tensor.inputs[0] if tensor.inputs else None
        if maker is not None and maker.op == "DequantizeLinear":
            values, scale = (self.value(t) for t in maker.inputs[:2])
            zero_point = self.value(maker.inputs[2]) if len(maker.inputs) > 2 else None
            if values is None or scale is None:
                return None
            block, axis = int(maker.attrs.get("block_size", 0)), int(maker.attrs.get("axis", 1))
            return dequantized(values, scale, zero_point, axis, block)
        if maker is not None and maker.op == "Transpose" and len(maker.attrs.get("perm", (1, 0))) == 2:
            inner = self.numbers(maker.inputs[0])
            return None if inner is None or inner.values.ndim != 2 else inner.turned()
        found = self.value(tensor)
        return None if found is None or found.dtype.kind != "f" else Numbers(found.astype(np.float32))


def dequantized(values: Array, scale: Array, zero_point: Array | None, axis: int, block: int = 0) -> Numbers:
    """(values - zero_point) * scale, with one scale, one for each index of an axis, or one for each block along it."""
    zero: Array = np.zeros(scale.shape, np.int32) if zero_point is None else zero_point.astype(np.int32)
    step: Array = scale.astype(np.float32)
    if block:
        whole = range(values.shape[axis])
        step, zero = (np.repeat(part, block, axis).take(whole, axis) for part in (step, zero))
    elif scale.size > 1:
        shape = [-1 if place == axis % values.ndim else 1 for place in range(values.ndim)]
        step, zero = step.reshape(shape), zero.reshape(shape)
    else:
        step, zero = step.reshape(()), zero.reshape(())
    floats = ((values.astype(np.int32) - zero) * step).astype(np.float32)
    integers = values if values.dtype.name in ("int8", "uint8") else None
    return Numbers(floats, integers, int(scale.size), axis % values.ndim if scale.size > 1 and not block else None)


def unpack_blocks(
    packed: Array, scales: Array, zero_points: Array | None, outputs: int, inputs: int, bits: int, block: int
) -> Array:
    """The weight of MatMulNBits as float32 (outputs, inputs); the first value lies in the lowest bits of a byte.

    Source: ONNX Runtime, ContribOperators.md, com.microsoft.MatMulNBits.
    """
    blocks = -(-inputs // block)
    values = _unpacked(packed, bits).reshape(outputs, blocks, -1)[..., :block]
    if zero_points is None:
        zero: Array = np.full((outputs, blocks), 1 << (bits - 1))
    elif zero_points.dtype.kind == "f":
        zero = zero_points.reshape(outputs, blocks)
    else:
        zero = _unpacked(zero_points.reshape(outputs, -1), bits)[:, :blocks]
    floats = (values.astype(np.float32) - zero[..., None]) * scales.reshape(outputs, blocks, 1).astype(np.float32)
    return np.asarray(floats.reshape(outputs, -1)[:, :inputs], np.float32)


def _unpacked(packed: Array, bits: int) -> Array:
    """The last axis, 8 / bits times as long."""
    places = np.arange(0, 8, bits, dtype=np.uint8)
    values: Array = (packed.astype(np.uint8)[..., None] >> places) & ((1 << bits) - 1)
    return values.reshape(*packed.shape[:-1], -1)
