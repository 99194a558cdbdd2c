"""Compute once what does not depend on the input."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxq.graph import Constant, Graph, Later, Node, Tensor, bodies, evaluate, is_constant, stored_value, weight
from onnxq.pipeline import Close, Context, Promise
from onnxq.rewrite import Change
from onnxq.spec import Fact
from onnxq.views import is_lazy, view

KEPT = frozenset(
    {
        "DequantizeLinear",
        "Dropout",
        "RandomNormal",
        "RandomUniform",
        "RandomNormalLike",
        "RandomUniformLike",
        "Bernoulli",
        "Multinomial",
        "Optional",
        "SequenceConstruct",
        "SequenceErase",
        "SequenceInsert",
        "SplitToSequence",
    }
)
"""Operators whose results no constant can stand for: quantized weights, dice, and what is no tensor."""


@dataclass(frozen=True)
class FoldConstants:
    """Replace operators that read only constants by their result.

        Transpose(w) => w'        Constant() => w

    A large weight that lies in a file is not read for this: what is the same numbers in another shape, order or width
    becomes a handle. Leaves alone what makes the file grow (a large ConstantOfShape, Expand or Tile), dequantized
    weights, random numbers and control flow.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset()
    gives: ClassVar[frozenset[Fact]] = frozenset()
    promise: ClassVar[Promise] = Close(rtol=1e-6)

    small: int = 4096

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each node that is computed now."""
        folded: list[Node] = []
        for node in graph.nodes:
            if node.op == "Constant":
                values = [stored_value(node)]
            elif self._foldable(graph, node):
                seen = self._view(node)
                values = [seen] if seen is not None else list(evaluate(graph, node) or [])
            else:
                continue
            if any(graph.kept(t) for t in node.outputs) or len(values) != len(node.outputs):
                continue
            if any(value is None or (node.op != "Constant" and value.nbytes > self._most(node)) for value in values):
                continue
            for tensor, value in zip(node.outputs, values, strict=True):
                graph.redirect(tensor, Constant(tensor.name, value))
            folded.append(node)
        graph.remove(*folded)
        for node in folded:
            if node.op != "Constant":
                yield Change(node.name, node.op, "constant", "Reads only constants.")

    def _foldable(self, graph: Graph, node: Node) -> bool:
        read = [t for t in node.inputs if t.name]
        if not read or node.op in KEPT or (node.domain or "") or any(bodies(node)):
            return False
        if not all(is_constant(t) and t.dtype != np.dtype(object) for t in read) or graph.opset < 7:
            return False
        if any(_numbers(t) > self._most(node) for t in node.outputs):  # not even computed: memory may not hold it
            return False
        return node.op != "ConstantOfShape" or float(np.prod(weight(read[0]).astype(np.float64))) <= self.small / 8

    def _view(self, node: Node) -> Later | None:
        """The result of a node as a handle, where it reads a large weight that is not in memory."""
        data = node.inputs[0]
        return view(node) if isinstance(data, Constant) and is_lazy(data, self.small) else None

    def _most(self, node: Node) -> int:
        """Bytes that a result may have: as many as the node reads, twice for a wider type, or few."""
        return max(self.small, 2 * sum(_size(t) for t in node.inputs if t.name))


def _numbers(tensor: Tensor) -> int:
    """How many numbers a tensor holds, as far as its shape tells."""
    return math.prod(size for size in tensor.shape or () if isinstance(size, int))


def _size(constant: Tensor) -> int:
    """Bytes of the values in memory."""
    return math.prod(constant.shape or ()) * np.dtype(constant.dtype).itemsize  # type: ignore[arg-type]
