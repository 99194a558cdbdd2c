"""Bodies of If, Loop and Scan: walked through and edited as the model stores them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableSequence
from typing import Any

from onnx import AttributeProto, GraphProto, NodeProto

from onnxq.emit import to_node
from onnxq.graph import Constant, Graph, Node, bodies
from onnxq.tensors import captures, nested

StoredBody = GraphProto
StoredNode = NodeProto

PASSIVE = frozenset({"Cast", "Constant", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that stand between a weight and its layer, and go where nobody reads them any more."""


def labelled(attributes: Iterable[object]) -> Iterator[tuple[str, StoredBody]]:
    """The bodies among the attributes of a node, each with the name of its attribute."""
    for stored in attributes:
        if isinstance(stored, AttributeProto):
            for body in [stored.g] if stored.HasField("g") else stored.graphs:
                yield stored.name, body


def outermost(graph: Graph) -> list[StoredBody]:
    """The bodies of a graph, without those in them."""
    return [body for node in graph.nodes for body in bodies(node)]


def inner_nodes(graph: Graph) -> Iterator[StoredNode]:
    """Every node in a body, at any depth."""
    for body in nested(outermost(graph)):
        yield from body.node


def own_bodies(graph: Graph) -> None:
    """Copy every body, so that it may be edited: copies of a graph share theirs."""
    for node in graph.nodes:
        for name, stored in node.attrs.items():
            if any(labelled([stored])):
                node.attrs[name] = twin = AttributeProto()
                twin.CopyFrom(stored)


def put(node: Node, place: StoredNode) -> None:
    """Put a node in the place of another one, in a body that was copied."""
    place.CopyFrom(to_node(node))


def settle(graph: Graph, added: Iterable[Constant]) -> None:
    """Drop constants of bodies that nobody reads any more, and remember what bodies read from the graph around them.

    Args:
        graph: whose bodies were edited, and were copied before.
        added: weights that bodies read now.
    """
    for body in reversed(list(nested(outermost(graph)))):
        assert isinstance(body, GraphProto)
        _prune(body)
    captured = {name for body in outermost(graph) for name in captures(body)}
    known = {tensor.name: tensor for tensor in (*graph.weights(), *added)}
    graph.captured = frozenset(captured)
    graph.pinned = {name: known[name] for name in sorted(captured) if name in known}


def _prune(body: StoredBody) -> None:
    while True:
        read = _read(body)
        idle = [i for i, node in enumerate(body.node) if node.op_type in PASSIVE and not read & set(node.output)]
        if not idle:
            break
        for index in reversed(idle):
            del body.node[index]
    declared = {info.name for info in body.input}
    _keep(body.initializer, read | declared)
    made = {name for node in body.node for name in node.output} | {item.name for item in body.initializer}
    _keep(body.value_info, made | declared)


def _read(body: StoredBody) -> set[str]:
    """Names that a body reads: its nodes, the bodies in it, and its outputs."""
    inner = [captures(deeper) for node in body.node for _, deeper in labelled(node.attribute)]
    return {info.name for info in body.output}.union(*(node.input for node in body.node), *inner)


def _keep(items: MutableSequence[Any], names: set[str]) -> None:
    """Take out of a repeated field what has none of these names."""
    for index in reversed(range(len(items))):
        if items[index].name not in names:
            del items[index]
