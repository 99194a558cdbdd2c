"""Weights of linear layers in 8 or 4 bits, activations in floats."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxq.graph import MICROSOFT, Array, Constant, Graph, Later, Tensor
from onnxq.layers import WIDE, Layer, bias_row, layer_of
from onnxq.numerics.rounding.blocks import Blocked
from onnxq.pipeline import Context, Lossy, Promise
from onnxq.plan import NodePlan, Treatment
from onnxq.rewrite import Change
from onnxq.spec import Fact
from onnxq.weights import blocked_weight, matrix_shape, shelf_name


@dataclass(frozen=True)
class QuantizeWeights:
    """Store the weight of a linear layer in blocks of 8-bit or 4-bit integers.

        MatMul(x, w) => MatMulNBits(x, w'),  a scale for each `block_size` inputs of an output

    A weight is rounded when it is read, unless it lies on the shelf. Leaves alone what the plan does not name.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NORMAL})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.INTEGER})
    promise: ClassVar[Promise] = Lossy()

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each layer."""
        plan = context.plan
        assert plan is not None
        stored: dict[str, list[Tensor | None]] = {}
        for node in [n for n in graph.nodes if plan.treatment(n.name) is Treatment.WEIGHT and n.op != "Gather"]:
            layer = layer_of(graph, node, frozenset(), WIDE)
            assert isinstance(layer, Layer)
            name, op, output, decision = node.name, node.op, layer.output, plan.nodes[node.name]
            outputs, inputs = matrix_shape(layer)
            key = shelf_name(layer, decision.bits)
            if key not in stored:
                stored[key] = _parts(graph, layer, context, decision)
            bias = bias_row(graph, layer)
            parts = [*stored[key], None, *bias] if bias else stored[key]
            graph.remove(node, *layer.tail)
            graph.add(
                "MatMulNBits",
                [layer.data, *_without_end(parts)],
                [output],
                name=name,
                domain=MICROSOFT,
                K=inputs,
                N=outputs,
                bits=decision.bits,
                block_size=plan.recipe.weight.block(inputs),
                accuracy_level=decision.accuracy_level,
            )
            yield Change(name, op, "MatMulNBits", decision.reason)


def _parts(graph: Graph, layer: Layer, context: Context, decision: NodePlan) -> list[Tensor | None]:
    """Values [outputs, blocks, bytes of a block], scales [outputs, blocks], and zero points [outputs, bytes]."""
    assert context.plan is not None
    name, bits, shelf = layer.weight.name, decision.bits, context.shelf
    settings, key, kind = context.plan.recipe.weight, shelf_name(layer, bits), layer.weight.dtype
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
        return [values, scale, None]
    size = -(-blocks * bits // 8)
    return [values, scale, part("zero_point", (outputs, size), np.uint8, lambda found: found.packed_zero_point())]


def _without_end(parts: list[Tensor | None]) -> list[Tensor | None]:
    """Without what is left out at the end."""
    return parts[: max(i for i, part in enumerate(parts) if part is not None) + 1]
