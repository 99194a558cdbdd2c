"""What float16 holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxq.numerics.halves import HIDDEN, HIGHEST, MOST_ERROR, PART, half_constant, half_obstacle, hides, to_half

NUMBERS = arrays(np.float32, st.integers(1, 40), elements=st.floats(-60000, 60000, width=32))


def floats(size: int, seed: int = 0) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


@given(NUMBERS)
def test_what_fits_costs_no_more_than_is_said(values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> None:
    wide = values.astype(np.float64)
    error = np.sqrt(np.sum((wide - to_half(values)) ** 2))
    size = np.sqrt(np.sum(wide**2))
    if half_obstacle(values) is None:
        assert error <= 1.001 * MOST_ERROR * size
    else:
        assert error >= 0.999 * MOST_ERROR * size


@given(NUMBERS, st.floats(1e-30, 1e30))
def test_what_is_finite_stays_finite(values: np.ndarray[tuple[int], np.dtype[np.float32]], factor: float) -> None:
    with np.errstate(over="ignore"):
        scaled = values * np.float32(factor)
    found = to_half(scaled)
    assert np.isfinite(found).all() == np.isfinite(scaled).all()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([HIGHEST, -HIGHEST], None),
        ([1.0, 65520.0], "reaches 6.55e+04"),
        ([np.inf, -np.inf, 1.0], None),
        ([np.nan, 1e5], "reaches 1e+05"),
        ([], None),
        ([0.0, 0.0], None),
        ([1e-30, 1.0], None),
        ([1e-30, 1e-31], "cost 1e+02 %"),
    ],
)
def test_cases(values: list[float], words: str | None) -> None:
    found = half_obstacle(np.array(values, np.float32))
    assert found is None if words is None else found is not None and words in found


def test_every_part_is_looked_at() -> None:
    values = floats(PART + 10)
    values[-1] = 1e6
    assert half_obstacle(values) is not None
    assert half_obstacle(values[:-1]) is None
    np.testing.assert_array_equal(to_half(values[:-1]), values[:-1].astype(np.float16))


def test_ends_at_the_largest_and_keeps_infinity() -> None:
    found = to_half(np.array([[1e6, -3.4e38], [np.inf, -np.inf]], np.float32))
    np.testing.assert_array_equal(found, np.array([[HIGHEST, -HIGHEST], [np.inf, -np.inf]], np.float16))
    assert np.isnan(to_half(np.array([np.nan], np.float32))).all()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.0, -1e9, -1e9], True),
        ([-3.4e38], True),
        ([3.4e38, 1.0], True),
        ([-np.inf, 0.0], True),
        ([1e9], False),
        ([-1e9, -2e9], False),
        ([-1e9, 1e9], False),
        ([-1e9, 5e4], False),
        ([-6e4, 1.0], False),
        ([1.0], False),
        ([], False),
    ],
)
def test_what_hides_scores(values: list[float], said: bool) -> None:
    assert hides(np.array(values, np.float32)) == said


def test_constants_that_activations_meet() -> None:
    values = np.array([1e-12, -1e-12, 0.0, 0.1, -1e9, -np.inf, 1e9], np.float32)
    exact = half_constant(values, exact_zeros=True)
    tiny = np.finfo(np.float16).smallest_subnormal
    np.testing.assert_array_equal(exact, np.array([tiny, -tiny, 0, 0.1, HIDDEN, -np.inf, HIGHEST], np.float16))
    assert not half_constant(values, exact_zeros=False)[:3].any()
    assert half_constant(np.asarray(1e-12, np.float32), exact_zeros=True) == tiny
