"""Made-up data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.calibration.data import open_data
from onnxq.errors import DataError
from onnxq.interface import Dimension, TensorSpec


def spec(name: str, dtype: Any, *shape: Dimension) -> TensorSpec:
    return TensorSpec(name, np.dtype(dtype), shape)


IMAGE = (spec("x", np.float32, "N", 3, "H", None),)


def test_free_dimensions_are_one_and_sixteen() -> None:
    data = open_data("random", IMAGE)
    assert len(data) == 8
    assert data.is_random
    assert data.description == "random numbers (seed 0), 8 samples"
    assert data.sample(0)["x"].shape == (1, 3, 16, 16)
    assert [b["x"].shape[0] for b in data.batches()] == [8]


def test_options_and_dimensions_by_name() -> None:
    data = open_data("random?samples=3&batch=2&H=5", IMAGE)
    assert [b["x"].shape for b in data.batches()] == [(2, 3, 5, 16)] * 3
    assert open_data("random?N=4&batch=2", IMAGE).sample(0)["x"].shape[0] == 4


def test_a_name_means_the_same_size_everywhere() -> None:
    inputs = [spec("x", np.float32, "N", "L"), spec("y", np.float32, "L", "N")]
    feed = open_data("random?batch=3", inputs).sample(0)
    assert feed["x"].shape == feed["y"].shape[::-1]


def test_a_fixed_batch_stays() -> None:
    assert open_data("random?batch=2", [spec("x", np.float32, 4, 3)]).sample(0)["x"].shape == (4, 3)


def test_the_seed_decides() -> None:
    def first(words: str) -> np.ndarray:
        return open_data(words, IMAGE).sample(0)["x"]

    np.testing.assert_array_equal(first("random"), first("random?seed=0"))
    assert not np.array_equal(first("random"), first("random?seed=1"))
    data = open_data("random", IMAGE)
    assert not np.array_equal(data.sample(0)["x"], data.sample(1)["x"])


def test_values_suit_their_type() -> None:
    wide = ("N", 1000)
    inputs = [
        spec("float", np.float32, *wide),
        spec("half", np.float16, *wide),
        spec("ids", np.int64, *wide),
        spec("pixels", np.uint8, *wide),
        spec("flag", np.bool_, *wide),
        spec("attention_mask", np.int64, *wide),
        spec("token_type_ids", np.int64, *wide),
        spec("scalar", np.float32),
    ]
    feed = open_data("random", inputs).sample(0)
    assert {name: array.dtype for name, array in feed.items()} == {s.name: s.dtype for s in inputs}
    assert abs(feed["float"].mean()) < 0.2
    assert 0.9 < feed["float"].std() < 1.1
    assert set(np.unique(feed["ids"])) == set(range(10))
    assert feed["pixels"].max() > 200
    assert set(np.unique(feed["flag"])) == {False, True}
    assert feed["attention_mask"].all()
    assert not feed["token_type_ids"].any()
    assert feed["scalar"].shape == ()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("random?W=3", "has no option 'W'. Its options are samples, seed, batch, N, H"),
        ("random?H=0", "option H=0 is wrong. It takes a whole number, at least 1"),
        ("random?samples=-1", "option samples=-1 is wrong"),
        ("random?samples=many", "option samples=many is wrong"),
        ("random?seed=", "option 'seed' needs one value"),
        ("random?seed=1&seed=2", "option 'seed' needs one value"),
    ],
)
def test_wrong_options_are_refused(words: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(words, IMAGE)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (TensorSpec("x", np.dtype(np.float32), None), "input 'x': its rank is unknown"),
        (spec("x", object, 1), "input 'x': it takes strings"),
    ],
)
def test_inputs_that_noise_cannot_fill_are_refused(wrong: TensorSpec, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data("random", [wrong])
