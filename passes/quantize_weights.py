"""Weights of linear layers in 8 or 4 bits, activations in floats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from onnxq.graph import MICROSOFT, Graph, Tensor, weight
from onnxq.layers import Layer, bias_row, layer_of
from onnxq.pipeline import Context, Lossy, Promise
from onnxq.plan import Treatment
from onnxq.rewrite import Change
from onnxq.spec import Fact
from onnxq.weights import blocked_weight

INTEGER_ACTIVATIONS = 4
"""The accuracy level at which `MatMulNBits` rounds activations to 8 bits inside the kernel: the only fast one."""


@dataclass(frozen=True)
class QuantizeWeights:
    """Store the weight of a linear layer in blocks of 8-bit or 4-bit integers.

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
        stored: dict[tuple[str, int, int], tuple[Tensor, Tensor]] = {}
        for node in [n for n in graph.nodes if plan.treatment(n.name) is Treatment.WEIGHT and n.op != "Gather"]:
            layer = layer_of(graph, node, frozenset())
            assert isinstance(layer, Layer)
            name, op, output = node.name, node.op, layer.output
            transposed = int(node.attrs.get("transB", 0)) if op == "Gemm" else 0
            outputs, inputs = weight(layer.weight).shape[:: 1 if transposed else -1]
            block, bits = plan.recipe.weight.block_size, plan.nodes[name].bits
            key = (layer.weight.name, transposed, bits)
            if key not in stored:
                stored[key] = _blocks(graph, layer, bits, block)
            bias = bias_row(graph, layer)
            read = [layer.data, *stored[key], *([None, None, *bias] if bias else [])]
            graph.remove(node, *layer.tail)
            graph.add(
                "MatMulNBits",
                read,
                [output],
                name=name,
                domain=MICROSOFT,
                K=inputs,
                N=outputs,
                bits=bits,
                block_size=block,
                accuracy_level=INTEGER_ACTIVATIONS,
            )
            yield Change(name, op, "MatMulNBits", plan.nodes[name].reason)


def _blocks(graph: Graph, layer: Layer, bits: int, block: int) -> tuple[Tensor, Tensor]:
    """[outputs, blocks, bytes of a block], the lower half of a byte first, and a scale for each block."""
    name, found = layer.weight.name, blocked_weight(layer, bits, block)
    values = found.values if bits == 8 else found.values[..., ::2] | found.values[..., 1::2] << 4
    return graph.constant(f"{name}_quantized", values), graph.constant(f"{name}_scale", found.scale)
