"""Text that a language model writes by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxq import imagined as module
from onnxq.graph import to_model
from onnxq.imagined import TEXTS, imagined
from onnxq.numerics.metrics import token_losses
from onnxq.runtime import Session
from tests.onnx_text import floats, read

MODELS = Path(__file__).parents[1] / "models"
LENGTH = 40


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    """Texts of fewer tokens, for they are written one token at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LENGTH", LENGTH)
        yield


def written(name: str) -> list[dict[str, np.ndarray]]:
    data = imagined(Session(MODELS / name, threads=1))
    assert data is not None
    assert len(data) == TEXTS
    return [data.sample(place) for place in range(len(data))]


@pytest.fixture(scope="module")
def texts() -> list[dict[str, np.ndarray]]:
    return written("decoder.onnx")


def test_the_model_expects_what_it_wrote(texts: list[dict[str, np.ndarray]]) -> None:
    session, random = Session(MODELS / "decoder.onnx", threads=1), np.random.default_rng(1)
    tokens = np.concatenate([feeds["input_ids"] for feeds in texts])
    assert tokens.shape == (TEXTS, LENGTH)
    own, other = (
        np.mean(token_losses(session.run({"input_ids": ids})["logits"], ids))
        for ids in (tokens, random.integers(0, 1024, tokens.shape))
    )
    assert own < other - 3, "nats; at random a token costs log(1024) at least"


def test_it_writes_the_same_every_time_and_never_the_same_text_twice(texts: list[dict[str, np.ndarray]]) -> None:
    again = written("decoder.onnx")
    assert all(np.array_equal(a["input_ids"], b["input_ids"]) for a, b in zip(texts, again, strict=True))
    assert len({feeds["input_ids"].tobytes() for feeds in texts}) == TEXTS


def test_a_model_with_a_cache_reads_it_from_the_start(texts: list[dict[str, np.ndarray]]) -> None:
    feeds = written("decoder_cache.onnx")
    assert feeds[0]["past_key_values.0.key"].shape[2] == 0
    assert feeds[0]["attention_mask"].tolist() == [[1] * LENGTH]
    assert feeds[0]["position_ids"].tolist() == [list(range(LENGTH))]
    same = [np.array_equal(a["input_ids"], b["input_ids"]) for a, b in zip(texts, feeds, strict=True)]
    assert np.mean(same) > 0.5, "the same weights write the same, but for draws that are near"


def test_more_texts_than_are_written_at_once_are_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TEXTS", 3)
    monkeypatch.setattr(module, "LENGTH", 4)
    said: list[tuple[str, int, int]] = []
    session = Session(MODELS / "decoder_cache.onnx", threads=1)
    data = imagined(session, lambda *told: said.append(told), texts=8)
    assert data is not None
    texts = [data.sample(place)["input_ids"] for place in range(len(data))]
    assert [text.shape for text in texts] == [(1, 4)] * 8
    assert len({text.tobytes() for text in texts}) == 8
    assert said[-1] == ("imagine", 32, 32)
    assert [done for _, done, _ in said] == sorted(done for _, done, _ in said)


def test_with_caches_each_token_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(MODELS / "decoder_cache.onnx", threads=1)
    read, plain = list[tuple[int, ...]](), session.run

    def run(feeds: dict[str, np.ndarray], *more: Any) -> dict[str, np.ndarray]:
        read.append(feeds["input_ids"].shape)
        return plain(feeds, *more)

    monkeypatch.setattr(session, "run", run)
    assert imagined(session) is not None
    assert read[-1] == (TEXTS, 1)
    assert len(read) <= LENGTH + 4


@pytest.mark.parametrize("name", ["digits.onnx", "docstrings.onnx"])
def test_other_models_write_nothing(name: str) -> None:
    assert imagined(Session(MODELS / name, threads=1)) is None


def test_a_model_that_looks_ahead_writes_nothing() -> None:
    """Scores of the shape of logits do not make a language model: an encoder fills gaps."""
    text = """(int64[n,t] input_ids) => (float[n,t,300] logits) {
        e = Gather(table, input_ids) m = ReduceMean<axes=[1]>(e) logits = Add(e, m)
    }"""
    model = to_model(read(text, {"table": floats(300, 300)})).SerializeToString()
    assert imagined(Session(model, threads=1)) is None
