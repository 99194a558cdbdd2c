"""Numbers in half precision: what float16 holds, and what rounding to it costs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

HIGHEST = 65504.0
"""The largest number of float16."""

HIDDEN = -HIGHEST / 2
"""What an attention mask adds to hide a score: two masks and a score still have a sum."""

ENDLESS = 1e30
"""Numbers from here on stand for infinity: the lowest float32 in an attention mask, the open end of a Clip."""

MOST_ERROR = 2.0**-10
"""What rounding may cost: root of the squared errors over root of the squares. Numbers that float16 holds in full cost
at most 2^-11 each; only where many are below its normal ones (6e-5) does it get more."""

PART = 1 << 20
"""Numbers that are looked at at a time."""


def half_obstacle(values: NDArray[Any]) -> str | None:
    """Why these numbers do not fit into float16; None where they do.

    Infinities and NaN are what they were, and decide nothing.

    Args:
        values: floats of any shape; they may be a map of a file.
    """
    flat = values.reshape(-1)
    highest = error = total = 0.0
    for start in range(0, flat.size, PART):
        part = flat[start : start + PART]
        known = part[np.isfinite(part)].astype(np.float32)
        if not known.size:
            continue
        highest = max(highest, float(np.abs(known).max()))
        if highest > HIGHEST:
            return f"it reaches {highest:.3g}, and half precision ends at {HIGHEST:g}"
        lost = known - known.astype(np.float16)
        error += _squares(lost)
        total += _squares(known)
    if error > MOST_ERROR**2 * total:
        return (
            f"rounding to half precision would cost {100 * (error / total) ** 0.5:.2g} % of it: it holds tiny numbers"
        )
    return None


def _squares(values: NDArray[np.float32]) -> float:
    """Their sum; that of the smallest float32 numbers does not vanish."""
    largest = float(np.abs(values).max())
    if largest == 0.0:
        return 0.0
    scaled = values / np.float32(largest)
    return float(np.dot(scaled, scaled)) * largest**2


def hides(values: NDArray[Any]) -> bool:
    """Whether numbers past float16 only hide others, as an attention mask does: all of them are one negative number.

    Numbers that stand for infinity do so too.
    """
    outer = values[np.abs(values) > HIGHEST / 4]
    low, high = (float(end) for end in (outer.min(initial=np.inf), outer.max(initial=-np.inf)))
    return low <= -ENDLESS or high >= ENDLESS or low == high < -HIGHEST


def to_half(values: NDArray[Any]) -> NDArray[np.float16]:
    """The nearest numbers of float16; what is finite stays finite, and ends at the largest one."""
    found = np.empty(values.shape, np.float16)
    source, goal = values.reshape(-1), found.reshape(-1)
    for start in range(0, source.size, PART):
        part = source[start : start + PART]
        ended = np.where(np.isfinite(part), np.clip(part, -HIGHEST, HIGHEST), part)
        goal[start : start + PART] = ended
    return found


def half_constant(values: NDArray[Any], *, exact_zeros: bool) -> NDArray[np.float16]:
    """The same for what activations meet: masks that reach past float16 hide scores, whatever is added to them.

    Args:
        values: floats of any shape.
        exact_zeros: whether what is not zero must not become it, as an epsilon must not.
    """
    found = to_half(values)
    found[(values < -HIGHEST) & (values > -np.inf)] = HIDDEN
    if exact_zeros:
        lost = (found == 0) & (values != 0)
        found[lost] = np.copysign(np.finfo(np.float16).smallest_subnormal, values[lost])
    return found
