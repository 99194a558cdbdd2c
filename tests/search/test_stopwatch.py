"""Parts take turns form by form, equal parts share a measurement, and what is known is not measured again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from onnxq.graph import Graph
from onnxq.memo import Memo
from onnxq.runtime import CPU, Kernel
from onnxq.search import stopwatch
from onnxq.search.stopwatch import LEAST, MOST, Sample, Stopwatch, Times, take_turns, written
from tests.onnx_text import Array, floats, normal, read


def sample(op: str = "Relu", width: int = 4, batch: int = 2, name: str = "x") -> Sample:
    graph = read(f"(float[N,{width}] {name}) => (float[N,{width}] y) {{ [the_{op}] y = {op}({name}) }}")
    return Sample(graph, normal(graph, batch=batch))


@dataclass
class Fake:
    """A timer that counts, and says that every sample takes 10 microseconds times its call."""

    calls: list[dict[str, list[str]]] = field(default_factory=list)

    def __call__(self, samples: Mapping[str, Sequence[Sample]], watch: Stopwatch) -> dict[str, list[list[Kernel]]]:
        self.calls.append({form: [one.part.nodes[0].op for one in some] for form, some in samples.items()})
        time = 10.0 * len(self.calls)
        return {form: [[Kernel("n", one.part.nodes[0].op, CPU, time)] for one in s] for form, s in samples.items()}


def test_things_of_one_structure_are_timed_once() -> None:
    # Arrange
    fake = Fake()
    things = [{"a": sample("Relu"), "b": sample("Neg")}, {"a": sample("Relu", name="z"), "b": sample("Neg")}]
    others = [{"a": sample("Relu", width=5), "b": sample("Neg")}, {"a": sample("Relu")}]
    # Act
    times = Stopwatch(timer=fake).times([*things, *others])
    # Assert
    assert fake.calls == [{"a": ["Relu", "Relu", "Relu"], "b": ["Neg", "Neg"]}]
    assert [list(found) for found in times] == [["a", "b"], ["a", "b"], ["a", "b"], ["a"]]
    assert {own for found in times for own in found.values()} == {Times(0, 10, 0)}


@pytest.mark.parametrize("kept", [True, False])
def test_what_is_known_is_not_timed_again(tmp_path: Path, kept: bool) -> None:
    memo, fake = Memo(tmp_path if kept else None), Fake()
    things = [{"a": sample("Relu")}, {"a": sample("Neg")}]
    watch = Stopwatch(timer=fake, memo=memo)
    first = watch.times(things)
    again = replace(watch, memo=Memo(tmp_path) if kept else memo).times(things)
    assert first == again
    assert len(fake.calls) == 1
    watch.times([*things, {"a": sample("Abs")}])
    assert fake.calls[1:] == [{"a": ["Abs"]}], "only what is new"


def test_times_of_other_circumstances_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    watch = Stopwatch(timer=fake, threads=1)
    watch.times([{"a": sample()}])
    replace(watch, threads=2).times([{"a": sample()}])
    replace(watch, provider="Other").times([{"a": sample()}])
    watch.times([{"a": sample(batch=3)}])
    watch.times([{"a": sample(), "b": sample("Neg")}])  # forms are compared, so they are measured together
    assert len(fake.calls) == 5
    monkeypatch.setattr(stopwatch, "machine", lambda: "another one")
    watch.times([{"a": sample()}])
    assert len(fake.calls) == 6


def test_nothing_is_timed_where_there_is_nothing() -> None:
    fake = Fake()
    assert Stopwatch(timer=fake).times([]) == []
    assert fake.calls == []


def with_weight(columns: int) -> Sample:
    graph = read("(float[2,8] x) => (float[2,n] y) { y = MatMul(x, w) }", {"w": floats(8, columns)})
    return Sample(graph, normal(graph))


def test_parts_that_do_not_fit_together_are_timed_after_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    monkeypatch.setattr(stopwatch, "AT_ONCE", 8 * 4 * 10)  # ten columns of floats
    things = [{"a": with_weight(columns)} for columns in (4, 5, 6, 3, 40, 1)]
    found = Stopwatch(timer=fake).times(things)
    assert [len(call["a"]) for call in fake.calls] == [2, 2, 1, 1]
    assert [times["a"].own for times in found] == [10, 10, 20, 20, 30, 40]


def kernels(*ops: str) -> list[Kernel]:
    return [Kernel(f"n{index}", op, CPU, 2.0**index) for index, op in enumerate(ops)]


def part(*ops: str) -> Graph:
    body = " ".join(f"t{i + 1} = {op}(t{i})" for i, op in enumerate(ops))
    return read(f"(float[2,2] t0) => (float[2,2] t{len(ops)}) {{ {body} }}")


@pytest.mark.parametrize(
    ("ran", "ops", "expected"),
    [
        (("Conv",), ("Relu",), Times(0, 1, 0)),
        (("ReorderInput", "Conv", "ReorderOutput"), ("Relu",), Times(1, 2, 4)),
        (("Transpose", "Transpose", "QLinearConv", "Clip", "Transpose"), ("Relu", "Neg"), Times(3, 12, 16)),
        (("Conv", "ReorderOutput", "Add"), ("Relu", "Neg"), Times(0, 7, 0)),
        (("Transpose",), ("Transpose",), Times(0, 1, 0)),
        (("Transpose", "NhwcMaxPool"), ("Transpose", "Relu", "Transpose"), Times(1, 2, 0)),
        ((), ("Relu",), Times(0, 0, 0)),
        (("Transpose",), ("Relu",), Times(0, 0, 1)),
    ],
)
def test_changes_of_layout_are_told_apart(ran: tuple[str, ...], ops: tuple[str, ...], expected: Times) -> None:
    assert Times.of(kernels(*ran), part(*ops)) == expected


def test_copies_share_a_buffer_and_leave_the_originals_alone() -> None:
    buffer = np.zeros(400, np.uint8)
    feeds: dict[str, Array] = {
        "a": floats(3, 5),
        "b": np.arange(7, dtype=np.int64),
        "c": np.asarray(2.5, np.float32),
        "d": np.array([[True, False]]),
        "e": np.zeros((0, 3), np.uint8),
        "f": floats(4, 4).T,
    }
    copies = written(feeds, buffer)
    for name, value in feeds.items():
        np.testing.assert_array_equal(copies[name], value)
        assert copies[name].dtype == value.dtype
        assert value.size == 0 or np.shares_memory(copies[name], buffer)
    buffer[:] = 0
    assert feeds["b"].tolist() == list(range(7))


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, LEAST), (1e6, MOST)])
def test_forms_take_turns(monkeypatch: pytest.MonkeyPatch, seconds: float, rounds: int) -> None:
    # Arrange: sessions that note their turn
    turns: list[str] = []
    told: list[tuple[str, int, int]] = []

    class Noting:
        def __init__(self, part: Graph, watch: Stopwatch) -> None:
            self.name = part.nodes[0].op

        def run(self, feeds: object) -> None:
            turns.append(self.name)

        def kernels(self, quantile: float) -> list[Kernel]:
            return [Kernel("n", self.name, CPU, 1.0)]

    monkeypatch.setattr(stopwatch, "_session", Noting)
    samples = {"a": [sample("Relu"), sample("Neg")], "b": [sample("Abs")]}
    watch = Stopwatch(seconds=seconds, progress=lambda *call: told.append(call))
    # Act
    found = take_turns(samples, watch)
    # Assert
    assert turns == ["Relu", "Neg", "Relu", "Neg", "Abs", "Abs"] * rounds
    assert {form: [some[0].op for some in ran] for form, ran in found.items()} == {"a": ["Relu", "Neg"], "b": ["Abs"]}
    assert told == [("cost", done, MOST) for done in range(1, rounds + 1)] + [("cost", MOST, MOST)]


def test_samples_really_run() -> None:
    samples = {"a": [with_weight(4), sample("Relu")], "b": [sample("Neg")]}
    found = take_turns(samples, Stopwatch(seconds=0.0))
    assert {form: [[one.op for one in kernel] for kernel in ran] for form, ran in found.items()} == {
        "a": [["MatMul"], ["Relu"]],
        "b": [["Neg"]],
    }


def test_integer_samples_read_eight_bits() -> None:
    graph = read("(uint8[2] x, float s, uint8 z) => (float[2] y) { y = DequantizeLinear(x, s, z) }")
    values: dict[str, Array] = {
        "x": np.zeros(2, np.uint8),
        "s": np.asarray(1, np.float32),
        "z": np.asarray(0, np.uint8),
    }
    assert Sample(graph, values).integer
    assert not sample().integer
    assert not Sample(graph, {**values, "x": np.zeros(2, np.float32)}).integer, "a zero point is no activation"
