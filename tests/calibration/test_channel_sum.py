"""Channel sums are integers: the same in any order and any split."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxq.calibration.statistics import STEPS, ChannelSum

values = arrays(np.float32, (12, 3), elements=st.floats(-1e4, 1e4, width=32))


@given(values, st.permutations(range(12)), st.integers(1, 11))
def test_order_and_split_change_nothing(x: np.ndarray, order: list[int], cut: int) -> None:
    whole = ChannelSum.of(x, axis=1)
    parts = ChannelSum.of(x[order[:cut]], axis=1) + ChannelSum.of(x[order[cut:]], axis=1)
    assert parts.count == whole.count == 12
    assert parts.total.tobytes() == whole.total.tobytes()


@given(values)
def test_mean_is_right_to_half_a_step(x: np.ndarray) -> None:
    mean = ChannelSum.of(x, axis=1).mean
    assert mean is not None
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(axis=0), atol=0.5 / STEPS, rtol=1e-12)


def test_channels_of_an_image_lie_along_axis_1() -> None:
    x = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    mean = ChannelSum.of(x, axis=1).mean
    assert mean is not None
    np.testing.assert_array_equal(mean, x.mean(axis=(0, 2, 3)))


def test_nothing_is_known_of_channels_that_change_in_number() -> None:
    joined = ChannelSum.of(np.ones((2, 3)), axis=1) + ChannelSum.of(np.ones((2, 4)), axis=1)
    assert joined.mean is None
    assert ChannelSum().mean is None


def test_nothing_adds_nothing_and_nan_counts_as_zero() -> None:
    one = ChannelSum.of(np.array([[1.0, np.nan], [3.0, 4.0]], np.float32), axis=1)
    assert one.mean is not None
    np.testing.assert_array_equal(one.mean, [2.0, 2.0])
    assert (one + ChannelSum()).to_arrays()["total"].tobytes() == one.total.tobytes()
    again = ChannelSum.from_arrays(one.to_arrays())
    assert (again.count, again.total.tobytes()) == (one.count, one.total.tobytes())


@pytest.mark.parametrize("large", [1e30, np.inf])
def test_what_is_too_large_is_cut(large: float) -> None:
    mean = ChannelSum.of(np.array([[large]], np.float32), axis=1).mean
    assert mean is not None
    assert mean[0] == 2.0**15
