"""Rewrites are judged by the best form of the model before and after, each on top of those that were kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from onnxq.graph import Graph
from onnxq.memo import Memo
from onnxq.passes.merge_linear import MergeLinear
from onnxq.pipeline import Context, Lossy, Promise
from onnxq.recipe import make_recipe
from onnxq.rewrite import Change
from onnxq.runtime import Session, Timing
from onnxq.search import rewrites
from onnxq.search.rewrites import fires, keeps_named, worth_it
from onnxq.spec import Fact
from onnxq.targets import CPU
from tests.onnx_text import apply, floats, normal, ops, read

CONTEXT = Context(CPU)


@dataclass(frozen=True)
class Swap:
    """Write one operator in place of another."""

    old: str
    new: str
    needs: ClassVar[frozenset[Fact]] = frozenset()
    gives: ClassVar[frozenset[Fact]] = frozenset()
    promise: ClassVar[Promise] = Lossy()

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        for node in [node for node in graph.nodes if node.op == self.old]:
            node.op = self.new
            yield Change(node.name, self.old, self.new, "For the test.")


NEG_TO_SIGN, ABS_TO_SQRT = Swap("Neg", "Sign"), Swap("Abs", "Sqrt")


@dataclass
class Drafts:
    """Quantizes by writing Exp for Tanh, and remembers what it was given."""

    new: str = "Exp"
    given: list[list[str]] = field(default_factory=list)

    def __call__(self, graph: Graph) -> Graph:
        self.given.append(ops(graph))
        return apply(Swap("Tanh", self.new), graph).graph


@dataclass
class Clock:
    """Says what four models take, call by call; the last times stay."""

    times: list[tuple[float, float, float, float]]
    timed: int = 0

    def __call__(self, sessions: Sequence[Session], *_: object, **__: object) -> list[Timing]:
        milliseconds = self.times[min(self.timed, len(self.times) - 1)]
        self.timed += 1
        return [Timing(own, milliseconds[0] / own) for _, own in zip(sessions, milliseconds, strict=True)]


def model() -> Graph:
    return read("(float[2,3] x) => (float[2,3] y) { a = Neg(x) b = Abs(a) y = Tanh(b) }")


def kept(monkeypatch: pytest.MonkeyPatch, clock: Clock, drafts: Drafts, memo: Memo) -> list[str]:
    """The new operators of the rewrites that were kept, of two that are tried."""
    monkeypatch.setattr(rewrites, "interleave", clock)
    graph = model()
    found = worth_it([NEG_TO_SIGN, ABS_TO_SQRT], graph, CONTEXT, drafts, normal(graph), 1, memo)
    return [step.new for step in found if isinstance(step, Swap)]


FLOAT_GAINS = (10.0, 12.0, 9.0, 14.0)
JUDGED = {
    "float is the best form, and gains": (FLOAT_GAINS, True),
    "quantized is the best form, and gains": ((10.0, 6.0, 11.0, 5.0), True),
    "another form is the best": ((10.0, 8.0, 7.0, 9.0), True),
    "float gains, but quantized is the best form": ((10.0, 6.0, 7.0, 6.0), False),
    "quantized gains, but float is the best form": ((10.0, 16.0, 10.0, 12.0), False),
    "hardly a gain": ((10.0, 6.0, 10.0, 5.95), False),
    "slower": ((10.0, 6.0, 11.0, 7.0), False),
}


@pytest.mark.parametrize("case", JUDGED)
def test_the_best_forms_are_compared(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    times, worth = JUDGED[case]
    assert kept(monkeypatch, Clock([times]), Drafts(), Memo()) == (["Sign", "Sqrt"] if worth else [])


@pytest.mark.parametrize("first", [True, False])
def test_each_is_tried_on_top_of_those_that_were_kept(first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, drafts = Clock([FLOAT_GAINS if first else (1.0, 1.0, 1.0, 1.0), FLOAT_GAINS]), Drafts()
    assert kept(monkeypatch, clock, drafts, Memo()) == (["Sign", "Sqrt"] if first else ["Sqrt"])
    one = "Sign" if first else "Neg"
    tried = [["Neg", "Abs", "Tanh"], ["Sign", "Abs", "Tanh"], [one, "Abs", "Tanh"], [one, "Sqrt", "Tanh"]]
    assert drafts.given == tried


def test_what_finds_nothing_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, drafts, graph = Clock([FLOAT_GAINS]), Drafts(), model()
    monkeypatch.setattr(rewrites, "interleave", clock)
    assert worth_it([Swap("Sin", "Cos")], graph, CONTEXT, drafts, normal(graph), 1, Memo()) == []
    assert (clock.timed, drafts.given) == (0, [])
    assert fires(NEG_TO_SIGN, graph, CONTEXT)
    assert not fires(Swap("Sin", "Cos"), graph, CONTEXT)


@pytest.mark.parametrize(
    ("nodes", "kept"),
    [
        ({}, True),
        ({"one": {"quantize": False}}, True),
        ({"tw*": {"quantize": False}}, False),
        ({"two": {"range": "mse"}}, False),
        ({"two": {}}, True),
        ({"act": {"quantize": False}}, True),
    ],
)
def test_layers_that_the_recipe_names_stay(nodes: dict[str, dict[str, object]], kept: bool) -> None:
    body = "[one] y = MatMul(x, w) [two] m = MatMul(x, v) [act] z = Relu(m)"
    text = f"(float[2,3] x) => (float[2,4] y, float[2,5] z) {{ {body} }}"
    graph = read(text, {"w": floats(3, 4), "v": floats(3, 5)})
    assert keeps_named(MergeLinear(), graph, CONTEXT, make_recipe({"nodes": nodes})) == kept


@pytest.mark.parametrize("stored", [True, False])
def test_what_is_known_is_not_timed_again(stored: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memo, clock = Memo(tmp_path if stored else None), Clock([FLOAT_GAINS])
    first = kept(monkeypatch, clock, Drafts(), memo)
    assert clock.timed == 2
    assert kept(monkeypatch, Clock([(1.0, 1.0, 1.0, 1.0)]), Drafts(), Memo(tmp_path) if stored else memo) == first


def test_another_draft_is_timed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    memo, clock = Memo(), Clock([FLOAT_GAINS])
    kept(monkeypatch, clock, Drafts(), memo)
    kept(monkeypatch, clock, Drafts("Log"), memo)
    assert clock.timed == 4


def test_progress_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int, int]] = []
    monkeypatch.setattr(rewrites, "interleave", Clock([FLOAT_GAINS]))
    graph = model()
    steps = [NEG_TO_SIGN, Swap("Sin", "Cos")]
    worth_it(steps, graph, CONTEXT, Drafts(), normal(graph), 1, Memo(), lambda *words: told.append(words))
    assert told == [("rewrites", 1, 2), ("rewrites", 2, 2)]


def test_models_are_really_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a made-up clock: four sessions run, and a number comes out."""
    monkeypatch.setattr(rewrites, "SECONDS", 0.0)
    graph, memo, drafts = model(), Memo(), Drafts()
    worth_it([NEG_TO_SIGN], graph, CONTEXT, drafts, normal(graph), 1, memo)
    (value,) = [text for name, text in memo._known.items() if name.startswith("rewrite-")]
    assert '"value": ' in value
