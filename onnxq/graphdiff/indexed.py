"""A graph prepared to be compared: who makes and reads each tensor, and what each node is, whatever it is called."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from onnxq.graph import Constant, Graph, Node, Tensor, bodies, stored_value, weight
from onnxq.graphdiff.fingerprints import Outer, digest, of_attribute, of_attributes, of_sparse, of_values
from onnxq.opsets import operand_names

Read = tuple[int, int]
"""The place of a node, and which of its inputs; -1 for what its bodies capture."""


@dataclass(frozen=True, eq=False)
class Indexed:
    """One side of a comparison. Nodes are called by their place in the graph.

    Attributes:
        graph: which nobody edits meanwhile.
        ends: what stands for the inputs and outputs of the model, by name: equal on both sides where they are the same.
    """

    graph: Graph
    ends: Mapping[str, str]

    @cached_property
    def nodes(self) -> list[Node]:
        """In an order in which they can run."""
        return self.graph.nodes

    @cached_property
    def makers(self) -> dict[str, int]:
        """The node that makes each tensor."""
        return {t.name: place for place, node in enumerate(self.nodes) for t in node.outputs if t.name}

    @cached_property
    def readers(self) -> dict[str, list[Read]]:
        """The nodes that read each tensor."""
        found: dict[str, list[Read]] = {}
        for place in range(len(self.nodes)):
            for slot, name in self.operands(place):
                found.setdefault(name, []).append((place, slot))
        return found

    @cached_property
    def constants(self) -> dict[str, Tensor]:
        """Weights, and what Constant nodes hold, by the name of the tensor."""
        found: dict[str, Tensor] = {tensor.name: tensor for tensor in self.graph.weights()}
        for node in self.nodes:
            stored = stored_value(node) if node.op == "Constant" and not node.domain else None
            if stored is not None:
                found[node.outputs[0].name] = Constant(node.outputs[0].name, stored)
        return found

    @cached_property
    def values(self) -> dict[str, str]:
        """A digest of each of them."""
        found = {name: of_values(weight(tensor)) for name, tensor in self.constants.items()}
        for stored in self.graph.shell.graph.sparse_initializer:
            found[stored.values.name] = of_sparse(stored)
        return found

    def count(self, name: str) -> int:
        """How many numbers a constant holds."""
        shape = self.constants[name].shape or () if name in self.constants else ()
        return math.prod(size for size in shape if isinstance(size, int))

    @cached_property
    def fixed(self) -> set[str]:
        """Tensors that depend on constants alone."""
        found = set(self.values)
        for node in self.nodes:
            names = {tensor.name for tensor in node.inputs if tensor.name}
            if names and not any(bodies(node)) and names <= found and not node.op.startswith("Random"):
                found.update(tensor.name for tensor in node.outputs if tensor.name)
        return found

    def operands(self, place: int) -> list[tuple[int, str]]:
        """What a node reads, and where; what its bodies capture comes last."""
        return self._operands[place]

    @cached_property
    def _operands(self) -> list[list[tuple[int, str]]]:
        found = []
        for node, (_, captured) in zip(self.nodes, self._described, strict=True):
            own = [(slot, tensor.name) for slot, tensor in enumerate(node.inputs) if tensor.name]
            found.append([*own, *((-1, name) for name in dict.fromkeys(captured))])
        return found

    def moving(self, place: int) -> list[tuple[int, str]]:
        """What a node reads that depends on the inputs of the model, and where."""
        return [(slot, name) for slot, name in self.operands(place) if name not in self.fixed]

    def is_computed(self, place: int) -> bool:
        """Whether a node reads something that is the same on each run and yet computed, such as a weight behind DQ."""
        return any(name in self.fixed and name not in self.values for _, name in self.operands(place))

    def roles(self, place: int) -> list[str]:
        """The name of each operand, as the specification has it."""
        node = self.nodes[place]
        names = operand_names(node.op, node.domain or "", self.version(node))
        return [names[i] if i < len(names) else f"input {i}" for i in range(len(node.inputs))]

    def version(self, node: Node) -> int:
        """Of the operators of its domain."""
        return self.graph.opsets.get(node.domain or "", 1)

    @cached_property
    def attributes(self) -> list[dict[str, str]]:
        """Of each node, as texts that do not depend on names; bodies by what they compute."""
        return [attributes for attributes, _ in self._described]

    def captured(self, place: int) -> list[str]:
        """What the bodies of a node read from the graph around them, body by body, as they first do."""
        return self._described[place][1]

    @cached_property
    def _described(self) -> list[tuple[dict[str, str], list[str]]]:
        return [self._describe(node) for node in self.nodes]

    def _describe(self, node: Node) -> tuple[dict[str, str], list[str]]:
        """The attributes of a node, and what is captured; of that the attributes tell only where it is read again."""
        found = self._attributes(node, str)
        captured: list[str] = []
        for name, value in sorted(node.attrs.items()) if any(bodies(node)) else ():
            seen: dict[str, str] = {}

            def outer(name: str, seen: dict[str, str] = seen) -> str:
                return seen.setdefault(name, self.values.get(name, f"outer {len(seen)}"))

            found[name] = of_attribute(value, outer)
            captured += seen
        return found, captured

    def _attributes(self, node: Node, outer: Outer) -> dict[str, str]:
        attributes = {} if node.op == "Constant" and node.outputs[0].name in self.constants else node.attrs
        return of_attributes(node.op, node.domain or "", self.version(node), attributes, outer)

    @cached_property
    def kinds(self) -> list[str]:
        """Operator and attributes of each node; of a Constant, its value too."""
        found = []
        for node, attributes in zip(self.nodes, self.attributes, strict=True):
            words = [word for pair in sorted(attributes.items()) for word in pair]
            held = self.values.get(node.outputs[0].name, "") if node.op == "Constant" and node.outputs else ""
            found.append(digest(node.op, node.domain or "", held, *words))
        return found

    @cached_property
    def local(self) -> list[str]:
        """Operator, attributes and constant operands of each node."""
        return [digest(self.kinds[place], *self._constants(place)) for place in range(len(self.nodes))]

    def _constants(self, place: int) -> list[str]:
        return [f"{slot} {self.values[name]}" for slot, name in self.operands(place) if name in self.values]

    @cached_property
    def _forward(self) -> tuple[list[str], dict[str, str]]:
        known = self.values | {tensor.name: self.ends[tensor.name] for tensor in self.graph.inputs}
        made = []
        for place, node in enumerate(self.nodes):
            inputs = [known.get(t.name, t.name and f"unknown {t.name}") for t in node.inputs]
            while inputs and not inputs[-1]:
                inputs.pop()
            kind = self.kinds[place]
            if any(slot < 0 for slot, _ in self.operands(place)):
                kind = digest(kind, *sorted(self._attributes(node, lambda name: known.get(name, name)).values()))
            made.append(digest(kind, *inputs))
            for index, tensor in enumerate(node.outputs):
                if tensor.name and tensor.name not in known:
                    known[tensor.name] = f"{made[-1]} {index}"
        return made, known

    @property
    def forward(self) -> list[str]:
        """A digest of all that leads to each node."""
        return self._forward[0]

    @property
    def sources(self) -> dict[str, str]:
        """A digest of all that leads to each tensor."""
        return self._forward[1]

    @cached_property
    def backward(self) -> list[str]:
        """A digest of all that comes after each node, up to the outputs of the model."""
        made = [""] * len(self.nodes)
        shown = {tensor.name: self.ends[f"> {tensor.name}"] for tensor in self.graph.outputs}
        for place in range(len(self.nodes) - 1, -1, -1):
            after = []
            for tensor in self.nodes[place].outputs:
                readers = [f"{slot} {made[reader]}" for reader, slot in self.readers.get(tensor.name, ())]
                after.append(digest(shown.get(tensor.name, ""), *sorted(readers)))
            while after and after[-1] == digest(""):
                after.pop()
            made[place] = digest(self.local[place], *after)
        return made

    @cached_property
    def holdings(self) -> list[int]:
        """Bytes of the weights that each node reads; of those that several read, the first one counts."""
        counted: set[str] = set()
        found = []
        for place in range(len(self.nodes)):
            names = {name for _, name in self.operands(place)} - counted
            counted |= names
            held = [t for name in names if (t := self.constants.get(name)) is not None and name not in self.makers]
            found.append(sum(int(tensor._values.nbytes) for tensor in held if isinstance(tensor, Constant)))
        return found


def prepare(first: Graph, second: Graph) -> tuple[Indexed, Indexed]:
    """Both sides of a comparison: their inputs and outputs are the same by name, else by place."""
    ends: tuple[dict[str, str], dict[str, str]] = {}, {}
    for mark in ("", "> "):
        sides = [[t.name for t in (graph.outputs if mark else graph.inputs)] for graph in (first, second)]
        for known, names, keys in zip(ends, sides, _aligned(*sides), strict=True):
            known.update((f"{mark}{name}", f"{mark}end {key}") for name, key in zip(names, keys, strict=True))
    return Indexed(first, ends[0]), Indexed(second, ends[1])


def _aligned(first: Sequence[str], second: Sequence[str]) -> tuple[list[str], list[str]]:
    """The same key for the same end: names that both have, then those at the same place among all."""
    shared = set(first) & set(second)
    renamed = len(first) == len(second)
    keys = [
        [name if name in shared else f"{place}th" if renamed else f"{side} {name}" for place, name in enumerate(names)]
        for side, names in enumerate((first, second))
    ]
    return keys[0], keys[1]
