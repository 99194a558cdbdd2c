"""Text that a language model writes by itself, to calibrate it where nobody gives any.

    random token ─ model ─ draw the next token as likely as the model holds it ─ model ─ ...

Liu et al., LLM-QAT: Data-Free Quantization Aware Training for Large Language Models, arXiv:2305.17888, section 2.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from onnxq.calibration.caches import empty_caches
from onnxq.calibration.collect import Progress, silent
from onnxq.calibration.data import Data, open_data
from onnxq.continuation import check_causal
from onnxq.errors import DataError, RecipeError
from onnxq.generation import Roles, find_roles
from onnxq.runtime import Session

Array = np.ndarray[Any, Any]

TEXTS = 16
"""Enough to calibrate with; written side by side."""

LENGTH = 256
"""Tokens of each."""

SEED = 0


def imagined(session: Session, progress: Progress = silent, texts: int = TEXTS) -> Data | None:
    """Texts by the model itself, as data for it; None where it is no language model, or takes other inputs."""
    try:
        roles = find_roles(session.inputs, session.outputs)
        tokens = _written(session, roles, progress, texts)
    except (RecipeError, DataError):
        return None
    return open_data(list(_feeds(roles, tokens, 1)), session.inputs)


def _written(session: Session, roles: Roles, progress: Progress, texts: int) -> Array:
    """Tokens (texts, length). Every text begins with a token drawn at random."""
    if roles.length is not None or roles.rows != 1:
        raise RecipeError("A model that fixes its lengths writes no text here.")
    check_causal(session, [0, 0])
    random = np.random.default_rng(SEED)
    tokens = np.zeros((1, 1), np.int64)
    vocabulary = _scores(session, roles, tokens).shape[1]
    tokens = random.integers(0, vocabulary, (texts, 1))
    for place in range(1, LENGTH):
        likely = _scores(session, roles, tokens).astype(np.float64)
        # argmax(score + Gumbel noise) draws each token as likely as softmax(score) has it
        drawn = (likely + random.gumbel(size=likely.shape)).argmax(axis=1)
        tokens = np.concatenate([tokens, drawn[:, None]], axis=1)
        progress("imagine", place + 1, LENGTH)
    return tokens


def _scores(session: Session, roles: Roles, tokens: Array) -> Array:
    """What the model thinks of every token of the vocabulary after each text, (texts, vocabulary)."""
    (feeds,) = _feeds(roles, tokens, len(tokens))
    found = session.run(feeds, [roles.logits])[roles.logits]
    if found.ndim != 3 or not np.isfinite(found[:, -1]).all():
        raise RecipeError("It returns no scores of tokens.")
    return np.asarray(found[:, -1])


def _feeds(roles: Roles, tokens: Array, rows: int) -> Iterator[dict[str, Array]]:
    """Texts as the model takes them, so many at a time."""
    names: Sequence[str] = [spec.name for spec in roles.inputs]
    for start in range(0, len(tokens), rows):
        part = tokens[start : start + rows]
        beside = {
            "attention_mask": np.ones_like(part),
            "position_ids": np.broadcast_to(np.arange(part.shape[1]), part.shape).copy(),
            "token_type_ids": np.zeros_like(part),
        }
        feeds = {roles.tokens.name: part, **{name: beside[name] for name in names if name in beside}}
        kinds = {spec.name: spec.dtype for spec in roles.inputs}
        typed = {name: value.astype(kinds[name]) for name, value in feeds.items()}
        yield typed | empty_caches(roles.inputs, rows)
