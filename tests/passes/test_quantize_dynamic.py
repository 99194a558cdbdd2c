"""Linear layers whose input scale is found on each run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.graph import Graph, weight
from onnxq.passes.quantize_dynamic import QuantizeDynamic
from onnxq.plan import NodePlan, Plan, Treatment
from onnxq.recipe import Recipe, Weight
from tests.onnx_text import apply, changes, execute, floats, lines, listing, normal, ops, read, sqnr

W = {"w": floats(64, 32), "wt": floats(32, 64), "v": floats(32, 32, seed=5), "b": floats(32), "row": floats(1, 32)}
LEAST = 36.0
"""64 normal numbers reach 2.5 deviations: an int8 weight with a scale per channel has 2.5 / 127 / sqrt(12) of noise,
45 dB (42 for one scale per weight, whose largest is 3.5); the uint8 input 5 / 255 / sqrt(12), 45 dB; together 42 (40).
Four less, since few numbers are drawn."""


def plan(*names: str, per_channel: bool = True, **weights: Any) -> Plan:
    found = {
        name: NodePlan(op="MatMul", treatment=Treatment.DYNAMIC, reason="A layer.", per_channel=per_channel)
        for name in names
    }
    return Plan(recipe=Recipe(weight=Weight(**weights)), nodes=found)


def model(body: str, *, x: str = "3,64", opset: int = 17, outputs: str = "") -> Graph:
    names = ",".join("abcd"[: x.count(",") + 1])
    return read(f"(float[{x}] x) => (float[{names}] y{outputs}) {{ {body} }}", W, opset)


def assert_close(before: Graph, after: Graph) -> None:
    feeds = normal(before)
    for optimize in (False, True):
        for want, have in zip(execute(before, feeds), execute(after, feeds, optimize=optimize), strict=True):
            assert have.shape == want.shape
            assert sqnr(want, have) > LEAST


FORMS = {
    "MatMul": ("[fc] y = MatMul(x, w)", "3,64", ""),
    "MatMul of three axes": ("[fc] y = MatMul(x, w)", "2,3,64", ""),
    "MatMul with bias": ("[fc] m = MatMul(x, w) y = Add(m, b)", "3,64", "b"),
    "MatMul with bias on the left": ("[fc] m = MatMul(x, w) y = Add(b, m)", "2,3,64", "b"),
    "MatMul with a row": ("[fc] m = MatMul(x, w) y = Add(m, row)", "3,64", "row_flat"),
    "Gemm": ("[fc] y = Gemm(x, w)", "3,64", ""),
    "Gemm with bias": ("[fc] y = Gemm(x, w, b)", "3,64", "b"),
    "Gemm, transposed weight": ("[fc] y = Gemm<transB=1>(x, wt, b)", "3,64", "b"),
}


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_layer(form: str, per_channel: bool) -> None:
    body, x, bias = FORMS[form]
    before = model(body, x=x)
    result = apply(QuantizeDynamic(), before, plan("fc", per_channel=per_channel))
    name = "wt" if "wt" in body else "w"
    more = f', "", {bias}' if bias else ', ""'
    expected = f"y = com.microsoft.DynamicQuantizeMatMul(x, {name}_quantized, {name}_scale{more})"
    assert listing(result.graph) == expected
    assert [(c.node, c.done) for c in changes(result)] == [("fc", "DynamicQuantizeMatMul")]
    stored = weight(result.graph.nodes[0].inputs[1])
    assert (stored.dtype, stored.shape) == (np.int8, (64, 32))
    assert weight(result.graph.nodes[0].inputs[2]).shape == ((32,) if per_channel else ())
    assert_close(before, result.graph)


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
def test_every_opset(opset: int) -> None:
    before = model("[one] p = Gemm(x, w, b) [two] q = Gemm(x, w) [three] r = Gemm(q, v) y = Add(p, r)", opset=opset)
    assert_close(before, apply(QuantizeDynamic(), before, plan("one", "two", "three")).graph)


def test_input_of_several_layers_is_quantized_once() -> None:
    body = "[q] a = MatMul(x, w) [k] b0 = MatMul(x, w) b1 = Add(b0, b) "
    body += "[o] d = Gemm<transB=1>(x, wt) e = Add(b1, d) y = Sub(a, e)"
    before = model(body)
    result = apply(QuantizeDynamic(), before, plan("q", "k", "o"))
    mixed = 'com.microsoft.MatMulIntegerToFloat(x_quantized, {w}_quantized, x_scale, {w}_scale, x_zero_point, ""{b})'
    assert listing(result.graph) == lines(
        f"""
        x_quantized, x_scale, x_zero_point = DynamicQuantizeLinear(x)
        a = {mixed.format(w="w", b="")}
        b1 = {mixed.format(w="w", b=", b")}
        d = {mixed.format(w="wt", b="")}
        e = Add(b1, d)
        y = Sub(a, e)
        """
    )
    assert [(c.node, c.done) for c in changes(result)] == [(n, "MatMulIntegerToFloat") for n in ("q", "k", "o")]
    assert_close(before, result.graph)


def test_activation_stays_behind_the_layer() -> None:
    before = model("[fc] p = MatMul(x, w) s = Add(p, b) y = Relu(s)")
    result = apply(QuantizeDynamic(), before, plan("fc"))
    assert ops(result.graph) == ["DynamicQuantizeMatMul", "Relu"]
    assert_close(before, result.graph)


def test_layer_behind_a_layer() -> None:
    before = model("[one] p = MatMul(x, w) [two] y = MatMul(p, v)")
    result = apply(QuantizeDynamic(), before, plan("one", "two"))
    assert ops(result.graph) == ["DynamicQuantizeMatMul"] * 2
    assert_close(before, result.graph)


@pytest.mark.parametrize("format", ["int8", "uint8"])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("shared", [False, True])
def test_asymmetric_weight(shared: bool, per_channel: bool, format: str) -> None:
    body = "[one] p = MatMul(x, w) [two] q = MatMul(x, w) y = Add(p, q)" if shared else "[one] y = MatMul(x, w)"
    before = model(body)
    after = apply(
        QuantizeDynamic(), before, plan("one", "two", per_channel=per_channel, format=format, symmetric=False)
    )
    assert "w_zero_point" in after.graph.tensors()
    assert_close(before, after.graph)


def test_weight_of_two_layers_is_stored_for_each_granularity() -> None:
    before = model("[one] p = MatMul(x, w) [two] q = MatMul(x, w) y = Add(p, q)")
    wish = plan("one", "two")
    coarse = wish.nodes["two"].model_copy(update={"per_channel": False})
    result = apply(QuantizeDynamic(), before, wish.model_copy(update={"nodes": wish.nodes | {"two": coarse}}))
    assert sorted(t.name for t in result.graph.tensors().values() if t.dtype == np.int8) == [
        "w_quantized",
        "w_quantized_1",
    ]
    assert_close(before, result.graph)


def test_activations_are_never_signed() -> None:
    result = apply(
        QuantizeDynamic(), model("[one] p = Gemm(x, w) [two] q = Gemm(x, w) y = Add(p, q)"), plan("one", "two")
    )
    (quantize,) = [node for node in result.graph.nodes if node.op == "DynamicQuantizeLinear"]
    assert all(
        node.inputs[0] is quantize.outputs[0] for node in result.graph.nodes if node.op == "MatMulIntegerToFloat"
    )


LEFT = {
    "not named": ("[other] y = MatMul(x, w)", ""),
    "a convolution": ("[fc] y = Conv(x, k)", "1,2,5,5"),
    "a product of activations": ("t = Transpose(x) [fc] y = MatMul(x, t)", ""),
    "a Gemm that scales": ("[fc] y = Gemm<alpha=2.0>(x, w)", ""),
}


@pytest.mark.parametrize("case", ["not named", "a product of activations", "a Gemm that scales"])
def test_leaves_alone(case: str) -> None:
    before = model(LEFT[case][0])
    result = apply(QuantizeDynamic(), before, plan("fc"))
    assert listing(result.graph) == listing(before)
    assert changes(result) == []


def test_product_that_is_an_output_keeps_its_bias_outside() -> None:
    before = model("[fc] m = MatMul(x, w) y = Add(m, b)", outputs=", float[a,b] m")
    result = apply(QuantizeDynamic(), before, plan("fc"))
    assert ops(result.graph) == ["DynamicQuantizeMatMul", "Add"]
    assert_close(before, result.graph)
