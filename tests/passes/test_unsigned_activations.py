"""Signed activations become unsigned ones with the same steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onnxq.graph import Graph, weight
from onnxq.passes.unsigned_activations import UnsignedActivations
from onnxq.pipeline import Context, run
from onnxq.targets import CPU
from tests.onnx_text import (
    EVERYTHING,
    apply,
    assert_same,
    changes,
    execute,
    floats,
    grid,
    into,
    lines,
    listing,
    normal,
    read,
    refusal,
)

SIGNED = grid("x", -3, 2, format="int8")


def model(body: str, weights: dict[str, Any] | None = None, *, outputs: str = "", opset: int = 17) -> Graph:
    return read(f"(float[2,3] x) => (float[a,b] y{outputs}) {{ {body} }}", SIGNED | (weights or {}), opset)


def test_shifts() -> None:
    before = model(into("x") + "y = Neg(x_f)")
    result = apply(UnsignedActivations(), before)
    assert listing(result.graph) == lines(
        """
        x_q = QuantizeLinear(x, x_scale, x_zero_unsigned)
        x_f = DequantizeLinear(x_q, x_scale, x_zero_unsigned)
        y = Neg(x_f)
        """
    )
    (shifted,) = {t.name: weight(t) for n in result.graph.nodes for t in n.inputs[2:]}.values()
    assert shifted.dtype == np.uint8
    assert int(shifted) == int(SIGNED["x_zero"]) + 128
    assert [(c.op, c.done) for c in changes(result)] == [("QuantizeLinear", "uint8")]
    assert_same(before, result.graph, rtol=0)


@pytest.mark.parametrize("opset", [10, 11, 13, 17, 21])
def test_every_opset(opset: int) -> None:
    before = model(into("x") + "y = Neg(x_f)", opset=opset)
    assert_same(before, apply(UnsignedActivations(), before).graph, rtol=0)


def test_saturates_at_the_same_values() -> None:
    before = model(into("x") + "y = Neg(x_f)")
    feeds = {"x": np.array([[-1e9, -3.001, -1], [1, 1.5, np.inf]], np.float32)}
    assert_same(before, apply(UnsignedActivations(), before).graph, feeds, rtol=0)


def test_type_that_an_attribute_names() -> None:
    body = "q = QuantizeLinear<output_dtype=3>(x, x_scale, x_zero) f = DequantizeLinear(q, x_scale, x_zero) y = Neg(f)"
    before = model(body, opset=21)
    result = apply(UnsignedActivations(), before)
    assert "output_dtype" not in listing(result.graph)
    assert_same(before, result.graph, rtol=0)


def test_several_readers_and_a_zero_point_for_each_channel() -> None:
    channels = {"s": np.array([0.02, 0.03, 0.01], np.float32), "z": np.array([-5, 0, 127], np.int8)}
    body = "q = QuantizeLinear<axis=1>(x, s, z) f = DequantizeLinear<axis=1>(q, s, z)"
    before = model(
        body + " g = DequantizeLinear<axis=1>(q, s, z)" + " y = Sub(f, x) z2 = Neg(g)",
        channels,
        outputs=", float[a,b] z2",
    )
    result = apply(UnsignedActivations(), before)
    assert "z_unsigned" in listing(result.graph)
    assert_same(before, result.graph, rtol=0)


LEFT = {
    "an integer operator": ("q = QuantizeLinear(x, x_scale, x_zero) y = Cast<to=1>(q)", ""),
    "an operator with as many inputs": (
        "q = QuantizeLinear(x, x_scale, x_zero) s = Slice(q, one, two) y = Cast<to=1>(s)",
        "",
    ),
    "a graph output": (into("x") + "y = Neg(x_f)", ", int8[a,b] x_q"),
    "a reader that has no zero point": ("q = QuantizeLinear(x, x_scale, zero) y = DequantizeLinear(q, x_scale)", ""),
}


@pytest.mark.parametrize("case", LEFT)
def test_leaves_what_others_read(case: str) -> None:
    body, outputs = LEFT[case]
    before = model(body, {"zero": np.int8(0), "one": np.array([1]), "two": np.array([2])}, outputs=outputs)
    result = apply(UnsignedActivations(), before)
    assert refusal(result, "QuantizeLinear_0") == "Something else than DequantizeLinear reads its int8 output."
    assert listing(result.graph) == listing(before)


def test_leaves_zero_points_that_are_found_at_run_time() -> None:
    body = "q = QuantizeLinear(x, x_scale, z) f = DequantizeLinear(q, x_scale, z) y = Neg(f)"
    before = read(f"(float[2,3] x, int8 z) => (float[a,b] y) {{ {body} }}", {"x_scale": SIGNED["x_scale"]})
    result = apply(UnsignedActivations(), before)
    assert refusal(result, "QuantizeLinear_0") == "Its zero point is no constant."
    assert listing(result.graph) == listing(before)


@pytest.mark.parametrize("format", ["uint8", "int16", "uint16"])
def test_leaves_other_types_alone_and_says_nothing(format: str) -> None:
    before = model(into("x") + "y = Neg(x_f)", grid("x", -3, 2, format=format), opset=21)
    result = apply(UnsignedActivations(), before)
    assert listing(result.graph) == listing(before)
    assert changes(result) == []


def test_leaves_weights_alone() -> None:
    weights = {"w": floats(3, 4), "q": np.ones((3, 4), np.int8), "s": np.float32(0.1), "z": np.int8(3)}
    before = model("f = DequantizeLinear(q, s, z) y = MatMul(x, f)", weights)
    assert listing(apply(UnsignedActivations(), before).graph) == listing(before)


def test_target_that_wants_signed_activations() -> None:
    before = model(into("x") + "y = Neg(x_f)")
    result = run([UnsignedActivations()], before, Context(replace(CPU, activation="int8")), EVERYTHING)
    assert listing(result.graph) == listing(before)


def test_one_zero_point_for_two_tensors() -> None:
    """Both are shifted, and the new zero point is stored once."""
    body = into("x") + "n = Neg(x_f) q = QuantizeLinear(n, x_scale, x_zero) y = DequantizeLinear(q, x_scale, x_zero)"
    before = model(body)
    result = apply(UnsignedActivations(), before)
    assert listing(result.graph).count("x_zero_unsigned") == 4
    assert execute(result.graph, normal(before))[0].tolist() == execute(before, normal(before))[0].tolist()


TOGETHER = {
    "Clip": ("c = Clip(x_q, low, high) y = DequantizeLinear(c, x_scale, x_zero)", "c = Clip(x_q, low_unsigned"),
    "Clip with one limit": ('c = Clip(x_q, "", high) y = DequantizeLinear(c, x_scale, x_zero)', "high_unsigned"),
    "Transpose": ("t = Transpose(x_q) y = DequantizeLinear(t, x_scale, x_zero)", "t = Transpose(x_q)"),
    "Pad": ("p = Pad(x_q, pads, low) y = DequantizeLinear(p, x_scale, x_zero)", "low_unsigned"),
    "Pad with zeros": ("[pad] p = Pad(x_q, pads) y = DequantizeLinear(p, x_scale, x_zero)", "pad_fill_unsigned"),
    "Concat": (
        "n = Neg(x) n_q = QuantizeLinear(n, x_scale, x_zero) c = Clip(n_q, low, high) j = Concat<axis=1>(x_q, c) "
        "y = DequantizeLinear(j, x_scale, x_zero)",
        "n_q = QuantizeLinear(n, x_scale, x_zero_unsigned)",
    ),
}
LIMITS = {"low": np.int8(-40), "high": np.int8(50), "pads": np.array([0, 1, 0, 0])}


@pytest.mark.parametrize("case", TOGETHER)
def test_shifts_all_that_is_connected(case: str) -> None:
    body, expected = TOGETHER[case]
    before = model("x_q = QuantizeLinear(x, x_scale, x_zero) " + body, LIMITS)
    result = apply(UnsignedActivations(), before)
    assert expected in listing(result.graph)
    assert "x_zero)" not in listing(result.graph)
    assert all(change.done for change in changes(result))
    assert_same(before, result.graph, rtol=0)
    assert changes(apply(UnsignedActivations(), result.graph)) == []


def test_leaves_a_limit_that_is_found_at_run_time() -> None:
    body = "q = QuantizeLinear(x, x_scale, x_zero) c = Clip(q, low) y = DequantizeLinear(c, x_scale, x_zero)"
    before = read(f"(float[2,3] x, int8 low) => (float[a,b] y) {{ {body} }}", SIGNED)
    result = apply(UnsignedActivations(), before)
    assert refusal(result, "QuantizeLinear_0") == "A limit of its Clip is no constant."
    assert listing(result.graph) == listing(before)


def test_leaves_what_a_constant_is_joined_to() -> None:
    body = "q = QuantizeLinear(x, x_scale, x_zero) j = Concat<axis=1>(q, k) y = DequantizeLinear(j, x_scale, x_zero)"
    before = model(body, {"k": np.ones((2, 1), np.int8)})
    result = apply(UnsignedActivations(), before)
    assert refusal(result, "QuantizeLinear_0") == "A constant is joined to its int8 output."
    assert listing(result.graph) == listing(before)
