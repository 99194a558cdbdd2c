"""The figures of one output: what counts, and what is left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.comparison import (
    Batch,
    Comparison,
    Decisions,
    OutputProof,
    batch_size,
    decisions,
    fits_labels,
    looks_like_classes,
)
from onnxq.numerics.metrics import turned_share

Array = np.ndarray[Any, Any]


def proof(expected: Any, got: Any, labels: Any = None, feeds: dict[str, Array] | None = None) -> OutputProof:
    one, other = np.asarray(expected, np.float32), np.asarray(got, np.float32)
    comparison = Comparison()
    known = None if labels is None else np.asarray(labels)
    comparison.add("y", Batch(feeds or {"x": np.zeros((len(one), 1))}, {"y": one}, {"y": other}, known))
    return comparison.proof()


def test_figures_by_hand() -> None:
    found = proof([[3, 4], [0, 5]], [[4, 3], [0, 5]], [1, 1])
    assert found.cosine == pytest.approx(0.98)
    assert found.cosine_min == pytest.approx(0.96)
    assert found.sqnr_db == pytest.approx(10 * np.log10(50 / 2))
    assert (found.max_error, found.agreement, found.top1_float, found.top1) == (1.0, 0.5, 1.0, 0.5)
    assert found.finite


def test_equal_outputs() -> None:
    found = proof([[0, 0], [1, 2]], [[0, 0], [1, 2]])
    assert (found.cosine, found.sqnr_db, found.max_error, found.agreement, found.top1) == (1.0, None, 0.0, 1.0, None)


def test_infinities_of_both_are_no_error_but_new_ones_are() -> None:
    assert proof([[1, -np.inf]], [[1, -np.inf]]).finite
    assert not proof([[1, 2]], [[1, np.nan]]).finite


def test_few_classes_for_each_token_are_decisions_where_there_are_labels() -> None:
    tags = np.eye(3)[[[0, 1], [2, 0]]]
    assert proof(tags, tags).agreement is None
    found = proof(tags, tags, [[0, 1], [1, -100]])
    assert (found.agreement, found.top1_float, found.top1) == (1.0, 2 / 3, 2 / 3)


def test_padding_does_not_count() -> None:
    """Neither its values nor its labels do, and no text counts more for the padding of another."""
    one = np.eye(300)[[[0, 1, 2], [0, 1, 2]]]
    other = np.eye(300)[[[0, 1, 9], [0, 9, 2]]]
    mask = np.array([[1, 1, 0], [1, 1, 1]])
    found = proof(one, other, np.tile([0, 1, 2], (2, 1)), {"ids": mask, "attention_mask": mask})
    assert (found.agreement, found.top1_float, found.top1) == (0.8, 1.0, 0.8)
    assert found.cosine == 0.8


def test_outputs_without_numbers_are_passed_over() -> None:
    comparison = Comparison()
    comparison.add("words", Batch({"x": np.zeros(3)}, {}, {}))
    assert comparison.proof() == OutputProof(cosine=1.0, cosine_min=1.0, sqnr_db=None, max_error=0.0)


def test_decisions() -> None:
    assert decisions(np.array([[1.0, 3.0, 3.0], [np.nan, -1.0, -2.0]])).tolist() == [1, 1]
    assert decisions(np.array([[4, 9]])).tolist() == [[4, 9]]
    assert decisions(np.array(2.5)).tolist() == 2.5


def turned(expected: Any, got: Any, feeds: dict[str, Array] | None = None) -> float | None:
    """What one batch tells of decisions that may turn."""
    one, other = (np.asarray(values, np.float32) for values in (expected, got))
    found = Decisions()
    found.add("y", Batch(feeds or {"x": np.zeros((len(one), 1))}, {"y": one}, {"y": other}))
    return found.turned


LOGITS = [[5, 3, -9], [0, 1, 2]]
"""Margins of 2 and of 1."""

MOVED = [[5, 3.5, 99], [0, 2.5, 2]]
"""By 0.5 and by 1.5, which is more than the second margin; the third class is no rival of the first two."""


def test_how_near_decisions_are_and_how_far_they_were_moved() -> None:
    assert turned(LOGITS, MOVED) == pytest.approx(1 / 8), "one of four pairs, in one of two directions"
    assert turned(LOGITS, LOGITS) == 0.0
    assert turned([[5, 3], [1, 2]], [[5, 3.5], [2.5, 2]]) == pytest.approx(1 / 8), (
        "no probabilities, but for their sign"
    )
    lifted = np.asarray(MOVED) + np.array([[7], [-3]])
    assert turned(LOGITS, lifted) == pytest.approx(1 / 8), "what moves all classes of a row turns nothing"


def softmax(logits: Any) -> Array:
    weights = np.exp(logits)
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def test_probabilities_are_compared_as_their_logits_are() -> None:
    random = np.random.default_rng(0)
    logits = random.standard_normal((200, 5)) * 3
    noisy = logits + random.standard_normal((200, 5)) / 2
    share = turned(logits, noisy)
    assert share is not None
    assert 0.01 < share < 0.2
    assert turned(softmax(logits), softmax(noisy)) == pytest.approx(share, abs=0.002)
    assert turned([[1, 0], [0.75, 0.25]], [[1, 0], [0, 1]]) == pytest.approx(2 / 8), (
        "a probability of 0 has a logarithm"
    )


def test_decisions_turn_as_often_as_foretold() -> None:
    random = np.random.default_rng(1)
    logits = random.standard_normal((8000, 10))
    noisy = logits + random.standard_normal((8000, 10)) / 20
    turns = float(np.mean(logits.argmax(-1) != noisy.argmax(-1)))
    assert turned(logits, noisy) == pytest.approx(turns, rel=0.2)


def test_batches_tell_together_what_they_tell_at_once() -> None:
    random = np.random.default_rng(2)
    one, noise = random.standard_normal((2, 30, 4)).astype(np.float32)
    parts = Decisions()
    for part in (slice(0, 7), slice(7, 30)):
        parts.add("y", Batch({"x": one[part]}, {"y": one[part]}, {"y": (one + noise / 4)[part]}))
    assert parts.turned == turned(one, one + noise / 4)
    assert parts.turned == turned_share(np.concatenate(parts.margins), np.concatenate(parts.shifts))


def test_what_decides_nothing_has_no_share() -> None:
    for one in (np.zeros((4, 1), np.float32), np.zeros(4, np.float32), np.zeros((4, 3), np.int64)):
        found = Decisions()
        found.add("y", Batch({"x": one}, {"y": one}, {"y": one}))
        assert found.turned is None
    assert Decisions().turned is None


def test_padding_turns_nothing() -> None:
    one = np.asarray([LOGITS, LOGITS], np.float32)
    other = np.asarray([MOVED, [LOGITS[0], [9, 0, 0]]], np.float32)
    mask = np.array([[1, 1], [1, 0]])
    kept = turned([*LOGITS, LOGITS[0]], [*MOVED, LOGITS[0]])
    assert turned(one, other, {"ids": mask, "attention_mask": mask}) == kept
    assert turned(one, other) != kept


def test_a_class_that_is_hidden_is_no_rival() -> None:
    hidden = [[1, -np.inf], [-np.inf, -np.inf]]
    assert turned(hidden, hidden) == 0.0
    three = [[5, 3, -np.inf], [0, 1, 2]]
    assert turned(three, [[5, 3.5, -np.inf], [0, 2.5, 2]]) == pytest.approx(1 / 8)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_longer_finite_is_moved_without_bound(value: float) -> None:
    assert turned(LOGITS, np.full((2, 3), value)) == 0.5
    assert turned(LOGITS, [LOGITS[0], [0, value, 2]]) == pytest.approx(2 / 8)


@pytest.mark.parametrize(
    ("output", "labels", "fits"),
    [
        ((4, 10), (4,), True),
        ((4, 10), (4, 1), True),
        ((2, 5, 9), (2, 5), True),
        ((4, 1), (4,), False),
        ((4,), (4,), False),
        ((4, 10), (3,), False),
        ((4, 10), (2, 2), False),
        ((2, 5, 9), (5, 2), False),
        ((4, 3, 8, 8), (4,), False),
    ],
)
def test_labels_fit_decisions(output: tuple[int, ...], labels: tuple[int, ...], fits: bool) -> None:
    assert fits_labels(np.zeros(output), np.zeros(labels, int)) is fits


def test_labels_of_other_kinds() -> None:
    assert not fits_labels(np.zeros((2, 3)), np.array(["cat", "dog"]))
    assert fits_labels(np.zeros(2, np.int64), np.array([1, 0]))


@pytest.mark.parametrize(
    ("shape", "expected"), [((4, 2), True), ((4, 1), False), ((2, 3, 256), True), ((2, 3, 255), False), ((4,), False)]
)
def test_what_looks_like_classes(shape: tuple[int, ...], expected: bool) -> None:
    assert looks_like_classes(np.zeros(shape)) is expected


def test_the_size_of_a_batch() -> None:
    assert batch_size({"x": np.zeros((5, 2))}) == 5
    assert batch_size({"x": np.zeros(())}) == batch_size({}) == 1
