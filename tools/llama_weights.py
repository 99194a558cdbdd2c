"""What fills the weights of a Llama-shaped decoder, a piece at a time: random values, and tables of rotary angles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

CHUNK = 2**22
"""Values that are in memory at a time."""


@dataclass(frozen=True)
class Normal:
    """Random values of a mean and a standard deviation."""

    shape: tuple[int, ...]
    deviation: float
    mean: float = 0.0

    def chunks(self, random: np.random.Generator) -> Iterator[Array]:
        """The values in order, in float32, a piece at a time; a piece is overwritten by the next one."""
        left = int(np.prod(self.shape))
        values = np.empty(min(left, CHUNK), np.float32)
        while left:
            piece = values[: min(left, CHUNK)]
            random.standard_normal(dtype=np.float32, out=piece)
            piece *= np.float32(self.deviation)
            piece += np.float32(self.mean)
            yield piece
            left -= len(piece)


@dataclass(frozen=True)
class Rotary:
    """A table [position, head] of the cosine or the sine of position * theta^(-2i / head), i < head / 2, twice over.

    Source: Su et al., https://arxiv.org/abs/2104.09864.
    """

    shape: tuple[int, int]
    theta: float
    function: Callable[[Array], Array]

    def chunks(self, random: np.random.Generator) -> Iterator[Array]:
        """The whole table in float32, which is small; nothing in it is random."""
        positions, head = self.shape
        frequencies = self.theta ** (-np.arange(0, head, 2) / head)
        half = self.function(np.arange(positions)[:, None] * frequencies)
        yield np.concatenate([half, half], axis=1).astype(np.float32).ravel()


Weight = Normal | Rotary
