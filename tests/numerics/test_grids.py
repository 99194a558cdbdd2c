"""The step of a grid is found from the numbers that lie on it."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.numerics.grids import common_steps


@pytest.mark.parametrize("top", [1, 7, 31, 127])
def test_finds_the_step(top: int) -> None:
    random = np.random.default_rng(top)
    steps = random.uniform(1e-4, 3, 20).astype(np.float32)
    integers = random.integers(-top, top + 1, (20, 50))
    integers[:, 0], integers[:, 1] = top, 1  # so that no larger step fits
    rows = (integers * steps[:, None]).astype(np.float32)
    found = common_steps(rows)
    assert found is not None
    np.testing.assert_allclose(found, steps, rtol=2e-7)
    np.testing.assert_array_equal(np.rint(rows / found[:, None]), integers)


def test_the_largest_step_is_taken() -> None:
    found = common_steps(np.array([[0.5, -1.5, 0, 2.5]], np.float32))
    assert found is not None
    assert found.tolist() == [0.5]


def test_a_row_of_zeros_has_any_step() -> None:
    found = common_steps(np.zeros((2, 3), np.float32))
    assert found is not None
    assert found.tolist() == [1, 1]


@pytest.mark.parametrize("row", [np.random.default_rng(0).standard_normal(30), [1, 128], [1, np.inf]])
def test_no_grid(row: list[float]) -> None:
    assert common_steps(np.array([[1, 2, 3, 0] * 8, np.resize(row, 32)], np.float32)) is None


def test_one_number_too_far_beside_the_grid() -> None:
    rows = np.arange(-100, 101, dtype=np.float32).reshape(1, -1)
    assert common_steps(rows) is not None
    rows[0, 3] += 0.01
    assert common_steps(rows) is None
