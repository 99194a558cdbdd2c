"""Weights in half precision, arithmetic in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.graph import Graph, weight
from onnxq.half_weights import half_already, half_weights
from onnxq.passes.halve_weights import HalveWeights
from onnxq.pipeline import Outcome
from onnxq.plan import NodePlan, Plan, Treatment
from onnxq.recipe import make_recipe
from tests.onnx_text import apply, assert_same, changes, execute, floats, lines, listing, read, refusal

W, TABLE = floats(16, 16) / 4, floats(50, 16)


def planned(graph: Graph, *kept: str) -> Plan:
    """What the recipe decides; these patterns stay in float."""
    recipe = make_recipe({"mode": "fp16", "nodes": {name: {"quantize": False} for name in kept}})
    return Plan(recipe=recipe, nodes=half_weights(graph, recipe))


def halved(graph: Graph, *kept: str) -> Outcome:
    return apply(HalveWeights(), graph, planned(graph, *kept))


def model(body: str, weights: dict[str, Any] | None = None, opset: int = 17) -> Graph:
    return read(f"(float[n,16] x) => (float[n,16] y) {{ {body} }}", {"w": W} | (weights or {}), opset)


def test_a_layer_reads_the_cast_of_its_weight() -> None:
    before = model("[fc] y = MatMul(x, w)")
    result = halved(before)
    assert listing(result.graph) == lines(
        """
        w_float = Cast<to=1>(w_half)
        y = MatMul(x, w_float)
        """
    )
    assert [(c.node, c.op, c.done) for c in changes(result)] == [("fc", "MatMul", "half MatMul")]
    stored = weight(result.graph.tensors()["w_half"])
    assert stored.dtype == np.float16
    np.testing.assert_array_equal(stored, W.astype(np.float16))
    assert_same(before, result.graph, rtol=1e-3)


def test_the_rows_of_a_table_are_widened_when_they_are_read() -> None:
    before = read("(int64[2,3] ids) => (float[2,3,16] y) { [emb] y = Gather(t, ids) }", {"t": TABLE})
    result = halved(before)
    assert listing(result.graph) == lines(
        """
        y_half = Gather(t_half, ids)
        y = Cast<to=1>(y_half)
        """
    )
    ids = {"ids": np.array([[0, 49, 7], [-1, 3, 3]])}
    np.testing.assert_array_equal(execute(result.graph, ids)[0], TABLE.astype(np.float16)[ids["ids"]])


def test_readers_share_a_weight_and_its_cast() -> None:
    """As where the output layer of a language model multiplies with its embedding."""
    text = "(int64[2] ids) => (float[2,50] y, float[2,50] z) { a = Gather(t, ids) y = Gemm<transB=1>(a, t) "
    before = read(f"{text} b = Tanh(a) z = Gemm<transB=1>(b, t) }}", {"t": TABLE})
    after = halved(before).graph
    assert listing(after) == lines(
        """
        a_half = Gather(t_half, ids)
        a = Cast<to=1>(a_half)
        b = Tanh(a)
        t_float = Cast<to=1>(t_half)
        y = Gemm<transB=1>(a, t_float)
        z = Gemm<transB=1>(b, t_float)
        """
    )
    assert_same(before, after, {"ids": np.array([3, 42])}, rtol=1e-3)


@pytest.mark.parametrize("opset", [7, 9, 13, 21])
def test_every_opset(opset: int) -> None:
    before = model("[conv] c = Gemm(x, w, b) y = Add(c, b)", {"b": floats(16)}, opset)
    assert_same(before, halved(before).graph, rtol=1e-3)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (np.full((16, 16), 7e4, np.float32), "Weight 'w' stays: it reaches 7e+04, and half precision ends at 65504."),
        (W * np.float32(1e-6), "it holds tiny numbers"),
    ],
)
def test_numbers_that_do_not_fit_stay(values: np.ndarray[Any, Any], why: str) -> None:
    before = model("[fc] y = MatMul(x, w)", {"w": values})
    plan = planned(before)
    assert plan.treatment("fc") is Treatment.FLOAT
    assert why in plan.nodes["fc"].reason
    assert listing(halved(before).graph) == listing(before)


def test_of_two_weights_one_may_stay() -> None:
    wide = np.full(256, 1e5, np.float32)
    before = read("(float[n,16] x) => (float[n,256] y) { [fc] y = Gemm(x, w, b) }", {"w": floats(16, 256), "b": wide})
    result = halved(before)
    assert listing(result.graph) == lines(
        """
        w_float = Cast<to=1>(w_half)
        y = Gemm(x, w_float, b)
        """
    )
    assert refusal(result, "fc") == "Weight 'b' stays: it reaches 1e+05, and half precision ends at 65504."


def test_few_tiny_numbers_and_infinities_do_no_harm() -> None:
    values = W.copy()
    values[0, :8], values[1, 0] = 1e-20, -np.inf
    before = model("[fc] y = MatMul(x, w)", {"w": values})
    half = weight(halved(before).graph.tensors()["w_half"])
    assert not half[0, :8].any()
    assert half[1, 0] == -np.inf


def test_small_constants_stay() -> None:
    before = model("[add] y = Add(x, b)", {"b": floats(16)})
    assert listing(halved(before).graph) == listing(before)
    assert planned(before).nodes == {}


def test_what_the_recipe_keeps_stays_with_all_that_it_shares() -> None:
    before = model("[one] a = MatMul(x, w) [two] b = MatMul(a, w) [three] y = MatMul(b, v)", {"v": floats(16, 16)})
    result = halved(before, "two")
    assert "MatMul(x, w)" in listing(result.graph)
    assert "v_half" in listing(result.graph)
    assert refusal(result, "two") == "The recipe keeps it in float."
    assert refusal(result, "one") == "Weight 'w' is shared with 'two', which stays in float."


def test_weights_that_bodies_read_stay() -> None:
    then, other = "() => (float[n,16] t) { t = MatMul(x, w) }", "() => (float[n,16] u) { u = Identity(x) }"
    before = model(
        f"[if] z = If(q)<then_branch = a {then}, else_branch = b {other}> [fc] y = MatMul(z, w)", {"q": np.bool_(True)}
    )
    assert planned(before).nodes["fc"].reason == "Weight 'w' is read inside the body of an If, Loop or Scan."
    assert listing(halved(before).graph) == listing(before)


def test_a_weight_that_is_an_output_stays() -> None:
    before = read("(float[n,16] x) => (float[n,16] y, float[16,16] w) { [fc] y = MatMul(x, w) }", {"w": W})
    assert planned(before).nodes["fc"].reason == "Weight 'w' is an output of the model."


def test_other_types_and_other_treatments_are_left_alone() -> None:
    before = model("[fc] y = MatMul(x, w)")
    integers = NodePlan(op="MatMul", treatment=Treatment.WEIGHT, reason="")
    plan = Plan(recipe=make_recipe({}), nodes={"fc": integers})
    result = apply(HalveWeights(), before, plan)
    assert (listing(result.graph), changes(result)) == (listing(before), [])
    doubles = read("(double[n,16] x) => (double[n,16] y) { [fc] y = MatMul(x, w) }", {"w": W.astype(np.float64)})
    assert planned(doubles).nodes == {}


def test_a_model_in_half_precision_is_known() -> None:
    half = read("(float16[n,16] x) => (float16[n,16] y) { y = MatMul(x, w) }", {"w": W.astype(np.float16)})
    assert half_already(half)
    assert not half_already(model("y = MatMul(x, w)"))
    assert not half_already(model("y = Relu(x)", {"w": W}))
