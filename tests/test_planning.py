"""Plans from bold to cautious, remembered measurements, and replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxq
from onnxq import Options, Recipe, planning
from onnxq.memo import Memo
from onnxq.plan import Plan, Treatment
from onnxq.search.cost import Boundary, Costs
from onnxq.search.forms import Forms
from onnxq.search.switches import Shares

MODELS = Path(__file__).parents[1] / "models"
DIGITS = {"model": MODELS / "digits.onnx", "data": MODELS / "digits_calibration.npz"}
PRICES = {"static": 1.0, "dynamic": 1.5, "float": 3.0}


def priced(prices: dict[str, float]) -> Any:
    """Made-up costs: the same for every layer, nothing for what lies between."""

    def costs(graph: Any, plans: Any, names: Any, feeds: Any, target: Any, watch: Any) -> Costs:
        tensors = plans["static"].tensors
        return Costs(layers={name: dict(prices) for name in names}, boundary={name: Boundary() for name in tensors})

    return costs


@pytest.fixture
def cheap_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "measure_costs", priced(PRICES))
    monkeypatch.setattr(planning, "worth_it", lambda *_, **__: [])


def plans(memo: Memo, recipe: Recipe | None = None) -> list[Plan]:
    """The plans of the digits model."""
    from onnxq.build import Build
    from onnxq.calibration.data import open_data
    from onnxq.modelfile import load

    graph = load(DIGITS["model"])
    build = Build(graph.copy(), recipe or Recipe(), "mixed-int8")
    data = open_data(DIGITS["data"], graph.interface().inputs).take(slice(0, 64))
    return planning.plan_model(build, None, data, [], Options(memo=memo))


def floats(plan: Plan) -> set[str]:
    return {name for name, node in plan.nodes.items() if node.op == "Conv" and node.treatment is Treatment.FLOAT}


@pytest.mark.usefixtures("cheap_integers")
def test_plans_grow_more_cautious(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Forms.shares

    def louder(*args: Any, **more: Any) -> Shares:
        found = honest(*args, **more)
        return Shares({k: {o: 1000 * noise for o, noise in v.items()} for k, v in found.alone.items()}, found.together)

    monkeypatch.setattr(Forms, "shares", louder)
    found = plans(Memo())
    assert len(found) > 1
    noises = [plan.noise for plan in found if plan.noise is not None]
    assert len(noises) == len(found)
    assert noises == sorted(noises, reverse=True)
    assert len(floats(found[-1])) > len(floats(found[0]))


def test_what_is_slow_on_integers_stays_in_float(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "measure_costs", priced({"static": 3.0, "dynamic": 4.0, "float": 1.0}))
    monkeypatch.setattr(planning, "worth_it", lambda *_, **__: [])
    (plan,) = plans(Memo())
    layers = [node for node in plan.nodes.values() if node.op in ("Conv", "Gemm")]
    assert layers
    assert all(node.treatment is Treatment.FLOAT for node in layers)


@pytest.mark.usefixtures("cheap_integers")
def test_a_search_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxq.search.rounding.better_rounding", interrupted)
        with pytest.raises(KeyboardInterrupt):
            plans(Memo(tmp_path))
    monkeypatch.setattr(planning, "find_balance", never)
    assert plans(Memo(tmp_path))


def interrupted(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("This was measured before.")


@pytest.mark.usefixtures("cheap_integers")
def test_a_finished_search_is_remembered_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = plans(Memo(tmp_path))
    for name in ("find_balance", "layer_shares", "best_ranges"):
        monkeypatch.setattr(planning, name, never)
    monkeypatch.setattr("onnxq.search.rounding.better_rounding", never)
    monkeypatch.setattr("onnxq.study.noise_meter", never)
    monkeypatch.setattr("onnxq.search.forms.Forms.shares", never)
    assert [plan.to_json() for plan in plans(Memo(tmp_path))] == [plan.to_json() for plan in first]


@pytest.mark.usefixtures("cheap_integers")
def test_a_mixed_plan_gives_the_same_bytes_without_data(tmp_path: Path) -> None:
    options = Options(seconds=0.0, check=False, memo=Memo())
    first, again = tmp_path / "first.onnx", tmp_path / "again.onnx"
    made = onnxq.optimize(DIGITS["model"], first, data=DIGITS["data"], options=options)
    assert made.mode == "mixed-int8"
    assert made.plan is not None
    assert made.plan.balance, "The model has channels to balance, so this is replayed too."
    assert any(node.rounding for node in made.plan.nodes.values()), "and integers that are not the nearest."
    onnxq.optimize(DIGITS["model"], again, plan=made.plan, options=options)
    assert first.read_bytes() == again.read_bytes()


@pytest.mark.usefixtures("cheap_integers")
def test_balance_lowers_the_noise() -> None:
    """Measured on the integer models, beside the graph as it was before its channels were rescaled."""
    noise = {}
    for balance in (True, False):
        found = plans(Memo(), Recipe(balance=balance))
        noise[balance] = min(plan.noise for plan in found[:1] if plan.noise is not None)
        assert bool(found[0].balance) is balance
    assert noise[True] < noise[False]
    assert np.isfinite(noise[True])
