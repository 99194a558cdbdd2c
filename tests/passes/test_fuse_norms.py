"""Normalizations in spellings that the runtime does not know become one that it knows; all others stay."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from onnxq.graph import Graph
from onnxq.passes.fuse_norms import FuseNorms
from onnxq.runtime import Session
from tests.onnx_text import apply, assert_same, changes, floats, listing, normal, ops, read, refusal, serialize

WEIGHTS: dict[str, Any] = {
    "g": floats(16),
    "b": floats(16, seed=4),
    "one": np.float32(1),
    "two": np.float32(2),
    "three": np.float32(3),
    "eps": np.float32(1e-3),
    "back": np.float32(-0.5),
    "last": np.array([-1]),
    "first": np.array([1]),
    "row": floats(3, 16),
    "several": floats(16) ** 2,
}
CENTER = "m = ReduceMean<axes=[-1]>(x) d = Sub(x, m)"
ROOT = "v = ReduceMean<axes=[-1]>(q) e = Add(v, eps) r = Sqrt(e)"
SCALE = "h = Mul(u, g) [last] y = Add(h, b)"
LAYER: dict[str, str] = {
    "a product, divided": f"{CENTER} q = Mul(d, d) {ROOT} u = Div(d, r) {SCALE}",
    "a power, divided": f"{CENTER} q = Pow(d, two) {ROOT} u = Div(d, r) {SCALE}",
    "times the reciprocal": f"{CENTER} q = Mul(d, d) {ROOT} i = Reciprocal(r) u = Mul(d, i) {SCALE}",
    "times one over the root": f"{CENTER} q = Pow(d, two) {ROOT} i = Div(one, r) u = Mul(i, d) {SCALE}",
    "a negative power": (
        f"{CENTER} q = Mul(d, d) v = ReduceMean<axes=[2]>(q) e = Add(eps, v) i = Pow(e, back) u = Mul(d, i) {SCALE}"
    ),
    "subtracted twice": f"{CENTER} c = Sub(x, m) q = Mul(c, c) {ROOT} u = Div(d, r) {SCALE}",
    "flat": (
        f"{CENTER} q = Mul(d, d) {ROOT} i = Reciprocal(r) k = Mul(i, g) p = Mul(x, k) n = Mul(m, k) s = Sub(b, n) "
        "[last] y = Add(p, s)"
    ),
}
ROOT_MEAN_SQUARE: dict[str, str] = {
    "a product": f"q = Mul(x, x) {ROOT} u = Div(x, r) [last] y = Mul(u, g)",
    "a reciprocal": f"q = Pow(x, two) {ROOT} i = Reciprocal(r) u = Mul(x, i) [last] y = Mul(g, u)",
    "one over the root": f"q = Mul(x, x) {ROOT} i = Div(one, r) u = Mul(i, x) [last] y = Mul(u, g)",
    "a negative power": (
        "q = Pow(x, two) v = ReduceMean<axes=[-1]>(q) e = Add(v, eps) i = Pow(e, back) u = Mul(x, i) "
        "[last] y = Mul(u, g)"
    ),
}


def model(body: str, opset: int = 17) -> Graph:
    if opset >= 18:
        body = re.sub(r"ReduceMean<axes=\[-?\d\]>\((\w)\)", r"ReduceMean(\1, last)", body)
    return read(f"(float[2,3,16] x) => (float[2,3,16] y) {{ {body} }}", WEIGHTS, opset)


def kernels(graph: Graph) -> list[str]:
    """What the runtime makes of a graph."""
    session = Session(serialize(graph), threads=1, profile=True)
    session.run(normal(graph))
    return [kernel.op for kernel in session.kernels()]


@pytest.mark.parametrize("body", LAYER.values(), ids=LAYER)
@pytest.mark.parametrize("opset", [17, 18])
def test_layer_normalization(body: str, opset: int) -> None:
    before = model(body, opset)
    after = apply(FuseNorms(), before)
    assert listing(after.graph) == "y = LayerNormalization<axis=-1, epsilon=0.001>(x, g, b)"
    assert [(c.node, c.op, c.done) for c in changes(after)] == [("last", "Add", "LayerNormalization")]
    assert_same(before, after.graph, rtol=1e-5)


@pytest.mark.parametrize("body", ROOT_MEAN_SQUARE.values(), ids=ROOT_MEAN_SQUARE)
@pytest.mark.parametrize("opset", [13, 18])
def test_root_mean_square(body: str, opset: int) -> None:
    before = model(f"{body}", opset)
    after = apply(FuseNorms(), before)
    assert ops(after.graph) == ["Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul"]
    assert "SimplifiedLayerNormalization" not in kernels(before)
    assert kernels(after.graph) == ["SimplifiedLayerNormalization"]
    assert_same(before, after.graph, rtol=1e-5)


def test_layer_normalization_before_its_opset() -> None:
    before = model(LAYER["times the reciprocal"], 13)
    after = apply(FuseNorms(), before)
    assert refusal(after, "last") == "LayerNormalization came with opset 17; the model has 13."
    assert kernels(after.graph) == ["LayerNormalization"], "divided by the root now, which the runtime knows"
    assert_same(before, after.graph, rtol=1e-5)


KNOWN: dict[str, str] = {
    "root mean square": f"q = Pow(x, two) {ROOT} u = Div(x, r) [last] y = Mul(u, g)",
    "one over the root": f"q = Pow(x, two) {ROOT} i = Div(one, r) u = Mul(x, i) [last] y = Mul(u, g)",
}


@pytest.mark.parametrize("body", KNOWN.values(), ids=KNOWN)
def test_leaves_alone_what_the_runtime_knows(body: str) -> None:
    before = model(body)
    after = apply(FuseNorms(), before)
    assert (listing(after.graph), changes(after)) == (listing(before), [])
    assert kernels(before) == ["SimplifiedLayerNormalization"]


REFUSED: dict[str, tuple[str, str]] = {
    "another power": (f"{CENTER} q = Pow(d, three) {ROOT} u = Div(d, r) {SCALE}", "Its constant 'three' is not 2."),
    "another axis": (
        f"{CENTER} q = Mul(d, d) v = ReduceMean<axes=[1]>(q) e = Add(v, eps) r = Sqrt(e) u = Div(d, r) {SCALE}",
        "is no mean along the last axis.",
    ),
    "a product of two": (f"{CENTER} q = Mul(d, x) {ROOT} u = Div(d, r) {SCALE}", "It multiplies different tensors."),
    "the square of something else": (
        f"{CENTER} q = Mul(x, x) {ROOT} u = Div(d, r) {SCALE}",
        "It squares something else than it divides.",
    ),
    "a shift of several rows": (
        f"{CENTER} q = Mul(d, d) {ROOT} u = Div(d, r) h = Mul(u, g) [last] y = Add(h, row)",
        "'row' does not hold one number for each place of the last axis.",
    ),
    "several epsilons": (
        f"{CENTER} q = Mul(d, d) v = ReduceMean<axes=[-1]>(q) e = Add(v, several) r = Sqrt(e) u = Div(d, r) {SCALE}",
        "Its epsilon is not one number.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_leaves_alone(case: str) -> None:
    body, reason = REFUSED[case]
    before = model(body)
    after = apply(FuseNorms(), before)
    assert refusal(after, "last").endswith(reason)
    assert "LayerNormalization" not in ops(after.graph)


def test_leaves_doubles_alone() -> None:
    weights = {n: v.astype(np.float64) if v.dtype == np.float32 else v for n, v in WEIGHTS.items()}
    before = read(f"(double[2,16] x) => (double[2,16] y) {{ {ROOT_MEAN_SQUARE['a product']} }}", weights)
    after = apply(FuseNorms(), before)
    assert refusal(after, "last") == "It computes in float64, not in float32."
