"""Outputs of two models on the same data: batches through both, and how far apart their outputs are.

Everything is a sum over batches, so no more than one batch of outputs is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxq.calibration.collect import Progress, silent, unmasked
from onnxq.calibration.data import Data, mask_of
from onnxq.errors import DataError
from onnxq.numerics.metrics import kl_divergence, turned_share
from onnxq.plan import Record
from onnxq.runtime import Feeds, Session

Array = np.ndarray[Any, Any]

LEAST_PROBABILITY = 1e-9
"""Smaller ones are taken for as small as this."""

VOCABULARY = 256
"""An output of more than two axes is taken for a classifier from this size of its last axis on."""


class OutputProof(Record):
    """How one output of the quantized model compares with the float model.

    Attributes:
        cosine: mean over samples of the cosine between the two outputs.
        cosine_min: the worst sample.
        sqnr_db: 10 log10(sum of squares of the float output / sum of squares of the difference); None if equal.
        max_error: largest absolute difference.
        agreement: share of equal argmax over the last axis (of integers: of equal values), where the output looks like
            a classifier's or there are labels for it.
        kl: mean over rows of KL(float model's probabilities || quantized model's), in nats, where the output looks like
            a classifier's.
        top1_float: share of labels that the float model gets right, where there are labels.
        top1: the same for the quantized model.
        finite: whether the quantized output holds neither NaN nor infinity that the float output does not hold.
    """

    cosine: float
    cosine_min: float
    sqnr_db: float | None
    max_error: float
    agreement: float | None = None
    kl: float | None = None
    top1_float: float | None = None
    top1: float | None = None
    finite: bool = True


@dataclass(frozen=True)
class Batch:
    """One batch and what both models make of it.

    Attributes:
        feeds: inputs by name.
        expected: outputs of the float model by name, those that hold numbers.
        got: the same outputs of the quantized model, of the same shapes.
        labels: what is right, first axis = samples; None where nobody knows.
    """

    feeds: Feeds
    expected: Mapping[str, Array]
    got: Mapping[str, Array]
    labels: Array | None = None

    @property
    def mask(self) -> Array | None:
        """Which positions are no padding, as `mask_of` finds it."""
        return mask_of(dict(self.feeds))


def paired(reference: Session, candidate: Session, data: Data, progress: Progress = silent) -> Iterator[Batch]:
    """Run both models on all of the data. Raises DataError where a shape changes."""
    seen = 0
    for feeds, labels in labelled(data):
        expected, got = numbers(reference.run(feeds)), candidate.run(feeds)
        for name, value in expected.items():
            if value.shape != got[name].shape:
                raise DataError(f"Output '{name}' has shape {got[name].shape} where float has {value.shape}.")
        yield Batch(feeds, expected, got, labels)
        seen += batch_size(feeds)
        progress("validate", min(seen, len(data)), len(data))


def labelled(data: Data, size: int | None = None) -> Iterator[tuple[Feeds, Array | None]]:
    """Batches of at most `size` samples, each with its labels; None where there are none."""
    labels, seen = data.labels, 0
    for feeds in data.batches(size):
        count = batch_size(feeds)
        yield feeds, None if labels is None else np.asarray(labels[seen : seen + count])
        seen += count


def numbers(outputs: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs that hold numbers."""
    return {n: v for n, v in outputs.items() if isinstance(v, np.ndarray) and v.dtype.kind in "fiub"}


def batch_size(feeds: Feeds) -> int:
    """Samples in a batch: the first axis of its tokens, or else of its first array."""
    first = feeds.get("input_ids", next(iter(feeds.values()), None))
    return int(first.shape[0]) if first is not None and first.ndim else 1


@dataclass
class Difference:
    """Running sums over batches of one output: how far its values are off. Padding does not count."""

    signal: float = 0.0
    noise: float = 0.0
    largest: float = 0.0
    cosines: list[Array] = field(default_factory=list)
    finite: bool = True

    def add(self, name: str, batch: Batch) -> None:
        """Take in one batch."""
        pair = (unmasked(x[name], batch.mask) for x in (batch.expected, batch.got))
        a, b = (np.atleast_1d(np.asarray(x, np.float64)) for x in pair)
        usable = np.isfinite(a)
        self.finite &= bool(np.isfinite(b[usable]).all())
        a, b = np.where(usable, a, 0.0), np.where(usable & np.isfinite(b), b, 0.0)
        self.signal += float(np.sum(a * a))
        self.noise += float(np.sum((a - b) ** 2))
        self.largest = max(self.largest, float(np.abs(a - b).max(initial=0.0)))
        self.cosines.append(_cosines(a.reshape(len(a), -1), b.reshape(len(b), -1)))


@dataclass
class Decisions:
    """Running counts over batches of one output: what it decides, where it differs, and where it is right."""

    rows: int = 0
    same: int = 0
    labelled: int = 0
    right_float: int = 0
    right: int = 0
    lost: int = 0
    """Labels that the float model gets right and the quantized one wrong."""
    margins: list[Array] = field(default_factory=list)
    """By how much the float model's decisions beat the next best one."""
    divergence: float = 0.0
    """Of the probabilities, summed over rows."""
    compared: int = 0
    """Rows that have probabilities."""
    shifts: list[Array] = field(default_factory=list)
    """By how much the quantized model moves the difference of the two."""

    def add(self, name: str, batch: Batch) -> None:
        """Take in one batch: padding and negative labels do not count."""
        expected, got = (decisions(x[name]) for x in (batch.expected, batch.got))
        keep = kept(expected, batch.mask)
        self.rows += int(np.count_nonzero(keep))
        self.same += int(np.count_nonzero((expected == got)[keep]))
        self._compare(batch.expected[name], batch.got[name], keep)
        if batch.labels is not None and fits_labels(batch.expected[name], batch.labels):
            truth = batch.labels.reshape(expected.shape)
            keep = keep & (truth >= 0)
            first, second = (expected == truth)[keep], (got == truth)[keep]
            self.labelled += first.size
            self.right_float += int(np.count_nonzero(first))
            self.right += int(np.count_nonzero(second))
            self.lost += int(np.count_nonzero(first & ~second))

    def _compare(self, expected: Array, got: Array, keep: Array) -> None:
        """Remember how near decisions are, and how far they were moved."""
        if expected.dtype.kind != "f" or expected.ndim < 2 or expected.shape[-1] < 2:
            return
        pair = [x[keep].astype(np.float64) for x in (expected, got)]
        if _are_probabilities(pair[0]):
            pair = [np.log(np.maximum(x, LEAST_PROBABILITY)) for x in pair]
        self._diverge(*pair)
        best = np.argpartition(pair[0], -2, axis=-1)[..., -2:]
        with np.errstate(invalid="ignore"):
            before, after = (np.diff(np.take_along_axis(x, best, -1), axis=-1)[..., 0] for x in pair)
            moved = after - before
        usable = np.isfinite(before)  # what is hidden by -inf is no rival
        self.margins.append(np.abs(before[usable]))
        self.shifts.append(np.where(np.isfinite(moved), moved, np.inf)[usable])

    def _diverge(self, expected: Array, got: Array) -> None:
        """Take in how far the probabilities are apart, where both models give some."""
        whole = np.isfinite(expected).all(-1) & np.isfinite(got).all(-1)
        count = int(np.count_nonzero(whole))
        if count:
            self.divergence += count * kl_divergence(expected[whole], got[whole])
            self.compared += count

    @property
    def turned(self) -> float | None:
        """The share of decisions that may be expected to turn; None where there are no scores to tell."""
        if not self.margins:
            return None
        return turned_share(np.concatenate(self.margins), np.concatenate(self.shifts))


def _are_probabilities(rows: Array) -> bool:
    return bool((rows >= 0).all() and np.allclose(rows.sum(-1), 1.0, atol=1e-3))


def decisions(output: Array) -> Array:
    """The index of the largest value along the last axis (the first of equals; NaN is never it).

    Integers and a single number are decisions themselves.
    """
    if output.dtype.kind != "f" or output.ndim == 0:
        return output
    return np.asarray(np.where(np.isnan(output), -np.inf, output).argmax(-1))


def kept(rows: Array, mask: Array | None) -> Array:
    """Which rows count: all, but for padding where there is a row for each token."""
    return np.ones(rows.shape, bool) if mask is None or mask.shape != rows.shape else mask


def fits_labels(output: Array, labels: Array) -> bool:
    """Whether there is a label for each decision of an output, so that it is a classifier's."""
    if labels.dtype.kind not in "biuf" or (output.dtype.kind == "f" and (output.ndim < 2 or output.shape[-1] < 2)):
        return False
    shape = output.shape[:-1] if output.dtype.kind == "f" else output.shape
    return labels.shape[:1] == shape[:1] and labels.size == int(np.prod(shape))


@dataclass
class Comparison:
    """All that a proof says of one output."""

    difference: Difference = field(default_factory=Difference)
    decisions: Decisions = field(default_factory=Decisions)

    def add(self, name: str, batch: Batch) -> None:
        """Take in one batch. Outputs that hold no numbers are passed over."""
        if name not in batch.expected:
            return
        self.difference.add(name, batch)
        output, labels = batch.expected[name], batch.labels
        if looks_like_classes(output) or (labels is not None and fits_labels(output, labels)):
            self.decisions.add(name, batch)

    def proof(self) -> OutputProof:
        """The figures."""
        values, made = self.difference, self.decisions
        cosines = np.concatenate(values.cosines) if values.cosines else np.ones(1)
        return OutputProof(
            cosine=float(cosines.mean()),
            cosine_min=float(cosines.min(initial=1.0)),
            sqnr_db=sqnr(values.signal, values.noise),
            max_error=values.largest,
            agreement=made.same / made.rows if made.rows else None,
            kl=made.divergence / made.compared if made.compared else None,
            top1_float=made.right_float / made.labelled if made.labelled else None,
            top1=made.right / made.labelled if made.labelled else None,
            finite=values.finite,
        )


def _cosines(a: Array, b: Array) -> Array:
    """Cosine of each row; 1 where both rows are zero."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    equal = (a == b).all(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = np.where(equal, 1.0, np.nan_to_num(np.sum(a * b, axis=1) / lengths))
    return found


def sqnr(signal: float, noise: float) -> float | None:
    """Signal-to-quantization-noise ratio in decibels; None where there is no noise."""
    if noise == 0.0:
        return None
    return float(10 * np.log10(max(signal, 1e-300) / noise))


def looks_like_classes(output: Any) -> bool:
    """Whether the last axis is one score per class: [batch, classes], or [batch, ..., vocabulary]."""
    if output.ndim == 2:
        return bool(output.shape[1] >= 2)
    return bool(output.ndim > 2 and output.shape[-1] >= VOCABULARY)
