"""Weights of layers that stay in float are dequantized once; others are left as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxq.graph import Graph, weight
from onnxq.numerics.affine import quantize_bias
from onnxq.passes.restore_weights import RestoreWeights
from tests.onnx_text import apply, assert_same, changes, floats, integers, lines, listing, ops, read, stored

IMAGE = "2,4,6,6"


def model(body: str, weights: dict[str, Any], *, x: str = IMAGE, outputs: str = "", opset: int = 17) -> Graph:
    names = ",".join("abcde"[: x.count(",") + 1])
    return read(f"(float[{x}] x) => (float[{names}] y{outputs}) {{ {body} }}", weights, opset)


RESTORED: dict[str, tuple[str, dict[str, Any], str]] = {
    "Conv": ("[dq] " + stored("w") + "y = Conv(x, w_f)", integers("w", (6, 4, 3, 3)), IMAGE),
    "Conv, per channel": ("[dq] " + stored("w", 0) + "y = Conv(x, w_f)", integers("w", (6, 4, 3, 3), axis=0), IMAGE),
    "Conv, last axis counted from behind": (
        "[dq] " + stored("w", -4) + "y = Conv(x, w_f)",
        integers("w", (6, 4, 3, 3), axis=0),
        IMAGE,
    ),
    "Conv, asymmetric": (
        "[dq] " + stored("w", 0) + "y = Conv(x, w_f)",
        integers("w", (6, 4, 3, 3), axis=0, format="uint8", symmetric=False),
        IMAGE,
    ),
    "ConvTranspose": (
        "[dq] " + stored("w", 1) + "y = ConvTranspose(x, w_f)",
        integers("w", (4, 6, 3, 3), axis=1),
        IMAGE,
    ),
    "Gemm": ("[dq] " + stored("w", 1) + "y = Gemm(x, w_f)", integers("w", (4, 6), axis=1), "3,4"),
    "without zero point": (
        "[dq] w_f = DequantizeLinear(w, w_scale) y = Conv(x, w_f)",
        integers("w", (6, 4, 3, 3)),
        IMAGE,
    ),
}


@pytest.mark.parametrize("case", RESTORED)
def test_restores(case: str) -> None:
    body, weights, x = RESTORED[case]
    before = model(body, weights, x=x)
    result = apply(RestoreWeights(), before)
    assert ops(result.graph) == [before.nodes[-1].op]
    assert result.graph.nodes[0].inputs[1].dtype == np.float32
    assert [(c.node, c.op, c.done) for c in changes(result)] == [("dq", "DequantizeLinear", "float weight")]
    assert_same(before, result.graph)


def test_bias_comes_back_too() -> None:
    weights = integers("w", (6, 4, 3, 3), axis=0)
    weights["b"], weights["b_scale"] = quantize_bias(floats(6), 0.01, weights["w_scale"])
    before = model(
        "b_f = DequantizeLinear<axis=0>(b, b_scale) y = Conv(x, w, b_f)", weights | {"w": floats(6, 4, 3, 3)}
    )
    result = apply(RestoreWeights(), before)
    assert listing(result.graph) == "y = Conv(x, w, b_f_float)"
    assert_same(before, result.graph)


def test_weight_that_two_layers_share() -> None:
    before = model(stored("w") + "a = Conv(x, w_f) b = Conv(x, w_f) y = Add(a, b)", integers("w", (6, 4, 3, 3)))
    result = apply(RestoreWeights(), before)
    assert listing(result.graph) == lines("a = Conv(x, w_f_float)\nb = Conv(x, w_f_float)\ny = Add(a, b)")
    assert_same(before, result.graph)


def test_int4() -> None:
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.INT4, (4, 6), [n % 15 - 7 for n in range(24)])
    before = model("f = DequantizeLinear(w, s) y = Gemm(x, f)", {"w": tensor, "s": np.float32(0.1)}, x="3,4", opset=21)
    result = apply(RestoreWeights(), before)
    assert ops(result.graph) == ["Gemm"]
    assert_same(before, result.graph)


@pytest.mark.parametrize("channels", [False, True])
def test_float16_stays_float16(channels: bool) -> None:
    weights = integers("w", (6, 4, 3, 3), axis=0 if channels else None)
    weights["w_scale"] = weights["w_scale"].astype(np.float16)
    text = f"(float16[{IMAGE}] x) => (float16[a,b,c,d] y) {{ {stored('w', 0 if channels else None)} y = Conv(x, w_f) }}"
    before = read(text, weights, opset=19)
    result = apply(RestoreWeights(), before)
    assert ops(result.graph) == ["Conv"]
    assert weight(result.graph.nodes[0].inputs[1]).dtype == np.float16
    feeds = {"x": floats(2, 4, 6, 6).astype(np.float16)}
    assert_same(before, result.graph, feeds, rtol=2e-3)  # a few of float16's roundings of 5e-4


FLOAT8 = onnx.helper.make_tensor("q", onnx.TensorProto.FLOAT8E4M3FN, (2, 4, 1, 1), [0.5, 1.5, -2.0, 0.25] * 2)
BLOCKS = {"w": integers("w", (4, 6))["w"], "s": np.abs(floats(2, 6)), "v": integers("v", (6, 4, 3, 3))["v"]}
KEPT: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "MatMul": (stored("w", 1) + "y = MatMul(x, w_f)", integers("w", (4, 6), axis=1), {"x": "3,4"}),
    "blocks": ("f = DequantizeLinear<axis=0, block_size=2>(w, s) y = Gemm(x, f)", BLOCKS, {"x": "3,4", "opset": 21}),
    "also read by another operator": (
        stored("w") + "a = Conv(x, w_f) b = ReduceMax(w_f) y = Mul(a, b)",
        integers("w", (6, 4, 3, 3)),
        {},
    ),
    "also an output": (
        stored("w") + "y = Conv(x, w_f)",
        integers("w", (6, 4, 3, 3)),
        {"outputs": ", float[6,4,3,3] w_f"},
    ),
    "only an output": (stored("w") + "y = Neg(x)", integers("w", (6, 4, 3, 3)), {"outputs": ", float[6,4,3,3] w_f"}),
    "8-bit floats": ("f = DequantizeLinear(q, one) y = Conv(x, f)", {"q": FLOAT8, "one": np.float32(1)}, {"opset": 21}),
}


@pytest.mark.parametrize("case", KEPT)
def test_leaves_alone(case: str) -> None:
    body, weights, options = KEPT[case]
    before = model(body, weights, **options)
    result = apply(RestoreWeights(), before)
    assert listing(result.graph) == listing(before)
    assert changes(result) == []


def test_leaves_activations_alone() -> None:
    weights = integers("w", (6, 4, 3, 3))
    before = read(
        f"(int8[6,4,3,3] w) => (float[a,b,c,d] y) {{ {stored('w')} y = Conv(x, w_f) }}",
        {"x": floats(2, 4, 6, 6)} | {k: v for k, v in weights.items() if k != "w"},
    )
    assert listing(apply(RestoreWeights(), before).graph) == listing(before)
