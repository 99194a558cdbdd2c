"""Pattern tables: what a rewrite looks for, when it may fire, and what it puts in place.

A pattern is a picture of a small tree of operators, read from its last tensor backwards:

    Op("Relu", Op("Conv", Bind("x"), Bind("w")))

A `Rule` joins a pattern with guards and a build function. `apply` runs a table over a graph and yields a `Change` for
each edit and for each match that a guard refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxq.graph import Graph, Node, Tensor, Variable, is_constant


@dataclass(frozen=True)
class Change:
    """What a pass did to a node, or the sentence why it left it alone.

    Attributes:
        node: the node's name in the model before the pass.
        op: its operator.
        done: the operator that it became, or empty.
        reason: one sentence.
    """

    node: str
    op: str
    done: str
    reason: str


@dataclass
class Match:
    """Tensors and nodes that a pattern found, by the names that it gives them.

    `output` is the tensor that the picture ends in, once `apply` found it: what the replacement makes.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    output: Tensor = field(default_factory=lambda: Variable(""))

    def __getitem__(self, name: str) -> Tensor:
        """The tensor that was bound to this name; KeyError where an optional part is absent."""
        return self.tensors[name]

    def get(self, name: str) -> Tensor | None:
        """The tensor of this name, or None where an optional part is absent."""
        return self.tensors.get(name)

    def __or__(self, other: Match) -> Match:
        return Match(self.tensors | other.tensors, self.nodes | other.nodes)


class Pattern:
    """Something that a tensor can match."""

    def match(self, tensor: Tensor) -> Match | None:
        """What was bound, or None."""
        raise NotImplementedError


def maker(tensor: Tensor, kinds: str | tuple[str, ...], domain: str = "") -> Node | None:
    """The node whose first output is this tensor, where it is one of these operators."""
    node = tensor.inputs[0] if tensor.inputs else None
    if node is None or node.outputs[0] is not tensor or (node.domain or "") != domain:
        return None
    return node if node.op in ((kinds,) if isinstance(kinds, str) else kinds) else None


@dataclass(frozen=True)
class Bind(Pattern):
    """Any tensor, or any weight; remembered by name."""

    name: str
    constant: bool = False

    def match(self, tensor: Tensor) -> Match | None:
        """Binds the tensor itself."""
        if not tensor.name or (self.constant and not is_constant(tensor)):
            return None
        return Match({self.name: tensor})


@dataclass(frozen=True)
class Missing(Pattern):
    """An optional input that may be left out, or match a pattern."""

    inner: Pattern

    def match(self, tensor: Tensor) -> Match | None:
        """Nothing bound where the input is left out."""
        return Match() if not tensor.name else self.inner.match(tensor)


@dataclass(frozen=True)
class Op(Pattern):
    """A tensor made by one of some operators.

    Attributes:
        kinds: operator names.
        inputs: a pattern for each input; trailing `Missing` ones may be absent. None at all fits any inputs.
        name: what to call the node in the match; its operator where empty.
        domain: the operator's domain.
        swap: whether the first two inputs may come in either order.
    """

    kinds: str | tuple[str, ...]
    inputs: tuple[Pattern, ...] = ()
    name: str = ""
    domain: str = ""
    swap: bool = False

    def match(self, tensor: Tensor) -> Match | None:
        """Binds the node, and all that its inputs bind."""
        node = maker(tensor, self.kinds, self.domain)
        if node is None:
            return None
        found = self._match_inputs(node.inputs)
        if found is None and self.swap and len(node.inputs) > 1:
            found = self._match_inputs([node.inputs[1], node.inputs[0], *node.inputs[2:]])
        return None if found is None else Match(found.tensors, {(self.name or node.op): node} | found.nodes)

    def _match_inputs(self, tensors: Sequence[Tensor]) -> Match | None:
        if self.inputs and any(extra.name for extra in tensors[len(self.inputs) :]):
            return None
        found = Match()
        for index, pattern in enumerate(self.inputs):
            if index >= len(tensors):
                if not isinstance(pattern, Missing):
                    return None
                continue
            part = pattern.match(tensors[index])
            if part is None:
                return None
            found = found | part
        return found


@dataclass(frozen=True)
class Each(Pattern):
    """An operator with any number of inputs, each of which matches a pattern made from its place."""

    kinds: str | tuple[str, ...]
    make: Callable[[int], Pattern]

    def match(self, tensor: Tensor) -> Match | None:
        """Binds what every input binds."""
        node = maker(tensor, self.kinds)
        if node is None:
            return None
        found = Match({}, {node.op: node})
        for index, item in enumerate(node.inputs):
            part = self.make(index).match(item)
            if part is None:
                return None
            found = found | part
        return found


@dataclass(frozen=True)
class Either(Pattern):
    """The first of several patterns that matches."""

    choices: tuple[Pattern, ...]

    def match(self, tensor: Tensor) -> Match | None:
        """What the first matching choice binds."""
        return next((found for choice in self.choices if (found := choice.match(tensor)) is not None), None)


@dataclass(frozen=True)
class Around(Pattern):
    """One operator whose first input matches a pattern, whatever its other inputs are."""

    kinds: str | tuple[str, ...]
    inner: Pattern
    name: str

    def match(self, tensor: Tensor) -> Match | None:
        """Binds the node by the name that the pattern gives it."""
        node = maker(tensor, self.kinds)
        if node is None or not node.inputs:
            return None
        found = self.inner.match(node.inputs[0])
        return None if found is None else found | Match({}, {self.name: node})


Guard = Callable[[Match, Graph, Any], str | None]
Build = Callable[[Match, Graph, Any], None]


@dataclass(frozen=True)
class Rule:
    """One row of a rewrite table.

    Attributes:
        name: what the row is about; it becomes `Change.done`.
        pattern: the picture.
        build: adds the nodes that make `match.output` instead.
        when: guards; each returns None, or the sentence why not.
        node: which matched node the row is about.
    """

    name: str
    pattern: Pattern
    build: Build
    node: str
    when: tuple[Guard, ...] = ()


def apply(rules: Sequence[Rule], graph: Graph, context: Any) -> Iterator[Change]:
    """Try every rule at every tensor, in the order of the graph; earlier rules win.

    The matched tensor keeps its readers. Inner nodes that somebody else reads stay, the others are dropped.
    """
    refused: dict[str, Change] = {}
    for rule in rules:
        for node in list(graph.nodes):
            found = rule.pattern.match(node.outputs[0]) if node.outputs else None
            if found is None:
                continue
            subject = found.nodes[rule.node]
            name, op = subject.name, subject.op
            obstacle = next((why for guard in rule.when if (why := guard(found, graph, context)) is not None), None)
            if obstacle is not None:
                refused[name] = Change(name, op, "", obstacle)
                continue
            found.output = node.outputs[0]
            node.inputs.clear()
            node.outputs.clear()
            rule.build(found, graph, context)
            refused.pop(name, None)
            yield Change(name, op, rule.name, f"{op} becomes {rule.name}.")
        graph.tidy()  # a later rule must not match what this one left behind
    yield from refused.values()


def replace_output(graph: Graph, node: Node, new: Tensor) -> None:
    """Let `new` stand where the first output of `node` stood, under the old name where that name is promised."""
    old = node.outputs[0]
    if new is old:
        return
    if graph.kept(old) and new.inputs and not graph.kept(new):
        maker = new.inputs[0]
        graph.remove(node)
        index = next(i for i, t in enumerate(maker.outputs) if t is new)
        readers = list(new.outputs)
        maker.outputs[index] = old
        graph.redirect(new, old, readers=readers)
        return
    graph.redirect(old, new)
    if not graph.kept(old):
        graph.remove(node)
