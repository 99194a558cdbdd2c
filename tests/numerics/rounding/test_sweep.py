"""One sweep over the inputs, against its definition."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.numerics.formats import INT4
from onnxq.numerics.rounding.grid import Grid
from onnxq.numerics.rounding.sweep import BLOCK, sweep


@pytest.mark.parametrize("inputs", [1, 5, BLOCK, 2 * BLOCK + 3])
def test_each_input_makes_up_for_the_errors_of_the_others(inputs: int) -> None:
    random = np.random.default_rng(inputs)
    weight, error = random.normal(size=(2, inputs, 3))
    coupling = random.normal(size=(inputs, inputs)) / inputs
    np.fill_diagonal(coupling, 0)
    kept = error.copy()
    steps = sweep(weight, error, coupling, Grid.of((3, inputs), 0.3, 0, INT4, None))
    np.testing.assert_array_equal(error, kept)
    for j in range(inputs):
        goal = weight[j] - coupling[:, j] @ error
        np.testing.assert_array_equal(steps[j], np.clip(np.rint(goal / 0.3), -8, 7))
        error[j] = steps[j] * 0.3 - weight[j]
