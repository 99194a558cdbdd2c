"""Every feed is checked against the inputs of the model: names, shapes, types and NaN."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import ArrayLike

from onnxq.calibration.data import open_data
from onnxq.calibration.feeds import checked
from onnxq.errors import DataError
from onnxq.interface import TensorSpec


def spec(dtype: Any, *shape: int | str | None) -> TensorSpec:
    return TensorSpec("x", np.dtype(dtype), shape)


def as_dtype(value: ArrayLike, dtype: Any) -> np.ndarray:
    array = np.asarray(value)
    return checked({"x": array}, [spec(dtype, *array.shape)], "feed")["x"]


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (np.float64, np.float32),
        (np.float32, np.float16),
        (np.float32, ml_dtypes.bfloat16),
        (np.int32, np.int64),
        (np.int64, np.int32),
        (np.uint8, np.float32),
        (np.int64, np.float32),
        (np.int64, np.bool_),
        (np.bool_, np.int64),
        (np.bool_, np.float32),
        (np.dtype(">i4"), np.int32),
    ],
)
def test_casts_that_keep_the_values(source: Any, target: Any) -> None:
    result = as_dtype(np.array([[0, 1]], source), target)
    assert result.dtype == np.dtype(target)
    assert result.astype(int).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("value", "target"),
    [
        (np.array([1.0]), np.int64),  # floats are never cut to integers, whole or not
        (np.array([1.0]), np.bool_),
        (np.array([2**31]), np.int32),
        (np.array([-1]), np.uint8),
        (np.array([2]), np.bool_),
        (np.array([2**24 + 1]), np.float32),
        (np.array([1e5]), np.float16),
        (np.array([1j]), np.float32),
        (np.array(["1"]), np.float32),
        (np.array([None]), np.float32),
        (np.array([1.0]), np.object_),
    ],
)
def test_casts_that_lose_values_are_refused(value: np.ndarray, target: Any) -> None:
    message = rf"feed: input 'x' is .* would lose values as {np.dtype(target)}. The model expects x: "
    with pytest.raises(DataError, match=message):
        as_dtype(value, target)


def test_strings_are_taken_by_a_string_input() -> None:
    assert as_dtype(np.array(["a", "bc"]), object).tolist() == ["a", "bc"]
    assert as_dtype(np.array(["a", "bc"], object), object).tolist() == ["a", "bc"]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_nan_is_refused(dtype: Any) -> None:
    value = np.array([[1, np.nan, np.nan]], dtype)
    with pytest.raises(DataError, match="feed: input 'x' holds NaN in 2 of 3 values"):
        as_dtype(value, np.float32)


def test_infinity_is_kept() -> None:
    assert as_dtype(np.array([-np.inf, 1.0]), np.float32).tolist() == [-np.inf, 1.0]


def test_arrays_are_contiguous_aligned_and_of_the_base_class() -> None:
    shifted = np.frombuffer(bytes(9), np.float32, offset=1)
    assert not shifted.flags.aligned
    for array in (shifted, np.zeros((4, 6), np.float32).T, np.float32(2)):
        result = as_dtype(array, np.float32)
        assert result.flags.c_contiguous
        assert result.flags.aligned
        assert type(result) is np.ndarray
        assert result.shape == np.shape(array)


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (np.zeros((1, 4), np.float32), (1, 3)),
        (np.zeros((2, 3), np.float32), (1, 3)),
        (np.zeros(3, np.float32), (1, 3)),
        (np.zeros((1, 3, 1), np.float32), ("batch", 3)),
        (np.float32(1), ("batch",)),
    ],
)
def test_wrong_shapes_are_refused(value: np.ndarray, shape: tuple[int | str, ...]) -> None:
    with pytest.raises(DataError) as caught:
        checked({"x": value}, [spec(np.float32, *shape)], "feed")
    assert f"input 'x' has shape {list(np.shape(value))}" in str(caught.value)
    assert str(spec(np.float32, *shape)) in str(caught.value)


def test_free_dimensions_and_unknown_ranks_take_any_size() -> None:
    value = np.zeros((5, 7), np.float32)
    for wanted in (spec(np.float32, "batch", None), TensorSpec("x", np.dtype(np.float32), None)):
        assert checked({"x": value}, [wanted], "feed")["x"].shape == (5, 7)


def test_missing_and_unknown_names_are_refused() -> None:
    inputs = [spec(np.float32, 1), TensorSpec("y", np.dtype(np.int64), ("n",))]
    expected = r"x: float32\[1\], y: int64\[n\]"
    with pytest.raises(DataError, match=f"feed: input 'y' is missing. The model expects {expected}"):
        checked({"x": [1.0]}, inputs, "feed")
    with pytest.raises(DataError, match="feed: inputs 'x', 'y' are missing"):
        checked({}, inputs, "feed")
    with pytest.raises(DataError, match=f"feed: the model has no input 'z'. It expects {expected}"):
        checked({"x": [1.0], "y": [1], "z": 0}, inputs, "feed")


def test_inputs_come_in_the_order_of_the_model_and_labels_are_dropped() -> None:
    inputs = [TensorSpec(name, np.dtype(np.int64), (1,)) for name in "ab"]
    assert list(checked({"labels": [0], "b": [1], "a": [2]}, inputs, "feed")) == ["a", "b"]


def test_an_input_may_be_called_labels() -> None:
    inputs = [TensorSpec("labels", np.dtype(np.int64), ("n",))]
    data = open_data({"labels": np.arange(3)}, inputs)
    assert data.labels is None
    assert next(data.batches())["labels"].tolist() == [0, 1, 2]


def test_lists_that_are_not_rectangular_are_refused() -> None:
    with pytest.raises(DataError, match="feed: 'x' is no array"):
        checked({"x": [[1.0], [1.0, 2.0]]}, [spec(np.float32, 2, 2)], "feed")


@pytest.mark.parametrize("feed", [(1, 2), np.zeros(3), "text"])
def test_a_feed_is_a_dictionary(feed: object) -> None:
    with pytest.raises(DataError, match=rf"feed: a {type(feed).__name__}, not a dictionary.*x: float32\[1\]"):
        checked(feed, [spec(np.float32, 1)], "feed")


def test_a_later_wrong_feed_is_found_when_it_is_read() -> None:
    feeds = [{"x": np.zeros((1, 2), np.float32)}, {"x": np.full((1, 2), np.nan, np.float32)}]
    data = open_data(feeds, [spec(np.float32, "batch", 2)])
    with pytest.raises(DataError, match="the data, feed 1: input 'x' holds NaN"):
        list(data.batches())
