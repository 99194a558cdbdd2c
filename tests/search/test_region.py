"""A part that was cut out computes what it computes in the whole model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from onnxq.errors import ModelError
from onnxq.graph import Graph, to_model
from onnxq.runtime import Session
from onnxq.search.region import Cutter, channels_last, cut, ends, structure, successors
from tests.onnx_text import execute, floats, listing, normal, ops, read, serialize, typed

Array = np.ndarray[Any, Any]

DIAMOND = """
(float[N,4] x, float[4] k) => (float[N,4] y, float[N,4] z) {
  [first] a = MatMul(x, w)
  [left] b = Relu(a)
  [right] c = Mul(a, k)
  [join] y = Add(b, c)
  [late] z = Neg(b)
}
"""
WEIGHTS = {"w": floats(4, 4)}


def diamond() -> Graph:
    return read(DIAMOND, WEIGHTS)


def inner(graph: Graph, names: list[str], feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Values of inner tensors in the whole model."""
    return Session(to_model(graph, extra_outputs=names).SerializeToString(), optimize=False).run(feeds, names)


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        (["x", "k"], ["y"], ["MatMul", "Relu", "Mul", "Add"]),
        (["a"], ["b"], ["Relu"]),
        (["a", "k"], ["y"], ["Relu", "Mul", "Add"]),
        (["a"], ["b", "z"], ["Relu", "Neg"]),
        (["b", "c"], ["y", "z"], ["Add", "Neg"]),
        (["x"], ["a"], ["MatMul"]),
        (["k", "a"], ["z", "c"], ["Relu", "Mul", "Neg"]),
    ],
)
def test_a_part_computes_what_it_does_in_the_whole(inputs: list[str], outputs: list[str], expected: list[str]) -> None:
    # Arrange
    graph = diamond()
    feeds = normal(graph)
    seen = {**feeds, **inner(graph, ["a", "b", "c", "y", "z"], feeds)}
    # Act
    part = cut(graph, inputs, outputs)
    # Assert
    assert ops(part) == expected
    assert [tensor.name for tensor in part.inputs] == inputs
    for got, name in zip(execute(part, {name: seen[name] for name in inputs}), outputs, strict=True):
        np.testing.assert_allclose(got, seen[name], rtol=1e-6)


def test_the_graph_is_not_touched() -> None:
    graph = diamond()
    before = listing(graph), serialize(graph)
    part = cut(graph, ["a"], ["b"])
    part.remove(*part.nodes)
    assert (listing(graph), serialize(graph)) == before


def test_weights_are_shared_and_others_left_behind() -> None:
    graph = diamond()
    weights = {tensor.name: tensor._values for tensor in graph.weights()}
    assert [tensor._values is weights["w"] for tensor in cut(graph, ["x"], ["b"]).weights()] == [True]
    assert cut(graph, ["a"], ["b"]).weights() == []


def test_only_what_the_part_reads_is_captured() -> None:
    graph = read(BRANCHES, {"w": floats(2)}, opset=13)
    part = cut(graph, ["x"], ["a"])
    assert (part.captured, part.weights()) == (frozenset(), [])
    assert cut(graph, ["a", "on"], ["b"]).captured == {"a", "w"}


def test_a_part_declares_its_inputs_as_the_graph_knows_them() -> None:
    part = cut(diamond(), ["a", "k"], ["y"])
    specs = part.interface()
    assert [str(spec) for spec in specs.inputs] == ["a: float32[N, 4]", "k: float32[4]"]
    assert [spec.name for spec in specs.outputs] == ["y"]
    assert str(Session(serialize(part)).outputs[0]) == "y: float32[N, 4]"


def test_a_part_can_be_cut_again_and_edited() -> None:
    part = typed(cut(diamond(), ["x", "k"], ["y"]))
    again = cut(part, ["a", "k"], ["y"])
    assert ops(again) == ["Relu", "Mul", "Add"]
    assert again.fresh("a") != "a"


def test_a_cutter_cuts_many_times() -> None:
    cutter = Cutter(diamond())
    assert [ops(cutter.cut(["a"], [name])) for name in ("b", "z")] == [["Relu"], ["Relu", "Neg"]]


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        (["nope"], ["y"], "no tensor 'nope'"),
        (["a"], ["nope"], "no tensor 'nope'"),
        (["a"], ["y"], "needs the model's input 'k' too"),
        (["x", "w"], ["a"], "'w' cannot be cut at: it is a weight"),
    ],
)
def test_an_impossible_cut_is_refused(inputs: list[str], outputs: list[str], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        cut(diamond(), inputs, outputs)


def test_a_node_is_cut_behind_all_of_its_outputs_or_none() -> None:
    graph = read("(float[2,4] x) => (float[2,2] y) { [s] a, b = Split <axis = 1> (x)  y = Add(a, b) }", opset=13)
    with pytest.raises(ModelError, match="Node 's' makes 'b' and 'a'"):
        cut(graph, ["a"], ["y"])
    assert ops(cut(graph, ["a", "b"], ["y"])) == ["Add"]


def test_a_type_that_nobody_knows_is_refused() -> None:
    graph = diamond()
    graph.tensors()["a"].dtype = None
    with pytest.raises(ModelError, match=r"'a' cannot be cut at.*type is unknown"):
        cut(graph, ["a"], ["b"])


BRANCHES = """
(float[2] x, bool on) => (float[2] y) {
  a = Neg(x)
  [choose] b = If (on) <
    then_branch = yes () => (float[2] p) { p = Mul(a, w) },
    else_branch = no () => (float[2] q) { q = Relu(a) }
  >
  y = Abs(b)
}
"""


def test_what_bodies_read_comes_along() -> None:
    # Arrange
    graph = read(BRANCHES, {"w": floats(2)}, opset=13)
    x, on = floats(2), np.asarray(True)
    expected = inner(graph, ["a", "b"], {"x": x, "on": on})
    # Act: once with the maker of what the body reads, once cut there
    whole, part = cut(graph, ["x", "on"], ["b"]), cut(graph, ["a", "on"], ["b"])
    # Assert
    assert ops(part) == ["If"]
    np.testing.assert_array_equal(execute(whole, {"x": x, "on": on})[0], expected["b"])
    np.testing.assert_array_equal(execute(part, {"a": expected["a"], "on": on})[0], expected["b"])
    assert ends(graph, [node for node in graph.nodes if node.op == "If"]) == (["on", "a"], ["b"])


def nodes(graph: Graph, *names: str) -> list[Any]:
    return [node for node in graph.nodes if node.name in names]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("first",), (["x"], ["a"])),
        (("first", "left"), (["x"], ["a", "b"])),
        (("left", "right", "join"), (["a", "k"], ["b", "y"])),
        (("first", "left", "right", "join", "late"), (["x", "k"], ["y", "z"])),
    ],
)
def test_ends_are_what_goes_in_and_what_others_read(names: tuple[str, ...], expected: object) -> None:
    graph = diamond()
    assert ends(graph, nodes(graph, *names)) == expected


def test_an_output_of_the_model_is_an_end_though_it_is_read_inside() -> None:
    graph = read("(float[2] x) => (float[2] t, float[2] y) { [one] t = Neg(x) [two] y = Abs(t) }")
    assert ends(graph, graph.nodes) == (["x"], ["t", "y"])


def test_successors_are_found_by_name() -> None:
    text = "(float[2] x) => (float[2] y) { [n] a = Neg(x) [n_1] b = Abs(a) [m] c = Relu(b) [gone] y = Neg(c) }"
    before = read(text)
    after = before.copy()
    made = {}
    for name, wish in (("n", "n"), ("n_1", "n_1"), ("gone", "gone_more")):
        (old,) = nodes(after, name)
        inputs, outputs = list(old.inputs), list(old.outputs)
        after.remove(old)
        made[name] = after.add("Sin", inputs, outputs, name=wish)
    # Act
    found = successors(before, after)
    # Assert
    assert [node.name for node in made.values()] == ["n_2", "n_1_1", "gone_more"]
    assert found == {"n": made["n"], "n_1": made["n_1"], "m": nodes(after, "m")[0]}


def described(text: str, weights: Mapping[str, Any], batch: int = 2, opset: int = 17) -> object:
    graph = read(text, weights, opset=opset)
    shapes = {name: value.shape for name, value in normal(graph, batch=batch).items()}
    return structure(graph, shapes)


LAYER = "(float[N,4] x) => (float[N,3] y) { [one] t = Gemm <transB = 1> (x, w)  y = Relu(t) }"
BASE = (LAYER, {"w": floats(3, 4)})


def test_names_and_values_do_not_matter() -> None:
    renamed = "(float[N,4] in) => (float[N,3] out) { [two] h = Gemm <transB = 1> (in, v)  out = Relu(h) }"
    assert described(*BASE) == described(renamed, {"v": floats(3, 4, seed=8)})


@pytest.mark.parametrize(
    "other",
    [
        (LAYER.replace("Relu", "Sigmoid"), BASE[1]),
        (LAYER.replace("transB = 1", "transB = 1, alpha = 2.0"), BASE[1]),
        (LAYER.replace("[N,3]", "[N,5]"), {"w": floats(5, 4)}),
        (LAYER.replace("y = Relu(t)", "y = Add(t, t)"), BASE[1]),
        (*BASE, 3),
        (LAYER.replace("(float[N,3] y)", "(float[N,3] t)"), BASE[1]),
        (LAYER.replace("float", "float16"), {"w": floats(3, 4).astype(np.float16)}),
    ],
    ids=["operator", "attribute", "weight", "wiring", "batch", "output", "type"],
)
def test_everything_else_matters(other: Any) -> None:
    assert described(*BASE) != described(*other)


def test_the_domain_matters() -> None:
    own, theirs = (f"(float[N,4] x) => (float[N,4] y) {{ y = {op}(x) }}" for op in ("Gelu", "com.microsoft.Gelu"))
    assert described(own, {}, opset=20) != described(theirs, {}, opset=20)


def test_numbers_that_are_a_shape_matter() -> None:
    text = "(float[N,6] x) => (float[P,Q] y) { y = Reshape(x, s) }"
    one, other = (described(text, {"s": np.array(s)}) for s in ([2, 6], [6, 2]))
    assert one != other
    text = "(float[N,6] x) => (float[N,6] y) { y = Add(x, s) }"
    assert described(text, {"s": floats(6)}) == described(text, {"s": floats(6, seed=9)})


POOL = "(uint8[N,8,6,6] x) => (uint8[N,8,3,3] y) { [pool] y = MaxPool <kernel_shape = [2,2], strides = [2,2]> (x) }"


def test_pictures_come_and_go_with_the_channels_last() -> None:
    # Arrange
    graph = read(POOL)
    x = np.random.default_rng(0).integers(0, 256, (2, 8, 6, 6)).astype(np.uint8)
    # Act
    part = channels_last(graph)
    # Assert
    assert ops(part) == ["Transpose", "MaxPool", "Transpose"]
    (name,) = [tensor.name for tensor in part.inputs]
    (turned,) = execute(part, {name: np.ascontiguousarray(np.moveaxis(x, 1, -1))}, optimize=True)
    np.testing.assert_array_equal(np.moveaxis(turned, -1, 1), execute(graph, {"x": x})[0])
    assert ops(graph) == ["MaxPool"]


def test_the_runtime_drops_the_turns() -> None:
    part = channels_last(read(POOL))
    session = Session(serialize(part), threads=1, profile=True)
    session.run({part.inputs[0].name: np.zeros((2, 6, 6, 8), np.uint8)})
    assert "Transpose" not in [kernel.op for kernel in session.kernels()]
