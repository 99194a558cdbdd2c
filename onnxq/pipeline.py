"""Runs passes in order: checks what each needs, copies the model once, and holds the result to the spec."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from onnxq.errors import RecipeError
from onnxq.graph import Graph
from onnxq.plan import Plan
from onnxq.rewrite import Change
from onnxq.shelf import Shelf
from onnxq.spec import Fact, broken
from onnxq.targets.table import Target


@dataclass(frozen=True)
class Exact:
    """Outputs stay the same to the last bit, or to what the order of a float sum decides."""


@dataclass(frozen=True)
class Close:
    """Outputs stay within a relative error."""

    rtol: float


@dataclass(frozen=True)
class Within:
    """Outputs stay within some quantization steps."""

    steps: int


@dataclass(frozen=True)
class Lossy:
    """Outputs change by what quantization costs; `validate` measures it."""


Promise = Exact | Close | Within | Lossy


@dataclass(frozen=True)
class Context:
    """What a pass may read.

    Attributes:
        target: what the execution provider runs as integers.
        plan: the decisions; None before there are any.
        shelf: weights that were rounded with data; others are rounded when they are written.
    """

    target: Target
    plan: Plan | None = None
    shelf: Shelf = field(default_factory=Shelf)


class Pass(Protocol):
    """One rewrite of the graph. A frozen dataclass whose fields are its options."""

    @property
    def needs(self) -> frozenset[Fact]:
        """What must hold before."""
        ...

    @property
    def gives(self) -> frozenset[Fact]:
        """What holds after."""
        ...

    @property
    def promise(self) -> Promise:
        """How far outputs may move."""
        ...

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Edit the graph, and say so."""
        ...


@dataclass
class Outcome:
    """What a run of the pipeline made.

    Attributes:
        graph: the new graph; the given one is untouched.
        changes: all edits and refusals, by name of the pass.
        seconds: time of each pass.
    """

    graph: Graph
    changes: dict[str, list[Change]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def check_order(passes: Sequence[Pass], given: frozenset[Fact] = frozenset()) -> frozenset[Fact]:
    """All facts after the last pass. Raises RecipeError where a pass needs what no earlier one gives."""
    facts = given
    for step in passes:
        missing = step.needs - facts
        if missing:
            raise RecipeError(
                f"{type(step).__name__} needs {', '.join(sorted(f.name for f in missing))}, which no earlier pass "
                "gives. Put the pass that gives it before."
            )
        facts |= step.gives
    return facts


def run(passes: Sequence[Pass], graph: Graph, context: Context, given: frozenset[Fact] = frozenset()) -> Outcome:
    """Run passes over a copy of the graph.

    Raises:
        RecipeError: the order makes no sense.
        AssertionError: a pass broke the graph; a defect of ours.
    """
    check_order(passes, given)
    outcome = Outcome(graph.copy())
    for step in passes:
        name, start = type(step).__name__, time.perf_counter()
        outcome.changes.setdefault(name, []).extend(step(outcome.graph, context))
        outcome.graph.tidy()
        outcome.seconds[name] = outcome.seconds.get(name, 0.0) + time.perf_counter() - start
        wrong = broken(outcome.graph)
        assert wrong is None, f"{name}: {wrong}"
    return outcome
