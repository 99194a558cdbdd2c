"""The plan, written as Q/DQ: which tensors, which names, which scales, and how close the result stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.errors import RecipeError
from onnxq.graph import Graph, to_model, weight
from onnxq.numerics.affine import parameters, quantize_weight
from onnxq.numerics.formats import FORMATS
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.plan import NodePlan, Plan, TensorPlan, Treatment
from onnxq.recipe import Recipe, make_recipe
from onnxq.runtime import Session
from onnxq.weights import differences
from tests.onnx_text import (
    apply,
    assert_same,
    changes,
    execute,
    floats,
    lines,
    listing,
    normal,
    ops,
    read,
    sqnr,
)

LEAST = 33.0
"""The input's numbers reach 3 to 4 deviations: 8 / 255 / sqrt(12) of noise, 41 dB; the int8 weight and the 8-bit output
have as much: 36 dB together. Three less, since few numbers are drawn."""


def range_of(low: float, high: float, format: str = "uint8", **more: Any) -> TensorPlan:
    scale, zero = parameters(low, high, FORMATS[format])
    return TensorPlan(
        format=format, scale=float(scale), zero_point=int(zero), low=low, high=high, reason="Range by hand.", **more
    )


def plan_of(nodes: dict[str, str], tensors: dict[str, TensorPlan], recipe: Recipe | None = None, **more: Any) -> Plan:
    """A plan that runs the nodes {name: operator} on static integers."""
    static = {
        name: NodePlan(op=op, treatment=Treatment.STATIC, reason=f"{name} pays.", **more) for name, op in nodes.items()
    }
    return Plan(recipe=recipe or Recipe(), nodes=static, tensors=tensors)


def chosen(graph: Graph, names: str) -> dict[str, TensorPlan]:
    """The range of each named tensor for the numbers that the tests feed."""
    feeds = normal(graph)
    inner = [name for name in names.split() if name not in feeds]
    model = to_model(graph, extra_outputs=inner).SerializeToString()
    seen = feeds | Session(model, threads=1, optimize=False).run(feeds)
    return {name: range_of(float(seen[name].min()), float(seen[name].max())) for name in names.split()}


def noise(before: Graph, after: Graph) -> float:
    """The least signal to noise ratio, in dB, of any output at any optimization level."""
    feeds = normal(before)
    reference = execute(before, feeds)
    runs = [execute(after, feeds, optimize=optimize) for optimize in (False, True)]
    return min(sqnr(want, have) for run in runs for want, have in zip(reference, run, strict=True))


IMAGE = "2,4,6,6"
W = {"w": floats(6, 4, 3, 3), "b": floats(6), "v": floats(6, 6, 3, 3, seed=9), "m": floats(8, 5), "mt": floats(5, 8)}
W |= {"k": floats(5), "n": floats(5, 5)}


def image(body: str, outputs: str = "", opset: int = 17, weights: dict[str, Any] | None = None) -> Graph:
    return read(f"(float[{IMAGE}] x) => (float[a,b,c,d] y{outputs}) {{ {body} }}", W | (weights or {}), opset)


def row(body: str, outputs: str = "", x: str = "3,8") -> Graph:
    return read(f"(float[{x}] x) => (float[{','.join('abc'[: x.count(',') + 1])}] y{outputs}) {{ {body} }}", W)


def test_convolution_with_a_bias() -> None:
    before = image("[conv] y = Conv(x, w, b)")
    result = apply(InsertQdq(), before, plan_of({"conv": "Conv"}, chosen(before, "x y")))
    assert listing(result.graph) == lines(
        """
        b_dequantized = DequantizeLinear<axis=0>(b_quantized, b_scale, b_zero_point)
        w_dequantized = DequantizeLinear<axis=0>(w_quantized, w_scale, w_zero_point)
        x_quantized = QuantizeLinear(x, x_scale, x_zero_point)
        x_dequantized = DequantizeLinear(x_quantized, x_scale, x_zero_point)
        y_unquantized = Conv(x_dequantized, w_dequantized, b_dequantized)
        y_quantized = QuantizeLinear(y_unquantized, y_scale, y_zero_point)
        y = DequantizeLinear(y_quantized, y_scale, y_zero_point)
        """
    )
    assert [(c.node, c.op, c.done, c.reason) for c in changes(result)] == [("conv", "Conv", "Q/DQ", "conv pays.")]
    tensors = result.graph.tensors()
    assert (weight(tensors["w_quantized"]).dtype, weight(tensors["b_quantized"]).dtype) == (np.int8, np.int32)
    unit = weight(tensors["x_scale"]) * weight(tensors["w_scale"])
    np.testing.assert_allclose(weight(tensors["b_scale"]), unit, rtol=1e-6)
    assert noise(before, result.graph) > LEAST


@pytest.mark.parametrize("activation", ["Relu(c)", "Clip(c, zero, six)"])
def test_activation_belongs_to_the_layer(activation: str) -> None:
    """Q stands behind it, so that saturation can replace it; and nothing stands between."""
    before = image(
        f"[conv] c = Conv(x, w, b) [act] y = {activation}", weights={"zero": np.float32(0), "six": np.float32(6)}
    )
    result = apply(InsertQdq(), before, plan_of({"conv": "Conv"}, chosen(before, "x y")))
    kind = activation.split("(")[0]
    assert [op for op in ops(result.graph) if op != "DequantizeLinear"] == [
        "QuantizeLinear",
        "Conv",
        kind,
        "QuantizeLinear",
    ]
    assert noise(before, result.graph) > LEAST


def test_linear_layer_returns_floats_to_a_float_operator() -> None:
    """The bias then stays as it is, and no Q stands behind."""
    before = row("[fc] p = MatMul(x, m) s = Add(p, k) y = Tanh(s)")
    result = apply(InsertQdq(), before, plan_of({"fc": "MatMul"}, chosen(before, "x s")))
    assert listing(result.graph) == lines(
        """
        m_dequantized = DequantizeLinear<axis=1>(m_quantized, m_scale, m_zero_point)
        x_quantized = QuantizeLinear(x, x_scale, x_zero_point)
        x_dequantized = DequantizeLinear(x_quantized, x_scale, x_zero_point)
        p = MatMul(x_dequantized, m_dequantized)
        s = Add(p, k)
        y = Tanh(s)
        """
    )
    assert noise(before, result.graph) > LEAST


def test_linear_layer_returns_integers_to_an_integer_operator() -> None:
    before = row("[fc] p = MatMul(x, m) s = Add(p, k) r = Relu(s) [two] y = Gemm(r, n, k)")
    result = apply(InsertQdq(), before, plan_of({"fc": "MatMul", "two": "Gemm"}, chosen(before, "x r")))
    assert listing(result.graph) == lines(
        """
        m_dequantized = DequantizeLinear<axis=1>(m_quantized, m_scale, m_zero_point)
        n_dequantized = DequantizeLinear<axis=1>(n_quantized, n_scale, n_zero_point)
        x_quantized = QuantizeLinear(x, x_scale, x_zero_point)
        x_dequantized = DequantizeLinear(x_quantized, x_scale, x_zero_point)
        p = MatMul(x_dequantized, m_dequantized)
        s = Add(p, k)
        r_unquantized = Relu(s)
        r_quantized = QuantizeLinear(r_unquantized, r_scale, r_zero_point)
        r = DequantizeLinear(r_quantized, r_scale, r_zero_point)
        y = Gemm(r, n_dequantized, k)
        """
    )
    assert noise(before, result.graph) > LEAST


def test_gemm_that_returns_integers_has_an_integer_bias() -> None:
    before = row("[fc] r = Gemm<transB=1>(x, mt, k) [two] y = Gemm(r, n)")
    result = apply(InsertQdq(), before, plan_of({"fc": "Gemm", "two": "Gemm"}, chosen(before, "x r")))
    assert "k_dequantized = DequantizeLinear<axis=0>(k_quantized, k_scale, k_zero_point)" in listing(result.graph)
    assert "r_unquantized = Gemm<transB=1>(x_dequantized, mt_dequantized, k_dequantized)" in listing(result.graph)
    assert "mt_dequantized = DequantizeLinear<axis=0>" in listing(result.graph)
    assert noise(before, result.graph) > LEAST


def test_qdq_that_the_runtime_folds_has_an_integer_bias_even_where_floats_come_out() -> None:
    before = row("[fc] r = Gemm(x, m, k) y = Tanh(r)")
    recipe = make_recipe({"format": "qdq"})
    result = apply(InsertQdq(), before, plan_of({"fc": "Gemm"}, chosen(before, "x"), recipe))
    assert "k_dequantized" in listing(result.graph)
    assert noise(before, result.graph) > LEAST


def test_what_a_float_operator_makes_is_read_as_integers_by_integer_operators_only() -> None:
    before = image(
        "t = Tanh(x) [conv] c = Conv<pads=[1,1,1,1]>(t, v4) y = Add(c, t)", weights={"v4": floats(4, 4, 3, 3)}
    )
    result = apply(InsertQdq(), before, plan_of({"conv": "Conv"}, chosen(before, "t c")))
    assert listing(result.graph) == lines(
        """
        t = Tanh(x)
        v4_dequantized = DequantizeLinear<axis=0>(v4_quantized, v4_scale, v4_zero_point)
        t_quantized = QuantizeLinear(t, t_scale, t_zero_point)
        t_dequantized = DequantizeLinear(t_quantized, t_scale, t_zero_point)
        c_unquantized = Conv<pads=[1, 1, 1, 1]>(t_dequantized, v4_dequantized)
        c_quantized = QuantizeLinear(c_unquantized, c_scale, c_zero_point)
        c = DequantizeLinear(c_quantized, c_scale, c_zero_point)
        y = Add(c, t)
        """
    )
    assert noise(before, result.graph) > LEAST


def test_what_an_integer_operator_makes_is_read_dequantized_by_everybody() -> None:
    before = image("[conv] c = Conv(x, w) [two] d = Conv<pads=[1,1,1,1]>(c, v) t = Tanh(c) y = Add(t, d)")
    result = apply(InsertQdq(), before, plan_of({"conv": "Conv", "two": "Conv"}, chosen(before, "x c d")))
    text = listing(result.graph)
    assert "t = Tanh(c)" in text
    assert "d_unquantized = Conv<pads=[1, 1, 1, 1]>(c, v_dequantized)" in text
    assert text.count("c_quantized = ") == 1
    assert noise(before, result.graph) > LEAST


def test_output_of_the_model_keeps_its_name_and_type() -> None:
    before = image("[conv] c = Conv(x, w) [two] y = Conv(c, v)", outputs=", float[a,b,e,f] c")
    after = apply(InsertQdq(), before, plan_of({"conv": "Conv", "two": "Conv"}, chosen(before, "x c y"))).graph
    assert after.interface() == before.interface()
    assert "c = DequantizeLinear(c_quantized" in listing(after)
    assert noise(before, after) > LEAST


def test_followers_are_wrapped_too() -> None:
    before = image("[conv] c = Conv(x, w) [pool] y = AveragePool<kernel_shape=[2,2]>(c)")
    result = apply(InsertQdq(), before, plan_of({"conv": "Conv", "pool": "AveragePool"}, chosen(before, "x c y")))
    assert listing(result.graph).endswith(
        lines(
            """
            y_unquantized = AveragePool<kernel_shape=[2, 2]>(c)
            y_quantized = QuantizeLinear(y_unquantized, y_scale, y_zero_point)
            y = DequantizeLinear(y_quantized, y_scale, y_zero_point)
            """
        )
    )
    assert [c.node for c in changes(result)] == ["conv", "pool"]
    assert noise(before, result.graph) > LEAST


def test_every_output_of_split_gets_its_own() -> None:
    before = image(
        "[conv] c = Conv(x, w) [split] d, e = Split<axis=1>(c, p) y = Add(d, e)", weights={"p": np.array([3, 3])}
    )
    ranges = chosen(before, "x c")
    ranges |= {"d": ranges["c"], "e": ranges["c"]}
    result = apply(InsertQdq(), before, plan_of({"conv": "Conv", "split": "Split"}, ranges))
    text = listing(result.graph)
    assert "d_unquantized, e_unquantized = Split<axis=1>(c, p)" in text
    assert "d = DequantizeLinear(d_quantized, c_scale, c_zero_point)" in text
    assert "e = DequantizeLinear(e_quantized, c_scale, c_zero_point)" in text
    assert noise(before, result.graph) > LEAST


def test_tensor_that_is_read_twice_by_one_operator() -> None:
    before = image("[conv] c = Conv(x, w) [add] y = Add(c, c)")
    result = apply(InsertQdq(), before, plan_of({"conv": "Conv", "add": "Add"}, chosen(before, "x c y")))
    assert "y_unquantized = Add(c, c)" in listing(result.graph)
    assert noise(before, result.graph) > LEAST


@pytest.mark.parametrize("per_channel", [True, False])
def test_granularity(per_channel: bool) -> None:
    before = image("[conv] y = Conv(x, w, b)")
    plan = plan_of({"conv": "Conv"}, chosen(before, "x y"), per_channel=per_channel)
    tensors = apply(InsertQdq(), before, plan).graph.tensors()
    shape = (6,) if per_channel else ()
    assert [weight(tensors[n]).shape for n in ("w_scale", "w_zero_point", "b_scale")] == [shape] * 3


@pytest.mark.parametrize(("format", "symmetric"), [("int8", True), ("int8", False), ("uint8", True), ("uint8", False)])
def test_form_of_weights(format: str, symmetric: bool) -> None:
    before = row("[fc] y = MatMul(x, m)")
    recipe = make_recipe({"weight": {"format": format, "symmetric": symmetric}})
    after = apply(InsertQdq(), before, plan_of({"fc": "MatMul"}, chosen(before, "x"), recipe)).graph
    zero = weight(after.tensors()["m_zero_point"])
    assert zero.dtype == np.dtype(format)
    assert (set(zero.tolist()) == {0 if format == "int8" else 128}) == symmetric
    assert noise(before, after) > LEAST


def test_signed_activations() -> None:
    before = row("[fc] y = MatMul(x, m)")
    after = apply(InsertQdq(), before, plan_of({"fc": "MatMul"}, {"x": range_of(-3, 3, "int8")})).graph
    assert weight(after.tensors()["x_zero_point"]).dtype == np.int8
    assert noise(before, after) > LEAST - 3  # x is cut at 3


def test_weight_that_two_layers_share_is_stored_once() -> None:
    before = row("[one] p = MatMul(x, m) [two] q = MatMul(x, m) y = Sub(p, q)")
    after = apply(InsertQdq(), before, plan_of({"one": "MatMul", "two": "MatMul"}, chosen(before, "x"))).graph
    assert [t.name for t in after.tensors().values() if tuple(t.shape or ()) == (8, 5)] == [
        "m_quantized",
        "m_dequantized",
    ]


def test_bias_that_two_layers_share_is_stored_for_each() -> None:
    """Its unit is the input scale times the weight scale, and these differ."""
    before = image("[one] c = Conv(x, w, b) [two] y = Conv(c, v, b)")
    after = apply(InsertQdq(), before, plan_of({"one": "Conv", "two": "Conv"}, chosen(before, "x c y"))).graph
    assert {"b_quantized", "b_quantized_1"} <= set(after.tensors())
    assert noise(before, after) > LEAST


def test_weight_scale_makes_room_for_a_large_bias() -> None:
    """In units of 3e-9 a bias of 20 does not fit in 32 bits; the weights, which hardly matter beside it, lose bits."""
    small = {"w": floats(6, 4, 3, 3) * np.float32(1e-5), "b": floats(6) + np.float32(20)}
    before = image("[conv] y = Conv(x, w, b)", weights=small)
    ranges = {"x": range_of(-0.001, 0.001), **chosen(before, "y")}
    after = apply(InsertQdq(), before, plan_of({"conv": "Conv"}, ranges)).graph
    tensors = after.tensors()
    stored = weight(tensors["b_quantized"]).astype(np.int64)
    assert np.all(np.abs(stored) < 2**31 - 1 - 36 * 255 * 127)
    np.testing.assert_allclose(stored * weight(tensors["b_scale"]), small["b"], rtol=1e-6)


def test_scale_that_made_room_is_not_shared_with_another_layer() -> None:
    """The same small weight, once with a large bias and once with none: two scales, stored twice."""
    small = {"w": floats(6, 4, 3, 3) * np.float32(1e-5), "b": floats(6) + np.float32(20)}
    before = image("[one] c = Conv(x, w, b) [two] d = Conv(x, w) y = Add(c, d)", weights=small)
    ranges = {"x": range_of(-0.001, 0.001), **chosen(before, "c d")}
    tensors = apply(InsertQdq(), before, plan_of({"one": "Conv", "two": "Conv"}, ranges)).graph.tensors()
    assert np.all(weight(tensors["w_scale"]) > 2 * weight(tensors["w_scale_1"]))


def moved(values: Any, axis: int, seed: int) -> tuple[str, Any]:
    """A rounding for a weight, and the integers that come of it: some of them one step closer to zero."""
    nearest = quantize_weight(values, FORMATS["int8"], axis=axis).values
    step = np.sign(nearest) * (np.random.default_rng(seed).random(nearest.shape) < 0.3).astype(np.int8)
    return differences(nearest - step, nearest), nearest - step


def with_rounding(plan: Plan, **rounding: str) -> Plan:
    nodes = {n: node.model_copy(update={"rounding": rounding.get(n, "")}) for n, node in plan.nodes.items()}
    return plan.model_copy(update={"nodes": nodes})


@pytest.mark.parametrize(
    ("body", "name", "axis"),
    [
        ("[fc] y = Gemm(x, m, k)", "m", 1),
        ("[fc] y = Gemm<transB=1>(x, mt, k)", "mt", 0),
        ("[fc] p = MatMul(x, m) y = Add(p, k)", "m", 1),
    ],
)
def test_integers_of_the_plan_are_stored_and_the_bias_goes_with_them(body: str, name: str, axis: int) -> None:
    text, integers = moved(W[name], axis, 3)
    before, means = row(body), np.linspace(0.5, 2, 8)
    plan = plan_of({"fc": "Gemm"}, {"x": range_of(0, 2, means=means.tolist())})
    tensors = apply(InsertQdq(), before, with_rounding(plan, fc=text)).graph.tensors()
    np.testing.assert_array_equal(weight(tensors[f"{name}_quantized"]), integers)
    plain = apply(InsertQdq(), before, plan).graph.tensors()
    np.testing.assert_array_equal(weight(tensors[f"{name}_scale"]), weight(plain[f"{name}_scale"]))
    seen = integers.astype(np.float64) * np.expand_dims(weight(tensors[f"{name}_scale"]), 1 - axis)
    error = (seen - W[name]) if axis == 1 else (seen - W[name]).T
    np.testing.assert_allclose(weight(tensors["fc_bias_corrected"]), W["k"] - means @ error, rtol=1e-5, atol=1e-5)


def test_where_a_scale_makes_room_the_plan_keeps_the_other_channels() -> None:
    small, bias = W["w"] * np.float32(1e-5), np.array([0, 0, 0, 20, 0, 0], np.float32)
    text, integers = moved(small, 0, 1)
    before = image("[conv] y = Conv(x, s, big)", weights={"s": small, "big": bias})
    plan = plan_of({"conv": "Conv"}, {"x": range_of(-0.001, 0.001), "y": range_of(0, 20)})
    raised = apply(InsertQdq(), before, plan).graph.tensors()
    tensors = apply(InsertQdq(), before, with_rounding(plan, conv=text)).graph.tensors()
    scales = weight(tensors["s_scale"])
    np.testing.assert_array_equal(scales, weight(raised["s_scale"]))
    assert scales[3] > 2 * np.abs(small[3]).max() / 127
    others = np.arange(6) != 3
    np.testing.assert_array_equal(weight(tensors["s_quantized"])[others], integers[others])
    np.testing.assert_array_equal(weight(tensors["s_quantized"])[3], weight(raised["s_quantized"])[3])


def test_layers_that_share_a_weight_and_not_its_integers_have_one_each() -> None:
    before = image("[one] c = Conv(x, w) [two] d = Conv(x, w) [three] e = Conv(x, w) f = Add(c, d) y = Add(f, e)")
    plan = plan_of({"one": "Conv", "two": "Conv", "three": "Conv"}, chosen(before, "x c d e"))
    (first, integers), (second, others) = moved(W["w"], 0, 1), moved(W["w"], 0, 2)
    result = apply(InsertQdq(), before, with_rounding(plan, one=first, two=second, three=first))
    tensors = result.graph.tensors()
    np.testing.assert_array_equal(weight(tensors["w_quantized"]), integers)
    np.testing.assert_array_equal(weight(tensors["w_quantized_1"]), others)
    assert "w_quantized_2" not in tensors


def test_a_rounding_that_does_not_fit_names_its_node() -> None:
    before = row("[fc] y = MatMul(x, m)")
    plan = with_rounding(plan_of({"fc": "MatMul"}, {"x": range_of(0, 2)}), fc=moved(W["k"], 0, 1)[0])
    with pytest.raises(RecipeError, match="Node 'fc': the rounding in the plan does not fit its weight"):
        apply(InsertQdq(), before, plan)


MEANS = {"x": range_of(0, 2, means=[1.0] * 8)}


@pytest.mark.parametrize(
    "body",
    [
        "[fc] y = Gemm(x, m, k)",
        "[fc] y = Gemm(x, m)",
        "[fc] y = Gemm<transB=1>(x, mt, k)",
        "[fc] p = MatMul(x, m) y = Add(p, k)",
    ],
)
def test_bias_makes_up_for_the_mean_error_of_the_weight(body: str) -> None:
    """At the mean of the input the layer then returns what the float layer returns."""
    before = row(body)
    op = "MatMul" if "MatMul" in body else "Gemm"
    plan = plan_of({"fc": op}, MEANS, make_recipe({"weight": {"correct_bias": True}}))
    after = apply(InsertQdq(), before, plan).graph
    assert "fc_bias_corrected" in after.tensors()
    at_mean = {"x": np.full((3, 8), 2 * 128 / 255, np.float32)}  # on the grid, and within half a percent of 1
    (want,), (have,) = execute(before, at_mean), execute(after, at_mean)
    plain = apply(InsertQdq(), before, plan_of({"fc": op}, {"x": range_of(0, 2)})).graph
    error, without = np.abs(have - want).max(), np.abs(execute(plain, at_mean)[0] - want).max()
    assert error < 0.02 * without


def test_groups_have_means_of_their_own() -> None:
    means = [0.5, 1.0, 1.5, 2.0]
    weights = {"g": floats(6, 2, 1, 1), "b": floats(6)}
    before = image("[conv] y = Conv<group=2>(x, g, b)", weights=weights)
    ranges = {"x": range_of(0, 2.55, means=means), "y": range_of(-8, 8)}
    after = apply(InsertQdq(), before, plan_of({"conv": "Conv"}, ranges)).graph
    tensors = after.tensors()
    rounded = weight(tensors["g_quantized"]) * weight(tensors["g_scale"]).reshape(6, 1, 1, 1)
    error = (rounded - weights["g"])[:, :, 0, 0] * np.repeat([means[:2], means[2:]], 3, axis=0)
    stored = weight(tensors["b_quantized"]) * weight(tensors["b_scale"])
    np.testing.assert_allclose(stored, weights["b"] - error.sum(axis=1), atol=1e-4)


def test_leaves_alone_what_the_plan_does_not_name() -> None:
    before = image("[conv] c = Conv(x, w, b) [other] y = Conv(c, v)")
    result = apply(InsertQdq(), before, plan_of({}, {}))
    assert listing(result.graph) == listing(before)
    result = apply(InsertQdq(), before, plan_of({"other": "Conv"}, chosen(before, "c y")))
    assert "c = Conv(x, w, b)" in listing(result.graph)
    assert noise(before, result.graph) > LEAST


def test_range_that_nobody_reads_leaves_no_trace() -> None:
    before = row("[fc] y = MatMul(x, m) ")
    plan = plan_of({"fc": "MatMul"}, {**chosen(before, "x"), "nowhere": range_of(0, 1), "y": range_of(-9, 9)})
    result = apply(InsertQdq(), before, plan)
    assert ops(result.graph) == ["DequantizeLinear", "QuantizeLinear", "DequantizeLinear", "MatMul"]


def test_running_twice_equals_running_once() -> None:
    before = image(
        "[conv] c = Conv(x, w, b) r = Relu(c) [two] d = Conv(r, v) [pool] y = AveragePool<kernel_shape=[2,2]>(d)"
    )
    plan = plan_of({"conv": "Conv", "two": "Conv", "pool": "AveragePool"}, chosen(before, "x r d y"))
    once = apply(InsertQdq(), before, plan)
    twice = apply(InsertQdq(), once.graph, plan)
    assert listing(twice.graph) == listing(once.graph)
    assert changes(twice) == []
    assert_same(once.graph, twice.graph)
