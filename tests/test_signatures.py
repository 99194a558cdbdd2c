"""Nodes that ONNX does not allow are named when a model is loaded; what it allows, or does not know, is let through."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper

from onnxq.diffing import diff
from onnxq.errors import ModelError
from onnxq.inspection import summarize
from onnxq.modelfile import load


def model(node: onnx.NodeProto, version: int = 17, domain: str = "") -> onnx.ModelProto:
    """One node between an input and an output of 2 rows."""
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, None]) for name in ("x", "y")]
    graph = helper.make_graph([node], "g", infos[:1], infos[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(domain, version)], ir_version=8)


def clip(*inputs: str) -> onnx.NodeProto:
    return helper.make_node("Clip", inputs, ["y"], "cut")


def concat(axis: object, *inputs: str) -> onnx.NodeProto:
    return helper.make_node("Concat", inputs, ["y"], "join", axis=axis)


@pytest.mark.parametrize(
    ("node", "says"),
    [
        (clip(), r"Node 'cut' \(Clip\) has 0 inputs, and takes 1 to 3\. Export the model again\."),
        (clip("x", "", "", "x"), r"Node 'cut' \(Clip\) has 4 inputs, and takes 1 to 3"),
        (clip(""), r"Node 'cut' \(Clip\) lacks its input 'input'"),
        (concat(0), r"Node 'join' \(Concat\) has 0 inputs, and takes 1 or more"),
        (concat("first", "x"), r"Attribute 'axis' of node 'join' \(Concat\) is STRING, not INT\."),
        (concat([0], "x"), r"Attribute 'axis' of node 'join' \(Concat\) is INTS, not INT\."),
        (helper.make_node("Relu", ["x"], ["y", "z"]), r"Node 'y' \(Relu\) has 2 outputs, and takes 1\."),
        (
            helper.make_node("QGemm", ["x", "x"], ["y"], domain="com.microsoft"),
            r"Node 'y' \(QGemm\) has 2 inputs, and takes 6 or more",
        ),
    ],
)
def test_what_onnx_does_not_allow(node: onnx.NodeProto, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        load(model(node))


@pytest.mark.parametrize(
    "made",
    [
        lambda: model(clip("x", "", "")),
        lambda: model(concat(0, "x", "x", "x", "x")),
        lambda: model(helper.make_node("Clip", ["x"], ["y"], min=0.0), version=6),
        lambda: model(helper.make_node("Relu", ["x", "x"], ["y"], domain="of.mine"), domain="of.mine"),
        lambda: model(helper.make_node("NewInOpset99", ["x"], ["y"], axis="any")),
        lambda: model(helper.make_node("Relu", ["x", "x"], ["y"]), version=99),
    ],
)
def test_what_it_allows_or_does_not_know(made: Callable[[], onnx.ModelProto]) -> None:
    assert len(load(made()).nodes) == 1


def test_the_standard_operators_need_a_version() -> None:
    with pytest.raises(ModelError, match=r"Node 'cut' \(Clip\) is a standard operator, and the model names no opset"):
        load(model(clip("x"), domain="com.microsoft"))
    assert load(model(clip("x"), domain="ai.onnx")).opset == 17


def test_of_a_version_that_is_not_known_yet_only_what_is_too_little() -> None:
    with pytest.raises(ModelError, match=r"has 0 inputs, and takes 1 or more"):
        load(model(helper.make_node("Relu", [], ["y"]), version=99))


def test_of_two_versions_the_last_one_counts() -> None:
    made = model(helper.make_node("Clip", ["x"], ["y"], "cut", min=0.0), version=6)
    made.opset_import.append(helper.make_opsetid("ai.onnx", 17))
    made.graph.node[0].input.extend(["", ""])
    assert load(made).opset == 17
    made.opset_import.append(helper.make_opsetid("", 6))
    with pytest.raises(ModelError, match=r"has 3 inputs, and takes 1\."):
        load(made)


def test_a_type_that_was_never_written_is_let_through() -> None:
    """Files of the first IR versions leave it out."""
    node = concat(0, "x")
    node.attribute[0].ClearField("type")
    assert len(load(model(node)).nodes) == 1


def test_bodies_are_checked_too() -> None:
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    bodies = [helper.make_graph([node], name, [], [out]) for name, node in (("yes", clip("x")), ("no", clip()))]
    choice = helper.make_node("If", ["c"], ["y"], then_branch=bodies[0], else_branch=bodies[1])
    made = model(choice)
    made.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    with pytest.raises(ModelError, match=r"'cut' \(Clip\) has 0 inputs"):
        load(made)


def test_attributes_of_functions_are_referred_to_in_functions_alone() -> None:
    inner = concat(0, "a")
    inner.attribute[0].CopyFrom(AttributeProto(name="axis", type=AttributeProto.INT, ref_attr_name="axis"))
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("of.mine", 1)]
    function = helper.make_function("of.mine", "Join", ["a"], ["y"], [inner], imports, ["axis"])
    made = model(helper.make_node("Join", ["x"], ["y"], domain="of.mine", axis=0))
    made.functions.append(function)
    made.opset_import.append(imports[1])
    assert len(load(made).nodes) == 1
    made.graph.node[0].CopyFrom(inner)
    made.graph.node[0].input[0] = "x"
    with pytest.raises(ModelError, match="refers to attribute 'axis' of a function, and stands in none"):
        load(made)


def test_functions_have_opsets_of_their_own() -> None:
    function = helper.make_function("of.mine", "Cut", ["a"], ["y"], [clip("a")], [helper.make_opsetid("", 17)])
    made = model(helper.make_node("Cut", ["x"], ["y"], domain="of.mine"), domain="of.mine", version=1)
    made.functions.append(function)
    assert len(load(made).nodes) == 1
    del made.functions[0].opset_import[:]
    with pytest.raises(ModelError, match="names no opset"):
        load(made)


@pytest.mark.parametrize("op", ["QLinearConv", "DequantizeLinear", "MatMulNBits", "Conv", "Cast", "QuantizeLinear"])
def test_operators_of_other_domains_may_bear_any_name(op: str) -> None:
    """They are nobody's layer, and have as many inputs as they like."""
    made = model(helper.make_node(op, ["x", "x"], ["y"], domain="of.mine"), domain="of.mine")
    made.graph.node.insert(0, helper.make_node(op, [], ["z"], domain="of.mine"))
    made.graph.node[1].input[1] = "z"
    assert summarize(load(made)).layers == []
    assert diff(made, made).empty
