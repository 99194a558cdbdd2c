"""How much of what few rows say is chance: all of it, none of it, and the best share in between."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.numerics.rounding.shrinkage import LEAST, shrinkage, shrunk
from tests.numerics.rounding.problems import Array


def rows(count: int, seed: int, *, mixed: float = 0.0) -> Array:
    """20 inputs, each for itself or mixtures of one another."""
    mixture = np.eye(20) + mixed * np.random.default_rng(0).normal(size=(20, 20))
    return np.asarray(np.random.default_rng(seed).normal(size=(count, 20)) @ mixture)


def gram(values: Array) -> Array:
    return np.asarray(values.T @ values)


def distance(share: float, a: Array, b: Array) -> float:
    """Between correlations, one row of sums of squares for each."""
    one, other = ((g / np.sqrt(np.outer(g.diagonal(), g.diagonal()))) for g in (a, b))
    apart = (1 - share) * one - other
    np.fill_diagonal(apart, 0)
    return float(np.square(apart).sum())


def test_inputs_that_have_nothing_to_do_with_each_other_are_not_taken_to() -> None:
    assert shrinkage(gram(rows(30, 1)), gram(rows(30, 2))) > 0.8


def test_inputs_that_go_together_in_many_rows_are_believed() -> None:
    assert shrinkage(gram(rows(5000, 1, mixed=1.0)), gram(rows(5000, 2, mixed=1.0))) == LEAST
    assert shrinkage(gram(rows(5000, 1, mixed=1.0)), gram(rows(5000, 2, mixed=1.0)), least=0.0) < 0.01


@pytest.mark.parametrize("count", [15, 60, 240])
def test_the_share_brings_both_closest(count: int) -> None:
    a, b = gram(rows(count, 1, mixed=0.3)), gram(rows(count // 3, 2, mixed=0.3))
    share = shrinkage(a, b, least=0.0)
    assert 0 < share < 1
    assert all(distance(share, a, b) <= distance(other, a, b) for other in np.linspace(0, 1, 101))


def test_units_of_inputs_and_the_number_of_rows_do_not_count() -> None:
    a, b, unit = gram(rows(60, 1, mixed=0.3)), gram(rows(20, 2, mixed=0.3)), np.logspace(-3, 3, 20)
    assert shrinkage(5 * a * np.outer(unit, unit), b) == pytest.approx(shrinkage(a, b))


def test_inputs_that_were_always_zero_say_nothing() -> None:
    a, b = gram(rows(60, 1, mixed=0.3)), gram(rows(20, 2, mixed=0.3))
    alive = np.arange(20) > 3
    expected = shrinkage(a[np.ix_(alive, alive)], b[np.ix_(alive, alive)])
    a[~alive] = a[:, ~alive] = 0
    assert shrinkage(a, b) == pytest.approx(expected)
    assert shrinkage(np.zeros((3, 3)), np.zeros((3, 3))) == 1


def test_opposite_correlations_are_not_believed_at_all() -> None:
    a = np.array([[1.0, 0.5], [0.5, 1.0]])
    assert shrinkage(a, np.array([[1.0, -0.5], [-0.5, 1.0]])) == 1


def test_only_what_is_off_the_diagonal_shrinks() -> None:
    a = gram(rows(60, 1, mixed=0.3))
    expected = 0.75 * a
    np.fill_diagonal(expected, a.diagonal())
    np.testing.assert_allclose(shrunk(a, 0.25), expected)
    np.testing.assert_array_equal(shrunk(a, 1.0), np.diag(a.diagonal()))
    assert a[0, 1] == gram(rows(60, 1, mixed=0.3))[0, 1], "the given matrix stays"
