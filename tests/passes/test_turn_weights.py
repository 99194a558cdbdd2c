"""Weights that reach their layer through Transpose or Reshape are stored as the layer reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxq.graph import Graph
from onnxq.passes.turn_weights import TurnWeights
from tests.onnx_text import apply, assert_same, changes, integers, listing, ops, read, refusal, stored


def model(
    body: str, weights: dict[str, Any], x: str = "2,4,6,6", rank: int = 4, opset: int = 17, inputs: str = ""
) -> Graph:
    text = f"(float[{x}] x{inputs}) => (float[{','.join('abcd'[:rank])}] y) {{ {body} }}"
    return read(text, weights, opset)


def blocks(*, axis: int) -> dict[str, Any]:
    """A 4-bit weight [32, 6] or [6, 32] with a scale for each 16 inputs."""
    shape, grids = ((32, 6), (2, 6)) if axis == 0 else ((6, 32), (6, 2))
    numbers = [n % 16 - 8 for n in range(192)]
    scale = np.linspace(0.1, 1, 12, dtype=np.float32).reshape(grids)
    return {"w": onnx.helper.make_tensor("w", onnx.TensorProto.INT4, shape, numbers), "w_scale": scale}


HWIO = "[op] t = Transpose<perm=[3,2,0,1]>(w_f) y = Conv(x, t)"
SHAPE = {"shape": np.array([6, 4, 3, 3])}
TURNED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "Transpose": (stored("w") + HWIO, integers("w", (3, 3, 4, 6)), {}),
    "Transpose, per channel": (stored("w", 3) + HWIO, integers("w", (3, 3, 4, 6), axis=3), {}),
    "Transpose, axis from behind": (stored("w", -1) + HWIO, integers("w", (3, 3, 4, 6), axis=3), {}),
    "Transpose, reversed": (
        stored("w", 0) + "[op] t = Transpose(w_f) y = Mul(x, t)",
        integers("w", (6, 4), axis=0),
        {"x": "4,6", "rank": 2},
    ),
    "Transpose, blocks": (
        "w_f = DequantizeLinear<axis=1, block_size=16>(w, w_scale) [op] t = Transpose(w_f) y = Mul(x, t)",
        blocks(axis=1),
        {"x": "32,6", "rank": 2, "opset": 21},
    ),
    "Reshape": (stored("w") + "[op] t = Reshape(w_f, shape) y = Conv(x, t)", integers("w", (6, 36)) | SHAPE, {}),
    "Reshape, per channel": (
        stored("w", 0) + "[op] t = Reshape(w_f, shape) y = Conv(x, t)",
        integers("w", (6, 36), axis=0) | SHAPE,
        {},
    ),
    "Unsqueeze": (
        stored("w", 0) + "[op] t = Unsqueeze(w_f, axes) y = Conv(x, t)",
        integers("w", (6, 4), axis=0) | {"axes": np.array([2, 3])},
        {},
    ),
    "Reshape and Transpose": (
        stored("w", 1) + "[op] r = Reshape(w_f, shape) [turn] t = Transpose<perm=[1,0,2,3]>(r) y = Conv(x, t)",
        integers("w", (4, 6), axis=1) | {"shape": np.array([4, 6, 1, 1])},
        {},
    ),
    "before scales had an axis": (stored("w") + HWIO, integers("w", (3, 3, 4, 6)), {"opset": 11}),
}


@pytest.mark.parametrize("case", TURNED)
def test_turns(case: str) -> None:
    body, weights, options = TURNED[case]
    before = model(body, weights, **options)
    result = apply(TurnWeights(), before)
    assert ops(result.graph) == ["DequantizeLinear", before.nodes[-1].op]
    assert all(change.done == "DequantizeLinear" for change in changes(result))
    assert_same(before, result.graph)
    assert changes(apply(TurnWeights(), result.graph)) == []


def test_other_readers_keep_the_weight_as_it_was() -> None:
    body = stored("w") + "t = Transpose(w_f) a = MatMul(x, t) m = ReduceMax<keepdims=0>(w_f) y = Mul(a, m)"
    before = model(body, integers("w", (6, 4)), x="3,4", rank=2)
    result = apply(TurnWeights(), before)
    assert ops(result.graph).count("DequantizeLinear") == 2
    assert_same(before, result.graph)


REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "channels taken apart": (
        stored("w", 0) + "[op] t = Reshape(w_f, shape) y = Conv(x, t)",
        integers("w", (24, 9), axis=0) | SHAPE,
        {},
        "It takes apart the channels that have a scale each.",
    ),
    "blocks": (
        "w_f = DequantizeLinear<axis=0, block_size=16>(w, w_scale) [op] t = Reshape(w_f, shape) y = MatMul(x, t)",
        blocks(axis=0) | {"shape": np.array([16, 12])},
        {"x": "3,16", "rank": 2, "opset": 21},
        "Its weight has a scale for each block.",
    ),
    "shape found at run time": (
        stored("w") + "[op] t = Reshape(w_f, shape) y = MatMul(x, t)",
        integers("w", (6, 4)),
        {"x": "3,4", "rank": 2, "inputs": ", int64[2] shape"},
        "The shape that its weight takes is not known.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_leaves_alone(case: str) -> None:
    body, weights, options, reason = REFUSED[case]
    before = model(body, weights, **options)
    result = apply(TurnWeights(), before)
    assert refusal(result, "op") == reason
    assert listing(result.graph) == listing(before)


def test_leaves_activations_alone() -> None:
    body = stored("w") + "t = Transpose(w_f) y = MatMul(x, t)"
    weights = {name: value for name, value in integers("w", (6, 4)).items() if name != "w"}
    before = model(body, weights, x="3,4", rank=2, inputs=", int8[6,4] w")
    result = apply(TurnWeights(), before)
    assert listing(result.graph) == listing(before)
    assert changes(result) == []
