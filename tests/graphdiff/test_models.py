"""Our own models and what `optimize` makes of them, both ways; and a large graph."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxq import Options, Recipe, diff, optimize
from onnxq.graphdiff.findings import GraphDiff
from onnxq.memo import Memo
from onnxq.spec import QUANTIZED_OPERATORS
from tests.graphdiff.pairs import check_accounts, lines

MODELS = Path(__file__).parents[2] / "models"
OPTIONS = Options(check=False, samples=8, memo=Memo(None))
QUICK: dict[str, dict[str, Any]] = {
    "static-int8": {"balance": False, "weight": {"rounding": "nearest"}},
    "dynamic-int8": {},
    "weight-int4": {"weight": {"method": "rtn"}},
}
"""What is left out because it takes time and changes no graph."""


@pytest.fixture(scope="module")
def optimized(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, str], Path]:
    """Our own models, quantized without validation."""
    folder = tmp_path_factory.mktemp("optimized")

    @lru_cache
    def make(name: str, mode: str, form: str) -> Path:
        output = folder / f"{name}.{mode}.{form}.onnx"
        recipe = Recipe.model_validate({"mode": mode, "format": form, "activation": {"range": "minmax"}, **QUICK[mode]})
        data = MODELS / f"{name}_calibration.npz"
        optimize(MODELS / f"{name}.onnx", output, data=data, recipe=recipe, options=OPTIONS)
        return output

    return make


CASES = [
    ("digits", "static-int8", "integer"),
    ("digits", "static-int8", "qdq"),
    ("docstrings", "static-int8", "integer"),
    ("docstrings", "dynamic-int8", "integer"),
    ("docstrings", "weight-int4", "integer"),
]


@pytest.mark.parametrize(("name", "mode", "form"), CASES)
def test_quantized_models(optimized: Callable[[str, str, str], Path], name: str, mode: str, form: str) -> None:
    source, output = MODELS / f"{name}.onnx", optimized(name, mode, form)
    found, back = diff(source, output), diff(output, source)
    for one in (found, back):
        check_accounts(one)
        assert one.raises("precision")
        assert not one.raises("interface")
    mirrored = {"inserted": "removed", "removed": "inserted"}
    assert {mirrored.get(kind, kind): count for kind, count in found.counts.items()} == back.counts
    assert form == "qdq" or every_layer_has_its_own(found)
    assert found.counts["rewired"] == 0, lines(found)
    assert diff(output, output).empty


def every_layer_has_its_own(found: GraphDiff) -> bool:
    """Whether each integer layer stands for a float one of the same name."""
    ops = {node.name: node.op.rpartition(".")[2] for node in found.after.nodes}
    layers = [edit for edit in found.edits if edit.after and ops[edit.after[0]] in QUANTIZED_OPERATORS]
    assert layers
    return all(edit.before and edit.after[0].startswith(edit.before[0]) for edit in layers)


def test_qdq_and_its_folded_form(optimized: Callable[[str, str, str], Path]) -> None:
    found = diff(optimized("digits", "static-int8", "qdq"), optimized("digits", "static-int8", "integer"))
    check_accounts(found)
    convolutions = [line for line in lines(found) if line.endswith("-> QLinearConv") or "-> QLinearConv:" in line]
    assert len(convolutions) == sum(node.op == "QLinearConv" for node in found.after.nodes) > 5
    assert all("DequantizeLinear" in line and "Conv" in line.partition("->")[0] for line in convolutions)
    assert [found.counts[what] for what in ("inserted", "requantized", "rewired")] == [0, 0, 0]
    # the weight of the last layer is turned, and a Flatten before it hands on integers
    assert (found.counts["weights"], found.counts["retyped"]) == (1, 1)


def test_two_unrelated_models() -> None:
    found = diff(MODELS / "digits.onnx", MODELS / "docstrings.onnx")
    check_accounts(found)
    assert found.raises("interface")
    assert found.counts["kept"] < 5


def large(layers: int, *, edited: bool = False) -> onnx.ModelProto:
    """Residual blocks of ten nodes; edited, every fiftieth weight differs, and there is an Identity here and there."""
    random = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for layer in range(layers):
        scope, skip = f"/layer.{layer // 10}/block.{layer % 10}", last
        values = random.standard_normal((8, 8)).astype(np.float32)
        weights.append(numpy_helper.from_array(values * (1.01 if edited and layer % 50 == 0 else 1), f"{scope}/w"))
        for op in ("MatMul", "Relu", "Neg", "Tanh", "Abs", "Sigmoid", "Exp", "Softmax", "Sqrt"):
            read = [last, f"{scope}/w"] if op == "MatMul" else [last]
            last = f"{scope}/{op}_output"
            nodes.append(helper.make_node(op, read, [last], f"{scope}/{op}"))
        if edited and layer % 100 == 7:
            nodes.append(helper.make_node("Identity", [last], [f"{scope}/extra_output"], f"{scope}/extra"))
            last = f"{scope}/extra_output"
        nodes.append(
            helper.make_node("Add", [last, skip], [f"{scope}/out" if layer < layers - 1 else "y"], f"{scope}/Add")
        )
        last = f"{scope}/out"
    infos = [helper.make_tensor_value_info(name, 1, [4, 8]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "large", infos[:1], infos[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_ten_thousand_nodes() -> None:
    began = time.process_time()
    found = diff(large(1000), large(1000, edited=True))
    assert time.process_time() - began < 40
    check_accounts(found)
    assert found.counts["kept"] == 10_000 - 20
    assert {line.partition(" /")[0] for line in lines(found)} == {"changed MatMul: weights", "inserted Identity"}
    assert (found.counts["changed"], found.counts["inserted"]) == (20, 10)


def test_a_model_that_the_runtime_does_not_know() -> None:
    node = helper.make_node("Odd", ["x"], ["y"], domain="some.where", strength=3)
    infos = [helper.make_tensor_value_info(name, 1, [4]) for name in ("x", "y")]
    graph = helper.make_graph([node], "odd", infos[:1], infos[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("some.where", 1)], ir_version=8)
    assert diff(model, model).empty
    other = onnx.ModelProto()
    other.CopyFrom(model)
    other.graph.node[0].attribute[0].i = 4
    assert lines(diff(model, other)) == ["changed some.where.Odd: attributes strength"]


def test_sparse_weights_and_functions_count() -> None:
    infos = [helper.make_tensor_value_info(name, 1, [4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Twice", ["x", "s"], ["y"], domain="own")], "g", infos[:1], infos[1:])
    body = [helper.make_node("Add", ["a", "b"], ["c"])]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    function = helper.make_function("own", "Twice", ["a", "b"], ["c"], body, opsets)
    values = helper.make_tensor("s", 1, [1], [2.0])
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, helper.make_tensor("i", 7, [1], [1]), [4]))
    model = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=8)
    assert diff(model, model).empty
    heavier, other = onnx.ModelProto(), onnx.ModelProto()
    heavier.CopyFrom(model)
    heavier.graph.sparse_initializer[0].values.float_data[0] = 3.0
    assert lines(diff(model, heavier)) == ["changed own.Twice: weights s"]
    other.CopyFrom(model)
    other.functions[0].node[0].op_type = "Mul"
    (change,) = diff(model, other).interface
    assert (change.what, change.name) == ("metadata", "function own.Twice")


def test_a_long_chain_of_constants() -> None:
    def chain(length: int) -> onnx.ModelProto:
        nodes = [helper.make_node("Neg", ["w" if i == 0 else f"t{i}"], [f"t{i + 1}"], f"n{i}") for i in range(length)]
        nodes.append(helper.make_node("MatMul", ["x", f"t{length}"], ["y"], "product"))
        infos = [helper.make_tensor_value_info(name, 1, [4, 4]) for name in ("x", "y")]
        weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
        graph = helper.make_graph(nodes, "chain", infos[:1], infos[1:], [weight])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    assert diff(chain(3000), chain(3000)).empty
    found = diff(chain(3000), chain(2999))
    check_accounts(found)
    assert not found.empty
