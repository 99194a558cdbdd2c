"""Q/DQ moves to where integer operators find it, and not a bit of the result changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.graph import Graph, weight
from onnxq.passes.settle_qdq import SettleQdq
from tests.onnx_text import apply, assert_same, changes, floats, grid, into, lines, listing, ops, out_of, read, refusal

X = grid("x", -3, 3)
IMAGE = "2,4,6,6"
SIX = {"zero": np.float32(0), "six": np.float32(6), "two": np.float32(2), "odd": np.float32(2.01)}


def model(
    body: str,
    weights: dict[str, Any] | None = None,
    *,
    x: str = IMAGE,
    rank: int = 0,
    inputs: str = "",
    outputs: str = "",
    opset: int = 17,
) -> Graph:
    names = ",".join("abcdef"[: rank or x.count(",") + 1])
    text = f"(float[{x}] x{inputs}) => (float[{names}] y{outputs}) {{ {body} }}"
    return read(text, X | SIX | (weights or {}), opset)


ALIKE = "x_scale, x_zero"
AGAIN = f"r_q = QuantizeLinear(r, {ALIKE}) [last] y = DequantizeLinear(r_q, {ALIKE})"
SHAPE = {"shape": np.array([2, -1])}
SETTLED: dict[str, tuple[str, dict[str, Any], dict[str, Any], list[str]]] = {
    "two pairs alike": (
        into("x") + f"r_q = QuantizeLinear(x_f, {ALIKE}) y = DequantizeLinear(r_q, {ALIKE})",
        {},
        {},
        ["QuantizeLinear", "DequantizeLinear"],
    ),
    "Relu": (into("x") + "y = Relu(x_f)", {}, {}, ["QuantizeLinear", "Clip", "DequantizeLinear"]),
    "Relu between two pairs alike": (
        into("x") + "r = Relu(x_f)" + AGAIN,
        {},
        {},
        ["QuantizeLinear", "Clip", "DequantizeLinear"],
    ),
    "Relu where nothing is below 0": (
        into("x") + "y = Relu(x_f)",
        grid("x", 0, 3),
        {},
        ["QuantizeLinear", "DequantizeLinear"],
    ),
    "Clip beyond the range": (
        into("x") + "y = Clip(x_f, zero, six)",
        grid("x", 0, 3),
        {},
        ["QuantizeLinear", "DequantizeLinear"],
    ),
    "Clip at a step": (
        into("x") + "y = Clip(x_f, zero, two)",
        {"x_scale": np.float32(1 / 32), "x_zero": np.uint8(100)},
        {},
        ["QuantizeLinear", "Clip", "DequantizeLinear"],
    ),
    "Clip between two steps that is rounded right after": (
        into("x") + "r = Clip(x_f, zero, odd)" + AGAIN,
        {},
        {},
        ["QuantizeLinear", "Clip", "DequantizeLinear"],
    ),
    "MaxPool": (
        into("x") + "y = MaxPool<kernel_shape=[2,2], pads=[1,1,0,0]>(x_f)",
        {},
        {},
        ["QuantizeLinear", "MaxPool", "DequantizeLinear"],
    ),
    "MaxPool and Reshape": (
        into("x") + "m = MaxPool<kernel_shape=[2,2]>(x_f) y = Reshape(m, shape)",
        SHAPE,
        {"rank": 2},
        ["QuantizeLinear", "MaxPool", "Reshape", "DequantizeLinear"],
    ),
    "signed": (
        into("x") + "r = Transpose<perm=[0,2,3,1]>(x_f) y = Relu(r)",
        grid("x", -3, 2, format="int8"),
        {},
        ["QuantizeLinear", "Transpose", "Clip", "DequantizeLinear"],
    ),
    "Pad": (
        into("x") + "y = Pad(x_f, pads)",
        {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])},
        {},
        ["QuantizeLinear", "Pad", "DequantizeLinear"],
    ),
    "Concat": (
        into("x") + f"z_f = DequantizeLinear(x_q, {ALIKE}) y = Concat<axis=1>(x_f, z_f)",
        {},
        {},
        ["QuantizeLinear", "Concat", "DequantizeLinear"],
    ),
    "without a zero point": (
        "q = QuantizeLinear(x, s) f = DequantizeLinear(q, s) y = Flatten(f)",
        {"s": np.array([0.01], np.float32)},
        {"rank": 2},
        ["QuantizeLinear", "Flatten", "DequantizeLinear"],
    ),
    "Transpose behind a layer": (
        "c = Conv(x, w) t = Transpose<perm=[0,2,3,1]>(c)" + out_of("t"),
        {"w": floats(6, 4, 3, 3)} | grid("y", -20, 20),
        {},
        ["Conv", "QuantizeLinear", "Transpose", "DequantizeLinear"],
    ),
    "Relu and Transpose behind a layer": (
        "c = Conv(x, w) t = Transpose<perm=[0,2,3,1]>(c) r = Relu(t)" + out_of("r"),
        {"w": floats(6, 4, 3, 3)} | grid("y", 0, 20),
        {},
        ["Conv", "Relu", "QuantizeLinear", "Transpose", "DequantizeLinear"],
    ),
    "MaxPool behind a layer": (
        "c = Conv(x, w) r = Relu(c) p = MaxPool<kernel_shape=[2,2]>(r)" + out_of("p"),
        {"w": floats(6, 4, 3, 3)} | grid("y", 0, 20),
        {},
        ["Conv", "Relu", "QuantizeLinear", "MaxPool", "DequantizeLinear"],
    ),
}


@pytest.mark.parametrize("case", SETTLED)
def test_settles(case: str) -> None:
    body, weights, options, expected = SETTLED[case]
    before = model(body, weights, **options)
    after = apply(SettleQdq(), before)
    assert ops(after.graph) == expected
    assert not any(node.domain for node in after.graph.nodes)
    assert any(change.done for change in changes(after))
    assert_same(before, after.graph, rtol=0)
    again = apply(SettleQdq(), after.graph)
    assert listing(again.graph) == listing(after.graph)


def test_float_that_is_read_elsewhere_stays() -> None:
    before = model(into("x") + "[op] y = Relu(x_f) z = Neg(x_f)", outputs=", float[a,b,c,d] z")
    after = apply(SettleQdq(), before)
    assert listing(after.graph) == lines(
        """
        x_q = QuantizeLinear(x, x_scale, x_zero)
        x_f = DequantizeLinear(x_q, x_scale, x_zero)
        z = Neg(x_f)
        y_integers = Clip(x_q, op_limit, op_limit_1)
        y = DequantizeLinear(y_integers, x_scale, x_zero)
        """
    )
    assert_same(before, after.graph, rtol=0)


CHANNELS = {"s": np.array([0.02, 0.03, 0.01, 0.05], np.float32), "z": np.array([3, 128, 100, 7], np.uint8)}
EACH = "q = QuantizeLinear<axis=1>(x, s, z) f = DequantizeLinear<axis=1>(q, s, z)"
WIDE = {"s": np.float32(0.001), "z": np.int16(5), "t": np.float32(0.1)}
KEPT: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "scales of channels": (EACH + "y = Relu(f)", CHANNELS, {}, ""),
    "16 bits": ("q = QuantizeLinear(x, s, z) f = DequantizeLinear(q, s, z) y = Relu(f)", WIDE, {"opset": 21}, ""),
    "another scale behind": (
        into("x") + "[op] r_q = QuantizeLinear(x_f, other, x_zero) y = DequantizeLinear(r_q, other, x_zero)",
        {"other": np.float32(0.05)},
        {},
        "Its input was quantized before with another scale, so it rounds again.",
    ),
    "both names are promised": (
        into("x") + "y = Relu(x_f)",
        grid("x", 0, 3),
        {"outputs": ", float[a,b,c,d] x_f"},
        "",
    ),
    "Relu between two scales": (
        into("x") + "r = Relu(x_f) r_q = QuantizeLinear(r, other, x_zero) y = DequantizeLinear(r_q, other, x_zero)",
        {"other": np.float32(0.05)},
        {},
        "",
    ),
    "Clip between two steps": (
        into("x") + "[op] y = Clip(x_f, zero, odd)",
        {},
        {},
        "Its limits lie between two steps of the integers before it.",
    ),
    "Clip before opset 12": (
        into("x") + "[op] y = Relu(x_f)",
        {},
        {"opset": 11},
        "Before opset 12, Clip takes no integers.",
    ),
    "limits that are no constants": (into("x") + "y = Clip(x_f, low)", {}, {"inputs": ", float low"}, ""),
    "Resize that computes": (
        into("x") + '[op] y = Resize<mode="linear">(x_f, "", scales)',
        {"scales": np.array([1, 1, 2, 2], np.float32)},
        {},
        "Resize computes new values between the old ones, in floats.",
    ),
    "Transpose that nobody quantizes": (
        "c = Conv(x, w) y = Transpose<perm=[0,2,3,1]>(c)",
        {"w": floats(6, 4, 3, 3)},
        {},
        "",
    ),
    "Transpose of an input": ("t = Transpose<perm=[0,2,3,1]>(x)" + out_of("t"), grid("y", -3, 3), {}, ""),
    "Transpose of a layer that is read elsewhere": (
        "c = Conv(x, w) t = Transpose<perm=[0,2,3,1]>(c) z = Neg(c)" + out_of("t"),
        {"w": floats(6, 4, 3, 3)} | grid("y", -20, 20),
        {"outputs": ", float[a,b,c,d] z"},
        "",
    ),
    "Concat of two scales": (
        into("x")
        + "z_q = QuantizeLinear(x, t, x_zero) z = DequantizeLinear(z_q, t, x_zero) y = Concat<axis=1>(x_f, z)",
        {"t": np.float32(0.1)},
        {},
        "",
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_leaves_alone(case: str) -> None:
    body, weights, options, reason = KEPT[case]
    before = model(body, weights, **options)
    after = apply(SettleQdq(), before)
    assert listing(after.graph) == listing(before)
    assert {change.reason for change in changes(after)} == ({reason} if reason else set())
    if reason:
        assert refusal(after, "op") == reason


def test_limits_round_like_the_quantizer() -> None:
    """A limit half-way between two steps goes to the even one, as QuantizeLinear rounds."""
    parts = {"x_scale": np.float32(0.5), "x_zero": np.uint8(7), "low": np.float32(-1.25), "high": np.float32(2.75)}
    before = model(into("x") + "r = Clip(x_f, low, high)" + AGAIN, parts)
    after = apply(SettleQdq(), before)
    (clip,) = [node for node in after.graph.nodes if node.op == "Clip"]
    assert [int(weight(limit)) for limit in clip.inputs[1:]] == [5, 13]
    assert_same(before, after.graph, {"x": 3 * floats(2, 4, 6, 6)}, rtol=0)
