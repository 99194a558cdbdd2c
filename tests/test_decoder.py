"""The sample language model: its two graphs are one network, and it knows what models/README.md says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

MODELS = Path(__file__).parents[1] / "models"
IDS = np.random.default_rng(0).integers(1, 1024, (2, 40))
TOLERANCE = 1e-4
"""Of logits, which go up to about 20."""

pytestmark = pytest.mark.skipif(not (MODELS / "decoder.onnx").exists(), reason="the sample models are not here")


def session(name: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(MODELS / name, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def plain() -> Any:
    return session("decoder.onnx")


@pytest.fixture(scope="module")
def cached() -> Any:
    return session("decoder_cache.onnx")


def step(cached: Any, ids: np.ndarray, mask: np.ndarray, past: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Logits, then the keys and values of all tokens; the mask covers those in the cache, too."""
    names = [tensor.name for tensor in cached.get_inputs()]
    positions = (mask.cumsum(1) - 1).clip(0)[:, -ids.shape[1] :]
    past = past or [np.zeros((len(ids), 2, 0, 32), np.float32)] * 12
    return list(cached.run(None, dict(zip(names, [ids, mask, positions, *past], strict=True))))


def test_names(plain: Any, cached: Any) -> None:
    kinds = [f"{layer}.{kind}" for layer in range(6) for kind in ("key", "value")]
    assert [tensor.name for tensor in plain.get_inputs()] == ["input_ids"]
    assert [tensor.name for tensor in plain.get_outputs()] == ["logits"]
    assert [tensor.name for tensor in cached.get_inputs()] == [
        "input_ids", "attention_mask", "position_ids", *(f"past_key_values.{kind}" for kind in kinds),
    ]  # fmt: skip
    assert [tensor.name for tensor in cached.get_outputs()] == ["logits", *(f"present.{kind}" for kind in kinds)]


@pytest.mark.parametrize("cuts", [(), (13,), tuple(range(1, 40))], ids=["at once", "in two parts", "one by one"])
def test_the_cache_changes_no_logits(plain: Any, cached: Any, cuts: Sequence[int]) -> None:
    (expected,) = plain.run(None, {"input_ids": IDS})
    past: list[np.ndarray] = []
    parts = []
    for ids in np.split(IDS, cuts, axis=1):
        before = past[0].shape[2] if past else 0
        logits, *past = step(cached, ids, np.ones((2, before + ids.shape[1]), np.int64), past)
        parts.append(logits)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, rtol=0, atol=TOLERANCE)


def test_padding_on_the_left_is_not_seen(plain: Any, cached: Any) -> None:
    (expected,) = plain.run(None, {"input_ids": IDS})
    padded = np.pad(IDS, ((0, 0), (3, 0)))
    logits, *_ = step(cached, padded, (padded > 0).astype(np.int64), [])
    np.testing.assert_allclose(logits[:, 3:], expected, rtol=0, atol=TOLERANCE)


def test_a_token_does_not_see_later_ones(plain: Any) -> None:
    (whole,) = plain.run(None, {"input_ids": IDS})
    (start,) = plain.run(None, {"input_ids": IDS[:, :7]})
    np.testing.assert_allclose(whole[:, :7], start, rtol=0, atol=TOLERANCE)


def test_the_perplexity_is_what_the_readme_says(plain: Any) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="onnxq[text] is not installed.")
    tokenizer = tokenizers.Tokenizer.from_file(str(MODELS / "decoder_tokenizer.json"))
    stated = re.search(
        r"perplexity ([0-9.]+) of the tokens in 128 test texts", (MODELS / "README.md").read_text("utf-8")
    )
    texts = (MODELS / "decoder_test.txt").read_text("utf-8").splitlines()
    assert stated
    assert len(texts) == 128
    losses = []
    for text in texts:
        ids = np.array([tokenizer.encode(text).ids])
        (logits,) = plain.run(None, {"input_ids": ids[:, :-1]})
        chosen = np.take_along_axis(logits[0], ids[0, 1:, None], axis=1)
        losses.append(np.log(np.exp(logits[0] - chosen).sum(axis=1)))
    assert np.exp(np.concatenate(losses).mean()) == pytest.approx(float(stated[1]), rel=0.002)
