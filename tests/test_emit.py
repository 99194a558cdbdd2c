"""A graph without its large weights still tells the types of all its tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxq import build
from onnxq.emit import LARGE
from onnxq.graph import Constant, Graph, Later, is_constant, skeleton
from onnxq.runtime import Session, tensor_types
from tests.onnx_text import floats, read, typed

Array = np.ndarray[Any, Any]
Types = dict[str, tuple[Any, Any]]

SIDE = 80
"""A square of so many floats is a large weight, a row a small one."""

DEEP = f"""(float[n,{SIDE}] x, bool c, int64[3] ids) => (float[n,{SIDE}] y, float16[3,{SIDE}] z, float[p,q] r) {{
    [one] a = MatMul(x, w) [two] b = Add(a, row) [shape] s = Reshape(b, sizes)
    [if] d = If(c) <then_branch = t () => (float[i,j] th) {{ th = MatMul(b, w) }},
                    else_branch = e () => (float[k,l] el) {{ el = MatMul(b, v) }}>
    [three] y = MatMul(d, w) [four] z = Gather(half, ids) [five] g = Gather(bytes, ids) [six] f = Cast<to=1>(g)
    [pick] r = Add(f, f) [end] u = Mul(s, s) }}"""
WEIGHTS = {
    "w": floats(SIDE, SIDE) / SIDE,
    "v": floats(SIDE, SIDE, seed=4) / SIDE,
    "row": floats(SIDE),
    "sizes": np.array([-1, 2, SIDE // 2]),
    "half": floats(200, SIDE).astype(np.float16),
    "bytes": np.arange(200 * SIDE).reshape(200, SIDE).astype(np.uint8),
}
LARGE_ONES = {"w", "v", "half"}


def deep() -> Graph:
    return read(DEEP, WEIGHTS)


def inner(graph: Graph) -> list[str]:
    return [name for name, tensor in graph.tensors().items() if not is_constant(tensor) and tensor.inputs]


def types(graph: Graph) -> Types:
    return {name: (graph.tensors()[name].dtype, graph.tensors()[name].shape) for name in inner(graph)}


def never() -> Array:
    raise AssertionError("A large weight was read.")


def unread(graph: Graph) -> Graph:
    """The same graph, whose large weights cannot be read."""
    for tensor in graph.weights():
        if tensor.name in LARGE_ONES:
            assert isinstance(tensor, Constant)
            values = WEIGHTS[tensor.name]
            assert values.nbytes > LARGE
            tensor._values = Later(values.shape, values.dtype, never)
    return graph


def forgotten(graph: Graph) -> Graph:
    for name in inner(graph):
        graph.tensors()[name].dtype = graph.tensors()[name].shape = None
    return graph


def test_types_are_those_of_the_whole_model_and_no_large_weight_is_read() -> None:
    expected = types(typed(forgotten(deep())))
    assert all(dtype is not None for dtype, _ in expected.values())
    assert types(build.typed(forgotten(unread(deep())))) == expected


def test_large_weights_are_inputs_and_small_ones_stay() -> None:
    model = skeleton(unread(deep()), [])
    names = {tensor.name for tensor in model.graph.initializer}
    assert names == WEIGHTS.keys() - LARGE_ONES
    declared = {info.name: info for info in model.graph.input}
    assert declared.keys() == {"x", "c", "ids"} | LARGE_ONES
    for name in LARGE_ONES:
        shape = [size.dim_value for size in declared[name].type.tensor_type.shape.dim]
        assert shape == list(WEIGHTS[name].shape)
    assert model.ByteSize() < 30_000


def test_inner_tensors_are_outputs_where_that_is_asked_for() -> None:
    model = skeleton(deep(), ["a", "s", "y"])
    assert [info.name for info in model.graph.output] == ["y", "z", "r", "a", "s"]
    found = {spec.name: spec.dtype for spec in tensor_types(model.SerializeToString())}
    assert found["s"] == np.float32


def test_integers_are_kept_however_large() -> None:
    """A shape may depend on them."""
    sizes = np.ones(1 + LARGE // 8, np.int64)
    graph = read("(float[4] x, int64[1] i) => (float[n] y) { s = Gather(sizes, i) y = Tile(x, s) }", {"sizes": sizes})
    assert sizes.nbytes > LARGE
    assert [tensor.name for tensor in skeleton(graph, []).graph.initializer] == ["sizes"]


def test_the_graph_is_not_touched() -> None:
    graph = deep()
    before = {tensor.name for tensor in graph.weights()}, [tensor.name for tensor in graph.inputs]
    skeleton(graph, ["a"])
    assert ({tensor.name for tensor in graph.weights()}, [tensor.name for tensor in graph.inputs]) == before
    model = onnx.load_from_string(skeleton(graph, []).SerializeToString())
    assert Session(model.SerializeToString(), optimize=False).inputs


@pytest.mark.parametrize("size", [LARGE // 4, LARGE // 4 + 1])
def test_where_large_begins(size: int) -> None:
    graph = read(f"(float[{size}] x) => (float[{size}] y) {{ y = Add(x, w) }}", {"w": floats(size)})
    assert len(skeleton(graph, []).graph.initializer) == (1 if size == LARGE // 4 else 0)
