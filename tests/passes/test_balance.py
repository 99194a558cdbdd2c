"""Channels are rescaled, and the model returns what it returned before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from onnxq.channels import spaces
from onnxq.graph import Graph, to_model, weight
from onnxq.passes.balance import Balance
from onnxq.pipeline import Close, Outcome
from onnxq.plan import BalancePlan, Plan
from onnxq.recipe import Recipe
from onnxq.runtime import Session
from tests.onnx_text import Array, apply, assert_same, changes, execute, floats, lines, listing, normal, read, serialize

RTOL = 1e-4
"""The promise of the pass."""


def factors(count: int, seed: int = 0) -> list[float]:
    """Six digits each, from 0.1 to 10, as different as channels are."""
    return [float(f"{value:.6g}") for value in 10 ** np.random.default_rng(seed).uniform(-1, 1, count)]


def balance(graph: Graph, choices: Mapping[str, list[float]], *, multiplies: bool = False) -> Outcome:
    plans = {name: BalancePlan(factors=values, multiplies=multiplies, reason="") for name, values in choices.items()}
    return apply(Balance(), graph, Plan(recipe=Recipe(), nodes={}, balance=plans))


def everywhere(graph: Graph) -> dict[str, list[float]]:
    """Factors for every space of a graph."""
    return {space.name: factors(space.channels, seed) for seed, space in enumerate(spaces(graph))}


PICTURE = "(float[n,4,6,6] x) => (float[n,c,h,w] y)"
ROWS = "(float[n,5,4] x) => (float[n,t,c] y)"
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "Conv with bias, Relu, Conv": (
        f"{PICTURE} {{ [one] c = Conv(x, w1, b) [r] r = Relu(c) [two] y = Conv<pads=[1,1,1,1]>(r, w2) }}",
        {"w1": floats(8, 4, 3, 3), "b": floats(8), "w2": floats(6, 8, 3, 3)},
        1,
    ),
    "grouped and depthwise": (
        f"{PICTURE} {{ a = Conv<group=2>(x, w1) b = Relu(a) c = Conv<group=8>(b, wd) d = LeakyRelu<alpha=0.1>(c)"
        " y = Conv<group=4>(d, w2) }",
        {"w1": floats(8, 2, 1, 1), "wd": floats(16, 1, 3, 3), "w2": floats(8, 4, 1, 1)},
        2,
    ),
    "Conv 3d": (
        "(float[n,4,5,5,5] x) => (float[n,c,d,h,w] y) { a = Conv(x, w1) b = MaxPool<kernel_shape=[2,2,2]>(a)"
        " y = Conv<group=2>(b, w2) }",
        {"w1": floats(8, 4, 2, 2, 2), "w2": floats(6, 4, 2, 2, 2)},
        1,
    ),
    "Conv 1d": (
        "(float[n,4,9] x) => (float[n,c,l] y) { a = Conv(x, w1) y = Conv(a, w2) }",
        {"w1": floats(8, 4, 3), "w2": floats(6, 8, 1)},
        1,
    ),
    "a residual trunk": (
        f"{PICTURE} {{ a = Conv(x, w1) r = Relu(a) b = Conv(r, up) c = Relu(b) d = Conv(c, down) e = Add(d, r)"
        " f = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(e) y = Conv(f, w2) }",
        {"w1": floats(8, 4, 1, 1), "up": floats(12, 8, 1, 1), "down": floats(8, 12, 1, 1), "w2": floats(6, 8, 1, 1)},
        2,
    ),
    "a layer between tensors of one space": (
        f"{PICTURE} {{ a = Conv(x, w1) d = Conv<group=8>(a, wd) e = Add(a, d) y = Conv(e, w2) }}",
        {"w1": floats(8, 4, 1, 1), "wd": floats(8, 1, 1, 1), "w2": floats(6, 8, 1, 1)},
        1,
    ),
    "pooled pictures": (
        "(float[n,4,6,6] x) => (float[n,k] y)"
        " { a = Conv(x, w1) g = GlobalAveragePool(a) f = Flatten(g) h = Gemm<transB=1>(f, w2, b) r = Relu(h)"
        " y = Gemm(r, w3) }",
        {"w1": floats(8, 4, 3, 3), "w2": floats(6, 8), "b": floats(1, 6), "w3": floats(6, 3)},
        2,
    ),
    "MatMul with bias": (
        f"{ROWS} {{ a = MatMul(x, w1) b = Add(b1, a) r = Relu(b) c = MatMul(r, w2) y = Add(c, b2) }}",
        {"w1": floats(4, 8), "b1": floats(8), "w2": floats(8, 6), "b2": floats(6)},
        1,
    ),
    "a norm before query, key and value": (
        f"{ROWS} {{ n, mean = LayerNormalization(x, g, s) q = MatMul(n, w1) k = MatMul(n, w2) p = Mul(q, k)"
        " v = MatMul(n, w1) z = Tanh(p) y = Add(z, v) }",
        {"g": floats(4) + 2, "s": floats(4), "w1": floats(4, 8), "w2": floats(4, 8, seed=1)},
        1,
    ),
    "a norm whose scale and shift are one constant": (
        f"{ROWS} {{ n = LayerNormalization(x, g, g) y = MatMul(n, w1) }}",
        {"g": floats(4) + 2, "w1": floats(4, 8)},
        1,
    ),
    "rows that multiply and add": (
        f"{ROWS} {{ t = Tanh(x) a = Mul(g, t) b = Add(a, s) c = Add(places, b) y = MatMul(c, w1) }}",
        {"g": floats(1, 1, 4) + 2, "s": floats(4), "places": floats(5, 4), "w1": floats(4, 8)},
        1,
    ),
}


def test_promise() -> None:
    assert Balance().promise == Close(RTOL)


@pytest.mark.parametrize("case", CASES)
def test_outputs_stay(case: str) -> None:
    text, weights, count = CASES[case]
    before = read(text, weights)
    untouched = serialize(before)
    chosen = everywhere(before)
    assert len(chosen) == count
    result = balance(before, chosen)
    assert [change.node for change in changes(result)] == list(chosen)
    assert serialize(result.graph) != untouched
    assert serialize(before) == untouched
    assert [node.op for node in result.graph.nodes] == [node.op for node in before.nodes]
    assert_same(before, result.graph, rtol=RTOL)
    again = balance(result.graph, chosen)
    assert (serialize(again.graph), changes(again)) == (serialize(result.graph), [])


@pytest.mark.parametrize("case", CASES)
def test_inner_tensors_are_divided(case: str) -> None:
    """The factors are really there: each tensor holds what it held, over the factors of its channels."""
    text, weights, _ = CASES[case]
    before = read(text, weights)
    chosen = everywhere(before)
    after = balance(before, chosen).graph
    for space in spaces(before):
        for name in space.tensors:
            want, have = inner(before, name), inner(after, name)
            by = np.array(chosen[space.name], np.float32).reshape(-1, *[1] * (want.ndim - 1 - space.axis))
            np.testing.assert_allclose(have, want / by, rtol=0, atol=RTOL * float(np.abs(want / by).max()))


def inner(graph: Graph, name: str) -> Array:
    """What an inner tensor holds for some input."""
    session = Session(to_model(graph, extra_outputs=[name]).SerializeToString(), threads=1, optimize=False)
    return session.run(normal(graph), [name])[name]


def test_the_weights_pay() -> None:
    text, weights, _ = CASES["Conv with bias, Relu, Conv"]
    result = balance(read(text, weights), {"c": factors(8)})
    assert listing(result.graph) == lines("""
        c = Conv(x, w1_balanced, b_balanced)
        r = Relu(c)
        y = Conv<pads=[1, 1, 1, 1]>(r, w2_balanced)
    """)
    (change,) = changes(result)
    assert change.done == "balanced"
    assert "'two' pays" in change.reason
    stored = {tensor.name: weight(tensor) for tensor in result.graph.weights()}
    by = np.array(factors(8), np.float32)
    np.testing.assert_allclose(stored["w1_balanced"], weights["w1"] / by[:, None, None, None], rtol=1e-6)
    np.testing.assert_allclose(stored["w2_balanced"], weights["w2"] * by[:, None, None], rtol=1e-6)


def test_a_weight_that_others_share_is_not_changed_for_them() -> None:
    body = "a = Conv(x, w) r = Relu(a) b = Conv(r, w) s = Sigmoid(b) y = Conv(s, w)"
    before = read(f"(float[n,8,6,6] x) => (float[n,c,h,w] y) {{ {body} }}", {"w": floats(8, 8, 1, 1)})
    result = balance(before, {"a": factors(8)})
    assert [node.inputs[1].name for node in result.graph.nodes if node.op == "Conv"] == [
        "w_balanced",
        "w_balanced_1",
        "w",
    ]
    assert_same(before, result.graph, rtol=RTOL)


CLIPS = f"{PICTURE} {{ a = Conv(x, w1) b = Clip(a, zero, six) y = Conv(b, w2) }}"
ENDS = {"zero": np.float32(0), "six": np.float32(6)}


def test_a_clip_keeps_its_limit() -> None:
    """Channels that reach 5 of 6 may grow by 6 / 5, those that are cut may not."""
    weights = {"w1": floats(8, 4, 1, 1), "w2": floats(6, 8, 1, 1)} | ENDS
    before = read(CLIPS, weights)
    reach = inner(before, "b").max((0, 2, 3))
    assert 0 < (reach == 6).sum() < 8
    result = balance(before, {"a": [float(f"{value:.6g}") for value in reach / 6]})
    assert_same(before, result.graph, rtol=RTOL)
    np.testing.assert_allclose(inner(result.graph, "b").max((0, 2, 3)), 6, rtol=1e-5)
    assert [node.inputs[2].name for node in result.graph.nodes if node.op == "Clip"] == ["six"]


MIXED = f"{ROWS} {{ t = Tanh(x) [one] a = MatMul(t, w1) [two] b = MatMul(t, w2) y = Add(a, b) }}"
TWO = {"w1": floats(4, 8), "w2": floats(4, 8, seed=1)}


def test_a_mul_where_nothing_takes_the_factors() -> None:
    before = read(MIXED, TWO)
    result = balance(before, {"t": factors(4)}, multiplies=True)
    assert listing(result.graph) == lines("""
        t = Tanh(x)
        t_balanced = Mul(t, t_reciprocal_balanced)
        a = MatMul(t_balanced, w1_balanced)
        b = MatMul(t_balanced, w2_balanced)
        y = Add(a, b)
    """)
    assert [(change.node, change.done) for change in changes(result)] == [("t", "Mul")]
    assert_same(before, result.graph, rtol=RTOL)
    again = balance(result.graph, {"t": factors(4)}, multiplies=True)
    assert (serialize(again.graph), changes(again)) == (serialize(result.graph), [])


def test_a_mul_behind_an_input_that_others_read_too() -> None:
    text = "(float[n,4] x) => (float[n,k] y, float[n,4] z) { [one] y = Gemm<transB=1>(x, w, b) [act] z = Sigmoid(x) }"
    before = read(text, {"w": floats(6, 4), "b": floats(6)})
    result = balance(before, {"x": factors(4)}, multiplies=True)
    assert sorted(node.inputs[0].name for node in result.graph.nodes) == ["x", "x", "x_balanced"]
    assert_same(before, result.graph, rtol=RTOL)


def test_a_mul_is_for_linear_layers() -> None:
    """The Conv takes the rows for channels; along the last axis it has no factors."""
    text = "(float[n,4,4] x) => (float[n,t,c] y, float[n,k,l] z) { [one] y = MatMul(x, w) [two] z = Conv(x, k) }"
    before = read(text, {"w": floats(4, 6), "k": floats(3, 4, 1)})
    result = balance(before, {"x": factors(4)}, multiplies=True)
    assert {node.name: node.inputs[0].name for node in result.graph.nodes}["two"] == "x"
    assert_same(before, result.graph, rtol=RTOL)


@pytest.mark.parametrize("multiplies", [False, True])
def test_names_that_nobody_can_rescale_are_left_alone(multiplies: bool) -> None:
    before = read(MIXED, TWO)
    result = balance(before, {"a": factors(8), "gone": factors(8)}, multiplies=multiplies)
    assert (listing(result.graph), changes(result)) == (listing(before), [])


def test_a_space_pays_no_mul_and_a_mul_takes_no_space() -> None:
    before = read(f"{ROWS} {{ a = MatMul(x, w1) y = MatMul(a, w2) }}", {"w1": floats(4, 8), "w2": floats(8, 6)})
    assert changes(balance(before, {"x": factors(4)})) == []
    for multiplies, done in ((False, "balanced"), (True, "Mul")):
        result = balance(before, {"a": factors(8)}, multiplies=multiplies)
        assert [change.done for change in changes(result)] == [done]
        assert_same(before, result.graph, rtol=RTOL)


def test_names_of_tensors_are_kept() -> None:
    text, weights, _ = CASES["a residual trunk"]
    before = read(text, weights)
    after = balance(before, everywhere(before)).graph
    kept = {name for name, tensor in before.tensors().items() if tensor.inputs}
    assert kept == {name for name, tensor in after.tensors().items() if tensor.inputs}
    assert after.interface() == before.interface()


def test_extreme_factors() -> None:
    """Far apart, as where one channel sticks out: float32 has room for it."""
    text, weights, _ = CASES["MatMul with bias"]
    before = read(text, weights)
    result = balance(before, {"a": [1e-4, 1e4, 1.0, 3e-4, 2e3, 1.0, 0.5, 7.0]})
    assert_same(before, result.graph, rtol=RTOL)
    assert all(np.isfinite(value).all() for value in execute(result.graph, {"x": floats(2, 5, 4)}))
