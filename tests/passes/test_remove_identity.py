"""Operators that return what they read are taken out, and promised names stay."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.passes.remove_identity import RemoveIdentity
from tests.onnx_text import apply, assert_same, changes, floats, lines, listing, read

W = {"w": floats(3, 4)}
ONE = "(float[2,3] x) => (float[a,b] y)"
TWO = "(float[2,3] x) => (float[a,b] y, float[c,d] z)"
REMOVED = {
    "between nodes": (ONE, "a = Abs(x) i = Identity(a) y = Neg(i)", "a = Abs(x)\ny = Neg(a)"),
    "behind an input": (ONE, "i = Identity(x) y = Neg(i)", "y = Neg(x)"),
    "behind a weight": (ONE, "i = Identity(w) y = MatMul(x, i)", "y = MatMul(x, w)"),
    "before an output": (ONE, "a = Abs(x) y = Identity(a)", "y = Abs(x)"),
    "before an output whose source is read": (
        TWO,
        "a = Abs(x) y = Identity(a) z = Neg(a)",
        "y = Abs(x)\nz = Neg(y)",
    ),
    "a chain before an output": (ONE, "a = Abs(x) i = Identity(a) j = Identity(i) y = Identity(j)", "y = Abs(x)"),
    "one of two outputs of one source": (
        TWO,
        "a = Abs(x) y = Identity(a) z = Identity(a)",
        "y = Abs(x)\nz = Identity(y)",
    ),
    "Dropout": (ONE, "a = Abs(x) i = Dropout(a) y = Neg(i)", "a = Abs(x)\ny = Neg(a)"),
    "Dropout with a ratio": (ONE, "i = Dropout(x, ratio) y = Neg(i)", "y = Neg(x)"),
    "Dropout with training off": (ONE, "i = Dropout(x, ratio, off) y = Neg(i)", "y = Neg(x)"),
    "Dropout with a mask that nobody reads": (ONE, "i, m = Dropout(x) y = Neg(i)", "y = Neg(x)"),
}
CONSTANTS = {"ratio": np.float32(0.5), "off": np.array(False), "on": np.array(True)}


@pytest.mark.parametrize("case", REMOVED)
def test_removes(case: str) -> None:
    signature, body, expected = REMOVED[case]
    before = read(f"{signature} {{ {body} }}", W | CONSTANTS)
    after = apply(RemoveIdentity(), before).graph
    assert listing(after) == lines(expected)
    assert_same(before, after)


KEPT = {
    "between an input and an output": (TWO, "y = Identity(x) z = Neg(y)"),
    "between a weight and an output": (TWO, "y = Identity(w) z = Neg(x)"),
    "between two outputs": (TWO, "y = Abs(x) z = Identity(y)"),
    "Dropout with a mask that is read": (ONE, "i, m = Dropout(x) n = Cast<to=1>(m) y = Add(i, n)"),
    "Dropout in training": (ONE, "i = Dropout(x, ratio, on) y = Neg(i)"),
}


@pytest.mark.parametrize("case", KEPT)
def test_leaves_alone(case: str) -> None:
    signature, body = KEPT[case]
    before = read(f"{signature} {{ {body} }}", W | CONSTANTS)
    result = apply(RemoveIdentity(), before)
    assert listing(result.graph) == listing(before)
    assert changes(result) == []


def test_training_that_is_an_input() -> None:
    before = read("(float[2,3] x, bool t) => (float[a,b] y) { i = Dropout(x, ratio, t) y = Neg(i) }", CONSTANTS)
    assert listing(apply(RemoveIdentity(), before).graph) == listing(before)


def test_mask_that_is_an_output() -> None:
    before = read("(float[2,3] x) => (float[a,b] y, bool[a,b] m) { i, m = Dropout(x) y = Neg(i) }")
    assert listing(apply(RemoveIdentity(), before).graph) == listing(before)


def test_name_that_a_body_captures() -> None:
    then, other = "() => (float[a,b] o) { o = Abs(i) }", "() => (float[a,b] p) { p = Neg(a) }"
    body = f"a = Exp(x) i = Identity(a) y = If(c)<then_branch = t {then}, else_branch = e {other}>"
    before = read(f"(float[2,3] x, bool c) => (float[a,b] y) {{ {body} }}")
    after = apply(RemoveIdentity(), before).graph
    for choice in (False, True):
        assert_same(before, after, {"x": floats(2, 3), "c": np.array(choice)})


def test_identity_of_another_domain() -> None:
    before = read("(float[2,3] x) => (float[a,b] y) { g = com.microsoft.Gelu(x) y = Neg(g) }")
    before.nodes[0].op = "Identity"
    assert listing(apply(RemoveIdentity(), before).graph) == listing(before)
