"""`optimize --explain`: the error of what a plan makes, whatever it did to the model before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from onnxq import Contract, Options, Plan, Recipe, Result
from onnxq.calibration.data import open_data
from onnxq.diagnosis.examination import Settings
from onnxq.diagnosis.plans import examine_plan
from onnxq.modelfile import load
from onnxq.plan import Treatment
from onnxq.recipe import Override
from tests.conftest import Command
from tests.diagnosis.quantizers import Array, chain, healthy, perceptron, pictures, planted, rows, save

STATIC = Recipe.model_validate({"mode": "static-int8", "activation": {"range": "mse"}, "least_sqnr": 0})
QUICK = Options(seconds=0, explain=True)


def explained(model: Path, x: Array, recipe: Recipe = STATIC, options: Options = QUICK) -> Result:
    return onnxq.optimize(model, data={"x": x}, recipe=recipe, options=options)


def test_the_diagnosis_is_that_of_the_written_model(tmp_path: Path) -> None:
    model, x = chain(tmp_path / "model.onnx", healthy()), pictures()
    recipe, seen = STATIC.model_copy(update={"balance": False}), {"x": x[6:]}
    result = onnxq.optimize(model, data={"x": x}, validation=seen, recipe=recipe, options=QUICK)
    assert result.output is not None
    assert result.diagnosis is not None
    assert result.proof is not None
    assert result.diagnosis == onnxq.explain(model, result.output, data=seen)
    assert result.diagnosis.findings[0].cures
    assert result.seconds["explain"] > 0
    assert Result.model_validate_json(result.model_dump_json()) == result


def test_channels_that_were_balanced(tmp_path: Path) -> None:
    model, x = planted(tmp_path / "model.onnx"), np.tile(pictures(), (4, 1, 1, 1))
    result = explained(model, x)
    assert result.plan is not None
    assert "c1" in result.plan.balance
    found = result.diagnosis
    assert found is not None
    assert (found.layers, found.notes) == (4, [])
    assert found.measured_db is not None
    assert found.measured_db > 20
    assert found.simulated_db == pytest.approx(found.measured_db, abs=0.5)


def silu(path: Path) -> Path:
    """Two layers with x * sigmoid(1.702 x) between them, in parts."""
    rng = np.random.default_rng(6)
    weights = {"w": rng.normal(0, 0.3, (16, 32)), "v": rng.normal(0, 0.3, (32, 5)), "k": np.asarray(1.702)}
    parts = [
        ("MatMul", "x w", "a"),
        ("Mul", "a k", "b"),
        ("Sigmoid", "b", "c"),
        ("Mul", "a c", "d"),
        ("MatMul", "d v", "y"),
    ]
    nodes = [onnx.helper.make_node(op, read.split(), [made], f"n_{made}") for op, read, made in parts]
    return save(path, nodes, weights, {"x": [16], "y": [5]})


def test_a_model_that_was_rewritten(tmp_path: Path) -> None:
    model, x = silu(tmp_path / "model.onnx"), rows()
    plan = explained(model, x).plan
    assert plan is not None
    kept = {name: node for name, node in plan.nodes.items() if node.op == "MatMul"}
    plan = plan.model_copy(update={"rewrites": ["FuseActivations"], "nodes": kept})
    data = open_data({"x": x}, load(model).interface().inputs)
    found = examine_plan(load(model), plan, "static-int8", data, Settings(top=1))
    assert {finding.node for finding in found.findings} == {"n_a", "n_y"}
    assert found.layers == 2
    assert found.simulated_db == pytest.approx(found.measured_db, abs=0.5)
    assert found.notes == []


def test_layers_that_were_merged(tmp_path: Path) -> None:
    """By a plan, and in a model of which nothing is known but the file."""
    model, x = perceptron(tmp_path / "model.onnx"), rows()
    plan = explained(model, x, STATIC.model_copy(update={"balance": False})).plan
    assert plan is not None
    kept = {name: node.model_copy(update={"rounding": ""}) for name, node in plan.nodes.items()}
    kept = {name: node for name, node in kept.items() if name in ("left", "last")}
    plan = plan.model_copy(update={"rewrites": ["MergeLinear"], "nodes": kept})
    result = onnxq.optimize(model, data={"x": x}, plan=plan, options=QUICK)
    assert result.output is not None
    for found in (result.diagnosis, onnxq.explain(model, result.output, data={"x": x}, top=0)):
        assert found is not None
        assert {finding.node for finding in found.findings} >= {"left", "last"}
        assert (found.layers, found.notes) == (2, [])
        assert found.simulated_db == pytest.approx(found.measured_db, abs=0.5)


def test_an_embedding_alone(tmp_path: Path) -> None:
    table, w = np.random.default_rng(1).normal(size=(2100, 8)), np.random.default_rng(2).normal(size=(8, 4))
    nodes = [
        onnx.helper.make_node("Gather", ["t", "i"], ["e"], "look"),
        onnx.helper.make_node("MatMul", ["e", "w"], ["y"], "fc"),
    ]
    weights = [onnx.numpy_helper.from_array(v.astype(np.float32), n) for n, v in (("t", table), ("w", w))]
    infos = [onnx.helper.make_tensor_value_info("i", 7, ["n"]), onnx.helper.make_tensor_value_info("y", 1, ["n", 4])]
    graph = onnx.helper.make_graph(nodes, "words", infos[:1], infos[1:], weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    recipe = Recipe.model_validate({"mode": "dynamic-int8", "nodes": {"fc": {"quantize": False}}})
    data = {"i": np.arange(50)}
    result = onnxq.optimize(model, data=data, recipe=recipe, options=QUICK)
    assert result.diagnosis is not None
    (finding,) = result.diagnosis.findings
    assert (finding.node, finding.treatment, result.diagnosis.layers) == ("look", "between", 0)


@pytest.mark.parametrize("mode", ["dynamic-int8", "weight-int8"])
def test_other_modes(tmp_path: Path, mode: str) -> None:
    result = explained(perceptron(tmp_path / "model.onnx"), rows(), Recipe.model_validate({"mode": mode}))
    assert result.diagnosis is not None
    assert {f.treatment for f in result.diagnosis.findings} == {mode.removesuffix("-int8")}


def test_the_best_model_that_was_not_written(tmp_path: Path) -> None:
    recipe = STATIC.model_copy(update={"contract": Contract(max_size=1)})
    result = explained(chain(tmp_path / "model.onnx", healthy()), pictures(), recipe)
    assert (result.status, result.output) == ("rejected", None)
    assert result.diagnosis is not None
    assert result.diagnosis.layers == 4


def spared(plan: Plan) -> Plan:
    floats = {name: node.model_copy(update={"treatment": Treatment.FLOAT}) for name, node in plan.nodes.items()}
    return plan.model_copy(update={"nodes": floats})


def test_what_cannot_be_explained_is_a_note(tmp_path: Path) -> None:
    model, x = perceptron(tmp_path / "model.onnx"), rows()
    kept = STATIC.model_copy(update={"nodes": {"*": Override(quantize=False)}})
    nothing = explained(model, x, kept)
    assert (nothing.status, nothing.diagnosis) == ("left alone", None)
    assert "Its error was not explained: no operator was quantized." in nothing.warnings
    qdq = tmp_path / "qdq.onnx"
    recipe = STATIC.model_copy(update={"format": "qdq"})
    result = onnxq.optimize(model, qdq, data={"x": x}, recipe=recipe, options=QUICK)
    assert result.diagnosis is not None
    again = explained(qdq, x)
    assert (again.status, again.diagnosis) == ("optimized", None)
    assert "Its error was not explained: no operator was quantized." in again.warnings
    assert result.plan is not None
    floats = onnxq.optimize(model, data={"x": x}, plan=spared(result.plan), options=QUICK)
    assert floats.diagnosis is None
    assert "Its error was not explained: no operator was quantized." in floats.warnings


def test_nobody_asked(tmp_path: Path) -> None:
    result = explained(perceptron(tmp_path / "model.onnx"), rows(), options=Options(seconds=0))
    assert (result.diagnosis, "explain" in result.seconds) == (None, False)


# the command


@pytest.fixture
def words(tmp_path: Path) -> list[object]:
    np.savez(tmp_path / "data.npz", x=pictures())
    static = ["--data", tmp_path / "data.npz", "--recipe", "static-int8", "--range", "mse", "--seconds", 0]
    return ["optimize", chain(tmp_path / "model.onnx", healthy()), *static, "--explain"]


def test_below_the_table_of_the_result(onnxq: Command, words: list[object]) -> None:
    done = onnxq(*words)
    assert (done.code, done.err) == (0, "")
    before, _, after = done.out.partition("\nmodel.int8.onnx: ")
    assert "optimized, static-int8" in before
    assert "dB of signal over noise at 'y'" in after
    assert "1. Conv 'conv" in after
    rejected = onnxq(*words, "--max-size", 1)
    assert rejected.code == 1
    assert "\nThe best model that was tried: " in rejected.out


def test_in_the_document(onnxq: Command, words: list[object]) -> None:
    done = onnxq(*words, "--json", "--quiet", "--no-validate")
    assert (done.code, done.err) == (0, "")
    assert done.json["diagnosis"]["layers"] == 4
    assert onnxq(*words[:-1], "--json").json["diagnosis"] is None
