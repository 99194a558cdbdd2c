"""Weights of 4 bits and weights in blocks keep their numbers in `MatMulNBits`."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxq.graph import Graph
from onnxq.passes.pack_weights import PackWeights
from tests.onnx_text import apply, changes, execute, floats, listing, normal, ops, read, refusal, sqnr

KINDS = {"int4": 22, "uint4": 21, "int8": 3, "uint8": 2}
N = 6


def numbers(kind: str, shape: tuple[int, ...], seed: int) -> onnx.TensorProto:
    """Random integers of a type."""
    bits, middle = (4, 8) if "4" in kind else (8, 128)
    shift = 0 if kind.startswith("u") else middle
    values = np.random.default_rng(seed).integers(0, 1 << bits, shape) - shift
    return onnx.helper.make_tensor("w", KINDS[kind], shape, values.reshape(-1).tolist())


def model(
    kind: str,
    *,
    k: int = 64,
    size: int = 0,
    rows: bool = False,
    zero: str = "none",
    layer: str = "y = MatMul(x, f)",
    x: str = "3",
    weights: dict[str, Any] | None = None,
    float_type: str = "float",
    axis: int | None = None,
) -> Graph:
    """A linear layer behind a dequantized weight [k, N], or [N, k] with `rows`; size 0 is a scale for each output."""
    shape, blocks = (N, k) if rows else (k, N), -(-k // size) if size else 0
    grids: tuple[int, ...] = (N,) if not size else (N, blocks) if rows else (blocks, N)
    values: dict[str, Any] = {"w": numbers(kind, shape, 1), "s": 0.1 + np.abs(floats(*grids))}
    along = (1 if rows else 0) if size else (0 if rows else 1)
    if zero != "none":
        values["z"] = numbers(kind, grids, 2)
        if zero == "middle":
            middle = {"int4": 0, "uint4": 8, "int8": 0, "uint8": 128}[kind]
            values["z"] = onnx.helper.make_tensor("z", KINDS[kind], grids, [middle] * int(np.prod(grids)))
    if float_type == "float16":
        values["s"] = values["s"].astype(np.float16)
    values |= {"b": floats(N)} | (weights or {})
    block = f", block_size={size}" if size else ""
    attributes = f"<axis={along if axis is None else axis}{block}>"
    body = f"f = DequantizeLinear{attributes}(w, s{', z' if zero != 'none' else ''}) [fc] {layer}"
    rank = x.count(",") + 2
    text = f"({float_type}[{x},{k}] x) => ({float_type}[{','.join('abcd'[:rank])}] y) {{ {body} }}"
    return read(text, values, 21)


GEMM = {"layer": "y = Gemm<transB=1>(x, f, b)", "rows": True}
PACKED: dict[str, dict[str, Any]] = {
    "int4, blocks": {"kind": "int4", "size": 32},
    "int4, blocks and zero points": {"kind": "int4", "size": 16, "zero": "odd"},
    "int4, zero points of 0": {"kind": "int4", "size": 16, "zero": "middle"},
    "uint4, blocks": {"kind": "uint4", "size": 32},
    "uint4, odd zero points": {"kind": "uint4", "size": 16, "zero": "odd"},
    "uint4, zero points of 8": {"kind": "uint4", "size": 16, "zero": "middle"},
    "int8, blocks": {"kind": "int8", "size": 32},
    "uint8, odd zero points": {"kind": "uint8", "size": 32, "zero": "odd"},
    "int4, per channel": {"kind": "int4"},
    "int4, per channel, many inputs": {"kind": "int4", "k": 200},
    "int4, per channel, few inputs": {"kind": "int4", "k": 9},
    "int4, per tensor": {"kind": "int4", "weights": {"s": np.float32(0.3)}},
    "last block not full": {"kind": "int4", "size": 32, "k": 72, "zero": "odd"},
    "three blocks in one": {"kind": "int4", "size": 96, "k": 200},
    "large blocks": {"kind": "uint4", "size": 256, "k": 300, "zero": "odd"},
    "more axes": {"kind": "int4", "size": 32, "x": "2,3"},
    "Gemm": {"kind": "int4", "size": 32, "layer": "y = Gemm(x, f)"},
    "Gemm, transposed, with a bias": {"kind": "int4", "size": 32, **GEMM},
    "Gemm, transposed, 8 bits": {"kind": "uint8", "size": 16, "zero": "odd", **GEMM},
    "Gemm, transposed, per channel": {"kind": "int4", **GEMM},
}


@pytest.mark.parametrize("case", PACKED)
def test_packs(case: str) -> None:
    before = model(**PACKED[case])
    result = apply(PackWeights(accuracy_level=0), before)
    assert ops(result.graph) == ["MatMulNBits"]
    assert [(c.node, c.done) for c in changes(result)] == [("fc", "MatMulNBits")]
    feeds = normal(before)
    (want,), (have,) = execute(before, feeds), execute(result.graph, feeds)
    np.testing.assert_allclose(have, want, rtol=0, atol=1e-5 * float(np.abs(want).max()))
    (fast,) = execute(apply(PackWeights(), before).graph, feeds)
    assert sqnr(want, fast) > 35  # inputs in 8 bits: 45 dB for normal ones, less where blocks are few
    assert changes(apply(PackWeights(), result.graph)) == []


@pytest.mark.parametrize("zero", ["none", "middle"])
def test_zero_points_in_the_middle_are_left_out(zero: str) -> None:
    result = apply(PackWeights(), model("int4", size=32, zero=zero))
    assert [tensor.name for tensor in result.graph.nodes[0].inputs if tensor.name][1:] == ["w_blocks", "w_scales"]


def test_layers_that_share_a_weight_share_its_blocks() -> None:
    before = model("int4", size=32, layer="a = MatMul(x, f) c = MatMul(x, f) y = Add(a, c)")
    result = apply(PackWeights(), before)
    assert listing(result.graph).count("w_blocks, w_scales") == 2


def test_half_precision() -> None:
    before = model("int4", size=32, float_type="float16")
    result = apply(PackWeights(accuracy_level=0), before)
    assert ops(result.graph) == ["MatMulNBits"]
    feeds = {name: value.astype(np.float16) for name, value in normal(before).items()}
    assert sqnr(execute(before, feeds)[0], execute(result.graph, feeds)[0]) > 50


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "small blocks": ({"kind": "int4", "size": 8}, "Its blocks of 8 inputs are no multiple of 16."),
    "a scale for each input": (
        {"kind": "int4", "axis": 0, "weights": {"s": np.abs(floats(64))}},
        "Its weight has a scale for each input; MatMulNBits wants one for each output.",
    ),
    "Gemm with alpha": (
        {"kind": "int4", "size": 32, "layer": "y = Gemm<alpha=2.0>(x, f)"},
        "A Gemm with transA, alpha or beta has no kernel with such weights.",
    ),
    "a bias of one number": (
        {"kind": "int4", "size": 32, "layer": "y = Gemm(x, f, b)", "weights": {"b": floats(1)}},
        "Its bias does not have one number for each output channel.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    options, reason = REFUSED[case]
    before = model(**options)
    result = apply(PackWeights(), before)
    assert refusal(result, "fc") == reason
    assert listing(result.graph) == listing(before)


def test_leaves_8_bits_with_a_scale_for_each_channel_alone() -> None:
    before = model("int8")
    result = apply(PackWeights(), before)
    assert listing(result.graph) == listing(before)
    assert changes(result) == []
