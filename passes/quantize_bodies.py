"""Weights of linear layers in the bodies of If, Loop and Scan, in 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from onnxq.bodies import own_bodies, put, settle
from onnxq.graph import MICROSOFT, Constant, Graph, Node, Tensor, Variable
from onnxq.inner import Inner, inner_layers
from onnxq.layers import bias_row
from onnxq.nbits import Parts, attributes, stored_blocks, with_bias
from onnxq.pipeline import Context, Lossy, Promise
from onnxq.plan import NodePlan, Plan, Treatment
from onnxq.rewrite import Change
from onnxq.spec import Fact
from onnxq.weights import shelf_name


@dataclass(frozen=True)
class QuantizeBodies:
    """Store the weight of a linear layer in a body in blocks of integers, once for all bodies that read it.

        If(c) { MatMul(x, w) } => If(c) { MatMulNBits(x, w') },  w' in the graph around it

    Such weights are rounded without data: calibration does not run in bodies. Leaves alone what the plan does not name.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NORMAL})
    gives: ClassVar[frozenset[Fact]] = frozenset()
    promise: ClassVar[Promise] = Lossy()

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each layer."""
        plan = context.plan
        assert plan is not None
        if not _planned(graph, plan):
            return
        own_bodies(graph)
        stored, added = dict[str, Parts](), list[Constant]()
        for inner in _planned(graph, plan):
            decision, key = plan.nodes[inner.name], shelf_name(inner.layer, plan.nodes[inner.name].bits)
            if key not in stored:
                stored[key] = stored_blocks(graph, inner.layer, plan.recipe.weight, decision.bits, context.shelf)
            op, bias = inner.layer.node.op, _bias(graph, inner)
            made = _product(inner, with_bias(stored[key], *bias), plan, decision)
            added += [tensor for tensor in made.inputs if isinstance(tensor, Constant)]
            put(made, inner.stored)
            made.inputs.clear()  # it stands in no graph: weights must not count it among their readers
            yield Change(inner.name, op, "MatMulNBits", f"{decision.reason} Rounded without data.")
        graph.opsets.setdefault(MICROSOFT, 1)
        settle(graph, added)


def _planned(graph: Graph, plan: Plan) -> list[Inner]:
    found = [inner for inner in inner_layers(graph) if plan.treatment(inner.name) is Treatment.WEIGHT]
    assert not any(inner.obstacle for inner in found)
    return found


def _bias(graph: Graph, inner: Inner) -> list[Tensor]:
    """The bias by the name that it has in the body, or as a row of its own where it has two axes."""
    row = bias_row(graph, inner.layer)
    return [Variable(inner.stored.input[2])] if row == [inner.layer.bias] else row


def _product(inner: Inner, parts: Parts, plan: Plan, decision: NodePlan) -> Node:
    """The operator in the place of a layer."""
    data, output = Variable(inner.stored.input[0]), Variable(inner.stored.output[0])
    inputs = [data, *(Variable("") if part is None else part for part in parts)]
    described = attributes(inner.layer, plan.recipe.weight, decision)
    return Node("MatMulNBits", inner.stored.name, described, inputs, [output], MICROSOFT)
