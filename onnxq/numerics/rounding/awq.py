"""AWQ: channels that matter are scaled up before they are rounded, and their inputs down.

    y = x w^T = (x / s) (w * s)^T          s = mean|x|^r / sqrt(max * min)

A weight that is large beside the others of its block loses little. Lin et al., AWQ: Activation-aware Weight
Quantization for LLM Compression and Acceleration, arXiv:2306.00978, section 3.2. Its search for clipped ranges is the
least-squares fit of `blocks.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxq.numerics.rounding.output_error import output_error

FloatArray = NDArray[np.float32]

STRENGTHS = tuple(round(0.05 * i, 2) for i in range(1, 20))
"""How far a channel's factor follows the size of its input; 0 is no factors at all."""

LEAST = 1e-4
"""No channel counts as smaller than this share of the largest: unseen data may wake it up."""


def awq_factors(
    weights: Sequence[ArrayLike],
    magnitude: ArrayLike,
    gram: ArrayLike,
    rounded: Callable[[NDArray[Any]], ArrayLike],
) -> tuple[FloatArray, float]:
    """The factors that leave the least error at the outputs of all layers that share an input.

    Args:
        weights: (outputs, inputs) of each layer.
        magnitude: (inputs,), the mean absolute value of each input.
        gram: (inputs, inputs), sum of x^T x.
        rounded: what becomes of a weight (outputs, inputs).

    Returns:
        Factors (inputs,), with six digits, and the error that they leave as a share of that without; 1 where none help.
    """
    size = np.asarray(magnitude, np.float64)
    size = np.maximum(size, LEAST * size.max(initial=0.0)) if size.any() else np.ones_like(size)

    def error(factors: NDArray[Any]) -> float:
        found = 0.0
        for weight in weights:
            exact = np.asarray(weight, np.float32)
            seen = np.asarray(rounded(exact * factors)) / factors
            found += float(output_error(seen, exact, gram).sum())
        return found

    best, least = np.ones(size.shape, np.float32), error(np.ones(size.shape, np.float32))
    before = least
    for strength in STRENGTHS:
        raw = size**strength
        factors = _six_digits(raw / np.sqrt(raw.max() * raw.min()))
        found = error(factors)
        if found < least:
            best, least = factors, found
    return best, least / before if before > 0 else 1.0


def _six_digits(values: NDArray[Any]) -> FloatArray:
    """As a plan holds them."""
    return np.array([float(f"{value:.6g}") for value in values], np.float32)
