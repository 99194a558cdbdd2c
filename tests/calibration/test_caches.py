"""Which inputs are caches, where their tokens lie, and what a decoder takes before it has seen any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxq.calibration.caches import BRANCH, empty_caches, find_cache, fixed_rows, row_axes
from onnxq.calibration.data import Data, open_data
from onnxq.errors import DataError
from onnxq.interface import Dimension, TensorSpec
from onnxq.runtime import Session
from tests.calibration.test_data_text import words
from tests.decoders import Style, decoder


def spec(name: str, *shape: Dimension, dtype: Any = np.float32) -> TensorSpec:
    return TensorSpec(name, np.dtype(dtype), shape)


@pytest.mark.parametrize(
    ("cache", "rows", "length"),
    [
        (spec("past_key_values.0.key", "batch", 8, "past_sequence_length", 64), 0, 2),
        (spec("past_0", 2, "batch", 8, "past_seq_len", 64), 1, 3),
        (spec("past.0.key_value", "batch", "past", 128), 0, 1),
        (spec("key_cache_0", "batch", "length", 8, 64), 0, 1),
        (spec("past_key", "batch", None, None, 64), 0, 2),
        (spec("past_key", "batch", "num_heads", "past_len", 64), 0, 2),
        (spec("cache", "batch", "kv_heads", "kv_length", 64), 0, 2),
        (spec("past", "past_dim_0", "past_dim_1", "past_dim_2", 64), 0, 2),
        (spec("past", 1, 8, "n", 64, dtype=np.float16), 0, 2),
    ],
)
def test_where_texts_and_tokens_lie(cache: TensorSpec, rows: int, length: int) -> None:
    found = find_cache(cache)
    assert found is not None
    assert (found.rows, found.length) == (rows, length)


@pytest.mark.parametrize(
    "other",
    [
        spec("past_key_values.0.key", "batch", 8, 128, 64),  # of a fixed length
        spec("past_ids", "batch", "past", 1, dtype=np.int64),
        spec("past_mask", "batch", "past"),
        spec("encoder_hidden_states", "batch", "sequence", 64),
        spec("past_everything", *"abcdef"),
        TensorSpec("past", np.dtype(np.float32), None),
    ],
)
def test_what_is_no_cache(other: TensorSpec) -> None:
    assert find_cache(other) is None


def test_caches_are_empty_and_not_used() -> None:
    inputs = [
        spec("input_ids", "batch", "new", dtype=np.int64),
        spec("past.0.key", "batch", 8, "past", 64),
        spec("past_1", 2, "batch", 8, "past", 32, dtype=np.float16),
        spec(BRANCH, 1, dtype=np.bool_),
    ]
    found = empty_caches(inputs, 3)
    assert {name: (value.shape, str(value.dtype)) for name, value in found.items()} == {
        "past.0.key": ((3, 8, 0, 64), "float32"),
        "past_1": ((2, 3, 8, 0, 32), "float16"),
        BRANCH: ((1,), "bool"),
    }
    assert found[BRANCH].tolist() == [False]
    assert row_axes(inputs) == {"past_1": 1, BRANCH: None}
    assert fixed_rows(inputs) is None
    assert fixed_rows([spec("past", 4, 8, "past", 64)]) == 4


@pytest.mark.parametrize(
    ("cache", "axis"),
    [
        (spec("past.0.key", "batch", "num_heads", "past", 64), r"axis 1 \(num_heads\)"),
        (spec("past.0.key", "batch", 8, "past", None), "axis 3 of its cache"),
        (spec("past.0.key", "batch_x_heads", 64, "past"), r"axis 0 \(batch_x_heads\)"),
    ],
)
def test_an_axis_that_must_have_a_size_is_named(cache: TensorSpec, axis: str) -> None:
    with pytest.raises(DataError, match=rf"Input 'past\.0\.key': {axis}.* has no fixed size.*export it"):
        empty_caches([cache], 1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a tokenizer.json and three texts of 1, 3 and 2 tokens in val.txt."""
    monkeypatch.chdir(tmp_path)
    words().save("tokenizer.json")
    Path("val.txt").write_text("a\na b c\nb c\n")
    return tmp_path


def texts(session: Session, options: str = "") -> Data:
    return open_data(f"text:val.txt?tokenizer=tokenizer.json{options}", session.inputs)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("style", ["split", "stacked", "merged"])
def test_texts_run_through_a_decoder_in_batches(style: Style) -> None:
    """Alone or padded beside longer ones, what a text predicts is the same."""
    session = Session(decoder(style).SerializeToString(), threads=1)
    data = texts(session)
    (batch,) = data.batches(3)
    assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1], [1, 1, 0]]
    assert batch["position_ids"].tolist() == [[0, 0, 0], [0, 1, 2], [0, 1, 0]]
    assert all(0 in value.shape for name, value in batch.items() if "past" in name)
    together = session.run(batch)["logits"]
    for row, alone in enumerate(data.batches(1)):
        length = alone["input_ids"].shape[1]
        np.testing.assert_allclose(session.run(alone)["logits"][0], together[row, :length], atol=1e-5)


@pytest.mark.usefixtures("folder")
def test_a_fixed_batch_is_that_of_the_caches_too() -> None:
    inputs = [spec("input_ids", "b", "s", dtype=np.int64), spec("past_0", 2, 2, 4, "past", 8)]
    data = open_data("text:val.txt?tokenizer=tokenizer.json", inputs)
    assert data.sample(0)["input_ids"].tolist() == [[1, 9, 9], [1, 2, 3]]
    assert data.sample(0)["past_0"].shape == (2, 2, 4, 0, 8)


@pytest.mark.usefixtures("folder")
def test_a_cache_of_a_fixed_length_is_refused() -> None:
    inputs = [spec("input_ids", "b", "s", dtype=np.int64), spec("past_0", "b", 4, 16, 8)]
    with pytest.raises(DataError, match=r"caches of a length that may be 0.*past_0: float32\[b, 4, 16, 8\]"):
        open_data("text:val.txt?tokenizer=tokenizer.json", inputs)


@pytest.mark.parametrize("style", ["split", "stacked", "merged"])
def test_random_data_fits_a_decoder(style: Style) -> None:
    session = Session(decoder(style).SerializeToString(), threads=1)
    for source, new, past in (("random?samples=3", 16, 0), ("random?samples=3&past=5&new=1", 1, 5)):
        (batch,) = open_data(source, session.inputs).batches()
        assert batch["attention_mask"].shape == (3, past + new)
        assert batch.get(BRANCH, np.array([past > 0])).tolist() == [past > 0]
        assert session.run(batch)["logits"].shape == (3, new, 24)


def test_a_length_that_is_shared_with_the_tokens_is_not_empty() -> None:
    inputs = [spec("input_ids", "b", "length", dtype=np.int64), spec("past", "b", 2, "length", 4)]
    assert open_data("random", inputs).sample(0)["past"].shape == (1, 2, 16, 4)
    unnamed = [spec("input_ids", "b", None, dtype=np.int64), spec("past", "b", 2, None, 4)]
    assert {value.shape for value in open_data("random", unnamed).sample(0).values()} == {(1, 16), (1, 2, 0, 4)}


def test_a_mask_whose_size_is_asked_for_keeps_it() -> None:
    inputs = [
        spec("input_ids", "b", "s", dtype=np.int64),
        spec("attention_mask", "b", "all", dtype=np.int64),
        spec("past", "b", 2, "past", 4),
    ]
    assert open_data("random?past=3", inputs).sample(0)["attention_mask"].shape == (1, 19)
    assert open_data("random?past=3&all=9", inputs).sample(0)["attention_mask"].shape == (1, 9)
