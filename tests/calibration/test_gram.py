"""Gram matrices add up, to rounding: the same in any order and any split."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from onnxq.calibration.statistics import ROWS, Gram

Array = NDArray[Any]

elements = st.floats(-1e4, 1e4, width=32) | st.sampled_from([0.0, -0.0, np.nan, np.inf])
batches = arrays(np.float32, st.tuples(st.integers(0, 12), st.just(3)), elements=elements)


def assert_equal(one: Gram, other: Gram) -> None:
    assert one.rows == other.rows
    scale = max(np.abs(one.total).max(initial=0), 1.0)
    np.testing.assert_allclose(one.total, other.total, rtol=1e-12, atol=1e-12 * scale)


def assert_same_bits(one: Gram, other: Gram) -> None:
    ours, theirs = one.to_arrays(), other.to_arrays()
    assert ours.keys() == theirs.keys() == {"rows", "total"}
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype
        assert ours[name].tobytes() == theirs[name].tobytes()


@given(a=batches, b=batches, c=batches)
def test_grouping_and_order_do_not_matter(a: Array, b: Array, c: Array) -> None:
    a_, b_, c_ = Gram.of(a), Gram.of(b), Gram.of(c)
    assert_equal((a_ + b_) + c_, a_ + (b_ + c_))
    assert_equal(a_ + b_, b_ + a_)


@given(x=batches, data=st.data())
def test_one_run_equals_joined_runs(x: Array, data: st.DataObject) -> None:
    shuffled = x[np.array(data.draw(st.permutations(range(len(x)))), np.intp)]
    cut = data.draw(st.integers(0, len(x)))
    assert_equal(Gram.of(shuffled[:cut]) + Gram.of(shuffled[cut:]), Gram.of(x))


@given(x=batches)
def test_nothing_adds_nothing_and_saving_loses_nothing(x: Array) -> None:
    seen = Gram.of(x)
    assert_equal(Gram() + seen, seen)
    assert_equal(seen + Gram(), seen)
    assert_same_bits(Gram.from_arrays(seen.to_arrays()), seen)
    assert_same_bits(Gram.from_arrays(Gram().to_arrays()), Gram())


def test_every_axis_but_the_last_counts_rows() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    seen, rows = Gram.of(x), x.reshape(24, 5).astype(np.float64)
    assert seen.rows == 24
    np.testing.assert_allclose(seen.total, rows.T @ rows, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(seen.total, seen.total.T)
    assert seen.mean_square is not None
    np.testing.assert_allclose(seen.mean_square, np.square(rows).mean(axis=0), rtol=1e-12)
    assert Gram.of(x[0, 0, 0]).rows == 1


def test_many_rows_are_added_in_parts_and_in_float64() -> None:
    x = np.full((2 * ROWS + 3, 2), 1 + 2.0**-12, np.float32)
    seen = Gram.of(x)
    assert seen.rows == 2 * ROWS + 3
    np.testing.assert_allclose(seen.total, (2 * ROWS + 3) * (1 + 2.0**-12) ** 2, rtol=1e-12)


def test_rows_that_are_not_finite_are_left_out() -> None:
    seen = Gram.of(np.array([[1.0, 2.0], [np.nan, 1.0], [3.0, -np.inf]], np.float32))
    assert seen.rows == 1
    np.testing.assert_array_equal(seen.total, [[1, 2], [2, 4]])


def test_integers_are_counted_exactly() -> None:
    np.testing.assert_array_equal(Gram.of(np.full((2, 1), 200, np.uint8)).total, [[80000]])


def test_nothing_is_known_before_the_first_row() -> None:
    assert (Gram().rows, Gram().mean_square, Gram.of(np.zeros((0, 3))).mean_square) == (0, None, None)
    assert (Gram.of(np.zeros((0, 3))) + Gram.of(np.ones((1, 2)))).rows == 1


def test_inputs_that_differ_in_number_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="2 and 3 inputs do not add up"):
        Gram.of(np.ones((1, 2))) + Gram.of(np.ones((1, 3)))


def test_what_is_no_row_of_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="a single number is no row"):
        Gram.of(1.0)
    with pytest.raises(TypeError, match="Give real numbers"):
        Gram.of(np.zeros((2, 2), np.complex64))


def test_neither_data_nor_statistics_change() -> None:
    x = np.array([[1.0, -2.0], [3.0, 0.5]], np.float32)
    first = Gram.of(x)
    total = first.total.copy()
    _ = first + Gram.of(x)
    np.testing.assert_array_equal(x, [[1.0, -2.0], [3.0, 0.5]])
    np.testing.assert_array_equal(first.total, total)
