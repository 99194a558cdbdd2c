"""A model in half precision, with the inputs and outputs that it had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from onnxq.graph import Graph, to_model, weight
from onnxq.half_nodes import half_beside, half_nodes
from onnxq.numerics.halves import HIDDEN, HIGHEST
from onnxq.passes.half_precision import HalfPrecision
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.pipeline import Context, Outcome, run
from onnxq.placement import place_linear
from onnxq.plan import Plan, Treatment
from onnxq.recipe import Recipe, make_recipe
from onnxq.runtime import tensor_types
from onnxq.targets import CPU, CUDA
from tests.onnx_text import EVERYTHING, Array, changes, execute, floats, lines, listing, normal, read, refusal, sqnr

W = floats(16, 16) / 4
LEAST = 45.0
"""Signal to noise in dB: half precision rounds to 2^-12 on average, which is 72 dB, once or twice for each operator."""


def recipe(*kept: str) -> Recipe:
    return make_recipe({"mode": "fp16", "target": "cuda", "nodes": {name: {"quantize": False} for name in kept}})


def halved(graph: Graph, *kept: str, spared: Mapping[str, str] | None = None) -> Outcome:
    wanted = recipe(*kept)
    plan = Plan(recipe=wanted, nodes=half_nodes(graph, wanted, CUDA, spared))
    return run([HalfPrecision()], graph, Context(CUDA, plan), EVERYTHING)


def model(body: str, weights: Mapping[str, Any] | None = None, opset: int = 17) -> Graph:
    return read(f"(float[n,16] x) => (float[n,16] y) {{ {body} }}", {"w": W, **(weights or {})}, opset)


def assert_close(before: Graph, after: Graph, feeds: Mapping[str, Array] | None = None, least: float = LEAST) -> None:
    """The same interface, and outputs that differ by what half precision costs."""
    feeds = normal(before) if feeds is None else feeds
    assert after.interface() == before.interface()
    for optimize in (False, True):
        for want, have in zip(execute(before, feeds), execute(after, feeds, optimize=optimize), strict=True):
            assert (have.dtype, have.shape) == (want.dtype, want.shape)
            assert np.isfinite(have).all() == np.isfinite(want).all()
            assert sqnr(want, have) > least


def types(graph: Graph) -> dict[str, np.dtype]:
    """What the runtime makes of every inner tensor."""
    inner = [name for name, tensor in graph.tensors().items() if tensor.inputs]
    return {spec.name: spec.dtype for spec in tensor_types(to_model(graph, extra_outputs=inner).SerializeToString())}


def test_inputs_and_outputs_are_cast_and_all_between_is_half() -> None:
    before = model("[fc] a = MatMul(x, w) [act] y = Relu(a)")
    result = halved(before)
    assert listing(result.graph) == lines(
        """
        x_half = Cast<to=10>(x)
        a = MatMul(x_half, w)
        y_half = Relu(a)
        y = Cast<to=1>(y_half)
        """
    )
    assert [(c.node, c.done) for c in changes(result)] == [("fc", "half MatMul"), ("act", "half Relu")]
    assert weight(result.graph.tensors()["w"]).dtype == np.float16
    assert_close(before, result.graph)


def test_what_the_graph_says_of_types_is_what_the_runtime_finds() -> None:
    """Layers are cut out by these types when weights are rounded one after the other."""
    before = model("[fc] a = MatMul(x, w) [s] b = Softmax(a) [k] c = CumSum(b, one) [act] y = Tanh(c)", {"one": 1})
    after = halved(before).graph
    found = types(after)
    assert {n: t.dtype for n, t in after.tensors().items() if t.inputs} == found
    assert found["a"] == np.float16
    assert found["c"] == np.float32


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("[k] b = CumSum(a, one)", "It counts or sums up, and half precision counts to 2048 only."),
        ("[k] b = ReduceL2<axes=[1]>(a)", "It sums up squares or exponentials, which go past half precision."),
        ("[k] b = Det(m)", "The target 'cuda' has no kernel for Det in half precision."),
        ("[k] b = com.microsoft.CDist(a, a)", "The target 'cuda' has no kernel for CDist in half precision."),
    ],
)
def test_operators_that_stay_have_casts_around_them(body: str, why: str) -> None:
    shape = {"one": np.int64(1), "s": np.array([-1, 4, 4]), "flat": np.array([1, -1])}
    text = f"[fc] a = MatMul(x, w) m = Reshape(a, s) {body} c = Reshape(b, flat) y = Tanh(c)"
    before = read(f"(float[4,16] x) => (float[k,l] y) {{ {text} }}", {"w": W / 8, **shape})
    result = halved(before)
    assert refusal(result, "k") == why
    assert types(result.graph)["b"] == np.float32
    assert_close(before, result.graph)


def test_the_recipe_keeps_a_node() -> None:
    before = model("[one] a = MatMul(x, w) [two] b = MatMul(a, w) [three] y = MatMul(b, w)")
    result = halved(before, "two")
    assert listing(result.graph) == lines(
        """
        x_half = Cast<to=10>(x)
        a = MatMul(x_half, w_half)
        a_float = Cast<to=1>(a)
        b = MatMul(a_float, w)
        b_half = Cast<to=10>(b)
        y_half = MatMul(b_half, w_half)
        y = Cast<to=1>(y_half)
        """
    )
    assert_close(before, result.graph)


def test_moving_between_float32_operators_needs_no_casts() -> None:
    before = model("[one] a = MatMul(x, w) [turn] t = Transpose(a) [back] b = Transpose(t) [two] y = MatMul(b, w)")
    result = halved(before, "one", "two")
    assert changes(result) == []  # nothing is left that half precision would be good for
    more = model("[one] a = MatMul(x, w) [turn] t = Transpose(a) [act] u = Tanh(t) [back] y = Transpose(u)")
    assert [c.node for c in changes(halved(more, "one")) if c.done] == ["turn", "act", "back"]


def test_scales_of_a_resize_stay() -> None:
    before = read(
        '(float[1,2,4,4] x) => (float[1,2,8,8] y) { a = Relu(x) y = Resize<mode="linear">(a, "", s) }',
        {"s": np.array([1, 1, 2, 2], np.float32)},
    )
    after = halved(before).graph
    assert after.tensors()["s"].dtype == np.float32
    assert types(after)["y_half"] == np.float16
    assert_close(before, after)


def test_masks_end_where_two_of_them_still_have_a_sum() -> None:
    """Rows that are hidden as a whole must not become NaN."""
    weights = {"far": np.float32(-3.4e38), "zero": np.float32(0), "axis": np.array([1])}
    text = "h = Where(hidden, far, zero) m = Unsqueeze(h, axis) s = MatMul(x, w) a = Add(s, m) y = Softmax(a)"
    before = read(f"(float[2,3,16] x, bool[2,16] hidden) => (float[2,3,16] y) {{ {text} }}", {"w": W * 50, **weights})
    after = halved(before).graph
    hidden = np.arange(16) > np.array([[7], [-1]])
    feeds = {"x": floats(2, 3, 16), "hidden": hidden}
    for optimize in (False, True):
        (found,) = execute(after, feeds, optimize=optimize)
        assert np.isfinite(found).all()
        assert not found[0, :, 8:].any()
        np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-2)
    assert HIDDEN + HIDDEN >= -HIGHEST


def test_a_mask_in_a_constant_and_an_open_end() -> None:
    weights = {"mask": np.triu(np.full((16, 16), -1e9, np.float32), 1), "low": np.float32(-3.4e38)}
    weights["high"] = np.float32(3.4e38)
    before = read(
        "(float[16,16] x) => (float[16,16] y) { a = Clip(x, low, high) b = Add(a, mask) y = Softmax(b) }", weights
    )
    after = halved(before).graph
    assert set(np.unique(weight(after.tensors()["mask"]))) == {HIDDEN, 0}
    assert weight(after.tensors()["high"]) == HIGHEST
    assert_close(before, after, {"x": floats(16, 16)})


def test_an_epsilon_does_not_become_zero() -> None:
    before = model("a = Abs(x) b = Add(a, e) y = Div(b, b)", {"e": np.float32(1e-12)})
    after = halved(before).graph
    assert weight(after.tensors()["e"]) > 0
    assert np.isfinite(execute(after, {"x": np.zeros((2, 16), np.float32)})[0]).all()


def test_a_constant_that_goes_past_keeps_its_reader() -> None:
    before = model("a = Relu(x) [big] b = Mul(a, c) y = Tanh(b)", {"c": np.float32(1e5)})
    assert refusal(halved(before), "big") == "Constant 'c' reaches 1e+05, more than 65504."
    assert_close(before, halved(before).graph)


def test_positions_are_computed_in_float32() -> None:
    """3001 is no number of half precision."""
    text = "p = Cast<to=1>(ids) q = Mul(p, step) c = Cos(q) r = Unsqueeze(c, axis) y = Mul(x, r) "
    text += "h = Mul(p, two) k = Cast<to=7>(h)"
    numbers = {"step": np.float32(0.37), "two": np.float32(2), "axis": np.array([1])}
    before = read(f"(float[2,16] x, int64[2] ids) => (float[2,16] y, int64[2] k) {{ {text} }}", numbers)
    after = halved(before).graph
    feeds = {"x": floats(2, 16), "ids": np.array([3001, 5003])}
    assert_close(before, after, feeds)
    np.testing.assert_array_equal(execute(after, feeds)[1], [6002, 10006])
    assert [n.op for n in after.nodes if n.outputs[0].name in ("p", "q", "c")] == ["Cast", "Mul", "Cos"]
    assert types(after)["c"] == np.float32


def test_a_mean_of_squares_is_computed_in_float32() -> None:
    """300 squared goes past half precision."""
    numbers = {"two": np.float32(2), "eps": np.float32(1e-6), "g": floats(16), "last": np.array([-1])}
    text = """
        a = MatMul(x, w) [square] s = Pow(a, two) [mean] m = ReduceMean<axes=[-1]>(s) [sum] e = Add(m, eps)
        [root] r = Sqrt(e) [unit] u = Div(a, r) [gain] y = Mul(u, g)
    """
    before = model(text, numbers)
    result = halved(before)
    kept = {c.node for c in changes(result) if not c.done}
    assert kept == {"square", "mean", "sum", "root", "unit"}
    assert_close(before, result.graph, {"x": 300 * floats(3, 16)})


def test_bodies_stay_with_what_they_read() -> None:
    then, other = "() => (float[n,16] t) { t = MatMul(a, w) }", "() => (float[n,16] u) { u = Identity(a) }"
    text = f"""
        [one] a = MatMul(x, w) [if] b = If(q)<then_branch = g {then}, else_branch = h {other}> [two] y = MatMul(b, w)
    """
    for taken in (True, False):
        before = model(text, {"q": np.bool_(taken)})
        result = halved(before)
        assert refusal(result, "if") == "Its bodies compute in float32."
        assert types(result.graph)["a"] == np.float32
        assert result.graph.tensors()["w_half"].dtype == np.float16
        assert_close(before, result.graph)


def test_sequences_hold_float32() -> None:
    text = "[one] a = Relu(x) [put] s = SequenceConstruct(a, a) [get] b = SequenceAt(s, zero) [two] y = Tanh(b)"
    before = model(text, {"zero": np.int64(0)})
    result = halved(before)
    assert "something else than a tensor" in refusal(result, "put")
    assert_close(before, result.graph)


def test_casts_of_the_model() -> None:
    """From float64, to float64, to half and back: what is left of them is needed."""
    text = """
        d = Cast<to=11>(x) e = Cos(d) f = Cast<to=1>(e) g = Cast<to=10>(f) h = Neg(g) i = Cast<to=1>(h) j = Tanh(i)
        k = Shape(j) y = Cast<to=1>(j)
    """
    before = read(f"(float[2,16] x) => (float[2,16] y, int64[2] k) {{ {text} }}", {})
    after = halved(before).graph
    assert listing(after) == lines(
        """
        d = Cast<to=11>(x)
        e = Cos(d)
        f = Cast<to=10>(e)
        h = Neg(f)
        j = Tanh(h)
        k = Shape(j)
        y = Cast<to=1>(j)
        """
    )
    assert_close(before, after)


@pytest.mark.parametrize(("opset", "stays"), [(10, True), (11, True), (12, False), (21, False)])
def test_clip_has_kernels_since_opset_12(opset: int, stays: bool) -> None:
    ends = "<min=-1.0, max=1.0>(a)" if opset < 11 else "(a, low, high)"
    numbers = {} if opset < 11 else {"low": np.float32(-1), "high": np.float32(1)}
    before = model(f"[fc] a = MatMul(x, w) [cut] y = Clip{ends}", numbers, opset)
    result = halved(before)
    assert ("cut" in {c.node for c in changes(result) if not c.done}) == stays
    assert_close(before, result.graph)


def test_the_outputs_of_a_norm_that_are_float32_keep_it() -> None:
    text = "[ln] y, m = LayerNormalization(x, g) [fc] z = MatMul(y, w)"
    before = read(f"(float[n,16] x) => (float[n,16] z, float[n,1] m) {{ {text} }}", {"w": W, "g": floats(16)})
    assert refusal(halved(before), "ln") == "Its other outputs are float32."
    assert_close(before, halved(before).graph)


def test_weights_in_integers_are_multiplied_with_halves() -> None:
    before = model("[fc] a = MatMul(x, w) [bias] b = Add(a, c) [act] y = Tanh(b)", {"c": floats(16)})
    wanted = make_recipe({"mode": "weight-int4", "target": "cuda"})
    weights = place_linear(before, wanted, Treatment.WEIGHT, 4).nodes
    plan = Plan(recipe=wanted, nodes=half_beside(before, wanted, CUDA, weights))
    after = run([HalfPrecision(), QuantizeWeights()], before, Context(CUDA, plan), EVERYTHING).graph
    (node,) = [node for node in after.nodes if node.op == "MatMulNBits"]
    assert [str(t.dtype) for t in node.inputs if t.name] == ["float16", "uint8", "float16", "uint8", "float16"]
    assert "w" not in after.tensors()
    assert_close(before, after, least=15.0)


def test_left_alone_on_a_target_that_computes_in_float32() -> None:
    before = model("[fc] y = MatMul(x, w)")
    plan = Plan(recipe=recipe(), nodes=half_nodes(before, recipe(), CUDA))
    result = run([HalfPrecision()], before, Context(CPU, plan), EVERYTHING)
    assert (listing(result.graph), changes(result)) == (listing(before), [])


def test_left_alone_without_anything_in_half_precision() -> None:
    before = model("[fc] y = MatMul(x, w)")
    result = halved(before, "fc")
    assert (listing(result.graph), changes(result)) == (listing(before), [])


def test_what_data_showed_to_be_large() -> None:
    before = model("[one] a = MatMul(x, w) [two] y = MatMul(a, w)")
    assert refusal(halved(before, spared={"one": "Too large."}), "one") == "Too large."
