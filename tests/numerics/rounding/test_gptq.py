"""GPTQ against the formulas of its paper, against every choice there is, and against rounding to nearest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from onnxq.numerics.affine import quantize
from onnxq.numerics.formats import INT4, INT8, UINT4, Format
from onnxq.numerics.rounding.gptq import gptq
from onnxq.numerics.rounding.sweep import BLOCK
from tests.numerics.rounding.problems import TERNARY, Array, Problem, correlated, problems


def by_the_paper(weight: Array, gram: Array, scale: Array, zero_point: Array, format: Format, damping: float) -> Array:
    """One column after the other, the rest corrected by the Cholesky factor of the inverse; scale per weight."""
    inputs = len(gram)
    damped = gram + damping * gram.diagonal().mean() * np.eye(inputs)
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    left, integers = weight.astype(np.float64), np.empty(weight.shape)
    for j in range(inputs):
        integers[:, j] = (left[:, j] / scale[:, j]).round() + zero_point[:, j]
        integers[:, j] = integers[:, j].clip(format.qmin, format.qmax)
        error = left[:, j] - (integers[:, j] - zero_point[:, j]) * scale[:, j]
        left[:, j:] -= np.outer(error / factor[j, j], factor[j, j:])
    return integers


@pytest.mark.parametrize("inputs", [1, 7, BLOCK, 2 * BLOCK + 5])
@pytest.mark.parametrize(("format", "symmetric"), [(INT8, True), (INT4, True), (UINT4, False)])
def test_is_what_the_paper_computes(inputs: int, format: Format, symmetric: bool) -> None:
    problem = correlated(6, inputs, inputs, format, symmetric=symmetric)
    scale, zero = (np.tile(p[:, None].astype(np.float64), inputs) for p in (problem.scale, problem.zero_point))
    expected = by_the_paper(problem.weight, problem.gram, scale, zero, problem.format, 0.01)
    np.testing.assert_array_equal(gptq(*problem.arguments), expected)


def test_act_order_starts_with_the_largest_mean_square() -> None:
    problem = correlated(6, 150, 0, INT4)
    order = np.argsort(-problem.gram.diagonal())
    ordered = replace(problem, weight=problem.weight[:, order], gram=problem.gram[order][:, order])
    rounded = gptq(*problem.arguments, act_order=True)
    np.testing.assert_array_equal(rounded[:, order], gptq(*ordered.arguments))
    assert (rounded != gptq(*problem.arguments)).any()


@pytest.mark.parametrize("act_order", [False, True])
def test_blocks_of_inputs_have_their_own_scales(act_order: bool) -> None:
    problem, size = correlated(4, 150, 1, INT4), 32
    random = np.random.default_rng(0)
    scale = random.uniform(0.2, 0.6, size=(4, 5))
    zero = random.integers(-2, 3, size=(4, 5)).astype(np.int8)
    wide = [np.repeat(parameter, size, axis=1)[:, :150] for parameter in (scale, zero)]
    order = np.argsort(-problem.gram.diagonal()) if act_order else np.arange(150)
    gram, columns = problem.gram[order][:, order], [array[:, order] for array in (problem.weight, *wide)]
    expected = by_the_paper(columns[0], gram, columns[1], columns[2], INT4, 0.01)
    rounded = gptq(problem.weight, problem.gram, scale, zero, INT4, block_size=size, act_order=act_order)
    np.testing.assert_array_equal(rounded[:, order], expected)


def test_one_scale_does_for_a_tensor() -> None:
    problem = correlated(4, 9, 2)
    one = gptq(problem.weight, problem.gram, 0.02, 0, INT8)
    np.testing.assert_array_equal(one, gptq(problem.weight, problem.gram, np.full(4, 0.02), np.zeros(4), INT8))


@settings(deadline=None)
@given(problems())
def test_inputs_without_correlation_are_rounded_to_nearest(problem: Problem) -> None:
    alone = replace(problem, gram=np.diag(problem.gram.diagonal()))
    np.testing.assert_array_equal(gptq(*alone.arguments), problem.nearest)


@settings(deadline=None)
@given(problems())
def test_inputs_that_were_always_zero_are_rounded_to_nearest_and_change_nothing(problem: Problem) -> None:
    dead = problem.gram.diagonal() == 0
    rounded = gptq(*problem.arguments)
    assert rounded.dtype == problem.format.dtype
    np.testing.assert_array_equal(rounded[:, dead], problem.nearest[:, dead])


def test_beats_nearest_where_inputs_are_correlated() -> None:
    for format in (INT8, INT4):
        problem = correlated(32, 200, 3, format)
        ratio = problem.error(gptq(*problem.arguments)) / problem.error(problem.nearest)
        assert ratio.max() < 0.7
        assert ratio.mean() < 0.5


def test_lies_between_the_optimum_and_nearest_over_many_tiny_layers() -> None:
    layers = [correlated(4, 5, seed, TERNARY) for seed in range(20)]
    found = np.array([layer.error(gptq(*layer.arguments)) for layer in layers])
    least = np.array([layer.least_error() for layer in layers])
    nearest = np.array([layer.error(layer.nearest) for layer in layers])
    assert (found >= least * (1 - 1e-9)).all()
    assert found.sum() < 1.5 * least.sum()
    assert nearest.sum() > 1.8 * least.sum()


def test_is_exact_where_one_input_is_the_only_one() -> None:
    layer = correlated(6, 1, 0, TERNARY)
    np.testing.assert_allclose(layer.error(gptq(*layer.arguments)), layer.least_error())


def test_damping_grows_until_there_is_a_factor() -> None:
    # ten copies of one input, with an error that makes the matrix indefinite: 1e-3 and 1e-2 are too small
    gram = np.ones((10, 10)) - 0.05 * np.eye(10)
    weight = np.random.default_rng(0).normal(size=(20, 10)).astype(np.float32)
    problem = Problem.of(weight, gram, INT8)
    rounded = gptq(*problem.arguments, damping=1e-3)
    np.testing.assert_array_equal(rounded, gptq(*problem.arguments, damping=0.1))
    assert (rounded != gptq(*problem.arguments, damping=0.064)).any()


def test_nothing_seen_is_nearest() -> None:
    problem = correlated(3, 4, 0)
    silent = replace(problem, gram=np.zeros((4, 4)))
    np.testing.assert_array_equal(gptq(*silent.arguments), problem.nearest)


def test_only_the_directions_of_the_gram_count() -> None:
    problem = correlated(5, 40, 4, INT4)
    tenfold = replace(problem, gram=problem.gram * 1024)
    np.testing.assert_array_equal(gptq(*problem.arguments), gptq(*tenfold.arguments))


def test_refuses_no_damping() -> None:
    with pytest.raises(ValueError, match="a damping of 0"):
        gptq(*correlated(2, 3, 0).arguments, damping=0)


@pytest.mark.parametrize(
    ("scale", "block_size"), [(np.ones(3), None), (np.ones((2, 2)), None), (np.ones((2, 2)), 2), (np.ones(2), 5)]
)
def test_refuses_scales_of_another_weight(scale: Array, block_size: int | None) -> None:
    problem = correlated(2, 5, 0)
    with pytest.raises(ValueError, match=r"does not fit a weight of shape \(2, 5\) and block size"):
        gptq(problem.weight, problem.gram, scale, np.zeros(scale.shape), INT8, block_size=block_size)


def test_leaves_its_arguments_alone() -> None:
    problem = correlated(3, 8, 0)
    kept = [np.copy(array) for array in (problem.weight, problem.gram)]
    quantized = quantize(problem.weight, problem.scale, problem.zero_point, problem.format, axis=0)
    assert gptq(*problem.arguments).shape == quantized.shape
    np.testing.assert_array_equal(problem.weight, kept[0])
    np.testing.assert_array_equal(problem.gram, kept[1])
