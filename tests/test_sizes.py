"""Sizes go through operators as they do at run time, and through the arithmetic on shapes."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.axes import Shape
from onnxq.graph import Graph, from_model, to_model
from onnxq.sizes import read_sizes
from tests.onnx_text import execute, floats, read

W = {
    "w": floats(8, 5),
    "table": floats(30, 8),
    "last": np.array([-1]),
    "i1": np.array(1),
    "zero": np.array([0]),
    "one": np.array([1]),
    "two": np.array([2]),
    "three": np.array([3]),
    "four": np.array([4]),
    "five": np.array([5]),
    "keep": np.array([0, 0, 2, 4]),
    "rest": np.array([0, -1]),
    "join": np.array([-1, 8]),
    "stretch": np.array([2, 1, 1, 1]),
}
CASES: dict[str, tuple[str, Shape]] = {
    "one number for each": ("y = Relu(x)", ["batch", "row", 8]),
    "an operator of the runtime": ("y = com.microsoft.Gelu(x)", ["batch", "row", 8]),
    "a sum": ("a = Relu(x) y = Add(x, a)", ["batch", "row", 8]),
    "a product": ("y = MatMul(x, w)", ["batch", "row", 5]),
    "a product of two": ("t = Transpose<perm=[0,2,1]>(x) y = MatMul(x, t)", ["batch", "row", "row"]),
    "a lookup": ("y = Gather(table, ids)", ["batch", "row", 8]),
    "the other way round": ("y = Transpose(x)", [8, "row", "batch"]),
    "two parts": ("y = Concat<axis=-1>(x, x)", ["batch", "row", 16]),
    "two parts of no known size": ("y = Concat<axis=1>(x, x)", ["batch", "y:1", 8]),
    "a new axis": ("y = Unsqueeze(x, one)", ["batch", 1, "row", 8]),
    "a mean that keeps its axis": ("y = ReduceMean<axes=[-1]>(x)", ["batch", "row", 1]),
    "a mean that does not": ("y = ReduceMax<axes=[1], keepdims=0>(x)", ["batch", 8]),
    "a part, as the runtime infers it": ("p = Slice(x, zero, three, last) y = Relu(p)", ["batch", "row", 3]),
    "a part of a number": ("y = Slice(x, zero, count, last)", ["batch", "row", "~y:2"]),
    "a part of a name": ("y = Slice(x, zero, count, one)", ["batch", "y:1", 8]),
    "a table that is cut to fit": (
        "s = Shape(ids) n = Slice(s, one, two) t = Slice(table, zero, n, zero) y = Add(x, t)",
        ["batch", "row", 8],
    ),
    "0 in a shape": ("y = Reshape(x, keep)", ["batch", "row", 2, 4]),
    "-1 in a shape": ("y = Reshape(x, join)", ["y:-1", 8]),
    "-1 for a number": ("a = Reshape(x, keep) s = Shape(ids) c = Concat<axis=0>(s, last) y = Reshape(a, c)",
        ["batch", "row", 8]),
    "-1 for a name": ("s = Shape(ids) b = Slice(s, zero, one) c = Concat<axis=0>(b, last, two, four) y = Reshape(x, c)",
        ["batch", "row", 2, 4]),
    "single sizes": (
        "s = Shape(x) b = Gather(s, i1) u = Unsqueeze(b, zero) f = Cast<to=7>(u) c = Concat<axis=0>(last, f, four) "
        "y = Reshape(x, c)",
        ["y:-1", "row", 4],
    ),
    "part of a shape": (
        "s = Shape<start=0, end=2>(x) c = Concat<axis=0>(s, two, four) y = Reshape(x, c)",
        ["batch", "row", 2, 4],
    ),
    "slices of a shape": (
        "s = Shape(x) b = Slice(s, zero, two, zero, one) e = Squeeze(zero, zero) c = Concat<axis=0>(b, four, two) "
        "y = Reshape(x, c)",
        ["batch", "row", 4, 2],
    ),
    "stretched": ("a = Unsqueeze(x, zero) y = Expand(a, stretch)", [2, "batch", "row", 8]),
    "attention": (
        "a = Concat<axis=2>(x, x) y = Attention<q_num_heads=4, kv_num_heads=2>(a, x, x)",
        ["batch", "row", 16],
    ),
}  # fmt: skip
FEEDS = {"x": floats(2, 3, 8), "ids": np.array([[1, 2, 3], [4, 5, 6]]), "count": np.array([2])}


def model(body: str, rank: int) -> Graph:
    axes = ",".join("abcdef"[:rank])
    text = f"(float[batch,row,8] x, int64[batch,row] ids, int64[1] count) => (float[{axes}] y) {{ {body} }}"
    return read(text, W, 23 if "Attention" in body else 17)


@pytest.mark.parametrize("case", CASES)
def test_sizes(case: str) -> None:
    body, expected = CASES[case]
    graph = model(body, len(expected))
    assert read_sizes(graph).of(graph.outputs[0]) == expected
    real = execute(graph, FEEDS)[0].shape
    known: dict[object, int] = {"batch": 2, "row": 3}
    assert [known.get(size, size) for size in expected if size in known or isinstance(size, int)] == [
        number for size, number in zip(expected, real, strict=True) if size in known or isinstance(size, int)
    ]


def test_a_zero_that_is_meant_keeps_no_axis() -> None:
    graph = model("z = Concat<axis=0>(zero, five) y = Reshape<allowzero=1>(x, z)", 2)
    assert read_sizes(graph).of(graph.outputs[0]) == ["a", 5], "the declared name, not that of the axis of x"


def test_works_without_what_the_runtime_infers() -> None:
    body = "m = MatMul(x, w) s = Shape(m) b = Slice(s, zero, two) c = Concat<axis=0>(b, five, one) y = Reshape(m, c)"
    graph = model(body, 4)
    bare = from_model(to_model(graph))
    for tensor in bare.tensors().values():
        if tensor.inputs:
            tensor.shape = None
    assert read_sizes(bare).of(bare.outputs[0]) == ["batch", "row", 5, 1]


@pytest.mark.parametrize("body", ["y = Reshape(x, shape)", "a = Reshape(x, shape) y = Relu(a)"])
def test_an_unknown_shape_has_names_of_its_own(body: str) -> None:
    graph = read(f"(float[batch,8] x, int64[2] shape) => (float[a,b] y) {{ {body} }}")
    graph.outputs[0].shape = None
    found = read_sizes(graph).of(graph.outputs[0])
    assert found is None or not {"batch", 8} & set(found)


def test_what_the_runtime_knows_nothing_about_is_no_number() -> None:
    """It says () of both; taken for a number, Transpose would reach beyond its axes."""
    body = "s = Reshape(x, shape) g = Gather<axis=2>(s, ids) t = Transpose<perm=[0,1,3,2]>(g) y = Relu(t)"
    graph = read(f"(float[batch,8] x, int64[n] shape, int64[2] ids) => (float[a,b,c,d] y) {{ {body} }}")
    graph.outputs[0].shape = None
    assert graph.tensors()["s"].shape is None
    assert read_sizes(graph).of(graph.tensors()["s"]) is None
    assert read_sizes(graph).of(graph.outputs[0]) is None
