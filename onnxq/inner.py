"""Linear layers in the bodies of If, Loop and Scan.

If(c) { y = MatMul(x, w) }        w: a weight of the graph around it, or of the body itself
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

from onnxq.bodies import StoredBody, StoredNode, inner_nodes, labelled
from onnxq.graph import Constant, Graph, Later, Node, Stored, Tensor, Variable, is_constant, stored_value, weight
from onnxq.layers import WIDE, Layer, weight_obstacle
from onnxq.parse import make_node
from onnxq.plan import NodePlan, Treatment
from onnxq.recipe import Recipe
from onnxq.views import view

LINEAR = frozenset({"MatMul", "Gemm"})
"""Operators that are a layer in a body."""

Scope = Mapping[str, Constant]
"""Constants by the names that a body has for them; each has a name of its own, the same wherever it is read."""


@dataclass(frozen=True)
class Inner:
    """An operator in a body that may be a layer.

    Attributes:
        name: what the plan calls it: its name, behind those of what is around it where others are called so too.
        layer: what it reads; its weight has the name that all bodies share.
        obstacle: why it is no layer; empty where it is one.
        stored: as it stands in the body.
    """

    name: str
    layer: Layer
    obstacle: str
    stored: StoredNode


def inner_layers(graph: Graph) -> list[Inner]:
    """Every MatMul and Gemm in bodies, in order."""
    below = list(inner_nodes(graph))
    if not below:
        return []
    outside: dict[str, Any] = {name: tensor._values for name, tensor in graph.pinned.items()}
    for node in graph.nodes:
        for name in [tensor.name for tensor in node.outputs[:1] if tensor.name in graph.captured]:
            outside[name] = _values(node)
    twins = {name: Constant(name, values) for name, values in outside.items() if values is not None}
    counts = Counter([node.name for node in graph.nodes] + [stored.name for stored in below])
    search = Search(counts, Names({*graph.tensors(), *graph.pinned}))
    return [inner for node in graph.nodes for inner in search.below(node.attrs.values(), node.name, twins)]


@dataclass
class Names:
    """One name for each weight, whichever body holds it.

    Attributes:
        taken: names in use.
        known: by what tells a weight from others.
    """

    taken: set[str]
    known: dict[tuple[object, ...], str] = field(default_factory=dict)

    def of(self, wish: str, *what: object) -> str:
        """The name of the weight that is told by this."""
        if what not in self.known:
            name = wish
            while name in self.taken:
                name = f"{name}_"
            self.taken.add(name)
            self.known[what] = name
        return self.known[what]


@dataclass(frozen=True)
class Search:
    """A walk through bodies, from the outermost on.

    Attributes:
        counts: how often a node has a name, in bodies and around them.
        names: of weights.
    """

    counts: Counter[str]
    names: Names

    def below(self, attributes: Iterable[object], path: str, scope: Scope) -> Iterator[Inner]:
        """What the bodies of a node hold."""
        for label, body in labelled(attributes):
            yield from self.inside(body, f"{path}/{label}", scope)

    def inside(self, body: StoredBody, path: str, scope: Scope) -> Iterator[Inner]:
        """What a body holds."""
        own = {info.name for info in body.input} | {name for node in body.node for name in node.output}
        known = {name: tensor for name, tensor in scope.items() if name not in own}
        known |= {item.name: self._constant(item.name, Stored(item, None)) for item in body.initializer}
        for stored in body.node:
            plain = stored.name or "_".join([stored.op_type, *stored.output[:1]])
            inputs: list[Tensor] = [known.get(name) or Variable(name) for name in stored.input]
            node = make_node(stored, plain, inputs, [Variable(name) for name in stored.output])
            if node.op in LINEAR and not node.domain:
                name = plain if self.counts[stored.name] == 1 else f"{path}/{plain}"
                layer = Layer(node, inputs[0], inputs[1], inputs[2] if any(stored.input[2:]) else None, ())
                yield Inner(name, layer, weight_obstacle(node, WIDE) or "", stored)
            elif len(stored.output) == 1 and (values := _values(node)) is not None:
                known[stored.output[0]] = self._made(node, values)
            yield from self.below(stored.attribute, f"{path}/{plain}", known)

    def _constant(self, wish: str, values: Stored) -> Constant:
        """A constant that a body holds: equal weights of several bodies have one name."""
        large = len(values.shape) == 2 and values.dtype in WIDE
        what = sha256(values.raw()).digest() if large else object()
        return Constant(self.names.of(wish, what, values.kind, values.shape), values)

    def _made(self, node: Node, values: Later | Stored) -> Constant:
        """What a node in a body makes of a constant: one name for what is made in the same way of the same one."""
        if isinstance(values, Stored):
            return self._constant(node.outputs[0].name, values)
        source, more = node.inputs[0].name, [weight(t).tobytes() for t in node.inputs[1:] if is_constant(t)]
        how = (source, node.op, repr(sorted(node.attrs.items())), *more)
        return Constant(self.names.of(f"{source}_{node.op.lower()}", *how), values)


def _values(node: Node) -> Later | Stored | None:
    """What a node holds, or makes of a constant without computing."""
    if node.domain:
        return None
    found = stored_value(node) if node.op == "Constant" else view(node)
    return found if isinstance(found, (Later, Stored)) else None


def inner_plans(graph: Graph, recipe: Recipe, bits: Literal[4, 8]) -> dict[str, NodePlan]:
    """The decision for each layer in a body, where weights alone become integers."""
    plans: dict[str, NodePlan] = {}
    for inner in inner_layers(graph):
        node = inner.layer.node
        if recipe.format == "qdq":
            reason, treatment = "In a body, the form qdq is not written.", Treatment.FLOAT
        elif not all(recipe.override(name, node.op).quantize for name in (inner.name, node.name)):
            reason, treatment = "The recipe keeps it in float.", Treatment.FLOAT
        elif inner.obstacle:
            reason, treatment = inner.obstacle, Treatment.FLOAT
        else:
            reason, treatment = "Linear layer in a body, with a constant weight.", Treatment.WEIGHT
        plans[inner.name] = NodePlan(op=node.op, treatment=treatment, reason=reason, bits=bits)
    return plans


def inner_names(graph: Graph) -> set[tuple[str, str]]:
    """Name and operator of every layer in a body; one whose name in the plan is longer comes by both."""
    found = [(inner, inner.layer.node) for inner in inner_layers(graph)]
    return {(name, node.op) for inner, node in found for name in (inner.name, node.name)}
