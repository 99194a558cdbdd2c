"""From two models and data to a diagnosis: everything is switched on alone, then the worst is looked at closely."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.build import typed
from onnxq.calibration.collect import Progress, Statistics, collect, silent
from onnxq.calibration.data import Data
from onnxq.channels import spaces
from onnxq.diagnosis.cures import Clinic, Trial
from onnxq.diagnosis.facts import about_activation, about_weight, notes, output_of, treatment
from onnxq.diagnosis.findings import Cure, Diagnosis, Finding, decibels, sentence
from onnxq.diagnosis.overflow import can_overflow, overflow_share
from onnxq.diagnosis.suspects import Case, Suspect, open_case
from onnxq.errors import ModelError
from onnxq.graph import Array, Graph, to_model
from onnxq.inspection import has_scales
from onnxq.passes import NORMALIZE
from onnxq.passes.merge_linear import MergeLinear
from onnxq.pipeline import Context, run
from onnxq.runtime import Session
from onnxq.search.reference import Run, worst
from onnxq.search.switches import Shares, Switch, SwitchBoard
from onnxq.targets import CPU

SAMPLES = 4
"""Samples on which noise is measured."""

STATISTICS_SAMPLES = 32
"""Samples from which ranges and channels are known."""

WORTH_A_LOOK = 0.01
"""Operators that cause less than this share of the noise are not looked into, but for the first few."""

HELD = 8
"""Inputs of layers that are held at a time."""

NEARLY = 0.7
"""A cure that gains so much of what the best one does is preferred where it costs less."""

LEAST_GAIN = 0.05
"""Decibels below which a cure is none."""

MADE_UP = "Measured on random numbers, which say little about accuracy. Give --data."

PREFERENCE = ("per channel", "range", "balance", "keep float", "16 bits")
"""Cures by what they cost: nothing, nothing, nothing or a Mul, time, a kernel that hardly any runtime has."""


@dataclass(frozen=True)
class Settings:
    """How closely to look.

    Attributes:
        top: operators for which cures are simulated.
        samples: samples on which noise is measured.
        threads: threads of the runtime.
        memory: bytes that the activations of a batch may take while statistics are collected; None is no limit.
        progress: told what is going on.
    """

    top: int = 5
    samples: int = SAMPLES
    threads: int = 1
    memory: int | None = None
    progress: Progress = silent


def examine(reference: Graph, candidate: Graph, measured: Run, data: Data, settings: Settings) -> Diagnosis:
    """Find out what each quantized operator costs.

    Args:
        reference: the float model, as `normal` makes it.
        candidate: the quantized model, likewise.
        measured: runs the quantized model.
        data: what to measure on.
        settings: how closely to look.

    Raises:
        ModelError: the float model is quantized, or the other one holds no weight that is.
        UnsupportedModel: the runtime refuses a model.
        DataError: the data does not fit.
    """
    if has_scales(reference):
        raise ModelError("The first model is quantized already. Give the float model first, then the quantized one.")
    case = best_case(reference, candidate)
    if not any(suspect.weight for suspect in case.suspects.values()):
        raise ModelError(
            "The second model holds no quantized weight that belongs to the first. "
            "Give what a quantizer made of the float model."
        )
    examination = Examination(case, data, settings)
    return examination.diagnosis(measured)


def best_case(reference: Graph, candidate: Graph) -> Case:
    """The case in which most quantized layers find their own: layers of one input may have been merged before."""
    case = open_case(reference, candidate)
    if not case.lost:
        return case
    merged = open_case(run((MergeLinear(),), reference, Context(CPU, None), frozenset()).graph, candidate)
    return merged if len(merged.lost) < len(case.lost) else case


def normal(graph: Graph) -> Graph:
    """The graph in the form in which layers are looked for."""
    return run(NORMALIZE, typed(graph), Context(CPU, None), frozenset()).graph


@dataclass(frozen=True)
class Measures:
    """What was measured, beside the noise of each operator alone.

    Attributes:
        total: the sum of that noise.
        local: noise over signal at the outputs of operators, each with its own switches on.
        accumulated: the same with all switches on.
        statistics: of activations.
        overflow: shares of outputs that overflow 16 bits, by operator.
        cures: by operator.
    """

    total: float
    local: Mapping[str, float]
    accumulated: Mapping[str, float]
    statistics: Statistics
    overflow: Mapping[str, float]
    cures: Mapping[str, list[Cure]]


class Examination:
    """A case on a switch board, and everything that is measured there."""

    def __init__(self, case: Case, data: Data, settings: Settings) -> None:
        self.case, self.data, self.settings = case, data, settings
        self.board = self._board(())

    def _board(self, more: Sequence[Switch]) -> SwitchBoard:
        switches = [*self.case.switches.values(), *more]
        return SwitchBoard(self.case.graph, switches, self.data, self.settings.samples, threads=self.settings.threads)

    def diagnosis(self, measured: Run) -> Diagnosis:
        """Everything, the operator that costs most first."""
        settings, suspects = self.settings, self.case.suspects
        shares = self.board.shares({name: s.switches for name, s in suspects.items()}, settings.progress)
        noise = shares.noise
        total = sum(noise.values())
        close = [n for place, n in enumerate(noise) if place < settings.top or noise[n] >= WORTH_A_LOOK * total]
        statistics = self._statistics(close[: settings.top])
        cures, all_float = self._cures(close[: settings.top], shares, statistics)
        seen = Measures(total, self._local(close), self._accumulated(), statistics, self._overflow(), cures)
        findings = [self._finding(suspects[name], own, name in close, seen) for name, own in noise.items()]
        return self._summary(shares, findings, measured).model_copy(update={"all_float": all_float})

    def _finding(self, suspect: Suspect, noise: float, close: bool, seen: Measures) -> Finding:
        name, output = suspect.node.name, output_of(suspect)
        parts = self._parts(suspect, noise) if close else (None, None)
        found = Finding(
            node=name,
            op=suspect.node.op,
            treatment=treatment(suspect),
            noise=noise,
            sqnr_db=decibels(noise),
            share=noise / seen.total if seen.total else 0.0,
            weight_noise=parts[0],
            activation_noise=parts[1],
            local_db=decibels(seen.local[output]) if output in seen.local else None,
            accumulated_db=decibels(seen.accumulated[output]) if output in seen.accumulated else None,
            int16_overflow=seen.overflow.get(name),
            rescaled=suspect.factors is not None,
            cures=seen.cures.get(name, []),
        ).model_copy(update=self._about(suspect, seen.statistics))
        return found.model_copy(update={"sentence": sentence(found)})

    def _about(self, suspect: Suspect, statistics: Statistics) -> dict[str, object]:
        known = {} if suspect.pair is None else about_weight(suspect.pair)
        for switch in [self.case.switches[name] for name in suspect.activation][:1]:
            known |= about_activation(switch.tensor, statistics.get(switch.tensor), switch.grid)
        return known

    def _summary(self, shares: Shares, findings: list[Finding], measured: Run) -> Diagnosis:
        real = self.board.reference.noise(measured)
        output = max(real, key=lambda name: real[name], default="")
        simulated, actual = decibels(shares.together.get(output, 0.0)), decibels(real.get(output, 0.0))
        return Diagnosis(
            data=self.data.description,
            samples=min(self.settings.samples, len(self.data)),
            output=output,
            measured_db=actual,
            simulated_db=simulated,
            additivity=shares.additivity,
            findings=findings,
            layers=sum(suspect.pair is not None for suspect in self.case.suspects.values()),
            notes=[*notes(self.case, simulated, actual), *([MADE_UP] if self.data.is_random else [])],
        )

    def _parts(self, suspect: Suspect, whole: float) -> tuple[float, float]:
        """What its weight and its activation cause alone."""
        if not suspect.weight or not suspect.activation:
            return (whole, 0.0) if suspect.weight else (0.0, whole)
        return self.board.noise(suspect.weight), self.board.noise(suspect.activation)

    def _local(self, names: Collection[str]) -> dict[str, float]:
        """Noise over signal at the outputs of operators, each by its own switches."""
        chosen = [self.case.suspects[name] for name in names]
        return self.board.each_local({output_of(s): s.switches for s in chosen}, self.settings.progress)

    def _accumulated(self) -> dict[str, float]:
        return self.board.local(self.case.switches, [output_of(s) for s in self.case.suspects.values()])

    def _statistics(self, worst_ones: Collection[str]) -> Statistics:
        """What the data says about inputs of layers, and about what cures of the worst ones touch."""
        suspects = self.case.suspects
        names = {s.pair.layer.data.name for s in suspects.values() if s.pair is not None}
        names |= {self.case.switches[n].tensor for name in worst_ones for n in suspects[name].activation}
        for space in spaces(self.case.graph):
            names |= set(space.tensors) if names & set(space.tensors) else set()
        known = [n for n, t in self.case.graph.tensors().items() if n in names and t.dtype == np.float32]
        few = self.data.take(slice(0, STATISTICS_SAMPLES))
        threads, memory = self.settings.threads, self.settings.memory
        return collect(self.case.graph, known, few, threads=threads, memory=memory, progress=self.settings.progress)

    def _overflow(self) -> dict[str, float]:
        """Shares of outputs that overflow 16 bits, on one sample."""
        pairs = [s.pair for s in self.case.suspects.values() if s.pair is not None and can_overflow(s.pair)]
        found: dict[str, float] = {}
        feeds = next(self.data.take(slice(0, 1)).batches(1))
        for start in range(0, len(pairs), HELD):
            part = pairs[start : start + HELD]
            values = _values(self.case.graph, {pair.layer.data.name for pair in part}, feeds)
            for pair in part:
                share = overflow_share(pair, values[pair.layer.data.name])
                found.update({} if share is None else {pair.layer.node.name: share})
            self.settings.progress("overflow", min(start + HELD, len(pairs)), len(pairs))
        return found

    def _cures(
        self, names: Sequence[str], shares: Shares, statistics: Statistics
    ) -> tuple[dict[str, list[Cure]], Cure | None]:
        """Simulate what could help the worst operators, each alone, and all of them in float."""
        clinic = Clinic.of(self.case, statistics)
        trials = {name: list(clinic.trials(self.case.suspects[name])) for name in names}
        more = {switch.name: switch for found in trials.values() for trial in found for switch in trial.more}
        board = self._board(list(more.values()))
        before = worst(shares.together)
        count, done = sum(map(len, trials.values())) + bool(names), 0

        def simulate(trial: Trial) -> Cure:
            nonlocal done
            done += 1
            self.settings.progress("cures", done, count)
            on = (set(self.case.switches) - trial.off) | {switch.name for switch in trial.more}
            return cure(trial, before, board.noise(on))

        simulated = {name: [simulate(trial) for trial in found] for name, found in trials.items()}
        kept = {node for found in simulated.values() for node in best_float(found)}
        cures = {name: by_preference(found) for name, found in simulated.items()}
        return cures, simulate(clinic.in_float(kept)) if kept else None


def best_float(cures: Sequence[Cure]) -> list[str]:
    """What to keep in float for one operator, even if that helps only together with others."""
    kept = [cure for cure in cures if cure.kind == "keep float"]
    return max(kept, key=lambda cure: cure.gain_db).nodes if kept else []


def cure(trial: Trial, before: float, after: float) -> Cure:
    """What a trial has shown."""
    gain = 10 * np.log10(before / after) if before > 0 and after > 0 else (np.inf if before > 0 else 0.0)
    return Cure(
        kind=trial.kind,
        gain_db=float(gain),
        sqnr_db=decibels(after),
        nodes=list(trial.nodes),
        rule=trial.rule,
        sentence=trial.sentence,
    )


def by_preference(cures: Sequence[Cure]) -> list[Cure]:
    """Those that help, the most reasonable first: of those that gain nearly as much as the best, the cheapest."""
    helpful = sorted((c for c in cures if c.gain_db >= LEAST_GAIN), key=lambda c: -c.gain_db)
    if not helpful:
        return []
    nearly = [c for c in helpful if c.gain_db >= NEARLY * helpful[0].gain_db]
    chosen = min(nearly, key=lambda c: (PREFERENCE.index(c.kind), len(c.nodes), -c.gain_db))
    return [chosen, *(c for c in helpful if c is not chosen)]


def _values(graph: Graph, names: Collection[str], feeds: Mapping[str, Array]) -> dict[str, Array]:
    inner = [name for name in names if name not in feeds]
    session = Session(to_model(graph, extra_outputs=inner).SerializeToString(), folder=graph.folder, threads=1)
    return {**session.run(feeds, inner), **feeds}
