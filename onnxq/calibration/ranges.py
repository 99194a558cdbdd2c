"""From a statistic to the range (low, high) that a quantized tensor shall cover.

Every rule is a pure function of one `Histogram` (`moving_average` has a statistic of its own), so a new rule
needs no second pass over the data. Where nothing was seen, the range is (0, 0).

`entropy` and `mse` keep 0 inside, as every quantized range does, and search both ends at once; ends that the
data does not reach, below 0 or above it, stay 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from onnxq.calibration.statistics import BINS, Counts, Histogram, MovingAverage
from onnxq.errors import RecipeError
from onnxq.numerics.formats import UINT8, Format

Range = tuple[float, float]
Float64Array = NDArray[np.float64]
Cost = Callable[[Float64Array, Float64Array], Float64Array]
"""What a range costs: flat arrays of low and high ends, in bin widths, to one number each."""

EMPTY = 1e-4
"""The count that stands for an empty level in a logarithm."""


def minmax(h: Histogram) -> Range:
    """Everything that was seen. Nothing saturates, and one outlier coarsens the step of all other values."""
    return (h.low, h.high) if h.count else (0.0, 0.0)


def moving_average(m: MovingAverage) -> Range:
    """The bias-corrected averages of the minima and of the maxima of the batches."""
    return (m.low, m.high) if m.low <= m.high else (0.0, 0.0)


def percentile(h: Histogram, percent: float = 99.99) -> Range:
    """The middle `percent` of the signed values: each tail loses (100 - percent) / 2 percent of them.

    Zeros count like any other value. A quantile inside a bin is interpolated linearly, and never leaves the
    exact minimum and maximum; 100 percent is `minmax`.

    Raises:
        RecipeError: percent is outside (0, 100].
    """
    if not 0 < percent <= 100:
        raise RecipeError(f"percent is {percent}. Choose a value above 0 and up to 100, such as 99.99.")
    if h.count == 0:
        return 0.0, 0.0
    rank = h.count - h.count * (100 - percent) / 200
    # reversed counts are the histogram of -x
    ends = -_quantile(h.counts[::-1], h.zeros, rank) * h.width, _quantile(h.counts, h.zeros, rank) * h.width
    low, high = (min(max(end, h.low), h.high) + 0.0 for end in ends)
    return low, high


def entropy(h: Histogram, levels: int = 256) -> Range:
    """The range whose `levels` steps lose the least information: the smallest Kullback-Leibler divergence.

    It is taken from P, the bins in the range with everything outside added to the outermost ones, to Q, in
    which each level is spread evenly over its non-empty bins, without what lies outside. Exact zeros are left
    out: after a ReLU they are half of all values, and every range holds them without error. A range spans at
    least `levels` bins; of equal divergences the widest wins.

    Source: Migacz, "8-bit inference with TensorRT", GTC 2017, extended from |x| to two ends.
    """
    used = np.flatnonzero(h.counts) - BINS
    if used.size == 0:
        return 0.0, 0.0
    first, last = min(int(used[0]), 0), max(int(used[-1]) + 1, 0)
    low, high = float(first), float(last)
    if last - first > levels:
        # each candidate costs `levels` logarithms, so two ends start coarser than one
        points = 33 if first < 0 < last else 513
        low, high = np.rint(_search(_divergence(h.counts, levels), low, high, points))
    return max(float(low) * h.width, min(h.low, 0.0)), min(float(high) * h.width, max(h.high, 0.0))


def mse(h: Histogram, format: Format = UINT8, symmetric: bool = False) -> Range:
    """The range with the smallest mean squared error in `format`, rounding and saturation together.

    With step s, a value is off by its distance to the end of the range if it is outside or within s / 2 of it,
    by |x| within s / 2 of zero, which is always on the grid, and by s / sqrt(12) elsewhere. Each bin counts as
    spread evenly, and the zero point as rounded. By this measure the result is never worse than `minmax`.
    """
    if h.count == 0:
        return 0.0, 0.0
    lowest, highest = min(h.low, 0.0), max(h.high, 0.0)
    error = _squared_error(h, (format.narrow if symmetric else format).levels)
    if symmetric:
        amax = max(-lowest, highest) / h.width
        _, end = _search(lambda _, high: error(-high, high), 0.0, amax, 129) * h.width
        low, high = 0.0 - end, end
    else:
        low, high = _search(error, lowest / h.width, highest / h.width, 129) * h.width
    return max(float(low), lowest), min(float(high), highest)


RULES: Mapping[str, Callable[[Histogram], Range]] = MappingProxyType(
    {"minmax": minmax, "percentile": percentile, "entropy": entropy, "mse": mse}
)


def _quantile(counts: Counts, zeros: int, rank: float) -> float:
    """The value, in bin widths, that `rank` of the values do not exceed."""
    mass = np.insert(counts, BINS, zeros)
    total = np.cumsum(mass)
    i = int(np.searchsorted(total, rank))
    if i == BINS:
        return 0.0
    left = i - BINS - (i > BINS)
    return float(left + (rank - (total[i] - mass[i])) / mass[i])


def _search(cost: Cost, lowest: float, highest: float, points: int) -> Float64Array:
    """The cheapest (low, high) with lowest <= low <= 0 <= high <= highest.

    `points` values of each end, then five times nine around the best so far, each time four times as fine. The
    widest range is tried first and only a lower cost replaces it.
    """
    bounds = np.array([[lowest, 0.0], [highest, 0.0]])
    box, best, best_cost = bounds, bounds[:, 0], np.inf
    for count in (points, 9, 9, 9, 9, 9):
        axes = [np.linspace(start, stop, count if start != stop else 1) for start, stop in box]
        grid = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(2, -1)
        costs = cost(*grid)
        cheapest = int(np.argmin(costs))
        if costs[cheapest] < best_cost:
            best, best_cost = grid[:, cheapest], costs[cheapest]
        step = (box[:, 1] - box[:, 0]) / (count - 1)
        box = np.stack((best - step, best + step), axis=1)
        box = np.clip(box, bounds.min(axis=1, keepdims=True), bounds.max(axis=1, keepdims=True))
    return best


def _divergence(counts: Counts, levels: int) -> Cost:
    """Kullback-Leibler divergence of `entropy`, times the number of values.

    It is inf for a range of fewer than `levels` bins, and for one that no value lies in.

    With c the counts, C_j and E_j the values and the non-empty bins of level j, T all values and M those
    inside, sum P ln(P / Q) = sum c ln c - T ln T - sum C_j ln(C_j / E_j) + T ln M. Prefix sums over the bins
    give each sum, so that a candidate costs O(levels) and not O(bins).
    """
    mass = counts.astype(np.float64)
    before = np.concatenate(([0.0], np.cumsum(mass)))
    filled_before = np.concatenate(([0], np.cumsum(counts > 0)))
    self_before = np.concatenate(([0.0], np.cumsum(_x_log_x(mass))))
    total = before[-1]

    def cost(low: Float64Array, high: Float64Array) -> Float64Array:
        first, last = np.rint(low).astype(np.int64) + BINS, np.rint(high).astype(np.int64) + BINS
        # the remainder of bins / levels is spread over all levels
        edges = first[:, None] + np.arange(levels + 1) * (last - first)[:, None] // levels
        inside, filled = np.diff(before[edges]), np.diff(filled_before[edges])
        reference, own = inside.copy(), self_before[last] - self_before[first]
        for level, end_bin, tail in ((0, first, before[first]), (-1, last - 1, total - before[last])):
            reference[:, level] += tail
            own += _x_log_x(mass[end_bin] + tail) - _x_log_x(mass[end_bin])
            filled[:, level] += (mass[end_bin] == 0) & (tail > 0)
        # a level that holds only a tail would give Q = 0: ln 0 becomes ln EMPTY
        spread = np.maximum(inside / np.maximum(filled, 1), EMPTY)
        kept = before[last] - before[first]
        divergence = own - _x_log_x(total) - (reference * np.log(spread)).sum(axis=1)
        divergence += total * np.log(np.maximum(kept, 1))
        return np.where((last - first < levels) | (kept == 0), np.inf, divergence)

    return cost


def _x_log_x(x: Float64Array) -> Float64Array:
    return x * np.log(np.maximum(x, 1.0))


def _squared_error(h: Histogram, levels: int) -> Cost:
    """Sum of squared errors of `mse`, in squared bin widths, for a grid of `levels` levels."""
    # the outermost bins end at the exact minimum and maximum
    edges = np.clip(np.arange(-BINS, BINS + 1), h.low / h.width, h.high / h.width)
    left, right = edges[:-1], edges[1:]
    powers = np.stack((np.ones(2 * BINS), (left + right) / 2, (left**2 + left * right + right**2) / 3))
    before = np.concatenate((np.zeros((3, 1)), np.cumsum(h.counts * powers, axis=1)), axis=1)
    counts = h.counts.astype(np.float64)

    def moments(x: Float64Array) -> Float64Array:
        """Sums of 1, y and y**2 over all values y below x; zeros left out."""
        i = np.clip(np.floor(x).astype(np.int64), -BINS, BINS - 1) + BINS
        start, stop = left[i], np.clip(x, left[i], right[i])
        width = right[i] - start
        share = counts[i] * np.where(width > 0, (stop - start) / np.where(width > 0, width, 1), x > start)
        return before[:, i] + share * np.stack(
            (np.ones_like(x), (start + stop) / 2, (start**2 + start * stop + stop**2) / 3)
        )

    def cost(low: Float64Array, high: Float64Array) -> Float64Array:
        step = (high - low) / (levels - 1)
        # the grid that `affine.parameters` makes of this range: its zero point is rounded
        low = -step * np.rint(-low / np.where(step > 0, step, 1))
        high = low + step * (levels - 1)
        half = step / 2
        below = moments(np.minimum(low + half, low / 2))
        from_zero, to_zero = moments(np.maximum(-half, low / 2)), moments(np.minimum(half, high / 2))
        above = moments(np.maximum(high - half, high / 2))
        between = from_zero[0] - below[0] + above[0] - to_zero[0]
        at_ends = _about(below, low) + _about(before[:, -1:] - above, high)
        return np.asarray(at_ends + _about(to_zero - from_zero, np.zeros(1)) + between * step**2 / 12)

    return cost


def _about(moments: Float64Array, center: Float64Array) -> Float64Array:
    """Sum of (y - center)**2, from the sums of 1, y and y**2."""
    return np.asarray(moments[2] - 2 * center * moments[1] + center**2 * moments[0])
