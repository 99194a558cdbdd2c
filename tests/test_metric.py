"""Which metric is taken for which outputs, and the score of a model beside another."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxq.calibration.data import open_data
from onnxq.comparison import Batch, paired
from onnxq.errors import DataError, RecipeError
from onnxq.metric import Score, check, measure, resolve
from onnxq.proof import compare_outputs
from onnxq.recipe import Contract
from onnxq.runtime import Session
from tests.onnx_text import read, serialize

Array = np.ndarray[Any, Any]


def session(text: str, **weights: Any) -> Session:
    return Session(serialize(read(text, {n: np.asarray(w, np.float32) for n, w in weights.items()})), threads=1)


def batch(outputs: dict[str, Array], feeds: dict[str, Array] | None = None, labels: Any = None) -> Batch:
    known = None if labels is None else np.asarray(labels)
    return Batch(feeds or {"x": np.zeros((4, 3), np.float32)}, outputs, outputs, known)


def kinds(outputs: dict[str, Array], feeds: dict[str, Array] | None = None, labels: Any = None) -> dict[str, str]:
    """What `auto` takes."""
    return dict(resolve(Contract(), batch(outputs, feeds, labels)).kinds)


def noise(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


# auto


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("logits", (4, 2), "agreement"),
        ("logits", (4, 1000), "agreement"),
        ("probability", (4, 1), "cosine"),
        ("score", (4,), "cosine"),
        ("sentence_embedding", (4, 384), "cosine"),
        ("image_embeds", (4, 384), "cosine"),
        ("pooler_output", (4, 384), "cosine"),
        ("Features", (4, 384), "cosine"),
        ("image", (1, 3, 300, 300), "cosine"),  # its columns are no words
        ("boxes", (1, 84, 8400), "cosine"),
        ("present.0.key", (4, 2, 5, 64), "cosine"),
    ],
)
def test_by_kind_of_output(name: str, shape: tuple[int, ...], kind: str) -> None:
    assert kinds({name: noise(*shape)}) == {name: kind}


def test_each_output_by_its_kind() -> None:
    outputs = {"logits": noise(4, 10), "boxes": noise(4, 5, 4), "number": np.arange(4)}
    assert kinds(outputs) == {"logits": "agreement", "boxes": "cosine"}
    assert kinds({"number": np.arange(4)}) == {"number": "agreement"}


def test_labels_make_it_top1() -> None:
    outputs = {"logits": noise(4, 10), "features": noise(4, 6)}
    assert kinds(outputs, labels=[1, 2, 9, 0]) == {"logits": "top1"}
    assert kinds(outputs, labels=[1, 2, -100, 0]) == {"logits": "top1", "features": "top1"}
    assert kinds({"tags": noise(2, 5, 9)}, labels=np.ones((2, 5), int)) == {"tags": "top1"}
    assert kinds({"label": np.arange(4)}, labels=[1, 2, 3, 4]) == {"label": "top1"}


@pytest.mark.parametrize(
    "labels",
    [
        [0.5, 1, 2, 3],  # of a regression
        [0, 1, 2, 10],  # of more classes than there are scores for
        [-1, -1, -1, -1],
        [[0, 1], [0, 1], [0, 1], [0, 1]],
        ["a", "b", "c", "d"],
    ],
)
def test_labels_that_number_no_class(labels: Any) -> None:
    assert kinds({"logits": noise(4, 10)}, labels=labels) == {"logits": "agreement"}


VOCABULARY = 300
IDS = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])


def foretold(sharpness: float = 20.0, ids: Array = IDS) -> Array:
    """Logits that expect the number after each number."""
    rows: Array = sharpness * np.eye(VOCABULARY, dtype=np.float32)[(ids + 1) % VOCABULARY]
    return rows


@pytest.mark.parametrize(
    "feeds",
    [
        {"input_ids": IDS, "attention_mask": np.ones_like(IDS)},
        {"tokens": IDS, "token_type_ids": np.zeros_like(IDS), "position_ids": np.zeros_like(IDS)},
        {"words": IDS, "attention_mask": np.ones_like(IDS), "position_ids": np.zeros_like(IDS)},
        {"input_ids": IDS[::-1], "decoder_input_ids": IDS},
        {"anything": IDS, "image": np.zeros((2, 4), np.float32)},
    ],
)
def test_language_models_are_measured_by_perplexity(feeds: dict[str, Array]) -> None:
    outputs = {"hidden_states": noise(2, 4, VOCABULARY), "logits": foretold(), "present": noise(2, 2, 4, 8)}
    for name in ("auto", "perplexity"):
        found = resolve(Contract(metric=name), batch(outputs, feeds))
        assert found.kinds == {"logits": "perplexity"}
        assert np.array_equal(feeds[found.tokens], IDS)


def test_what_foretells_no_token_is_no_language_model() -> None:
    """A model that fills gaps expects each token itself; hidden states may be as wide as a vocabulary."""
    feeds = {"input_ids": IDS}
    assert kinds({"logits": foretold(ids=IDS - 1)}, feeds) == {"logits": "agreement"}
    assert kinds({"last_hidden_state": noise(2, 4, VOCABULARY)}, feeds) == {"last_hidden_state": "cosine"}
    assert kinds({"last_hidden_state": noise(2, 4, 7)}, feeds) == {"last_hidden_state": "cosine"}
    assert resolve(Contract(metric="perplexity"), batch({"logits": foretold(ids=IDS - 1)}, feeds)).kinds


def test_two_inputs_that_may_be_tokens_are_none() -> None:
    assert kinds({"logits": foretold()}, {"a": IDS, "b": IDS}) == {"logits": "agreement"}


# what was asked for


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("top1", ["logits"]),
        ("agreement", ["logits"]),
        ("kl", ["logits"]),
        ("cosine", ["logits", "boxes"]),
        ("sqnr", ["logits", "boxes"]),
        ("module:function", [""]),
    ],
)
def test_the_outputs_of_a_metric(metric: str, expected: list[str]) -> None:
    outputs = {"logits": noise(4, 10), "boxes": noise(4, 5, 4), "number": np.zeros((4, 3), int)}
    found = resolve(Contract(metric=metric), batch(outputs, labels=[0, 1, 2, 3])).kinds
    assert found == dict.fromkeys(expected, metric)


def test_scores_of_a_few_classes_where_there_are_no_others() -> None:
    assert resolve(Contract(metric="kl"), batch({"tags": noise(2, 5, 9)})).kinds == {"tags": "kl"}


def test_integers_are_decisions_but_no_scores() -> None:
    whole = batch({"number": np.arange(4), "best": np.zeros((4, 3), int)})
    assert resolve(Contract(metric="agreement"), whole).kinds == {"number": "agreement", "best": "agreement"}
    with pytest.raises(RecipeError, match="'kl' needs"):
        resolve(Contract(metric="kl"), whole)


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("top1", r"'top1' needs a label for each decision .*returns y float32\[4\].*labels are int64\[3\]"),
        ("perplexity", r"needs an output \[batch, length, vocabulary\] .*takes x float32\[4, 3\] and returns y"),
        ("agreement", "needs an output with one score per class"),
        ("kl", "'kl' needs an output with one score per class"),
    ],
)
def test_a_metric_that_does_not_fit(metric: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        resolve(Contract(metric=metric), batch({"y": noise(4)}, labels=[0, 1, 2]))


def test_no_output_holds_numbers() -> None:
    with pytest.raises(RecipeError, match=r"needs an output that holds numbers.* returns none"):
        resolve(Contract(), batch({}))


# before the work


def test_top1_needs_labels() -> None:
    inputs = session("(float[n,3] x) => (float[n,3] y) { y = Identity(x) }").inputs
    arrays = {"x": np.ones((2, 3), np.float32)}
    check(Contract(metric="top1"), open_data({**arrays, "labels": np.zeros(2)}, inputs))
    check(Contract(metric="top1"), open_data("random", inputs))
    check(Contract(metric="top1"), None)
    check(Contract(), open_data(arrays, inputs))
    with pytest.raises(RecipeError, match="there are none in the mapping of arrays, 2 samples"):
        check(Contract(metric="top1"), open_data(arrays, inputs))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent_module:f", "Metric 'absent_module:f' failed with ModuleNotFoundError"),
        ("math:absent", "Metric 'math:absent': module 'math' has no function 'absent'"),
        ("math:pi", "module 'math' has no function 'pi'"),
    ],
)
def test_a_function_that_does_not_exist(name: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        check(Contract(metric=name), None)
    check(Contract(metric="math:fsum"), None)


# the score

PAIR = "(float[n,3] x) => (float[n,3] y, float[n,3] z) { y = Mul(x, a)  z = Mul(x, b) }"


def scaled(a: Any, b: Any) -> Session:
    return session(PAIR, a=a, b=b)


def rows(session: Session, x: Any, **labels: Any) -> Any:
    return open_data({"x": np.asarray(x, np.float32), **labels}, session.inputs)


def test_the_score_is_that_of_the_worst_output() -> None:
    one, other = scaled([1, 1, 1], [1, 1, 1]), scaled([1, 1, 1.3], [1, 1, 1.1])
    data = rows(one, np.eye(3).repeat(4, axis=0) + 1)
    noise = [(0.09 * 4 * 6) / (4 * 18), (0.01 * 4 * 6) / (4 * 18)]
    found = measure(one, other, data, Contract(metric="sqnr"))
    assert (found.metric, found.output, found.samples) == ("sqnr", "y", 12)
    assert found.drop == pytest.approx(noise[0], rel=1e-5)
    assert found.value == pytest.approx(-10 * math.log10(noise[0]), rel=1e-5)
    assert (found.float_value, found.standard_error) == (None, None)
    assert measure(one, scaled([1, 1, 1], [1, 1, 1.3]), data, Contract(metric="sqnr")).output == "z"


MIXED = "(float[n,3] x) => (float[n,3] logits, float[n,3] features) { logits = Mul(x, a)  features = Mul(x, b) }"


@pytest.mark.parametrize(("max_drop", "worst"), [(None, "features"), (0.01, "logits")])
def test_drops_of_two_metrics_are_compared_by_their_limits(max_drop: float | None, worst: str) -> None:
    """Agreement drops by 1 in 25, of which 5 % are allowed; cosine by less, but that is more than its 1 %."""
    one = session(MIXED, a=[1, 1, 1], b=[1, 1, 1])
    other = session(MIXED, a=[1, 1, 1.2], b=[1, 1, 1.5])
    x = np.tile([[3.0, 1.0, 2.0]], (25, 1))
    x[7, 2] = 2.8
    found = measure(one, other, rows(one, x), Contract(max_drop=max_drop))
    assert found.output == worst
    assert (found.drop == 0.04) == (worst == "logits")
    assert 0.01 < found.drop <= 0.04


def test_labels_go_with_their_batches() -> None:
    one, other = scaled([1, 1, 1], [1, 1, 1]), scaled([1, 1, 0], [1, 1, 1])
    x = np.eye(3)[[0, 1, 2] * 7] + 0.1
    labels = np.array([0, 1, 2] * 7)
    labels[-2:] = 0  # the float model is wrong about these; the other takes every 2 for a 0, and so is right about one
    found = measure(one, other, rows(one, x, labels=labels), Contract(metric="top1"))
    assert (found.output, found.samples) == ("y", 21)
    assert (found.float_value, found.value, found.drop) == (19 / 21, 14 / 21, 5 / 21)


def test_one_pass_gives_the_figures_and_the_score() -> None:
    one, other = scaled([1, 1, 1], [1, 1, 1]), scaled([1, 1, 1.3], [1, 1, 1.1])
    data = rows(one, np.eye(3).repeat(4, axis=0) + 1)
    told: list[tuple[str, int, int]] = []
    proofs, score = compare_outputs(one, other, data, Contract(metric="cosine"), lambda *step: told.append(step))
    assert score == measure(one, other, data, Contract(metric="cosine"))
    assert score is not None
    assert score.drop == 1 - proofs["y"].cosine
    assert told == [("validate", 8, 12), ("validate", 12, 12)]


def test_random_data_has_no_score() -> None:
    one = scaled([1, 1, 1], [1, 1, 1])
    proofs, score = compare_outputs(one, one, open_data("random", one.inputs), Contract(metric="top1"))
    assert score is None
    assert proofs["y"].cosine == 1.0


def test_outputs_of_another_shape() -> None:
    one = session("(float[n,3] x) => (float[n,m] y) { y = Identity(x) }")
    other = session("(float[n,3] x) => (float[m,n] y) { y = Transpose(x) }")
    with pytest.raises(DataError, match=r"Output 'y' has shape \(3, 2\) where float has \(2, 3\)"):
        list(paired(one, other, rows(one, np.ones((2, 3)))))


def test_perplexity_of_two_models() -> None:
    text = "(int64[n,length] ids) => (float[n,length,300] logits) { logits = Gather(table, ids) }"
    table = 20 * np.eye(VOCABULARY, k=1)
    one, other = session(text, table=table), session(text, table=table / 4)
    found = measure(one, other, open_data({"ids": IDS}, one.inputs), Contract())
    sure = [1 + (VOCABULARY - 1) * math.exp(-logit) for logit in (20, 5)]
    assert (found.metric, found.output) == ("perplexity", "logits")
    assert found.float_value == pytest.approx(sure[0])
    assert found.value == pytest.approx(sure[1])
    assert found.drop == pytest.approx(sure[1] / sure[0] - 1)


def test_a_function_is_given_all_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_score.py").write_text(
        "def total(outputs, feeds, labels):\n"
        "    assert labels is None and feeds['x'].shape == (9, 3)\n"
        "    return outputs['y'].sum() + outputs['z'].sum()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    one, other = scaled([1, 1, 1], [1, 1, 1]), scaled([0.5, 0.5, 0.5], [1, 1, 1])
    found = measure(one, other, rows(one, np.ones((9, 3))), Contract(metric="my_score:total"))
    assert (found.metric, found.output, found.samples) == ("my_score:total", "", 9)
    assert (found.float_value, found.value, found.drop) == (54.0, 40.5, 0.25)


def test_a_value_without_bound_is_none() -> None:
    certain, wrong = foretold(5000.0), foretold(5000.0, IDS - 2)
    impossible = np.where(certain > 0, -np.inf, certain)
    for expected, got, values in (
        (certain, wrong, (1.0, None, math.inf)),
        (wrong, certain, (None, 1.0, -1.0)),
        (impossible, impossible, (None, None, math.inf)),
    ):
        meter = resolve(Contract(metric="perplexity"), batch({"y": expected}, {"ids": IDS})).meter()
        meter.add(Batch({"ids": IDS}, {"y": expected}, {"y": got}))
        found = meter.score()
        assert (found.float_value, found.value, found.drop) == values


def test_words_have_no_score() -> None:
    one = session("(string[n] x) => (string[n] y) { y = Identity(x) }")
    words = open_data({"x": np.array(["a", "b"])}, one.inputs)
    assert compare_outputs(one, one, words, Contract())[1] is None
    assert list(compare_outputs(one, one, words, Contract())[0]) == ["y"]


def test_no_bound_is_null_in_json() -> None:
    one, other = scaled([1, 1, 1], [0, 0, 0]), scaled([1, 1, 1], [1, 1, 1])
    found = measure(one, other, rows(one, np.ones((2, 3))), Contract(metric="sqnr"))
    assert (found.output, found.drop, found.value) == ("z", math.inf, None)
    assert '"drop":null' in found.model_dump_json()
    assert Score.model_validate_json(found.model_dump_json()) == found
