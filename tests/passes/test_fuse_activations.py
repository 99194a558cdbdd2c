"""GELU, HardSwish and SiLU in every spelling that exporters have become one operator; others stay as they are."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from onnxq.graph import Graph
from onnxq.passes.fuse_activations import FuseActivations
from onnxq.runtime import Session
from tests.onnx_text import apply, assert_same, changes, grid, into, lines, listing, normal, read, refusal, serialize

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
    "alpha": np.array([1.702], np.float32),
    "many": np.linspace(0.5, 2, 64, dtype=np.float32),
    "deep": np.full((1, 1, 1, 1), 2, np.float32),
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
SWISH: dict[str, tuple[str, str]] = {
    "x at first": ("a = Sigmoid(x) [last] y = Mul(x, a)", "1"),
    "x at last": ("a = Sigmoid(x) [last] y = Mul(a, x)", "1"),
    "alpha": ("a = Mul(x, alpha) b = Sigmoid(a) [last] y = Mul(x, b)", "1.702"),
    "alpha at first": ("a = Mul(alpha, x) b = Sigmoid(a) [last] y = Mul(b, x)", "1.702"),
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


@pytest.mark.parametrize("case", SWISH)
def test_swish(case: str) -> None:
    body, alpha = SWISH[case]
    before = model(body)
    after = apply(FuseActivations(), before)
    assert listing(after.graph) == f"y = com.microsoft.QuickGelu<alpha={alpha}>(x)"
    assert [(c.node, c.op, c.done) for c in changes(after)] == [("last", "Mul", "QuickGelu")]
    assert_same(before, after.graph)


def test_swish_of_a_scaled_tensor_has_no_alpha() -> None:
    before = model("a = Mul(x, other) b = Sigmoid(a) [last] y = Mul(a, b)")
    after = apply(FuseActivations(), before)
    assert listing(after.graph) == "a = Mul(x, other)\ny = com.microsoft.QuickGelu<alpha=1>(a)"
    assert_same(before, after.graph)


def test_swish_of_a_sigmoid() -> None:
    before = model("a = Sigmoid(x) b = Sigmoid(a) [last] y = Mul(b, a)")
    after = apply(FuseActivations(), before)
    assert listing(after.graph) == "a = Sigmoid(x)\ny = com.microsoft.QuickGelu<alpha=1>(a)"
    assert_same(before, after.graph)


def test_the_runtime_does_not_fuse_swish_behind_integers() -> None:
    text = f"{into('x')} s = Sigmoid(x_f) y = Mul(x_f, s)"
    before = read(f"(float[2,3,64] x) => (float[2,3,64] y) {{ {text} }}", grid("x", -4, 4))
    after = apply(FuseActivations(), before)
    assert_same(before, after.graph)
    assert "QuickGelu" in kernels(after.graph)
    assert "QuickGelu" not in kernels(before), "if not, the runtime has learned, and this row can go"


def kernels(graph: Graph) -> list[str]:
    """What the runtime makes of a graph."""
    session = Session(serialize(graph), threads=1, profile=True)
    session.run(normal(graph))
    return [kernel.op for kernel in session.kernels()]


@pytest.mark.parametrize("inputs", ["float[2,3,64] x, float[2,3,64] z", "float[2,3,64] x, float[2,1,64] z"])
def test_a_gate_is_no_swish(inputs: str) -> None:
    before = model("a = Sigmoid(z) [last] y = Mul(x, a)", inputs=inputs)
    after = apply(FuseActivations(), before)
    assert (listing(after.graph), changes(after)) == (listing(before), [])


def test_a_sigmoid_that_is_an_output_stays() -> None:
    before = read("(float[2,64] x) => (float[2,64] y, float[2,64] a) { a = Sigmoid(x) [last] y = Mul(x, a) }")
    after = apply(FuseActivations(), before)
    assert refusal(after, "last") == "'a' is read elsewhere too."
    assert listing(after.graph) == listing(before)


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
    "a Sigmoid for two": (
        "a = Sigmoid(x) [last] b = Mul(x, a) y = Add(a, b)",
        17,
        "float[2,3,64] x",
        "'a' is read elsewhere too.",
    ),
    "an alpha for each channel": (
        "a = Mul(x, many) b = Sigmoid(a) [last] y = Mul(x, b)",
        17,
        "float[2,3,64] x",
        "Its factor 'many' is no single number.",
    ),
    "an alpha that adds an axis": (
        "a = Mul(x, deep) b = Sigmoid(a) [last] c = Mul(x, b) y = ReduceMax<axes=[0], keepdims=0>(c)",
        17,
        "float[2,3,64] x",
        "Its factor 'deep' is no single number.",
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


@pytest.mark.parametrize("body", [HARD_SWISH["over six at last"], *(body for body, _ in SWISH.values())])
def test_leaves_doubles_alone(body: str) -> None:
    numbers = {name: values.astype(np.float64) for name, values in NUMBERS.items()}
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
