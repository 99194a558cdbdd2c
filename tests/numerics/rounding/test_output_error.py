"""The error at the output, against the outputs themselves."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.numerics.rounding.output_error import output_error


def test_is_the_squared_difference_of_the_outputs() -> None:
    random = np.random.default_rng(0)
    weight, x = random.normal(size=(3, 5)), random.normal(size=(40, 5))
    rounded = weight.round(1)
    expected = np.square(x @ rounded.T - x @ weight.T).sum(axis=0)
    np.testing.assert_allclose(output_error(rounded, weight, x.T @ x), expected, rtol=1e-10)


def test_is_computed_in_float64() -> None:
    weight = np.array([[1.0]], np.float32)
    error = output_error(weight + np.float32(2**-20), weight, np.ones((1, 1), np.float32))
    assert error.dtype == np.float64
    assert error[0] == 2.0**-40


@pytest.mark.parametrize(("weight", "gram"), [((2, 3), (2, 2)), ((2, 3), (3,)), ((2, 3, 1), (3, 3)), ((3,), (3, 3))])
def test_refuses_the_gram_of_another_layer(weight: tuple[int, ...], gram: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"a gram of shape .* does not fit a weight of shape"):
        output_error(np.ones(weight), np.ones(weight), np.ones(gram))


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_refuses_what_is_not_finite(odd: float) -> None:
    with pytest.raises(ValueError, match="weight or gram is not finite"):
        output_error(np.ones((1, 1)), np.full((1, 1), odd), np.ones((1, 1)))
    with pytest.raises(ValueError, match="weight or gram is not finite"):
        output_error(np.ones((1, 1)), np.ones((1, 1)), np.full((1, 1), odd))
