"""A planted bad layer is found, and only what helps is left in float."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxq import Options, Recipe, Result, optimize
from onnxq.recipe import Activation, Override
from onnxq.search.sensitivity import worst_layers
from tests.conftest import chain

QUICK = Options(seconds=0.0)


def planted(folder: Path, outlier: float) -> Path:
    """A chain in a file."""
    path = folder / "model.onnx"
    onnx.save(chain(outlier=outlier), path)
    return path


def build(model: Path, least_sqnr: float, *, balance: bool = False) -> Result:
    """The static model; without balanced channels, which would mend what is planted."""
    x = np.random.default_rng(4).normal(size=(16, 8, 12, 12)).astype(np.float32)
    recipe = Recipe(mode="static-int8", least_sqnr=least_sqnr, balance=balance, activation=Activation(range="minmax"))
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
    model = planted(tmp_path, 500.0)
    before, after = build(model, 0.0), build(model, 20.0)
    assert in_float(before) == set()
    assert in_float(after) == {"conv1", "conv2"}, "the layers on either side of the tensor with the planted channel"
    assert sqnr(after) > sqnr(before) + 3
    assert after.plan is not None
    assert all("alone costs too much" in after.plan.nodes[name].reason for name in in_float(after))


def test_where_channels_are_balanced_nothing_has_to_stay_in_float(tmp_path: Path) -> None:
    model = planted(tmp_path, 500.0)
    before, after = build(model, 0.0), build(model, 20.0, balance=True)
    assert in_float(after) == set()
    assert sqnr(after) > 20 > sqnr(before)


def test_a_healthy_model_stays_integer(tmp_path: Path) -> None:
    assert in_float(build(planted(tmp_path, 1.0), 20.0)) == set()


def test_says_so_where_the_outputs_stay_noisy(tmp_path: Path) -> None:
    result = build(planted(tmp_path, 1.0), 90.0)
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
    stay = {"/nope/*": Override(quantize=False), "conv1": Override(quantize=False)}
    recipe = Recipe(mode="static-int8", nodes=stay, least_sqnr=0)
    result = optimize(planted(tmp_path, 1.0), data={"x": x}, recipe=recipe, options=QUICK)
    assert [warning for warning in result.warnings if "matches no node" in warning] == [
        "Pattern '/nope/*' of the recipe matches no node and no operator."
    ]
    assert in_float(result) == {"conv1"}
