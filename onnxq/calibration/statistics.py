"""What is remembered of a tensor: small frozen values that add up.

`of(x)` makes one from an array and `+` joins two. `MinMax` and `Histogram` depend only on which values were
seen, bit for bit, and not on how these were split, ordered or spread over workers. `MovingAverage` depends on
the order of the batches by its nature; there `+` joins a run with the run that came after it. `Gram` depends on
it by the rounding of its float64 sums alone.

A statistic made without arguments has seen nothing, and adds nothing. Values that are not finite never enter a
range; they are counted, so that a report can name their tensor. `to_arrays` and `from_arrays` are for saving.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Arrays = Mapping[str, NDArray[Any]]
Counts = NDArray[np.int64]
Float64Array = NDArray[np.float64]
Real = NDArray[np.floating[Any]]

BINS = 4096
"""Bins of a `Histogram` on each side of zero."""

SMALLEST_EXPONENT = -126
"""No bin is narrower than the smallest normal float32, which no scale may go below either."""

CHUNK = 32768
"""Values that are binned at a time: with the work buffers 0.7 MB, which a level-2 cache holds."""

STEPS = 2**20
"""Steps of a `ChannelSum` in 1."""

ROWS = 4096
"""Rows that a `Gram` widens to float64 and multiplies at a time."""

LARGEST_SUMMAND = 2.0**15
"""Larger values would make a float64 sum of steps inexact."""

MOMENTUM = 0.9
"""Share of the old average that a `MovingAverage` keeps at each batch, unless told otherwise."""


def channel_axis(rank: int) -> int | None:
    """Where channels are looked for: axis 1 of pictures (four axes or more), else the last axis; None below two."""
    return None if rank < 2 else 1 if rank >= 4 else rank - 1


@dataclass(frozen=True, eq=False)
class MinMax:
    """The smallest and the largest value, of a tensor or of each of its channels.

    Attributes:
        low: smallest finite value, of shape () or (channels,); inf where nothing was seen.
        high: largest finite value, likewise; -inf where nothing was seen.
        non_finite: how many values were NaN or infinite.
    """

    low: Float64Array = field(default_factory=partial(np.full, (), np.inf))
    high: Float64Array = field(default_factory=partial(np.full, (), -np.inf))
    non_finite: int = 0

    @classmethod
    def of(cls, x: ArrayLike, axis: int | None = None) -> Self:
        """From an array of any shape; `axis` is the channel axis, None for the whole tensor."""
        values = _real(x)
        others = None if axis is None else tuple(np.delete(np.arange(values.ndim), axis))
        low, high = values.min(others, initial=np.inf), values.max(others, initial=-np.inf)
        non_finite = 0
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            finite = np.isfinite(values)
            non_finite = values.size - int(np.count_nonzero(finite))
            low = values.min(others, initial=np.inf, where=finite)
            high = values.max(others, initial=-np.inf, where=finite)
        # + 0.0 turns -0.0 into 0.0: which of the two zeros is found depends on the order of the values
        return cls(np.asarray(low, np.float64) + 0.0, np.asarray(high, np.float64) + 0.0, non_finite)

    def __add__(self, other: Self) -> Self:
        """Both together.

        Raises:
            ValueError: the channels differ in number.
        """
        if self.low.ndim and other.low.ndim and self.low.shape != other.low.shape:
            raise ValueError(f"{self.low.size} and {other.low.size} channels do not add up. Use the same axis.")
        return type(self)(
            np.asarray(np.minimum(self.low, other.low)),
            np.asarray(np.maximum(self.high, other.high)),
            self.non_finite + other.non_finite,
        )

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Every field, as an array."""
        return {"low": self.low, "high": self.high, "non_finite": np.asarray(self.non_finite)}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Undo `to_arrays`."""
        return cls(arrays["low"], arrays["high"], int(arrays["non_finite"]))


@dataclass(frozen=True)
class MovingAverage:
    """The map average -> keep * average + gain of a run of batches, for the low and the high end.

    Each batch contributes its minimum and maximum. Joined exactly but for rounding, in the order of the
    batches: `earlier + later`. A batch without finite values changes nothing.

    Attributes:
        keep: momentum ** batches.
        low_gain: what the run adds to the average of the minima.
        high_gain: what the run adds to the average of the maxima.
        non_finite: how many values were NaN or infinite.
    """

    keep: float = 1.0
    low_gain: float = 0.0
    high_gain: float = 0.0
    non_finite: int = 0

    @classmethod
    def of(cls, x: ArrayLike, momentum: float = MOMENTUM) -> Self:
        """From one batch.

        Raises:
            ValueError: momentum is outside [0, 1).
        """
        if not 0 <= momentum < 1:
            raise ValueError(f"a momentum of {momentum} averages nothing. Choose one from 0 up to below 1.")
        seen = MinMax.of(x)
        if seen.low > seen.high:
            return cls(non_finite=seen.non_finite)
        gain = 1 - momentum
        return cls(momentum, gain * float(seen.low), gain * float(seen.high), seen.non_finite)

    def __add__(self, later: Self) -> Self:
        """This run, then the later one."""
        return type(self)(
            self.keep * later.keep,
            later.keep * self.low_gain + later.low_gain,
            later.keep * self.high_gain + later.high_gain,
            self.non_finite + later.non_finite,
        )

    @property
    def low(self) -> float:
        """Average minimum, starting from the first batch and not from 0; inf before the first batch.

        gain / (1 - keep) is the bias correction of Adam: Kingma and Ba, arXiv:1412.6980, section 3.
        """
        return self.low_gain / (1 - self.keep) if self.keep < 1 else np.inf

    @property
    def high(self) -> float:
        """Average maximum, likewise; -inf before the first batch."""
        return self.high_gain / (1 - self.keep) if self.keep < 1 else -np.inf

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Every field, as an array."""
        return {name: np.asarray(value) for name, value in vars(self).items()}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Undo `to_arrays`."""
        return cls(**{name: value.item() for name, value in arrays.items()})


def _no_counts() -> Counts:
    return np.zeros(2 * BINS, np.int64)


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts in bins that are exactly 2**exponent wide and anchored at zero.

    Such grids are nested: to double the width, whole bins are added in pairs and no count is ever split. And
    x / 2**exponent is exact, so that no value is binned by a rounding error. The exponent is the smallest that
    holds the largest |x|, so at least half of the bins of one side are in use.

    Attributes:
        counts: (2 * BINS,). With w = 2**exponent, counts[BINS + i] is of the values in [i w, (i + 1) w) and
            counts[BINS - 1 - i] of those in (-(i + 1) w, -i w], both without the exact zeros.
        exponent: binary logarithm of the bin width.
        zeros: how many values were 0 or -0.
        nans: how many were NaN.
        positive_infinities: how many were +inf.
        negative_infinities: how many were -inf.
        low: exact smallest finite value; inf where nothing was seen.
        high: exact largest finite value; -inf where nothing was seen.
    """

    counts: Counts = field(default_factory=_no_counts)
    exponent: int = SMALLEST_EXPONENT
    zeros: int = 0
    nans: int = 0
    positive_infinities: int = 0
    negative_infinities: int = 0
    low: float = np.inf
    high: float = -np.inf

    @classmethod
    def of(cls, x: ArrayLike) -> Self:
        """From an array of any shape. float64 and integers are binned in float64, other types in float32."""
        values = _real(x).ravel()
        seen, odd = MinMax.of(values), (0, 0, 0)
        if seen.non_finite:
            nans, positive = np.count_nonzero(np.isnan(values)), np.count_nonzero(values == np.inf)
            odd = int(nans), int(positive), seen.non_finite - int(nans) - int(positive)
            values = values[np.isfinite(values)]
        if values.size == 0:
            return cls(_no_counts(), SMALLEST_EXPONENT, 0, *odd)
        low, high = float(seen.low), float(seen.high)
        exponent = _exponent(max(-low, high))
        counts, zeros = _count(values, exponent)
        return cls(counts, exponent, zeros, *odd, low, high)

    def __add__(self, other: Self) -> Self:
        """Both together."""
        exponent = max(self.exponent, other.exponent)
        return type(self)(
            _widened(self, exponent) + _widened(other, exponent),
            exponent,
            self.zeros + other.zeros,
            self.nans + other.nans,
            self.positive_infinities + other.positive_infinities,
            self.negative_infinities + other.negative_infinities,
            min(self.low, other.low),
            max(self.high, other.high),
        )

    @property
    def width(self) -> float:
        """Width of a bin."""
        return float(2.0**self.exponent)

    @property
    def count(self) -> int:
        """How many finite values were seen, zeros included."""
        return int(self.counts.sum()) + self.zeros

    @property
    def non_finite(self) -> int:
        """How many values were NaN or infinite."""
        return self.nans + self.positive_infinities + self.negative_infinities

    @property
    def sum(self) -> float:
        """Sum of the values, each taken to be in the middle of its bin: off by width / 2 per value at most.

        Derived, because a float sum that is stored would depend on the order of the batches.
        """
        return float(self.counts @ _middles()) * self.width

    @property
    def sum_of_squares(self) -> float:
        """Sum of the squares of the values, each taken to be spread evenly over its bin."""
        return float(self.counts @ (_middles() ** 2 + 1 / 12)) * self.width**2

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Every field, as an array."""
        return {name: np.asarray(value) for name, value in vars(self).items()}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Undo `to_arrays`."""
        numbers: dict[str, Any] = {name: value.item() for name, value in arrays.items() if value.ndim == 0}
        return cls(counts=arrays["counts"], **numbers)


@dataclass(frozen=True, eq=False)
class ChannelSum:
    """The sum of each channel, in steps of 2**-20, so that it is the same integer in any order and any split.

    Attributes:
        total: (channels,), how many steps; () where nothing was seen, or channels of different numbers.
        count: values of each channel.
    """

    total: NDArray[np.int64] = field(default_factory=lambda: np.zeros((), np.int64))
    count: int = 0

    @classmethod
    def of(cls, x: ArrayLike, axis: int) -> Self:
        """From an array of any shape with channels along `axis`. Values past 2**15 count as 2**15, NaN as 0."""
        x = _real(x)
        others = tuple(np.delete(np.arange(x.ndim), axis))
        steps = np.rint(np.clip(x, -LARGEST_SUMMAND, LARGEST_SUMMAND) * x.dtype.type(STEPS))
        if not np.isfinite(steps).all():
            steps = np.nan_to_num(steps, nan=0.0)
        # integers: float64 adds them exactly up to 2**53, which is 2**18 values of the largest size
        total = steps.sum(others, dtype=np.float64).astype(np.int64)
        return cls(total, x.size // max(x.shape[axis], 1))

    def __add__(self, other: Self) -> Self:
        """Both together; nothing is known where the channels differ in number."""
        if 0 in (self.count, other.count):
            return self if other.count == 0 else other
        if self.total.shape != other.total.shape:
            return type(self)(np.zeros((), np.int64), self.count + other.count)
        return type(self)(self.total + other.total, self.count + other.count)

    @property
    def mean(self) -> Float64Array | None:
        """Mean of each channel; None where it is not known."""
        return self.total / (self.count * STEPS) if self.total.ndim and self.count else None

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Every field, as an array."""
        return {"total": self.total, "count": np.asarray(self.count)}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Undo `to_arrays`."""
        return cls(arrays["total"], int(arrays["count"]))


@dataclass(frozen=True, eq=False)
class Gram:
    """Which inputs of a layer go together: the sum of x^T x over its rows x. Added up in float64, to rounding.

    Attributes:
        rows: how many rows were seen, without those that hold a NaN or an infinity.
        total: (inputs, inputs), symmetric; () where nothing was seen.
    """

    rows: int = 0
    total: Float64Array = field(default_factory=partial(np.zeros, ()))

    @classmethod
    def of(cls, x: ArrayLike) -> Self:
        """From an array (..., inputs), of which every axis but the last counts rows.

        Raises:
            ValueError: x is a single number.
        """
        values = _real(x)
        if values.ndim == 0:
            raise ValueError("a single number is no row of inputs. Give an array (..., inputs).")
        rows = values.reshape(prod(values.shape[:-1]), values.shape[-1])
        finite = np.isfinite(rows).all(axis=1)
        rows = rows if finite.all() else rows[finite]
        total = np.zeros(2 * rows.shape[1:])
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS].astype(np.float64)
            total += part.T @ part
        return cls(len(rows), total)

    def __add__(self, other: Self) -> Self:
        """Both together.

        Raises:
            ValueError: the inputs differ in number.
        """
        if 0 in (self.rows, other.rows):
            return self if other.rows == 0 else other
        if self.total.shape != other.total.shape:
            raise ValueError(f"{len(self.total)} and {len(other.total)} inputs do not add up. Give those of one layer.")
        return type(self)(self.rows + other.rows, self.total + other.total)

    @property
    def mean_square(self) -> Float64Array | None:
        """Mean square of each input, its importance; None where nothing was seen."""
        return self.total.diagonal() / self.rows if self.rows else None

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Every field, as an array."""
        return {"rows": np.asarray(self.rows), "total": self.total}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Undo `to_arrays`."""
        return cls(int(arrays["rows"]), arrays["total"])


def _real(x: ArrayLike) -> Real:
    """The array in float32 or float64, without loss except for integers past 2**53."""
    values = np.asarray(x)
    if not np.can_cast(values.dtype, np.float64, "same_kind"):
        raise TypeError(f"{values.dtype} has no range. Give real numbers.")
    dtype = np.float32 if np.can_cast(values.dtype, np.float32) else np.float64
    return values.astype(dtype, copy=False)


def _exponent(amax: float) -> int:
    """The smallest exponent with amax < BINS * 2**exponent."""
    if amax == 0:
        return SMALLEST_EXPONENT
    # amax = m * 2**e with 1/2 <= m < 1
    return max(int(np.frexp(amax)[1]) - (BINS.bit_length() - 1), SMALLEST_EXPONENT)


def _count(x: Real, exponent: int) -> tuple[Counts, int]:
    """The counts of a flat array of finite values, and the number of zeros among them."""
    size = min(x.size, CHUNK)
    scaled, negative = np.empty(size, x.dtype), np.empty(size, np.bool_)
    whole, index = np.empty(size, np.int32), np.empty(size, np.intp)
    factor = x.dtype.type(2.0**-exponent)
    counts, zeros = _no_counts(), 0
    for start in range(0, x.size, CHUNK):
        chunk = x[start : start + CHUNK]
        n = chunk.size
        # a product that underflows has |product| < 1, and truncates to 0 like the exact one
        np.multiply(chunk, factor, out=scaled[:n])
        np.copyto(whole[:n], scaled[:n], casting="unsafe")
        np.less(chunk, 0, out=negative[:n])
        np.subtract(whole[:n], negative[:n], out=whole[:n])
        np.add(whole[:n], BINS, out=index[:n])
        counts += np.bincount(index[:n], minlength=2 * BINS)
        zeros += n - int(np.count_nonzero(np.not_equal(chunk, 0, out=negative[:n])))
    counts[BINS] -= zeros
    return counts, zeros


def _widened(histogram: Histogram, exponent: int) -> Counts:
    """The counts in bins of 2**exponent: every 2**(exponent - histogram.exponent) neighbours become one."""
    group = 2 ** min(exponent - histogram.exponent, BINS.bit_length() - 1)
    counts, half = _no_counts(), BINS // group
    counts[BINS - half : BINS + half] = histogram.counts.reshape(-1, group).sum(axis=1)
    return counts


def _middles() -> Float64Array:
    """The middle of every bin, in bin widths."""
    return np.arange(-BINS, BINS, dtype=np.float64) + 0.5
