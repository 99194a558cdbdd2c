"""Take out operators that return what they read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from onnxq.graph import Graph, Node, is_constant, weight
from onnxq.pipeline import Context, Exact, Promise
from onnxq.rewrite import Change, replace_output
from onnxq.spec import Fact


@dataclass(frozen=True)
class RemoveIdentity:
    """Let readers read the source.

        Dropout(Identity(x)) => x

    Leaves alone an identity between an input, a weight or a shared tensor and an output of the model: both names are
    promised.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset()
    gives: ClassVar[frozenset[Fact]] = frozenset()
    promise: ClassVar[Promise] = Exact()

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each node that is taken out."""
        for node in list(graph.nodes):
            if not does_nothing(node) or any(t.name and (t.outputs or graph.kept(t)) for t in node.outputs[1:]):
                continue
            source, name, op = node.inputs[0], node.name, node.op
            if graph.kept(node.outputs[0]) and (not source.inputs or graph.kept(source)):
                continue
            replace_output(graph, node, source)
            yield Change(name, op, "nothing", f"{op} returns what it reads.")


def does_nothing(node: Node) -> bool:
    """Whether the operator returns its first input at inference."""
    if node.domain or not node.inputs or not node.inputs[0].name:
        return False
    if node.op == "Dropout":
        training = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
        return training is None or (is_constant(training) and not bool(weight(training)))
    return node.op == "Identity"
