"""Range rules: golden distributions, the formulas against slow and obvious versions, and the edges."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxq.calibration.ranges import (
    RULES,
    Range,
    _divergence,
    _squared_error,
    entropy,
    minmax,
    moving_average,
    mse,
    percentile,
)
from onnxq.calibration.statistics import BINS, Histogram, MovingAverage
from onnxq.errors import RecipeError
from onnxq.numerics.affine import fake_quantize, parameters
from onnxq.numerics.formats import INT8, UINT4, UINT8, UINT16, Format

Array = NDArray[Any]
every = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def laplace_with_one_outlier() -> Array:
    x = np.random.default_rng(0).laplace(size=400_000)
    x[7] = 60
    return x.astype(np.float32)


def skewed() -> Array:
    return (np.random.default_rng(0).gamma(2, size=200_000) - 1).astype(np.float32)


def relu() -> Array:
    return np.maximum(np.random.default_rng(0).normal(size=200_000), 0).astype(np.float32)


def gaussian() -> Array:
    return np.random.default_rng(0).normal(size=200_000).astype(np.float32)


def student() -> Array:
    return np.random.default_rng(0).standard_t(3, 200_000).astype(np.float32)


def cauchy() -> Array:
    return np.random.default_rng(0).standard_cauchy(20_000).astype(np.float32)


def lognormal() -> Array:
    return np.exp(1.5 * np.random.default_rng(0).normal(size=200_000)).astype(np.float32)


def massive() -> Array:
    return np.append(gaussian(), np.float32(1000))


def uniform() -> Array:
    return np.random.default_rng(0).uniform(-1, 1, 200_000).astype(np.float32)


def tanh_gelu() -> Array:
    x = 2 * gaussian()
    return np.asarray(x * 0.5 * (1 + np.tanh(0.8 * (x + 0.0447 * x**3))))


def mean_squared_error(x: Array, ends: Range, format: Format, *, symmetric: bool = False) -> float:
    scale, zero = parameters(*ends, format, symmetric=symmetric)
    y = fake_quantize(x, scale, zero, format.narrow if symmetric else format)
    return float(np.mean(np.square(x.astype(np.float64) - y)))


@every
def test_nothing_seen(rule: Callable[[Histogram], Range]) -> None:
    assert rule(Histogram()) == (0, 0)
    assert rule(Histogram.of([np.nan, np.inf])) == (0, 0)


@every
@pytest.mark.parametrize("value", [5.0, -5.0, 0.0, 1e-35, 1e30, -1.0])
def test_a_constant_is_represented_without_error(rule: Callable[[Histogram], Range], value: float) -> None:
    x = np.full(100, value, np.float32)
    scale, zero = parameters(*rule(Histogram.of(x)), UINT8)
    np.testing.assert_allclose(fake_quantize(x, scale, zero, UINT8), x, rtol=1e-6)


@every
def test_two_opposite_values_are_both_kept(rule: Callable[[Histogram], Range]) -> None:
    # mse may shrink the step until both lie on the grid
    assert rule(Histogram.of([-5.0, 5.0] * 100)) == pytest.approx((-5, 5), abs=10 / 255)


@every
def test_zeros_and_ones_are_represented_without_error(rule: Callable[[Histogram], Range]) -> None:
    x = np.arange(1000) % 2
    assert mean_squared_error(x, rule(Histogram.of(x)), UINT8) < 1e-14


@every
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), shift=st.floats(-5, 5), exponent=st.floats(-40, 40))
def test_a_range_stays_within_the_data_and_zero(
    rule: Callable[[Histogram], Range], seed: int, shift: float, exponent: float
) -> None:
    rng = np.random.default_rng(seed)
    x = ((rng.standard_t(3, rng.integers(1, 400)) + shift) * 2**exponent).astype(np.float32)
    low, high = rule(Histogram.of(x))
    assert min(x.min(), 0) <= low <= high <= max(x.max(), 0)


@pytest.mark.parametrize("rule", [minmax, percentile, mse])
def test_the_opposite_data_has_the_opposite_range(rule: Callable[[Histogram], Range]) -> None:
    for x in (skewed(), relu(), tanh_gelu()):
        low, high = rule(Histogram.of(x))
        flipped = rule(Histogram.of(-x))
        step = (high - low) / 255
        assert (-flipped[1], -flipped[0]) == pytest.approx((low, high), abs=2 * step)


def test_minmax_is_exact() -> None:
    x = laplace_with_one_outlier()
    assert minmax(Histogram.of(x)) == (float(x.min()), 60.0)


def test_moving_average_takes_the_averages() -> None:
    m = MovingAverage.of([-1.0, 2.0]) + MovingAverage.of([-3.0, 2.0])
    assert moving_average(m) == (m.low, m.high)
    assert moving_average(MovingAverage()) == (0, 0)


@pytest.mark.parametrize("make", [gaussian, skewed, relu, laplace_with_one_outlier, uniform])
@pytest.mark.parametrize("percent", [50, 90, 99.9, 99.99])
def test_percentile_equals_the_quantiles_to_one_bin(make: Callable[[], Array], percent: float) -> None:
    x = make()
    h = Histogram.of(x)
    expected = np.quantile(x.astype(np.float64), [(100 - percent) / 200, (100 + percent) / 200])
    np.testing.assert_allclose(percentile(h, percent), expected, atol=2 * h.width)


def test_percentile_interpolates_inside_a_bin() -> None:
    # 100 values spread over one bin [2048, 2049) of width 1, the largest setting that width
    x = np.append(2048 + np.arange(99) / 99, 4095.0)
    h = Histogram.of(x)
    assert h.width == 1
    assert percentile(h, 50) == pytest.approx((2048.25, 2048.75), abs=0.02)


def test_percentile_of_everything_is_minmax() -> None:
    h = Histogram.of(skewed())
    assert percentile(h, 100) == minmax(h)


def test_percentile_jumps_over_empty_bins_and_zeros() -> None:
    h = Histogram.of(np.array([-8.0] * 10 + [0.0] * 80 + [8.0] * 10))
    assert percentile(h, 79) == (0, 0)
    low, high = percentile(h, 81)
    assert (low, high) == pytest.approx((-8, 8), abs=h.width)


@pytest.mark.parametrize("percent", [0, -1, 100.1, np.nan])
def test_percentile_refuses_what_is_no_percentage(percent: float) -> None:
    with pytest.raises(RecipeError, match="Choose a value above 0"):
        percentile(Histogram.of([1.0]), percent)


def test_entropy_cuts_one_outlier_off() -> None:
    # a search over |x| with 128 levels gives 12 here
    low, high = entropy(Histogram.of(laplace_with_one_outlier()))
    assert -14 < low < -8
    assert 8 < high < 14


@pytest.mark.parametrize(("make", "least", "most"), [(gaussian, 3.5, 5.0), (relu, 3.5, 5.0), (uniform, 0.99, 1.0)])
def test_entropy_of_well_known_shapes(make: Callable[[], Array], least: float, most: float) -> None:
    assert least < entropy(Histogram.of(make()))[1] <= most


def test_entropy_keeps_both_ends_of_skewed_data() -> None:
    low, high = entropy(Histogram.of(skewed()))
    assert -1 <= low < -0.95
    assert 9 < high < 15


def test_entropy_ignores_zeros() -> None:
    x = relu()
    assert np.mean(x == 0) == pytest.approx(0.5, abs=0.01)
    assert entropy(Histogram.of(x)) == entropy(Histogram.of(x[x != 0]))


def slow_divergence(counts: Array, first: int, last: int, levels: int) -> float:
    """The definition, bin by bin."""
    p = counts[first:last].astype(np.float64)
    tails = counts[:first].sum(), counts[last:].sum()
    q, (below, above) = np.zeros(p.size), tails
    inside = p.sum()
    p[0] += below
    p[-1] += above
    edges = [level * p.size // levels for level in range(levels + 1)]
    for start, stop in pairwise(edges):
        level = counts[first + start : first + stop].sum()
        filled = p[start:stop] > 0
        q[start:stop][filled] = max(level / max(filled.sum(), 1), 1e-4)
    kept = p > 0
    return float(np.sum(p[kept] / p.sum() * np.log(p[kept] / p.sum() / (q[kept] / inside))))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    low=st.integers(-600, 0),
    high=st.integers(0, 600),
    levels=st.sampled_from([4, 16, 100]),
)
def test_the_divergence_equals_its_definition(seed: int, low: int, high: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    counts = np.zeros(2 * BINS, np.int64)
    counts[BINS - 600 : BINS + 600] = rng.poisson(rng.gamma(0.3, 5, 1200))
    cost = _divergence(counts, levels)(np.array([low * 1.0]), np.array([high * 1.0]))[0]
    if high - low < levels:
        assert cost == np.inf
    else:
        expected = slow_divergence(counts, low + BINS, high + BINS, levels)
        assert cost / counts.sum() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("make", [gaussian, skewed, relu, laplace_with_one_outlier, student, tanh_gelu])
def test_entropy_comes_near_the_best_of_a_full_grid(make: Callable[[], Array]) -> None:
    h = Histogram.of(make())
    cost = _divergence(h.counts, 256)
    lows = np.linspace(min(h.low / h.width, 0.0), 0, 100 if h.low < 0 else 1)
    highs = np.linspace(h.high / h.width, 0, 100)
    best = min(float(cost(np.full(highs.size, low), highs).min()) for low in lows)
    low, high = entropy(h)
    found = float(cost(np.array([low / h.width]), np.array([high / h.width]))[0])
    # sampling noise makes the surface rough, so that a finer grid finds other and slightly deeper pits
    assert found <= 1.15 * best


@pytest.mark.parametrize("make", [gaussian, skewed, relu, laplace_with_one_outlier, student, lognormal, tanh_gelu])
@pytest.mark.parametrize("levels", [16, 255, 256])
def test_the_error_estimate_is_the_error_of_real_values(make: Callable[[], Array], levels: int) -> None:
    x = make()
    h = Histogram.of(x)
    format = Format("test", 8, 0, levels - 1, np.dtype(np.uint8), signed=False)
    cost = _squared_error(h, levels)
    for share in (0.9, 0.5, 0.25):
        low, high = min(h.low, 0.0) * share, h.high * share
        estimate = cost(np.array([low / h.width]), np.array([high / h.width]))[0] * h.width**2 / x.size
        # the coarse bins of a tensor with an outlier, and steps wider than the distribution, cost accuracy
        assert estimate == pytest.approx(mean_squared_error(x, (low, high), format), rel=0.25)


HEAVY = [laplace_with_one_outlier, student, lognormal, massive, gaussian, skewed, relu, tanh_gelu]


@pytest.mark.parametrize("make", HEAVY)
@pytest.mark.parametrize("format", [UINT8, UINT4], ids=["uint8", "uint4"])
def test_mse_beats_minmax_on_real_values(make: Callable[[], Array], format: Format) -> None:
    x = make()
    h = Histogram.of(x)
    assert mean_squared_error(x, mse(h, format), format) <= mean_squared_error(x, minmax(h), format) * 1.0001


@pytest.mark.parametrize("make", HEAVY)
def test_symmetric_mse_beats_symmetric_minmax(make: Callable[[], Array]) -> None:
    x = make()
    h = Histogram.of(x)
    searched = mean_squared_error(x, mse(h, INT8, symmetric=True), INT8, symmetric=True)
    assert searched <= mean_squared_error(x, minmax(h), INT8, symmetric=True) * 1.0001


@pytest.mark.parametrize("make", [laplace_with_one_outlier, student])
def test_mse_is_far_better_where_tails_are_heavy(make: Callable[[], Array]) -> None:
    x = make()
    h = Histogram.of(x)
    assert mean_squared_error(x, mse(h), UINT8) < 0.7 * mean_squared_error(x, minmax(h), UINT8)


@pytest.mark.parametrize("make", [gaussian, skewed, relu, laplace_with_one_outlier])
def test_mse_finds_the_best_scaling_of_both_ends(make: Callable[[], Array]) -> None:
    x = make()[:50_000]
    h = Histogram.of(x)
    low, high = minmax(h)
    shares = np.linspace(0.1, 1, 19)
    best = min(mean_squared_error(x, (low * a, high * b), UINT8) for a in shares for b in shares)
    assert mean_squared_error(x, mse(h), UINT8) <= best * 1.01


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), freedom=st.floats(0.5, 5), shift=st.floats(-3, 3), symmetric=st.booleans())
def test_mse_is_never_worse_than_minmax_by_its_own_measure(
    seed: int, freedom: float, shift: float, symmetric: bool
) -> None:
    rng = np.random.default_rng(seed)
    h = Histogram.of((rng.standard_t(freedom, 300) + shift).astype(np.float32))
    format = INT8 if symmetric else UINT8

    def error(ends: Range) -> float:
        low, high = min(ends[0], 0) / h.width, max(ends[1], 0) / h.width
        if symmetric:
            low, high = -max(-low, high), max(-low, high)
        levels = (format.narrow if symmetric else format).levels
        return float(_squared_error(h, levels)(np.array([low]), np.array([high]))[0])

    assert error(mse(h, format, symmetric)) <= error(minmax(h)) * (1 + 1e-9)


def test_sixteen_bits_hardly_clip() -> None:
    low, high = mse(Histogram.of(gaussian()), UINT16)
    assert (low, high) == pytest.approx((gaussian().min(), gaussian().max()), rel=0.02)


def test_cauchy_tails_are_kept() -> None:
    # one value of 1e4 costs more than coarse steps for all others
    x = cauchy()
    h = Histogram.of(x)
    assert mse(h)[1] > 0.9 * x.max()
    assert mean_squared_error(x, mse(h), UINT8) <= mean_squared_error(x, minmax(h), UINT8)
