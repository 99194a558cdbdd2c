"""Where integer dot products overflow on processors without VNNI.

There, two products of an unsigned activation and a signed weight are added in 16 bits that saturate (vpmaddubsw):

    y = sum over pairs of clip(x0 w0 + x1 w1, -32768, 32767)

Zero points are not subtracted before, so an activation is 0..255. Weights of 7 bits (|w| <= 64) never overflow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LOW, HIGH = -(2**15), 2**15 - 1
"""What 16 bits hold."""

LARGEST = 255
"""The largest activation."""


def saturated(x: NDArray[Any], weight: NDArray[Any]) -> NDArray[np.bool_]:
    """Which outputs of a matrix product hold a pair that overflows.

    Args:
        x: (rows, depth), 0..255, as they are stored: the zero point not subtracted.
        weight: (depth, outputs), -128..127. Neighbours along depth are added in pairs: 0 and 1, 2 and 3, ...

    Returns:
        (rows, outputs).

    Raises:
        ValueError: the depths differ.
    """
    if x.shape[1] != weight.shape[0]:
        raise ValueError(f"rows of {x.shape[1]} numbers do not fit a weight of depth {weight.shape[0]}.")
    odd = x.shape[1] % 2
    pairs = np.pad(weight, ((0, odd), (0, 0))).astype(np.int32).reshape(-1, 2, weight.shape[1])
    first, second = (np.pad(x, ((0, 0), (0, odd))).astype(np.int32)[:, side::2] for side in (0, 1))
    found = np.zeros((len(x), weight.shape[1]), np.bool_)
    highest, lowest = (LARGEST * end(pairs, 0).sum(axis=1) for end in (np.maximum, np.minimum))
    risky = (highest > HIGH) | (lowest < LOW)  # no activations at all could make the other pairs overflow
    for output in np.flatnonzero(risky.any(axis=0)):
        chosen = risky[:, output]
        sums = first[:, chosen] * pairs[chosen, 0, output] + second[:, chosen] * pairs[chosen, 1, output]
        found[:, output] = ((sums > HIGH) | (sums < LOW)).any(axis=1)
    return found


def saturated_share(x: NDArray[Any], weight: NDArray[Any]) -> float:
    """The share of outputs that overflow somewhere; shapes as for `saturated`."""
    found = saturated(x, weight)
    return float(found.mean()) if found.size else 0.0
