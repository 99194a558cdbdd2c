"""Shapes that the graph tells become constants, and Reshapes that change nothing go."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.graph import Graph
from onnxq.passes.settle_shapes import SettleShapes
from tests.onnx_text import apply, assert_same, changes, floats, lines, listing, read

W = {
    "w": floats(24, 24),
    "zero": np.array([0]),
    "one": np.array([1]),
    "two": np.array([2]),
    "four": np.array([4]),
    "six": np.array([6]),
    "left": np.array([-1]),
    "whole": np.array([24]),
    "whole0": np.array([0, 0, 24]),
    "kept": np.array([0, 0, 4, 6]),
    "numbers": np.array([2, 3, 24]),
}
ROWS = "b = Shape<start=0, end=1>(ids) t = Shape<start=1, end=2>(ids)"
APART = f"{ROWS} c = Concat<axis=0>(b, t, four, six)"
FEEDS = {"x": floats(2, 3, 24), "ids": np.array([[1, 2, 3], [4, 5, 6]])}


def model(body: str, rank: int, x: str = "batch,row,24", outputs: str = "") -> Graph:
    axes = ",".join("abcde"[:rank])
    text = f"(float[{x}] x, int64[batch,row] ids) => (float[{axes}] y{outputs}) {{ {body} }}"
    return read(text, W)


SETTLED: dict[str, tuple[str, int, str]] = {
    "sizes of another tensor": (f"{APART} [r] y = Reshape(x, c)", 4, "y = Reshape(x, r_shape)"),
    "by way of layers": (
        f"m = MatMul(x, w) {APART} [r] y = Reshape(m, c)",
        4,
        "m = MatMul(x, w)\ny = Reshape(m, r_shape)",
    ),
    "zeros mean zeros": (f"{APART} [r] y = Reshape<allowzero=1>(x, c)", 4, "y = Reshape(x, r_shape)"),
    "-1 that may stand for anything": (
        "s = Shape(x) b = Slice(s, zero, one) c = Concat<axis=0>(b, left) [r] y = Reshape(x, c)",
        2,
        "y = Reshape(x, r_shape)",
    ),
    "one after another": (
        f"{APART} p = Reshape(x, c) d = Concat<axis=0>(b, t, six, four) [r] y = Reshape(p, d)",
        4,
        "y = Reshape(x, r_shape)",
    ),
}


@pytest.mark.parametrize("case", SETTLED)
def test_settles(case: str) -> None:
    body, rank, expected = SETTLED[case]
    before = model(body, rank)
    after = apply(SettleShapes(), before)
    assert listing(after.graph) == lines(expected)
    assert "r" in {change.node for change in changes(after) if change.done}
    assert_same(before, after.graph, FEEDS)


def test_an_axis_of_the_same_size_is_kept_by_0() -> None:
    after = apply(SettleShapes(), model(f"{APART} [r] y = Reshape(x, c)", 4))
    (shape,) = [t for t in after.graph.weights() if t.name == "r_shape"]
    assert shape._values.tolist() == [0, 0, 4, 6]


@pytest.mark.parametrize("whole", ["d = Concat<axis=0>(b, t, whole)", "d = Concat<axis=0>(b, t, left)"])
def test_takes_out_what_changes_nothing(whole: str) -> None:
    body = f"{APART} p = Reshape(x, c) {whole} q = Reshape(p, d) y = MatMul(q, w)"
    before = model(body, 3)
    after = apply(SettleShapes(), before)
    assert listing(after.graph) == "y = MatMul(x, w)"
    assert [change.done for change in changes(after)] == ["Reshape", "nothing"]
    assert_same(before, after.graph, FEEDS)


def test_names_that_are_promised_stay() -> None:
    before = model("y = Reshape(x, whole0)", 3)
    after = apply(SettleShapes(), before)
    assert (listing(after.graph), changes(after)) == (listing(before), [])
    inner = model("m = Relu(x) y = Reshape(m, whole0)", 3)
    assert listing(apply(SettleShapes(), inner).graph) == "y = Relu(x)"


UNTOLD: dict[str, tuple[str, int, str]] = {
    "a size of something else": (f"{APART} y = Reshape(x, c)", 4, "batch,other,24"),
    "a name that says nothing": (f"{APART} y = Reshape(x, c)", 4, "batch,None,24"),
    "another order": (f"{ROWS} c = Concat<axis=0>(t, b, four, six) y = Reshape(x, c)", 4, "batch,row,24"),
    "constants": ("y = Reshape(x, kept)", 4, "batch,row,24"),
}


@pytest.mark.parametrize("case", UNTOLD)
def test_leaves_alone_what_the_graph_does_not_tell(case: str) -> None:
    body, rank, x = UNTOLD[case]
    before = model(body, rank, x)
    after = apply(SettleShapes(), before)
    assert (listing(after.graph), changes(after)) == (listing(before), [])
