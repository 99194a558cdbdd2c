"""Ranges are chosen by what whole models lose: beside models that are built with every range that is proposed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest

from onnxq.calibration.collect import Statistics, collect
from onnxq.calibration.data import Data, open_data
from onnxq.decision import Range, decide
from onnxq.graph import Graph
from onnxq.passes import FOLD, QUANTIZE
from onnxq.pipeline import Context, run
from onnxq.placement import Placement, place
from onnxq.recipe import make_recipe
from onnxq.search import refine
from onnxq.search.forms import Forms
from onnxq.search.grouping import Grouping
from onnxq.search.reach import proposals
from onnxq.search.refine import refined_ranges
from onnxq.targets import CPU
from tests.onnx_text import EVERYTHING, Array, execute, floats, read

RECIPE = make_recipe({"activation": {"range": "minmax"}})
CONVS = """(float[n,8,6,6] x) => (float[n,8,6,6] y) {
    [one] a = Conv(x, w1, k) [act] r = Relu(a) [two] b = Conv(r, w2, k) [end] y = Tanh(b) }"""


def convs(text: str = CONVS, far_out: float = 0.0) -> Graph:
    """With something far out in the second weight, for a channel that is always 0."""
    w1, w2, k = floats(8, 8, 1, 1, seed=1) / 3, floats(8, 8, 1, 1) / 9, floats(8, seed=9)
    w1[0], k[0], w2[:, 0] = 0, -1, far_out
    return read(text, {"w1": w1, "w2": w2, "k": k})


def tailed(shape: tuple[int, ...]) -> Array:
    """A few values that are far out: whether they are cut off makes a difference."""
    values = floats(*shape, seed=7)
    return np.asarray(values * np.where(np.abs(values) > 2.5, 3, 1), np.float32)


@dataclass(frozen=True)
class Case:
    """A model with its statistics, and ranges that differ from minmax."""

    graph: Graph
    chosen: Mapping[str, Range]

    @cached_property
    def data(self) -> Data:
        (tensor,) = self.graph.inputs
        shape = tuple(size if isinstance(size, int) else 16 for size in tensor.shape or ())
        return open_data({tensor.name: tailed(shape)}, self.graph.interface().inputs)

    @cached_property
    def placement(self) -> Placement:
        return place(self.graph, CPU, RECIPE)

    @cached_property
    def statistics(self) -> Statistics:
        return collect(self.graph, sorted(set(self.placement.tensors.values())), self.data, threads=1)

    def grouping(self) -> Grouping:
        plan = decide(self.placement, self.statistics, RECIPE, CPU, self.chosen)
        return Grouping(Forms(self.graph, CPU, plan))

    def refined(self, *without: str) -> dict[str, Range]:
        sources = {tensor: source for tensor, source in self.placement.tensors.items() if source not in without}
        return refined_ranges(self.grouping(), sources, self.statistics, self.data, (8, 16))

    def noise(self, more: Mapping[str, Range]) -> float:
        """Noise over signal of the model with other ranges."""
        plan = decide(self.placement, self.statistics, RECIPE, CPU, {**self.chosen, **more})
        quantized = run([*QUANTIZE, *FOLD], self.graph, Context(CPU, plan), EVERYTHING).graph
        (feeds,) = self.data.batches(16)
        want, have = (execute(model, feeds)[0].astype(np.float64) for model in (self.graph, quantized))
        return float(((want - have) ** 2).sum() / (want**2).sum())

    def each(self, tensor: str, beside: Mapping[str, Range]) -> dict[str, float]:
        """Noise of the model with every range that is proposed for a tensor, beside those of others."""
        found = proposals(self.statistics[tensor].histogram, RECIPE)
        return {rule: self.noise({**beside, tensor: (*ends, rule)}) for rule, ends in found.items()}


WIDE: dict[str, Range] = {"r": (0.0, 90.0, "far too wide")}


def test_the_loudest_range_becomes_the_one_of_which_the_model_loses_least() -> None:
    case = Case(convs(), WIDE)
    found = case.refined()
    low, high, rule = found["r"]
    assert (low, high) == proposals(case.statistics["r"].histogram, RECIPE)[rule]
    noises = case.each("r", {})
    assert len(noises) > 2
    assert noises[rule] <= 1.02 * min(noises.values())
    assert case.noise(found) < 0.5 * case.noise({})


def test_the_next_one_is_chosen_beside_what_was_chosen_before() -> None:
    """Both are far too wide; the second one is tried in a model in which the first no longer is."""
    case = Case(convs(), {**WIDE, "x": (-60.0, 60.0, "far too wide")})
    found = case.refined()
    assert found.keys() >= {"x", "r"}
    first, second = sorted(("x", "r"), key=lambda name: case.noise({n: found[n] for n in ("x", "r") if n != name}))
    for name, beside in ((second, {}), (first, {second: found[second]})):
        noises = case.each(name, beside)
        assert noises[found[name][2]] <= 1.02 * min(noises.values()), name
    assert case.noise(found) < 0.2 * case.noise({})


def test_what_is_best_already_stays() -> None:
    case = Case(convs(), WIDE)
    best = case.refined()
    again = Case(case.graph, {**WIDE, **best}).refined()
    assert best.keys().isdisjoint(again)
    for name, ends in again.items():
        assert case.noise({**best, name: ends}) < case.noise(best), name


def test_a_range_is_left_alone_where_others_cause_nearly_all_of_the_noise() -> None:
    narrow: dict[str, Range] = {"x": (-12.0, 12.0, "too wide")}
    assert "x" in Case(convs(), narrow).refined()
    louder: dict[str, Range] = {**narrow, "r": (0.0, 3000.0, "far too wide")}
    assert Case(convs(), louder).refined().keys() == {"r"}


def test_a_range_is_left_alone_where_weights_cause_nearly_all_of_the_noise() -> None:
    wide: dict[str, Range] = {"r": (0.0, 25.0, "too wide")}
    assert "r" in Case(convs(), wide).refined()
    assert Case(convs(far_out=90.0), wide).refined() == {}


def test_a_few_are_tried_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(convs(), {**WIDE, "x": (-30.0, 30.0, "far too wide")})
    assert case.refined().keys() >= {"x", "r"}
    monkeypatch.setattr(refine, "LOUDEST", 1)
    assert case.refined().keys() == {"r"}


def test_ranges_that_are_fixed_or_unknown_are_left_alone() -> None:
    case = Case(convs(), WIDE)
    assert "r" not in case.refined("r")
    seen = {name: own for name, own in case.statistics.items() if name != "r"}
    assert "r" not in refined_ranges(case.grouping(), case.placement.tensors, seen, case.data, (8, 16))


def test_tensors_that_share_a_range_share_another_one() -> None:
    text = CONVS.replace(
        "[two] b = Conv(r, w2, k)", "[pool] p = MaxPool<kernel_shape=[1,1]>(r) [two] b = Conv(p, w2, k)"
    )
    case = Case(convs(text), WIDE)
    assert case.placement.tensors["p"] == "r"
    found = case.refined()
    assert "p" not in found
    noises = case.each("r", {})
    assert noises[found["r"][2]] <= 1.02 * min(noises.values()), "were one of them left as it was, nothing would help"


def test_a_layer_may_be_called_like_a_tensor() -> None:
    """Its weight stays rounded while the range of that tensor is tried, or any range would seem to help."""
    plain = Case(convs(), WIDE)
    best = {**WIDE, **plain.refined()}
    for one, two in (("r", "x"), ("x", "r")):
        named = convs(CONVS.replace("[one]", f"[{one}]").replace("[two]", f"[{two}]"))
        assert Case(named, WIDE).refined() == plain.refined()
        assert Case(named, best).refined() == Case(convs(), best).refined()


def test_progress_is_told() -> None:
    case, told = Case(convs(), WIDE), list[tuple[str, int, int]]()
    args = case.grouping(), case.placement.tensors, case.statistics, case.data, (8, 16)
    refined_ranges(*args, lambda *step: told.append(step))
    assert told == [("ranges", done, len(told)) for done in range(1, len(told) + 1)]
    assert told
