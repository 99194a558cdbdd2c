"""Weights of linear layers in 8 or 4 bits, activations in floats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from onnxq.graph import MICROSOFT, Graph
from onnxq.layers import WIDE, Layer, bias_row, layer_of
from onnxq.nbits import Parts, attributes, stored_blocks, with_bias
from onnxq.pipeline import Context, Lossy, Promise
from onnxq.plan import Treatment
from onnxq.rewrite import Change
from onnxq.spec import Fact
from onnxq.weights import shelf_name


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
        settings, stored = plan.recipe.weight, dict[str, Parts]()
        for node in [n for n in graph.nodes if plan.treatment(n.name) is Treatment.WEIGHT and n.op != "Gather"]:
            layer = layer_of(graph, node, frozenset(), WIDE)
            assert isinstance(layer, Layer)
            name, op, output, decision = node.name, node.op, layer.output, plan.nodes[node.name]
            key = shelf_name(layer, decision.bits)
            if key not in stored:
                stored[key] = stored_blocks(graph, layer, settings, decision.bits, context.shelf)
            parts, described = with_bias(stored[key], *bias_row(graph, layer)), attributes(layer, settings, decision)
            graph.remove(node, *layer.tail)
            graph.add("MatMulNBits", [layer.data, *parts], [output], name=name, domain=MICROSOFT, **described)
            yield Change(name, op, "MatMulNBits", decision.reason)
