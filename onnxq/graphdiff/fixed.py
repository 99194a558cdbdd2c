"""Tensors that hold the same on each run: stored in the model, or computed from what is."""

from __future__ import annotations

from dataclasses import dataclass

from onnxq.graph import Array, weight
from onnxq.graphdiff.fingerprints import of_values
from onnxq.graphdiff.indexed import Indexed
from onnxq.graphdiff.likeness import Weights


@dataclass(frozen=True, eq=False)
class FixedValues:
    """Compares them by their values.

    Attributes:
        sides: both graphs.
        weights: of both sides.
    """

    sides: tuple[Indexed, Indexed]
    weights: tuple[Weights, Weights]

    def same(self, left: str, right: str) -> bool:
        """Whether two tensors, each of its side, always hold the same."""
        first, second = self.sides
        if left not in first.fixed or right not in second.fixed:
            return False
        if first.sources.get(left) == second.sources.get(right):
            return True
        one, other = self.value(0, left), self.value(1, right)
        return one is not None and other is not None and of_values(one) == of_values(other)

    def value(self, side: int, name: str) -> Array | None:
        """What a tensor always holds; None where it depends on an input, or cannot be computed."""
        indexed = self.sides[side]
        if name in indexed.constants:
            return weight(indexed.constants[name])
        if name not in indexed.fixed or name not in indexed.makers:
            return None
        made = indexed.nodes[indexed.makers[name]].outputs
        try:
            return self.weights[side].constants.value(next(tensor for tensor in made if tensor.name == name))
        except RecursionError:  # a chain of a thousand constants
            return None
