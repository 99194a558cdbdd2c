"""Fewer than 8 bits: weights of 4 bits are widened, and a Clip on the integers of an activation stays one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from onnxq.graph import Graph, weight
from onnxq.passes.fold_integer import FoldInteger
from tests.onnx_text import apply, assert_same, assert_within, floats, grid, integers, into, listing, ops, out_of, read

Y = grid("y", -60, 60)
SIZES = {"stored in 8 bits": 8, "widened by the runtime": 1100}


def four_bits(shape: tuple[int, ...], axis: int, *, signed: bool = True, zero_point: bool = True) -> dict[str, Any]:
    """A weight of 4 bits with a scale for each channel."""
    kind = onnx.TensorProto.INT4 if signed else onnx.TensorProto.UINT4
    numbers = (np.arange(int(np.prod(shape))) * 7) % 16 - (8 if signed else 0)
    zeros = np.zeros(shape[axis], int) + (0 if signed else 8)
    values: dict[str, Any] = {
        "w": onnx.helper.make_tensor("w", kind, shape, numbers.tolist()),
        "w_scale": np.linspace(0.1, 0.4, shape[axis], dtype=np.float32),
    }
    return values | (
        {"w_zero": onnx.helper.make_tensor("z", kind, (shape[axis],), zeros.tolist())} if zero_point else {}
    )


def layer(call: str, shape: tuple[int, ...], axis: int, x: str, rank: int, tail: str, **options: bool) -> Graph:
    scale = "w_scale, w_zero" if options.get("zero_point", True) else "w_scale"
    body = into("x") + f"w_f = DequantizeLinear<axis={axis}>(w, {scale}) c = {call} " + tail
    weights = grid("x", -3, 3) | four_bits(shape, axis, **options) | Y | {"b": floats(shape[axis])}
    return read(f"(float[{x}] x) => (float[{','.join('abcd'[:rank])}] y) {{ {body} }}", weights, 21)


FORMS: dict[str, tuple[str, Callable[[int], tuple[int, ...]], int, str, int, str]] = {
    "Conv": ("Conv(x_f, w_f, b)", lambda n: (n, 4, 3, 3), 0, "2,4,6,6", 4, "QLinearConv"),
    "Gemm": ("Gemm(x_f, w_f, b)", lambda n: (16, n), 1, "3,16", 2, "QGemm"),
    "Gemm, transposed": ("Gemm<transB=1>(x_f, w_f, b)", lambda n: (n, 16), 0, "3,16", 2, "QGemm"),
    "MatMul": ("MatMul(x_f, w_f)", lambda n: (16, n), 1, "3,16", 2, "QLinearMatMul"),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("signed", [True, False], ids=["int4", "uint4"])
@pytest.mark.parametrize("form", FORMS)
def test_weight_of_4_bits(form: str, signed: bool, size: str) -> None:
    call, shape, axis, x, rank, folded = FORMS[form]
    before = layer(call, shape(SIZES[size]), axis, x, rank, out_of("c"), signed=signed)
    after = apply(FoldInteger(), before)
    widen = ["Cast"] if SIZES[size] > 100 else []
    assert sorted(ops(after.graph)) == sorted(["QuantizeLinear", *widen, folded, "DequantizeLinear"])
    assert "uint4" not in {str(t.dtype) for n in after.graph.nodes for t in n.inputs}
    assert_within(before, after.graph, float(Y["y_scale"]))


@pytest.mark.parametrize("form", ["Gemm", "Gemm, transposed", "MatMul"])
def test_weight_of_4_bits_with_floats_coming_out(form: str) -> None:
    call, shape, axis, x, rank, _ = FORMS[form]
    before = layer(call, shape(1100), axis, x, rank, "y = Identity(c)", zero_point=False)
    after = apply(FoldInteger(), before)
    assert sorted(ops(after.graph)) == ["Cast", "Identity", "MatMulIntegerToFloat", "QuantizeLinear"]
    assert_same(before, after.graph, rtol=1e-5)


X = grid("x", 0, 6) | {"low": np.uint8(0), "high": np.uint8(15), "zero": np.float32(0), "six": np.float32(6)}
NARROW = {"x_scale": np.float32(0.4), "x_zero": np.uint8(7), "y_scale": np.float32(2), "y_zero": np.uint8(7)}


def clipped(name: str) -> str:
    """Lines from a float NAME to NAME_f on 16 steps."""
    scale = "y_scale, y_zero" if name == "y" else "x_scale, x_zero"
    back = "y" if name == "y" else f"{name}_f"
    source = "c" if name == "y" else name
    return (
        f"{name}_q = QuantizeLinear({source}, {scale}) {name}_c = Clip({name}_q, low, high) "
        f"{back} = DequantizeLinear({name}_c, {scale}) "
    )


STEPS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Conv": ("c = Conv(x_f, w_f)", "QLinearConv", {}),
    "Conv and Relu": ("r = Conv(x_f, w_f) c = Relu(r)", "QLinearConv", {"y_zero": np.uint8(0)}),
    "Add": ("c = Add(x_f, x_f)", "QLinearAdd", {}),
    "GlobalAveragePool": ("c = GlobalAveragePool(x_f)", "QLinearGlobalAveragePool", {"y_scale": np.float32(0.1)}),
    "MaxPool": ("c = MaxPool<kernel_shape=[2,2]>(x_f)", "MaxPool", {"y_scale": NARROW["x_scale"]}),
    "Transpose": ("c = Transpose<perm=[0,2,3,1]>(x_f)", "Transpose", {"y_scale": NARROW["x_scale"]}),
    "Concat": ("c = Concat<axis=1>(x_f, x_f)", "Concat", {"y_scale": NARROW["x_scale"]}),
}


@pytest.mark.parametrize("form", STEPS)
def test_clip_on_integers_stays(form: str) -> None:
    """Activations of 4 bits in a container of 8."""
    text, folded, more = STEPS[form]
    body = clipped("x") + "w_f = DequantizeLinear<axis=0>(w, w_scale, w_zero) " + text + " " + clipped("y")
    weights = X | NARROW | integers("w", (6, 4, 3, 3), axis=0) | more
    before = read(f"(float[2,4,6,6] x) => (float[a,b,c,d] y) {{ {body} }}", weights)
    after = apply(FoldInteger(), before)
    assert ops(after.graph) == ["QuantizeLinear", "Clip", folded, "Clip", "DequantizeLinear"]
    assert_within(before, after.graph, float((NARROW | more)["y_scale"]))


def test_layer_without_a_quantizer_behind_it_says_so() -> None:
    body = into("x") + "w_f = DequantizeLinear(w, w_scale, w_zero) [conv] y = Conv(x_f, w_f)"
    before = read(
        f"(float[2,4,6,6] x) => (float[a,b,c,d] y) {{ {body} }}", grid("x", -3, 3) | integers("w", (6, 4, 3, 3))
    )
    after = apply(FoldInteger(), before)
    assert listing(after.graph) == listing(before)
    (change,) = after.changes["FoldInteger"]
    assert (change.node, change.done) == ("conv", "")
    assert change.reason == "No QuantizeLinear stands behind it, which its kernel needs."


@pytest.mark.parametrize(("top", "factor"), [(7, 16), (8, 8), (31, 4), (64, 1), (127, 1)])
def test_few_integers_are_spread_so_that_a_bias_is_rounded_finely(top: int, factor: int) -> None:
    numbers = np.random.default_rng(5).integers(-top, top + 1, (6, 4, 3, 3)).astype(np.int8)
    numbers[0, 0, 0, 0] = top
    body = into("x") + "w_f = DequantizeLinear(w, w_scale, w_zero) c = Conv(x_f, w_f, b) " + out_of("c")
    parts = {"w": numbers, "w_scale": np.float32(0.5 / top), "w_zero": np.int8(0), "b": floats(6)}
    y = grid("y", -8, 8)
    before = read(f"(float[2,4,6,6] x) => (float[a,b,c,d] y) {{ {body} }}", grid("x", -3, 3) | parts | y)
    after = apply(FoldInteger(), before)
    (layer,) = [node for node in after.graph.nodes if node.op == "QLinearConv"]
    np.testing.assert_array_equal(weight(layer.inputs[3]), numbers * np.int8(factor))
    assert weight(layer.inputs[4]) == np.float32(0.5 / top) / np.float32(factor)
    assert_within(before, after.graph, float(y["y_scale"]))


def test_a_large_bias_leaves_no_room_to_spread() -> None:
    body = into("x") + "w_f = DequantizeLinear(w, w_scale, w_zero) c = Conv(x_f, w_f, b) " + out_of("c")
    parts = {"w": np.ones((6, 4, 3, 3), np.int8), "w_scale": np.float32(1e-6), "w_zero": np.int8(0)}
    bias = {"b": np.full(6, 40, np.float32)}  # 1.7e9 of the accumulator's 2.1e9
    before = read(
        f"(float[2,4,6,6] x) => (float[a,b,c,d] y) {{ {body} }}", grid("x", -3, 3) | parts | bias | grid("y", 0, 60)
    )
    after = apply(FoldInteger(), before)
    (layer,) = [node for node in after.graph.nodes if node.op == "QLinearConv"]
    assert layer.inputs[3].name == "w"
