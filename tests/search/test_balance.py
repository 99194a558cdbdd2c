"""Channels that stick out are found and cured, and nothing is done where that gains nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from onnxq.calibration.collect import Seen, Statistics, collect
from onnxq.calibration.data import Data, open_data
from onnxq.channels import layers_of
from onnxq.decision import decide
from onnxq.graph import Graph
from onnxq.passes import BALANCE, FOLD, QUANTIZE
from onnxq.pipeline import Context, run
from onnxq.placement import place
from onnxq.plan import BalancePlan, Plan
from onnxq.recipe import Recipe, make_recipe
from onnxq.search.balance import LEAST_REACH, Site, find_balance, sites
from onnxq.targets import CPU
from tests.onnx_text import EVERYTHING, Array, assert_same, execute, floats, read

RECIPE = make_recipe({"activation": {"range": "minmax"}})
ENDS = {"zero": np.float32(0), "six": np.float32(6)}


def feeds(graph: Graph, count: int = 12, seed: int = 5) -> dict[str, Array]:
    (tensor,) = graph.inputs
    shape = [size if isinstance(size, int) else count for size in tensor.shape or ()]
    return {tensor.name: np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)}


def data(graph: Graph, values: Mapping[str, Array] | None = None) -> Data:
    return open_data(values or feeds(graph), graph.interface().inputs)


def statistics(graph: Graph, source: Data, names: list[str] | None = None) -> Statistics:
    """Of what layers read and make, if not said otherwise."""
    seen = {layer.data.name for layer in layers_of(graph)} | {t.name for n in graph.nodes for t in n.outputs}
    return collect(graph, sorted(seen) if names is None else names, source, threads=1)


def found(graph: Graph, names: list[str] | None = None, integer: set[str] | None = None) -> list[Site]:
    static = {layer.node.name for layer in layers_of(graph)}
    return sites(graph, statistics(graph, data(graph), names), static, integer or set())


def chosen(graph: Graph, noise: Mapping[str, float] | None = None) -> dict[str, BalancePlan]:
    noise = {layer.node.name: 0.01 for layer in layers_of(graph)} if noise is None else noise
    return find_balance(graph, found(graph), data(graph), RECIPE, noise)


def balanced(graph: Graph, plans: dict[str, BalancePlan]) -> Graph:
    plan = Plan(recipe=RECIPE, nodes={}, balance=plans)
    return run(BALANCE, graph, Context(CPU, plan), EVERYTHING).graph


def noise(graph: Graph) -> float:
    """Noise over signal at the output when the whole graph runs on integers."""
    placement = place(graph, CPU, RECIPE)
    plan = decide(placement, statistics(graph, data(graph), sorted(set(placement.tensors.values()))), RECIPE, CPU)
    quantized = run([*QUANTIZE, *FOLD], graph, Context(CPU, plan), EVERYTHING).graph
    want, have = (execute(model, feeds(graph))[0].astype(np.float64) for model in (graph, quantized))
    return float(((want - have) ** 2).sum() / (want**2).sum())


def spread(channels: int, *outliers: int, by: float = 100.0) -> Array:
    """Ones, and some channels that are farther out."""
    factors = np.ones(channels, np.float32)
    factors[list(outliers)] = by
    return factors


def convolutions(by: Array, between: str = "r = Relu(c)", weights: dict[str, Any] | None = None) -> Graph:
    """Two convolutions between which channels are stretched, without any effect on the output."""
    body = f"s = Sigmoid(x) [one] c = Conv(s, w1) {between} [two] e = Conv(r, w2) y = Tanh(e)"
    stretched = {"w1": np.abs(floats(16, 8, 1, 1)) * by.reshape(-1, 1, 1, 1) / 8}
    stretched["w2"] = floats(8, 16, 3, 3, seed=1) / by.reshape(1, -1, 1, 1) / 12
    return read(f"(float[n,8,9,9] x) => (float[n,8,7,7] y) {{ {body} }}", stretched | (weights or {}))


def matrices(by: Array, norm: str = "t = LayerNormalization(x, g, s)") -> Graph:
    """A norm and two layers that read it."""
    body = f"{norm} [one] a = MatMul(t, w1) [two] b = MatMul(t, w2) c = Mul(a, b) y = Tanh(c)"
    weights = {"g": by, "s": floats(16) * by / 4, "w1": floats(16, 8) / by[:, None] / 4}
    weights["w2"] = floats(16, 24, seed=2) / by[:, None] / 4
    return read(f"(float[n,5,16] x) => (float[n,5,k] y) {{ {body} }}", weights | {"w2": weights["w2"][:, :8]})


CURED = {
    "a convolution": lambda: convolutions(spread(16, 3, 7)),
    "a norm": lambda: matrices(spread(16, 2)),
    "a Clip": lambda: convolutions(spread(16, *range(2, 16), by=0.01) * 6, "r = Clip(c, zero, six)", ENDS),
}


@pytest.mark.parametrize("case", CURED)
def test_outlying_channels_are_cured(case: str) -> None:
    before = CURED[case]()
    plans = chosen(before)
    (plan,) = plans.values()
    assert not plan.multiplies
    assert all(float(f"{factor:.6g}") == factor for factor in plan.factors)
    after = balanced(before, plans)
    assert_same(before, after, feeds(before), rtol=1e-4)
    assert noise(after) < noise(before) / 10
    assert "Local noise falls by " in plan.reason


def test_a_mul_cures_what_nothing_can_take() -> None:
    before = read(
        "(float[n,5,16] x) => (float[n,5,8] y)"
        " { t = Sigmoid(x) m = Mul(t, t2) u = Abs(m) [one] a = MatMul(u, w) y = Tanh(a) }",
        {"t2": np.asarray(spread(16, 4)), "w": floats(16, 8) / spread(16, 4)[:, None]},
    )
    plans = chosen(before)
    assert [(name, plan.multiplies) for name, plan in plans.items()] == [("u", True)]
    after = balanced(before, plans)
    assert_same(before, after, feeds(before), rtol=1e-4)
    assert noise(after) < noise(before) / 10


ALIKE = {"w1": np.full((16, 8, 1, 1), 0.1, np.float32), "w2": np.sign(floats(8, 16, 3, 3)) / np.float32(12)}


def test_nothing_is_done_where_channels_are_alike() -> None:
    graph = convolutions(spread(16), weights=ALIKE)
    assert len(found(graph)) == 1
    assert chosen(graph) == {}


def test_a_mul_has_to_gain() -> None:
    def mild(by: float) -> Graph:
        weights = {"w": floats(16, 8) / spread(16, 4, by=by)[:, None], "big": spread(16, 4, by=by)}
        text = "(float[n,16] x) => (float[n,8] y) { t = Mul(x, big) u = Abs(t) [one] a = MatMul(u, w) y = Tanh(a) }"
        return read(text, weights)

    assert [plan.multiplies for plan in chosen(mild(100.0)).values()] == [True]
    assert chosen(mild(1.5)) == {}, "less than 3 dB"
    assert chosen(mild(100.0), {"one": 0.001, "elsewhere": 1.0}) == {}, "less than half a percent of all noise"
    assert chosen(mild(100.0), {}) == {}, "nobody knows what it gains"
    assert chosen(mild(100.0), {"elsewhere": 1.0}) == {}, "its noise does not reach the outputs"


def test_a_limit_is_respected() -> None:
    """Channels that are cut stay as they are, and the others do not grow past the limit."""
    by = spread(16, *range(4, 16), by=0.05) * 12
    graph = convolutions(by, "r = Clip(c, zero, six)", ENDS)
    reach = statistics(graph, data(graph), ["r"])["r"].channels.high
    assert 0 < (reach == 6).sum() < 16
    (site,) = found(graph, ["r"])
    assert site.least is not None
    for factors in site.candidates:
        assert factors.max() <= 1
        np.testing.assert_allclose(factors[reach == 6], 1)
        assert (reach / factors).max() <= 6.0001
        after = balanced(graph, {site.name: BalancePlan(factors=factors.tolist(), multiplies=False, reason="")})
        assert_same(graph, after, feeds(graph), rtol=1e-4)


def test_what_reaches_past_a_clip_elsewhere_does_not_loosen_it() -> None:
    """A sum behind the Clip reaches farther than the limit, and so does what is cut; no factor may pass 1."""
    body = """
        [one] c = Conv(x, w1) k = Clip(c, zero, six) [in] d = Conv(k, w2) a = Add(k, d) [two] y = Conv(a, w2)
    """
    weights = {"w1": floats(8, 4, 1, 1) * 9, "w2": floats(8, 8, 1, 1)} | ENDS
    graph = read(f"(float[n,4,6,6] x) => (float[n,8,h,w] y) {{ {body} }}", weights)
    site = next(site for site in found(graph) if site.name == "c")
    assert (site.reach > 6).any()
    for factors in site.candidates:
        assert factors.max() <= 1
        after = balanced(graph, {"c": BalancePlan(factors=factors.tolist(), multiplies=False, reason="")})
        assert_same(graph, after, feeds(graph), rtol=1e-4)
    # behind pooling, nobody can tell how near values come to the limit
    assert found(graph, ["a"]) == []


CONV_1D = "(float[n,8,8] x) => (float[n,8,l] y) { [one] c = Conv(x, w) r = Relu(c) [two] y = Conv(r, w) }"
FOUR_AXES = "(float[n,8,5,8] x) => (float[n,8,5,8] y) { [one] a = MatMul(x, w) r = Relu(a) [two] y = MatMul(r, w) }"


def test_statistics_have_to_be_of_the_channels() -> None:
    """They are of the last axis of three, and of axis 1 of four, however many channels there are."""
    assert found(read(CONV_1D, {"w": floats(8, 8, 1)})) == []
    assert found(read(FOUR_AXES, {"w": floats(8, 8)})) == []
    assert len(found(read(FOUR_AXES.replace("8,5,8", "5,8"), {"w": floats(8, 8)}))) == 2


def test_only_where_all_readers_are_static() -> None:
    graph = matrices(spread(16, 2))
    seen = statistics(graph, data(graph))
    assert [(site.name, site.multiplies) for site in sites(graph, seen, {"one", "two"}, set())] == [("t", False)]
    (site,) = sites(graph, seen, {"one"}, set())
    assert (site.name, site.multiplies, [layer.node.name for layer in site.readers]) == ("t", True, ["one"])
    assert sites(graph, seen, {"one"}, {"t"}) == [], "a Mul behind an integer operator is a detour"
    assert sites(graph, {}, {"one", "two"}, set()) == []
    varied = seen | {"t": seen["t"] + Seen.of(floats(3, 5, 7))}
    assert sites(graph, varied, {"one", "two"}, set()) == [], "the number of channels varied"


def test_unseen_and_dead_channels() -> None:
    by = spread(16)
    by[5] = 0
    graph = convolutions(np.ones(16, np.float32), weights={"w1": np.abs(floats(16, 8, 1, 1)) * by.reshape(-1, 1, 1, 1)})
    (site,) = found(graph)
    assert site.reach.min() == pytest.approx(LEAST_REACH * site.reach.max())
    assert all(np.isfinite(factors).all() and factors.min() > 0 for factors in site.candidates)


def test_a_layer_without_noise_gets_no_factors() -> None:
    assert chosen(convolutions(spread(16, 3), weights={"w2": np.zeros((8, 16, 3, 3), np.float32)})) == {}
    dead = convolutions(spread(16), weights={"w1": np.zeros((16, 8, 1, 1), np.float32)})
    (site,) = found(dead)
    assert (site.reach == 1).all()
    assert chosen(dead) == {}


def test_a_depthwise_reader_makes_all_channels_alike() -> None:
    weights = {"w2": floats(16, 1, 3, 3)}
    text = "(float[n,8,9,9] x) => (float[n,16,7,7] y) { [one] c = Conv(x, w1) [two] y = Conv<group=16>(c, w2) }"
    (site,) = found(read(text, weights | {"w1": floats(16, 8, 1, 1) * spread(16, 3).reshape(-1, 1, 1, 1)}))
    (factors,) = site.candidates
    np.testing.assert_allclose(site.reach / factors, (site.reach / factors)[0], rtol=1e-5)


def test_a_transposed_weight_is_weighed_by_its_inputs() -> None:
    values = floats(6, 8)
    text = "(float[n,4] x) => (float[n,6] y) { [one] c = Gemm(x, w1) [two] y = Gemm<transB=1>(c, w2) }"
    (site,) = [site for site in found(read(text, {"w1": floats(4, 8), "w2": values})) if site.name == "c"]
    first = site.reach**0.4 / np.abs(values).max(0) ** 0.6
    np.testing.assert_allclose(site.candidates[0], first / np.exp(np.log(first).mean()), rtol=1e-4)


@pytest.mark.parametrize("case", CURED)
def test_the_best_candidate_is_chosen(case: str) -> None:
    graph = CURED[case]()
    (site,) = found(graph)
    noises = [
        noise(balanced(graph, {site.name: BalancePlan(factors=factors.tolist(), multiplies=False, reason="")}))
        for factors in site.candidates
    ]
    after = noise(balanced(graph, chosen(graph)))
    assert max(noises) > 1.5 * after
    assert after < 1.1 * min(noises)


@pytest.mark.parametrize("group", [1, 2])
def test_strengths_weigh_the_input_against_the_weight(group: int) -> None:
    values = floats(6, 16 // group, 3, 3, seed=1)
    text = f"(float[n,8,9,9] x) => (float[n,6,7,7] y) {{ [one] c = Conv(x, w1) [two] y = Conv<group={group}>(c, w2) }}"
    (site,) = found(read(text, {"w1": floats(16, 8, 1, 1), "w2": values}))
    reach = np.abs(values.reshape(group, 6 // group, -1, 9)).max((1, 3)).reshape(-1)
    assert reach.shape == (16,)
    first = site.reach**0.4 / reach**0.6
    np.testing.assert_allclose(site.candidates[0], first / np.exp(np.log(first).mean()), rtol=1e-4)
    assert len(site.candidates) == 9
    last = np.maximum(1, site.reach / np.sort(site.reach)[-2])
    np.testing.assert_allclose(site.candidates[5], last / np.exp(np.log(last).mean()), rtol=1e-4)


def test_readers_are_weighed_by_their_noise_at_the_outputs() -> None:
    """What is best for one reader is not for the other; the louder one decides."""
    by = spread(16, 2)
    weights = {"g": by, "w1": floats(16, 8) / by[:, None], "w2": floats(16, 8, seed=1)}
    text = """(float[n,5,16] x) => (float[n,5,8] y, float[n,5,8] z) {
        t = LayerNormalization(x, g) [one] y = MatMul(t, w1) [two] z = MatMul(t, w2) }"""
    one, two, both = (
        chosen(read(text, weights), {"one": share, "two": 1 - share})["t"].factors for share in (1.0, 0.0, 0.999)
    )
    assert one != two
    assert both == one


def test_progress_is_told() -> None:
    graph, told = matrices(spread(16, 2)), []
    find_balance(graph, found(graph), data(graph), Recipe(), {}, lambda *step: told.append(step))
    assert told == [("balance", 1, 1)]
    assert find_balance(graph, [], data(graph), Recipe(), {}) == {}
