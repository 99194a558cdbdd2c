"""The bias makes up for the mean error of a rounded weight, where the means are those of its input channels."""

from __future__ import annotations

import zlib
from base64 import b64encode
from typing import Any

import numpy as np
import pytest

from onnxq.calibration.collect import Seen
from onnxq.channels import layers_of
from onnxq.errors import ModelError, RecipeError
from onnxq.graph import Graph, weight
from onnxq.layers import Layer, weight_axis
from onnxq.numerics.affine import quantize
from onnxq.numerics.formats import INT8
from onnxq.numerics.rounding.blocks import block_round
from onnxq.plan import LEFT_OUT
from onnxq.recipe import Recipe, Weight, make_recipe
from onnxq.weights import (
    blocked_bytes,
    blocked_weight,
    corrected_bias,
    differences,
    matrix_shape,
    raised_weight,
    rounded_weight,
    seen_blocks,
    seen_weight,
    shelf_name,
)
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


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("wish", [{}, {"format": "uint8"}, {"format": "uint8", "symmetric": False}])
@pytest.mark.parametrize("case", LAYERS)
def test_other_integers_come_out_of_a_plan_as_they_went_in(case: str, wish: dict[str, Any], per_channel: bool) -> None:
    text, values, shape = LAYERS[case]
    settings = make_recipe({"weight": wish}).weight
    _, found = layer(text, {"w": values, "b": floats(6)}, shape)
    nearest = rounded_weight(found, settings, per_channel)
    lowest, highest = (-127, 127) if not wish else (1, 255)
    anything = np.random.default_rng(0).integers(lowest, highest + 1, values.shape).astype(nearest.values.dtype)
    for chosen in (anything, np.asfortranarray(anything), nearest.values):
        read = rounded_weight(found, settings, per_channel, differences(chosen, nearest.values))
        np.testing.assert_array_equal(read.values, chosen)
        assert read.values.dtype == chosen.dtype
        np.testing.assert_array_equal(read.scale, nearest.scale)
        np.testing.assert_array_equal(read.zero_point, nearest.zero_point)


def test_what_differs_little_is_written_short() -> None:
    nearest = np.zeros((100, 100), np.int8)
    moved = nearest.copy()
    moved[3, 4] = -1
    assert len(differences(moved, nearest)) < 100


def packed(values: Any) -> str:
    return b64encode(zlib.compress(np.asarray(values, np.int8).tobytes())).decode()


MISFITS = {
    "no base64": "what?",
    "base64 of something else": b64encode(b"something else").decode(),
    "no ASCII": "\u00e4",
    "one number too few": packed([0] * 23),
    "one number too many": packed([0] * 25),
    "cut off": b64encode(zlib.compress(np.arange(24, dtype=np.int8).tobytes())[:-6]).decode(),
    "past the largest integer": packed([1] * 24),
    "past the smallest integer": packed([-1] * 24),
    "left out": LEFT_OUT,
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_rounding_of_another_weight_is_refused(case: str) -> None:
    graph, _ = layer("y = Gemm(x, w)", {"w": floats(4, 6)}, ROWS)
    graph.nodes[0].name = "fc"
    (found,) = layers_of(graph)
    nearest = rounded_weight(found, SETTINGS, True).values
    assert {nearest.min(), nearest.max()} == {-127, 127}, "so that one step more is one too many"
    words = r"Node 'fc': the rounding in the plan does not fit its weight \[4, 6\]\. Take it out .* make the plan again"
    with pytest.raises(RecipeError, match=words):
        rounded_weight(found, SETTINGS, True, MISFITS[case])


@pytest.mark.parametrize("case", ["Conv", "Gemm", "Gemm, transposed", "MatMul"])
def test_channels_whose_scale_is_raised_are_rounded_to_nearest(case: str) -> None:
    text, values, shape = LAYERS[case]
    _, found = layer(text, {"w": values, "b": floats(6)}, shape)
    axis, nearest = weight_axis(found.node), rounded_weight(found, SETTINGS, True)
    chosen = np.sign(nearest.values) * (np.abs(nearest.values) // 2)
    read = rounded_weight(found, SETTINGS, True, differences(chosen, nearest.values))
    scale = nearest.scale.copy()
    scale[2] *= 3
    raised = raised_weight(found, SETTINGS, read, scale)
    expected = np.moveaxis(chosen.copy(), axis, 0)
    expected[2] = np.moveaxis(quantize(values, scale, nearest.zero_point, INT8, axis), axis, 0)[2]
    np.testing.assert_array_equal(raised.values, np.moveaxis(expected, 0, axis))
    np.testing.assert_array_equal(raised.scale, scale)
    assert raised.values.dtype == np.int8


def test_a_scale_of_the_whole_weight_that_is_raised_rounds_it_all_to_nearest() -> None:
    _, found = layer("y = Gemm(x, w)", {"w": floats(4, 6)}, ROWS)
    nearest = rounded_weight(found, SETTINGS, False)
    read = rounded_weight(found, SETTINGS, False, differences(np.zeros((4, 6), np.int8), nearest.values))
    same = raised_weight(found, SETTINGS, read, nearest.scale)
    assert not same.values.any()
    raised = raised_weight(found, SETTINGS, read, nearest.scale * np.float32(2))
    assert np.abs(2 * raised.values.astype(int) - nearest.values).max() <= 1


LINEAR = ("Gemm", "Gemm, transposed", "Gemm, square and transposed", "Gemm without a bias", "MatMul")
BLOCKS: tuple[Any, ...] = (16, 32, 64, "channel")
INPUTS = 40
"""Fill no whole number of blocks: 16 leave 8 for a third one, one of 64 holds 24 zeros more."""


def wide(case: str) -> Layer:
    """A linear layer with more inputs than those of `LAYERS`."""
    text, values, _ = LAYERS[case]
    transposed = "transB" in text
    outputs = INPUTS if "square" in case else values.shape[0 if transposed else 1]
    made = floats(outputs, INPUTS) if transposed else floats(INPUTS, outputs)
    return layer(text, {"w": made, "b": floats(outputs)}, (60, INPUTS))[1]


def by_outputs(found: Layer) -> Array:
    """The weight as (outputs, inputs)."""
    values = weight(found.weight)
    return values if found.node.attrs.get("transB", 0) else values.T


def in_blocks(found: Layer, block: int) -> Array:
    """The weight as (outputs, blocks, block), the last block filled up with zeros."""
    rows = by_outputs(found)
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % block))).reshape(len(rows), -1, block)


def settings_of(**wish: Any) -> Weight:
    return make_recipe({"weight": wish}).weight


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("case", LINEAR)
def test_inputs_of_a_block_share_the_scale_that_its_largest_asks_for(case: str, block: Any, bits: int) -> None:
    """The value that is furthest from 0 lies on the side that has one integer more."""
    found, middle = wide(case), 1 << (bits - 1)
    made = blocked_weight(found, settings_of(block_size=block, symmetric=True, fit=False), bits)
    held = in_blocks(found, 64 if block == "channel" else block)
    assert made.values.dtype == np.uint8
    assert (made.block, made.zero_point) == (held.shape[2], None)
    assert (made.values.shape[:2], made.inputs) == (held.shape[:2], INPUTS)
    furthest = np.take_along_axis(held, np.abs(held).argmax(2, keepdims=True), 2)
    np.testing.assert_allclose(made.scale, furthest[..., 0] / -middle, rtol=1e-6)
    expected = np.minimum(np.rint(held / made.scale[..., None]) + middle, 2 * middle - 1)
    np.testing.assert_array_equal(made.integers(), expected.reshape(len(held), -1)[:, :INPUTS])
    assert made.integers().min() == 0


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("case", LINEAR)
def test_a_block_covers_its_range_and_zero(case: str, block: Any, bits: int) -> None:
    """Which is what the recipe asks for where it says nothing about symmetry."""
    found = wide(case)
    made = blocked_weight(found, settings_of(block_size=block, fit=False), bits)
    held = in_blocks(found, made.block)
    low, high = np.minimum(held.min(2), 0), np.maximum(held.max(2), 0)
    np.testing.assert_allclose(made.scale, (high - low) / ((1 << bits) - 1), rtol=1e-6)
    assert made.zero_point is not None
    np.testing.assert_array_equal(made.zero_point, np.rint(-low / made.scale))
    expected = np.clip(np.rint(held / made.scale[..., None]) + made.zero_point[..., None], 0, (1 << bits) - 1)
    np.testing.assert_array_equal(made.integers(), expected.reshape(len(held), -1)[:, :INPUTS])


@pytest.mark.parametrize("symmetric", [None, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("case", LINEAR)
def test_a_layer_sees_its_blocks_in_the_shape_of_its_weight(
    case: str, block: Any, bits: int, symmetric: bool | None
) -> None:
    found = wide(case)
    made = blocked_weight(found, settings_of(block_size=block, symmetric=symmetric, fit=False), bits)
    seen = seen_blocks(found, made)
    assert (seen.dtype, seen.shape, seen.flags.c_contiguous) == (np.float32, weight(found.weight).shape, True)
    rows = seen if found.node.attrs.get("transB", 0) else seen.T
    step = np.repeat(np.abs(made.scale), made.block, 1)[:, :INPUTS]
    reach = 1.0001 if symmetric else 0.5001  # the side that has one integer less is cut by half a step more
    assert (np.abs(rows - by_outputs(found)) <= reach * step).all()
    assert np.abs(rows - by_outputs(found)).max() > 0


@pytest.mark.parametrize("symmetric", [None, True])
@pytest.mark.parametrize("fit", [True, False])
def test_a_block_of_zeros_stays_one(fit: bool, symmetric: bool | None) -> None:
    values = floats(32, 6)
    values[:16, 2] = 0
    _, found = layer("y = Gemm(x, w)", {"w": values}, (60, 32))
    settings = settings_of(block_size=16, fit=fit, symmetric=symmetric)
    for bits in (4, 8):
        seen = seen_blocks(found, blocked_weight(found, settings, bits))
        assert np.isfinite(seen).all()
        assert not seen[:16, 2].any()
        assert seen[16:, 2].any()


METHODS: dict[str, dict[str, Any]] = {
    "mse": {},
    "rtn": {"fit": False},
    "hqq": {"method": "hqq"},
}


@pytest.mark.parametrize("importance", [None, np.arange(1.0, INPUTS + 1)])
@pytest.mark.parametrize("symmetric", [None, False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_recipe_says_how_blocks_are_rounded(method: str, symmetric: bool | None, importance: Array | None) -> None:
    found = wide("MatMul")
    made = blocked_weight(found, settings_of(symmetric=symmetric, **METHODS[method]), 4, importance)
    wish: dict[str, Any] = {"block": 32, "symmetric": symmetric is True, "method": method, "importance": importance}
    expected = block_round(weight(found.weight), bits=4, **wish)
    np.testing.assert_array_equal(made.seen(), expected.seen())
    assert (made.zero_point is None) == (symmetric is True)
    others = [{**wish, "method": other} for other in METHODS if other != method]
    seen = [block_round(weight(found.weight), bits=4, **other).seen() for other in others]
    same = [np.array_equal(made.seen(), other) for other in seen]
    assert not any(same) or (symmetric is True and method != "rtn"), "hqq of a symmetric grid is mse"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_named(value: float) -> None:
    values = floats(40, 6)
    values[39, 5] = value
    _, found = layer("y = Gemm(x, w)", {"w": values}, (60, 40))
    with pytest.raises(ModelError, match=r"Weight 'w': it holds NaN or infinity\. Repair the model"):
        blocked_weight(found, SETTINGS, 4)


@pytest.mark.parametrize("symmetric", [None, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", BLOCKS)
def test_bytes_are_those_that_are_stored(block: Any, bits: int, symmetric: bool | None) -> None:
    found, settings = wide("MatMul"), settings_of(block_size=block, symmetric=symmetric)
    made = blocked_weight(found, settings, bits)
    zeros = made.packed_zero_point()
    stored = made.values.nbytes + made.scale.nbytes + (0 if zeros is None else zeros.nbytes)
    outputs, inputs = matrix_shape(found)
    assert (outputs, inputs) == (6, INPUTS)
    assert blocked_bytes(settings, bits, inputs, outputs) == stored


def test_layers_share_what_is_on_a_shelf_where_they_share_a_weight_its_direction_and_its_width() -> None:
    body = "a = MatMul(x, w) b = Gemm(x, w) c = Gemm<transB=1>(x, w) d = MatMul(x, v) s = Sum(a, b, c, d) y = Neg(s)"
    graph = read(f"(float[3,6] x) => (float[3,6] y) {{ {body} }}", {"w": floats(6, 6), "v": floats(6, 6)})
    first, second, transposed, other = layers_of(graph)
    assert shelf_name(first, 4) == shelf_name(second, 4)
    different = {shelf_name(one, bits) for one in (first, transposed, other) for bits in (4, 8)}
    assert len(different) == 6
