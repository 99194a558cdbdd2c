"""Padding before a convolution becomes its own, or stays for a reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.passes.fuse_pad import FusePad
from tests.onnx_text import apply, assert_same, changes, floats, listing, ops, read, refusal

W = {"w": floats(3, 4, 3, 3), "w1": floats(3, 4, 3), "w3": floats(3, 4, 2, 2, 2)}
P = {
    "p": np.array([0, 0, 1, 2, 0, 0, 3, 4]),
    "p1": np.array([0, 0, 1, 0, 0, 2]),
    "p3": np.array([0, 0, 1, 2, 3, 0, 0, 3, 2, 1]),
    "zero": np.float32(0),
    "one": np.float32(1),
}
IMAGE = "2,4,6,6"
FUSED: dict[str, tuple[str, str, str, list[int]]] = {
    "constant": (IMAGE, "Pad(x, p)", "Conv(c, w)", [1, 2, 3, 4]),
    "an explicit zero": (IMAGE, "Pad(x, p, zero)", "Conv(c, w)", [1, 2, 3, 4]),
    "added to its own": (IMAGE, "Pad(x, p)", "Conv<pads=[1,0,0,2]>(c, w)", [2, 2, 3, 6]),
    "strides and groups": (IMAGE, "Pad(x, p)", "Conv<strides=[2,2], dilations=[2,1]>(c, w)", [1, 2, 3, 4]),
    "told not to pad": (IMAGE, "Pad(x, p)", 'Conv<auto_pad="VALID">(c, w)', [1, 2, 3, 4]),
    "1d": ("2,4,9", "Pad(x, p1)", "Conv(c, w1)", [1, 2]),
    "3d": ("1,4,5,5,5", "Pad(x, p3)", "Conv(c, w3)", [1, 2, 3, 3, 2, 1]),
}


@pytest.mark.parametrize("case", FUSED)
def test_fuses(case: str) -> None:
    x, pad, conv, pads = FUSED[case]
    names = ",".join("abcde"[: x.count(",") + 1])
    before = read(f"(float[{x}] x) => (float[{names}] y) {{ [pad] c = {pad} [conv] y = {conv} }}", W | P)
    result = apply(FusePad(), before)
    assert ops(result.graph) == ["Conv"]
    assert result.graph.nodes[0].attrs["pads"] == pads
    assert [(c.node, c.op, c.done) for c in changes(result)] == [("pad", "Pad", "Conv")]
    assert_same(before, result.graph)


def test_attributes_of_old_opsets() -> None:
    body = "[pad] c = Pad<pads=[0,0,1,2,0,0,3,4], value=0.0>(x) y = Conv(c, w)"
    before = read(f"(float[{IMAGE}] x) => (float[a,b,c,d] y) {{ {body} }}", W, opset=10)
    result = apply(FusePad(), before)
    assert ops(result.graph) == ["Conv"]
    assert_same(before, result.graph)


REFUSED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "another value": ("Pad(x, p, one)", "Conv(c, w)", {}),
    "a mirror": ('Pad<mode="reflect">(x, p)', "Conv(c, w)", {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}),
    "channels": ("Pad(x, p)", "Conv(c, w)", {"p": np.array([0, 1, 0, 0, 0, 0, 0, 0]), "w": floats(3, 5, 3, 3)}),
    "a batch": ("Pad(x, p)", "Conv(c, w)", {"p": np.array([0, 0, 0, 0, 1, 0, 0, 0])}),
    "crops": ("Pad(x, p)", "Conv(c, w)", {"p": np.array([0, 0, -1, 0, 0, 0, 2, 0])}),
    "axes in another order": (
        "Pad(x, p, zero, axes)",
        "Conv(c, w)",
        {"p": np.array([0, 0, 1, 2, 0, 0, 3, 4]), "axes": np.array([0, 1, 3, 2])},
    ),
    "chosen axes": ("Pad(x, p, zero, axes)", "Conv(c, w)", {"p": np.array([1, 2]), "axes": np.array([2])}),
    "a convolution that pads by itself": ("Pad(x, p)", 'Conv<auto_pad="SAME_UPPER">(c, w)', {}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_leaves_alone(case: str) -> None:
    pad, conv, weights = REFUSED[case]
    body = f"[pad] c = {pad} [conv] y = {conv}"
    before = read(f"(float[{IMAGE}] x) => (float[a,b,c,d] y) {{ {body} }}", W | P | weights, opset=18)
    result = apply(FusePad(), before)
    assert refusal(result, "pad").startswith("It pads with something else than zeros around the picture")
    assert listing(result.graph) == listing(before)


@pytest.mark.parametrize("variable", ["int64[8] p", "float one"])
def test_leaves_what_is_found_at_run_time(variable: str) -> None:
    name = variable.split()[-1]
    known = {key: value for key, value in (W | P).items() if key != name}
    body = "[pad] c = Pad(x, p, one) [conv] y = Conv(c, w)"
    before = read(f"(float[{IMAGE}] x, {variable}) => (float[a,b,c,d] y) {{ {body} }}", known)
    result = apply(FusePad(), before)
    assert refusal(result, "pad")
    assert listing(result.graph) == listing(before)


ELSEWHERE = {
    "two convolutions": ("d = Conv(c, w) e = Conv<group=1>(c, w) y = Add(d, e)", ""),
    "a graph output": ("y = Conv(c, w)", ", float[a,b,e,f] c"),
    "another operator": ("d = Relu(c) y = Conv(d, w)", ""),
    "a weight": ("y = Conv(v, c)", ""),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_leaves_padding_that_is_read_elsewhere(case: str) -> None:
    body, outputs = ELSEWHERE[case]
    text = f"(float[{IMAGE}] x) => (float[a,b,c,d] y{outputs}) {{ [pad] c = Pad(x, p) {body} }}"
    before = read(text, W | P | {"v": floats(1, 4, 12, 12)})
    result = apply(FusePad(), before)
    assert listing(result.graph) == listing(before)
    assert changes(result) == []
