"""A stored model taken apart: its nodes, its names, and the rules of ONNX that it breaks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import onnx
from onnx import AttributeProto

from onnxq.errors import ModelError
from onnxq.tensors import Node, Tensor, bodies, nested, reads

PLAIN = {
    AttributeProto.FLOAT,
    AttributeProto.INT,
    AttributeProto.STRING,
    AttributeProto.FLOATS,
    AttributeProto.INTS,
}
"""Attribute types that become plain Python values; all others stay as they are stored."""


def attribute(stored: AttributeProto) -> Any:
    """The value of an attribute where it is plain, and the attribute itself where it is not."""
    if stored.type not in PLAIN or stored.ref_attr_name:
        return stored
    value = onnx.helper.get_attribute_value(stored)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return stored
    if stored.type in (AttributeProto.FLOATS, AttributeProto.INTS):
        return list(value) or stored  # an empty list does not tell its type
    return value


def check_names(graph: onnx.GraphProto) -> None:
    """Raise ModelError where a name is no text, as in a damaged file: protobuf hands out bytes then."""
    for part in nested([graph]):
        names = [info.name for info in (*part.input, *part.output, *part.initializer)]
        for node in part.node:
            names += [node.op_type, node.name, node.domain, *node.input, *node.output]
            names += [stored.name for stored in node.attribute]
        for name in names:
            if isinstance(name, bytes):
                raise ModelError(f"The name {name!r} is no valid text. Export or download the model again.")


def check_texts(message: Any) -> None:
    """The same for all other texts of a model: domains, types, functions, metadata."""
    for descriptor, value in message.ListFields():
        if isinstance(message, onnx.GraphProto) and descriptor.name in ("node", "initializer"):
            continue  # `check_names` reads these
        each = value if hasattr(value, "extend") else [value]
        if descriptor.type == descriptor.TYPE_MESSAGE:
            for inner in each:
                check_texts(inner)
        elif descriptor.type == descriptor.TYPE_STRING and (odd := [text for text in each if isinstance(text, bytes)]):
            raise ModelError(
                f"The field {descriptor.name} holds {odd[0]!r}, no valid text. Export or download the model again."
            )


def produced_names(graph: onnx.GraphProto, inputs: Sequence[str], weights: set[str]) -> set[str]:
    """Names of all tensors that exist. Raises ModelError where one has none, or is made twice."""
    produced = weights | {item.values.name for item in graph.sparse_initializer}
    if "" in produced or "" in inputs:
        raise ModelError("A weight or an input of the model has no name. Export the model again.")
    makers = [(name, "a model input") for name in inputs]
    for index, node in enumerate(graph.node):
        makers += [(name, f"node '{node.name or index}' ({node.op_type})") for name in node.output if name]
    for name, maker in makers:
        if name in produced:
            raise ModelError(
                f"Tensor '{name}' is made twice, the second time by {maker}. Every tensor needs a name of its own."
            )
        produced.add(name)
    return produced


def make_node(stored: onnx.NodeProto, name: str, inputs: list[Tensor], outputs: list[Tensor]) -> Node:
    """A node as passes see it; the standard operators have no domain, though files may call it ai.onnx."""
    domain = stored.domain if stored.domain != "ai.onnx" else ""
    node = Node(stored.op_type, name, {a.name: attribute(a) for a in stored.attribute}, inputs, outputs, domain or None)
    remarks = onnx.NodeProto()
    _fill(remarks, stored, {"op_type", "name", "domain", "input", "output", "attribute"})
    node.remarks = remarks if remarks.ByteSize() else None
    return node


def node_names(nodes: Sequence[onnx.NodeProto]) -> Iterator[str]:
    """The name of each node, or one made of its operator and place where it has none or shares it."""
    taken = {node.name for node in nodes} | {name for node in nodes for name in node.output}
    seen: set[str] = set()
    for index, node in enumerate(nodes):
        name = node.name
        while not name or name in seen or (name != node.name and name in taken):
            name = f"{node.name or node.op_type}_{index}" if name in ("", node.name) else f"{name}_"
        seen.add(name)
        yield name


def check_sources(nodes: Sequence[Node], outputs: Sequence[Tensor], produced: set[str]) -> None:
    """Raise ModelError where a node, a body or an output of the model reads what does not exist."""
    for node in nodes:
        for name in sorted(reads(node) - produced):
            raise ModelError(
                f"Node '{node.name}' ({node.op}) reads tensor '{name}', which no input, initializer or node "
                "makes. Export the model again."
            )
    for output in outputs:
        if output.name not in produced:
            raise ModelError(f"Output '{output.name}' is made by no node. Export the model again.")


def body_names(nodes: Iterable[Node]) -> set[str]:
    """Names that bodies give to tensors; the graph around them must not use one for something else."""
    names: set[str] = set()
    for body in nested(body for node in nodes for body in bodies(node)):
        names.update(item.name for item in (*body.input, *body.initializer))
        names.update(name for node in body.node for name in node.output)
    return names


def shell_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without nodes and weights."""
    shell = onnx.ModelProto()
    _fill(shell, model, {"graph"})
    _fill(shell.graph, model.graph, {"node", "initializer"})
    return shell


def _fill(target: Any, source: Any, without: set[str]) -> None:
    """Copy all fields but some; copying the whole message would copy every weight."""
    for descriptor, value in source.ListFields():
        name = descriptor.name
        if name in without:
            continue
        if hasattr(value, "extend"):
            getattr(target, name).extend(value)
        elif hasattr(value, "CopyFrom"):
            getattr(target, name).CopyFrom(value)
        elif isinstance(value, bytes) and descriptor.type == descriptor.TYPE_STRING:
            raise ModelError(f"The field {name} holds {value!r}, no valid text. Export or download the model again.")
        else:
            setattr(target, name, value)
