"""`MatMulNBits` for a linear layer: what it reads, as handles, and its attributes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from onnxq.graph import INT4, UINT4, Array, Constant, Graph, Later, Tensor, weight
from onnxq.layers import WIDE, Layer, layer_of
from onnxq.numerics.formats import FORMATS
from onnxq.numerics.rounding.blocks import Blocked, with_integers
from onnxq.plan import NodePlan, Treatment
from onnxq.recipe import Weight
from onnxq.shelf import Shelf
from onnxq.weights import blocked_weight, matrix_shape, shelf_name

Parts = list[Tensor | None]
"""Inputs of the operator by place; None for one that is left out."""

SMALL = 16384
"""Numbers up to which a weight of 4 bits is stored in 8: a stem, which other passes want to look at."""

INT8 = 3
"""ONNX's number for the type."""


def blocked_layers(graph: Graph, nodes: Mapping[str, NodePlan]) -> Iterator[Layer]:
    """The layers whose weights a plan stores in blocks, in order."""
    for node in graph.nodes:
        if node.op != "Gather" and node.name in nodes and nodes[node.name].treatment is Treatment.WEIGHT:
            layer = layer_of(graph, node, frozenset(), WIDE)
            assert isinstance(layer, Layer)
            yield layer


def attributes(layer: Layer, settings: Weight, decision: NodePlan) -> dict[str, int]:
    """The attributes of the operator."""
    outputs, inputs = matrix_shape(layer)
    return {
        "K": inputs,
        "N": outputs,
        "bits": decision.bits,
        "block_size": settings.block(inputs),
        "accuracy_level": decision.accuracy_level,
    }


def stored_blocks(graph: Graph, layer: Layer, settings: Weight, bits: int, shelf: Shelf) -> Parts:
    """Values [outputs, blocks, bytes of a block], scales [outputs, blocks], and zero points [outputs, bytes].

    A weight is rounded when they are read, unless it lies on the shelf.
    """
    name, key = layer.weight.name, shelf_name(layer, bits)
    kind = layer.data.dtype if layer.data.dtype == np.float16 else layer.weight.dtype  # as what it is multiplied with
    outputs, inputs = matrix_shape(layer)
    block = settings.block(inputs)
    blocks = -(-inputs // block)
    assert kind is not None

    def part(wish: str, shape: tuple[int, ...], dtype: Any, read: Callable[[Blocked], Array | None]) -> Tensor:
        def make() -> Array:
            values = read(shelf.of(key, lambda: blocked_weight(layer, settings, bits)))
            assert values is not None
            return np.ascontiguousarray(values, dtype)

        return Constant(graph.fresh(f"{name}_{wish}"), Later(shape, dtype, make))

    values = part("quantized", (outputs, blocks, block * bits // 8), np.uint8, lambda found: found.values)
    scale = part("scale", (outputs, blocks), kind, lambda found: found.scale)
    if settings.blocks_centred:
        return [values, scale]
    size = -(-blocks * bits // 8)
    return [values, scale, part("zero_point", (outputs, size), np.uint8, lambda found: found.packed_zero_point())]


def dequantized_blocks(graph: Graph, layer: Layer, settings: Weight, bits: int, shelf: Shelf) -> Tensor:
    """The weight as a blocked DequantizeLinear makes it, [inputs, outputs], in standard operators of opset 21.

    DequantizeLinear(values [inputs, outputs], scale [blocks, outputs], zero point likewise; axis 0)
    """
    name, key, kind = layer.weight.name, shelf_name(layer, bits), layer.weight.dtype
    outputs, inputs = matrix_shape(layer)
    block = settings.block(inputs)
    grids = (-(-inputs // block), outputs)
    integers = np.dtype(np.uint8) if bits == 8 else UINT4
    assert kind is not None

    def part(wish: str, shape: tuple[int, ...], dtype: np.dtype, read: Callable[[Blocked], Array]) -> Tensor:
        def make() -> Array:
            values = read(shelf.of(key, lambda: blocked_weight(layer, settings, bits)))
            return np.ascontiguousarray(values.T).astype(dtype)

        return Constant(graph.fresh(f"{name}_{wish}"), Later(shape, dtype, make))

    def zeros(found: Blocked) -> Array:
        return np.full(grids[::-1], found.middle, np.uint8) if found.zero_point is None else found.zero_point

    values = part("quantized", (inputs, outputs), integers, lambda found: found.integers())
    scale = part("scale", grids, np.dtype(kind), lambda found: found.scale)
    made = graph.variable(f"{name}_dequantized", kind, (inputs, outputs))
    read = [values, scale, part("zero_point", grids, integers, zeros)]
    graph.add("DequantizeLinear", read, [made], name=f"{name}_dequantize", axis=0, block_size=block)
    return made


def with_bias(parts: Parts, bias: Tensor | None = None) -> Parts:
    """The same with a bias, which stands at the end."""
    return parts if bias is None else [*parts, *[None] * (4 - len(parts)), bias]


def widened(graph: Graph, values: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor]:
    """A weight of 4 bits and its zero point as integer kernels of 8 bits read them: Cast(w: int4) => int8.

    The runtime casts constants once, when it loads the model, so the file stays small at no cost in time. Unsigned
    integers are shifted by 8, and become signed ones.
    """
    shift = 8 if values.dtype == UINT4 else 0
    name, shape = values.name, [int(size) for size in values.shape or ()]  # type: ignore[arg-type]

    def shifted() -> Array:
        return np.asarray(weight(values).astype(np.int8) - np.int8(shift))

    zeros = graph.constant(f"{zero_point.name}_wide", weight(zero_point).astype(np.int8) - np.int8(shift))
    if math.prod(shape) <= SMALL:
        return graph.constant(f"{name}_wide", shifted()), zeros
    signed = values
    if shift:
        signed = Constant(graph.fresh(f"{name}_signed"), Later(shape, INT4, lambda: shifted().astype(INT4)))
    wide = graph.variable(f"{name}_wide", np.dtype(np.int8), shape)
    graph.add("Cast", [signed], [wide], name=f"{name}_widen", to=INT8)
    return wide, zeros


def regrouped(values: Array, scale: Array, zero_point: Array | None, size: int, block: int) -> Blocked:
    """Integers of a trained weight in the layout of `MatMulNBits`, each as it was.

    Args:
        values: [outputs, inputs], of 8 or 4 bits.
        scale: [outputs, grids], each for as many inputs as the next; also [1, 1] or [outputs, 1].
        zero_point: of the type of the values, shaped like the scale; None for 0.
        size: inputs that share a scale now.
        block: inputs that share one in the new layout; divides the size, unless that is all inputs.
    """
    form = FORMATS[values.dtype.name]
    shift = 0 if not form.signed else 1 << (form.bits - 1)
    outputs, inputs = values.shape
    blocks, each = -(-inputs // block), -(-size // block)

    def spread(parts: Array) -> Array:
        return np.ascontiguousarray(np.broadcast_to(np.repeat(parts, each, axis=1)[:, :blocks], (outputs, blocks)))

    zeros = np.zeros(scale.shape, np.int16) if zero_point is None else zero_point.astype(np.int16)
    shifted = spread((zeros + shift).astype(np.uint8))
    centred = bool((shifted == 1 << (form.bits - 1)).all())
    empty = np.zeros((outputs, blocks, block * form.bits // 8), np.uint8)
    found = Blocked(empty, spread(scale), None if centred else shifted, form.bits, inputs)
    return with_integers(found, (values.astype(np.int16) + shift).astype(np.uint8))
