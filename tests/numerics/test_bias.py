"""The mean error of a rounded weight, against the outputs themselves."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.numerics.bias import mean_error


def test_is_the_mean_difference_of_a_linear_layer() -> None:
    rng = np.random.default_rng(0)
    exact = rng.normal(size=(5, 7))
    rounded = np.round(exact, 1)
    x = rng.normal(size=(100, 7)) + np.arange(7)
    difference = (x @ rounded.T - x @ exact.T).mean(axis=0)
    np.testing.assert_allclose(mean_error(rounded, exact, x.mean(axis=0)), difference, rtol=1e-10)


def test_is_the_mean_difference_of_a_grouped_convolution_over_one_pixel() -> None:
    rng = np.random.default_rng(1)
    exact = rng.normal(size=(6, 2, 1, 1))
    rounded = np.round(exact, 1)
    x = rng.normal(size=(50, 4)) + np.arange(4)
    first, second = (x[:, :2] @ (rounded - exact)[:3, :, 0, 0].T), (x[:, 2:] @ (rounded - exact)[3:, :, 0, 0].T)
    expected = np.concatenate([first, second], axis=1).mean(axis=0)
    np.testing.assert_allclose(mean_error(rounded, exact, x.mean(axis=0), groups=2), expected, rtol=1e-10)


def test_adds_up_the_window_of_a_convolution() -> None:
    exact = np.random.default_rng(2).normal(size=(2, 3, 3, 3))
    rounded = exact + 0.5
    np.testing.assert_allclose(mean_error(rounded, exact, np.array([1.0, 2.0, 3.0])), [0.5 * 9 * 6] * 2)


def test_refuses_means_of_another_layer() -> None:
    with pytest.raises(ValueError, match="3 means do not fit 4 input channels"):
        mean_error(np.ones((2, 4)), np.ones((2, 4)), np.ones(3))
