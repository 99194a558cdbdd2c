"""Weights of linear layers in 8 or 4 bits, activations in floats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from onnxq.graph import MICROSOFT, Graph
from onnxq.layers import Layer, bias_row
from onnxq.lookups import shared_lookups
from onnxq.nbits import Parts, attributes, blocked_layers, dequantized_blocks, stored_blocks, with_bias
from onnxq.pipeline import Context, Lossy, Promise
from onnxq.plan import NodePlan
from onnxq.rewrite import Change
from onnxq.spec import Fact
from onnxq.weights import shelf_name


@dataclass(frozen=True)
class QuantizeWeights:
    """Store the weight of a linear layer in blocks of 8-bit or 4-bit integers.

        MatMul(x, w) => MatMulNBits(x, w'),  a scale for each `block_size` inputs of an output
        MatMul(x, w) => MatMul(x, DequantizeLinear(w'))       in the form qdq

        Gather(w, i) => GatherBlockQuantized(w', i)           for a table that shares w with a layer

    A weight is rounded when it is read, unless it lies on the shelf. Leaves alone what the plan does not name.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NORMAL})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.INTEGER})
    promise: ClassVar[Promise] = Lossy()

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each layer."""
        plan = context.plan
        assert plan is not None
        settings, stored, blocks = plan.recipe.weight, dict[str, Parts](), dict[str, Parts]()
        for layer in list(blocked_layers(graph, plan.nodes)):
            node = layer.node
            name, op, output, decision = node.name, node.op, layer.output, plan.nodes[node.name]
            key = shelf_name(layer, decision.bits)
            if key not in stored:
                stored[key] = self._stored(graph, layer, context, decision)
            bias = bias_row(graph, layer)
            graph.remove(node, *layer.tail)
            if plan.recipe.format == "qdq":
                product = graph.variable(f"{output.name}_product", output.dtype, output.shape) if bias else output
                graph.add("MatMul", [layer.data, *stored[key]], [product], name=name)
                if bias:
                    graph.add("Add", [product, *bias], [output], name=f"{name}_bias")
                yield Change(name, op, "DequantizeLinear, MatMul", decision.reason)
                continue
            blocks[name] = stored[key]
            parts, described = with_bias(stored[key], *bias), attributes(layer, settings, decision)
            graph.add("MatMulNBits", [layer.data, *parts], [output], name=name, domain=MICROSOFT, **described)
            yield Change(name, op, "MatMulNBits", decision.reason)
        yield from shared_lookups(graph, plan, blocks)

    def _stored(self, graph: Graph, layer: Layer, context: Context, decision: NodePlan) -> Parts:
        """The weight as the form of the recipe wants it."""
        assert context.plan is not None
        asked = layer, context.plan.recipe.weight, decision.bits, context.shelf
        return (
            [dequantized_blocks(graph, *asked)] if context.plan.recipe.format == "qdq" else stored_blocks(graph, *asked)
        )
