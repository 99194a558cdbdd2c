"""What no stage may break is seen, and what is sound is not reported."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import helper, numpy_helper, parser

from onnxq.graph import Constant, Graph, Node, Variable, from_model
from onnxq.spec import broken, has_integer_operators, has_qdq

TEXT = """
<ir_version: 7, opset_import: ["" : 13]>
g (float[2] x, bool c) => (float[2] y, float[2] z)
<float[2] w = {1, 2}, float[2] v = {3, 4}>
{
  t = Add(x, w)
  y = Relu(t)
  z = If(c) <
    then_branch = yes () => (float[2] a) { a = Neg(t) },
    else_branch = no () => (float[2] b) { b = Add(x, v) }
  >
}
"""


def sound() -> Graph:
    """Add, Relu, and an If that captures a tensor and a weight."""
    return from_model(parser.parse_model(TEXT))


def same_node_name(graph: Graph) -> None:
    graph.nodes[1].name = graph.nodes[0].name


def wrong_order(graph: Graph) -> None:
    graph.nodes.reverse()


def made_by_nobody(graph: Graph) -> None:
    graph.nodes[1].inputs[0] = Variable("ghost")


def captured_by_a_body_and_gone(graph: Graph) -> None:
    graph.nodes[0].outputs[0] = graph.nodes[1].inputs[0] = Variable("renamed")


def made_twice(graph: Graph) -> None:
    graph.nodes.insert(1, Node("Neg", "second", {}, [graph.inputs[0]], [Variable("t")]))


def node_makes_an_input(graph: Graph) -> None:
    graph.nodes.insert(0, Node("Neg", "second", {}, [graph.inputs[0]], [Variable("x")]))


def node_makes_a_weight(graph: Graph) -> None:
    graph.nodes.insert(0, Node("Neg", "second", {}, [graph.inputs[0]], [Variable("w")]))


def two_weights_of_a_name(graph: Graph) -> None:
    graph.nodes[1].inputs[0] = Constant("w", np.zeros(2, np.float32))


def output_lost(graph: Graph) -> None:
    del graph.nodes[1]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (same_node_name, "two nodes are called 'Add_0'"),
        (wrong_order, "node 'If_2' reads 't' before it is made"),
        (made_by_nobody, "node 'Relu_1' reads 'ghost' before it is made"),
        (captured_by_a_body_and_gone, "node 'If_2' reads 't' before it is made"),
        (made_twice, "tensor 't' is made twice"),
        (node_makes_an_input, "tensor 'x' is made twice"),
        (node_makes_a_weight, "tensor 'w' is made twice"),
        (two_weights_of_a_name, "two weights are called 'w'"),
        (output_lost, "output 'y' is lost"),
    ],
)
def test_what_is_broken_is_said(damage: Callable[[Graph], None], sentence: str) -> None:
    graph = sound()
    damage(graph)
    assert broken(graph) == sentence


def test_a_sound_graph_is_not_reported() -> None:
    assert broken(sound()) is None
    assert broken(sound().copy()) is None


def test_inputs_left_out_and_outputs_left_out_are_sound() -> None:
    graph = from_model(
        parser.parse_model("""
    <ir_version: 7, opset_import: ["" : 13]>
    g (float[2] x) => (float[2] y) { t, m = Dropout(x)  u, n = Dropout(t)  y = Clip(u, , ) }
    """)
    )
    graph.nodes[0].outputs[1], graph.nodes[1].outputs[1] = Variable(""), Variable("")
    assert broken(graph) is None


def test_sparse_weights_and_outputs_that_are_weights_are_sound() -> None:
    made = parser.parse_model(TEXT)
    del made.graph.initializer[0]
    values = numpy_helper.from_array(np.array([5], np.float32), "w")
    indices = numpy_helper.from_array(np.array([1], np.int64), "w_indices")
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2]))
    assert broken(from_model(made)) is None
    made = parser.parse_model(TEXT)
    made.graph.output.append(helper.make_tensor_value_info("w", 1, [2]))
    assert broken(from_model(made)) is None


@pytest.mark.parametrize(
    ("body", "qdq", "integer"),
    [
        ("y = Relu(x)", False, False),
        ("q = QuantizeLinear(x, s) y = DequantizeLinear(q, s)", True, False),
        ("q, s2, z = DynamicQuantizeLinear(x) i = MatMulInteger(q, q) y = Cast <to = 1> (i)", False, True),
    ],
)
def test_how_a_model_is_quantized_already(body: str, qdq: bool, integer: bool) -> None:
    header = '<ir_version: 7, opset_import: ["" : 13]> g (float[2, 2] x) => (float[2, 2] y) <float s = {0.5}>'
    graph = from_model(parser.parse_model(f"{header} {{ {body} }}"))
    assert (has_qdq(graph), has_integer_operators(graph)) == (qdq, integer)
