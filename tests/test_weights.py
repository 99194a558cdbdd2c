"""The bias makes up for the mean error of a rounded weight, where the means are those of its input channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.calibration.collect import Seen
from onnxq.channels import layers_of
from onnxq.graph import Graph
from onnxq.layers import Layer
from onnxq.recipe import Recipe, Weight, make_recipe
from onnxq.weights import corrected_bias, rounded_weight, seen_weight
from tests.onnx_text import Array, execute, floats, read

SETTINGS = Recipe().weight
PICTURES, ROWS = (6, 4, 9, 9), (60, 4)
LAYERS: dict[str, tuple[str, Array, tuple[int, ...]]] = {
    "Conv": ("y = Conv(x, w, b)", floats(6, 4, 3, 3), PICTURES),
    "Conv without a bias": ("y = Conv(x, w)", floats(6, 4, 3, 3), PICTURES),
    "grouped Conv": ("y = Conv<group=2>(x, w, b)", floats(6, 2, 3, 3), PICTURES),
    "depthwise Conv": ("y = Conv<group=4>(x, w)", floats(8, 1, 3, 3), PICTURES),
    "Conv 3d": ("y = Conv(x, w, b)", floats(6, 4, 2, 2, 2), (3, 4, 5, 5, 5)),
    "Gemm": ("y = Gemm(x, w, b)", floats(4, 6), ROWS),
    "Gemm, transposed": ("y = Gemm<transB=1>(x, w, b)", floats(6, 4), ROWS),
    "Gemm, square and transposed": ("y = Gemm<transB=1>(x, w)", floats(4, 4), ROWS),
    "Gemm without a bias": ("y = Gemm(x, w)", floats(4, 6), ROWS),
    "MatMul": ("m = MatMul(x, w) y = Add(m, b)", floats(4, 6), ROWS),
    "MatMul of three axes": ("m = MatMul(x, w) y = Add(b, m)", floats(4, 6), (3, 20, 4)),
}


def layer(text: str, weights: dict[str, Any], shape: tuple[int, ...]) -> tuple[Graph, Layer]:
    graph = read(f"(float[{','.join(map(str, shape))}] x) => (float y) {{ {text} }}", weights)
    (found,) = layers_of(graph)
    return graph, found


def inputs(shape: tuple[int, ...]) -> Array:
    """Channels of different means; pictures hold one number each, so that every place sees these means."""
    if len(shape) < 4:
        return floats(*shape) + np.arange(shape[-1], dtype=np.float32)
    one = floats(*shape[:2]) + np.arange(shape[1], dtype=np.float32)
    return np.broadcast_to(one.reshape(*shape[:2], *[1] * (len(shape) - 2)), shape).copy()


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("case", LAYERS)
def test_the_mean_of_each_output_stays(case: str, per_channel: bool) -> None:
    text, values, shape = LAYERS[case]
    x, weights = inputs(shape), {"w": values, "b": floats(6, seed=9)}
    graph, found = layer(text, weights, shape)
    rounded = rounded_weight(found, SETTINGS, per_channel)
    assert rounded.scale.ndim == int(per_channel)
    means = Seen.of(x).sums.mean
    assert means is not None
    bias = corrected_bias(found, rounded, means.tolist())
    assert bias is not None
    assert bias.dtype == np.float32
    others = tuple(i for i in range(x.ndim) if i != (x.ndim - 1 if found.linear else 1))
    (want,) = execute(graph, {"x": x})
    (have,) = execute(layer(text, weights | {"w": seen_weight(found, rounded)}, shape)[0], {"x": x})
    held = weights["b"] if found.bias is not None else np.zeros(len(bias), np.float32)
    error = (have - want).mean(others)
    assert np.abs(error).max() > 1e-3
    np.testing.assert_allclose(bias - held, -error, atol=2e-5)


def test_a_bias_of_more_axes_is_a_row() -> None:
    _, found = layer("m = MatMul(x, w) y = Add(m, b)", {"w": floats(4, 6), "b": floats(1, 1, 6)}, (3, 20, 4))
    bias = corrected_bias(found, rounded_weight(found, SETTINGS, True), [0.0] * 4)
    assert bias is not None
    np.testing.assert_array_equal(bias, floats(6))


UNKNOWN: dict[str, tuple[str, Array, tuple[int, ...], list[float]]] = {
    "no means": ("y = Gemm(x, w, b)", floats(4, 6), ROWS, []),
    "means of another number of channels": ("y = Gemm(x, w, b)", floats(4, 6), ROWS, [9.0] * 6),
    "means of the places of a signal": ("y = Conv(x, w, b)", floats(6, 4, 1), (2, 4, 4), [9.0] * 4),
    "means of the rows of four axes": ("m = MatMul(x, w) y = Add(m, b)", floats(4, 6), (2, 4, 3, 4), [9.0] * 4),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_nothing_is_corrected_where_means_are_not_known(case: str) -> None:
    text, values, shape, means = UNKNOWN[case]
    _, found = layer(text, {"w": values, "b": floats(6, seed=9)}, shape)
    bias = corrected_bias(found, rounded_weight(found, SETTINGS, True), means)
    assert bias is not None
    np.testing.assert_array_equal(bias, floats(6, seed=9))


def test_a_layer_without_a_bias_gets_none_where_nobody_adds_one() -> None:
    _, found = layer("y = MatMul(x, w)", {"w": floats(4, 6)}, ROWS)
    assert corrected_bias(found, rounded_weight(found, SETTINGS, True), [1.0] * 4) is None
    _, found = layer("y = Conv(x, w)", {"w": floats(6, 4, 1, 1)}, PICTURES)
    assert corrected_bias(found, rounded_weight(found, SETTINGS, True), []) is None


@pytest.mark.parametrize("wish", [{}, {"format": "uint8"}, {"format": "uint8", "symmetric": False}])
def test_a_weight_is_rounded_as_the_recipe_says(wish: dict[str, Any]) -> None:
    settings: Weight = make_recipe({"weight": wish}).weight
    _, found = layer("y = Gemm(x, w)", {"w": floats(4, 6) + np.float32(0.3)}, ROWS)
    rounded = rounded_weight(found, settings, True)
    assert rounded.values.dtype == np.dtype(wish.get("format", "int8"))
    assert (np.unique(rounded.zero_point).size > 1) == (wish.get("symmetric") is False)
    step = rounded.scale
    assert (np.abs(seen_weight(found, rounded) - floats(4, 6) - np.float32(0.3)) <= 0.51 * step).all()
