"""What one model is worth: the same figures as beside another model, and every refusal."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

import onnxq as package
from onnxq.comparison import Batch
from onnxq.errors import DataError, RecipeError
from onnxq.evaluation import Evaluation
from onnxq.numerics.metrics import token_losses
from onnxq.options import Options
from onnxq.runtime import Session
from onnxq.tallies import Losses
from tests.decoders import decoder

if TYPE_CHECKING:
    from tests.conftest import Command

TEXTS = [[3, 4, 5, 6, 7], [9, 10, 11], [20, 21, 22, 23, 0, 1, 2]]


def padded() -> dict[str, Any]:
    """`TEXTS` of one length, with a mask."""
    longest = max(map(len, TEXTS))
    return {
        "input_ids": np.array([text + [0] * (longest - len(text)) for text in TEXTS]),
        "attention_mask": np.array([[1] * len(text) + [0] * (longest - len(text)) for text in TEXTS]),
        "position_ids": np.array([list(range(longest))] * len(TEXTS)),
    }


@pytest.fixture
def language(tmp_path: Path) -> Path:
    """A decoder without a cache that mostly counts on."""
    onnx.save(decoder("none", sure=4), tmp_path / "language.onnx")
    return tmp_path / "language.onnx"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """`TEXTS`."""
    np.savez(tmp_path / "texts.npz", **padded())
    return tmp_path / "texts.npz"


def test_perplexity_is_that_of_the_texts_alone(language: Path, texts: Path) -> None:
    """Padding changes nothing, the mean is over all tokens, and its error is told by the texts."""
    session = Session(language, threads=1)
    losses = [
        token_losses(
            session.run({n: v[i : i + 1, : len(text)] for n, v in padded().items()})["logits"], np.array([text])
        )
        for i, text in enumerate(TEXTS)
    ]
    every = np.concatenate([found.ravel() for found in losses])
    found = package.evaluate(language, data=texts)
    assert isinstance(found, Evaluation)
    assert (found.metric, found.output, found.samples, found.counted) == ("perplexity", "logits", 3, 12)
    assert found.value == pytest.approx(math.exp(every.mean()), rel=1e-5)
    off = [float(one.sum() - every.mean() * one.size) for one in losses]
    error = found.value * math.sqrt(3 / 2 * np.square(off).sum()) / 12
    assert found.standard_error == pytest.approx(error, rel=1e-4)
    assert found.provider == "CPUExecutionProvider"
    assert found.seconds > 0
    assert found.data.endswith("texts.npz, 3 samples")


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_perplexity_is_the_one_that_validate_measures(language: Path, texts: Path, batch: int) -> None:
    noisy = language.with_name("noisy.onnx")
    onnx.save(decoder("none", sure=4, noise=0.5), noisy)
    options = Options(seconds=0)
    (proof,) = package.validate(language, noisy, data=texts, options=options)
    assert proof.score is not None
    for model, value in ((language, proof.score.float_value), (noisy, proof.score.value)):
        found = package.evaluate(model, data=texts, metric="perplexity", batch=batch, options=options)
        assert found.value == pytest.approx(value, rel=1e-6)


def test_one_text_has_no_error() -> None:
    losses = Losses("ids")
    feeds = {"ids": np.array([[0, 1, 1]])}
    losses.add("y", {"y": np.zeros((1, 3, 2))}, Batch(feeds, {}, {}))
    assert losses.alone().value == pytest.approx(2)
    assert (losses.alone().counted, losses.alone().standard_error) == (2, None)


def test_impossible_tokens_have_no_bound() -> None:
    losses = Losses("ids")
    losses.add("y", {"y": np.full((2, 3, 2), [0.0, -np.inf])}, Batch({"ids": np.ones((2, 3), int)}, {}, {}))
    assert losses.alone().value == math.inf
    assert losses.alone().standard_error is None


def test_top1(model: Path, data: Path) -> None:
    """A quarter of the labels is unknown; half of the others is right."""
    x = np.load(data)["x"]
    truth = Session(model, threads=1).run({"x": x})["y"].argmax(-1)
    truth[:6], truth[6:15] = -1, (truth[6:15] + 1) % 4
    found = package.evaluate(model, data={"x": x, "labels": truth})
    assert (found.metric, found.output, found.value, found.counted, found.samples) == ("top1", "y", 0.5, 18, 24)
    assert found.standard_error == pytest.approx(math.sqrt(0.25 / 18))


def test_a_function_of_the_users(model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    Path("own_worth.py").write_text("def rows(outputs, feeds, labels): return len(outputs['y']) + feeds['x'].shape[1]")
    for name in ("own_worth:rows", "python:own_worth:rows"):
        found = package.evaluate(model, data=data, metric=name)
        assert (found.metric, found.output, found.value) == ("own_worth:rows", "", 40.0)
        assert (found.counted, found.standard_error) == (None, None)


@pytest.mark.parametrize("metric", ["cosine", "agreement", "sqnr", "kl"])
def test_metrics_that_compare_are_refused(model: Path, data: Path, metric: str) -> None:
    with pytest.raises(RecipeError, match=f"'{metric}' compares two models, and this is one. Take perplexity, top1"):
        package.evaluate(model, data=data, metric=metric)


@pytest.mark.parametrize(
    ("metric", "source", "message"),
    [
        ("auto", None, "neither has labels in the data nor clearly predicts the next token"),
        ("perplexity", None, r"'perplexity' needs an output \[batch, length, vocabulary\]"),
        ("top1", None, "'top1' needs labels, and there are none in"),
        ("best", None, "no metric 'best'. Known are auto, perplexity, top1 and MODULE:FUNCTION"),
        ("nowhere:score", None, "'nowhere:score' failed with ModuleNotFoundError"),
        ("auto", "random", "Random numbers say nothing about what a model is worth"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    model: Path, data: Path, metric: str, source: str | None, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        package.evaluate(model, data=source or data, metric=metric)


def test_texts_of_one_token_are_refused(language: Path) -> None:
    feeds = {name: np.zeros((2, 1), np.int64) for name in ("input_ids", "position_ids")}
    with pytest.raises(DataError, match="two tokens at least"):
        package.evaluate(language, data=feeds | {"attention_mask": np.ones((2, 1), np.int64)}, metric="perplexity")


def test_the_command(onnxq: Command, language: Path, texts: Path) -> None:
    done = onnxq("eval", language, "--data", texts, "--batch", 2)
    assert (done.code, done.err) == (0, "")
    for words in ("language.onnx", "perplexity", "standard error", "CPUExecutionProvider", "output 'logits'"):
        assert words in done.out
    done = onnxq("eval", language, "--data", texts, "--metric", "perplexity", "--json", "--quiet")
    (found,) = done.json["evaluations"]
    assert Evaluation.model_validate(found).counted == 12
    assert done.err == ""


def test_the_command_refuses_in_one_line(onnxq: Command, model: Path, data: Path) -> None:
    done = onnxq("eval", model, "--data", data, "--metric", "cosine", "--json")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert json.loads(done.out)["error"]["type"] == "RecipeError"
    assert onnxq("eval", model, "--data", data, "--providers", "NowhereProvider").code == 2
