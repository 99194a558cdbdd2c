"""How each metric is counted, batch by batch, and what drop the counts come to.

A drop is 0 where the quantized model is as good as the float one, and larger the worse it is:

| metric          | drop                                                          | the two values that are shown    |
|-----------------|---------------------------------------------------------------|----------------------------------|
| top1            | share of labels right, float minus quantized                  | both shares                      |
| agreement       | share of decisions that differ                                | 1, share of equal ones           |
| cosine          | 1 - mean cosine over samples                                  | 1, mean cosine                   |
| sqnr            | noise power over signal power                                 | none, 10 log10(signal / noise)   |
| kl              | mean of KL(softmax float, softmax quantized) over rows, nats  | 0, the same                      |
| perplexity      | quantized perplexity / float perplexity - 1                   | both perplexities                |
| module:function | (float score - quantized score) / |float score|               | both scores                      |

The limits where nothing else is asked for are `onnxq.recipe.MAX_DROPS`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from onnxq.calibration.feeds import blamed
from onnxq.calibration.functions import current_folder, find_function
from onnxq.comparison import Batch, Decisions, Difference, batch_size, kept, sqnr
from onnxq.errors import DataError, RecipeError
from onnxq.numerics.metrics import kl_divergence, token_losses

Array = np.ndarray[Any, Any]
Joined = dict[str, Array | list[Array]]


@dataclass(frozen=True)
class Reading:
    """What a tally comes to.

    Attributes:
        drop: 0 where nothing is lost, inf where there is no bound to it.
        before: the value of the float model, None where the metric gives it none.
        after: the value of the quantized model.
        standard_error: of the drop, as if the rows were drawn independently; None where that cannot be told.
        turned: share of decisions that may be expected to turn; None where nothing is decided.
    """

    drop: float
    before: float | None = None
    after: float | None = None
    standard_error: float | None = None
    turned: float | None = None


class Tally(Protocol):
    """One metric of one output. Named `""`, the output is all of them."""

    def add(self, name: str, batch: Batch) -> None:
        """Take in one batch."""

    def reading(self) -> Reading:
        """The drop so far."""


@dataclass(frozen=True)
class Alone:
    """What a metric says of one model.

    Attributes:
        value: larger is better, but for perplexity.
        counted: how many labels or tokens were predicted; None for a function of the user's.
        standard_error: of the value; None where that cannot be told.
    """

    value: float
    counted: int | None = None
    standard_error: float | None = None


class Top1(Decisions):
    """Labels that are right."""

    def alone(self) -> Alone:
        """Of the float model; the error is that of a binomial share."""
        self._check()
        share = self.right_float / self.labelled
        return Alone(share, self.labelled, math.sqrt(share * (1 - share) / self.labelled))

    def _check(self) -> None:
        if self.labelled == 0:
            raise DataError("All labels are negative, which means unknown. Give labels from 0 on.")

    def reading(self) -> Reading:
        """The error is that of paired answers: only samples on which the models differ add to it."""
        self._check()
        before, after = self.right_float / self.labelled, self.right / self.labelled
        differ = 2 * self.lost - self.right_float + self.right  # those lost, and those won
        drop = (self.right_float - self.right) / self.labelled
        error = math.sqrt(max(differ / self.labelled - drop * drop, 0.0) / self.labelled)
        return Reading(drop, before, after, error, self.turned)


class Agreement(Decisions):
    """Decisions that are the same."""

    def reading(self) -> Reading:
        """The error is that of a binomial share."""
        rows = max(self.rows, 1)
        drop = (self.rows - self.same) / rows
        return Reading(drop, 1.0, 1 - drop, math.sqrt(drop * (1 - drop) / rows), self.turned)


class Cosine(Difference):
    """Directions of the outputs."""

    def reading(self) -> Reading:
        """Each sample is a direction of its own."""
        cosines = np.concatenate(self.cosines) if self.cosines else np.ones(1)
        error = float(cosines.std(ddof=1)) / math.sqrt(cosines.size) if cosines.size > 1 else None
        after = float(cosines.mean()) if cosines.size else 1.0
        return Reading(1 - after, 1.0, after, error)


class Sqnr(Difference):
    """Noise beside the signal."""

    def reading(self) -> Reading:
        """An error on an output of zeros has no bound."""
        drop = 0.0 if self.noise == 0 else self.noise / self.signal if self.signal else math.inf
        return Reading(drop, None, sqnr(self.signal, self.noise) if self.signal else None)


@dataclass
class Kl:
    """Probabilities: softmax over the last axis."""

    total: float = 0.0
    rows: int = 0

    def add(self, name: str, batch: Batch) -> None:
        """Take in one batch; padding does not count."""
        pair = [x[name] for x in (batch.expected, batch.got)]
        keep = kept(pair[0][..., 0], batch.mask)
        rows = int(np.count_nonzero(keep))
        if rows:
            self.total += rows * kl_divergence(*(x[keep] for x in pair))
        self.rows += rows

    def reading(self) -> Reading:
        """The mean over rows."""
        drop = self.total / max(self.rows, 1)
        return Reading(drop, 0.0, drop)


@dataclass
class Losses:
    """How well one model predicts the next token; `tokens` is the input that holds them."""

    tokens: str
    total: float = 0.0
    count: int = 0
    texts: list[Array] = field(default_factory=list)
    """The loss and the predictions of each text: [texts of a batch, 2]."""

    def add(self, name: str, outputs: Mapping[str, Array], batch: Batch) -> None:
        """Take in one batch; a prediction counts where neither its token nor the one before is padding."""
        tokens = batch.feeds[self.tokens]
        mask = kept(tokens, batch.mask)
        keep = mask[:, 1:] & mask[:, :-1]
        if not keep.any():
            return
        try:
            found = token_losses(outputs[name], np.where(mask, tokens, 0))
        except ValueError as error:
            raise DataError(f"Perplexity of output '{name}' and input '{self.tokens}': {error}") from None
        self.total += float(found[keep].sum())
        self.count += int(np.count_nonzero(keep))
        self.texts.append(np.stack([np.where(keep, found, 0.0).sum(-1), keep.sum(-1)], axis=-1))

    def mean(self) -> float:
        """The mean over all predictions, in nats."""
        if self.count == 0:
            raise DataError("Perplexity needs texts of two tokens at least; the data has none. Give longer ones.")
        return self.total / self.count

    def alone(self) -> Alone:
        """The perplexity; its error is that of texts drawn independently, whose tokens are not.

        The standard error of a ratio of sums: sqrt(k / (k - 1) sum over texts (loss - mean * predictions)^2) / count.
        """
        mean = self.mean()
        texts = np.concatenate(self.texts)
        losses, counts = texts[texts[:, 1] > 0].T
        if counts.size < 2 or not math.isfinite(mean):
            return Alone(_power(mean), self.count)
        spread = float(np.square(losses - mean * counts).sum()) * counts.size / (counts.size - 1)
        return Alone(_power(mean), self.count, _power(mean) * math.sqrt(spread) / self.count)


@dataclass
class Perplexity:
    """How well the next token is predicted by both models; `tokens` is the input that holds them."""

    tokens: str

    def __post_init__(self) -> None:
        self.both = (Losses(self.tokens), Losses(self.tokens))

    def add(self, name: str, batch: Batch) -> None:
        """Take in one batch, as `Losses` does."""
        for losses, outputs in zip(self.both, (batch.expected, batch.got), strict=True):
            losses.add(name, outputs, batch)

    def reading(self) -> Reading:
        """The ratio of the two, less one."""
        before, after = (losses.mean() for losses in self.both)
        return Reading(_power(after - before) - 1, _power(before), _power(after))


def _power(exponent: float) -> float:
    """e to some power; inf where that is too large, or two infinities have no difference."""
    return math.exp(exponent) if exponent < 700 else math.inf


@dataclass
class Function:
    """A function of the user's, called once for each model with all that there is; larger is better."""

    name: str
    batches: list[Batch] = field(default_factory=list)

    def add(self, name: str, batch: Batch) -> None:
        """Remember one batch."""
        self.batches.append(batch)

    def reading(self) -> Reading:
        """The difference of the scores as a share of the float model's, or as it is where that is 0.

        Where the quantized model returns NaN or infinity of its own, the function is not asked about it.
        """
        before = self.alone().value
        if not all(_stays_finite(batch.expected, batch.got) for batch in self.batches):
            return Reading(math.inf, before)
        after = self._score([batch.got for batch in self.batches])
        return Reading((before - after) / (abs(before) or 1.0), before, after)

    def alone(self) -> Alone:
        """Its score of the float model."""
        return Alone(self._score([batch.expected for batch in self.batches]))

    def _score(self, outputs: Sequence[Mapping[str, Array]]) -> float:
        sizes = [batch_size(batch.feeds) for batch in self.batches]
        feeds = _joined([batch.feeds for batch in self.batches], sizes)
        known = [batch.labels for batch in self.batches if batch.labels is not None]
        return own_score(self.name, _joined(outputs, sizes), feeds, np.concatenate(known) if known else None)


def _stays_finite(expected: Mapping[str, Array], got: Mapping[str, Array]) -> bool:
    """Whether no NaN and no infinity is new."""
    return all(bool(np.isfinite(got[name][np.isfinite(value)]).all()) for name, value in expected.items())


def _joined(parts: Sequence[Mapping[str, Array]], sizes: Sequence[int]) -> Joined:
    """One array for all samples, or the list of the batches' where these have other axes, or no row per sample."""
    found: Joined = {}
    for name in parts[0]:
        arrays = [np.asarray(part[name]) for part in parts]
        rows = all(array.shape[:1] == (size,) for array, size in zip(arrays, sizes, strict=True))
        even = len({array.shape[1:] for array in arrays}) == 1
        found[name] = np.concatenate(arrays) if rows and even else arrays
    return found


def check_function(name: str) -> None:
    """Raise RecipeError where there is no such function."""
    with _mendable(name):
        find_function(name, _title(name))


def own_score(name: str, outputs: Joined, feeds: Joined, labels: Array | None) -> float:
    """What the function makes of one model. Raises RecipeError where it fails, or returns no finite number."""
    with _mendable(name):
        score = find_function(name, _title(name))(outputs, feeds, labels)
        array = np.asarray(score)
    if array.size != 1 or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise RecipeError(f"{_title(name)} returned {score!r:.80}. Return one finite number, larger for better.")
    return float(array.reshape(()))


def _title(name: str) -> str:
    return f"Metric '{name}'"


@contextmanager
def _mendable(name: str) -> Iterator[None]:
    """Modules of the current folder can be imported, and what goes wrong is a matter of the recipe."""
    try:
        with current_folder(), blamed(_title(name)):
            yield
    except DataError as error:
        raise RecipeError(str(error)) from error
