"""What reads only constants is computed once, to the value that the runtime would compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.graph import Graph
from onnxq.passes.fold_constants import FoldConstants
from tests.onnx_text import apply, assert_same, changes, floats, lines, listing, ops, read

W = {"w": floats(3, 4)}
SIGNATURE = "(float[2,3] x) => (float[a,b] y)"


def after(graph: Graph, **options: Any) -> Graph:
    return apply(FoldConstants(**options), graph).graph


FOLDED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a transposed weight": ("t = Transpose(v) y = MatMul(x, t)", {"v": floats(4, 3)}, "y = MatMul(x, t)"),
    "a chain": ("t = Cast<to=1>(h) u = Neg(t) y = MatMul(x, u)", {"h": W["w"].astype(np.float16)}, "y = MatMul(x, u)"),
    "several outputs": ("p, q = Split<axis=1>(w) s = Add(p, q) y = MatMul(x, s)", W, "y = MatMul(x, s)"),
    "a number": ("c = Constant<value_float=2.5>() y = Mul(x, c)", {}, "y = Mul(x, c)"),
    "numbers": ("c = Constant<value_floats=[1.5,2.5,3.5]>() y = Mul(x, c)", {}, "y = Mul(x, c)"),
    "a tensor": ("c = Constant<value = float[3] {1.5,2.5,3.5}>() y = Mul(x, c)", {}, "y = Mul(x, c)"),
    "integers": ("c = Constant<value_ints=[3,2]>() y = Reshape(x, c)", {}, "y = Reshape(x, c)"),
    "a shape": ("s = Shape(v) y = Reshape(x, s)", {"v": floats(6, 1)}, "y = Reshape(x, s)"),
    "a filled tensor": (
        "c = ConstantOfShape<value = float[1] {2}>(s) y = Mul(x, c)",
        {"s": np.array([3])},
        "y = Mul(x, c)",
    ),
    "a quantized weight": (
        "q = QuantizeLinear(v, s) d = DequantizeLinear(q, s) y = Add(x, d)",
        {"v": floats(3), "s": np.float32(0.1)},
        "d = DequantizeLinear(q, s)\ny = Add(x, d)",
    ),
    "infinity": (
        "c = Div(n, z) r = Reciprocal(c) y = Add(x, r)",
        {"n": np.array([1, -1, 3], np.float32), "z": np.array([0, 0, 2], np.float32)},
        "y = Add(x, r)",
    ),
}


@pytest.mark.parametrize("case", FOLDED)
def test_folds(case: str) -> None:
    body, weights, expected = FOLDED[case]
    before = read(f"{SIGNATURE} {{ {body} }}", weights)
    result = after(before)
    assert listing(result) == lines(expected)
    assert_same(before, result)


def test_says_what_it_computed() -> None:
    """A Constant node is a weight in another place: nothing to report."""
    before = read(
        f"{SIGNATURE} {{ [two] c = Constant<value_int=2>() [turn] t = Transpose(v) y = MatMul(x, t) }}",
        {"v": floats(4, 3)},
    )
    found = changes(apply(FoldConstants(), before))
    assert [(c.node, c.op, c.done) for c in found] == [("turn", "Transpose", "constant")]


KEPT: dict[str, tuple[str, dict[str, Any]]] = {
    "a dequantized weight": (
        "[n] d = DequantizeLinear(q, s) y = MatMul(x, d)",
        {"q": np.ones((3, 4), np.int8), "s": np.float32(0.1)},
    ),
    "dice": ("[n] r = RandomNormalLike(w) y = MatMul(x, r)", W),
    "dice of training": ("[n] r = Dropout(w, h, t) y = MatMul(x, r)", W | {"h": np.float32(0.5), "t": np.array(True)}),
    "a sequence": ("[n] s = SplitToSequence<axis=1>(w) t = SequenceAt(s, i) y = MatMul(x, t)", W | {"i": np.array(1)}),
    "a sequence that is built": (
        "[n] s = SequenceConstruct(w, w) t = SequenceAt(s, i) y = MatMul(x, t)",
        W | {"i": np.array(1)},
    ),
    "an optional value": ("[n] s = Optional(w) t = OptionalGetElement(s) y = MatMul(x, t)", W),
}


@pytest.mark.parametrize("case", KEPT)
def test_leaves_alone(case: str) -> None:
    body, weights = KEPT[case]
    before = read(f"{SIGNATURE} {{ {body} }}", weights, opset=21)
    assert listing(after(before)) == listing(before)


def test_leaves_strings_alone() -> None:
    body = 'y = Neg(x) s = Constant<value_strings=["a"]>() k = Identity(s)'
    before = read(f"(float[2,3] x) => (float[a,b] y, string[1] k) {{ {body} }}")
    assert listing(after(before)) == listing(before)


def test_leaves_other_domains_alone() -> None:
    before = read(f"{SIGNATURE} {{ g = com.microsoft.Gelu(w) y = MatMul(x, g) }}", W)
    assert listing(after(before)) == listing(before)


def test_leaves_outputs_alone() -> None:
    before = read("(float[2,3] x) => (float[a,b] y, float[3,4] n) { n = Neg(w) y = MatMul(x, n) }", W)
    assert listing(after(before)) == listing(before)


def test_leaves_what_a_body_captures_and_the_body_itself() -> None:
    then, other = "() => (float[a,b] o) { o = MatMul(x, n) }", "() => (float[a,b] p) { p = MatMul(x, w) }"
    body = f"n = Neg(w) y = If(c)<then_branch = t {then}, else_branch = e {other}>"
    before = read(f"{SIGNATURE} {{ {body} }}", W | {"c": np.array(True)})
    result = after(before)
    assert ops(result) == ["Neg", "If"]
    assert_same(before, result)


@pytest.mark.parametrize(("op", "more"), [("Expand", "shape"), ("Tile", "repeats")])
def test_leaves_what_makes_the_file_grow(op: str, more: str) -> None:
    weights = {"v": floats(3, 1), "shape": np.array([3, 40]), "repeats": np.array([1, 40])}
    before = read(f"{SIGNATURE} {{ e = {op}(v, {more}) y = MatMul(x, e) }}", weights)
    assert ops(after(before, small=3 * 40 * 4)) == ["MatMul"]
    assert ops(after(before, small=3 * 40 * 4 - 1)) == [op, "MatMul"]


def test_a_wider_type_may_take_twice_the_bytes() -> None:
    before = read(f"{SIGNATURE} {{ t = Cast<to=1>(h) y = MatMul(x, t) }}", {"h": floats(3, 4).astype(np.float16)})
    assert ops(after(before, small=0)) == ["MatMul"]


def test_never_fills_a_large_tensor() -> None:
    """Refused before it is computed: the shape of a filled tensor is a few bytes, and the tensor may be terabytes."""
    before = read(
        "(float[2,3] x) => (float[a,b] y) { c = ConstantOfShape(s) r = ReduceMax(c) y = Add(x, r) }",
        {"s": np.array([1 << 20, 1 << 20])},
    )
    assert ops(after(before)) == ["ConstantOfShape", "ReduceMax", "Add"]


def test_what_memory_cannot_hold_is_not_even_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def compute(*_: object) -> None:
        raise AssertionError("computed")

    body = "e = Expand(v, sizes) m = ReduceMax<keepdims=0>(e) y = Add(x, m)"
    before = read(f"{SIGNATURE} {{ {body} }}", {"v": floats(1, 1), "sizes": np.array([2**20, 2**20])})
    monkeypatch.setattr("onnxq.passes.fold_constants.evaluate", compute)
    assert ops(after(before)) == ["Expand", "ReduceMax", "Add"]
