"""What a model takes and returns: name, element type and shape of each input and output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Dimension = int | str | None
"""A fixed size, the name of a symbolic size, or None where nothing is known."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: the name in the graph.
        dtype: the NumPy element type; `object` for strings.
        shape: one `Dimension` per axis; None where not even the rank is known.
    """

    name: str
    dtype: np.dtype
    shape: tuple[Dimension, ...] | None

    def __str__(self) -> str:
        """`pixels: float32[batch, 3, 224, 224]`, as errors and tables print it."""
        shape = "[...]" if self.shape is None else f"[{', '.join('?' if d is None else str(d) for d in self.shape)}]"
        return f"{self.name}: {self.dtype}{shape}"


@dataclass(frozen=True)
class Interface:
    """The inputs and outputs of a model, in order. Two models are interchangeable when theirs are equal."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def describe(specs: Sequence[TensorSpec]) -> str:
    """The specs in one line, for an error message."""
    return ", ".join(str(spec) for spec in specs)
