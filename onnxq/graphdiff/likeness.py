"""Weights of two graphs that stand for the same numbers: equal, transposed, rescaled, halved or quantized.

A layer is known by a sample of its weight, each output channel at a length of 1: folding a norm into a convolution
changes nothing about it then, and rounding little.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from onnxq.diagnosis.constants import Constants
from onnxq.diagnosis.stored import Reader, StoredLayer
from onnxq.graph import Array
from onnxq.graphdiff.families import family
from onnxq.graphdiff.indexed import Indexed

CHANNELS, ENTRIES = 16, 32
"""How many output channels of a weight are looked at, and how many numbers of each."""

LEAST_COSINE = 0.5
"""Of samples that are long; short ones are alike by chance more easily."""

LONG = 128
"""Numbers from which on a sample is long."""

MOST = 1500
"""Layers of one shape that are compared with each other; a model with more of them has names, or none to tell."""


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights of the layers of one side, as a layer sees them, whatever they are stored as."""

    side: Indexed
    _seen: dict[int, tuple[tuple[int, ...] | None, Array | None]] = field(default_factory=dict)

    @cached_property
    def constants(self) -> Constants:
        """What is computed from constants alone."""
        return Constants(self.side.graph)

    def layer(self, place: int) -> StoredLayer | None:
        """The layer that a node is, its weight read for this call alone; None where it is none, or breaks the rules."""
        node = self.side.nodes[place]
        if family(node.op) not in ("Conv", "MatMul"):
            return None
        reader = Reader(replace(self.side.graph, nodes=[node]), self.constants, {})
        try:
            return next(reader.layers(), None) or next(reader.float_layers(), None)
        except (IndexError, KeyError, RecursionError, TypeError, ValueError):  # nothing to be known by
            return None

    def sample(self, place: int) -> Array | None:
        """Of the weight of a layer."""
        return self._look(place)[1]

    def shape(self, place: int) -> tuple[int, ...] | None:
        """Of the weight of a layer; None where a node has none."""
        return self._look(place)[0]

    def _look(self, place: int) -> tuple[tuple[int, ...] | None, Array | None]:
        if place not in self._seen:
            layer = self.layer(place)
            self._seen[place] = (None, None) if layer is None else (layer.weight.values.shape, sample(layer))
        return self._seen[place]


def sample(layer: StoredLayer) -> Array:
    """Some numbers of a weight, spread over it; the channels are alike in length, and so is the whole."""
    values = layer.weight.values
    rows = values if layer.is_convolution else np.moveaxis(values, -1, 0)
    rows = rows.reshape(rows.shape[0], -1) if rows.size else np.zeros((1, 1), np.float32)
    few = rows[np.ix_(_spread(rows.shape[0], CHANNELS), _spread(rows.shape[1], ENTRIES))].astype(np.float64)
    lengths = np.linalg.norm(few, axis=1, keepdims=True)
    few = few / np.where(lengths > 0, lengths, 1)
    return np.asarray(few.ravel() / max(float(np.linalg.norm(few)), 1e-30))


def _spread(size: int, most: int) -> Array:
    return np.unique(np.linspace(0, size - 1, min(size, most)).astype(int))


def alike(first: Weights, second: Weights, free: tuple[Sequence[int], Sequence[int]]) -> Iterator[tuple[int, int]]:
    """Pairs of layers that are alike, the surest first; a name in common decides between two that are as much so."""
    groups: dict[tuple[str, tuple[int, ...]], tuple[list[int], list[int]]] = {}
    for side, (weights, places) in enumerate(((first, free[0]), (second, free[1]))):
        for place in places:
            if (shape := weights.shape(place)) is not None:
                key = (family(weights.side.nodes[place].op), shape)
                groups.setdefault(key, ([], []))[side].append(place)
    found: list[tuple[float, int, int]] = []
    for ones, others in groups.values():
        if ones and others and max(len(ones), len(others)) <= MOST:
            found += _scored(first, second, ones, others)
    taken: tuple[set[int], set[int]] = set(), set()
    for _, one, other in sorted(found, key=lambda item: (-item[0], item[1], item[2])):
        if one not in taken[0] and other not in taken[1]:
            taken[0].add(one)
            taken[1].add(other)
            yield one, other


def _scored(first: Weights, second: Weights, ones: list[int], others: list[int]) -> Iterator[tuple[float, int, int]]:
    left, right = (
        np.stack([found for place in places if (found := weights.sample(place)) is not None])
        for weights, places in ((first, ones), (second, others))
    )
    cosines = left @ right.T
    least = max(LEAST_COSINE, 1 - left.shape[1] / LONG)
    for i, j in zip(*np.nonzero(cosines >= least), strict=True):
        one, other = first.side.nodes[ones[i]], second.side.nodes[others[j]]
        named = one.name == other.name or one.outputs[0].name == other.outputs[0].name
        yield float(round(cosines[i, j], 3)) + 0.5 * named, ones[i], others[j]
