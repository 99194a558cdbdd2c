"""What a comparison of two graphs finds. Each record is a frozen value that prints as JSON."""

from __future__ import annotations

from typing import Literal

from onnxq.plan import Record

Kind = Literal["inserted", "removed", "replaced", "changed"]
"""Nodes of the second graph alone, of the first alone, others in their place, or the same one set otherwise."""

Aspect = Literal["retyped", "requantized", "weights", "attributes", "rewired"]
"""What about a node is different."""

Alarm = Literal["inserted", "removed", "replaced", "changed", "interface", "precision"]
"""What a pipeline may refuse."""


class TensorView(Record):
    """A tensor of one graph.

    Attributes:
        type: element type and shape, as far as they are known: `float32[1, 8, 28, 28]`.
        bytes: of a weight, as it is stored; 0 for all others.
        value: of a small weight; empty for all others.
    """

    type: str
    bytes: int = 0
    value: str = ""


class NodeView(Record):
    """A node of one graph.

    Attributes:
        name: its name, or one made of its operator and place.
        op: its operator, with the domain before it where that is not the standard one.
        inputs: names of tensors; an empty one is left out.
        outputs: likewise.
        captured: names of tensors that its bodies read.
        attributes: as text.
        grids: how operands become integers: `uint8, scale 0.0235, zero point 128`, by their name.
        bytes: of the weights that it reads; of those that several nodes read, the first one counts.
    """

    name: str
    op: str
    inputs: list[str]
    outputs: list[str]
    captured: list[str] = []
    attributes: dict[str, str] = {}
    grids: dict[str, str] = {}
    bytes: int = 0


class ModelView(Record):
    """One of the two graphs.

    Attributes:
        name: of its file.
        opsets: version of each operator domain.
        inputs: one line for each.
        outputs: one line for each.
        weight_bytes: of all weights.
        nodes: in an order in which they can run.
        tensors: by name.
    """

    name: str
    opsets: dict[str, int]
    inputs: list[str]
    outputs: list[str]
    weight_bytes: int
    nodes: list[NodeView]
    tensors: dict[str, TensorView]


class Detail(Record):
    """One difference between two nodes.

    Attributes:
        aspect: of which kind.
        name: of the attribute, operand or output.
        before: how it was.
        after: how it is.
        max_difference: largest difference between numbers that stand for the same; None where that says nothing.
    """

    aspect: Aspect
    name: str
    before: str
    after: str
    max_difference: float | None = None


class Edit(Record):
    """Nodes that are different in the two graphs; every node is in one edit at most.

    Attributes:
        kind: what happened.
        before: names of nodes of the first graph, the main one first.
        after: names of nodes of the second graph, the main one first.
        matched_by: how it is known that they belong together; empty for what was inserted or removed.
        details: what is different about the main ones.
        precision: whether numbers are stored or rounded otherwise.
        bytes_before: of the weights of the nodes before.
        bytes_after: of those after.
    """

    kind: Kind
    before: list[str] = []
    after: list[str] = []
    matched_by: str = ""
    details: list[Detail] = []
    precision: bool = False
    bytes_before: int = 0
    bytes_after: int = 0


class InterfaceChange(Record):
    """What those notice who only run the model.

    Attributes:
        what: input, output, opset or metadata.
        name: of the tensor, the domain or the key.
        before: as it was; empty where there was none.
        after: as it is; empty where there is none.
    """

    what: Literal["input", "output", "opset", "metadata"]
    name: str
    before: str
    after: str


class GraphDiff(Record):
    """What is different between two graphs.

    Attributes:
        before: the first one.
        after: the second one.
        interface: what those notice who only run the model.
        edits: in the order of the graphs.
        kept: pairs of nodes, first and second graph, that are the same but for their names.
        counts: nodes kept, and edits of each kind and aspect.
    """

    before: ModelView
    after: ModelView
    interface: list[InterfaceChange]
    edits: list[Edit]
    kept: list[tuple[str, str]]
    counts: dict[str, int]

    @property
    def empty(self) -> bool:
        """Whether there is no difference at all."""
        return not self.interface and not self.edits

    def raises(self, alarm: Alarm) -> bool:
        """Whether the graphs differ in this way."""
        if alarm == "interface":
            return any(change.what in ("input", "output") for change in self.interface)
        if alarm == "precision":
            return any(edit.precision for edit in self.edits)
        return any(edit.kind == alarm for edit in self.edits)
