"""How the values of the worst tensors lie in the ranges that were chosen for them: enough to draw a histogram.

statistics, plan, proof  =>  [TensorRange(tensor, low, high, counts, clipped, outliers), ...]
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxq.calibration.collect import Seen, Statistics
from onnxq.calibration.statistics import BINS, Histogram, MinMax
from onnxq.diagnosis.findings import Outlier
from onnxq.plan import Plan, Record, TensorPlan
from onnxq.proof import Proof

MOST = 12
"""Tensors that are shown."""

FINEST = 64
"""Bars of a histogram at most."""

OUTLIERS = 3
"""Channels that are named for each tensor."""


class TensorRange(Record):
    """The values that calibration saw of one tensor, and what its range keeps of them.

    Attributes:
        tensor: its name.
        low: the smallest value.
        high: the largest.
        range_low: lower end of the range that was chosen.
        range_high: upper end.
        clipped: share of the values beyond the range, to a bin of the statistic.
        start: where the first bar begins.
        width: of a bar.
        counts: values in each bar, exact zeros left out.
        zeros: how many were exactly 0.
        outliers: the channels that reach farthest, and how many times as far as the median one.
    """

    tensor: str
    low: float
    high: float
    range_low: float
    range_high: float
    clipped: float
    start: float
    width: float
    counts: list[int]
    zeros: int
    outliers: list[Outlier] = []


def worst_ranges(plan: Plan | None, proof: Proof | None, statistics: Statistics) -> list[TensorRange]:
    """The tensors with the largest error, the worst first; where errors were not measured, those most cut off."""
    if plan is None:
        return []
    known = {
        name: tensor
        for name, tensor in plan.tensors.items()
        if name in statistics and statistics[name].histogram.counts.any()
    }
    errors = {} if proof is None else {layer.tensor: layer.sqnr_db for layer in proof.layers}
    order = [name for name in errors if name in known and errors[name] is not None]
    order = order or sorted(known, key=lambda name: (-_clipped(statistics[name].histogram, known[name]), name))
    return [tensor_range(name, known[name], statistics[name]) for name in order[:MOST]]


def tensor_range(name: str, plan: TensorPlan, seen: Seen) -> TensorRange:
    """The record of one tensor."""
    histogram = seen.histogram
    start, width, counts = bars(histogram)
    return TensorRange(
        tensor=name,
        low=histogram.low,
        high=histogram.high,
        range_low=plan.low,
        range_high=plan.high,
        clipped=_clipped(histogram, plan),
        start=start,
        width=width,
        counts=counts,
        zeros=histogram.zeros,
        outliers=outliers(seen.channels),
    )


def bars(histogram: Histogram) -> tuple[float, float, list[int]]:
    """Where the first bar begins, its width, and the counts: bins joined to bars until at most `FINEST` are left."""
    used = np.flatnonzero(histogram.counts)
    step = 1
    while used[-1] // step - used[0] // step >= FINEST:
        step *= 2
    first, last = used[0] // step, used[-1] // step + 1
    counts = histogram.counts[first * step : last * step].reshape(-1, step).sum(axis=1)
    return float((first * step - BINS) * histogram.width), step * histogram.width, counts.tolist()


def _clipped(histogram: Histogram, plan: TensorPlan) -> float:
    """Share of the values in bins that lie beyond the range as a whole."""
    edges = (np.arange(2 * BINS + 1) - BINS) * histogram.width
    beyond = (edges[1:] < plan.low) | (edges[:-1] > plan.high)
    return float(histogram.counts[beyond].sum() / histogram.count)


def outliers(channels: MinMax) -> list[Outlier]:
    """The channels that reach farthest, measured by the median one; none for a tensor without channels."""
    if channels.low.ndim == 0 or channels.low.size < 2:
        return []
    reach: NDArray[np.float64] = np.maximum(np.maximum(-channels.low, channels.high), 0.0)
    reach[~np.isfinite(reach)] = 0.0  # a channel that was never seen
    median = float(np.median(reach))
    order = np.argsort(-reach, kind="stable")[:OUTLIERS]
    return [Outlier(channel=int(c), times=float(reach[c]) / median if median else np.inf) for c in order if reach[c]]
