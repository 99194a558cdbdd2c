"""Integers are clipped once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.graph import Graph, weight
from onnxq.passes.merge_clips import MergeClips
from tests.onnx_text import apply, assert_same, changes, grid, listing, ops, read

LIMITS: dict[str, Any] = {
    "low": np.uint8(0),
    "high": np.uint8(150),
    "eight": np.uint8(108),
    "all": np.uint8(255),
    "zero": np.float32(0),
    "one": np.float32(1),
    "few": np.array([[120, 130]], np.uint8),
}
LAST = " y = DequantizeLinear(o, x_scale, x_zero)"


def model(body: str, *, outputs: str = "", inputs: str = "") -> Graph:
    text = f"(float[1,2,6,6] x{inputs}) => (float[a,b,c,d] y{outputs}) {{ q = QuantizeLinear(x, x_scale, x_zero) "
    return read(f"{text}{body}{LAST} }}", grid("x", -3, 3) | LIMITS)


TAKEN = {
    "twice the same": ("c = Clip(q, low, high) o = Clip(c, low, high)", 1),
    "behind MaxPool": ("c = Clip(q, low, high) m = MaxPool<kernel_shape=[2,2]>(c) o = Clip(m, low, high)", 1),
    "the ends of the type": ("o = Clip(q, low, all)", 0),
    "no limits": ("o = Clip(q)", 0),
    "behind Concat": (
        "c = Clip(q, eight, high) d = Clip(q, low, eight) j = Concat<axis=1>(c, d) o = Clip(j, low, high)",
        2,
    ),
    "two that overlap": ('c = Clip(q, eight, "") o = Clip(c, low, high)', 1),
    "two open ones": ('c = Clip(q, eight, "") o = Clip(c, "", high)', 1),
}


@pytest.mark.parametrize("case", TAKEN)
def test_takes_out(case: str) -> None:
    body, left = TAKEN[case]
    before = model(body)
    result = apply(MergeClips(), before)
    assert ops(result.graph).count("Clip") == left
    assert [change.op for change in changes(result)] == ["Clip"]
    assert_same(before, result.graph, rtol=0)
    assert changes(apply(MergeClips(), result.graph)) == []


def test_two_become_one_with_both_limits() -> None:
    result = apply(MergeClips(), model('c = Clip(q, eight, "") o = Clip(c, low, high)'))
    (clip,) = [node for node in result.graph.nodes if node.op == "Clip"]
    assert [int(weight(limit)) for limit in clip.inputs[1:]] == [108, 150]


KEPT = {
    "other numbers": ("o = Clip(q, low, high)", {}),
    "limits apart": ('c = Clip(q, "", eight) o = Clip(c, high, "")', {}),
    "the inner one is read elsewhere": (
        'c = Clip(q, eight, "") z = Cast<to=1>(c) o = Clip(c, low, high)',
        {"outputs": ", float[a,b,c,d] z"},
    ),
    "both names are promised": (
        "c = Clip(q, low, high) o = Clip(c, low, high)",
        {"outputs": ", uint8[a,b,c,d] c, uint8[a,b,c,d] o"},
    ),
    "limits found at run time": ("c = Clip(q, low, h) o = Clip(c, low, h)", {"inputs": ", uint8 h"}),
    "wider behind narrower, one open": ('c = Clip(q, eight, high) p = Pad(c, pads) o = Clip(p, eight, "")', {}),
}


@pytest.mark.parametrize("case", KEPT)
def test_leaves_alone(case: str) -> None:
    body, options = KEPT[case]
    weights = grid("x", -3, 3) | LIMITS | {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    extra, more = options.get("outputs", ""), options.get("inputs", "")
    text = f"(float[1,2,6,6] x{more}) => (float[a,b,c,d] y{extra}) {{ q = QuantizeLinear(x, x_scale, x_zero) "
    before = read(f"{text}{body}{LAST} }}", weights)
    result = apply(MergeClips(), before)
    assert listing(result.graph) == listing(before)
    assert changes(result) == []


def test_leaves_floats_alone() -> None:
    text = "(float[2,3] x) => (float[a,b] y) { c = Clip(x, zero, one) y = Clip(c, zero, one) }"
    before = read(text, LIMITS)
    assert listing(apply(MergeClips(), before).graph) == listing(before)
