"""Batches carried through a graph leg by leg, so that every operator runs once and no leg needs the whole model.

    inputs ── leg ── x ── leg ── y ── leg ── z        held between legs: what a later operator reads

Weights are read when a leg runs. What a leg needs may so be decided by the legs before it: a layer is rounded for
what the rounded layers before it hand on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from onnxq.calibration.feeds import Feed
from onnxq.graph import Array, Graph, Node, is_constant, reads, to_model
from onnxq.runtime import Session
from onnxq.search.region import Cutter


@dataclass
class Relay:
    """A graph, and how far batches have come in it.

    Attributes:
        graph: with the types of its tensors; weights of operators that have not run yet may still change.
        held: for each batch the tensors that are there, by name.
        threads: of the runtime.
        done: the nodes that have run.
    """

    graph: Graph
    held: list[Feed]
    threads: int = 0
    done: set[Node] = field(default_factory=set)

    @classmethod
    def start(cls, graph: Graph, batches: Iterable[Feed], threads: int = 0) -> Relay:
        """At the inputs of the graph."""
        return cls(graph, [dict(feed) for feed in batches], threads)

    @cached_property
    def _cutter(self) -> Cutter:
        return Cutter(self.graph)

    def reach(self, name: str) -> Iterator[Array]:
        """Run on to a tensor, and yield it batch by batch. Raises DataError where the model fails on the data."""
        if not self.held:
            return
        present = set(self.held[0])
        leg = self._leg(name, present)
        made = {tensor.name for node in leg for tensor in node.outputs if tensor.name}
        self.done |= leg
        wanted = {t for node in self.graph.nodes if node not in self.done for t in reads(node)}
        later = [t for t in sorted(present | made) if t in wanted]
        outputs = list(dict.fromkeys([name, *(t for t in later if t in made)] if name in made else []))
        outputs = outputs or [t for t in later if t in made]
        session, needed = self._session(leg, present, outputs)
        for place, held in enumerate(self.held):
            found = session.run({t: held[t] for t in needed}, outputs) if session is not None else {}
            everything = {**held, **found}
            yield everything[name]
            self.held[place] = {t: everything[t] for t in later}

    def _leg(self, name: str, present: set[str]) -> set[Node]:
        """The nodes that have to run before a tensor is there."""
        leg: set[Node] = set()
        waiting = [name]
        while waiting:
            maker = self._cutter.makers.get(waiting.pop())
            if maker is None or maker in leg or maker in self.done:
                continue
            leg.add(maker)
            waiting += [t for t in reads(maker) if t not in present]
        return leg

    def _session(self, leg: set[Node], present: set[str], outputs: Sequence[str]) -> tuple[Session | None, list[str]]:
        """What runs the leg, and what it reads of what is held."""
        if not leg:
            return None, []
        tensors = self._cutter.tensors
        read = sorted({t for node in leg for t in reads(node)} & present)
        needed = [t for t in read if not is_constant(tensors[t])]
        part = self._cutter.cut(needed, list(outputs))
        return Session(to_model(part).SerializeToString(), folder=part.folder, threads=self.threads), needed
