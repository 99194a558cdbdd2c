"""Of the ranges that the rules propose, the one that hurts the layers behind a tensor least."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.calibration import ranges
from onnxq.calibration.collect import Seen, Statistics, collect
from onnxq.calibration.data import open_data
from onnxq.calibration.statistics import Histogram
from onnxq.graph import Graph
from onnxq.numerics.formats import UINT8
from onnxq.recipe import Recipe, make_recipe
from onnxq.search.reach import best_ranges, proposals
from tests.onnx_text import Array, floats, read

ONE = "(float[n,t,8] x) => (float[n,t,6] y) { [one] y = MatMul(x, w) }"


def rare(by: float) -> Array:
    """1600 rows of 8 numbers between -1 and 1, and one number in the first row that is farther out."""
    x = np.random.default_rng(2).uniform(-1, 1, (16, 100, 8)).astype(np.float32)
    x[0, 0, 3] = by
    return x


def best(graph: Graph, x: Array, tensors: dict[str, str] | None = None) -> dict[str, tuple[float, float, str]]:
    data = open_data({"x": x}, graph.interface().inputs)
    tensors = {"x": "x"} if tensors is None else tensors
    seen = collect(graph, sorted(set(tensors.values())), data, threads=1)
    return best_ranges(graph, tensors, seen, data, Recipe())


def test_a_rare_outlier_is_cut_where_it_matters_little() -> None:
    weights = {"w": floats(8, 6)}
    weights["w"][3] = 1e-3
    low, high, rule = best(read(ONE, weights), rare(100.0))["x"]
    assert rule.startswith("percentile")
    assert -1.1 < low < high < 1.1


def test_a_rare_outlier_is_kept_where_it_matters_much() -> None:
    """The mean squared error of the tensor alone says the same for any weight."""
    weights = {"w": np.full((8, 6), 1e-3, np.float32)}
    weights["w"][3] = floats(6) + 2
    found = best(read(ONE, weights), rare(100.0))["x"]
    assert found[1] == pytest.approx(100.0)


def test_all_readers_count_alike() -> None:
    """Noise is taken relative to the best that each reader can have, so many quiet ones outweigh a loud one."""
    x, weights = rare(1.6) + 1, {"w": np.abs(floats(8, 6)), "v": np.full((8, 6), 1e-3, np.float32)}
    weights["w"][3], weights["v"][3], weights["v"][4] = 1e-3, 1.0, -1.0
    (alone,) = best(read(ONE.replace("w)", "v)"), weights), x).values()
    many = " ".join(f"y{index} = MatMul(x, w)" for index in range(60))
    outputs = ", ".join(f"float[n,t,6] y{index}" for index in range(60))
    graph = read(f"(float[n,t,8] x) => (float[n,t,6] z, {outputs}) {{ z = MatMul(x, v) {many} }}", weights)
    (together,) = best(graph, x).values()
    assert alone[1] > 2.5
    assert together[1] < 2.1


def test_a_range_that_two_tensors_share_is_chosen_once() -> None:
    text = "(float[n,t,8] x) => (float[n,t,6] y, float[n,t,6] z) { s = Sigmoid(x) y = MatMul(x, w) z = MatMul(s, w) }"
    graph = read(text, {"w": floats(8, 6)})
    found = best(graph, rare(1.0), {"x": "x", "s": "x"})
    assert found.keys() == {"x"}
    assert best(graph, rare(1.0), {"x": "x", "s": "s"}).keys() == {"x", "s"}
    assert best(graph, rare(1.0), {"gone": "x"}) == {}
    assert best(graph, rare(1.0), {}) == {}


def test_tensors_without_statistics_keep_their_rule() -> None:
    graph = read(ONE, {"w": floats(8, 6)})
    data = open_data({"x": rare(1.0)}, graph.interface().inputs)
    seen: Statistics = {}
    assert best_ranges(graph, {"x": "x"}, seen, data, Recipe()) == {}


def test_proposals_are_what_the_rules_find() -> None:
    histogram = Histogram.of(floats(40000))
    found = proposals(histogram, Recipe())
    assert list(found) == ["mse", "minmax", "percentile 99.999", "percentile 99.99", "percentile 99.9"]
    assert found["mse"] == ranges.mse(histogram, UINT8)
    assert found["minmax"] == ranges.minmax(histogram)
    assert found["percentile 99.9"] == ranges.percentile(histogram, 99.9)
    symmetric = make_recipe({"activation": {"symmetric": True, "format": "int8"}})
    assert proposals(histogram, symmetric)["mse"] != found["mse"]


def test_the_first_of_equal_proposals_is_kept() -> None:
    few = Seen.of(np.array([0.0, 1.0], np.float32)).histogram
    found = proposals(few, Recipe())
    assert len(set(found.values())) == len(found) < 5
    assert next(iter(found)) == "mse"


def test_progress_is_told() -> None:
    graph, told = read(ONE, {"w": floats(8, 6)}), []
    data = open_data({"x": rare(1.0)}, graph.interface().inputs)
    seen = collect(graph, ["x"], data, threads=1)
    best_ranges(graph, {"x": "x"}, seen, data, Recipe(), lambda *step: told.append(step))
    assert told == [("ranges", 1, 1)]
