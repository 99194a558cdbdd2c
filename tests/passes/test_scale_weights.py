"""What scales and shifts channels behind a quantized weight goes into its scales and the bias."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.graph import Graph
from onnxq.numerics.affine import quantize_bias
from onnxq.passes.scale_weights import ScaleWeights
from tests.onnx_text import (
    apply,
    assert_same,
    changes,
    execute,
    floats,
    integers,
    lines,
    listing,
    normal,
    ops,
    read,
    refusal,
    stored,
)

CONV = {"x": "2,4,6,6", "rank": 4}
GEMM = {"x": "3,4", "rank": 2}
NORM = {"g": 1 + floats(6) / 9, "s": floats(6, seed=1), "m": floats(6, seed=2) / 9, "v": 1 + floats(6, seed=4) ** 2}
WEIGHT = integers("w", (6, 4, 3, 3), axis=0)
MATRIX = integers("w", (4, 6), axis=1)
ROWS = integers("w", (6, 4), axis=0)
COLUMN, ROW = 2 + floats(6).reshape(6, 1, 1) / 9, 2 + floats(6) / 9
FLIP = {"g": NORM["g"] * np.array([1, -1, 1, 1, -1, 1], np.float32)}


def bias() -> dict[str, Any]:
    """A bias in units of an accumulator."""
    values, scale = quantize_bias(floats(6), np.float32(0.02), WEIGHT["w_scale"])
    return {"b": values, "b_scale": scale, "b_zero": np.zeros(6, np.int32)}


def model(
    body: str, weights: dict[str, Any], *, x: str = "2,4,6,6", rank: int = 4, outputs: str = "", inputs: str = ""
) -> Graph:
    text = f"(float[{x}] x{inputs}) => (float[{','.join('abcd'[:rank])}] y{outputs}) {{ {body} }}"
    return read(text, weights)


BN = "[op] y = BatchNormalization(c, g, s, m, v)"
ABSORBED: dict[str, tuple[str, dict[str, Any], dict[str, Any], list[str]]] = {
    "normalization": (stored("w", 0) + "c = Conv(x, w_f)" + BN, WEIGHT | NORM, CONV, ["BatchNormalization"]),
    "normalization behind a bias": (
        stored("w", 0) + "c = Conv(x, w_f, k)" + BN,
        WEIGHT | NORM | {"k": floats(6, seed=9)},
        CONV,
        ["BatchNormalization"],
    ),
    "normalization behind a quantized bias": (
        stored("w", 0) + stored("b", 0) + "c = Conv(x, w_f, b_f)" + BN,
        WEIGHT | NORM | bias(),
        CONV,
        ["BatchNormalization"],
    ),
    "negative factors": (stored("w", 0) + "c = Conv(x, w_f)" + BN, WEIGHT | NORM | FLIP, CONV, ["BatchNormalization"]),
    "one scale": (
        stored("w") + "c = Conv(x, w_f)" + BN,
        integers("w", (6, 4, 3, 3)) | NORM,
        CONV,
        ["BatchNormalization"],
    ),
    "one scale and an odd zero point": (
        stored("w") + "c = Conv(x, w_f)" + BN,
        integers("w", (6, 4, 3, 3), symmetric=False) | NORM,
        CONV,
        ["BatchNormalization"],
    ),
    "what training leaves": (
        stored("w", 0) + "c = Conv(x, w_f) d = Div(c, k) e = Add(d, b) " + BN.replace("(c,", "(e,"),
        WEIGHT | NORM | {"k": COLUMN, "b": floats(1, 6, 1, 1)},
        CONV,
        ["Div", "Add", "BatchNormalization"],
    ),
    "Mul on the left, Sub of one number": (
        stored("w", 0) + "c = Conv(x, w_f) d = Mul(k, c) y = Sub(d, one)",
        WEIGHT | {"k": COLUMN, "one": np.float32(1.5)},
        CONV,
        ["Mul", "Sub"],
    ),
    "Gemm": (stored("w", 1) + "c = Gemm(x, w_f, b) y = Mul(c, k)", MATRIX | {"k": ROW, "b": floats(1)}, GEMM, ["Mul"]),
    "Gemm, transposed": (
        stored("w", 0) + "c = Gemm<transB=1>(x, w_f, b) d = Add(c, k) y = Div(d, k)",
        ROWS | {"k": ROW, "b": floats(6)},
        GEMM,
        ["Add", "Div"],
    ),
}


@pytest.mark.parametrize("case", ABSORBED)
def test_absorbs(case: str) -> None:
    body, weights, options, taken = ABSORBED[case]
    before = model(body, weights, **options)
    result = apply(ScaleWeights(), before)
    assert [change.op for change in changes(result) if change.done] == taken
    assert not set(ops(result.graph)) & set(taken)
    feeds = normal(before)  # without the runtime's own rewrites, one of which rounds what a linear layer reads
    (want,), (have,) = execute(before, feeds), execute(result.graph, feeds)
    np.testing.assert_allclose(have, want, rtol=0, atol=2e-6 * float(np.abs(want).max()))
    assert changes(apply(ScaleWeights(), result.graph)) == []


def test_a_shift_alone_leaves_the_weight() -> None:
    before = model(stored("w", 0) + "[fc] c = Conv(x, w_f) y = Add(c, k)", WEIGHT | {"k": COLUMN})
    result = apply(ScaleWeights(), before)
    assert listing(result.graph) == lines(
        """
        w_f = DequantizeLinear<axis=0>(w, w_scale, w_zero)
        y = Conv(x, w_f, fc_bias)
        """
    )
    assert_same(before, result.graph)


REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "factor of 0": (
        stored("w", 0) + "c = Conv(x, w_f)" + BN,
        WEIGHT | NORM | {"g": NORM["g"] * (np.arange(6) != 3).astype(np.float32)},
        CONV,
        "A factor of 0, or one that is not finite, leaves no scale.",
    ),
    "integers without a negative": (
        stored("w", 0) + "c = Conv(x, w_f)" + BN,
        WEIGHT | NORM | FLIP | {"w": np.full((6, 4, 3, 3), -128, np.int8)},
        CONV,
        "A factor is negative, and the integers before it have no negative in their format.",
    ),
    "scales along the inputs": (
        stored("w", 1) + "c = Conv(x, w_f)" + BN,
        integers("w", (6, 4, 3, 3), axis=1) | NORM,
        CONV,
        "The weight before it has scales along its inputs.",
    ),
    "bias found at run time": (
        stored("w", 0) + "c = Conv(x, w_f, b)" + BN,
        WEIGHT | NORM,
        CONV | {"inputs": ", float[6] b"},
        "The weight or the bias before it is no constant.",
    ),
    "Gemm with alpha": (
        stored("w", 1) + "c = Gemm<alpha=2.0>(x, w_f) [op] y = Mul(c, k)",
        MATRIX | {"k": ROW},
        GEMM,
        "The Gemm before it scales its operands.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    body, weights, options, reason = REFUSED[case]
    before = model(body, weights, **options)
    result = apply(ScaleWeights(), before)
    assert refusal(result, "op") == reason
    assert listing(result.graph) == listing(before)


KEPT: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "read elsewhere": (
        stored("w", 0) + "c = Conv(x, w_f) z = Neg(c)" + BN,
        WEIGHT | NORM,
        CONV | {"outputs": ", float[a,b,c,d] z"},
    ),
    "a number for each pixel": (
        stored("w", 0) + "c = Conv(x, w_f) y = Mul(c, k)",
        WEIGHT | {"k": 2 + floats(4, 4)},
        CONV,
    ),
    "of one over": (stored("w", 0) + "c = Conv(x, w_f) y = Div(k, c)", WEIGHT | {"k": COLUMN}, CONV),
    "float weight": ("c = Conv(x, w)" + BN, NORM | {"w": floats(6, 4, 3, 3)}, CONV),
}


@pytest.mark.parametrize("case", KEPT)
def test_leaves_alone(case: str) -> None:
    body, weights, options = KEPT[case]
    before = model(body, weights, **options)
    result = apply(ScaleWeights(), before)
    assert changes(result) == []
    assert listing(result.graph) == listing(before)
