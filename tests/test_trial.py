"""What is measured of a plan is what its model does, and it is measured once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxq import trial
from onnxq.build import GIVEN
from onnxq.graph import Graph, to_model
from onnxq.memo import Memo
from onnxq.passes import BALANCE, FOLD, QUANTIZE
from onnxq.pipeline import Context, run
from onnxq.plan import BalancePlan, Plan
from onnxq.recipe import Contract
from onnxq.runtime import Timing
from onnxq.study import Study
from onnxq.targets import CPU
from onnxq.trial import SAMPLES, Trials
from tests.onnx_text import Array, execute, floats, read
from tests.studies import recipe, study_of

TWO = """(float[n,40] x) => (float[n,24] y, float[n,6] z) {
    [one] a = MatMul(x, w1) [add] b = Add(a, b1) y = Relu(b) [two] z = Gemm(y, w2) }"""
X = floats(24, 40, seed=7)


def two(by: float = 1.0) -> Graph:
    return read(TWO, {"w1": by * floats(40, 24), "b1": floats(24), "w2": floats(24, 6)})


def study(contract: Contract | None = None, memo: Memo | None = None, threads: int = 1, x: Array = X) -> Study:
    return study_of(two(), {"x": x}, recipe(contract), memo=memo, threads=threads)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """What was timed: the sessions and the feeds, in place of their time, which is 3 ms and twice as fast."""
    found: list[tuple[Any, Any]] = []

    def interleave(sessions: Sequence[Any], feeds: Any, **_: object) -> list[Timing]:
        found.append((sessions, feeds))
        return [Timing(6.0, 1.0), Timing(3.0, 2.0)]

    monkeypatch.setattr(trial, "interleave", interleave)
    monkeypatch.setattr(Study, "_pace", lambda _: 2.0**-10)
    return found


def built(found: Study, plan: Plan) -> Graph:
    return run((*BALANCE, *QUANTIZE, *FOLD), found.before, Context(CPU, plan), GIVEN).graph


def lost(want: Sequence[Array], have: Sequence[Array]) -> float:
    """Noise over signal at the worst output."""
    pairs = [(a.astype(np.float64), b.astype(np.float64)) for a, b in zip(want, have, strict=True)]
    return max(float(((a - b) ** 2).sum() / (a**2).sum()) for a, b in pairs)


def test_an_outcome_is_what_the_model_of_a_plan_does(timed: list[tuple[Any, Any]]) -> None:
    found = study(Contract(metric="sqnr"))
    plan = found.plan()
    outcome, model = Trials(found, 3).outcome(plan), built(found, plan)
    expected = lost(execute(two(), {"x": X}), execute(model, {"x": X}))
    assert outcome.noise == pytest.approx(expected, rel=0.02)
    assert outcome.noise > 1e-6
    assert outcome.score is not None
    assert outcome.score.metric == "sqnr"
    assert outcome.score.drop == pytest.approx(outcome.noise)
    assert outcome.bytes == to_model(model).ByteSize()
    assert (outcome.milliseconds, outcome.speedup) == (3.0, 2.0)
    ((sessions, feeds),) = timed
    np.testing.assert_array_equal(feeds["x"], X[:3])
    returned = [list(session.run({"x": X}).values()) for session in sessions]
    assert lost(execute(two(), {"x": X}), returned[0]) < 1e-12, "beside the float model"
    assert lost(returned[0], returned[1]) == pytest.approx(outcome.noise, rel=1e-6)


@pytest.mark.usefixtures("timed")
def test_it_is_held_against_the_float_model_as_it_came() -> None:
    """However it was rewritten, and whatever its channels were divided by since."""
    found = study(Contract(metric="sqnr"))
    plan = found.plan()
    found.plain = two(by=1.5)
    expected = lost(execute(found.plain, {"x": X}), execute(built(found, plan), {"x": X}))
    outcome = Trials(found, 1).outcome(plan)
    assert outcome.noise == pytest.approx(expected, rel=0.02)
    assert outcome.noise > 0.01
    assert outcome.score is not None
    assert outcome.score.drop == pytest.approx(outcome.noise)


@pytest.mark.usefixtures("timed")
def test_channels_are_balanced_by_the_plan_in_the_graph_before_that() -> None:
    """Where channels do not fit each other at all, only factors keep the noise low."""
    weights = {"w1": floats(40, 24), "b1": floats(24), "w2": floats(24, 6)}
    factors = np.ones(24, np.float32)
    factors[3] = 200.0
    weights["w1"] = weights["w1"] * factors
    weights["b1"] = weights["b1"] * factors
    weights["w2"] = weights["w2"] / factors[:, None]
    graph = read(TWO.replace("float[n,24] y, ", ""), weights)
    plain = study_of(graph, {"x": X}, recipe(balance=False))
    balance = {"b": BalancePlan(factors=factors.tolist(), multiplies=False, reason="")}
    context = Context(CPU, plain.plan().model_copy(update={"balance": balance}))
    balanced = study_of(run(BALANCE, graph, context, GIVEN).graph, {"x": X}, recipe())
    balanced.original, balanced.balance = plain.build.graph, balance
    before, after = (Trials(each, 1).outcome(each.plan()) for each in (plain, balanced))
    assert after.noise < before.noise / 1000


@pytest.mark.usefixtures("timed")
def test_a_part_of_the_data_is_looked_at() -> None:
    more = floats(SAMPLES + 30, 40, seed=8)
    more[SAMPLES:] *= 100  # nothing of which is in the noise
    found = study(Contract(metric="sqnr"), x=more)
    plan = found.plan()
    outcome, model = Trials(found, 1).outcome(plan), built(found, plan)
    x = more[:SAMPLES]
    assert outcome.score is not None
    assert outcome.score.samples == SAMPLES
    assert outcome.noise == pytest.approx(lost(execute(two(), {"x": x}), execute(model, {"x": x})), rel=0.02)


@pytest.mark.usefixtures("timed")
def test_where_a_run_takes_long_a_smaller_part_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Study, "_pace", lambda _: 2.0**-4)
    found = study(x=floats(60, 40))
    outcome = Trials(found, 1).outcome(found.plan())
    assert outcome.score is not None
    assert outcome.score.samples == 16


def test_made_up_data_is_not_judged(timed: list[tuple[Any, Any]]) -> None:
    found = study_of(two(), "random", recipe())
    outcome = Trials(found, 1).outcome(found.plan())
    assert outcome.score is None
    assert outcome.noise > 1e-6
    assert len(timed) == 1


def never(*_: object, **__: object) -> Any:
    raise AssertionError("This was measured before.")


def test_the_same_plan_is_measured_once(
    tmp_path: Path, timed: list[tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = study(memo=Memo(tmp_path))
    outcome = Trials(first, 1).outcome(first.plan())
    monkeypatch.setattr(trial, "compare_outputs", never)
    monkeypatch.setattr(Trials, "_session", never)
    for again in (first, study(memo=Memo(tmp_path))):
        assert Trials(again, 1).outcome(again.plan()) == outcome
    assert len(timed) == 1


def test_limits_of_a_contract_measure_nothing_anew(timed: list[tuple[Any, Any]]) -> None:
    memo = Memo()
    for contract in (Contract(max_drop=0.1), Contract(max_drop=0.2), Contract(max_drop=0.2, min_speedup=3, max_size=9)):
        found = study(contract, memo)
        Trials(found, 1).outcome(found.plan())
    assert len(timed) == 1
    found = study(memo=memo)
    Trials(found, 1).outcome(found.plan())
    assert len(timed) == 2, "the worst output is another one where each is held against its own limit"


def test_another_measurement_is_made_anew(timed: list[tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    memo = Memo()
    cases: list[tuple[Study, int, str]] = [(study(memo=memo), 1, "minmax"), (study(memo=memo), 2, "minmax")]
    cases += [(study(Contract(metric="sqnr"), memo), 1, "minmax"), (study(memo=memo, threads=2), 1, "minmax")]
    cases += [(study(memo=memo), 1, "mse"), (study(memo=memo, x=X[:20]), 1, "minmax")]
    for found, batch, rule in cases:
        Trials(found, batch).outcome(found.plan(rule))  # type: ignore[arg-type]
    assert len(timed) == len(cases)
    found = study(memo=memo)
    monkeypatch.setattr("onnxq.runtime.machine", lambda: "another")
    Trials(found, 1).outcome(found.plan())
    assert len(timed) == len(cases) + 1


@pytest.mark.usefixtures("timed")
def test_noise_without_bound_is_remembered_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "worst", lambda _: math.inf)
    found = study(memo=Memo(tmp_path))
    Trials(found, 1).outcome(found.plan())
    again = study(memo=Memo(tmp_path))
    monkeypatch.setattr(trial, "worst", never)
    assert Trials(again, 1).outcome(again.plan()).noise == math.inf
