"""Planted factors are found under rounding, and nothing is found where there are none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxq.numerics.affine import dequantize, quantize_weight
from onnxq.numerics.formats import INT8
from onnxq.numerics.rescaling import Factors, find_factors

Array = NDArray[Any]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def some(count: int, seed: int) -> Array:
    return np.exp(normal(count, seed=seed))


def rounded(weight: Array, axis: int | None = 0) -> Array:
    found = quantize_weight(weight, INT8, axis=axis)
    return dequantize(found.values, found.scale, found.zero_point, axis)


def found(exact: Array, changed: Array, **options: Any) -> Factors:
    factors = find_factors(exact, changed, **options)
    assert factors is not None
    return factors


def test_smoothing_is_a_factor_for_each_input() -> None:
    exact, inputs = normal(24, 16), some(16, 1)
    factors = found(exact, rounded(exact * inputs))
    np.testing.assert_allclose(factors.input, inputs, rtol=0.02)
    np.testing.assert_array_equal(factors.output, np.ones(24))


def test_the_first_of_two_equalized_convolutions_has_output_factors() -> None:
    exact, outputs = normal(8, 6, 3, 3), some(8, 2)
    factors = found(exact, rounded(exact * outputs.reshape(-1, 1, 1, 1)))
    np.testing.assert_allclose(factors.output, outputs, rtol=0.02)
    np.testing.assert_array_equal(factors.input, np.ones(6))


def test_both_sides_up_to_a_common_factor() -> None:
    exact, outputs, inputs = normal(20, 16), some(20, 3), some(16, 4)
    factors = found(exact, rounded(exact * outputs[:, None] * inputs))
    assert np.log(factors.output).mean() == pytest.approx(0, abs=1e-6)
    product = factors.output[:, None] * factors.input / (outputs[:, None] * inputs)
    np.testing.assert_allclose(product, np.ones((20, 16)), rtol=0.03)


def test_what_the_layer_before_tells_is_taken_over() -> None:
    exact, outputs, inputs = normal(20, 16), some(20, 3), some(16, 4)
    factors = found(exact, rounded(exact * outputs[:, None] * inputs), known_input=inputs)
    np.testing.assert_allclose(factors.output, outputs, rtol=0.03)
    np.testing.assert_array_equal(factors.input, inputs)


def test_factors_that_the_layer_before_tells_need_less_evidence() -> None:
    """Rounding that heeds the outputs moves weights further than to the nearest integer."""
    exact, outputs, inputs = normal(24, 16), some(24, 3) ** 0.5, some(16, 4) ** 0.5
    changed = exact * outputs[:, None] * inputs * (1 + 0.32 * normal(24, 16, seed=5))
    assert find_factors(exact, changed) is None
    factors = found(exact, changed, known_input=inputs)
    assert np.abs(np.log(factors.output / outputs)).mean() < 0.15 < 0.3 < np.abs(np.log(outputs)).mean()
    assert find_factors(exact, exact + 0.3 * normal(24, 16, seed=1), known_input=inputs) is None, "nothing like it"


@pytest.mark.parametrize("groups", [2, 8])
def test_groups(groups: int) -> None:
    exact, outputs, inputs = normal(8, 8 // groups, 3, 3), some(8, 5), some(8, 6)
    split = (exact.reshape(groups, -1, *exact.shape[1:]) * inputs.reshape(groups, 1, -1, 1, 1)).reshape(exact.shape)
    changed = rounded(split * outputs.reshape(-1, 1, 1, 1))
    factors = found(exact, changed, groups=groups, known_input=inputs)
    np.testing.assert_allclose(factors.output, outputs, rtol=0.03)
    plain = factors.removed(changed, groups)
    assert np.sum((plain - exact) ** 2) < 0.02 * np.sum(exact**2) < 0.1 * np.sum((changed - exact) ** 2)
    assert plain.dtype == np.float32


@pytest.mark.parametrize("axis", [0, None])
def test_rounding_alone_has_no_factors(axis: int | None) -> None:
    exact = normal(24, 16)
    exact[3] *= 60
    assert find_factors(exact, rounded(exact, axis)) is None
    assert find_factors(exact, exact) is None
    assert find_factors(exact, exact * 1.002) is None, "not worth a word"


def test_factors_that_leave_much_unexplained_are_none() -> None:
    exact = normal(24, 16)
    assert find_factors(exact, 5 * (exact + 0.1 * normal(24, 16, seed=1))) is not None
    assert find_factors(exact, 5 * (exact + 0.3 * normal(24, 16, seed=1))) is None


def test_channels_that_rounding_erased_keep_the_factor_1() -> None:
    exact, outputs = normal(24, 16), some(24, 7)
    exact[5] *= 1e-6
    changed = rounded(exact * outputs[:, None], None)
    assert not changed[5].any()
    factors = found(exact, changed)
    assert factors.output[5] == 1.0


def test_what_one_wide_channel_erased_proves_nothing() -> None:
    exact = normal(8, 8, 3, 3) / 4
    exact[0] *= 500
    changed = rounded(exact, None)
    assert not changed[1:].any()
    assert find_factors(exact, changed) is None
    erased = normal(24, 16)
    erased[5:] = 0
    assert find_factors(normal(24, 16), erased) is None, "what is left is untouched"


def test_coarse_rounding_is_not_taken_for_factors() -> None:
    exact = normal(6, 40)
    assert find_factors(exact, np.round(exact / 2.5) * 2.5) is None


def test_one_side_is_preferred_unless_both_explain_far_more() -> None:
    exact, outputs, inputs = normal(20, 16), some(20, 3), 1 + 0.05 * normal(16, seed=4)
    factors = found(exact, exact * outputs[:, None] * inputs)
    np.testing.assert_allclose(factors.input / factors.input[0], inputs / inputs[0], rtol=1e-6)
    noisy = exact * outputs[:, None] * (1 + 0.02 * normal(20, 16, seed=5))
    np.testing.assert_array_equal(found(exact, noisy).input, np.ones(16))


@pytest.mark.parametrize("shape", [(32, 1, 1, 1), (1, 32)])
def test_a_number_for_each_factor_proves_nothing(shape: tuple[int, ...]) -> None:
    exact = normal(*shape)
    changed = exact * np.exp(0.3 * normal(*shape, seed=9))
    assert find_factors(exact, changed, groups=32 if len(shape) == 4 else 1) is None
