"""Batch normalization becomes part of the layer before it, or stays for a reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.graph import Graph
from onnxq.passes.fuse_batchnorm import FuseBatchnorm
from tests.onnx_text import Array, apply, assert_same, changes, floats, lines, listing, ops, read, refusal

RTOL = FuseBatchnorm.promise.rtol  # type: ignore[union-attr]


def norm(channels: int) -> dict[str, Array]:
    """Scale, shift, mean and variance of each channel."""
    return {
        "gamma": floats(channels, seed=1) + 2,
        "beta": floats(channels, seed=2),
        "mean": floats(channels, seed=3),
        "variance": floats(channels, seed=4) ** 2 + np.float32(0.1),
    }


BN = "[bn] y = BatchNormalization<epsilon=0.01>(c, gamma, beta, mean, variance)"
IMAGE = "2,4,6,6"


def model(
    layer: str,
    weights: dict[str, Any],
    *,
    x: str = IMAGE,
    channels: int = 6,
    tail: str = BN,
    outputs: str = "",
    inputs: str = "",
    opset: int = 17,
) -> Graph:
    """A layer that makes `c`, and batch normalization behind it."""
    names = ",".join("abcde"[: x.count(",") + 1])
    text = f"(float[{x}] x{inputs}) => (float[{names}] y{outputs}) {{ [layer] c = {layer} {tail} }}"
    return read(text, norm(channels) | weights, opset)


LAYERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "Conv": ("Conv<pads=[1,1,1,1]>(x, w)", {"w": floats(6, 4, 3, 3)}, {}),
    "Conv with bias": ("Conv(x, w, b)", {"w": floats(6, 4, 3, 3), "b": floats(6)}, {}),
    "Conv whose bias is left out": ('Conv(x, w, "")', {"w": floats(6, 4, 3, 3)}, {}),
    "Conv 1d": ("Conv(x, w)", {"w": floats(6, 4, 3)}, {"x": "2,4,9"}),
    "Conv 3d": ("Conv(x, w)", {"w": floats(6, 4, 2, 2, 2)}, {"x": "2,4,5,5,5"}),
    "grouped Conv": ("Conv<group=2>(x, w, b)", {"w": floats(6, 2, 3, 3), "b": floats(6)}, {}),
    "depthwise Conv": ("Conv<group=4>(x, w)", {"w": floats(4, 1, 3, 3)}, {"channels": 4}),
    "ConvTranspose": ("ConvTranspose(x, w, b)", {"w": floats(4, 6, 3, 3), "b": floats(6)}, {}),
    "ConvTranspose without bias": ("ConvTranspose<strides=[2,2]>(x, w)", {"w": floats(4, 6, 3, 3)}, {}),
    "Gemm": ("Gemm(x, w, b)", {"w": floats(4, 6), "b": floats(6)}, {"x": "3,4"}),
    "Gemm, one axis more": ("Gemm(x, w, b)", {"w": floats(4, 6), "b": floats(1, 6)}, {"x": "3,4"}),
    "Gemm, one number": ("Gemm(x, w, b)", {"w": floats(4, 6), "b": floats(1)}, {"x": "3,4"}),
    "Gemm, transposed weight": ("Gemm<transB=1>(x, w)", {"w": floats(6, 4)}, {"x": "3,4"}),
}


@pytest.mark.parametrize("case", LAYERS)
def test_fuses(case: str) -> None:
    layer, weights, options = LAYERS[case]
    before = model(layer, weights, **options)
    result = apply(FuseBatchnorm(), before)
    assert ops(result.graph) == [layer.split("(")[0].split("<")[0]]
    (change,) = changes(result)
    assert (change.node, change.op, change.done) == ("bn", "BatchNormalization", ops(result.graph)[0])
    assert_same(before, result.graph, rtol=RTOL)


@pytest.mark.parametrize("opset", [9, 13, 14, 15, 21])
def test_every_opset(opset: int) -> None:
    before = model("Conv(x, w)", {"w": floats(6, 4, 3, 3)}, opset=opset)
    result = apply(FuseBatchnorm(), before)
    assert ops(result.graph) == ["Conv"]
    assert_same(before, result.graph, rtol=RTOL)


def test_the_layer_makes_what_the_normalization_made() -> None:
    tail = BN.replace("y =", "n =") + " y = Relu(n)"
    result = apply(FuseBatchnorm(), model("Conv(x, w)", {"w": floats(6, 4, 3, 3)}, tail=tail))
    assert listing(result.graph) == lines("n = Conv(x, w_folded, layer_bias_folded)\ny = Relu(n)")
    result = apply(FuseBatchnorm(), model("Conv(x, w)", {"w": floats(6, 4, 3, 3)}))
    assert listing(result.graph) == "y = Conv(x, w_folded, layer_bias_folded)"


def test_two_normalizations_in_a_row() -> None:
    tail = BN.replace("y =", "n =") + " [second] y = BatchNormalization(n, beta, gamma, mean, variance)"
    before = model("Conv(x, w)", {"w": floats(6, 4, 3, 3)}, tail=tail)
    result = apply(FuseBatchnorm(), before)
    assert ops(result.graph) == ["Conv"]
    assert_same(before, result.graph, rtol=RTOL)


def test_a_weight_that_two_layers_share_is_not_changed_for_the_other() -> None:
    tail = f"d = Conv(x, w) {BN.replace('y =', 'n =')} y = Add(n, d)"
    before = model("Conv(x, w)", {"w": floats(6, 4, 3, 3)}, tail=tail)
    result = apply(FuseBatchnorm(), before)
    assert sorted(ops(result.graph)) == ["Add", "Conv", "Conv"]
    assert_same(before, result.graph, rtol=RTOL)


def test_float16_stays_float16() -> None:
    weights = {name: values.astype(np.float16) for name, values in (norm(6) | {"w": floats(6, 4, 3, 3)}).items()}
    before = read(f"(float16[{IMAGE}] x) => (float16[a,b,c,d] y) {{ c = Conv(x, w) {BN} }}", weights)
    result = apply(FuseBatchnorm(), before)
    assert ops(result.graph) == ["Conv"]
    feeds = {"x": floats(2, 4, 6, 6).astype(np.float16)}
    assert_same(before, result.graph, feeds, rtol=5e-3)  # a few of float16's roundings of 5e-4


REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "read elsewhere": (
        "Conv(x, w)",
        {"w": floats(6, 4, 3, 3)},
        {"tail": BN + " z = Relu(c)", "outputs": ", float[a,b,c,d] z"},
        "output of 'layer' is read elsewhere too",
    ),
    "a graph output": (
        "Conv(x, w)",
        {"w": floats(6, 4, 3, 3)},
        {"outputs": ", float[a,b,c,d] c"},
        "output of 'layer' is read elsewhere too",
    ),
    "no layer": ("Relu(x)", {}, {"channels": 4}, "No layer with a weight"),
    "grouped ConvTranspose": (
        "ConvTranspose<group=2>(x, w)",
        {"w": floats(4, 3, 3, 3)},
        {},
        "A grouped ConvTranspose mixes its channel axes",
    ),
    "weight not constant": ("Conv(x, w)", {}, {"inputs": ", float[6,4,3,3] w"}, "A weight is no constant"),
    "bias not constant": (
        "Conv(x, w, b)",
        {"w": floats(6, 4, 3, 3)},
        {"inputs": ", float[6] b"},
        "A weight is no constant",
    ),
    "Gemm with alpha": ("Gemm<alpha=2.0>(x, w)", {"w": floats(4, 6)}, {"x": "3,4"}, "scales its operands"),
    "Gemm with beta": (
        "Gemm<beta=2.0>(x, w, b)",
        {"w": floats(4, 6), "b": floats(6)},
        {"x": "3,4"},
        "scales its operands",
    ),
    "Gemm whose bias is a matrix": (
        "Gemm(x, w, b)",
        {"w": floats(4, 6), "b": floats(3, 6)},
        {"x": "3,4"},
        "bias of 'layer' is no row",
    ),
    "Gemm whose bias is a column": (
        "Gemm(x, w, b)",
        {"w": floats(4, 6), "b": floats(6, 1)},
        {"x": "6,4"},
        "bias of 'layer' is no row",
    ),
    "training": (
        "Conv(x, w)",
        {"w": floats(6, 4, 3, 3)},
        {"tail": "[bn] y, m, v = BatchNormalization<training_mode=1>(c, gamma, beta, mean, variance)"},
        "training mode",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_leaves_alone(case: str) -> None:
    layer, weights, options, reason = REFUSED[case]
    before = model(layer, weights, **options)
    result = apply(FuseBatchnorm(), before)
    assert reason in refusal(result, "bn")
    assert listing(result.graph) == listing(before)


def test_normalization_of_an_input() -> None:
    before = read(f"(float[{IMAGE}] c) => (float[a,b,c,d] y) {{ {BN} }}", norm(4))
    result = apply(FuseBatchnorm(), before)
    assert refusal(result, "bn") == "No layer with a weight stands before it."
    assert listing(result.graph) == listing(before)


def test_statistics_that_are_no_constants() -> None:
    weights = {name: v for name, v in norm(6).items() if name != "mean"} | {"w": floats(6, 4, 3, 3)}
    before = read(f"(float[{IMAGE}] x, float[6] mean) => (float[a,b,c,d] y) {{ c = Conv(x, w) {BN} }}", weights)
    result = apply(FuseBatchnorm(), before)
    assert refusal(result, "bn") == "A weight is no constant."
    assert listing(result.graph) == listing(before)
