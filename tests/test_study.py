"""What is known of a model on the way to its plan: measured once, and again where anything it depends on differs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxq.calibration.data import open_data
from onnxq.graph import Graph
from onnxq.memo import JSON, Memo
from onnxq.passes import FOLD, QUANTIZE
from onnxq.pipeline import Context, run
from onnxq.plan import BalancePlan, Treatment
from onnxq.runtime import Timing
from onnxq.search.sensitivity import RULE_SAMPLES, SAMPLES
from onnxq.study import PATIENCE, Study, by_rule, fingerprint
from tests.onnx_text import EVERYTHING, execute, floats, read
from tests.studies import study_of

TWO = """(float[n,8] x) => (float[n,6] y) {
    [one] a = MatMul(x, w1) [add] b = Add(a, b1) [act] r = Relu(b) [two] y = Gemm(r, w2) }"""
X = floats(16, 8, seed=7)


def two(seed: int = 3) -> Graph:
    return read(TWO, {"w1": floats(8, 12, seed=seed), "b1": floats(12), "w2": floats(12, 6)})


def study(memo: Memo | None = None, **more: Any) -> Study:
    return study_of(two(), {"x": X}, memo=memo, **more)


def counted(value: JSON = 1.5) -> tuple[Callable[[], JSON], list[int]]:
    """A measurement, and a list that grows with each time that it is made."""
    times: list[int] = []

    def measure() -> JSON:
        times.append(1)
        return value

    return measure, times


# remembered


@pytest.mark.parametrize("value", [1.5, [1, 2], {"a": 0.0}, 0.0, {}, []])
def test_what_was_measured_is_not_measured_again(tmp_path: Path, value: JSON) -> None:
    measure, times = counted(value)
    first = study(Memo(tmp_path))
    for each in (first, first, study(Memo(tmp_path))):
        assert each.recall("kind", {"a": [1, 2]}, measure) == value
    assert len(times) == 1


def test_something_else_is_measured_anew() -> None:
    measure, times = counted()
    memo = Memo()
    one, changed = study(memo), study(memo)
    changed.key = {**changed.key, "threads": 9}
    other = study_of(two(seed=4), {"x": X}, memo=memo)
    other.key = one.key
    for each, kind, what in (
        (one, "kind", 1),
        (one, "other", 1),
        (one, "kind", 2),
        (changed, "kind", 1),
        (other, "kind", 1),
    ):
        each.recall(kind, what, measure)
    assert len(times) == 5


def test_a_measurement_that_is_interrupted_is_not_remembered(tmp_path: Path) -> None:
    def interrupted() -> JSON:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study(Memo(tmp_path)).recall("kind", 1, interrupted)
    measure, times = counted()
    assert study(Memo(tmp_path)).recall("kind", 1, measure) == 1.5
    assert len(times) == 1


def test_other_data_has_another_fingerprint(tmp_path: Path) -> None:
    """Though it lies in the same place and is as much: other values, other labels, or none."""
    inputs, path, found = two().interface().inputs, tmp_path / "data.npz", []
    later = X.copy()
    later[-1] *= 2
    labels = np.arange(16)
    for x, more in ((X, {}), (X, {}), (later, {}), (X, {"labels": labels}), (X, {"labels": labels[::-1]})):
        np.savez(path, x=x, **more)
        data = open_data(path, inputs)
        found.append(str(fingerprint(data, study_of(two(), data).statistics)))
    assert found[0] == found[1]
    assert len(set(found)) == 4


# samples


@pytest.mark.parametrize("mode", ["static-int8", "dynamic-int8", "weight-int8"])
def test_searches_that_end_alike_everywhere_look_at_a_fixed_number_of_samples(
    monkeypatch: pytest.MonkeyPatch, mode: Any
) -> None:
    def never(*_: object) -> float:
        raise AssertionError("The speed of this machine decides nothing.")

    monkeypatch.setattr(Study, "_pace", never)
    assert [study(mode=mode).affordable(runs) for runs in (0, 1, 100, 10**6)] == [SAMPLES] * 4


@pytest.mark.parametrize("pace", [2.0**-16, 2.0**-8, 1.0])
def test_where_a_run_takes_long_fewer_samples_are_looked_at(monkeypatch: pytest.MonkeyPatch, pace: float) -> None:
    """As many as take `PATIENCE` together, from 8 to 64."""
    monkeypatch.setattr(Study, "_pace", lambda _: pace)
    found = [study().affordable(runs) for runs in (0, 1, 40, 1000, 10**6)]
    assert found == sorted(found, reverse=True)
    assert (SAMPLES, RULE_SAMPLES) == (8, 64)
    for runs, samples in zip((0, 1, 40, 1000, 10**6), found, strict=True):
        wanted = PATIENCE / (max(runs, 1) * pace)
        assert samples == (64 if wanted >= 64 else 8 if wanted <= 8 else int(wanted))
    assert (found[0], found[-1]) == ((64, 8) if pace < 0.1 else (8, 8))


def test_what_decides_may_look_at_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Study, "_pace", lambda _: 2.0**-10)
    assert [study().affordable(1, most) for most in (64, 96)] == [64, 96]
    assert study(mode="static-int8").affordable(1, 96) == SAMPLES


def test_the_pace_is_found_once_and_coarsely(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a machine that is busy for a while decides as it did before."""
    times = [3.0, 1000.0]
    monkeypatch.setattr("onnxq.study.interleave", lambda sessions, feeds, **_: [Timing(times.pop(0), 1.0)])
    memo = Memo()
    assert [study(memo).affordable(100), study(memo).affordable(100)] == [int(PATIENCE / (100 * 2.0**-8))] * 2
    assert study(Memo()).affordable(100) == 8


# plans


def test_plans_carry_what_was_chosen() -> None:
    found = study()
    found.rewrites, found.opset = ["FuseNorms"], 20
    found.balance = {"x": BalancePlan(factors=[1.0] * 8, multiplies=False, reason="")}
    found.chosen = {"r": (0.0, 5.0, "the best")}
    found.rounding = {"one": "some", "two": "more"}
    plan = found.plan()
    assert (plan.rewrites, plan.opset, plan.balance) == (["FuseNorms"], 20, found.balance)
    assert (plan.tensors["r"].low, plan.tensors["r"].high) == (0.0, 5.0)
    assert plan.tensors["x"].reason == "Range by minmax."
    assert [plan.nodes[name].rounding for name in ("one", "two")] == ["some", "more"]


def test_only_static_layers_keep_their_rounding() -> None:
    found = study()
    found.rounding = {"one": "some", "two": "more", "gone": "nobody's"}
    spared = found.placement.nodes["two"].model_copy(update={"treatment": Treatment.DYNAMIC})
    found.placement.nodes["two"] = spared
    assert {name: node.rounding for name, node in found.plan().nodes.items() if node.rounding} == {"one": "some"}


def test_a_plan_by_another_rule() -> None:
    found = study()
    assert found.plan("mse").tensors["x"].reason == "Range by mse."
    assert found.plan("mse").recipe == by_rule(found.recipe, "mse")
    assert found.recipe.activation.range == "minmax"


def test_noise_is_measured_once_beside_the_graph_as_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    found = study()
    plan = found.plan()
    quantized = run([*QUANTIZE, *FOLD], found.build.graph, Context(found.build.context.target, plan), EVERYTHING).graph
    louder = read(TWO, {"w1": 2 * floats(8, 12), "b1": floats(12), "w2": floats(12, 6)})
    for original in (None, louder):
        found.original = original
        found.key = {**found.key, "original": original is None}
        want, have = (execute(graph, {"x": X})[0].astype(np.float64) for graph in (original or two(), quantized))
        expected = ((want - have) ** 2).sum() / (want**2).sum()
        assert found.meter(16)(plan) == pytest.approx(expected, rel=1e-6)
    monkeypatch.setattr("onnxq.study.noise_meter", None)
    assert found.meter(16)(plan) == pytest.approx(expected, rel=1e-6)


def test_the_graph_as_it_came_is_the_one_before_rewrites_and_factors() -> None:
    found, original, plain = study(), two(), two()
    assert found.before is found.unchanged is found.build.graph
    found.original = original
    assert found.before is found.unchanged is original
    found.plain = plain
    assert (found.before, found.unchanged) == (original, plain)
