"""Times parts of models as if they stood in a model.

A part that runs alone, again and again, finds its weight in the cache, and is up to five times too fast. So all parts
in one form run one after the other, as in a model that is all in this form; and as operators of a model do, they share
their memory, and read inputs that were just written. The forms take turns, so that a slow moment hits all of them.

Only kernels count, by the runtime's own profile. What the runtime adds around a convolution to change the layout (NCHW
to blocked, or to NHWC) is told apart, since between two of a kind it is not there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from onnxq.calibration.collect import Progress, silent
from onnxq.graph import Graph, to_model
from onnxq.memo import JSON, Memo, canonical
from onnxq.runtime import CPU, Kernel, Session, cpus, machine, pool
from onnxq.search.region import structure

LAYOUT = frozenset({"ReorderInput", "ReorderOutput", "Transpose"})
"""What the runtime puts between convolutions and their neighbours."""

LEAST, MOST = 3, 12
"""Rounds, in each of which a part runs twice; in between, the time limit decides."""

FAST = 0.1
"""Which of its runs gives the time of a part, from the fastest: what made others slower was another process."""

AT_ONCE = 1 << 29
"""Bytes of weights of the parts that take turns."""

METHOD = 1
"""Raised whenever times come to mean something else, so that remembered ones are forgotten."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Sample:
    """A part of a model, and the values that it runs on."""

    part: Graph
    feeds: Mapping[str, Array]

    @cached_property
    def structure(self) -> JSON:
        """All that its time depends on, but for the machine."""
        return structure(self.part, {name: value.shape for name, value in self.feeds.items()})

    @property
    def integer(self) -> bool:
        """Whether it reads activations of 8 bits."""
        return any(value.dtype in (np.uint8, np.int8) and value.ndim for value in self.feeds.values())

    @property
    def nbytes(self) -> int:
        """Bytes of its weights."""
        return sum(int(tensor._values.nbytes) for tensor in self.part.weights())


@dataclass(frozen=True)
class Times:
    """Microseconds of a part: to change the layout of what it reads, for itself, and to change what it returns."""

    entry: float
    own: float
    exit: float

    @classmethod
    def of(cls, kernels: Sequence[Kernel], part: Graph) -> Times:
        """From what ran, in order."""
        added = LAYOUT - {node.op for node in part.nodes if len(part.nodes) == 1}  # a Transpose of the model's own
        main = [index for index, kernel in enumerate(kernels) if kernel.op not in added]
        first, last = (main[0], main[-1] + 1) if main else (0, 0)
        entry, own, after = kernels[:first], kernels[first:last], kernels[last:]
        sums = [round(sum(kernel.microseconds for kernel in some), 1) for some in (entry, own, after)]
        return cls(*sums)


Forms = Mapping[str, Sample]
"""One thing in the forms that it can take."""

Timer = Callable[[Mapping[str, Sequence[Sample]], "Stopwatch"], dict[str, list[list[Kernel]]]]
"""Runs the samples of each form, and returns the kernels of each sample."""


def take_turns(samples: Mapping[str, Sequence[Sample]], watch: Stopwatch) -> dict[str, list[list[Kernel]]]:
    """Run all samples of one form, twice over, then those of the next, and all forms again until the time is up.

    The second time, a small model finds its weights in the cache, as it does when it runs alone; a large one does not.
    """
    count = sum(map(len, samples.values()))
    space = [_space(sample.feeds) for some in samples.values() for sample in some]
    buffer = np.empty(max(space, default=0), np.uint8)
    with pool():
        sessions = {form: [_session(sample.part, watch) for sample in some] for form, some in samples.items()}
        rounds, began = 0, time.perf_counter()
        while rounds < LEAST or (rounds < MOST and time.perf_counter() - began < watch.seconds * count):
            for form in (form for form in samples for _ in range(2)):
                for session, sample in zip(sessions[form], samples[form], strict=True):
                    session.run(written(sample.feeds, buffer))
            rounds += 1
            watch.progress("cost", rounds, MOST)
        watch.progress("cost", MOST, MOST)
        return {form: [session.kernels(FAST) for session in some] for form, some in sessions.items()}


def written(feeds: Mapping[str, Array], buffer: Array) -> dict[str, Array]:
    """Copies of arrays in a buffer that others used before, as the runtime keeps what goes between operators."""
    copies: dict[str, Array] = {}
    start = 0
    for name, value in feeds.items():
        copies[name] = buffer[start : start + value.nbytes].view(value.dtype).reshape(value.shape)
        np.copyto(copies[name], value)
        start += _padded(value)
    return copies


def _space(feeds: Mapping[str, Array]) -> int:
    return sum(map(_padded, feeds.values()))


def _padded(value: Array) -> int:
    """Bytes of an array, so that the next one starts at a cache line."""
    return -(-value.nbytes // 64) * 64


def _session(part: Graph, watch: Stopwatch) -> Session:
    model = to_model(part).SerializeToString()
    return Session(model, folder=part.folder, provider=watch.provider, threads=watch.threads, profile=True, pooled=True)


@dataclass(frozen=True)
class Stopwatch:
    """How parts are timed.

    Attributes:
        provider: the execution provider to run on.
        threads: threads inside one operator; 0 lets the runtime choose.
        memo: what was measured before.
        seconds: time limit for each part.
        timer: what runs them.
        progress: told how far it is.
    """

    provider: str = CPU
    threads: int = 1
    memo: Memo = field(default_factory=Memo)
    seconds: float = 0.1
    timer: Timer = take_turns
    progress: Progress = silent

    def times(self, things: Sequence[Forms]) -> list[dict[str, Times]]:
        """Times of each thing in each of its forms; things of one structure are timed once, their forms together."""
        keys = [self._key(forms) for forms in things]
        distinct = {canonical(key): (key, forms) for key, forms in zip(keys, things, strict=True)}
        found = {text: self.memo.get("cost", key) for text, (key, _) in distinct.items()}
        for portion in _portions({text: distinct[text][1] for text, value in found.items() if value is None}):
            for text, times in self._measure(portion).items():
                measured: JSON = {form: list(astuple(own)) for form, own in times.items()}
                found[text] = self.memo.put("cost", distinct[text][0], measured)
        return [_read(found[canonical(key)]) for key in keys]

    def _measure(self, things: Mapping[str, Forms]) -> dict[str, dict[str, Times]]:
        names = dict.fromkeys(form for forms in things.values() for form in forms)
        samples = {name: {thing: forms[name] for thing, forms in things.items() if name in forms} for name in names}
        kernels = self.timer({name: list(some.values()) for name, some in samples.items()}, self)
        measured: dict[str, dict[str, Times]] = {thing: {} for thing in things}
        for name, some in samples.items():
            for (thing, sample), ran in zip(some.items(), kernels[name], strict=True):
                measured[thing][name] = Times.of(ran, sample.part)
        return measured

    def _key(self, forms: Forms) -> dict[str, JSON]:
        parts: JSON = {form: sample.structure for form, sample in forms.items()}
        machine_key: dict[str, JSON] = {"machine": machine(), "provider": self.provider}
        return {**machine_key, "threads": self.threads or cpus(), "method": METHOD, "parts": parts}


def _read(value: Any) -> dict[str, Times]:
    return {form: Times(*times) for form, times in value.items()}


def _portions(things: Mapping[str, Forms]) -> Iterator[dict[str, Forms]]:
    """As many at a time as fit into memory."""
    portion: dict[str, Forms] = {}
    taken = 0
    for name, forms in things.items():
        size = sum(sample.nbytes for sample in forms.values())
        if portion and taken + size > AT_ONCE:
            yield portion
            portion, taken = {}, 0
        portion[name] = forms
        taken += size
    if portion:
        yield portion
