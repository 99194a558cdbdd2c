"""Weights of linear layers in 8 bits, activations in floats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxq.graph import MICROSOFT, Array, Graph, Tensor, weight
from onnxq.layers import Layer, bias_row, layer_of
from onnxq.numerics.affine import quantize_weight
from onnxq.numerics.formats import UINT8
from onnxq.pipeline import Context, Lossy, Promise
from onnxq.plan import Treatment
from onnxq.rewrite import Change
from onnxq.spec import Fact

INTEGER_ACTIVATIONS = 4
"""The accuracy level at which `MatMulNBits` rounds activations to 8 bits inside the kernel: the only fast one."""


@dataclass(frozen=True)
class QuantizeWeights:
    """Store the weight of a linear layer in blocks of 8-bit integers.

        MatMul(x, w) => MatMulNBits(x, w'),  a scale for each `block_size` inputs of an output

    Leaves alone what the plan does not name.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NORMAL})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.INTEGER})
    promise: ClassVar[Promise] = Lossy()

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each layer."""
        plan = context.plan
        assert plan is not None
        stored: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        for node in [n for n in graph.nodes if plan.treatment(n.name) is Treatment.WEIGHT and n.op != "Gather"]:
            layer = layer_of(graph, node, frozenset())
            assert isinstance(layer, Layer)
            name, op, output = node.name, node.op, layer.output
            transposed = int(node.attrs.get("transB", 0)) if op == "Gemm" else 0
            values = weight(layer.weight) if transposed else weight(layer.weight).T
            key, block = (layer.weight.name, transposed), plan.recipe.weight.block_size
            if key not in stored:
                stored[key] = _blocks(graph, layer.weight.name, values, block)
            bias = bias_row(graph, layer)
            inputs = [layer.data, *stored[key], *([None, None, *bias] if bias else [])]
            graph.remove(node, *layer.tail)
            graph.add(
                "MatMulNBits",
                inputs,
                [output],
                name=name,
                domain=MICROSOFT,
                K=int(values.shape[1]),
                N=int(values.shape[0]),
                bits=8,
                block_size=block,
                accuracy_level=INTEGER_ACTIVATIONS,
            )
            yield Change(name, op, "MatMulNBits", plan.nodes[name].reason)


def _blocks(graph: Graph, name: str, values: Array, block: int) -> tuple[Tensor, Tensor]:
    """[outputs, blocks, block] integers around 128, and a scale for each block; the last one is filled with zeros."""
    outputs, inputs = values.shape
    padded = np.pad(values, ((0, 0), (0, -inputs % block))).reshape(-1, block)
    found = quantize_weight(padded, UINT8, axis=0, symmetric=True)
    return (
        graph.constant(f"{name}_quantized", found.values.reshape(outputs, -1, block)),
        graph.constant(f"{name}_scale", found.scale),
    )
