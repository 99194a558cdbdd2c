"""Factors by which a tool rescaled the channels of a weight before it rounded it, found from the weight alone.

    changed[o, i] ~ output[o] * exact[o, i] * input[i]

Cross-layer equalization and SmoothQuant do so; the function of the model stays the same, but a weight that was rounded
and rescaled is not to be compared with the float weight as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]

FAR_SMALLER = 0.3
"""Factors are believed where they leave less than this share of the squared difference (5 dB)."""

ROUNDING = 1e-5
"""A smaller share of squared difference is less than rounding to 8 bits leaves, and hides no factors worth a word."""

UNEXPLAINED = 0.05
"""The share of the weight that rounding may leave unexplained."""

TOLD = 2.0
"""Where the layer before tells the factors of the inputs, less evidence will do: so many times as much may be left."""

MUCH_THE_SAME = 1.5
"""Factors on one side are preferred to both where they leave no more than so many times as much."""

NUMBERS_PER_FACTOR = 4
"""A weight that has fewer numbers for each factor could be explained by factors whatever happened to it."""

ROUNDS = 30
"""Alternations between the two sides; they converge linearly."""


@dataclass(frozen=True, eq=False)
class Factors:
    """How the channels of a weight were rescaled.

    Attributes:
        output: (outputs,), all above 0.
        input: (inputs,) over all groups, all above 0.
    """

    output: Float64Array
    input: Float64Array

    def removed(self, changed: NDArray[Any], groups: int = 1) -> NDArray[np.float32]:
        """The weight without the factors; it is shaped (outputs, inputs / groups, ...)."""
        blocks = _blocks(changed, groups)
        plain = blocks / self.output.reshape(groups, -1, 1, 1) / self.input.reshape(groups, 1, -1, 1)
        return plain.reshape(changed.shape).astype(np.float32)


def find_factors(
    exact: NDArray[Any], changed: NDArray[Any], groups: int = 1, known_input: NDArray[Any] | None = None
) -> Factors | None:
    """The factors between two weights of shape (outputs, inputs / groups, ...); None where none explain the difference.

    One side alone is preferred to both, since outputs * c and inputs / c are the same weight: then the geometric mean
    of the output factors is set to 1. Channels that became all zeros keep the factor 1.

    Args:
        exact: the float weight.
        changed: the weight as it was stored, dequantized.
        groups: of a grouped convolution.
        known_input: factors of the input channels where the layer before tells them; then only outputs are searched,
            and the difference need not be explained as well: it was rescaled, or it would not fit that layer.
    """
    a, b = _blocks(exact, groups), _blocks(changed, groups)
    reach = np.sqrt(np.sum(b * b, axis=(2, 3), keepdims=True))
    a, b = (part / np.where(reach > 0, reach, 1.0) for part in (a, b))  # else one large channel would decide alone
    a = a * b.any(axis=(2, 3), keepdims=True) * b.any(axis=(1, 3), keepdims=True)  # what was erased says nothing
    before = float(np.sum((b - a) ** 2))
    total = float(np.sum(b * b))
    if before <= ROUNDING * total:
        return None
    inputs = np.ones(groups * a.shape[2]) if known_input is None else np.asarray(known_input, np.float64)
    start = inputs.reshape(groups, 1, -1, 1)
    tries = [(_ratio(a * start, b, 2), start)]
    if known_input is None:
        tries.insert(0, (np.ones((groups, a.shape[1], 1, 1)), _ratio(a, b, 1)))
        tries.append(_both(a, b, *tries[-1]))
    left = [float(np.sum((b - output * a * inputs) ** 2)) for output, inputs in tries]
    bar = 1.0 if known_input is None else TOLD
    for (output, inputs), own in zip(tries, left, strict=True):
        searched = sum(side.size for side in (output, inputs) if side is not start and np.any(side != 1))
        explains = own < bar * min(FAR_SMALLER * before, UNEXPLAINED * total) and own <= MUCH_THE_SAME * min(left)
        if explains and a.size >= NUMBERS_PER_FACTOR * searched:
            return Factors(output.reshape(-1), inputs.reshape(-1))
    return None


def _blocks(weight: NDArray[Any], groups: int) -> Float64Array:
    """(groups, outputs of a group, inputs of a group, kernel)."""
    return weight.astype(np.float64).reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _ratio(a: Float64Array, b: Float64Array, axis: int) -> Float64Array:
    """The least-squares factor from a to b along an axis that is summed away, and the kernel; 1 where there is none."""
    dot, norm = (np.sum(part, axis=(axis, 3), keepdims=True) for part in (a * b, a * a))
    return np.asarray(np.where((dot > 0) & (norm > 0), dot / np.where(norm > 0, norm, 1.0), 1.0))


def _both(a: Float64Array, b: Float64Array, output: Float64Array, inputs: Float64Array) -> tuple[Any, Any]:
    for _ in range(ROUNDS):
        inputs = _ratio(a * output, b, 1)
        output = _ratio(a * inputs, b, 2)
    gauge = np.exp(np.mean(np.log(output)))
    return output / gauge, inputs * gauge
