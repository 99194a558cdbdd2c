"""A Mul that balances channels stays where it takes less time than the noise is worth that it takes away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest

from onnxq import muls
from onnxq.graph import Graph
from onnxq.memo import Memo
from onnxq.muls import without_dear_muls
from onnxq.options import Options
from onnxq.plan import BalancePlan
from onnxq.runtime import Kernel
from onnxq.search.stopwatch import Sample, Stopwatch
from onnxq.study import Study
from onnxq.trial import NOISE_WORTH, Outcome, Trials
from tests.onnx_text import floats, read
from tests.studies import recipe, study_of

if TYPE_CHECKING:
    from tests.conftest import Clock

TWO = """(float[n,5,16] x) => (float[n,5,8] y) {
    [first] a = Abs(x) [one] b = MatMul(a, w1) [second] c = Tanh(b) [two] y = MatMul(c, w2) }"""
OPTIONS = Options(memo=Memo(), batch=3)


def two() -> Graph:
    return read(TWO, {"w1": floats(16, 24), "w2": floats(24, 8)})


@pytest.fixture
def study() -> Study:
    return study_of(two(), {"x": floats(12, 5, 16, seed=7)}, recipe(), memo=Memo())


def factors(size: int, gain: float, *, multiplies: bool = True) -> BalancePlan:
    return BalancePlan(factors=np.linspace(0.5, 2, size).tolist(), multiplies=multiplies, reason="", gain=gain)


def worth(whole: Outcome, microseconds: float) -> float:
    """The gain that so much time is worth: a twentieth of all of it for the usual noise."""
    return microseconds / (NOISE_WORTH * whole.noise * 1e3 * whole.milliseconds)


def test_noise_is_worth_a_twentieth_of_the_time() -> None:
    assert pytest.approx(0.05) == NOISE_WORTH * 0.01


@pytest.mark.parametrize("microseconds", [0.5, 90.0])
def test_what_takes_longer_than_it_is_worth_goes(study: Study, clock: Clock, microseconds: float) -> None:
    clock.microseconds["float"] = microseconds
    plain = study.plan()
    least = worth(Trials(study, 3).outcome(plain), microseconds)
    assert without_dear_muls(study, plain, {"a": factors(16, 1.01 * least)}, OPTIONS).keys() == {"a"}
    assert without_dear_muls(study, plain, {"a": factors(16, 0.99 * least)}, OPTIONS) == {}
    both = {"a": factors(16, 0.99 * least), "c": factors(24, 1.01 * least)}
    assert without_dear_muls(study, plain, both, OPTIONS) == {"c": both["c"]}


def never(*_: object, **__: object) -> None:
    raise AssertionError("There is nothing to measure.")


def test_factors_that_cost_no_time_stay_unmeasured(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muls, "Trials", never)
    monkeypatch.setattr("onnxq.search.stopwatch.take_turns", never)
    for balance in ({}, {"b": factors(24, 0.0, multiplies=False)}):
        found = without_dear_muls(study, study.plan(), balance, OPTIONS)
        assert found == balance
        assert found is not balance


def test_beside_a_mul_factors_that_cost_no_time_stay(study: Study, clock: Clock) -> None:
    clock.microseconds["float"] = 1e9
    balance = {"a": factors(16, 1.0), "b": factors(24, 0.0, multiplies=False)}
    assert without_dear_muls(study, study.plan(), balance, OPTIONS) == {"b": balance["b"]}


def test_the_mul_alone_is_timed_on_values_of_the_model(
    study: Study, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Sample] = []

    def watched(samples: Mapping[str, Sequence[Sample]], watch: Stopwatch) -> dict[str, list[list[Kernel]]]:
        seen.extend(sample for some in samples.values() for sample in some)
        return clock.take_turns(samples, watch)

    monkeypatch.setattr(muls, "Stopwatch", partial(Stopwatch, timer=watched))
    without_dear_muls(study, study.plan(), {"a": factors(16, 1.0), "c": factors(24, 1.0)}, OPTIONS)
    assert [[node.op for node in sample.part.nodes] for sample in seen] == [["Mul"], ["Mul"]]
    first, second = (next(iter(sample.feeds.values())) for sample in seen)
    np.testing.assert_array_equal(first, np.abs(floats(12, 5, 16, seed=7)[:3]))
    assert second.shape == (3, 5, 24)
