"""Each metric against a value found by hand, in one batch and in two."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxq.comparison import Batch
from onnxq.errors import DataError, RecipeError
from onnxq.tallies import Agreement, Cosine, Function, Kl, Perplexity, Reading, Sqnr, Tally, Top1

Arrays = Mapping[str, Any]
LOG = math.log


def batch_of(expected: Any, got: Any, labels: Any = None, feeds: Arrays | None = None) -> Batch:
    """One output `y`, of which each row is a sample."""
    one, other = np.asarray(expected, np.float32), np.asarray(got, np.float32)
    known = None if labels is None else np.asarray(labels)
    return Batch(feeds or {"x": np.zeros((len(one), 1), np.float32)}, {"y": one}, {"y": other}, known)


def reading(tally: Tally, expected: Any, got: Any, labels: Any = None, feeds: Arrays | None = None) -> Reading:
    """What a tally makes of one more batch."""
    tally.add("y", batch_of(expected, got, labels, feeds))
    return tally.reading()


FLOAT = [[3, 1, 0], [0, 2, 1], [1, 0, 5], [4, 0, 1]]
"""Decides 0, 1, 2, 0."""

QUANTIZED = [[3, 1, 0], [0, 1, 2], [6, 0, 5], [4, 0, 1]]
"""Decides 0, 2, 0, 0."""


def test_top1() -> None:
    found = reading(Top1(), FLOAT, QUANTIZED, [0, 1, 1, 1])  # right: 0 and 1, then 0 alone
    assert (found.drop, found.before, found.after) == (0.25, 0.5, 0.25)
    assert found.standard_error == pytest.approx(math.sqrt((0.25 - 0.25**2) / 4))


def test_the_error_of_top1_is_that_of_pairs() -> None:
    """One label is lost and one is won: the shares are equal, but four samples do not show that much."""
    found = reading(Top1(), FLOAT, QUANTIZED, [0, 1, 0, 1])
    assert (found.drop, found.before, found.after) == (0.0, 0.5, 0.5)
    assert found.standard_error == pytest.approx(math.sqrt(2 / 4 / 4))


def test_a_gain_is_a_negative_drop() -> None:
    assert reading(Top1(), FLOAT, QUANTIZED, [0, 2, 0, 0]).drop == -0.5


def test_labels_in_a_column_and_labels_as_floats() -> None:
    assert reading(Top1(), FLOAT, QUANTIZED, [[0], [1], [1], [1]]).drop == 0.25
    assert reading(Top1(), FLOAT, QUANTIZED, [0.0, 1.0, 1.0, 1.0]).drop == 0.25


def test_negative_labels_do_not_count() -> None:
    found = reading(Top1(), FLOAT, QUANTIZED, [0, 1, -100, -1])
    assert (found.drop, found.before, found.after) == (0.5, 1.0, 0.5)
    with pytest.raises(DataError, match="All labels are negative"):
        reading(Top1(), FLOAT, QUANTIZED, [-1] * 4)


def test_agreement() -> None:
    found = reading(Agreement(), FLOAT, QUANTIZED)
    assert (found.drop, found.before, found.after) == (0.5, 1.0, 0.5)
    assert found.standard_error == pytest.approx(math.sqrt(0.5 * 0.5 / 4))


def test_decisions_that_may_turn_are_told_beside_those_that_did() -> None:
    """Margins of 2, 1, 4 and 3; the differences move by 0, 2, 5 and 0."""
    turns = (1 + 2 + 1 + 1) / 16 / 2
    assert reading(Agreement(), FLOAT, QUANTIZED).turned == pytest.approx(turns)
    assert reading(Top1(), FLOAT, QUANTIZED, [0, 1, 1, 1]).turned == pytest.approx(turns)
    assert reading(Cosine(), FLOAT, QUANTIZED).turned is None


def test_nan_is_no_decision() -> None:
    assert reading(Agreement(), [[1, 2, 3]], [[1, 5, math.nan]]).drop == 1.0
    assert reading(Agreement(), [[1, 5, 3]], [[1, 5, math.nan]]).drop == 0.0


def test_integers_are_decisions() -> None:
    batch = Batch({"x": np.zeros((4, 1))}, {"y": np.array([1, 2, 3, 4])}, {"y": np.array([1, 2, 3, 9])}, np.arange(4))
    tally, right = Agreement(), Top1()
    for one in (tally, right):
        one.add("y", batch)
    assert tally.reading().drop == 0.25
    assert (right.reading().before, right.reading().after) == (0.0, 0.0)


def test_cosine() -> None:
    found = reading(Cosine(), [[1, 0], [0, 2], [3, 4]], [[1, 1], [0, 1], [3, 4]])
    cosines = np.array([math.sqrt(0.5), 1, 1])
    assert found.after == pytest.approx(cosines.mean())
    assert found.drop == pytest.approx(1 - cosines.mean())
    assert found.standard_error == pytest.approx(cosines.std(ddof=1) / math.sqrt(3))
    assert reading(Cosine(), [[1, 0]], [[1, 0]]).standard_error is None


def test_sqnr() -> None:
    found = reading(Sqnr(), [[3, 4], [0, 5]], [[3, 4], [0.5, 5]])  # 0.25 beside 50
    assert found.drop == pytest.approx(0.005)
    assert found.after == pytest.approx(10 * math.log10(200))
    assert (reading(Sqnr(), [[1, 2]], [[1, 2]]).drop, reading(Sqnr(), [[0, 0]], [[0, 0]]).drop) == (0, 0)
    assert reading(Sqnr(), [[0, 0]], [[0, 1]]).drop == math.inf


def test_kl() -> None:
    """Probabilities of (1/2, 1/2) against (1/4, 3/4), and equal ones, which add 0."""
    found = reading(Kl(), [[0, 0], [1, 3]], [[0, LOG(3)], [11, 13]])
    assert found.drop == pytest.approx((0.5 * LOG(2) + 0.5 * LOG(2 / 3)) / 2, rel=1e-5)
    assert (found.before, found.after) == (0.0, found.drop)


def test_kl_without_bound() -> None:
    assert reading(Kl(), [[0, 0]], [[0, -math.inf]]).drop == math.inf


TOKENS = np.array([[0, 1, 1], [1, 0, 0]])


def predictions(likelihoods: Any) -> np.ndarray[Any, Any]:
    """Logits of two tokens, by the probability of token 1."""
    one = np.asarray(likelihoods, np.float64)
    return np.stack([np.log(1 - one), np.log(one)], -1)


def test_perplexity() -> None:
    """The last prediction of a text is of a token that is not there, so it does not count."""
    first = predictions([[0.5, 0.5, 0.9], [0.5, 0.5, 0.9]])
    second = predictions([[0.5, 0.25, 0.1], [0.5, 0.5, 0.1]])
    found = reading(Perplexity("ids"), first, second, feeds={"ids": TOKENS})
    assert found.before == pytest.approx(2)
    assert found.after == pytest.approx(32**0.25)
    assert found.drop == pytest.approx(32**0.25 / 2 - 1)


def test_perplexity_counts_no_padding() -> None:
    """The first text has one prediction, on the right of it is padding; the second has one, on the left of it."""
    mask = np.array([[1, 1, 0], [0, 1, 1]])
    first = predictions([[0.5, 0.01, 0.5], [0.01, 0.5, 0.5]])
    second = predictions([[0.25, 0.99, 0.5], [0.99, 0.5, 0.5]])
    padded = np.array([[0, 1, 9], [-5, 0, 0]])  # 9 and -5 are in no vocabulary of two
    feeds = {"ids": padded, "attention_mask": mask}
    found = reading(Perplexity("ids"), first, second, feeds=feeds)
    assert found.before == pytest.approx(2)
    assert found.after == pytest.approx(math.sqrt(4 * 2))


def test_perplexity_without_bound() -> None:
    certain = [[[50.0, 0.0]] * 3] * 2
    wrong = [[[5000.0, 0.0]] * 3] * 2
    found = reading(Perplexity("ids"), certain, wrong, feeds={"ids": np.ones((2, 3), int)})
    assert (found.drop, found.after) == (math.inf, math.inf)


def test_perplexity_of_what_is_no_text() -> None:
    with pytest.raises(DataError, match="leave the vocabulary of 2"):
        reading(
            Perplexity("ids"), predictions([[0.5, 0.5]]), predictions([[0.5, 0.5]]), feeds={"ids": np.array([[0, 2]])}
        )
    with pytest.raises(DataError, match="two tokens at least"):
        reading(Perplexity("ids"), predictions([[0.5]]), predictions([[0.5]]), feeds={"ids": np.array([[1]])})


@pytest.mark.parametrize("make", [Top1, Agreement, Cosine, Sqnr, Kl])
def test_batches_add_up(make: Callable[[], Tally]) -> None:
    random = np.random.default_rng(0)
    one, noise = random.standard_normal((2, 10, 5))
    labels = np.concatenate([one[:7].argmax(-1), random.integers(0, 5, 3)])
    whole, parts = make(), make()
    together = reading(whole, one, one + noise, labels)
    for part in (slice(0, 3), slice(3, 10)):
        apart = reading(parts, one[part], one[part] + noise[part], labels[part])
    assert apart.drop == pytest.approx(together.drop, rel=1e-6)
    assert apart.drop != 0


def test_perplexities_of_batches_add_up() -> None:
    random = np.random.default_rng(0)
    one, noise = random.standard_normal((2, 4, 6, 7))
    ids = random.integers(0, 7, (4, 6))
    together = reading(Perplexity("ids"), one, one + noise, feeds={"ids": ids})
    parts = Perplexity("ids")
    for part in (slice(0, 1), slice(1, 4)):
        apart = reading(parts, one[part], one[part] + noise[part], feeds={"ids": ids[part]})
    assert apart.drop == pytest.approx(together.drop)


@pytest.mark.parametrize("make", [Agreement, Kl])
def test_padding_of_texts_does_not_count(make: Callable[[], Tally]) -> None:
    one = np.random.default_rng(0).standard_normal((2, 3, 4))
    other = one.copy()
    other[0, 2] = other[0, 2, ::-1]
    feeds = {"ids": np.zeros((2, 3), int), "attention_mask": np.array([[1, 1, 0], [1, 1, 1]])}
    assert reading(make(), one, other, feeds=feeds).drop == 0
    assert reading(make(), one, other).drop > 0


def test_labels_of_padding_do_not_count() -> None:
    one = np.eye(3)[[[0, 1, 2], [0, 1, 2]]]
    other = np.eye(3)[[[0, 2, 0], [0, 1, 2]]]
    feeds = {"ids": np.zeros((2, 3), int), "attention_mask": np.array([[1, 1, 0], [1, 1, 1]])}
    found = reading(Top1(), one, other, [[0, 1, 2], [0, 1, 2]], feeds)
    assert (found.before, found.after) == (1.0, 0.8)


# functions of the user's


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """A module of the current folder, by its text; returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    count = iter(range(99))

    def write(text: str) -> str:
        name = f"scores_{tmp_path.name}_{next(count)}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def test_a_function_sees_everything(module: Callable[[str], str]) -> None:
    name = module("""
def score(outputs, feeds, labels):
    assert feeds["x"].shape == (5, 1) and list(feeds) == ["x"] and labels.tolist() == [1, 2, 3, 4, 5]
    return (outputs["y"][:, 0] * labels).sum()
""")
    tally = Function(f"{name}:score")
    tally.add("", batch_of([[1]] * 2, [[1]] * 2, [1, 2]))
    found = reading(tally, [[1]] * 3, [[0.5]] * 3, [3, 4, 5])
    assert (found.before, found.after) == (15, 9)
    assert found.drop == pytest.approx(6 / 15)


def test_the_share_of_a_negative_score_and_of_none(module: Callable[[str], str]) -> None:
    name = module("def score(outputs, feeds, labels): return outputs['y'].mean()")
    assert reading(Function(f"{name}:score"), [[-2]], [[-3]]).drop == 0.5
    assert reading(Function(f"{name}:score"), [[0]], [[-3]]).drop == 3


def test_what_cannot_be_joined_comes_in_a_list(module: Callable[[str], str]) -> None:
    name = module("def score(outputs, feeds, labels): return sum(y.size for y in outputs['y']) + len(outputs['y'])")
    tally = Function(f"{name}:score")
    reading(tally, np.ones((2, 3)), np.ones((2, 3)))
    assert reading(tally, np.ones((2, 4)), np.ones((2, 4))).before == 14 + 2
    rows = Function(f"{name}:score")  # three rows of two samples are no rows of samples
    batch = Batch({"x": np.zeros((2, 1))}, {"y": np.ones((3, 1))}, {"y": np.ones((3, 1))})
    rows.add("", batch)
    assert rows.reading().before == 3 + 1


def test_a_model_that_returns_new_infinities_has_lost_everything(module: Callable[[str], str]) -> None:
    name = module("def score(outputs, feeds, labels): return outputs['y'][:, 0].mean()")
    assert reading(Function(f"{name}:score"), [[1, 2]], [[1, math.nan]]).drop == math.inf
    assert reading(Function(f"{name}:score"), [[1, math.inf]], [[1, math.inf]]).drop == 0


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return float('nan')", r"returned nan\. Return one finite number, larger for better"),
        ("return float('inf')", "returned inf"),
        ("return None", "returned None"),
        ("return 'good'", "returned 'good'"),
        ("return True", "returned True"),
        ("return [1, 2]", r"returned \[1, 2\]"),
        ("return [[1], [1, 2]]", "failed with ValueError"),
        ("return 1 / 0", "failed with ZeroDivisionError: division by zero"),
        ("import absent_module", "failed with ModuleNotFoundError: .*absent_module"),
    ],
)
def test_a_function_that_returns_no_score(module: Callable[[str], str], body: str, words: str) -> None:
    name = module(f"def score(outputs, feeds, labels): {body}")
    with pytest.raises(RecipeError, match=f"Metric '{name}:score'.* {words}"):
        reading(Function(f"{name}:score"), [[1]], [[1]])


def test_a_function_with_other_arguments(module: Callable[[str], str]) -> None:
    name = module("def score(outputs): return 1")
    with pytest.raises(RecipeError, match=r"failed with TypeError: .*positional argument"):
        reading(Function(f"{name}:score"), [[1]], [[1]])
