"""One session with a switch for each quantized tensor: what any selection of them costs, without building a model.

What a switch is, and how it is built into a graph, is in `wiring.py`; both are reached through here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.calibration.collect import Progress, silent
from onnxq.calibration.data import Data
from onnxq.graph import Graph, to_model, upgrade
from onnxq.interface import TensorSpec
from onnxq.runtime import Session
from onnxq.search.reference import REMEMBERED, Run, Sums, remember, worst
from onnxq.search.wiring import OPSET, Grid, Switch, wire

INNER = 16
"""Inner tensors that are held at a time."""

UNBOUNDED = 1e3
"""Noise over signal that stands for whatever is more, infinity too: so noise can be added up and shared out."""

__all__ = ["Grid", "Shares", "Switch", "SwitchBoard"]


@dataclass(frozen=True)
class Shares:
    """The noise that each of several groups of switches causes alone, and all of them together.

    Attributes:
        alone: noise over signal of each output, by group.
        together: noise over signal of each output with all groups on.
    """

    alone: Mapping[str, Mapping[str, float]]
    together: Mapping[str, float]

    @property
    def noise(self) -> dict[str, float]:
        """What each group causes at the output that it harms most, the worst group first."""
        found = {name: worst(outputs) for name, outputs in self.alone.items()}
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    @property
    def additivity(self) -> float:
        """Sum of what the groups cause alone, over what they cause together, at the worst output; 1: they add up."""
        output = max(self.together, key=lambda name: self.together[name], default=None)
        if output is None or self.together[output] == 0:
            return 1.0
        return sum(noise.get(output, 0.0) for noise in self.alone.values()) / self.together[output]


class SwitchBoard:
    """A float model with a switch for each tensor that quantization changes, and samples to measure on.

    The float outputs are those of the board with all switches off, so that no noise at all is exactly 0.

    Args:
        graph: the float graph, with types and shapes; it is not touched. Below opset 11 a copy is raised.
        switches: what can be turned on.
        data: where the samples come from; they run in the batches in which the data comes.
        samples: how many.
        remembered: bytes of float outputs to keep; past them no further sample is taken.
        threads: threads of the runtime; 0 lets it choose.

    Raises:
        UnsupportedModel: the opset cannot be raised, or the runtime refuses the model.
    """

    def __init__(
        self,
        graph: Graph,
        switches: Sequence[Switch],
        data: Data,
        samples: int,
        *,
        remembered: int = REMEMBERED,
        threads: int = 0,
    ) -> None:
        self._graph = graph if graph.opset >= OPSET else _raised(graph)
        self.switches = {switch.name: switch for switch in switches}
        self._threads = threads
        wiring, self._flags = wire(self._graph, switches)
        session = self._session(wiring.graph, [])
        self._run = session.run
        outputs = [tensor.name for tensor in graph.outputs]
        self.reference = remember(self._with(session.run, ()), outputs, data, samples, remembered)

    def _session(self, graph: Graph, inner: Sequence[str]) -> Session:
        model = to_model(graph, extra_outputs=inner).SerializeToString()
        return Session(model, folder=graph.folder, threads=self._threads)

    def _with(self, run: Run, on: Collection[str]) -> Run:
        """A run with some switches on."""
        chosen = set(on)
        assert chosen <= self._flags.keys(), f"There are no switches {sorted(chosen - self._flags.keys())}."
        flags = {flag: np.asarray(name in chosen) for name, flag in self._flags.items()}
        return lambda feeds, outputs: run({**feeds, **flags}, outputs)

    def outputs_noise(self, on: Collection[str]) -> dict[str, float]:
        """Noise over signal of each float output with these switches on, `UNBOUNDED` at most."""
        noise = self.reference.noise(self._with(self._run, on))
        return {name: min(value, UNBOUNDED) for name, value in noise.items()}

    def noise(self, on: Collection[str]) -> float:
        """Noise over signal of the worst output with these switches on: 10**(-SQNR / 10)."""
        return worst(self.outputs_noise(on))

    def shares(self, groups: Mapping[str, Collection[str]] | None = None, progress: Progress = silent) -> Shares:
        """What each group of switches causes alone; without groups, what each switch does."""
        groups = {name: (name,) for name in self.switches} if groups is None else groups
        alone: dict[str, dict[str, float]] = {}
        for done, (name, on) in enumerate(groups.items(), 1):
            alone[name] = self.outputs_noise(on)
            progress("search", done, len(groups))
        return Shares(alone, self.outputs_noise({name for on in groups.values() for name in on}))

    def local(self, on: Collection[str], tensors: Sequence[str]) -> dict[str, float]:
        """Noise over signal of inner tensors, as they are made (before a switch of their own), with these switches on.

        With the switches of one layer, its own error; with all, the error that has come together there. Tensors that
        are all zeros are left out.
        """
        return self.each_local(dict.fromkeys(tensors, on))

    def each_local(self, cases: Mapping[str, Collection[str]], progress: Progress = silent) -> dict[str, float]:
        """`local` for many tensors, each with switches of its own: {tensor: switches} to {tensor: noise over signal}.

        One run for each distinct selection, and one more for every 16 tensors.
        """
        found: dict[str, float] = {}
        for done, part in enumerate(_parts(list(cases), INNER), 1):
            wiring, _ = wire(self._graph, list(self.switches.values()), part)
            made = {wiring.originals[name].name: cases[name] for name in part}
            session = self._session(wiring.graph, list(made))
            sums = Sums()
            for feeds, _ in self.reference.batches:
                exact = self._with(session.run, ())(feeds, list(made))
                for on in dict.fromkeys(frozenset(on) for on in made.values()):
                    same = [name for name, own in made.items() if frozenset(own) == on]
                    sums.add({name: exact[name] for name in same}, self._with(session.run, on)(feeds, same), feeds)
            ratios, names = sums.ratios(), {wiring.originals[name].name: name for name in part}
            found |= {names[name]: ratio for name, ratio in ratios.items()}
            progress("local", min(done * INNER, len(cases)), len(cases))
        return found


def _raised(graph: Graph) -> Graph:
    """The same graph with Round and DynamicQuantizeLinear; the converter forgets shapes that channels lie in."""
    made = upgrade(graph, OPSET)
    known = [(name, t) for name, t in graph.tensors().items() if t.dtype is not None]
    made.annotate(TensorSpec(n, np.dtype(t.dtype), None if t.shape is None else tuple(t.shape)) for n, t in known)
    return made


def _parts(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), size):
        yield names[start : start + size]
