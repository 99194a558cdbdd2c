"""Scales that fit: never a larger error, the optimum where it is known, and the importance of each input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from onnxq.numerics.affine import SMALLEST_SCALE, fake_quantize, quantize_weight
from onnxq.numerics.formats import INT4, INT8, UINT4, UINT8, Format
from onnxq.numerics.rounding.refit import refit_scale, search_scale

Array = NDArray[Any]
Search = Callable[..., NDArray[np.float32]]

both = pytest.mark.parametrize("search", [search_scale, refit_scale])
weights = arrays(np.float32, (3, 6), elements=st.floats(-1024, 1024, width=32) | st.floats(0, 2.0**-120, width=32))
importances = arrays(np.float64, 6, elements=st.floats(0, 1e6))
formats = st.sampled_from([INT8, UINT8, INT4, UINT4])


def squared_error(weight: Array, scale: Array, zero: Array, format: Format, axis: int | None, importance: Any) -> Array:
    error = fake_quantize(weight, scale, zero, format, axis).astype(np.float64) - weight
    others = tuple(i for i in range(weight.ndim) if axis is None or i != axis % weight.ndim)
    return np.asarray((importance * np.square(error)).sum(axis=others))


@both
@settings(deadline=None)
@given(weight=weights, importance=importances, format=formats, symmetric=st.booleans(), weighted=st.booleans())
def test_the_error_never_grows(
    search: Search, weight: Array, importance: Array, format: Format, symmetric: bool, weighted: bool
) -> None:
    first = quantize_weight(weight, format, axis=0, symmetric=symmetric)
    used = format.narrow if symmetric else format
    factor = importance if weighted else None
    scale = search(weight, first.scale, first.zero_point, used, 0, factor)
    assert scale.dtype == np.float32
    assert scale.shape == (3,)
    assert (scale >= SMALLEST_SCALE).all()
    counted = importance if weighted else 1.0
    before = squared_error(weight, first.scale, first.zero_point, used, 0, counted)
    after = squared_error(weight, scale, first.zero_point, used, 0, counted)
    assert (after <= before * (1 + 1e-12)).all()


@pytest.mark.parametrize(("format", "symmetric"), [(INT4, True), (UINT4, True), (INT4, False), (UINT4, False)])
def test_the_search_finds_what_trying_finds(format: Format, symmetric: bool) -> None:
    weight = np.random.default_rng(0).standard_t(4, size=(8, 200)).astype(np.float32)
    first = quantize_weight(weight, format, axis=0, symmetric=symmetric)
    used = format.narrow if symmetric else format
    trials = [(first.scale * t).astype(np.float32) for t in np.linspace(0.5, 1, 51)]
    errors = [squared_error(weight, trial, first.zero_point, used, 0, 1.0) for trial in trials]
    found = search_scale(weight, first.scale, first.zero_point, used, 0)
    np.testing.assert_allclose(
        squared_error(weight, found, first.zero_point, used, 0, 1.0), np.min(errors, axis=0), rtol=1e-6
    )
    assert np.sum(np.min(errors, axis=0)) < 0.85 * np.sum(errors[-1])


def test_the_search_keeps_the_whole_range_where_nothing_is_gained() -> None:
    weight = np.array([[-7.0, -2.0, 3.0, 7.0]], np.float32)
    assert search_scale(weight, [1.0], [0], INT4.narrow, 0) == 1.0
    assert refit_scale(weight, [1.0], [0], INT4.narrow, 0) == 1.0


def test_refitting_finds_the_scale_of_integers() -> None:
    steps = np.array([[-7, -3, 1, 2, 7], [0, 1, 2, 5, 6]], np.float32)
    weight = steps * np.array([[0.3], [0.011]], np.float32)
    found = refit_scale(weight, [0.31, 0.0112], [0, 0], INT4.narrow, 0)
    np.testing.assert_allclose(found, [0.3, 0.011], rtol=1e-6)


def test_each_round_improves_on_the_one_before() -> None:
    weight = np.random.default_rng(1).normal(size=(1, 100)).astype(np.float32)
    scales = [refit_scale(weight, [0.9], [0], INT4.narrow, 0, rounds=rounds) for rounds in range(4)]
    errors = [squared_error(weight, scale, np.zeros(1), INT4.narrow, 0, 1.0)[0] for scale in scales]
    assert errors[0] > errors[1] > errors[2] > errors[3]


def test_one_round_is_the_closed_form() -> None:
    weight = np.array([[1.1, 2.3, -0.9]], np.float32)
    importance = np.array([1.0, 10.0, 3.0])
    # steps 1, 2, -1
    expected = (1 * 1.1 + 10 * 2.3 * 2 + 3 * 0.9) / (1 + 10 * 4 + 3)
    found = refit_scale(weight, [1.0], [8], UINT4, 0, importance, rounds=1)
    np.testing.assert_allclose(found, [expected], rtol=1e-6)


def test_channels_at_the_zero_point_keep_their_scale() -> None:
    weight = np.array([[0, 0], [0.1, -0.2]], np.float32)
    np.testing.assert_array_equal(refit_scale(weight, [3.0, 1.0], [0, 0], INT8, 0), [3, 1])


@both
def test_important_inputs_come_first(search: Search) -> None:
    weight = np.random.default_rng(2).normal(size=(4, 64)).astype(np.float32)
    first = quantize_weight(weight, INT4, axis=0)
    importance = np.where(np.arange(64) < 8, 1.0, 1e-4)
    plain, weighted = (
        search(weight, first.scale, first.zero_point, INT4.narrow, 0, factor) for factor in (None, importance)
    )
    errors = [
        squared_error(weight, s, first.zero_point, INT4.narrow, 0, importance).sum()
        for s in (first.scale, plain, weighted)
    ]
    assert errors[2] < errors[1]
    assert errors[2] < errors[0]


@both
def test_any_axis_is_the_channel_axis(search: Search) -> None:
    weight = np.random.default_rng(3).normal(size=(3, 4, 5)).astype(np.float32)
    importance = np.random.default_rng(4).uniform(size=(3, 1, 5))
    rows = np.moveaxis(weight, 1, 0).reshape(4, -1)
    row_importance = np.moveaxis(np.broadcast_to(importance, weight.shape), 1, 0).reshape(4, -1)
    first = quantize_weight(rows, INT4, axis=0)
    expected = search(rows, first.scale, first.zero_point, INT4.narrow, 0, row_importance)
    for axis in (1, -2):
        found = search(weight, first.scale, first.zero_point, INT4.narrow, axis, importance)
        np.testing.assert_array_equal(found, expected)
    assert (expected != first.scale).any()


@both
def test_one_grid_per_tensor(search: Search) -> None:
    weight = np.random.default_rng(5).normal(size=(4, 50)).astype(np.float32)
    first = quantize_weight(weight, INT4)
    found = search(weight, first.scale, first.zero_point, INT4.narrow, None)
    assert found.shape == ()
    row = search(weight.reshape(1, -1), first.scale[None], first.zero_point[None], INT4.narrow, 0)
    assert found == row[0] < first.scale


@both
def test_refuses_what_does_not_fit(search: Search) -> None:
    weight = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"importance of shape \(2,\) does not fit a weight of shape \(2, 3\)"):
        search(weight, np.ones(2), np.zeros(2), INT8, 0, np.ones(2))
    with pytest.raises(ValueError, match=r"scale of shape \(3,\) does not fit"):
        search(weight, np.ones(3), np.zeros(3), INT8, 0)
