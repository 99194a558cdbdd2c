"""A model becomes a graph and a model again: nothing is lost, nothing is renamed, broken models are named."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper, parser

from onnxq.errors import ModelError, UnsupportedModel
from onnxq.graph import (
    Constant,
    Graph,
    Node,
    Variable,
    alone,
    bodies,
    evaluate,
    from_model,
    is_constant,
    read_tensor,
    reads,
    stored_value,
    to_model,
    upgrade,
    weight,
)
from onnxq.interface import TensorSpec

LINEAR = """
<ir_version: 7, opset_import: ["" : 13]>
g (float[N, 2] x) => (float[N, 3] y)
<float[2, 3] w = {1, 2, 3, 4, 5, 6}>
{
  m = MatMul(x, w)
  y = Relu(m)
}
"""

CONTROL = """
<ir_version: 7, opset_import: ["" : 13]>
g (float[2] x, bool c) => (float[2] y)
<float[2] w = {10, 20}, float[2] unread = {7, 7}, float[2] v = {3, 4}>
{
  hidden = Neg(x)
  y = If(c) <
    then_branch = yes () => (float[2] a) { a = Add(x, w) },
    else_branch = no () => (float[2] b) {
      t = Mul(x, w)
      b = If(c) <
        then_branch = inner () => (float[2] d) { d = Abs(hidden) },
        else_branch = outer () => (float[2] e) { e = Add(t, v) }
      >
    }
  >
}
"""

COUNTING = """
<ir_version: 8, opset_import: ["" : 16]>
g (float[2] x, int64 n) => (float[2] y)
<float[2] step = {1, 2}, bool go = {1}>
{
  start = Relu(x)
  y = Loop(n, go, start) <body = b (int64 i, bool more, float[2] before) => (bool again, float[2] after) {
    again = Identity(more)
    after = Add(before, step)
  }>
}
"""


def model(text: str) -> ModelProto:
    """A model from ONNX text."""
    return parser.parse_model(text)


def chain(length: int) -> ModelProto:
    """x -> Neg -> Relu -> Neg ... -> y."""
    names = ["x", *(f"t{i}" for i in range(length - 1)), "y"]
    nodes = [helper.make_node("Relu" if i % 2 else "Neg", [names[i]], [names[i + 1]]) for i in range(length)]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    return helper.make_model(helper.make_graph(nodes, "chain", [x], [y]), opset_imports=[helper.make_opsetid("", 13)])


def run(made: ModelProto, **feeds: Any) -> Any:
    """The first output, without the runtime's own rewrites."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(made.SerializeToString(), options).run(None, feeds)[0]


def again(made: ModelProto) -> ModelProto:
    """Through the graph, with everything that a pipeline does to it between passes."""
    graph = from_model(made).copy()
    graph.tidy()
    return to_model(graph)


def by_name(items: Any) -> dict[str, bytes]:
    return {item.name: item.SerializeToString(deterministic=True) for item in items}


# --- round trip ---


@pytest.mark.parametrize("code", [c for n, c in TensorProto.DataType.items() if n not in ("UNDEFINED", "STRING")])
def test_weights_of_every_type_keep_their_bytes(code: int) -> None:
    # Arrange
    dtype = helper.tensor_dtype_to_np_dtype(code)
    stored = numpy_helper.from_array(np.ones((3, 3), dtype), "w")
    made = weighted(stored)
    # Act and assert
    assert by_name(again(made).graph.initializer) == {"w": stored.SerializeToString(deterministic=True)}
    read = weight(from_model(made).outputs[0].inputs[0].inputs[0])
    assert read.dtype == dtype
    assert read.shape == (3, 3)


def weighted(stored: TensorProto) -> ModelProto:
    """Identity(w) => y."""
    info = helper.make_tensor_value_info("y", stored.data_type, list(stored.dims))
    body = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [info], [stored])
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 21)])


def test_string_tensors_are_carried_through() -> None:
    stored = numpy_helper.from_array(np.array(["a", "βγ"], object), "w")
    made = again(weighted(stored))
    assert list(made.graph.initializer[0].string_data) == [b"a", "βγ".encode()]
    assert from_model(made).weights()[0]._values.nbytes == 5
    assert run(made).tolist() == ["a", "βγ"]


def test_weights_in_typed_fields_are_read_as_they_are() -> None:
    stored = helper.make_tensor("w", TensorProto.BFLOAT16, [3], [1.0, -2.0, 0.5])
    assert not stored.HasField("raw_data")
    graph = from_model(weighted(stored))
    assert weight(graph.weights()[0]).astype(np.float32).tolist() == [1.0, -2.0, 0.5]


@pytest.mark.parametrize(
    "attribute",
    [
        helper.make_attribute("a", 0.1),
        helper.make_attribute("a", 7),
        helper.make_attribute("a", 1.0),
        helper.make_attribute("a", "text"),
        helper.make_attribute("a", b"\xff\xfe"),
        helper.make_attribute("a", [0.1, 2.0]),
        helper.make_attribute("a", [1.0, 2.0]),
        helper.make_attribute("a", [1, 2]),
        helper.make_attribute("a", ["s", "t"]),
        helper.make_attribute("a", [b"\xff", b"t"]),
        AttributeProto(name="a", type=AttributeProto.INTS),
        AttributeProto(name="a", type=AttributeProto.FLOATS),
        AttributeProto(name="a", type=AttributeProto.STRINGS),
        AttributeProto(name="a", type=AttributeProto.STRING, s=b""),
        helper.make_attribute("a", numpy_helper.from_array(np.ones(2, np.float16), "t")),
        helper.make_attribute("a", helper.make_tensor_type_proto(1, [2])),
    ],
    ids=lambda attribute: AttributeProto.AttributeType.Name(attribute.type),
)
def test_attributes_of_every_type_keep_their_bytes(attribute: AttributeProto) -> None:
    made = model(LINEAR)
    made.graph.node[0].attribute.append(attribute)
    found = again(made).graph.node[0].attribute
    assert [item.SerializeToString(deterministic=True) for item in found] == [
        attribute.SerializeToString(deterministic=True)
    ]


def test_outputs_do_not_change() -> None:
    x = np.array([[1, -2], [0.5, 3]], np.float32)
    np.testing.assert_array_equal(run(again(model(LINEAR)), x=x), run(model(LINEAR), x=x))


def test_what_surrounds_the_graph_is_kept() -> None:
    # Arrange
    made = model(LINEAR)
    made.producer_name, made.doc_string, made.domain, made.model_version = "somebody", "a model", "org.example", 42
    made.metadata_props.add(key="labels", value="cat,dog")
    made.graph.doc_string = "a graph"
    made.graph.metadata_props.add(key="k", value="v")
    made.graph.value_info.append(helper.make_tensor_value_info("m", TensorProto.FLOAT, ["N", 3]))
    node = made.graph.node[0]
    node.doc_string = "a node"
    node.metadata_props.add(key="from", value="layers.0")
    # Act
    found = again(made)
    # Assert
    for field in ("producer_name", "doc_string", "domain", "model_version"):
        assert getattr(found, field) == getattr(made, field)
    assert found.metadata_props == made.metadata_props
    assert found.graph.doc_string == "a graph"
    assert found.graph.metadata_props == made.graph.metadata_props
    assert found.graph.value_info == made.graph.value_info
    assert (found.graph.node[0].doc_string, found.graph.node[0].metadata_props) == (
        node.doc_string,
        node.metadata_props,
    )


def test_inputs_and_outputs_keep_their_declaration_and_symbolic_sizes() -> None:
    made = model(LINEAR)
    made.graph.input[0].doc_string = "pixels"
    made.graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    found = again(made)
    assert found.graph.input == made.graph.input
    assert found.graph.output == made.graph.output
    x, y = from_model(made).interface().inputs[0], from_model(made).interface().outputs[0]
    assert x == TensorSpec("x", np.dtype(np.float32), ("N", 2))
    assert y == TensorSpec("y", np.dtype(np.float32), ("N", 3))


def test_unknown_rank_unknown_size_and_other_kinds_are_told_apart() -> None:
    made = model(LINEAR)
    made.graph.input[0].type.tensor_type.ClearField("shape")
    made.graph.output[0].type.tensor_type.shape.dim[0].ClearField("dim_param")
    found = from_model(made).interface()
    assert found.inputs[0].shape is None
    assert found.outputs[0].shape == (None, 3)
    made.graph.output[0].type.CopyFrom(helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, None)))
    assert from_model(made).interface().outputs[0] == TensorSpec("y", np.dtype(object), None)


def test_functions_of_the_model_are_kept_and_still_called() -> None:
    made = model("""
    <ir_version: 10, opset_import: ["" : 13, "mine" : 1]>
    g (float[2] x) => (float[2] y) { y = mine.Twice(x) }
    <opset_import: ["" : 13], domain: "mine"> Twice (a) => (b) { b = Add(a, a) }
    """)
    made.functions[0].overload = made.graph.node[0].overload = "floats"
    found = again(made)
    assert found.functions == made.functions
    assert found.graph.node[0].overload == "floats"
    assert found.ir_version == 8
    assert run(found, x=np.array([1, 2], np.float32)).tolist() == [2, 4]


def test_functions_that_call_functions_still_run() -> None:
    found = again(
        model("""
    <ir_version: 10, opset_import: ["" : 13, "mine" : 1, "other" : 1]>
    g (float[2] x) => (float[2] y) { y = mine.Twice(x) }
    <opset_import: ["" : 13, "other" : 1], domain: "mine"> Twice (a) => (b) { t = other.Minus(a)  b = Add(t, t) }
    <opset_import: ["" : 13], domain: "other"> Minus (a) => (b) { b = Neg(a) }
    """)
    )
    assert run(found, x=np.array([1, 2], np.float32)).tolist() == [-2, -4]


def test_initializers_that_are_also_inputs_are_weights() -> None:
    # Arrange: the way of IR version 3
    made = model(LINEAR)
    made.ir_version = 3
    made.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 3]))
    graph = from_model(made)
    # Assert
    assert [tensor.name for tensor in graph.inputs] == ["x"]
    assert [spec.name for spec in graph.interface().inputs] == ["x"]
    assert is_constant(graph.nodes[0].inputs[1])
    assert [info.name for info in to_model(graph).graph.input] == ["x"]
    assert to_model(graph).ir_version >= 4


def test_sparse_weights_are_carried_through() -> None:
    made = model(LINEAR)
    del made.graph.initializer[:]
    values = numpy_helper.from_array(np.array([5, 7], np.float32), "w")
    indices = numpy_helper.from_array(np.array([1, 3], np.int64), "w_indices")
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2, 3]))
    found = again(made)
    assert found.graph.sparse_initializer == made.graph.sparse_initializer
    assert run(found, x=np.ones((1, 2), np.float32)).tolist() == [[7, 5, 0]]


def test_an_output_may_be_an_input_or_a_weight() -> None:
    made = model(LINEAR)
    made.graph.output.append(made.graph.input[0])
    made.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 3]))
    found = again(made)
    assert [info.name for info in found.graph.output] == ["y", "x", "w"]
    assert [item.name for item in found.graph.initializer] == ["w"]


def test_the_standard_domain_has_one_name() -> None:
    made = model(LINEAR)
    made.opset_import[0].domain = made.graph.node[0].domain = "ai.onnx"
    graph = from_model(made)
    assert graph.opset == 13
    assert not graph.nodes[0].domain
    onnx.checker.check_model(to_model(graph))


# --- bodies ---


@pytest.mark.parametrize("text", [CONTROL, COUNTING])
def test_bodies_are_carried_through_untouched(text: str) -> None:
    made = model(text)
    found = again(made)
    assert found.graph.node[-1].attribute == made.graph.node[-1].attribute
    assert sum(1 for node in from_model(made).nodes for _ in bodies(node)) == len(made.graph.node[-1].attribute)


@pytest.mark.parametrize("condition", [True, False])
def test_what_bodies_capture_survives(condition: bool) -> None:
    made = model(CONTROL)
    feeds = {"x": np.array([1, -2], np.float32), "c": np.array(condition)}
    graph = from_model(made)
    assert graph.captured == {"x", "hidden", "w", "v", "c"}
    assert list(graph.pinned) == ["v", "w"]
    found = again(again(made))
    assert [item.name for item in found.graph.initializer] == ["v", "w"]
    np.testing.assert_array_equal(run(found, **feeds), run(made, **feeds))


def test_loops_still_run() -> None:
    found = again(model(COUNTING))
    assert run(found, x=np.zeros(2, np.float32), n=np.array(3)).tolist() == [3, 6]


def test_captured_tensors_keep_their_name() -> None:
    graph = from_model(model(CONTROL))
    hidden = graph.tensors()["hidden"]
    assert graph.kept(hidden)
    assert not graph.kept(from_model(model(LINEAR)).tensors()["m"])


def test_nodes_stand_before_the_bodies_that_read_them() -> None:
    made = model(CONTROL)
    first = made.graph.node.pop(0)
    made.graph.node.append(first)
    assert [node.op_type for node in again(made).graph.node] == ["Neg", "If"]


def test_fresh_names_are_in_no_body() -> None:
    graph = from_model(model(CONTROL))
    assert graph.fresh("a") == "a_1"
    assert graph.fresh("d") == "d_1"
    graph = from_model(model(COUNTING))
    assert [graph.fresh(name) for name in ("i", "before", "again")] == ["i_1", "before_1", "again_1"]


def test_bodies_may_hold_sparse_weights_and_come_in_lists() -> None:
    body = model(LINEAR).graph
    values = numpy_helper.from_array(np.array([5], np.float32), "s")
    indices = numpy_helper.from_array(np.array([1], np.int64), "s_indices")
    body.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2]))
    body.node[0].input[0], body.node[1].input[0] = "s", "outside"
    node = Node("Many", "n", {"bodies": AttributeProto(name="bodies", type=AttributeProto.GRAPHS, graphs=[body, body])})
    assert list(bodies(node)) == [body, body]
    assert reads(node) == {"outside"}


def test_a_body_that_reads_what_does_not_exist_is_named() -> None:
    made = model(CONTROL)
    del made.graph.initializer[0]
    with pytest.raises(ModelError, match=r"'If_1' \(If\) reads tensor 'w', which no input, initializer or node makes"):
        from_model(made)


# --- names ---


def test_empty_and_doubled_node_names_become_unique() -> None:
    made = chain(6)
    for node, name in zip(made.graph.node, ["a", "a", "a_1", "", "", "Relu_3"], strict=True):
        node.name = name
    names = [node.name for node in from_model(made).nodes]
    assert len(set(names)) == 6
    assert [names[0], names[2], names[5]] == ["a", "a_1", "Relu_3"]
    assert all(names)
    x = np.ones(2, np.float32)
    assert run(again(made), x=x).tolist() == run(chain(6), x=x).tolist()


def test_node_names_do_not_change_from_run_to_run() -> None:
    once = from_model(chain(4))
    assert [n.name for n in once.nodes] == ["Neg_0", "Relu_1", "Neg_2", "Relu_3"]
    assert [n.name for n in from_model(to_model(once)).nodes] == [n.name for n in once.nodes]


def test_fresh_names_count_up() -> None:
    graph = from_model(model(LINEAR))
    assert [graph.fresh("w") for _ in range(3)] == ["w_1", "w_2", "w_3"]
    assert [graph.fresh("new") for _ in range(2)] == ["new", "new_1"]
    assert [graph.fresh("w_1"), graph.fresh("w")] == ["w_1_1", "w_4"]


def test_many_fresh_names_of_one_wish_take_no_quadratic_time() -> None:
    graph = from_model(model(LINEAR))
    start = time.perf_counter()
    assert len({graph.fresh("scale") for _ in range(20_000)}) == 20_000
    assert time.perf_counter() - start < 5


# --- broken models ---


def test_a_tensor_that_two_nodes_make_is_named() -> None:
    made = chain(3)
    made.graph.node[2].output[0] = "t0"
    made.graph.node[2].name = "late"
    with pytest.raises(ModelError, match=r"Tensor 't0' is made twice, the second time by node 'late' \(Neg\)"):
        from_model(made)


@pytest.mark.parametrize("name", ["x", "w"])
def test_a_node_that_makes_an_input_or_a_weight_is_named(name: str) -> None:
    made = model(LINEAR)
    made.graph.node[0].output[0] = made.graph.node[1].input[0] = name
    with pytest.raises(ModelError, match=rf"Tensor '{name}' is made twice, the second time by node '0' \(MatMul\)"):
        from_model(made)


def test_an_input_that_is_listed_twice_is_named() -> None:
    made = model(LINEAR)
    made.graph.input.append(made.graph.input[0])
    with pytest.raises(ModelError, match="Tensor 'x' is made twice, the second time by a model input"):
        from_model(made)


def test_a_weight_that_is_stored_twice_is_named() -> None:
    made = model(LINEAR)
    made.graph.initializer.append(made.graph.initializer[0])
    with pytest.raises(ModelError, match="Initializer 'w' is defined twice"):
        from_model(made)


def test_a_missing_tensor_is_named_with_its_reader() -> None:
    made = model(LINEAR)
    made.graph.node[0].name, made.graph.node[0].input[1] = "product", "nowhere"
    with pytest.raises(ModelError, match=r"Node 'product' \(MatMul\) reads tensor 'nowhere'"):
        from_model(made)


def test_an_output_that_nobody_makes_is_named() -> None:
    made = model(LINEAR)
    made.graph.output[0].name = "z"
    with pytest.raises(ModelError, match="Output 'z' is made by no node"):
        from_model(made)


def test_a_cycle_is_named_by_a_node_in_it() -> None:
    # Arrange: `early` waits for the cycle, but is no part of it
    made = model("""
    <ir_version: 7, opset_import: ["" : 13]>
    g (float[2] x) => (float[2] y) { y = Neg(b)  a = Add(x, b)  b = Relu(a) }
    """)
    for node, name in zip(made.graph.node, ["early", "sum", "cut"], strict=True):
        node.name = name
    with pytest.raises(ModelError, match=r"Node '(sum|cut)' \((Add|Relu)\) needs its own output"):
        from_model(made)


def test_a_node_that_reads_its_own_output_is_named() -> None:
    made = model(LINEAR)
    made.graph.node[1].input[0] = "y"
    with pytest.raises(ModelError, match=r"Node 'Relu_1' \(Relu\) needs its own output"):
        from_model(made)


# --- edits ---


def test_tidy_drops_what_nobody_reads_and_keeps_the_order() -> None:
    made = model(LINEAR)
    made.graph.node.append(helper.make_node("Abs", ["m"], ["unread"]))
    made.graph.node.insert(0, made.graph.node.pop(1))  # Relu before the MatMul that it reads
    graph = from_model(made)
    graph.tidy()
    assert [node.op for node in graph.nodes] == ["MatMul", "Relu"]
    assert [node.op for node in graph.tensors()["m"].outputs] == ["Relu"]


def test_tidy_keeps_the_order_of_independent_nodes() -> None:
    made = model("""
    <ir_version: 7, opset_import: ["" : 13]>
    g (float[2] x) => (float[2] a, float[2] b, float[2] c) { c = Neg(x)  a = Abs(x)  b = Relu(x) }
    """)
    assert [node.op_type for node in again(made).graph.node] == ["Neg", "Abs", "Relu"]


def test_added_nodes_move_to_where_they_can_run() -> None:
    graph = from_model(model(LINEAR))
    product = graph.tensors()["m"]
    scaled = graph.variable("scaled", np.dtype(np.float32))
    graph.redirect(product, scaled)
    graph.add("Mul", [product, graph.constant("two", np.float32(2) * np.ones(1, np.float32))], [scaled], name="mul")
    graph.tidy()
    assert [node.op for node in graph.nodes] == ["MatMul", "Mul", "Relu"]
    assert run(to_model(graph), x=np.ones((1, 2), np.float32)).tolist() == [[10, 14, 18]]


def test_optional_inputs_may_be_left_out() -> None:
    graph = from_model(model(LINEAR))
    product, clipped = graph.tensors()["m"], graph.variable("clipped")
    graph.redirect(product, clipped)
    graph.add("Clip", [product, None, graph.constant("six", np.asarray(6, np.float32))], [clipped], name="clip")
    graph.tidy()
    assert list(to_model(graph).graph.node[1].input) == ["m", "", "six"]
    assert run(to_model(graph), x=np.ones((1, 2), np.float32)).tolist() == [[5, 6, 6]]


def test_redirect_moves_all_readers_or_those_given() -> None:
    made = model("""
    <ir_version: 7, opset_import: ["" : 13]>
    g (float[2] x) => (float[2] a, float[2] b) { h = Neg(x)  a = Add(h, h)  b = Abs(h) }
    """)
    graph = from_model(made)
    h, x = graph.tensors()["h"], graph.inputs[0]
    graph.redirect(h, x, readers=[graph.nodes[1]])
    assert [t.name for t in graph.nodes[1].inputs] == ["x", "x"]
    assert [node.op for node in h.outputs] == ["Abs"]
    graph.redirect(h, x)
    assert h.outputs == []


def test_redirect_moves_every_one_of_many_readers() -> None:
    body = " ".join(f"{name} = Abs(h)" for name in "abcd")
    graph = from_model(
        model(f"""
    <ir_version: 7, opset_import: ["" : 13]>
    g (float[2] x) => (float[2] a, float[2] b, float[2] c, float[2] d) {{ h = Neg(x) {body} }}
    """)
    )
    graph.redirect(graph.tensors()["h"], graph.inputs[0])
    assert [node.inputs[0].name for node in graph.nodes] == ["x"] * 5


def test_removed_nodes_leave_no_links() -> None:
    graph = from_model(model(LINEAR))
    product, x = graph.nodes[0], graph.inputs[0]
    graph.remove(product)
    assert [node.op for node in graph.nodes] == ["Relu"]
    assert x.outputs == []
    assert graph.tensors()["m"].inputs == []


def test_a_new_domain_is_declared_once_it_is_used() -> None:
    graph = from_model(model(LINEAR))
    output = graph.outputs[0]
    graph.remove(output.inputs[0])
    graph.add("Gelu", [graph.tensors()["x"]], [output], name="gelu", domain="com.microsoft")
    assert {entry.domain: entry.version for entry in to_model(graph).opset_import} == {"": 13, "com.microsoft": 1}


def test_tensors_of_one_name_are_not_the_same_tensor() -> None:
    # onnx-graphsurgeon compares by name, and would unlink the wrong one
    assert Variable("x") != Variable("x")
    assert Constant("x", np.ones(1)) != Constant("x", np.ones(1))
    assert Node("Relu", "n") != Node("Relu", "n")
    assert len({Node("Relu", "n"), Node("Relu", "n"), Variable("x"), Variable("x")}) == 4


def test_a_copy_shares_nothing_that_a_pass_edits() -> None:
    # Arrange
    made = model(CONTROL)
    made.graph.node[0].attribute.append(helper.make_attribute("sizes", [1, 2]))
    graph = from_model(made)
    before = to_model(graph).SerializeToString(deterministic=True)
    # Act
    copy = graph.copy()
    copy.nodes[0].attrs["sizes"][0] = 99
    copy.nodes[0].op = "Abs"
    copy.pinned["w"]._values = np.zeros(2, np.float32)
    copy.remove(copy.nodes[1])
    copy.opsets["mine"] = 1
    copy.fresh("q")
    # Assert
    assert to_model(graph).SerializeToString(deterministic=True) == before
    assert graph.names["q"] == 0
    assert graph.opsets == {"": 13}
    assert graph.tensors()["hidden"].inputs[0] is graph.nodes[0]


def test_a_weight_that_a_body_and_a_node_read_stays_one() -> None:
    made = model(CONTROL)
    made.graph.node.append(helper.make_node("Add", ["hidden", "w"], ["z"]))
    made.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [2]))
    copy = from_model(made).copy()
    assert copy.pinned["w"] is next(node for node in copy.nodes if node.op == "Add").inputs[1]
    assert [tensor.name for tensor in copy.weights()] == ["w", "v"]


def test_declared_types_go_where_a_pass_changed_them() -> None:
    made = model(LINEAR)
    made.graph.value_info.append(helper.make_tensor_value_info("m", TensorProto.FLOAT, ["N", 3]))
    for change in ({"dtype": np.dtype(np.uint8)}, {"shape": ("N", 1, 3)}):
        graph = from_model(made)
        assert [info.name for info in to_model(graph).graph.value_info] == ["m"]
        for field, value in change.items():
            setattr(graph.tensors()["m"], field, value)
        assert not to_model(graph).graph.value_info


def test_annotate_fills_in_what_the_file_does_not_say() -> None:
    graph = from_model(model(LINEAR))
    float64 = np.dtype(np.float64)
    graph.annotate([TensorSpec("m", float64, ("N", 3)), TensorSpec("x", float64, (1,)), TensorSpec("w", float64, (1,))])
    tensors = graph.tensors()
    assert (tensors["m"].dtype, tensors["m"].shape) == (float64, ("N", 3))
    assert (tensors["x"].dtype, tensors["x"].shape) == (np.dtype(np.float32), ("N", 2))
    assert tensors["w"].shape == (2, 3)


def test_inner_tensors_become_outputs() -> None:
    made = to_model(from_model(model(LINEAR)), extra_outputs=["m", "y"])
    assert [info.name for info in made.graph.output] == ["y", "m"]
    session = ort.InferenceSession(made.SerializeToString())
    assert session.run(["m"], {"x": -np.ones((1, 2), np.float32)})[0].tolist() == [[-5, -7, -9]]


def test_renamed_weights_keep_their_bytes() -> None:
    graph = from_model(model(LINEAR))
    old = graph.nodes[0].inputs[1]
    assert isinstance(old, Constant)
    graph.nodes[0].inputs[1] = Constant("v", old._values)
    found = to_model(graph).graph.initializer
    assert [(item.name, numpy_helper.to_array(item).sum()) for item in found] == [("v", 21)]
    assert old._values.tensor.name == "w"


def test_reading_a_weight_does_not_keep_it() -> None:
    tensor = from_model(model(LINEAR)).nodes[0].inputs[1]
    handle = tensor._values  # type: ignore[attr-defined]
    assert weight(tensor).sum() == 21
    assert tensor._values is handle  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="Tensor 'x' is no constant"):
        weight(from_model(model(LINEAR)).inputs[0])


# --- depth, order, versions ---


def test_twenty_thousand_nodes_in_a_row_need_no_recursion() -> None:
    made = chain(20_000)
    made.graph.node.reverse()
    depth, start = sys.getrecursionlimit(), time.perf_counter()
    sys.setrecursionlimit(depth_now() + 100)
    try:
        graph = from_model(made).copy()
        graph.tidy()
        found = to_model(graph)
    finally:
        sys.setrecursionlimit(depth)
    assert time.perf_counter() - start < 20
    assert [found.graph.node[0].input[0], found.graph.node[-1].output[0]] == ["x", "y"]


def depth_now() -> int:
    """Frames on Python's stack."""
    frame, count = sys._getframe(), 0
    while frame.f_back is not None:
        frame, count = frame.f_back, count + 1
    return count


def test_a_tensor_with_twenty_thousand_readers_takes_no_quadratic_time() -> None:
    nodes = [helper.make_node("Relu", ["x"], [f"t{i}"]) for i in range(20_000)]
    nodes.append(helper.make_node("Sum", [f"t{i}" for i in range(20_000)], ["y"]))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    graph = from_model(helper.make_model(helper.make_graph(nodes, "g", [x], [y])))
    start = time.perf_counter()
    graph.redirect(graph.inputs[0], graph.variable("z"))
    graph.remove(*graph.nodes)
    assert time.perf_counter() - start < 10
    assert not graph.inputs[0].outputs


SAVE = """
import hashlib, sys
from onnxq.modelfile import load
from onnxq.graph import to_model
graph = load(sys.argv[1]).copy()
graph.tidy()
print(hashlib.sha256(to_model(graph).SerializeToString(deterministic=True)).hexdigest())
"""


def test_the_bytes_do_not_depend_on_the_process(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(model(CONTROL).SerializeToString())
    found = {
        subprocess.run(
            [sys.executable, "-c", SAVE, str(file)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


@pytest.mark.parametrize(("opset", "lowest"), [(7, 4), (13, 7), (17, 8), (21, 10)])
def test_the_ir_version_is_the_lowest_that_the_opset_allows(opset: int, lowest: int) -> None:
    made = model(LINEAR)
    made.ir_version, made.opset_import[0].version = 11, opset
    assert again(made).ir_version == lowest


def test_domains_that_nobody_uses_are_dropped_and_those_in_bodies_kept() -> None:
    made = model(CONTROL)
    made.opset_import.extend([helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("gone", 1)])
    inner = made.graph.node[1].attribute[1].g.node[1].attribute[0].g.node[0]
    inner.op_type, inner.domain = "Gelu", "com.microsoft"
    assert {entry.domain: entry.version for entry in again(made).opset_import} == {"": 13, "com.microsoft": 1}


# --- single nodes, and newer versions ---


def nodes_of(text: str) -> tuple[Graph, Sequence[Node]]:
    graph = from_model(model(text))
    return graph, graph.nodes


def test_evaluate_computes_a_node_of_constants() -> None:
    graph, (first, _) = nodes_of("""
    <ir_version: 7, opset_import: ["" : 13]>
    g (float[2] x) => (float[2] y)
    <float[2, 3] w = {1, 2, 3, 4, 5, 6}>
    { t = Transpose <perm = [1, 0]> (w)  y = MatMul(t, x) }
    """)
    found = evaluate(graph, first)
    assert found is not None
    np.testing.assert_array_equal(found[0], [[1, 4], [2, 5], [3, 6]])


@pytest.mark.parametrize("op", ["NoSuchOperator", "Gelu"])
def test_evaluate_gives_up_quietly(op: str) -> None:
    graph = from_model(model(LINEAR))
    constant = graph.nodes[0].inputs[1]
    node = graph.add(op, [constant], [graph.variable("z")], name="z", domain="com.microsoft" if op == "Gelu" else "")
    assert evaluate(graph, node) is None


def test_evaluate_does_not_warn() -> None:
    graph = from_model(model(LINEAR))
    zero = graph.constant("zero", np.zeros(2, np.float32))
    node = graph.add("Div", [zero, zero], [graph.variable("z")], name="z")
    found = evaluate(graph, node)
    assert found is not None
    assert np.isnan(found[0]).all()


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ("value = float[2] {1, 2}", [1, 2]),
        ("value_float = 1.5", 1.5),
        ("value_int = 3", 3),
        ("value_floats = [1.5, 2.5]", [1.5, 2.5]),
        ("value_ints = [1, 2]", [1, 2]),
        ('value_string = "a"', None),
    ],
)
def test_constant_nodes_hold_handles_or_arrays(attribute: str, expected: object) -> None:
    node = from_model(
        model(f"""
    <ir_version: 7, opset_import: ["" : 13]> g () => (float y) {{ y = Constant <{attribute}> () }}
    """)
    ).nodes[0]
    value = stored_value(node)
    value = value.load() if hasattr(value, "load") else value
    assert (None if value is None else value.tolist()) == expected
    assert value is None or value.dtype == (np.int64 if "int" in attribute else np.float32)


SQUEEZE = """
<ir_version: 7, opset_import: ["" : 11]>
g (float[1, 2] x, bool c) => (float[S] y)
<float[2] w = {10, 20}>
{
  s = Squeeze <axes = [0]> (x)
  y = If(c) <
    then_branch = yes () => (float[2] a) { a = Add(s, w) },
    else_branch = no () => (float[2] b) { b = Squeeze <axes = [0]> (x) }
  >
}
"""


def test_upgrade_raises_the_opset_inside_bodies_too() -> None:
    # Arrange
    made = model(SQUEEZE)
    made.metadata_props.add(key="k", value="v")
    made.graph.node[0].name = "first"
    made.graph.node[0].metadata_props.add(key="from", value="layers.0")
    before = from_model(made)
    # Act
    graph = upgrade(before, 13)
    found = to_model(graph)
    # Assert
    onnx.checker.check_model(found)
    assert (graph.opset, before.opset) == (13, 11)
    assert graph.interface() == before.interface()
    assert found.metadata_props == made.metadata_props
    first = next(node for node in found.graph.node if node.name == "first")
    assert first.metadata_props == made.graph.node[0].metadata_props
    for condition in (True, False):
        feeds = {"x": np.array([[1, 2]], np.float32), "c": np.array(condition)}
        np.testing.assert_array_equal(run(found, **feeds), run(made, **feeds))


def test_upgrade_says_why_it_cannot() -> None:
    graph = from_model(model(LINEAR))
    with pytest.raises(UnsupportedModel, match=r"opset 13 cannot be raised to 999 \(.+\)\. Export it again"):
        upgrade(graph, 999)


def test_upgrade_refuses_what_the_converter_would_drop() -> None:
    made = model("""
    <ir_version: 10, opset_import: ["" : 13, "mine" : 1]>
    g (float[2] x) => (float[2] y) { y = mine.Twice(x) }
    <opset_import: ["" : 13], domain: "mine"> Twice (a) => (b) { b = Add(a, a) }
    """)
    with pytest.raises(UnsupportedModel, match="drops functions"):
        upgrade(from_model(made), 17)
    made = model(LINEAR)
    made.graph.initializer[0].name = "dense"
    values = numpy_helper.from_array(np.array([5], np.float32), "w")
    indices = numpy_helper.from_array(np.array([1], np.int64), "w_indices")
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2, 3]))
    with pytest.raises(UnsupportedModel, match="drops functions and sparse weights"):
        upgrade(from_model(made), 17)


ALONE = """
<ir_version: 8, opset_import: ["" : 16, "com.microsoft" : 1]>
g (float[2,3,5,5] x) => (float y) { c = Conv<pads=[1,1,1,1]>(x, w, b) y = com.microsoft.Gelu(c) }
"""


def test_one_node_becomes_a_graph_that_is_fed_with_its_weight() -> None:
    made = model(ALONE)
    w, b = (np.random.default_rng(1).standard_normal(s).astype(np.float32) for s in ((4, 3, 3, 3), (4,)))
    made.graph.initializer.extend([numpy_helper.from_array(w, "w"), numpy_helper.from_array(b, "b")])
    graph = from_model(made)
    before = to_model(graph).SerializeToString()
    x = np.random.default_rng(2).standard_normal((2, 3, 5, 5)).astype(np.float32)
    conv, gelu = graph.nodes
    with_bias = run(to_model(alone(graph, conv, 3)), x=x, w=w, b=b)
    np.testing.assert_allclose(
        run(to_model(alone(graph, conv, 2)), x=x, w=w), with_bias - b.reshape(-1, 1, 1), atol=1e-5
    )
    # any number of outputs, for another weight
    np.testing.assert_array_equal(run(to_model(alone(graph, conv, 3)), x=x, w=w[:2], b=b[:2]), with_bias[:, :2])
    assert to_model(graph).SerializeToString() == before
    assert conv.outputs[0].inputs == [conv]
    with pytest.raises(AssertionError, match="Tensor 'c' has no type"):
        alone(graph, gelu, 1)


def test_read_tensor_reads_test_data_and_names_what_it_cannot_read(tmp_path: Path) -> None:
    file = tmp_path / "input_0.pb"
    file.write_bytes(numpy_helper.from_array(np.arange(3, dtype=np.int64)).SerializeToString())
    assert read_tensor(file).tolist() == [0, 1, 2]
    file.write_bytes(b"no tensor")
    with pytest.raises(ModelError, match=r"input_0\.pb' holds no readable tensor"):
        read_tensor(file)


@pytest.mark.parametrize(
    "edit",
    [
        lambda model: model.opset_import.add(domain="odd.text", version=1),
        lambda model: model.metadata_props.add(key="odd.text", value="1"),
        lambda model: model.graph.value_info.add(name="odd.text"),
        lambda model: model.functions.add(name="odd.text"),
    ],
)
def test_a_text_that_is_none_is_refused_wherever_it_stands(edit: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = Abs(x) }'
    )
    edit(model)
    damaged = onnx.ModelProto()
    damaged.ParseFromString(model.SerializeToString().replace(b"odd.text", b"odd\xfftext"))
    with pytest.raises(ModelError, match="no valid text"):
        from_model(damaged)
