"""Histograms of the worst tensors: the same values in fewer bars, and what a range cuts off of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq import optimize
from onnxq.calibration.collect import Seen
from onnxq.calibration.statistics import Histogram, MinMax
from onnxq.distributions import FINEST, MOST, bars, outliers, tensor_range, worst_ranges
from onnxq.options import Options
from onnxq.plan import Plan, TensorPlan
from onnxq.recipe import Recipe
from tests.conftest import two_layers


def plan_of(low: float, high: float) -> TensorPlan:
    return TensorPlan(format="uint8", scale=1, zero_point=0, low=low, high=high, reason="")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40).filter(any))
def test_bars_hold_every_value_where_it_lies(values: list[float]) -> None:
    array = np.array(values, np.float32)
    start, width, counts = bars(Histogram.of(array))
    assert 1 <= len(counts) <= FINEST
    assert sum(counts) == np.count_nonzero(array)
    assert counts[0] > 0
    assert counts[-1] > 0
    assert start <= array[array != 0].min()
    assert array[array != 0].max() <= start + width * len(counts)


def test_the_share_that_is_cut_off() -> None:
    seen = Seen.of(np.arange(1, 101, dtype=np.float32).reshape(10, 10))
    assert tensor_range("t", plan_of(0, 100), seen).clipped == 0
    assert tensor_range("t", plan_of(0, 50), seen).clipped == pytest.approx(0.5)
    assert tensor_range("t", plan_of(90, 101), seen).clipped == pytest.approx(0.89, abs=0.01)


def test_outlier_channels_are_named_with_how_far_they_reach() -> None:
    x = np.ones((5, 6), np.float32)
    x[:, 4], x[:, 1] = -8, 3
    found = outliers(MinMax.of(x, axis=1))
    assert [(o.channel, o.times) for o in found] == [(4, 8.0), (1, 3.0), (0, 1.0)]
    assert outliers(MinMax.of(x)) == []
    dead = np.zeros((2, 5), np.float32)
    dead[:, 2] = 1
    assert [(o.channel, o.times) for o in outliers(MinMax.of(dead, axis=1))] == [(2, np.inf)]


def test_the_worst_tensors_come_first_and_there_are_few() -> None:
    rng = np.random.default_rng(0)
    seen = {f"t{n:02}": Seen.of(rng.standard_normal((4, 8)).astype(np.float32)) for n in range(20)}
    tensors = {name: plan_of(-4 + int(name[1:]) / 6, 4) for name in seen}
    plan = Plan(recipe=Recipe(), nodes={}, tensors={**tensors, "unseen": plan_of(0, 1)})
    found = worst_ranges(plan, None, seen)
    assert len(found) == MOST
    assert [each.clipped for each in found] == sorted((each.clipped for each in found), reverse=True)
    assert worst_ranges(None, None, seen) == []
    assert worst_ranges(plan, None, {}) == []


def test_a_result_holds_them_where_data_was_seen() -> None:
    data: Any = {"x": np.random.default_rng(1).standard_normal((24, 16)).astype(np.float32)}
    options = Options(seconds=0)
    found = optimize(two_layers(), data=data, recipe=Recipe(mode="static-int8"), options=options)
    assert found.plan is not None
    assert {each.tensor for each in found.ranges} <= set(found.plan.tensors)
    again = optimize(two_layers(), data=data, recipe=Recipe(mode="static-int8"), options=options)
    assert again.ranges == found.ranges
    for each in found.ranges:
        chosen = found.plan.tensors[each.tensor]
        assert (each.range_low, each.range_high) == (chosen.low, chosen.high)
    without = optimize(two_layers(), recipe=Recipe(mode="dynamic-int8"), options=options)
    assert without.ranges == []
