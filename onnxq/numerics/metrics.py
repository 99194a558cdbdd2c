"""How far two arrays are apart: signal to noise, direction, decisions, probabilities.

Everything is summed in float64, whose range holds the squares of float32 values. Positions where both arrays
hold the same infinity, or both NaN, agree and are left out (attention masks are full of -inf). Any other NaN or
infinity is an unbounded error, and the result is the worst value of the metric. Shapes that differ raise
ValueError.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64Array = NDArray[np.float64]

ROWS = 64
"""Rows of logits that are widened to float64 at a time: a vocabulary is wide, and a text is long."""


def sqnr_db(reference: ArrayLike, value: ArrayLike) -> float:
    """Signal to quantization noise ratio in dB: 10 log10(sum reference^2 / sum (reference - value)^2).

    Returns:
        inf for no error at all, empty arrays included; -inf for an error on an all-zero reference, or an
        unbounded error.
    """
    reference, value, bounded = _comparable(reference, value)
    noise = float(np.sum(np.square(reference - value)))
    signal = float(np.sum(np.square(reference)))
    if not bounded:
        return -np.inf
    if noise == 0:
        return np.inf
    return -np.inf if signal == 0 else float(10 * np.log10(signal / noise))


def cosine(reference: ArrayLike, value: ArrayLike, *, per_sample: bool = False) -> float:
    """Cosine of the angle between the two arrays, read as vectors.

    Args:
        reference: any shape.
        value: same shape.
        per_sample: take one vector per index of axis 0, and the mean of their cosines.

    Returns:
        -1 to 1. Two zero vectors count as 1, one zero vector as 0, and an unbounded error as -1.
    """
    if not per_sample:
        return _cosine(*_comparable(reference, value))
    pairs = zip(np.asarray(reference), np.asarray(value), strict=True)
    cosines = [_cosine(*_comparable(*pair)) for pair in pairs]
    return float(np.mean(cosines)) if cosines else 1.0


def max_abs_error(reference: ArrayLike, value: ArrayLike) -> float:
    """Largest |reference - value|: 0 for empty arrays, inf for an unbounded error."""
    reference, value, bounded = _comparable(reference, value)
    return float(np.abs(reference - value).max(initial=0)) if bounded else np.inf


def argmax_agreement(reference: ArrayLike, value: ArrayLike, axis: int = -1) -> float:
    """Share of positions where both arrays have their largest value at the same index of `axis`.

    The first index wins a tie. NaN is never the largest. Empty arrays agree: 1.
    """
    reference, value = _same_shape(reference, value)
    if reference.size == 0:
        return 1.0
    chosen = [np.where(np.isnan(x), -np.inf, x).argmax(axis) for x in (reference, value)]
    return float(np.mean(chosen[0] == chosen[1]))


def kl_divergence(p_logits: ArrayLike, q_logits: ArrayLike) -> float:
    """Mean over all rows of KL(softmax p || softmax q) along the last axis, in nats.

    Returns:
        0 for no rows; inf where q gives no probability to something that p does, or where a row has a NaN, a
        +inf or nothing but -inf (its softmax is undefined).
    """
    p_logits, q_logits = _same_shape(p_logits, q_logits)
    if p_logits.size == 0:
        return 0.0
    total = 0.0
    for p, q in zip(_log_softmax(p_logits), _log_softmax(q_logits), strict=True):
        likely = p > -np.inf
        # NaN marks an undefined row, and is on every value of it
        if np.isnan(p).any() or np.isnan(q).any() or np.any(q[likely] == -np.inf):
            return np.inf
        total += float(np.sum(np.exp(p[likely]) * (p[likely] - q[likely])))
    return float(max(total, 0.0) / (p_logits.size // p_logits.shape[-1]))


def token_losses(logits: ArrayLike, tokens: ArrayLike) -> Float64Array:
    """Negative log-likelihood in nats of each token after the first, as a causal model predicts it.

    Args:
        logits: (..., length, vocabulary); logits at position t predict the token at t + 1.
        tokens: (..., length), integers.

    Returns:
        (..., length - 1); inf where a token has no probability, or a row has a NaN, a +inf or nothing but -inf.

    Raises:
        ValueError: the shapes do not fit, a token is outside the vocabulary, or there is no second token.
    """
    logits, tokens = np.asarray(logits), np.asarray(tokens)
    if logits.shape[:-1] != tokens.shape or tokens.ndim == 0:
        raise ValueError(f"logits {logits.shape} do not fit tokens {tokens.shape}: one row per token is needed.")
    targets = tokens[..., 1:].ravel()
    if targets.size == 0:
        raise ValueError(f"tokens {tokens.shape} leave nothing to predict. Give at least two per text.")
    if targets.min() < 0 or targets.max() >= logits.shape[-1]:
        raise ValueError(f"tokens {targets.min()}..{targets.max()} leave the vocabulary of {logits.shape[-1]}.")
    losses = np.empty(targets.size)
    for block, rows in enumerate(_log_softmax(logits[..., :-1, :])):
        place = slice(block * ROWS, block * ROWS + len(rows))
        losses[place] = -rows[np.arange(len(rows)), targets[place]]
    return np.where(np.isnan(losses), np.inf, losses).reshape(tokens[..., 1:].shape)


def perplexity(logits: ArrayLike, tokens: ArrayLike) -> float:
    """exp of the mean of `token_losses`: at least 1, perhaps inf. Takes and raises the same."""
    with np.errstate(over="ignore"):
        return float(np.exp(np.mean(token_losses(logits, tokens))))


def _same_shape(reference: ArrayLike, value: ArrayLike) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    reference, value = np.asarray(reference), np.asarray(value)
    if reference.shape != value.shape:
        raise ValueError(f"shapes {reference.shape} and {value.shape} differ. Compare equal shapes.")
    return reference, value


def _comparable(reference: ArrayLike, value: ArrayLike) -> tuple[Float64Array, Float64Array, bool]:
    """Both arrays flat in float64 where finite, and whether they agree everywhere else."""
    reference, value = _same_shape(reference, value)
    a, b = reference.astype(np.float64).ravel(), value.astype(np.float64).ravel()
    finite = np.isfinite(a) & np.isfinite(b)
    if finite.all():
        return a, b, True
    return a[finite], b[finite], bool(np.array_equal(a[~finite], b[~finite], equal_nan=True))


def _cosine(a: Float64Array, b: Float64Array, bounded: bool) -> float:
    norms = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if not bounded:
        return -1.0
    if 0 in norms:
        return 1.0 if norms == (0, 0) else 0.0
    return float(np.clip(np.dot(a / norms[0], b / norms[1]), -1, 1))


def _log_softmax(logits: NDArray[np.generic]) -> Iterator[Float64Array]:
    """Blocks of rows of log-probabilities along the last axis; all NaN in a row whose softmax is undefined."""
    rows = logits.reshape(-1, logits.shape[-1])
    for start in range(0, len(rows), ROWS):
        block = rows[start : start + ROWS].astype(np.float64)
        with np.errstate(invalid="ignore"):
            block -= block.max(axis=-1, keepdims=True)
            yield block - np.log(np.exp(block).sum(axis=-1, keepdims=True))


def turned_share(margins: ArrayLike, shifts: ArrayLike) -> float:
    """The share of decisions that noise is expected to turn, from how near they are and how far noise moves them.

    Every margin is held against every shift, in either direction: sum over i, j of [|shift_j| > margin_i] / (2 n m). So
    a few samples tell more than by the decisions that did turn among them, if noise and margins are independent.

    Args:
        margins: by how much each decision beats the next best one, (n,), not below 0.
        shifts: by how much noise moved the difference of the two, (m,).
    """
    far, near = np.sort(np.abs(np.asarray(shifts, np.float64))), np.asarray(margins, np.float64)
    if not far.size or not near.size:
        return 0.0
    return float((far.size - np.searchsorted(far, near, side="right")).mean() / (2 * far.size))
