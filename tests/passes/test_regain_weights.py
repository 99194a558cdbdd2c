"""Weights that an exporter turned back into floats get their integers back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.graph import Graph, weight
from onnxq.passes.regain_weights import RegainWeights
from tests.onnx_text import apply, assert_within, changes, floats, grid, integers, into, listing, ops, out_of, read

Y = grid("y", -60, 60)


def on_grid(shape: tuple[int, ...], axis: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The floats of a quantized weight, and what they were."""
    found = integers("w", shape, axis=axis)
    along = [-1 if i == axis else 1 for i in range(len(shape))]
    return {"w": (found["w"] * found["w_scale"].reshape(along)).astype(np.float32)}, found


def model(call: str, weights: dict[str, Any], x: str, rank: int, *, quantized: bool = True, opset: int = 17) -> Graph:
    body = (into("x") if quantized else "x_f = Neg(x) ") + f"[op] c = {call} " + out_of("c")
    values = grid("x", -3, 3) | Y | {"b": floats(6)} | weights
    return read(f"(float[{x}] x) => (float[{','.join('abcd'[:rank])}] y) {{ {body} }}", values, opset)


LAYERS = {
    "Conv": ("Conv(x_f, w, b)", (6, 4, 3, 3), 0, "2,4,6,6", 4),
    "Gemm": ("Gemm(x_f, w, b)", (8, 6), 1, "3,8", 2),
    "Gemm, transposed": ("Gemm<transB=1>(x_f, w, b)", (6, 8), 0, "3,8", 2),
    "MatMul": ("MatMul(x_f, w)", (8, 6), 1, "3,8", 2),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_regains(layer: str) -> None:
    call, shape, axis, x, rank = LAYERS[layer]
    weights, was = on_grid(shape, axis)
    before = model(call, weights, x, rank)
    result = apply(RegainWeights(), before)
    assert ops(result.graph).count("DequantizeLinear") == 3
    (node,) = [n for n in result.graph.nodes if n.op == "DequantizeLinear" and n.inputs[0].name == "w_regained"]
    np.testing.assert_array_equal(weight(node.inputs[0]), was["w"])
    np.testing.assert_allclose(weight(node.inputs[1]), was["w_scale"], rtol=2e-7)
    assert_within(before, result.graph, float(Y["y_scale"]))
    assert changes(apply(RegainWeights(), result.graph)) == []


def test_no_grid() -> None:
    before = model("Conv(x_f, w, b)", {"w": floats(6, 4, 3, 3)}, "2,4,6,6", 4)
    result = apply(RegainWeights(), before)
    assert listing(result.graph) == listing(before)
    assert [(c.node, c.done, c.reason) for c in changes(result)] == [("op", "", "Its floats lie on no grid of 8 bits.")]


@pytest.mark.parametrize("options", [{"quantized": False}, {"opset": 12}])
def test_leaves_alone(options: dict[str, Any]) -> None:
    before = model("Conv(x_f, w, b)", on_grid((6, 4, 3, 3), 0)[0], "2,4,6,6", 4, **options)
    result = apply(RegainWeights(), before)
    assert listing(result.graph) == listing(before)
    assert changes(result) == []
