"""What accuracy means for a model, and how much of it a quantized model loses.

    metric = resolve(contract, first_batch)      # which metric for which outputs
    meter = metric.meter()
    for batch in paired(reference, candidate, data):
        meter.add(batch)
    score = meter.score()                        # of the worst output

`measure` does just that. What the drop of each metric is, `onnxq.tallies` says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator

from onnxq.calibration.collect import Progress, silent
from onnxq.calibration.data import Data
from onnxq.comparison import Batch, batch_size, paired
from onnxq.errors import DataError, RecipeError
from onnxq.metric_choice import choose
from onnxq.plan import Record
from onnxq.recipe import MAX_DROPS, Contract
from onnxq.runtime import Session
from onnxq.tallies import Agreement, Cosine, Function, Kl, Perplexity, Sqnr, Tally, Top1, check_function

Unbounded = Annotated[float, BeforeValidator(lambda value: math.inf if value is None else value)]
"""A number that may be infinite; JSON has null for that."""

PLAIN: Mapping[str, Callable[[], Tally]] = {
    "top1": Top1,
    "agreement": Agreement,
    "cosine": Cosine,
    "sqnr": Sqnr,
    "kl": Kl,
}


class Score(Record):
    """How much a quantized model loses.

    Attributes:
        metric: what was measured, never `auto`.
        output: of which output, the worst; empty for a function of the user's, which sees all.
        drop: 0 where nothing is lost; the limit is one of this.
        float_value: what the metric says of the float model; None where it says nothing or has no bound.
        value: the same for the quantized model.
        samples: how many samples were measured.
        standard_error: of the drop, as if all rows were drawn independently; None where that cannot be told.
        turned: share of decisions that may be expected to turn, which settles with fewer samples than the drop; None
            where nothing is decided.
    """

    metric: str
    output: str
    drop: Unbounded
    float_value: float | None
    value: float | None
    samples: int
    standard_error: float | None
    turned: float | None = None


@dataclass(frozen=True)
class Metric:
    """What is measured of which outputs.

    Attributes:
        kinds: the metric by output; the name of a function of the user's stands at `""`.
        tokens: for perplexity: the input that holds the tokens.
        contract: what limits the drops, so that those of different metrics can be compared.
    """

    kinds: Mapping[str, str]
    tokens: str
    contract: Contract

    def meter(self) -> Meter:
        """An empty meter."""
        return Meter(self, {output: self._tally(kind) for output, kind in self.kinds.items()})

    def _tally(self, kind: str) -> Tally:
        if kind == "perplexity":
            return Perplexity(self.tokens)
        return PLAIN[kind]() if kind in PLAIN else Function(kind)


@dataclass
class Meter:
    """Measures batch by batch."""

    metric: Metric
    tallies: Mapping[str, Tally]
    samples: int = 0

    def add(self, batch: Batch) -> None:
        """Take in one batch."""
        for output, tally in self.tallies.items():
            tally.add(output, batch)
        self.samples += batch_size(batch.feeds)

    def score(self) -> Score:
        """The score of the output that comes closest to its limit, or is furthest beyond it.

        Raises:
            DataError: there is nothing to count: no text of two tokens, no label that is known.
            RecipeError: the user's function fails.
        """
        scores = [self._score(output) for output in self.tallies]
        return max(scores, key=self._used)

    def _score(self, output: str) -> Score:
        found = self.tallies[output].reading()
        return Score(
            metric=self.metric.kinds[output],
            output=output,
            drop=found.drop,
            float_value=_bounded(found.before),
            value=_bounded(found.after),
            samples=self.samples,
            standard_error=_bounded(found.standard_error),
            turned=found.turned,
        )

    def _used(self, score: Score) -> float:
        return score.drop if self.metric.contract.max_drop is not None else score.drop / MAX_DROPS.get(score.metric, 1)


def _bounded(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def resolve(contract: Contract, first: Batch) -> Metric:
    """Which metric for which outputs, as the first batch shows them; `onnxq.metric_choice` says how.

    Raises:
        RecipeError: the metric does not fit the model or the data.
    """
    return Metric(*choose(contract.metric, first), contract)


def measure(
    reference: Session, candidate: Session, data: Data, contract: Contract, progress: Progress = silent
) -> Score:
    """Run both models on all of the data, and measure what the second one loses.

    Raises:
        RecipeError: the metric does not fit the model or the data, or the user's function fails.
        DataError: the data does not fit, or a shape changes.
    """
    meter: Meter | None = None
    for batch in paired(reference, candidate, data, progress):
        meter = meter or resolve(contract, batch).meter()
        meter.add(batch)
    if meter is None:
        raise DataError("There is no data to measure the accuracy on. Give at least one sample.")
    return meter.score()


def check(contract: Contract, data: Data | None) -> None:
    """Find out before the work whether a metric can be measured. Raises RecipeError.

    Data that is None or random is not measured.
    """
    name = contract.metric
    if name not in ("auto", *MAX_DROPS):
        check_function(name)
    if name == "top1" and data is not None and not data.is_random and data.source.labels is None:
        raise RecipeError(
            f"Metric 'top1' needs labels, and there are none in {data.description}. Add an array 'labels', or take "
            "another."
        )
