"""A part of a graph as a graph of its own, to be run, measured and compared alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from onnxq.errors import ModelError
from onnxq.graph import Graph, Node, Tensor, Variable, is_constant, reads, weight, with_inputs
from onnxq.interface import TensorSpec
from onnxq.memo import JSON

PICTURE = 4
"""Axes of a picture: batch, channels, height, width."""

SHORT = 16
"""Numbers up to which an integer weight is taken for a shape, or for axes."""


def cut(graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> Graph:
    """The part of a graph that computes some of its tensors from others; weights are shared handles.

    Args:
        graph: where to cut; it is not touched. Cut inputs need their element types (`Graph.annotate`).
        inputs: names of inputs and inner tensors.
        outputs: names of inner tensors.

    Raises:
        ModelError: a name is unknown, an input has no type, or the part needs an input that is not given.
    """
    return Cutter(graph).cut(inputs, outputs)


@dataclass(frozen=True)
class Cutter:
    """Cuts many parts out of one graph, which nobody edits meanwhile."""

    graph: Graph

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """By name."""
        return self.graph.tensors()

    @cached_property
    def makers(self) -> dict[str, Node]:
        """The node that makes each tensor."""
        return {tensor.name: node for node in self.graph.nodes for tensor in node.outputs if tensor.name}

    @cached_property
    def places(self) -> dict[Node, int]:
        """Where each node stands."""
        return {node: place for place, node in enumerate(self.graph.nodes)}

    def cut(self, inputs: Sequence[str], outputs: Sequence[str]) -> Graph:
        """As `cut` for this graph."""
        if unknown := [name for name in (*inputs, *outputs) if name not in self.tensors]:
            raise ModelError(f"The model has no tensor '{unknown[0]}' to cut at. Name one of its tensors.")
        nodes = sorted(self._needed(set(inputs), outputs), key=self.places.__getitem__)
        read = {name for node in nodes for name in reads(node)}
        starts, stops = ([self.tensors[name] for name in names] for names in (inputs, outputs))
        return replace(
            self.graph,
            nodes=nodes,
            inputs=[Variable(tensor.name, tensor.dtype, tensor.shape) for tensor in starts],
            outputs=stops,
            shell=_shell(self.graph.shell, starts, stops),
            captured=self.graph.captured & read,
            pinned={name: tensor for name, tensor in self.graph.pinned.items() if name in read},
        ).copy()

    def _needed(self, inputs: set[str], outputs: Iterable[str]) -> set[Node]:
        """The nodes between inputs and outputs."""
        given = {tensor.name for tensor in self.graph.inputs}
        found: set[Node] = set()
        waiting = list(outputs)
        while waiting:
            name = waiting.pop()
            if name in given:
                raise ModelError(f"The part needs the model's input '{name}' too. Name it among the inputs to cut at.")
            node = self.makers.get(name)
            if node is None or node in found:
                continue
            if also := inputs & {tensor.name for tensor in node.outputs}:
                raise ModelError(
                    f"Node '{node.name}' makes '{name}' and '{min(also)}'. Cut at both of them, or at none."
                )
            found.add(node)
            waiting += reads(node) - inputs
        return found


def _shell(shell: Any, inputs: Iterable[Tensor], outputs: Iterable[Tensor]) -> Any:
    """The model around a graph, with other inputs and outputs; types of outputs follow from the nodes."""
    made = type(shell)()
    made.CopyFrom(shell)
    for declared in (made.graph.input, made.graph.output, made.graph.value_info):
        del declared[:]
    for tensor in outputs:
        made.graph.output.add(name=tensor.name)
    return with_inputs(made, [_spec(tensor) for tensor in inputs])


def _spec(tensor: Tensor) -> TensorSpec:
    if tensor.dtype is None or is_constant(tensor):
        raise ModelError(f"Tensor '{tensor.name}' cannot be cut at: it is a weight, or its type is unknown.")
    return TensorSpec(tensor.name, np.dtype(tensor.dtype), None if tensor.shape is None else tuple(tensor.shape))


def channels_last(part: Graph) -> Graph:
    """A part whose pictures come and go as integer convolutions hand them on, with the channels last.

        y = op(x)  =>  y_last = Transpose(op(Transpose(x_last)))

    The runtime moves a Transpose through operators that work in either layout, until it meets the other one.
    """
    made = part.copy()
    for index, old in [(i, t) for i, t in enumerate(made.inputs) if len(t.shape or ()) == PICTURE]:
        batch, channels, *sizes = old.shape or ()
        new = made.variable(f"{old.name}_last", old.dtype, [batch, *sizes, channels])
        made.add("Transpose", [new], [old], name=f"{old.name}_turn", perm=[0, 3, 1, 2])
        made.inputs[index] = new
    for index, output in enumerate(made.outputs):
        last = made.variable(f"{output.name}_last")
        made.add("Transpose", [output], [last], name=f"{output.name}_turn", perm=[0, 2, 3, 1])
        made.outputs[index] = last
    made.shell = _shell(made.shell, made.inputs, made.outputs)
    made.tidy()
    return made


def ends(graph: Graph, nodes: Sequence[Node]) -> tuple[list[str], list[str]]:
    """What some nodes read from outside, and what they make for others: the names to cut at."""
    inside = set(nodes)
    made = {tensor.name for node in nodes for tensor in node.outputs}
    weights = {tensor.name for node in nodes for tensor in node.inputs if is_constant(tensor)} | set(graph.pinned)
    inputs = [name for node in nodes for name in _read_in_order(node) if name not in made | weights]
    outputs = [
        tensor.name
        for node in nodes
        for tensor in node.outputs
        if tensor.name and (graph.kept(tensor) or not tensor.outputs or not inside.issuperset(tensor.outputs))
    ]
    return list(dict.fromkeys(inputs)), outputs


def _read_in_order(node: Node) -> list[str]:
    own = [tensor.name for tensor in node.inputs if tensor.name]
    return own + sorted(reads(node) - set(own))


def successors(base: Graph, graph: Graph) -> dict[str, Node]:
    """For nodes of a graph, what stands in their place after passes: a node of the same name, or with a number behind.

    A pass that replaces a node wishes for its name, which is taken (`Graph.fresh`). Absorbed nodes are missing.
    """
    known = {node.name for node in base.nodes}
    found: dict[str, Node] = {}
    for node in graph.nodes:
        stem, _, number = node.name.rpartition("_")
        if node.name in known:
            found[node.name] = node
        elif number.isdigit() and stem in known:
            found.setdefault(stem, node)
    return found


def structure(part: Graph, shapes: Mapping[str, Sequence[int]]) -> dict[str, JSON]:
    """What the time of a part depends on, without any name: operators, attributes, types and shapes.

    Args:
        part: what was cut out.
        shapes: those of its inputs, as they really are.
    """
    places: dict[str, JSON] = {tensor.name: f"input {i}" for i, tensor in enumerate(part.inputs)} | {"": None}
    nodes: list[JSON] = []
    for index, node in enumerate(part.nodes):
        inputs = [_weight(tensor) if is_constant(tensor) else places[tensor.name] for tensor in node.inputs]
        places.update({tensor.name: f"output {i} of {index}" for i, tensor in enumerate(node.outputs) if tensor.name})
        attributes: JSON = {name: _plain(value) for name, value in sorted(node.attrs.items())}
        nodes.append({"op": node.op, "domain": node.domain or "", "attributes": attributes, "inputs": inputs})
    given: list[JSON] = [[str(tensor.dtype), *shapes[tensor.name]] for tensor in part.inputs]
    return {"inputs": given, "nodes": nodes, "outputs": [places[tensor.name] for tensor in part.outputs]}


def _weight(tensor: Tensor) -> JSON:
    """Type and shape; the values too where they tell shapes, axes or places."""
    shape = [int(size) for size in tensor.shape or ()]  # type: ignore[arg-type]
    described: list[JSON] = [str(tensor.dtype), *shape]
    if tensor.dtype == np.int64 and math.prod(shape) <= SHORT:
        described.append(str(weight(tensor).tolist()))
    return described


def _plain(value: Any) -> JSON:
    return value if isinstance(value, (bool, int, float, str, list)) else repr(value)
