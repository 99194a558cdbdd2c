"""A planted bad layer is found, and only what helps is left in float."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxq import Options, Recipe, Result, optimize
from onnxq.search.sensitivity import worst_layers

QUICK = Options(seconds=0.0)


def chain(path: Path, *, outlier: float) -> Path:
    """Four convolutions with Relu; one channel of the second's output is `outlier` times as large as the others."""
    rng = np.random.default_rng(3)
    weights = [rng.normal(0, 0.25, (8, 8, 3, 3)).astype(np.float32) for _ in range(4)]
    weights[1][0] *= outlier
    weights[2][:, 0] /= outlier
    nodes, tensors, last = [], [], "x"
    for index, values in enumerate(weights):
        tensors.append(numpy_helper.from_array(values, f"w{index}"))
        output = "y" if index == 3 else f"r{index}"
        nodes.append(helper.make_node("Conv", [last, f"w{index}"], [f"c{index}"], f"conv{index}", pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [output], f"relu{index}"))
        last = output
    shape: list[str | int | None] = ["batch", 8, 12, 12]
    infos = [helper.make_tensor_value_info(name, 1, shape) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "chain", infos[:1], infos[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def build(model: Path, least_sqnr: float) -> Result:
    x = np.random.default_rng(4).normal(size=(16, 8, 12, 12)).astype(np.float32)
    recipe = Recipe.model_validate({"mode": "static-int8", "least_sqnr": least_sqnr, "activation": {"range": "minmax"}})
    return optimize(model, model.with_name("out.onnx"), data={"x": x}, recipe=recipe, options=QUICK)


def in_float(result: Result) -> set[str]:
    assert result.plan is not None
    return {name for name, plan in result.plan.nodes.items() if plan.op == "Conv" and plan.treatment == "float"}


def sqnr(result: Result) -> float:
    assert result.proof is not None
    found = result.proof.outputs["y"].sqnr_db
    assert found is not None
    return found


def test_the_layers_around_the_planted_channel_stay_in_float(tmp_path: Path) -> None:
    model = chain(tmp_path / "model.onnx", outlier=500.0)
    before, after = build(model, 0.0), build(model, 20.0)
    assert in_float(before) == set()
    assert in_float(after) == {"conv1", "conv2"}, "the layers on either side of the tensor with the planted channel"
    assert sqnr(after) > sqnr(before) + 3
    assert after.plan is not None
    assert all("alone costs too much" in after.plan.nodes[name].reason for name in in_float(after))


def test_a_healthy_model_stays_integer(tmp_path: Path) -> None:
    assert in_float(build(chain(tmp_path / "model.onnx", outlier=1.0), 20.0)) == set()


def test_says_so_where_the_outputs_stay_noisy(tmp_path: Path) -> None:
    result = build(chain(tmp_path / "model.onnx", outlier=1.0), 90.0)
    assert any("the recipe asks for 90" in warning for warning in result.warnings)


@pytest.mark.parametrize(
    ("noise", "budget", "chosen"),
    [
        ({"a": 5.0, "b": 1.0}, 10.0, []),
        ({"a": 5.0, "b": 1.0}, 1.0, ["a"]),
        ({"a": 5.0, "b": 4.0, "c": 3.0}, 1.0, ["a", "b"]),  # of few layers, two at most
        ({f"l{i:02}": 1.0 for i in range(30)}, 28.0, ["l00", "l01"]),
        ({f"l{i:02}": 1.0 for i in range(30)}, 1.0, ["l00", "l01", "l02"]),
    ],
)
def test_takes_the_noisiest_until_the_budget_holds(noise: dict[str, float], budget: float, chosen: list[str]) -> None:
    assert worst_layers(noise, budget) == chosen


def test_a_pattern_that_matches_nothing_is_said(tmp_path: Path) -> None:
    x = np.ones((4, 8, 12, 12), np.float32)
    wishes = {"nodes": {"/nope/*": {"quantize": False}, "conv1": {"quantize": False}}, "least_sqnr": 0}
    result = optimize(
        chain(tmp_path / "model.onnx", outlier=1.0), data={"x": x}, recipe=Recipe.model_validate(wishes), options=QUICK
    )
    assert [warning for warning in result.warnings if "matches no node" in warning] == [
        "Pattern '/nope/*' of the recipe matches no node and no operator."
    ]
    assert in_float(result) == {"conv1"}
