"""How far to believe what few rows say about which inputs go together.

Correlations of few rows are part chance, and a weight that is rounded by chance comes out worse on other rows. So they
are made smaller, all by the same share: that which brings them closest to the correlations of other rows,

    min over keep of |keep * A - B|**2        keep = <A, B> / <A, A>

with the correlations A and B of two sets of rows, off the diagonal. What is chance in B has nothing to do with A, and
so does not count. Ledoit and Wolf (2004) and Schaefer and Strimmer (2005) estimate the same share from one set.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64Array = NDArray[np.float64]

LEAST = 0.05
"""Less is never taken away: it gains nothing, and changes more integers."""


def shrinkage(gram: ArrayLike, other: ArrayLike, least: float = LEAST) -> float:
    """The share, from `least` to 1, that is to be taken from the correlations of a Gram matrix.

    Args:
        gram: (inputs, inputs), sum of x^T x over rows x.
        other: the same over other rows of the same layer.
        least: the smallest share.
    """
    a, b = _correlations(gram), _correlations(other)
    size = float(np.vdot(a, a))
    return float(np.clip(1 - np.vdot(a, b) / size, least, 1)) if size > 0 else 1.0


def shrunk(gram: ArrayLike, share: float) -> Float64Array:
    """The Gram matrix with this share taken from everything off its diagonal."""
    gram = np.asarray(gram, np.float64)
    smaller = (1 - share) * gram
    np.fill_diagonal(smaller, gram.diagonal())
    return smaller


def _correlations(gram: ArrayLike) -> Float64Array:
    """gram[i, j] / sqrt(gram[i, i] gram[j, j]) off the diagonal, 0 on it and for inputs that were always 0."""
    gram = np.asarray(gram, np.float64)
    size = np.sqrt(gram.diagonal())
    inverse = np.divide(1, size, out=np.zeros_like(size), where=size > 0)
    found = gram * np.outer(inverse, inverse)
    np.fill_diagonal(found, 0)
    return np.asarray(found)
