"""Plans of a whole model, remembered measurements, and replay."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq import Contract, Options, Recipe, mixed, planning
from onnxq.build import Build
from onnxq.calibration.data import open_data
from onnxq.graph import from_model
from onnxq.memo import Memo
from onnxq.plan import Plan, Treatment
from onnxq.search.cost import Boundary, Costs
from tests.conftest import chain

if TYPE_CHECKING:
    from tests.conftest import Clock

SAMPLES = {"x": np.random.default_rng(5).normal(size=(64, 8, 12, 12)).astype(np.float32)}
PRICES = {"static": 1.0, "dynamic": 1.5, "8-bit weight": 2.5, "4-bit weight": 2.5, "float": 3.0}


def priced(prices: dict[str, float]) -> Any:
    """Made-up costs: the same for every layer, nothing for what lies between."""

    def costs(graph: Any, plans: Any, names: Any, feeds: Any, target: Any, watch: Any) -> Costs:
        tensors = plans["static"].tensors
        return Costs(layers={name: dict(prices) for name in names}, boundary={name: Boundary() for name in tensors})

    return costs


@pytest.fixture
def cheap_integers(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Integers cost a third of what floats do, in parts and in whole models; no rewrite pays."""
    clock.microseconds = dict(PRICES)
    monkeypatch.setattr(mixed, "measure_costs", priced(PRICES))
    monkeypatch.setattr(planning, "worth_it", lambda *_, **__: [])


def plans(memo: Memo, recipe: Recipe | None = None, outlier: float = 60.0) -> list[Plan]:
    """The plans of four convolutions, one channel of which reaches farther than the others."""
    return planned(Build(from_model(chain(outlier=outlier)), recipe or Recipe(), "mixed-int8"), memo)


def planned(build: Build, memo: Memo) -> list[Plan]:
    data = open_data(SAMPLES, build.graph.interface().inputs)
    return planning.plan_model(build, None, data, [], Options(memo=memo))


def floats(plan: Plan) -> set[str]:
    return {name for name, node in plan.nodes.items() if node.op == "Conv" and node.treatment is Treatment.FLOAT}


@pytest.mark.usefixtures("cheap_integers")
def test_plans_grow_more_cautious_where_little_noise_is_asked_for() -> None:
    """Whatever keeps the contract comes first, the fastest of it; then what does not, the most cautious first."""
    first, *_ = plans(Memo(), outlier=1.0)
    assert not floats(first)
    assert first.noise is not None
    asked = Recipe(contract=Contract(metric="sqnr", max_drop=first.noise / 3))
    cautious, *others = plans(Memo(), asked, outlier=1.0)
    assert floats(cautious)
    assert cautious.noise is not None
    assert cautious.noise <= first.noise / 3
    assert cautious.speedup is not None
    assert first.speedup is not None
    assert 1 < cautious.speedup < first.speedup
    broken = [plan.noise for plan in others if plan.noise is not None and plan.noise > first.noise / 3]
    assert broken == sorted(broken)
    assert len(broken) > 1


def test_what_is_slow_on_integers_stays_in_float(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = PRICES | {"static": 3.0, "dynamic": 4.0, "float": 1.0}
    clock.microseconds = dict(slow)
    monkeypatch.setattr(mixed, "measure_costs", priced(slow))
    monkeypatch.setattr(planning, "worth_it", lambda *_, **__: [])
    (plan,) = plans(Memo())
    layers = [node for node in plan.nodes.values() if node.op in ("Conv", "Gemm")]
    assert layers
    assert all(node.treatment is Treatment.FLOAT for node in layers)


PARTS = (
    "onnxq.planning.find_balance",
    "onnxq.planning.best_ranges",
    "onnxq.planning.refined_ranges",
    "onnxq.search.rounding.better_rounding",
    "onnxq.search.grouping.Grouping.noise",
    "onnxq.trial.Trials._measure",
)
"""What is measured, in this order."""


@pytest.mark.usefixtures("cheap_integers")
@pytest.mark.parametrize("part", [1, 3, 5])
def test_a_search_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PARTS[part], interrupted)
        with pytest.raises(KeyboardInterrupt):
            plans(Memo(tmp_path))
    for done in PARTS[:part]:
        monkeypatch.setattr(done, never)
    assert plans(Memo(tmp_path))


def interrupted(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("This was measured before.")


@pytest.mark.usefixtures("cheap_integers")
def test_a_finished_search_is_remembered_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = plans(Memo(tmp_path))
    for part in (*PARTS, "onnxq.planning.layer_shares", "onnxq.study.noise_meter", "onnxq.study.Study._pace"):
        monkeypatch.setattr(part, never)
    assert [plan.to_json() for plan in plans(Memo(tmp_path))] == [plan.to_json() for plan in first]


@pytest.mark.usefixtures("cheap_integers")
def test_a_mixed_plan_gives_the_same_bytes_without_data(tmp_path: Path) -> None:
    options = Options(check=False, memo=Memo())
    model, first, again = (tmp_path / f"{name}.onnx" for name in ("model", "first", "again"))
    onnx.save(chain(outlier=60.0), model)
    made = onnxq.optimize(model, first, data=SAMPLES, options=options)
    assert made.mode == "mixed-int8"
    assert made.plan is not None
    assert made.plan.balance, "The model has channels to balance, so this is replayed too."
    assert any(node.rounding for node in made.plan.nodes.values()), "and integers that are not the nearest."
    onnxq.optimize(model, again, plan=made.plan, options=options)
    assert first.read_bytes() == again.read_bytes()


@pytest.mark.usefixtures("cheap_integers")
def test_balance_lowers_the_noise() -> None:
    """Measured on the integer models, beside the graph as it was before its channels were rescaled."""
    static = {}
    for balance in (True, False):
        found = [plan for plan in plans(Memo(), Recipe(balance=balance)) if not floats(plan)]
        assert all(bool(plan.balance) is balance for plan in found)
        static[balance] = min(plan.noise for plan in found if plan.noise is not None)
    assert static[True] < static[False] / 20


@pytest.mark.usefixtures("cheap_integers")
def test_a_search_leaves_the_graph_as_it_was_prepared() -> None:
    """Plans are carried out on it, and rescale its channels themselves."""
    build = Build(from_model(chain(outlier=60.0)), Recipe(), "mixed-int8")
    found = planned(build, Memo())
    assert found[0].balance
    assert sorted(tensor.name for tensor in build.graph.weights()) == ["w0", "w1", "w2", "w3"]
