"""Text that a language model writes by itself, to calibrate it where nobody gives any.

    random token ─ model ─ draw the next token as likely as the model holds it ─ model ─ ...

Liu et al., LLM-QAT: Data-Free Quantization Aware Training for Large Language Models, arXiv:2305.17888, section 2.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxq.calibration.caches import empty_caches, is_branch, switch
from onnxq.calibration.collect import Progress, silent
from onnxq.calibration.data import Data, open_data
from onnxq.continuation import check_causal
from onnxq.errors import DataError, RecipeError
from onnxq.generation import Roles, find_roles
from onnxq.runtime import Session

Array = np.ndarray[Any, Any]

TEXTS = 16
"""Enough to calibrate with; so many are written side by side."""

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
    return open_data([_feeds(roles, row[None], {}) for row in tokens], session.inputs)


def _written(session: Session, roles: Roles, progress: Progress, texts: int) -> Array:
    """Tokens (texts, length). Every text begins with a token drawn at random."""
    if roles.length is not None or roles.rows != 1:
        raise RecipeError("A model that fixes its lengths writes no text here.")
    check_causal(session, [0, 0])
    random, found = np.random.default_rng(SEED), []
    vocabulary = _read(session, roles, np.zeros((1, 1), np.int64), {})[0].shape[1]
    for start in range(0, texts, TEXTS):
        tokens, past = random.integers(0, vocabulary, (min(TEXTS, texts - start), 1)), dict[str, Array]()
        for place in range(1, LENGTH):
            likely, past = _read(session, roles, tokens, past)
            # argmax(score + Gumbel noise) draws each token as likely as softmax(score) has it
            drawn = (likely + random.gumbel(size=likely.shape)).argmax(axis=1)
            tokens = np.concatenate([tokens, drawn[:, None]], axis=1)
            progress("imagine", start * LENGTH + len(tokens) * (place + 1), texts * LENGTH)
        found.append(tokens)
    return np.concatenate(found)


def _read(session: Session, roles: Roles, tokens: Array, past: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
    """What the model thinks of every token after each text, float64[texts, vocabulary], and its caches then."""
    found = session.run(_feeds(roles, tokens, past), [roles.logits, *roles.presents.values()])
    scores = found[roles.logits]
    if scores.ndim != 3 or not np.isfinite(scores[:, -1]).all():
        raise RecipeError("It returns no scores of tokens.")
    return scores[:, -1].astype(np.float64), {cache: found[present] for cache, present in roles.presents.items()}


def _feeds(roles: Roles, tokens: Array, past: Mapping[str, Array]) -> dict[str, Array]:
    """Texts as the model takes them: all their tokens, or the last one where caches hold the others."""
    seen = tokens.shape[1] - 1 if past else 0
    new = tokens[:, seen:]
    beside = {
        roles.tokens.name: new,
        "attention_mask": np.ones_like(tokens),
        "position_ids": np.broadcast_to(np.arange(seen, tokens.shape[1]), new.shape).copy(),
        "token_type_ids": np.zeros_like(new),
    }
    typed = {spec.name: beside[spec.name].astype(spec.dtype) for spec in roles.inputs if spec.name in beside}
    flags = {spec.name: switch(spec, bool(past)) for spec in roles.inputs if is_branch(spec)}
    return typed | (dict(past) or empty_caches(roles.inputs, len(tokens))) | flags
