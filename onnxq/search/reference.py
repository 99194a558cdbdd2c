"""What a float model returns for some samples, and the noise that another model adds to it.

Noise over signal is 10**(-SQNR / 10): the sum of squares of the error over that of the float values. Padding does not
count, and neither does what is NaN, infinite or nearly so in the float model: attention masks hold the lowest float.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxq.calibration.collect import unmasked
from onnxq.calibration.data import Data, mask_of
from onnxq.runtime import Feeds

REMEMBERED = 1 << 28
"""Bytes of float outputs that are kept in memory; past that, no further sample is taken."""

HUGE = 1e30
"""Float values beyond this are no signal."""

Array = np.ndarray[Any, Any]
Run = Callable[[Feeds, Sequence[str]], Mapping[str, Array]]
"""Runs a model on one batch; returns the outputs of these names."""


@dataclass
class Sums:
    """Running sums of signal and noise of several tensors, as powers."""

    signal: dict[str, float] = field(default_factory=dict)
    noise: dict[str, float] = field(default_factory=dict)

    def add(self, reference: Mapping[str, Array], values: Mapping[str, Array], feeds: Feeds) -> None:
        """Take in one batch of what the float model returns and of what another model returns in its place."""
        mask = mask_of(feeds)
        for name, expected in reference.items():
            expected, got = unmasked(expected, mask), unmasked(values[name], mask)
            self.signal[name] = self.signal.get(name, 0.0) + signal_power(expected)
            self.noise[name] = self.noise.get(name, 0.0) + error_power(expected, got)

    def ratios(self) -> dict[str, float]:
        """Noise over signal of each tensor that is not all zeros."""
        return {name: self.noise[name] / signal for name, signal in self.signal.items() if signal > 0}


def signal_power(values: Array) -> float:
    """Sum of squares of the values that are no mask."""
    return float(np.sum(np.square(values[np.abs(values) < HUGE], dtype=np.float64)))


def error_power(reference: Array, values: Array) -> float:
    """Sum of squares of the error where the reference is no mask; infinite where an error is, or the shapes differ."""
    if reference.shape != values.shape:
        return np.inf
    usable = np.abs(reference) < HUGE
    with np.errstate(over="ignore", invalid="ignore"):
        error = values[usable] - reference[usable]
    return float(np.sum(np.square(error, dtype=np.float64))) if np.isfinite(error).all() else np.inf


def worst(noise: Mapping[str, float]) -> float:
    """The largest noise over signal; 0 where there is nothing to compare."""
    return max(noise.values(), default=0.0)


@dataclass(frozen=True)
class Reference:
    """Feeds of some samples, and the float outputs for them."""

    batches: tuple[tuple[Feeds, Mapping[str, Array]], ...]

    def noise(self, run: Run) -> dict[str, float]:
        """Noise over signal of each float output when the same samples go through another model."""
        sums = Sums()
        for feeds, outputs in self.batches:
            sums.add(outputs, run(feeds, list(outputs)), feeds)
        return sums.ratios()


def remember(run: Run, outputs: Iterable[str], data: Data, samples: int, most: int = REMEMBERED) -> Reference:
    """Run the float model on the first samples, in batches as the data comes, and keep its float outputs.

    Args:
        run: the float model.
        outputs: names of its outputs.
        data: where the samples come from.
        samples: how many at most.
        most: bytes of outputs; the batch that goes past them is the last one.
    """
    names = list(outputs)
    known: list[tuple[Feeds, Mapping[str, Array]]] = []
    held = 0
    for feeds in data.take(slice(0, samples)).batches():
        kept = {name: value for name, value in run(feeds, names).items() if value.dtype.kind == "f"}
        known.append((feeds, kept))
        held += sum(value.nbytes for value in kept.values())
        if held > most:
            break
    return Reference(tuple(known))
