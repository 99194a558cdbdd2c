"""Batches go through a graph leg by leg, and hold there what they hold in one run of the whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxq import relay
from onnxq.errors import DataError
from onnxq.graph import Constant, Graph, Later, is_constant, to_model
from onnxq.modelfile import load
from onnxq.relay import Relay
from onnxq.runtime import Session
from tests.onnx_text import floats, normal, read, typed

Array = np.ndarray[Any, Any]
Feeds = list[dict[str, Array]]

CHAIN = """(float[n,8] x) => (float[n,8] y) {
    [one] a = MatMul(x, w) [two] b = Relu(a) [three] c = MatMul(b, w) [four] d = Add(c, x) [five] e = MatMul(d, w)
    [six] y = Mul(e, a) }"""
"""`x` and `a` are read again much later."""

SPLIT = """(float[n,8] x) => (float[n,4] y, float[n,4] z) {
    [cut] p, q = Split<axis=1>(x, sizes) [one] a = MatMul(p, v) [two] b = MatMul(q, v) [top] t, i = TopK<axis=1>(b, k)
    [add] y = Add(a, q) [end] s = Cast<to=1>(i) [sum] r = Add(s, t) [mul] z = Mul(b, r) }"""
"""Operators with two outputs: of the first, both are read, at different times; of the second, too."""

BRANCH = """(float[n,8] x, bool c) => (float[n,8] y) {
    [one] a = MatMul(x, w) [two] b = Relu(a)
    [if] d = If(c) <then_branch = t () => (float[n,8] th) { th = Add(a, b) },
                    else_branch = e () => (float[n,8] el) { el = MatMul(a, w) }>
    [three] f = MatMul(d, w) [four] y = Add(f, b) }"""
"""Its bodies capture what was made around them, and a weight."""

MODELS: dict[str, tuple[str, dict[str, Array], list[str]]] = {
    "chain": (CHAIN, {"w": floats(8, 8) / 3}, ["x", "b", "d", "y"]),
    "many at once": (CHAIN, {"w": floats(8, 8) / 3}, ["d", "y"]),
    "two outputs": (SPLIT, {"v": floats(4, 4), "sizes": np.array([4, 4]), "k": np.array([4])}, ["p", "q", "t", "z"]),
    "bodies": (BRANCH, {"w": floats(8, 8) / 3}, ["x", "b", "d", "y"]),
}


def feeds_of(graph: Graph, batches: int = 3) -> Feeds:
    """Batches of different sizes."""
    made: Feeds = [normal(graph, seed, batch=2 + seed) for seed in range(batches)]
    for seed, feeds in enumerate(made):
        if "c" in feeds:
            feeds["c"] = np.array(seed % 2 == 0)
    return made


def at_once(graph: Graph, feeds: Mapping[str, Array], names: list[str]) -> dict[str, Array]:
    """Tensors of one run of the whole model."""
    inner = [name for name in names if name not in feeds]
    model = to_model(graph, extra_outputs=inner).SerializeToString()
    return dict(feeds) | Session(model, folder=graph.folder, threads=1, optimize=False).run(feeds, inner)


@pytest.mark.parametrize("case", MODELS)
def test_tensors_hold_what_they_hold_in_one_run(case: str) -> None:
    text, weights, targets = MODELS[case]
    graph = read(text, weights)
    feeds = feeds_of(graph)
    expected = [at_once(graph, batch, targets) for batch in feeds]
    running = Relay.start(graph, feeds, threads=1)
    for name in targets:
        found = list(running.reach(name))
        assert len(found) == len(feeds)
        for have, want in zip(found, expected, strict=True):
            np.testing.assert_allclose(have, want[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Names of the nodes of each leg that runs, in order."""
    legs: list[list[str]] = []

    class Watched(Session):
        def __init__(self, model: bytes, **options: Any) -> None:
            super().__init__(model, **options)
            self.names = [node.name for node in onnx.load_from_string(model).graph.node]

        def run(self, *arguments: Any) -> dict[str, Array]:
            legs.append(self.names)
            return super().run(*arguments)

    monkeypatch.setattr(relay, "Session", Watched)
    return legs


@pytest.mark.parametrize("case", MODELS)
def test_every_operator_runs_once(case: str, ran: list[list[str]]) -> None:
    text, weights, targets = MODELS[case]
    graph = read(text, weights)
    feeds = feeds_of(graph)
    running = Relay.start(graph, feeds, threads=1)
    for name in targets:
        for _ in running.reach(name):
            pass
    times = Counter(name for leg in ran for name in leg)
    made = {node.name for node in running.done}
    assert times == dict.fromkeys(made, len(feeds))
    beside = {"two outputs": {"one", "add"}}.get(case, set())  # which leads to no target
    assert made == {node.name for node in graph.nodes} - beside


def test_a_leg_is_no_longer_than_it_must_be(ran: list[list[str]]) -> None:
    graph = read(CHAIN, {"w": floats(8, 8) / 3})
    running = Relay.start(graph, feeds_of(graph, 1), threads=1)
    expected: dict[str, list[str]] = {"x": [], "a": ["one"], "b": ["two"], "d": ["three", "four"], "y": ["five", "six"]}
    for name, nodes in expected.items():
        before = len(ran)
        list(running.reach(name))
        assert ran[before:] == ([nodes] if nodes else []), name


def test_held_is_what_is_read_later() -> None:
    """And nothing else: activations of a large model are many."""
    graph = read(CHAIN, {"w": floats(8, 8) / 3})
    running = Relay.start(graph, feeds_of(graph), threads=1)
    for name, held in {"x": {"x"}, "b": {"x", "a", "b"}, "d": {"a", "d"}, "y": set()}.items():
        list(running.reach(name))
        assert all(set(batch) == held for batch in running.held), name


def test_a_target_can_be_reached_again_as_long_as_somebody_will_read_it() -> None:
    graph = read(CHAIN, {"w": floats(8, 8) / 3})
    running = Relay.start(graph, feeds_of(graph), threads=1)
    first = list(running.reach("b"))
    list(running.reach("x"))
    for one, other in zip(first, running.reach("b"), strict=True):
        np.testing.assert_array_equal(one, other)


def test_one_batch_at_a_time() -> None:
    """The next batch runs when it is asked for."""
    graph = read(CHAIN, {"w": floats(8, 8) / 3})
    running = Relay.start(graph, feeds_of(graph), threads=1)
    values = running.reach("b")
    next(values)
    assert ["b" in batch for batch in running.held] == [False, False, False]
    next(values)
    assert ["b" in batch for batch in running.held] == [True, False, False]


def test_weights_of_what_has_not_run_may_still_change() -> None:
    """They are read when their leg runs, and not before."""
    values = {"v": floats(8, 8), "w": floats(8, 8, seed=4)}
    graph = read("(float[n,8] x) => (float[n,8] y) { a = MatMul(x, v) b = Relu(a) y = MatMul(b, w) }", values)
    read_now: list[str] = []

    def later(name: str) -> Later:
        def make() -> Array:
            read_now.append(name)
            return values[name]

        return Later((8, 8), np.dtype(np.float32), make)

    for tensor in graph.weights():
        assert isinstance(tensor, Constant)
        tensor._values = later(tensor.name)
    (feeds,) = feeds_of(graph, 1)
    running = Relay.start(graph, [feeds], threads=1)
    (b,) = running.reach("b")
    assert read_now == ["v"]
    values["w"] = np.eye(8, dtype=np.float32)
    (y,) = running.reach("y")
    assert read_now == ["v", "w"]
    np.testing.assert_allclose(y, b, rtol=1e-6)


def test_weights_in_external_data(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    graph = read(CHAIN, {"w": floats(8, 8) / 3})
    onnx.save(to_model(graph), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    outside = typed_file(path)
    feeds = feeds_of(graph)
    running, expected = Relay.start(outside, feeds, threads=1), [at_once(graph, one, ["d", "y"]) for one in feeds]
    for name in ("d", "y"):
        for have, want in zip(running.reach(name), expected, strict=True):
            np.testing.assert_allclose(have, want[name], rtol=1e-5, atol=1e-5)


def typed_file(path: Path) -> Graph:
    graph = load(path)
    twin = typed(read(CHAIN, {"w": floats(8, 8) / 3})).tensors()
    for name, tensor in ((n, t) for n, t in graph.tensors().items() if not is_constant(t)):
        tensor.dtype, tensor.shape = twin[name].dtype, twin[name].shape
    return graph


def test_the_data_of_the_caller_is_not_touched() -> None:
    graph = read(CHAIN, {"w": floats(8, 8) / 3})
    feeds = feeds_of(graph)
    copies = [dict(batch) for batch in feeds]
    running = Relay.start(graph, iter(feeds), threads=1)
    list(running.reach("d"))
    for batch, copy in zip(feeds, copies, strict=True):
        assert batch.keys() == copy.keys()
        assert all(np.array_equal(batch[name], copy[name]) for name in copy)


def test_data_on_which_the_model_fails() -> None:
    graph = read("(float[n,8] x, float[m,8] z) => (float[n,8] y) { a = Add(x, z) y = Relu(a) }")
    running = Relay.start(graph, [{"x": floats(2, 8), "z": floats(3, 8)}], threads=1)
    with pytest.raises(DataError, match="fails on the given data"):
        list(running.reach("a"))


def test_without_data_there_is_nothing() -> None:
    graph = read(CHAIN, {"w": floats(8, 8) / 3})

    def nothing() -> Iterator[dict[str, Array]]:
        yield from ()

    assert list(Relay.start(graph, nothing(), threads=1).reach("b")) == []
