"""Fake quantization that is spelled in floats becomes Q/DQ, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.fake_quant import brings_scales
from onnxq.graph import Graph
from onnxq.passes.find_fake_quant import FindFakeQuant
from tests.onnx_text import apply, assert_same, changes, floats, listing, normal, ops, read, refusal

PARTS: dict[str, Any] = {
    "s": np.array([0.03], np.float32),
    "z": np.array([128], np.float32),
    "each": np.array([0.02, 0.03, 0.01, 0.05], np.float32).reshape(4, 1, 1),
    "wide": np.array([0.02, 0.03, 0.01, 0.05], np.float32).reshape(1, 4, 1, 1),
    "none": np.zeros((1, 4, 1, 1), np.float32),
    "zero": np.float32(0),
    "all": np.float32(255),
    "few": np.float32(200),
    "low": np.float32(-7),
    "top": np.float32(7),
    "half": np.float32(6.5),
    "far": np.float32(300),
    "other": np.float32(0.04),
    "w": floats(6, 4, 3, 3),
}
TORCH = "d = Div(x, s) r = Round(d) a = Add(r, z) c = Clip(a, zero, all) b = Sub(c, z) [end] y = Mul(b, s)"
LSQ = "d = Div(x, s) c = Clip(d, low, top) r = Round(c) [end] y = Mul(r, s)"


def model(body: str, *, outputs: str = "", inputs: str = "", opset: int = 17) -> Graph:
    return read(f"(float[2,4,6,6] x{inputs}) => (float[a,b,c,d] y{outputs}) {{ {body} }}", PARTS, opset)


FOUND = {
    "PyTorch": (TORCH, ["QuantizeLinear", "DequantizeLinear"]),
    "factor first": (TORCH.replace("Mul(b, s)", "Mul(s, b)"), ["QuantizeLinear", "DequantizeLinear"]),
    "fewer steps": (TORCH.replace("all)", "few)"), ["QuantizeLinear", "Clip", "DequantizeLinear"]),
    "LSQ": (LSQ, ["QuantizeLinear", "Clip", "DequantizeLinear"]),
    "LSQ, rounded first": (
        "d = Div(x, s) r = Round(d) c = Clip(r, low, top) [end] y = Mul(c, s)",
        ["QuantizeLinear", "Clip", "DequantizeLinear"],
    ),
    "per channel": (LSQ.replace(" s)", " wide)"), ["QuantizeLinear", "Clip", "DequantizeLinear"]),
    "per channel, fewer axes": (LSQ.replace(" s)", " each)"), ["QuantizeLinear", "Clip", "DequantizeLinear"]),
    "per channel, with zero points": (
        TORCH.replace(" s)", " wide)").replace(" z)", " none)").replace("zero, all", "low, top"),
        ["QuantizeLinear", "Clip", "DequantizeLinear"],
    ),
}


@pytest.mark.parametrize("case", FOUND)
def test_finds(case: str) -> None:
    body, expected = FOUND[case]
    before = model(body)
    assert brings_scales(before)
    result = apply(FindFakeQuant(), before)
    assert ops(result.graph) == expected
    assert [(c.node, c.done) for c in changes(result)] == [("end", "DequantizeLinear")]
    assert_same(before, result.graph, normal(before), rtol=0)
    ties = {"x": (np.arange(288, dtype=np.float32).reshape(2, 4, 6, 6) - 144) * np.float32(0.015)}
    assert_same(before, result.graph, ties, rtol=0)
    assert changes(apply(FindFakeQuant(), result.graph)) == []


def test_a_weight_stays_one() -> None:
    before = model(LSQ.replace("Div(x", "Div(w").replace("y = Mul", "f = Mul") + " y = Conv(x, f)")
    result = apply(FindFakeQuant(), before)
    assert ops(result.graph) == ["QuantizeLinear", "Clip", "DequantizeLinear", "Conv"]
    assert_same(before, result.graph)


KEPT: dict[str, tuple[str, dict[str, Any]]] = {
    "read in between": (LSQ + " q = Neg(r)", {"outputs": ", float[a,b,c,d] q"}),
    "another scale": (LSQ.replace("Mul(r, s)", "Mul(r, other)"), {}),
    "limits between integers": (LSQ.replace("top", "half"), {}),
    "no limits": ("d = Div(x, s) r = Round(d) y = Mul(r, s)", {}),
    "more than 8 bits": (LSQ.replace("top", "far"), {}),
    "zero point before rounding": ("d = Div(x, s) a = Add(d, z) r = Round(a) b = Sub(r, z) y = Mul(b, s)", {}),
    "scale found at run time": (LSQ.replace(" s)", " t)"), {"inputs": ", float t"}),
    "other arithmetic": ("d = Div(x, s) y = Mul(d, s)", {}),
}


@pytest.mark.parametrize("case", KEPT)
def test_leaves_alone(case: str) -> None:
    body, options = KEPT[case]
    before = model(body, **options)
    assert not brings_scales(before)
    result = apply(FindFakeQuant(), before)
    assert listing(result.graph) == listing(before)
    assert changes(result) == []


def test_before_opset_13() -> None:
    before = model(LSQ, opset=12)
    result = apply(FindFakeQuant(), before)
    assert refusal(result, "end") == "Before opset 13, integers have no Clip and no axis of scales."
    assert listing(result.graph) == listing(before)
