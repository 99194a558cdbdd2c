"""What a whole plan is worth: the model that it makes, measured beside the float model."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from onnxq import runtime
from onnxq.build import GIVEN
from onnxq.graph import to_model
from onnxq.memo import JSON
from onnxq.metric import Score
from onnxq.passes import BALANCE, FOLD, QUANTIZE
from onnxq.pipeline import Context, run
from onnxq.plan import Plan, Record
from onnxq.proof import compare_outputs
from onnxq.runtime import Session, Timing, interleave
from onnxq.search.reference import Reference, remember, worst
from onnxq.study import Study

SAMPLES = 96
"""Samples of the calibration data that a plan is measured on, at most."""

PATIENT = 8
"""For how many measurements' sake samples are saved where a run takes long: these are the ones that decide."""

USUAL_NOISE = 0.01
"""Noise over signal that a model may leave at its outputs where nobody says how accurate it has to be: 20 dB."""

NOISE_WORTH = 0.05 / USUAL_NOISE
"""Share of the time that it is worth giving away for less noise: a twentieth to be rid of the usual noise."""

TURNED_WORTH = 3.0
"""The same for decisions: three hundredths of the time for one in a hundred that is not turned."""

SECONDS = 1.5
"""For the latency of one plan, beside that of the float model."""


METHOD = 1
"""Raised whenever outcomes come to mean something else, so that remembered ones are forgotten."""


class Outcome(Record):
    """What was measured of a plan.

    Attributes:
        noise: noise over signal at the worst output.
        score: what it loses by the metric of the contract; None where nothing was judged.
        milliseconds: time of a run.
        speedup: how many times as fast as the float model it is.
        bytes: size of the model.
    """

    noise: float
    score: Score | None
    milliseconds: float
    speedup: float
    bytes: int


class Trials:
    """Builds and measures plans of one study; what was measured before is not measured again.

    Args:
        study: the model, its data, and what is remembered.
        batch: samples in the batch that is timed.
    """

    def __init__(self, study: Study, batch: int) -> None:
        assert study.data is not None
        self.study, self.graph = study, study.before
        self.data = study.data.take(slice(0, study.affordable(PATIENT, SAMPLES)))
        self.batch = batch

    @cached_property
    def _float(self) -> Session:
        """The float model as it came, before anything was rewritten."""
        return self._session(to_model(self.study.unchanged).SerializeToString())

    @cached_property
    def _reference(self) -> Reference:
        return remember(self._float.run, [spec.name for spec in self._float.outputs], self.data, len(self.data))

    def _session(self, model: bytes) -> Session:
        return Session(model, folder=self.graph.folder, threads=self.study.threads)

    def outcome(self, plan: Plan) -> Outcome:
        """Build the model of a plan, run it on calibration data, and time it.

        Raises:
            UnsupportedModel: the runtime refuses the model.
            RecipeError: the metric of the contract fails.
        """
        contract = plan.recipe.contract
        asked: list[JSON] = [contract.metric, contract.max_drop is None]  # which decide what is scored
        timed: list[JSON] = [self.batch, self.study.threads, runtime.machine()]
        found = self.study.recall("trial", [METHOD, plan.deeds, *asked, *timed], lambda: self._measure(plan))
        return Outcome.model_validate(found)

    def _measure(self, plan: Plan) -> Any:
        context = Context(self.study.build.context.target, plan)
        made = to_model(run((*BALANCE, *QUANTIZE, *FOLD), self.graph, context, GIVEN).graph).SerializeToString()
        session = self._session(made)
        _, score = compare_outputs(self._float, session, self.data, plan.recipe.contract)
        timing = self._timing(plan, session)
        outcome = Outcome(
            noise=worst(self._reference.noise(session.run)),
            score=score,
            milliseconds=timing.milliseconds,
            speedup=timing.speedup,
            bytes=len(made),
        )
        return outcome.model_dump(mode="json")

    def _timing(self, plan: Plan, session: Session) -> Timing:
        """How fast the model of a plan is, beside the float model."""
        feeds = next(self.data.batches(self.batch))
        return interleave([self._float, session], feeds, seconds=SECONDS, rounds=100)[1]
