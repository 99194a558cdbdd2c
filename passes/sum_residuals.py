"""The sum before a LayerNormalization, written so that the runtime does not fuse the two."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxq.graph import Graph, Node, is_constant
from onnxq.pipeline import Context, Exact, Promise
from onnxq.rewrite import Change
from onnxq.spec import Fact

NORMS = (frozenset({"LayerNormalization"}), frozenset({"ReduceMean", "Sub"}))
"""Who reads the sum: a normalization, or the first operators of one that is spelled out."""


@dataclass(frozen=True)
class SumResiduals:
    """Write the Add before a LayerNormalization as Sum.

        LayerNormalization(Add(x, y)) => LayerNormalization(Sum(x, y))

    Both mean the same. Where it knows the shapes, the runtime makes Add and LayerNormalization one operator,
    SkipLayerNormalization, whose CPU kernel takes three to nine times as long as the two. Leaves an Add alone that
    anybody else reads, since that is not fused, and one of a constant.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset()
    gives: ClassVar[frozenset[Fact]] = frozenset()
    promise: ClassVar[Promise] = Exact()

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each sum."""
        for node in [n for n in graph.nodes if n.op == "Add" and not n.domain]:
            if not _before_norm(node):
                continue
            obstacle = _obstacle(graph, node)
            if obstacle is None:
                node.op = "Sum"
                yield Change(node.name, "Add", "Sum", "SkipLayerNormalization is slower than what it fuses.")
            else:
                yield Change(node.name, "Add", "", obstacle)


def _before_norm(node: Node) -> bool:
    readers = frozenset(reader.op for reader in node.outputs[0].outputs if not reader.domain)
    return readers in NORMS


def _obstacle(graph: Graph, node: Node) -> str | None:
    if graph.opset < 8:
        return f"Before opset 8, Sum wants operands of one shape; the model has opset {graph.opset}."
    if any(is_constant(tensor) for tensor in node.inputs):
        return "It adds a constant."
    return None if node.inputs[0].dtype == np.float32 else f"It adds {node.inputs[0].dtype}; only float32 is fused."
