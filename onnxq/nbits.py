"""`MatMulNBits` for a linear layer: what it reads, as handles, and its attributes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from onnxq.graph import Array, Constant, Graph, Later, Tensor
from onnxq.layers import Layer
from onnxq.numerics.rounding.blocks import Blocked
from onnxq.plan import NodePlan
from onnxq.recipe import Weight
from onnxq.shelf import Shelf
from onnxq.weights import blocked_weight, matrix_shape, shelf_name

Parts = list[Tensor | None]
"""Inputs of the operator by place; None for one that is left out."""


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
    name, key, kind = layer.weight.name, shelf_name(layer, bits), layer.weight.dtype
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


def with_bias(parts: Parts, bias: Tensor | None = None) -> Parts:
    """The same with a bias, which stands at the end."""
    return parts if bias is None else [*parts, *[None] * (4 - len(parts)), bias]
