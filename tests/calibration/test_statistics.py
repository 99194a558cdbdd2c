"""The laws of statistics: grouping, order, zero, one run = joined runs. Bit for bit, seen through `to_arrays`."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any, Protocol, Self

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import ArrayLike, NDArray

from onnxq.calibration.statistics import BINS, CHUNK, SMALLEST_EXPONENT, Histogram, MinMax, MovingAverage

Array = NDArray[Any]
inf, nan = np.inf, np.nan


class Statistic(Protocol):
    @classmethod
    def of(cls, x: ArrayLike) -> Self: ...
    def __add__(self, other: Self, /) -> Self: ...
    def to_arrays(self) -> dict[str, Array]: ...
    @classmethod
    def from_arrays(cls, arrays: dict[str, Array]) -> Self: ...


exact = pytest.mark.parametrize("kind", [MinMax, Histogram])
every = pytest.mark.parametrize("kind", [MinMax, Histogram, MovingAverage])

values = (
    st.floats(width=32) | st.floats(-4, 4, width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0**-30, -(2.0**-149)])
)
batches = arrays(np.float32, st.integers(0, 30), elements=values)


def assert_same_bits(a: Statistic, b: Statistic) -> None:
    ours, theirs = a.to_arrays(), b.to_arrays()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype, name
        assert ours[name].tobytes() == theirs[name].tobytes(), name


@exact
@given(a=batches, b=batches, c=batches)
def test_grouping_does_not_matter(kind: type[Statistic], a: Array, b: Array, c: Array) -> None:
    a_, b_, c_ = kind.of(a), kind.of(b), kind.of(c)
    assert_same_bits((a_ + b_) + c_, a_ + (b_ + c_))


@exact
@given(a=batches, b=batches)
def test_order_does_not_matter(kind: type[Statistic], a: Array, b: Array) -> None:
    assert_same_bits(kind.of(a) + kind.of(b), kind.of(b) + kind.of(a))


@exact
@given(x=batches, data=st.data())
def test_one_run_equals_joined_runs(kind: type[Statistic], x: Array, data: st.DataObject) -> None:
    shuffled = x[np.array(data.draw(st.permutations(range(x.size))), np.intp)]
    cuts = data.draw(st.lists(st.integers(0, x.size), max_size=4).map(sorted))
    parts = [kind.of(part) for part in np.split(shuffled, cuts)]
    assert_same_bits(reduce(add, parts), kind.of(x))


@every
@given(x=batches)
def test_nothing_adds_nothing(kind: type[Statistic], x: Array) -> None:
    seen = kind.of(x)
    assert_same_bits(kind() + seen, seen)
    assert_same_bits(seen + kind(), seen)
    assert_same_bits(kind.of(np.zeros((0, 3))), kind())


@every
@given(x=batches)
def test_saving_loses_nothing(kind: type[Statistic], x: Array) -> None:
    seen = kind.of(x)
    assert_same_bits(kind.from_arrays(seen.to_arrays()), seen)


@every
@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "uint16", "int64", "bool"])
def test_other_types_hold_the_same_values(kind: type[Statistic], dtype: str) -> None:
    x = np.array([[0, 1, 0], [1, 1, 1]]).astype(dtype)
    assert_same_bits(kind.of(x), kind.of(x.astype(np.float32)))


@every
@pytest.mark.parametrize("dtype", ["complex64", "<U3", "datetime64[s]"])
def test_what_is_not_a_number_is_refused(kind: type[Statistic], dtype: str) -> None:
    with pytest.raises(TypeError, match="Give real numbers"):
        kind.of(np.zeros(2, dtype))


@every
def test_statistics_do_not_change_and_do_not_change_their_data(kind: type[Statistic]) -> None:
    x = np.array([1.0, -2.0, nan, 0.0], np.float32)
    before, first = x.copy(), kind.of(x)
    saved = {name: array.copy() for name, array in first.to_arrays().items()}
    _ = first + kind.of([1e6, -1e6])
    np.testing.assert_array_equal(x, before)
    for name, array in first.to_arrays().items():
        np.testing.assert_array_equal(array, saved[name])


def test_minmax_of_a_tensor() -> None:
    seen = MinMax.of([[3.0, nan], [-1.5, inf]])
    assert (float(seen.low), float(seen.high), seen.non_finite) == (-1.5, 3.0, 2)
    assert (float(MinMax().low), float(MinMax().high)) == (inf, -inf)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_minmax_per_channel(axis: int) -> None:
    x = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    rows = np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
    seen = MinMax.of(x, axis=axis)
    np.testing.assert_array_equal(seen.low, rows.min(1))
    np.testing.assert_array_equal(seen.high, rows.max(1))


@given(a=batches, b=batches)
def test_minmax_per_channel_adds_up(a: Array, b: Array) -> None:
    def of(x: Array) -> MinMax:
        return MinMax.of(x[: x.size // 3 * 3].reshape(-1, 3), axis=1)

    whole = np.concatenate([x[: x.size // 3 * 3].reshape(-1, 3) for x in (a, b)])
    assert_same_bits(of(a) + of(b), MinMax.of(whole, axis=1))
    assert_same_bits(of(a) + MinMax(), of(a))


def test_channels_that_differ_in_number_do_not_add_up() -> None:
    x = np.zeros((3, 4))
    with pytest.raises(ValueError, match="3 and 4 channels"):
        MinMax.of(x, axis=0) + MinMax.of(x, axis=1)


@given(x=arrays(np.float32, st.integers(1, 50), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_a_histogram_counts_by_its_definition(x: Array) -> None:
    h = Histogram.of(x)
    largest = float(np.abs(x).max())
    assert largest < BINS * h.width
    assert h.exponent == SMALLEST_EXPONENT or largest >= BINS / 2 * h.width
    expected = np.zeros(2 * BINS, np.int64)
    for value in x[x != 0].astype(np.float64):
        distance = int(abs(value) / h.width)
        expected[BINS + distance if value > 0 else BINS - 1 - distance] += 1
    np.testing.assert_array_equal(h.counts, expected)
    assert h.zeros == np.count_nonzero(x == 0)
    assert h.count == x.size
    assert (h.low, h.high) == (x.min(), x.max())


@given(x=batches)
def test_the_histogram_of_the_opposite_is_the_mirror_image(x: Array) -> None:
    h, mirrored = Histogram.of(x), Histogram.of(-x)
    np.testing.assert_array_equal(h.counts, mirrored.counts[::-1])
    assert (h.exponent, h.zeros, h.nans) == (mirrored.exponent, mirrored.zeros, mirrored.nans)


def test_a_histogram_tells_odd_values_apart() -> None:
    h = Histogram.of(np.array([nan, inf, -inf, inf, 0.0, -0.0, 1.0], np.float32))
    assert (h.nans, h.positive_infinities, h.negative_infinities) == (1, 2, 1)
    assert (h.zeros, h.count, h.non_finite) == (2, 3, 4)
    assert (h.low, h.high) == (0, 1)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(-30, 30))
def test_long_arrays_equal_their_shuffled_chunks(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_cauchy(2 * CHUNK + 17) * 2.0**scale).astype(np.float32)
    parts = np.array_split(rng.permutation(x), rng.integers(1, 9))
    assert_same_bits(reduce(add, map(Histogram.of, parts)), Histogram.of(x))


def test_the_ends_of_float32_fit() -> None:
    # added to large values, the smallest subnormal must still land on its own side of zero
    tiny, huge = np.float32(1e-45), np.finfo(np.float32).max
    h = Histogram.of(np.array([tiny, -tiny, -tiny], np.float32)) + Histogram.of(np.array([huge, -huge], np.float32))
    assert_same_bits(h, Histogram.of(np.array([tiny, -huge, -tiny, huge, -tiny], np.float32)))
    np.testing.assert_array_equal(h.counts[[0, BINS - 1, BINS, -1]], [1, 2, 1, 1])
    assert (h.low, h.high) == (-float(huge), float(huge))


def test_zeros_do_not_widen_the_bins_of_tiny_values() -> None:
    x = np.array([0.0, 1e-9], np.float32)
    assert_same_bits(Histogram.of(x[:1]) + Histogram.of(x[1:]), Histogram.of(x))


def test_float64_reaches_past_float32() -> None:
    h = Histogram.of([1e300, -1e-300, 5e-324])
    assert (h.low, h.high, h.count) == (-1e-300, 1e300, 3)


def test_a_first_batch_of_tiny_values_costs_nothing() -> None:
    # growing an open-ended histogram from 1e-3 to 35 takes hundreds of megabytes elsewhere
    h = Histogram.of(np.full(9, 1e-3, np.float32)) + Histogram.of(np.full(9, 35.0, np.float32))
    assert h.counts.size == 2 * BINS
    assert h.counts[BINS] == 9


def test_sums_are_derived_from_the_bins() -> None:
    x = np.random.default_rng(0).normal(1, 2, 100_000).astype(np.float32)
    h = Histogram.of(x)
    assert h.sum == pytest.approx(x.sum(dtype=np.float64), rel=1e-4)
    assert h.sum_of_squares == pytest.approx(np.square(x, dtype=np.float64).sum(), rel=1e-4)
    assert (Histogram().sum, Histogram().sum_of_squares) == (0, 0)


def test_a_moving_average_starts_from_the_first_batch() -> None:
    first = MovingAverage.of([-1.0, 3.0])
    assert (first.low, first.high) == pytest.approx((-1, 3))
    both = first + MovingAverage.of([-2.0, 6.0])
    # weights 0.09 and 0.1, divided by their sum
    assert both.high == pytest.approx((0.09 * 3 + 0.1 * 6) / 0.19)
    assert both.low == pytest.approx(-(0.09 * 1 + 0.1 * 2) / 0.19)


def test_a_moving_average_depends_on_the_order() -> None:
    a, b = MovingAverage.of([0.0, 1.0]), MovingAverage.of([0.0, 5.0])
    assert (a + b).high > (b + a).high


@given(runs=st.lists(batches, min_size=3, max_size=6), cut=st.integers(1, 2), momentum=st.floats(0, 0.99))
def test_moving_averages_join_to_rounding(runs: list[Array], cut: int, momentum: float) -> None:
    parts = [MovingAverage.of(x, momentum) for x in runs]
    one, joined = reduce(add, parts), reduce(add, parts[:cut]) + reduce(add, parts[cut:])
    largest = max((abs(x) for part in parts for x in (part.low_gain, part.high_gain)), default=0.0)
    for name, array in one.to_arrays().items():
        np.testing.assert_allclose(joined.to_arrays()[name], array, rtol=1e-12, atol=1e-12 * largest)


def test_a_batch_without_finite_values_changes_no_average() -> None:
    seen = MovingAverage.of([-1.0, 3.0])
    both = seen + MovingAverage.of([nan, inf])
    assert (both.low, both.high, both.non_finite) == (seen.low, seen.high, 2)
    assert (MovingAverage().low, MovingAverage().high) == (inf, -inf)


@pytest.mark.parametrize("momentum", [-0.1, 1.0, nan])
def test_a_momentum_that_averages_nothing_is_refused(momentum: float) -> None:
    with pytest.raises(ValueError, match="Choose one from 0"):
        MovingAverage.of([1.0], momentum)
