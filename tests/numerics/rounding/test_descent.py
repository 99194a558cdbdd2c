"""Coordinate descent: never worse than its start, never improved by one step, close to the optimum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.numerics.affine import dequantize
from onnxq.numerics.formats import INT4, INT8, UINT4, Format
from onnxq.numerics.rounding.descent import descend
from onnxq.numerics.rounding.gptq import gptq
from onnxq.numerics.rounding.output_error import output_error
from onnxq.numerics.rounding.sweep import BLOCK
from tests.numerics.rounding.problems import TERNARY, Array, Problem, correlated, problems


@settings(deadline=None)
@given(problems(), st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_is_never_worse_than_its_start_or_nearest(problem: Problem, sweeps: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    wild = random.integers(problem.format.qmin, problem.format.qmax + 1, problem.weight.shape)
    for start in (None, gptq(*problem.arguments), wild.astype(problem.format.dtype)):
        after = problem.error(descend(*problem.arguments, start, sweeps))
        for before in (problem.nearest, problem.nearest if start is None else start):
            # sums of terms as large as the signal cancel to rounding
            signal = output_error(0 * problem.weight, problem.weight, problem.gram)
            assert (after <= problem.error(before) * (1 + 1e-9) + 1e-12 * signal).all()


@pytest.mark.parametrize("inputs", [6, BLOCK + 7])
@pytest.mark.parametrize(("format", "symmetric"), [(INT8, True), (INT4, True), (UINT4, False)])
def test_no_single_step_improves_the_result(inputs: int, format: Format, symmetric: bool) -> None:
    problem = correlated(3, inputs, inputs, format, symmetric=symmetric)
    settled = descend(*problem.arguments, sweeps=200)
    least = problem.error(settled)
    for j in range(inputs):
        for step in (-1, 1):
            moved = settled.astype(np.int64)
            moved[:, j] = np.clip(moved[:, j] + step, problem.format.qmin, problem.format.qmax)
            assert (problem.error(moved.astype(problem.format.dtype)) >= least * (1 - 1e-6)).all()


def test_comes_close_to_the_optimum_of_tiny_layers() -> None:
    layers = [correlated(4, 5, seed, TERNARY) for seed in range(20)]
    least = np.array([layer.least_error() for layer in layers])
    found = np.array([layer.error(descend(*layer.arguments, gptq(*layer.arguments))) for layer in layers])
    nearest = np.array([layer.error(layer.nearest) for layer in layers])
    assert (found >= least * (1 - 1e-6)).all()
    assert np.isclose(found, least, rtol=1e-6).mean() > 0.6
    assert found.sum() < 1.3 * least.sum()
    assert nearest.sum() > 1.8 * least.sum()


def test_improves_on_gptq_and_on_nearest_where_inputs_are_correlated() -> None:
    problem = correlated(32, 200, 5, INT4)
    start = gptq(*problem.arguments)
    assert problem.error(descend(*problem.arguments)).sum() < 0.5 * problem.error(problem.nearest).sum()
    assert problem.error(descend(*problem.arguments, start)).sum() < 0.97 * problem.error(start).sum()


def test_more_sweeps_are_never_worse() -> None:
    problem = correlated(8, 60, 6, INT4)
    errors = [problem.error(descend(*problem.arguments, sweeps=sweeps)).sum() for sweeps in range(6)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == problem.error(problem.nearest).sum()
    assert errors[2] < errors[1]


def test_blocks_of_inputs_have_their_own_scales() -> None:
    problem, zero = correlated(4, 10, 7, INT4), np.array([[1, 0, -1]] * 4, np.int8)
    scale = np.random.default_rng(0).uniform(0.2, 0.6, size=(4, 3)).astype(np.float32)
    rounded = descend(problem.weight, problem.gram, scale, zero, INT4, sweeps=200, block_size=4)

    def error(integers: Array) -> Array:
        wide_scale, wide_zero = (np.repeat(values, 4, axis=1)[:, :10].ravel() for values in (scale, zero))
        values = dequantize(integers.ravel(), wide_scale, wide_zero, axis=0).reshape(4, 10)
        return output_error(values, problem.weight, problem.gram)

    for j in range(10):
        for step in (-1, 1):
            moved = rounded.copy()
            moved[:, j] = np.clip(moved[:, j] + step, INT4.qmin, INT4.qmax)
            assert (error(moved) >= error(rounded) * (1 - 1e-6)).all()


@settings(deadline=None)
@given(problems())
def test_inputs_without_correlation_stay_nearest(problem: Problem) -> None:
    alone = replace(problem, gram=np.diag(problem.gram.diagonal()))
    np.testing.assert_array_equal(descend(*alone.arguments), problem.nearest)


def test_the_start_stays_where_nothing_is_gained() -> None:
    half = np.array([[0.5]]), np.eye(1), 1.0, 0, INT4
    for start in (0, 1):
        assert descend(*half, np.array([[start]], np.int8)) == start
    assert descend(*half, np.array([[2]], np.int8)) == 0


def test_refuses_a_start_that_is_no_rounding_of_the_weight() -> None:
    problem = correlated(2, 3, 0)
    with pytest.raises(ValueError, match=r"integers of shape \(3, 2\)"):
        descend(*problem.arguments, np.zeros((3, 2), np.int8))
    with pytest.raises(ValueError, match=r"integers -128\.\.-128 are not all in -127\.\.127"):
        descend(*problem.arguments, np.full((2, 3), -128, np.int8))
