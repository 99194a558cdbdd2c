"""GELU and HardSwish in every spelling that exporters have become one operator; others stay as they are."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from onnxq.graph import Graph
from onnxq.passes.fuse_activations import FuseActivations
from tests.onnx_text import apply, assert_same, changes, lines, listing, read, refusal

NUMBERS: dict[str, Any] = {
    "half": np.float32(0.5),
    "one": np.float32(1),
    "three": np.float32(3),
    "six": np.array([6], np.float32),
    "zero": np.float32(0),
    "sixth": np.float32(1 / 6),
    "root": np.float32(1.4142135381698608),
    "inverse": np.float32(0.70710677),
    "cubic": np.float32(0.044715),
    "slope": np.float32(0.7978845608028654),
    "other": np.float32(0.7),
}


def model(body: str, opset: int = 17, inputs: str = "float[2,3,64] x") -> Graph:
    return read(f"({inputs}) => (float[2,3,64] y) {{ {body} }}", NUMBERS, opset)


ERF = "b = Erf(a) c = Add(b, one)"
TANH = "c = Mul(b, cubic) d = Add(x, c) e = Mul(d, slope) f = Tanh(e) g = Add(one, f)"
CLIP = "a = Add(x, three) b = Clip(a, zero, six)"
GELU: dict[str, str] = {
    "factors from the left": f"a = Div(x, root) {ERF} d = Mul(x, c) [last] y = Mul(d, half)",
    "half of the sum first": f"a = Div(x, root) {ERF} d = Mul(half, c) [last] y = Mul(x, d)",
    "half of x first": f"a = Div(x, root) {ERF} d = Mul(x, half) [last] y = Mul(d, c)",
    "times the inverse root": f"a = Mul(inverse, x) {ERF} d = Mul(half, c) [last] y = Mul(x, d)",
    "the other way round": "a = Mul(x, inverse) b = Erf(a) c = Add(one, b) d = Mul(c, half) [last] y = Mul(d, x)",
}
FAST_GELU: dict[str, str] = {
    "a power": f"p = Mul(half, x) b = Pow(x, three) {TANH} [last] y = Mul(p, g)",
    "a product": f"a = Mul(x, x) b = Mul(a, x) {TANH} p = Mul(half, g) [last] y = Mul(x, p)",
}
HARD_SWISH: dict[str, str] = {
    "over six at last": f"{CLIP} c = Mul(x, b) [last] y = Div(c, six)",
    "over six at first": f"{CLIP} c = Div(b, six) [last] y = Mul(c, x)",
    "times a sixth": f"{CLIP} c = Mul(b, sixth) [last] y = Mul(x, c)",
}


@pytest.mark.parametrize("body", GELU.values(), ids=GELU)
@pytest.mark.parametrize(("opset", "op"), [(17, "com.microsoft.Gelu"), (20, "Gelu")])
def test_gelu(body: str, opset: int, op: str) -> None:
    before = model(body, opset)
    after = apply(FuseActivations(), before)
    assert listing(after.graph) == f"y = {op}(x)"
    assert [(c.node, c.op, c.done) for c in changes(after)] == [("last", "Mul", "Gelu")]
    assert_same(before, after.graph, rtol=1e-6)


@pytest.mark.parametrize("body", FAST_GELU.values(), ids=FAST_GELU)
@pytest.mark.parametrize(("opset", "op"), [(17, "com.microsoft.FastGelu"), (20, 'Gelu<approximate="tanh">')])
def test_fast_gelu(body: str, opset: int, op: str) -> None:
    before = model(body, opset)
    after = apply(FuseActivations(), before)
    assert listing(after.graph) == f"y = {op}(x)"
    assert_same(before, after.graph, rtol=1e-5)


@pytest.mark.parametrize("body", HARD_SWISH.values(), ids=HARD_SWISH)
def test_hard_swish(body: str) -> None:
    before = model(body)
    after = apply(FuseActivations(), before)
    assert listing(after.graph) == "y = HardSwish(x)"
    assert_same(before, after.graph)


REFUSED: dict[str, tuple[str, int, str, str]] = {
    "another factor": (
        f"a = Div(x, root) {ERF} d = Mul(x, c) [last] y = Mul(d, other)",
        17,
        "float[2,3,64] x",
        r"Its constant 'other' is not 0\.5\.",
    ),
    "another slope": (
        "b = Pow(x, three) c = Mul(b, cubic) d = Add(x, c) e = Mul(d, other) f = Tanh(e) g = Add(one, f)"
        "p = Mul(half, g) [last] y = Mul(x, p)",
        17,
        "float[2,3,64] x",
        r"Its constant 'other' is not 0\.7978846\.",
    ),
    "another tensor": (
        f"a = Div(z, root) {ERF} d = Mul(half, c) [last] y = Mul(x, d)",
        17,
        "float[2,3,64] x, float[2,3,64] z",
        "It multiplies different tensors.",
    ),
    "an old opset": (HARD_SWISH["over six at last"], 13, "float[2,3,64] x", "HardSwish came with opset 14"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_leaves_alone(case: str) -> None:
    body, opset, inputs, reason = REFUSED[case]
    before = model(body, opset, inputs)
    after = apply(FuseActivations(), before)
    assert re.search(reason, refusal(after, "last"))
    assert listing(after.graph) == listing(before)


def test_leaves_doubles_alone() -> None:
    numbers = {name: values.astype(np.float64) for name, values in NUMBERS.items()}
    body = HARD_SWISH["over six at last"]
    before = read(f"(double[2,64] x) => (double[2,64] y) {{ {body} }}", numbers)
    after = apply(FuseActivations(), before)
    assert refusal(after, "last") == "It computes in float64; the one operator is made for float32."


def test_keeps_what_others_read() -> None:
    body = f"a = Div(x, root) {ERF} d = Mul(half, c) g = Mul(x, d) [last] y = Add(g, b)"
    before = model(body)
    after = apply(FuseActivations(), before)
    expected = "a = Div(x, root)  b = Erf(a)  g = com.microsoft.Gelu(x)  y = Add(g, b)"
    assert sorted(listing(after.graph).splitlines()) == sorted(lines(expected.replace("  ", "\n")).splitlines())
    assert_same(before, after.graph, rtol=1e-6)
