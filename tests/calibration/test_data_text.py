"""Texts: which inputs they fill, how they are padded, and every refusal."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from onnxq.calibration.data import Data, mask_of, open_data
from onnxq.errors import DataError
from onnxq.interface import Dimension, TensorSpec

VOCABULARY = {"[UNK]": 0, "a": 1, "b": 2, "c": 3, "[CLS]": 4, "[PAD]": 9}
SHAPE: tuple[Dimension, ...] = ("batch", "sequence")


def specs(*names: str, shape: tuple[Dimension, ...] = SHAPE) -> list[TensorSpec]:
    return [TensorSpec(name, np.dtype(np.int64), shape) for name in names]


IDS = specs("input_ids", "attention_mask")


def words() -> Tokenizer:
    tokenizer = Tokenizer(WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a tokenizer.json and three texts of 1, 3 and 2 tokens in val.txt."""
    monkeypatch.chdir(tmp_path)
    words().save("tokenizer.json")
    Path("val.txt").write_text("a\n\n  \na b c\nb c\n")
    return tmp_path


def opened(options: str = "", inputs: list[TensorSpec] = IDS, file: str = "val.txt") -> Data:
    return open_data(f"text:{file}?tokenizer=tokenizer.json{options}", inputs)


@pytest.mark.usefixtures("folder")
def test_a_batch_is_padded_to_its_longest_text() -> None:
    data = opened()
    assert len(data) == 3
    first, second = data.batches(2)
    assert first["input_ids"].tolist() == [[1, 9, 9], [1, 2, 3]]
    assert first["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert second["input_ids"].tolist() == [[2, 3]]
    mask = mask_of(first)
    assert mask is not None
    assert mask.tolist() == [[True, False, False], [True, True, True]]


@pytest.mark.usefixtures("folder")
def test_only_the_inputs_of_the_model_are_filled() -> None:
    names = ("position_ids", "input_ids", "token_type_ids", "attention_mask")
    batch = next(opened(inputs=specs(*names)).batches())
    assert tuple(batch) == names
    assert batch["position_ids"].tolist() == [[0, 0, 0], [0, 1, 2], [0, 1, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0]] * 3


@pytest.mark.usefixtures("folder")
def test_the_type_of_the_model_is_used() -> None:
    inputs = [TensorSpec("input_ids", np.dtype(np.int32), SHAPE)]
    assert opened(inputs=inputs).sample(0)["input_ids"].dtype == np.int32


@pytest.mark.usefixtures("folder")
def test_without_a_mask_texts_of_other_lengths_are_not_padded() -> None:
    data = opened(inputs=specs("input_ids"))
    assert [b["input_ids"].tolist() for b in data.batches()] == [[[1]], [[1, 2, 3]], [[2, 3]]]


@pytest.mark.usefixtures("folder")
def test_pad_max_fills_up_to_the_length() -> None:
    for inputs in (IDS, specs("input_ids")):
        batch = next(opened("&pad=max&length=4", inputs).batches())
        assert batch["input_ids"].tolist() == [[1, 9, 9, 9], [1, 2, 3, 9], [2, 3, 9, 9]]


@pytest.mark.usefixtures("folder")
def test_texts_are_cut_to_the_length() -> None:
    assert next(opened("&length=2").batches())["input_ids"].tolist() == [[1, 9], [1, 2], [2, 3]]


def test_texts_are_cut_to_128_tokens_by_default(folder: Path) -> None:
    (folder / "val.txt").write_text("a " * 200)
    assert opened().sample(0)["input_ids"].shape == (1, 128)


def test_texts_are_cut_to_what_the_tokenizer_states(folder: Path) -> None:
    tokenizer = words()
    tokenizer.enable_truncation(2)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert opened().sample(1)["input_ids"].tolist() == [[1, 2]]
    assert opened("&length=3").sample(1)["input_ids"].tolist() == [[1, 2, 3]]
    assert opened(inputs=specs("input_ids", shape=("batch", 1))).sample(1)["input_ids"].tolist() == [[1]]


@pytest.mark.usefixtures("folder")
def test_a_fixed_length_is_kept() -> None:
    fixed = specs("input_ids", shape=("batch", 2))
    assert next(opened(inputs=fixed).batches())["input_ids"].tolist() == [[1, 9], [1, 2], [2, 3]]
    with pytest.raises(DataError, match="length=5, but the model fixes 2"):
        opened("&length=5", fixed)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("names", [("input_ids", "attention_mask"), ("input_ids",)])
def test_a_fixed_batch_takes_several_texts(names: tuple[str, ...]) -> None:
    data = opened(inputs=specs(*names, shape=(2, "sequence")))
    assert [b["input_ids"].tolist() for b in data.batches()] == [[[1, 9, 9], [1, 2, 3]]]
    assert "the last 1 left out" in data.description


def test_the_padding_of_the_tokenizer_is_used(folder: Path) -> None:
    tokenizer = words()
    tokenizer.enable_padding(pad_id=7, pad_type_id=1, pad_token="x", length=50)
    tokenizer.save(str(folder / "tokenizer.json"))
    batch = next(opened(inputs=specs("input_ids", "attention_mask", "token_type_ids")).batches(2))
    assert batch["input_ids"].tolist() == [[1, 7, 7], [1, 2, 3]]
    assert batch["token_type_ids"].tolist() == [[0, 1, 1], [0, 0, 0]]


def test_special_tokens_are_added(folder: Path) -> None:
    tokenizer = words()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 4)])
    tokenizer.save(str(folder / "tokenizer.json"))
    assert opened().sample(0)["input_ids"].tolist() == [[4, 1]]


def test_a_byte_order_mark_is_no_text(folder: Path) -> None:
    (folder / "val.txt").write_text("a b\r\nc\r\n", encoding="utf-8-sig", newline="")
    assert [b["input_ids"].tolist() for b in opened().batches(1)] == [[[1, 2]], [[3]]]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "names", [("input_ids", "past_key_values"), ("attention_mask",), ("pixels",), ("input_ids", "labels")]
)
def test_inputs_that_text_cannot_fill_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(DataError) as caught:
        opened(inputs=specs(*names))
    assert "Text fills the inputs input_ids, attention_mask" in str(caught.value)
    assert f"{names[-1]}: int64[batch, sequence]" in str(caught.value)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("&size=3", "'text' has no option 'size'. Its options are tokenizer, length, pad"),
        ("&length=0", "option length=0 is wrong"),
        ("&pad=left", "option pad=left is wrong. It takes longest or max"),
    ],
)
def test_wrong_options_are_refused(options: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(options)


def test_missing_and_broken_files_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"text:nowhere\.txt cannot be read \(No such file"):
        opened(file="nowhere.txt")
    with pytest.raises(DataError, match=r"needs the tokenizer of the model: text:FILE\?tokenizer="):
        open_data("text:val.txt", IDS)
    with pytest.raises(DataError, match=r"nowhere\.json is not a readable tokenizer\.json"):
        open_data("text:val.txt?tokenizer=nowhere.json", IDS)
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"text:latin\.txt is not UTF-8"):
        opened(file="latin.txt")
    (folder / "blank.txt").write_text("\n \n")
    with pytest.raises(DataError, match=r"text:blank\.txt holds no samples"):
        opened(file="blank.txt")


def test_a_text_without_tokens_is_named(folder: Path) -> None:
    Tokenizer(BPE({"a": 0}, [])).save(str(folder / "tokenizer.json"))
    with pytest.raises(DataError, match=r"val\.txt, line 5: the tokenizer finds no tokens"):
        opened(inputs=specs("input_ids")).sample(2)


def test_a_text_that_the_tokenizer_refuses_is_named(folder: Path) -> None:
    Tokenizer(WordLevel({"a": 1})).save(str(folder / "tokenizer.json"))
    with pytest.raises(DataError, match=r"val\.txt, line 4 failed with Exception: .*\[UNK\]"):
        opened().sample(1)


@pytest.mark.usefixtures("folder")
def test_missing_tokenizers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match=r'pip install "onnxq\[text\]"'):
        opened()
