"""What one model is worth on data, without another beside it: perplexity, top-1, or a function of the user's."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from onnxq.calibration.collect import Progress, silent
from onnxq.calibration.data import Data
from onnxq.comparison import Batch, batch_size, labelled, numbers
from onnxq.errors import RecipeError
from onnxq.metric import Unbounded, check
from onnxq.metric_choice import choose
from onnxq.plan import Record
from onnxq.recipe import MAX_DROPS, make_recipe
from onnxq.runtime import Session
from onnxq.tallies import Alone, Function, Losses, Top1

SINGLE = ("perplexity", "top1")
"""The metrics that say something of one model; all others of `MAX_DROPS` compare two."""

Meter = Losses | Top1 | Function


class Evaluation(Record):
    """What one model is worth.

    Attributes:
        metric: what was measured, never `auto`.
        output: of which output, the worst where there are several; empty for a function of the user's, which sees all.
        value: what came of it; larger is better, but for perplexity. JSON has null for infinity.
        samples: how many samples were run.
        counted: how many tokens or labels were predicted, padding left out; None for a function of the user's.
        standard_error: of the value, as if texts or labels were drawn independently; None where that cannot be told.
        seconds: time in the model.
        provider: the execution provider it ran on.
        data: what it was measured on.
    """

    metric: str
    output: str
    value: Unbounded
    samples: int
    counted: int | None
    standard_error: float | None
    seconds: float
    provider: str
    data: str


@dataclass
class Worth:
    """Batches of one model, counted.

    Attributes:
        metric: what was asked for.
        provider: the execution provider.
        data: what runs.
        meters: by output; empty before the first batch.
        kind: what is measured.
        seconds: time in the model.
    """

    metric: str
    provider: str
    data: Data
    meters: Mapping[str, Meter]
    kind: str = ""
    samples: int = 0
    seconds: float = 0.0

    def add(self, batch: Batch, seconds: float) -> None:
        """Take in one batch; the first one shows what is measured."""
        if not self.meters:
            self.kind, self.meters = _meters(self.metric, batch)
        for output, meter in self.meters.items():
            if isinstance(meter, Losses):
                meter.add(output, batch.expected, batch)
            else:
                meter.add(output, batch)
        self.samples += batch_size(batch.feeds)
        self.seconds += seconds

    def evaluation(self) -> Evaluation:
        """What it comes to: the worst output. Raises DataError or RecipeError where nothing can be counted."""
        found = {output: meter.alone() for output, meter in self.meters.items()}
        output = min(found, key=lambda name: found[name].value)
        worst: Alone = found[output]
        return Evaluation(
            metric=self.kind,
            output=output,
            value=worst.value,
            samples=self.samples,
            counted=worst.counted,
            standard_error=worst.standard_error,
            seconds=self.seconds,
            provider=self.provider,
            data=self.data.description,
        )


def check_single(metric: str, data: Data) -> str:
    """The metric, found out before the work to say something of one model. Raises RecipeError."""
    if metric != "auto" and metric not in MAX_DROPS and ":" not in metric:
        raise RecipeError(f"There is no metric '{metric}'. Known are auto, {', '.join(SINGLE)} and MODULE:FUNCTION.")
    contract = make_recipe({"contract": {"metric": metric}}).contract
    name = contract.metric
    if name in MAX_DROPS and name not in SINGLE:
        raise RecipeError(
            f"Metric '{name}' compares two models, and this is one. Take {', '.join(SINGLE)} or MODULE:FUNCTION, or "
            "compare it with another by: onnxq validate."
        )
    if data.is_random:
        raise RecipeError("Random numbers say nothing about what a model is worth. Give real data.")
    check(contract, data)
    return name


def evaluate_session(
    session: Session,
    data: Data,
    metric: str,
    provider: str,
    size: int | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Run one model on all of the data, and measure what it is worth.

    Args:
        session: the model.
        data: what to run it on.
        metric: `perplexity`, `top1`, `module:function`, or `auto`: what fits.
        provider: what the session runs on, for the record.
        size: samples that run at once; None: as many as validation takes.
        progress: told after each batch.

    Raises:
        RecipeError: the metric fits no single model, or not this one, or the user's function fails.
        DataError: the data does not fit, or there is nothing to count.
    """
    worth = Worth(check_single(metric, data), provider, data, {})
    for feeds, labels in labelled(data, size):
        start = time.perf_counter()
        outputs = numbers(session.run(feeds))
        worth.add(Batch(feeds, outputs, outputs, labels), time.perf_counter() - start)
        progress("evaluate", min(worth.samples, len(data)), len(data))
    return worth.evaluation()


def _meters(metric: str, first: Batch) -> tuple[str, dict[str, Meter]]:
    """What is measured of which outputs, as the first batch shows them. Raises RecipeError."""
    kinds, tokens = choose(metric, first)
    kind = next(iter(kinds.values()))
    if kind not in (*SINGLE, metric):
        raise RecipeError(
            "This model neither has labels in the data nor clearly predicts the next token of its input, so nothing "
            "measures it alone. Add an array 'labels', or name a metric: perplexity, or MODULE:FUNCTION."
        )
    return kind, {output: _meter(kind, tokens) for output in kinds}


def _meter(kind: str, tokens: str) -> Meter:
    if kind == "perplexity":
        return Losses(tokens)
    return Top1() if kind == "top1" else Function(kind)
