"""Numbers that lie on a grid, and the step of the grid."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 5e-5
"""How far a number may lie beside the grid, in steps: float32 rounds 127 of them by 8e-6 of one, and a ratio twice."""


def common_steps(rows: NDArray[Any], most: int = 127) -> NDArray[np.float32] | None:
    """The largest step for each row of which all its numbers are multiples, none of them beyond `most`.

    The largest magnitude of a row is n steps for some n from 1 to `most`: the smallest n that fits all others.

    Args:
        rows: real numbers, (rows, numbers of a row).
        most: how many steps the largest may be.

    Returns:
        float32, one above 0 for each row; 1 for a row of zeros. None where a row lies on no such grid.
    """
    steps = np.ones(len(rows), np.float32)
    counts = np.arange(1, most + 1, dtype=np.float64)[:, None]
    for index, row in enumerate(rows):
        values = np.unique(np.abs(row.astype(np.float64)))
        if len(values) > most + 2 or not np.isfinite(values).all():  # zero, and perhaps one more for each rounding
            return None
        if values[-1] == 0:
            continue
        places = values / values[-1] * counts
        fits = np.abs(places - np.rint(places)).max(axis=1) < TOLERANCE
        if not fits.any():
            return None
        steps[index] = values[-1] / counts[int(fits.argmax()), 0]
    return steps
