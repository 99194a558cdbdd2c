"""Weights in half precision, activations and arithmetic in float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxq.graph import Constant, Graph, Later, Node, Tensor, weight
from onnxq.half_weights import large_constants, misfit, promised, shared
from onnxq.numerics.halves import to_half
from onnxq.pipeline import Close, Context, Promise
from onnxq.plan import Treatment
from onnxq.rewrite import Change
from onnxq.spec import Fact

FLOAT = 1
"""Float32 in ONNX."""


@dataclass(frozen=True)
class HalveWeights:
    """Store float32 weights as float16, for targets that compute in float32.

        MatMul(x, w) => MatMul(x, Cast(w'))        Gather(w, i) => Cast(Gather(w', i))

    The runtime computes the Cast of a weight once, when it loads the model; of a table it widens the rows that are
    read. A weight is rounded when it is written. Leaves alone what the plan does not name, what does not fit into half
    precision, and weights that a body, an output or an operator that stays in float needs as they are.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NORMAL})
    gives: ClassVar[frozenset[Fact]] = frozenset()
    promise: ClassVar[Promise] = Close(rtol=2e-3)

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each operator, and for each of its weights that stays."""
        plan = context.plan
        assert plan is not None
        treatments = {name: node.treatment for name, node in plan.nodes.items()}
        if context.target.half or Treatment.HALF not in treatments.values():
            return
        stored: dict[str, Constant | str] = {}
        widened: dict[str, Tensor] = {}
        for node in list(graph.nodes):
            found = large_constants(node) if node.name in treatments else []
            if found and treatments[node.name] is Treatment.FLOAT:
                yield Change(node.name, node.op, "", plan.nodes[node.name].reason)
            if not found or treatments[node.name] is not Treatment.HALF:
                continue
            for tensor in found:
                if tensor.name not in stored:
                    stored[tensor.name] = _stored(graph, tensor, treatments, known=len(found) == 1)
                half = stored[tensor.name]
                if isinstance(half, str):
                    yield Change(node.name, node.op, "", half)
                else:
                    _replace(graph, node, tensor, half, widened)
            if any(isinstance(stored[tensor.name], Constant) for tensor in found):
                yield Change(node.name, node.op, f"half {node.op}", plan.nodes[node.name].reason)


def _stored(graph: Graph, tensor: Constant, treatments: Mapping[str, Treatment], *, known: bool) -> Constant | str:
    """The weight in half precision, or why it stays; of a node's only weight the plan knows that it fits."""
    obstacle = promised(graph, tensor) or shared(tensor, treatments) or (None if known else misfit(tensor))
    if obstacle is not None:
        return obstacle
    values = Later(tensor._values.shape, np.dtype(np.float16), lambda: to_half(weight(tensor)))
    return Constant(graph.fresh(f"{tensor.name}_half"), values)


def _replace(graph: Graph, node: Node, tensor: Constant, half: Constant, widened: dict[str, Tensor]) -> None:
    """Let a node read a weight in half precision; one Cast serves all readers of a weight."""
    if node.op == "Gather" and not node.domain and node.inputs[0] is tensor:
        output = node.outputs[0]
        rows = graph.variable(f"{output.name}_half", np.dtype(np.float16), output.shape)
        node.inputs[0], node.outputs[0] = half, rows
        graph.add("Cast", [rows], [output], name=f"{node.name}_cast", to=FLOAT)
        return
    if half.name not in widened:
        wide = graph.variable(f"{tensor.name}_float", np.dtype(np.float32), tensor.shape)
        graph.add("Cast", [half], [wide], name=f"{tensor.name}_cast", to=FLOAT)
        widened[half.name] = wide
    for place, read in enumerate(node.inputs):
        if read is tensor:
            node.inputs[place] = widened[half.name]
