"""From two models and data to a diagnosis: everything is switched on alone, then the worst is looked at closely."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from onnxq.build import typed
from onnxq.calibration.collect import Progress, Seen, Statistics, collect, silent
from onnxq.calibration.data import Data
from onnxq.calibration.statistics import BINS
from onnxq.channels import spaces
from onnxq.diagnosis.cures import Clinic, Trial
from onnxq.diagnosis.findings import Cure, Diagnosis, Finding, Outlier, decibels, sentence
from onnxq.diagnosis.matching import Pair
from onnxq.diagnosis.overflow import can_overflow, overflow_share
from onnxq.diagnosis.suspects import Case, Suspect, open_case
from onnxq.errors import ModelError
from onnxq.graph import Array, Graph, to_model
from onnxq.inspection import has_scales
from onnxq.passes import NORMALIZE
from onnxq.pipeline import Context, run
from onnxq.runtime import Session
from onnxq.search.reference import Run, worst
from onnxq.search.switches import Grid, Shares, Switch, SwitchBoard
from onnxq.targets import CPU

SAMPLES = 8
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

FAR_APART = 3.0
"""Decibels between simulation and reality that want an explanation."""

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
        ModelError: the float model is quantized, or the other one holds no layer that is.
        UnsupportedModel: the runtime refuses a model.
        DataError: the data does not fit.
    """
    if has_scales(reference):
        raise ModelError("The first model is quantized already. Give the float model first, then the quantized one.")
    case = open_case(reference, candidate)
    if not any(suspect.pair for suspect in case.suspects.values()):
        raise ModelError(
            "The second model holds no layer with a quantized weight that belongs to a layer of the first. "
            "Give what a quantizer made of the float model."
        )
    examination = Examination(case, data, settings)
    return examination.diagnosis(measured)


def normal(graph: Graph) -> Graph:
    """The graph in the form in which layers are looked for."""
    return run(NORMALIZE, typed(graph), Context(CPU, None), frozenset()).graph


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
        suspects = self.case.suspects
        shares = self.board.shares({name: s.switches for name, s in suspects.items()}, self.settings.progress)
        noise = shares.noise
        total = sum(noise.values())
        close = [n for place, n in enumerate(noise) if place < self.settings.top or noise[n] >= WORTH_A_LOOK * total]
        local, together = self._local(close), self._accumulated()
        statistics = self._statistics(list(noise)[: self.settings.top])
        overflow = self._overflow()
        cures, all_float = self._cures(list(noise)[: self.settings.top], shares, statistics)
        findings = []
        for name, own in noise.items():
            suspect, output = suspects[name], output_of(suspects[name])
            parts = self._parts(suspect, own) if name in close else (None, None)
            found = Finding(
                node=name,
                op=suspect.node.op,
                treatment=treatment(suspect),
                noise=own,
                sqnr_db=decibels(own),
                share=own / total if total else 0.0,
                weight_noise=parts[0],
                activation_noise=parts[1],
                local_db=decibels(local[output]) if output in local else None,
                accumulated_db=decibels(together[output]) if output in together else None,
                int16_overflow=overflow.get(name),
                rescaled=suspect.factors is not None,
                cures=cures.get(name, []),
            ).model_copy(update=self._about(suspect, statistics))
            findings.append(found.model_copy(update={"sentence": sentence(found)}))
        return self._summary(shares, findings, measured).model_copy(update={"all_float": all_float})

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
        before, cures = worst(shares.together), dict[str, list[Cure]]()
        count, done = sum(map(len, trials.values())) + bool(names), 0

        def simulate(trial: Trial) -> Cure:
            nonlocal done
            done += 1
            self.settings.progress("cures", done, count)
            on = (set(self.case.switches) - trial.off) | {switch.name for switch in trial.more}
            return cure(trial, before, board.noise(on))

        for name, found in trials.items():
            cures[name] = by_preference([simulate(trial) for trial in found])
        kept = {node for found in cures.values() for node in best_float(found)}
        return cures, simulate(clinic.in_float(kept)) if kept else None


def best_float(cures: Sequence[Cure]) -> list[str]:
    """What to keep in float for one operator; nothing where that does not help."""
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


def notes(case: Case, simulated: float | None, actual: float | None) -> list[str]:
    """What to keep in mind."""
    found = []
    if case.lost:
        names = ", ".join(f"'{one.names[0]}'" for one in case.lost[:3])
        found.append(f"No layer of the float model was found for {len(case.lost)} quantized layers, such as {names}.")
    if simulated is not None and actual is not None and abs(simulated - actual) > FAR_APART:
        rounds = any(s.pair.stored.node.op == "MatMulNBits" for s in case.suspects.values() if s.pair)
        why = "MatMulNBits rounds activations to 8 bits inside its kernel." if rounds else "An overflow is one reason."
        found.append(
            f"The runtime computes something else than the graph says: {actual:.1f} dB where the simulation has "
            f"{simulated:.1f} dB. {why if actual < simulated else 'Not everything here was understood.'}"
        )
    return found


def treatment(suspect: Suspect) -> Literal["static", "dynamic", "weight", "between"]:
    """How an operator was quantized."""
    if suspect.pair is None:
        return "between"
    if isinstance(suspect.input, Grid):
        return "static"
    return "dynamic" if suspect.input == "dynamic" else "weight"


def output_of(suspect: Suspect) -> str:
    """The tensor that leaves an operator, activations that belong to it included."""
    return suspect.pair.layer.output.name if suspect.pair is not None else suspect.node.outputs[0].name


def about_weight(pair: Pair) -> dict[str, object]:
    """What is known about the weight of a layer."""
    exact = np.abs(pair.exact)
    axes = tuple(range(1, exact.ndim)) if pair.layer.node.op == "Conv" else (0,)
    return {"weight_outlier": outlier(exact.max(axis=axes)), "per_channel": pair.stored.weight.scales > 1}


def about_activation(name: str, seen: Seen | None, grid: Grid | None) -> dict[str, object]:
    """What is known about an activation that is rounded."""
    if seen is None:
        return {"input": name}
    return {
        "input": name,
        "input_range": (seen.histogram.low, seen.histogram.high),
        "input_outlier": outlier(np.maximum(-seen.channels.low, seen.channels.high)),
        "clipped": None if grid is None or np.size(grid.scale) > 1 else clipped(seen, grid),
    }


def outlier(reach: Array) -> Outlier | None:
    """The channel that reaches farthest."""
    if reach.ndim == 0 or reach.size < 2 or not np.isfinite(reach).all():
        return None
    middle = float(np.median(reach))
    place = int(np.argmax(reach))
    return Outlier(channel=place, times=float(reach[place]) / middle if middle > 0 else np.inf)


def clipped(seen: Seen, grid: Grid) -> float:
    """The share of values that lie more than half a step beyond the grid; a bin counts by its middle."""
    scale, zero = float(np.max(grid.scale)), int(np.max(grid.zero_point))
    low, high = ((end - zero) * scale for end in (grid.format.qmin - 0.5, grid.format.qmax + 0.5))
    middles = (np.arange(-BINS, BINS) + 0.5) * seen.histogram.width
    return float(seen.histogram.counts[(middles < low) | (middles > high)].sum()) / max(seen.histogram.count, 1)


def _values(graph: Graph, names: Collection[str], feeds: Mapping[str, Array]) -> dict[str, Array]:
    inner = [name for name in names if name not in feeds]
    session = Session(to_model(graph, extra_outputs=inner).SerializeToString(), folder=graph.folder, threads=1)
    return {**session.run(feeds, inner), **feeds}
