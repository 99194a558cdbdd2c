"""Which metric for which outputs: what was asked for, or what fits the kind of the outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxq.comparison import Batch, fits_labels, looks_like_classes
from onnxq.errors import DataError, RecipeError
from onnxq.recipe import MAX_DROPS
from onnxq.tallies import Losses

Array = np.ndarray[Any, Any]
Choice = tuple[dict[str, str], str]
"""The metric by output, and the input that holds tokens."""

TOKENS = ("decoder_input_ids", "input_ids", "tokens", "token_ids", "ids")
"""How an input of tokens is called; the first that fits is taken."""

NOT_TOKENS = ("mask", "type", "position", "segment")
"""What the name of another integer input of the same shape says."""

NOT_CLASSES = ("embed", "hidden", "pool", "feature")
"""What the name of an output says whose last axis is a direction, and no scores of classes."""

IGNORANCE = 0.25
"""A language model has a perplexity of less than this share of its vocabulary, or it predicts something else."""


def choose(name: str, first: Batch) -> Choice:
    """The metric of each output, as the first batch shows them; a function of the user's stands at `""`.

    `auto` takes what fits first: top1 for outputs with labels; perplexity for a language model; otherwise agreement
    for each output that looks like classes, and cosine for every other one.

    Raises:
        RecipeError: the metric does not fit the model or the data.
    """
    outputs = {n: v for n, v in first.expected.items() if v.dtype.kind == "f"} or dict(first.expected)
    if name not in ("auto", *MAX_DROPS):
        return {"": name}, ""
    if name == "auto":
        kinds, tokens = _automatic(outputs, first)
    elif name == "perplexity":
        kinds, tokens = _language(outputs, first, sure=False)
    else:
        kinds, tokens = dict.fromkeys(_fitting(name, outputs, first), name), ""
    if not kinds:
        raise RecipeError(_misfit(name, first))
    return kinds, tokens


def _fitting(name: str, outputs: Mapping[str, Array], first: Batch) -> list[str]:
    """The outputs that a metric can be measured on."""
    if name == "top1":
        return [n for n, v in first.expected.items() if first.labels is not None and fits_labels(v, first.labels)]
    if name in ("agreement", "kl"):
        scores = {n: v for n, v in outputs.items() if v.dtype.kind == "f" and v.ndim > 1 and v.shape[-1] > 1}
        whole = [n for n, v in outputs.items() if v.dtype.kind != "f" and name == "agreement"]
        return [n for n, v in scores.items() if looks_like_classes(v)] or list(scores) or whole
    return list(outputs)


def _automatic(outputs: Mapping[str, Array], first: Batch) -> Choice:
    labels = first.labels
    labelled = [n for n, v in first.expected.items() if labels is not None and _are_classes(labels, v)]
    if labelled:
        return dict.fromkeys(labelled, "top1"), ""
    language = _language(outputs, first, sure=True)
    return language if language[0] else ({n: _kind(n, v, first) for n, v in outputs.items()}, "")


def _are_classes(labels: Array, output: Array) -> bool:
    """Whether labels number the classes of an output; what a regression aims at is no whole number."""
    if not fits_labels(output, labels):
        return False
    classes = output.shape[-1] if output.dtype.kind == "f" else math.inf
    known = labels[labels >= 0]
    return bool(known.size and (known == np.floor(known)).all() and known.max() < classes)


def _kind(name: str, output: Array, first: Batch) -> str:
    """Agreement for integers, and for scores of classes of each sample or each token; cosine for anything else.

    An image has as many columns as a vocabulary has words, and a sentence's direction as many numbers as there may be
    classes: so a third axis must be one of tokens, and the name must not say otherwise.
    """
    if output.dtype.kind != "f":
        return "agreement"
    named_otherwise = any(word in name.lower() for word in NOT_CLASSES)
    by_token = any(v.shape == output.shape[:-1] for v in first.feeds.values() if v.dtype.kind in "iu")
    decides = looks_like_classes(output) and not named_otherwise and (output.ndim == 2 or by_token)
    return "agreement" if decides else "cosine"


def _language(outputs: Mapping[str, Array], first: Batch, *, sure: bool) -> Choice:
    """The output [batch, length, vocabulary] with the input [batch, length] of its tokens; none where nothing fits.

    An output that does predict its tokens is taken before others, and where it must be `sure`, no other is.
    """
    found = {n: _tokens(first, v.shape[:2]) for n, v in outputs.items() if v.ndim == 3 and v.dtype.kind == "f"}
    pairs = {name: tokens for name, tokens in found.items() if tokens}
    likely = [name for name, tokens in pairs.items() if _predicts(outputs[name], first, tokens)]
    chosen = likely or ([] if sure else list(pairs))
    return ({chosen[0]: "perplexity"}, pairs[chosen[0]]) if chosen else ({}, "")


def _tokens(first: Batch, shape: tuple[int, ...]) -> str:
    """The integer input of a shape that is called like tokens, or is the only one; empty where there is none."""
    inputs = [n for n, v in first.feeds.items() if v.shape == shape and v.dtype.kind in "iu"]
    named = [n for n in TOKENS if n in inputs]
    likely = named[:1] or [n for n in inputs if not any(word in n for word in NOT_TOKENS)]
    return likely[0] if len(likely) == 1 else ""


def _predicts(output: Array, first: Batch, tokens: str) -> bool:
    """Whether the float model foretells tokens: no hidden states, and no model that fills gaps in a text."""
    losses = Losses(tokens)
    try:
        losses.add("", {"": output}, first)
        return losses.alone().value < IGNORANCE * int(output.shape[-1])
    except DataError:  # tokens outside of what would be the vocabulary, or too few
        return False


def _misfit(name: str, first: Batch) -> str:
    needs = {
        "top1": "a label for each decision of an output",
        "perplexity": "an output [batch, length, vocabulary] and an integer input [batch, length] of tokens",
        "agreement": "an output with one score per class",
        "kl": "an output with one score per class",
    }
    labels = "" if first.labels is None or name != "top1" else f" The labels are {_shapes({'': first.labels})}."
    return (
        f"Metric '{name}' needs {needs.get(name, 'an output that holds numbers')}. The first batch takes "
        f"{_shapes(first.feeds)} and returns {_shapes(first.expected) or 'none'}.{labels} Take another metric."
    )


def _shapes(arrays: Mapping[str, Array]) -> str:
    return ", ".join(f"{name} {value.dtype}{list(value.shape)}".strip() for name, value in arrays.items())
