"""Patterns match what their picture shows and nothing else; `apply` edits once, in order, and says why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import parser

from onnxq.graph import Graph, from_model, to_model
from onnxq.rewrite import (
    Around,
    Bind,
    Change,
    Each,
    Either,
    Match,
    Missing,
    Op,
    Pattern,
    Rule,
    apply,
    replace_output,
)
from onnxq.spec import broken

HEADER = '<ir_version: 8, opset_import: ["" : 13, "com.microsoft" : 1]>'
WEIGHTS = "<float[2] w = {1, 2}, float[2] v = {3, 4}>"


def graph_of(body: str, outputs: str = "float[2] y") -> Graph:
    """A graph of x, with the weights w and v."""
    graph = from_model(parser.parse_model(f"{HEADER} g (float[2] x, float[2] z) => ({outputs}) {WEIGHTS} {{ {body} }}"))
    for node in graph.nodes:
        node.name = node.outputs[0].name
    return graph


def match(pattern: Pattern, body: str, tensor: str = "y") -> dict[str, str] | None:
    """What a pattern binds: {name: tensor or node}."""
    found = pattern.match(graph_of(body).tensors()[tensor])
    if found is None:
        return None
    bound = {name: t.name for name, t in found.tensors.items()}
    return bound | {name: f"node {n.name}" for name, n in found.nodes.items()}


X, W = Bind("a"), Bind("b", constant=True)


# --- patterns ---


def test_bind_takes_any_tensor_or_only_weights() -> None:
    tensors = graph_of("y = Add(x, w)").tensors()
    assert Bind("a").match(tensors["x"]) is not None
    assert W.match(tensors["w"]) is not None
    assert W.match(tensors["x"]) is None
    assert W.match(tensors["y"]) is None


def test_bind_takes_no_input_that_is_left_out() -> None:
    node = graph_of("y = Clip(x, , w)").nodes[0]
    assert Bind("a").match(node.inputs[1]) is None


@pytest.mark.parametrize(
    ("pattern", "body", "expected"),
    [
        (Op("Relu", (X,)), "y = Relu(x)", {"a": "x", "Relu": "node y"}),
        (Op("Relu", (X,), name="r"), "y = Relu(x)", {"a": "x", "r": "node y"}),
        (Op("Relu", (X,)), "y = Abs(x)", None),
        (Op("LeakyRelu", (X,)), "y = Relu(x)", None),
        (Op(("Relu", "Abs"), (X,)), "y = Abs(x)", {"a": "x", "Abs": "node y"}),
        (
            Op("Relu", (Op("Add", (X, W)),)),
            "t = Add(x, w) y = Relu(t)",
            {"a": "x", "b": "w", "Relu": "node y", "Add": "node t"},
        ),
        (Op("Relu", (Op("Add", (X, W)),)), "t = Add(x, z) y = Relu(t)", None),
        (Op("Relu", (Op("Add", (X, W)),)), "y = Relu(x)", None),
        (Op("Relu"), "y = Relu(x)", {"Relu": "node y"}),
        (Op("Sum"), "y = Sum(x, z, w)", {"Sum": "node y"}),
        # domains
        (Op("Gelu", (X,), domain="com.microsoft"), "y = com.microsoft.Gelu(x)", {"a": "x", "Gelu": "node y"}),
        (Op("Gelu", (X,)), "y = com.microsoft.Gelu(x)", None),
        (Op("Relu", (X,), domain="com.microsoft"), "y = Relu(x)", None),
        # number of inputs
        (Op("Sum", (X,)), "y = Sum(x, z)", None),
        (Op("Sum", (X, Bind("c"))), "y = Sum(x)", None),
        # operands in either order
        (Op("Add", (X, W)), "y = Add(w, x)", None),
        (Op("Add", (X, W), swap=True), "y = Add(w, x)", {"a": "x", "b": "w", "Add": "node y"}),
        (Op("Add", (X, W), swap=True), "y = Add(x, w)", {"a": "x", "b": "w", "Add": "node y"}),
        (Op("Add", (X, W), swap=True), "y = Add(x, z)", None),
        (Op(("Add", "Relu"), (Op("Abs", (X,)), W), swap=True), "y = Relu(x)", None),
        (Op("Sum", (X, W, Bind("c")), swap=True), "y = Sum(w, x, z)", {"a": "x", "b": "w", "c": "z", "Sum": "node y"}),
    ],
)
def test_op(pattern: Pattern, body: str, expected: dict[str, str] | None) -> None:
    assert match(pattern, body) == expected


@pytest.mark.parametrize(
    ("body", "bound"),
    [
        ("y = Clip(x)", {}),
        ("y = Clip(x, , )", {}),
        ("y = Clip(x, w)", {"low": "w"}),
        ("y = Clip(x, , w)", {"high": "w"}),
        ("y = Clip(x, w, v)", {"low": "w", "high": "v"}),
        ("y = Clip(x, z)", None),
    ],
)
def test_optional_inputs(body: str, bound: dict[str, str] | None) -> None:
    pattern = Op("Clip", (X, Missing(Bind("low", constant=True)), Missing(Bind("high", constant=True))))
    assert match(pattern, body) == (None if bound is None else {"a": "x", "Clip": "node y", **bound})


def test_inputs_left_out_at_the_end_do_not_count() -> None:
    assert match(Op("Clip", (X,)), "y = Clip(x, , )") == {"a": "x", "Clip": "node y"}


def test_only_the_first_output_of_a_node_matches() -> None:
    body = "y, i = TopK <axis = 0> (x, k) k = Constant <value = int64[1] {1}> ()"
    for pattern in (Op("TopK"), Each("TopK", lambda index: Bind(f"i{index}")), Around("TopK", X, "top")):
        assert match(pattern, body, "y") is not None
        assert match(pattern, body, "i") is None


def test_each_binds_every_input_by_its_place() -> None:
    pattern = Each("Concat", lambda index: Op("Relu", (Bind(f"x{index}"),), name=f"r{index}"))
    body = "r = Relu(x) s = Relu(z) y = Concat <axis = 0> (r, s)"
    assert match(pattern, body) == {"x0": "x", "x1": "z", "Concat": "node y", "r0": "node r", "r1": "node s"}
    assert match(pattern, "r = Relu(x) y = Concat <axis = 0> (r, z)") is None
    assert match(pattern, "y = Relu(x)") is None


def test_either_takes_the_first_that_matches() -> None:
    pattern = Either((Op("Relu", (Op("Abs", (X,)),)), Op("Relu", (Bind("other"),))))
    assert match(pattern, "t = Abs(x) y = Relu(t)") == {"a": "x", "Abs": "node t", "Relu": "node y"}
    assert match(pattern, "t = Neg(x) y = Relu(t)") == {"other": "t", "Relu": "node y"}
    assert match(pattern, "y = Neg(x)") is None


def test_around_looks_at_the_first_input_alone() -> None:
    pattern = Around(("Clip", "Reshape"), Op("Neg", (X,)), "mover")
    assert match(pattern, "t = Neg(x) y = Clip(t, w, v)") == {"a": "x", "Neg": "node t", "mover": "node y"}
    assert match(pattern, "t = Neg(x) y = Clip(x, t)") is None
    assert match(pattern, "t = Neg(x) y = Relu(t)") is None
    assert match(Around("Constant", X, "c"), "y = Constant <value_float = 1.0> ()") is None


def test_a_match_is_read_by_name() -> None:
    found = Op("Add", (X, Missing(W))).match(graph_of("y = Add(x, w)").tensors()["y"])
    assert found is not None
    assert found["a"].name == "x"
    assert found.get("nothing") is None
    with pytest.raises(KeyError):
        found["nothing"]


# --- apply ---

RELU_OF_NEG = Op("Relu", (Op("Neg", (X,)),))
Build = Callable[[Match, Graph, Any], None]


def makes(op: str) -> Build:
    """Builds one operator of the bound tensor."""

    def build(found: Match, graph: Graph, context: Any) -> None:
        graph.add(op, [found["a"]], [found.output], name=op.lower())

    return build


def ops(graph: Graph) -> list[str]:
    assert broken(graph) is None
    return [node.op for node in graph.nodes]


def value(graph: Graph, output: int = 0) -> list[float]:
    session = ort.InferenceSession(to_model(graph).SerializeToString())
    feeds = {"x": np.array([-1, 2], np.float32), "z": np.zeros(2, np.float32)}
    found: list[float] = session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})[output].tolist()
    return found


def test_a_match_is_replaced_and_reported() -> None:
    graph = graph_of("t = Neg(x) u = Relu(t) y = Abs(u)")
    changes = list(apply((Rule("Both", RELU_OF_NEG, makes("Sign"), "Neg"),), graph, None))
    assert changes == [Change("t", "Neg", "Both", "Neg becomes Both.")]
    assert ops(graph) == ["Sign", "Abs"]
    assert value(graph) == [1, 1]


def test_the_names_of_outputs_stay() -> None:
    graph = graph_of("t = Neg(x) y = Relu(t)")
    list(apply((Rule("Both", RELU_OF_NEG, makes("Sign"), "Relu"),), graph, None))
    assert [t.name for t in graph.outputs] == ["y"]
    assert ops(graph) == ["Sign"]
    assert value(graph) == [-1, 1]


def test_inner_nodes_that_somebody_else_reads_stay() -> None:
    graph = graph_of("t = Neg(x) u = Relu(t) y = Add(u, t)")
    list(apply((Rule("Both", RELU_OF_NEG, makes("Sign"), "Relu"),), graph, None))
    assert sorted(ops(graph)) == ["Add", "Neg", "Sign"]
    assert value(graph) == [0, -1]


def test_inner_nodes_whose_output_leaves_the_model_stay() -> None:
    graph = graph_of("t = Neg(x) y = Relu(t)", "float[2] y, float[2] t")
    list(apply((Rule("Both", RELU_OF_NEG, makes("Sign"), "Relu"),), graph, None))
    assert sorted(ops(graph)) == ["Neg", "Sign"]
    assert value(graph, 1) == [1, -2]


def test_a_guard_refuses_with_its_sentence() -> None:
    graph = graph_of("t = Neg(x) y = Relu(t)")
    asked: list[str] = []

    def willing(found: Match, graph: Graph, context: Any) -> str | None:
        asked.append(f"willing {context}")
        return None

    def unwilling(found: Match, graph: Graph, context: Any) -> str | None:
        asked.append("unwilling")
        return f"'{found['a'].name}' is not for me."

    def never(found: Match, graph: Graph, context: Any) -> str | None:
        raise AssertionError("asked after a refusal")

    rule = Rule("Both", RELU_OF_NEG, makes("Sign"), "Neg", (willing, unwilling, never))
    assert list(apply((rule,), graph, "context")) == [Change("t", "Neg", "", "'x' is not for me.")]
    assert asked == ["willing context", "unwilling"]
    assert ops(graph) == ["Neg", "Relu"]


def test_a_refusal_is_forgotten_where_a_later_rule_fires() -> None:
    graph = graph_of("t = Neg(x) y = Relu(t)")
    first = Rule("First", RELU_OF_NEG, makes("Sign"), "Neg", (lambda *_: "Not so.",))
    second = Rule("Second", RELU_OF_NEG, makes("Abs"), "Neg")
    assert list(apply((first, second), graph, None)) == [Change("t", "Neg", "Second", "Neg becomes Second.")]
    assert ops(graph) == ["Abs"]


def test_earlier_rules_win() -> None:
    graph = graph_of("t = Neg(x) y = Relu(t)")
    rules = (Rule("Both", RELU_OF_NEG, makes("Sign"), "Neg"), Rule("One", Op("Relu", (X,)), makes("Abs"), "Relu"))
    assert [change.done for change in apply(rules, graph, None)] == ["Both"]
    assert ops(graph) == ["Sign"]


def test_what_a_rule_left_behind_is_no_match_for_a_later_one() -> None:
    # the inner Neg was read by the Relu alone: it is gone, and nobody may report that it was rewritten
    graph = graph_of("t = Neg(x) y = Relu(t)")
    rules = (Rule("Both", RELU_OF_NEG, makes("Sign"), "Neg"), Rule("One", Op("Neg", (X,)), makes("Abs"), "Neg"))
    assert [change.done for change in apply(rules, graph, None)] == ["Both"]
    assert ops(graph) == ["Sign"]


def test_a_rule_fires_at_every_match_in_order() -> None:
    graph = graph_of("t = Neg(x) u = Relu(t) v2 = Neg(u) y = Relu(v2)")
    changes = list(apply((Rule("Both", RELU_OF_NEG, makes("Sign"), "Relu"),), graph, None))
    assert [change.node for change in changes] == ["u", "y"]
    assert ops(graph) == ["Sign", "Sign"]


def test_what_was_replaced_is_no_part_of_the_next_match() -> None:
    graph = graph_of("t = Relu(x) u = Relu(t) y = Relu(u)")
    twice = Op("Relu", (Op("Relu", (X,), name="inner"),), name="outer")
    changes = list(apply((Rule("Twice", twice, makes("Abs"), "outer"),), graph, None))
    assert [change.node for change in changes] == ["u"]
    assert ops(graph) == ["Abs", "Relu"]


def test_nodes_that_make_nothing_are_passed_over() -> None:
    graph = graph_of("t = Neg(x) y = Relu(t)")
    graph.add("Print", [graph.inputs[0]], [], name="print", domain="mine")
    assert len(list(apply((Rule("Both", RELU_OF_NEG, makes("Sign"), "Neg"),), graph, None))) == 1


def test_replacements_may_be_several_nodes_and_weights() -> None:
    graph = graph_of("t = Neg(x) y = Relu(t)")

    def build(found: Match, graph: Graph, context: Any) -> None:
        middle = graph.variable("middle")
        graph.add("Add", [middle, graph.constant("w", np.full(2, 10, np.float32))], [found.output], name="add")
        graph.add("Abs", [found["a"]], [middle], name="abs")

    list(apply((Rule("Both", RELU_OF_NEG, build, "Relu"),), graph, None))
    assert ops(graph) == ["Abs", "Add"]
    assert value(graph) == [11, 12]


def test_nothing_happens_where_nothing_matches() -> None:
    graph = graph_of("y = Relu(x)")
    before = to_model(graph).SerializeToString(deterministic=True)
    assert list(apply((Rule("Both", RELU_OF_NEG, makes("Sign"), "Relu"),), graph, None)) == []
    assert to_model(graph).SerializeToString(deterministic=True) == before


# --- replace_output ---


def test_readers_move_to_the_new_tensor() -> None:
    graph = graph_of("t = Neg(x) u = Identity(t) y = Relu(u)")
    replace_output(graph, graph.nodes[1], graph.tensors()["t"])
    graph.tidy()
    assert ops(graph) == ["Neg", "Relu"]
    assert value(graph) == [1, 0]


def test_a_promised_name_moves_to_the_new_maker() -> None:
    graph = graph_of("t = Neg(x) y = Identity(t) u = Relu(t)", "float[2] y, float[2] u")
    replace_output(graph, graph.nodes[1], graph.tensors()["t"])
    graph.tidy()
    assert ops(graph) == ["Neg", "Relu"]
    assert [t.name for t in graph.outputs] == ["y", "u"]
    assert (value(graph, 0), value(graph, 1)) == ([1, -2], [1, 0])


@pytest.mark.parametrize(
    ("body", "outputs", "left"),
    [
        ("y = Identity(x) u = Relu(y)", "float[2] y, float[2] u", ["Identity", "Relu"]),
        ("t = Neg(x) y = Identity(t)", "float[2] y, float[2] t", ["Neg", "Identity"]),
    ],
)
def test_where_both_names_are_promised_the_node_stays(body: str, outputs: str, left: list[str]) -> None:
    graph = graph_of(body, outputs)
    node = next(node for node in graph.nodes if node.op == "Identity")
    replace_output(graph, node, node.inputs[0])
    graph.tidy()
    assert sorted(ops(graph)) == sorted(left)
    assert [t.name for t in graph.outputs] == [part.split()[1] for part in outputs.split(", ")]


def test_replacing_a_tensor_by_itself_does_nothing() -> None:
    graph = graph_of("t = Neg(x) y = Relu(t)")
    for node in graph.nodes:
        replace_output(graph, node, node.outputs[0])
    assert ops(graph) == ["Neg", "Relu"]
