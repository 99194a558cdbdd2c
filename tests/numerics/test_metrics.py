"""Distances between arrays: values known by hand, and the edges where a formula has none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxq.numerics.metrics import (
    argmax_agreement,
    cosine,
    kl_divergence,
    max_abs_error,
    perplexity,
    sqnr_db,
    token_losses,
    turned_share,
)

inf, nan = np.inf, np.nan


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))


def test_sqnr_of_known_noise() -> None:
    assert sqnr_db([3.0, 4.0], [3.0, 3.5]) == pytest.approx(20.0)


def test_sqnr_edges() -> None:
    assert sqnr_db([1.0, 2.0], [1.0, 2.0]) == inf
    assert sqnr_db([0.0], [0.0]) == inf
    assert sqnr_db([0.0], [1.0]) == -inf
    assert sqnr_db([], []) == inf


def test_sqnr_sums_in_float64() -> None:
    reference = np.full(10**6, 3e19, np.float32)
    assert sqnr_db(reference, reference * np.float32(0.9)) == pytest.approx(20, abs=1e-4)


def test_cosine_of_known_vectors() -> None:
    assert cosine([[1.0, 0.0]], [[1.0, 1.0]]) == pytest.approx(np.sqrt(0.5))
    assert cosine([1.0, 2.0], [-2.0, -4.0]) == pytest.approx(-1)


def test_cosine_of_zero_vectors() -> None:
    assert cosine([0.0, 0.0], [0.0, 0.0]) == 1
    assert cosine([0.0, 0.0], [0.0, 1.0]) == 0
    assert cosine([], []) == 1


def test_cosine_per_sample_is_the_mean_over_axis_0() -> None:
    reference, value = np.array([[[100.0], [0.0]], [[1.0], [0.0]]]), np.array([[[100.0], [0.0]], [[0.0], [1.0]]])
    assert cosine(reference, value, per_sample=True) == pytest.approx(0.5)
    assert cosine(reference, value) > 0.99


def test_max_abs_error() -> None:
    assert max_abs_error([[1.0, -2.0]], [[1.5, 2.0]]) == 4
    assert max_abs_error(np.array([255], np.uint8), np.array([0], np.uint8)) == 255
    assert max_abs_error([], []) == 0


def test_equal_infinities_are_left_out() -> None:
    reference, value = [-inf, 3.0, 4.0, nan], [-inf, 3.0, 3.5, nan]
    assert sqnr_db(reference, value) == pytest.approx(20)
    assert max_abs_error(reference, value) == 0.5
    assert cosine(reference, value) == pytest.approx(cosine([3.0, 4.0], [3.0, 3.5]))


@pytest.mark.parametrize(("reference", "value"), [(inf, 1.0), (1.0, nan), (inf, -inf), (nan, inf)])
def test_other_infinities_are_the_worst_result(reference: float, value: float) -> None:
    assert sqnr_db([1.0, reference], [1.0, value]) == -inf
    assert max_abs_error([1.0, reference], [1.0, value]) == inf
    assert cosine([1.0, reference], [1.0, value]) == -1


@pytest.mark.parametrize("metric", [sqnr_db, cosine, max_abs_error, argmax_agreement, kl_divergence])
def test_shapes_that_differ_are_refused(metric: Callable[..., float]) -> None:
    with pytest.raises(ValueError, match=r"shapes \(1, 2\) and \(2,\) differ"):
        metric([[1.0, 2.0]], [1.0, 2.0])


def test_argmax_agreement() -> None:
    reference = np.array([[1.0, 2.0], [4.0, 3.0], [nan, 0.0], [-inf, 0.0]])
    value = np.array([[1.0, 3.0], [0.0, 3.0], [1.0, 5.0], [nan, 0.0]])
    assert argmax_agreement(reference, value) == 0.75
    assert argmax_agreement([[1.0, 2.0], [3.0, 0.0]], [[1.0, 0.0], [0.0, 3.0]], axis=0) == 0
    assert argmax_agreement(np.zeros((0, 3)), np.zeros((0, 3))) == 1


def test_kl_divergence_equals_the_definition() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.normal(size=(2, 5, 30, 11)) * 5  # 150 rows: more than one block
    expected = (softmax(p) * np.log(softmax(p) / softmax(q))).sum(-1).mean()
    assert kl_divergence(p, q) == pytest.approx(expected)


def test_kl_divergence_edges() -> None:
    assert kl_divergence([[1.0, 2.0]], [[101.0, 102.0]]) == pytest.approx(0, abs=1e-12)
    assert kl_divergence([[0.0, -inf]], [[0.0, 0.0]]) == pytest.approx(np.log(2))
    assert kl_divergence([[0.0, 0.0]], [[0.0, -inf]]) == inf
    assert kl_divergence([[0.0, nan]], [[0.0, nan]]) == inf
    assert kl_divergence([[0.0, inf]], [[0.0, 0.0]]) == inf
    assert kl_divergence([[-inf, -inf]], [[0.0, 0.0]]) == inf
    assert kl_divergence(np.zeros((0, 3)), np.zeros((0, 3))) == 0


def test_perplexity_of_an_ignorant_model_is_its_vocabulary() -> None:
    assert perplexity(np.zeros((2, 100, 7)), np.ones((2, 100), np.int64)) == pytest.approx(7)


def test_perplexity_predicts_the_next_token() -> None:
    rng = np.random.default_rng(0)
    logits, tokens = rng.normal(size=(3, 50, 9)), rng.integers(0, 9, (3, 50))
    chosen = np.take_along_axis(softmax(logits)[:, :-1], tokens[:, 1:, None], -1)
    assert perplexity(logits, tokens) == pytest.approx(np.exp(-np.log(chosen).mean()))


def test_losses_of_tokens_keep_their_places() -> None:
    """150 rows are more than are widened at a time."""
    random = np.random.default_rng(0)
    logits, tokens = random.standard_normal((3, 50, 7)), random.integers(0, 7, (3, 50))
    likely = np.log(softmax(logits))
    expected = [[-likely[text, place - 1, tokens[text, place]] for place in range(1, 50)] for text in range(3)]
    np.testing.assert_allclose(token_losses(logits, tokens), expected)


def test_perplexity_edges() -> None:
    assert perplexity([[0.0, -inf], [0.0, 0.0]], [0, 1]) == inf
    assert perplexity([[0.0, nan], [0.0, 0.0]], [0, 0]) == inf
    assert perplexity([[0.0, -1e6], [0.0, 0.0]], [0, 1]) == inf
    with pytest.raises(ValueError, match="at least two"):
        perplexity([[0.0, 0.0]], [0])
    with pytest.raises(ValueError, match="leave the vocabulary of 2"):
        perplexity(np.zeros((2, 2)), [0, 2])
    with pytest.raises(ValueError, match="one row per token"):
        perplexity(np.zeros((2, 2)), [0, 1, 1])


MARGINS = st.lists(st.floats(0, 10) | st.sampled_from([0.0, 1.0, 2.0]), min_size=1, max_size=6)
SHIFTS = st.lists(st.floats(-10, 10) | st.sampled_from([-1.0, 0.0, 1.0, 2.0]), min_size=1, max_size=6)


@given(MARGINS, SHIFTS)
def test_the_turned_share_holds_every_margin_against_every_shift(margins: list[float], shifts: list[float]) -> None:
    turned = [abs(shift) > margin for margin in margins for shift in shifts]
    assert turned_share(margins, shifts) == pytest.approx(np.mean(turned) / 2)


@given(MARGINS, SHIFTS)
def test_no_noise_turns_nothing_and_much_noise_every_second_decision(margins: list[float], shifts: list[float]) -> None:
    assert turned_share(margins, np.zeros(len(shifts))) == 0.0
    assert turned_share(margins, [11.0, -11.0, inf]) == 0.5
    assert turned_share(np.full(len(margins), inf), shifts) == 0.0
    assert turned_share(np.full(len(margins), inf), [inf]) == 0.0, "not even as much is more"


@given(MARGINS, SHIFTS, st.floats(1, 100))
def test_more_noise_turns_more_and_greater_margins_less(
    margins: list[float], shifts: list[float], factor: float
) -> None:
    share = turned_share(margins, shifts)
    assert 0.0 <= share <= 0.5
    assert turned_share(margins, factor * np.array(shifts)) >= share
    assert turned_share(factor * np.array(margins), shifts) <= share


def test_where_there_is_nothing_nothing_turns() -> None:
    assert turned_share([], [1.0]) == turned_share([1.0], []) == turned_share([], []) == 0.0


def test_the_turned_share_is_the_one_of_independent_noise() -> None:
    random = np.random.default_rng(0)
    margins, shifts = random.exponential(1.0, 20_000), random.normal(0, 0.5, 20_000)
    turned = float(np.mean(margins + shifts < 0))
    assert turned_share(margins, shifts) == pytest.approx(turned, abs=4 * np.sqrt(turned / 20_000))
    assert turned_share(margins[:60], shifts[:60]) == pytest.approx(turned, rel=0.3), "few samples tell nearly as much"
