"""Values of inner tensors, and the noise that rounding brings to the output of one layer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from onnxq.calibration.data import Data, open_data
from onnxq.channels import layers_of, scaled_inputs
from onnxq.graph import Graph, weight
from onnxq.layers import weight_axis
from onnxq.numerics.affine import fake_quantize, parameters, quantize_weight
from onnxq.numerics.formats import FORMATS
from onnxq.recipe import Recipe, make_recipe
from onnxq.search import local
from onnxq.search.local import Bench, activations
from tests.onnx_text import Array, execute, floats, read

TWO = "(float[n,6] x) => (float[n,4] y) { a = MatMul(x, v) r = Relu(a) y = MatMul(r, w) }"
WEIGHTS = {"v": floats(6, 8), "w": floats(8, 4, seed=4)}


def data(graph: Graph, feeds: Mapping[str, Array] | list[Mapping[str, Array]]) -> Data:
    return open_data(feeds, graph.interface().inputs)


def test_inputs_and_inner_tensors() -> None:
    graph, x = read(TWO, WEIGHTS), floats(5, 6)
    found = dict(activations(graph, ["r", "x"], data(graph, {"x": x})))
    np.testing.assert_array_equal(found["x"], x)
    np.testing.assert_allclose(found["r"], np.maximum(x @ WEIGHTS["v"], 0), rtol=1e-5, atol=1e-5)
    assert [name for name, _ in activations(graph, ["r", "x"], data(graph, {"x": x}))] == ["r", "x"]


def test_a_few_samples_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = read(TWO, WEIGHTS)
    many = data(graph, {"x": floats(40, 6)})
    monkeypatch.setattr(local, "SAMPLES", 7)
    assert {name: len(value) for name, value in activations(graph, ["x", "r"], many)} == {"x": 7, "r": 7}
    monkeypatch.setattr(local, "ELEMENTS", 17)  # two rows of 8 are not enough, three of 6 are
    monkeypatch.setattr(local, "HELD", 34)  # one tensor at a time
    assert {name: len(value) for name, value in activations(graph, ["x", "r"], many)} == {"x": 3, "r": 3}


def test_padding_is_left_out() -> None:
    text = "(float[n,t,6] x, int64[n,t] attention_mask) => (float[n,t,4] y, int64[n,t] z)"
    body = "a = MatMul(x, v) y = MatMul(a, w) z = Identity(attention_mask)"
    graph = read(f"{text} {{ {body} }}", WEIGHTS)
    x, mask = floats(2, 3, 6), np.array([[1, 1, 1], [1, 0, 0]])
    found = dict(activations(graph, ["x", "a"], data(graph, {"x": x, "attention_mask": mask})))
    np.testing.assert_array_equal(found["x"], np.concatenate([x[0], x[1, :1]]))
    assert found["a"].shape == (4, 8)


def test_rows_of_different_lengths_and_pictures_of_different_sizes() -> None:
    rows = read("(float[n,t,6] x) => (float[n,t,4] y) { a = MatMul(x, v) y = MatMul(a, w) }", WEIGHTS)
    feeds: list[Mapping[str, Array]] = [{"x": floats(1, length, 6)} for length in (3, 5)]
    found = dict(activations(rows, ["x", "a"], data(rows, feeds)))
    assert {name: value.shape for name, value in found.items()} == {"x": (8, 6), "a": (8, 8)}
    pictures = read("(float[n,2,h,w] x) => (float[n,c,h,w] y) { y = Conv(x, k) }", {"k": floats(3, 2, 1, 1)})
    feeds = [{"x": floats(1, 2, height, 4)} for height in (4, 6, 4)]
    assert dict(activations(pictures, ["x"], data(pictures, feeds)))["x"].shape == (2, 2, 4, 4)


def test_samples_that_hold_no_numbers_are_left_out() -> None:
    text = (
        "(float[n,6] x) => (float[n,4] y, float[n,8] z) { a = MatMul(x, v) y = MatMul(a, w) r = Div(a, a) z = Neg(r) }"
    )
    graph, x = read(text, WEIGHTS), floats(4, 6)
    x[1], x[2, 0] = 0, np.inf
    found = dict(activations(graph, ["x", "a", "r"], data(graph, {"x": x})))
    assert {name: len(value) for name, value in found.items()} == {"x": 3, "a": 3, "r": 2}
    assert dict(activations(graph, ["r"], data(graph, {"x": np.zeros((3, 6), np.float32)}))) == {}


PICTURE = (2, 4, 7, 7)
LAYERS: dict[str, tuple[str, Array, tuple[int, ...]]] = {
    "MatMul": ("MatMul(x, w)", floats(4, 6), (9, 4)),
    "MatMul of three axes": ("MatMul(x, w)", floats(4, 6), (3, 5, 4)),
    "Gemm": ("Gemm(x, w, b)", floats(4, 6), (9, 4)),
    "Gemm, transposed": ("Gemm<transB=1>(x, w, b)", floats(6, 4), (9, 4)),
    "Conv": ("Conv<pads=[1,1,1,1], strides=[2,2]>(x, w, b)", floats(6, 4, 3, 3), PICTURE),
    "Conv 1d": ("Conv(x, w)", floats(6, 4, 3), (3, 4, 9)),
    "Conv 3d": ("Conv(x, w)", floats(6, 4, 2, 2, 2), (2, 4, 5, 5, 5)),
    "grouped Conv": ("Conv<group=2>(x, w, b)", floats(6, 2, 3, 3), PICTURE),
    "depthwise Conv": ("Conv<group=4>(x, w)", floats(8, 1, 3, 3), PICTURE),
}
RECIPES = {
    "usual": Recipe(),
    "per tensor": make_recipe({"weight": {"per_channel": False}}),
    "symmetric int8": make_recipe({"activation": {"symmetric": True, "format": "int8"}, "weight": {"format": "uint8"}}),
    "affine weights": make_recipe({"weight": {"symmetric": False}}),
}


CASES = [(layer, "usual") for layer in LAYERS]
CASES += [(layer, recipe) for layer in ("MatMul", "Conv") for recipe in list(RECIPES)[1:]]


def single(text: str, values: Array, shape: tuple[int, ...]) -> Graph:
    head = f"(float[{','.join(map(str, shape))}] x) => (float y)"
    return read(f"{head} {{ y = {text} }}", {"w": values, "b": floats(6, seed=9)})


@pytest.mark.parametrize("divided", [False, True])
@pytest.mark.parametrize(("case", "kind"), CASES)
def test_noise_is_that_of_rounded_operands(case: str, kind: str, divided: bool) -> None:
    """The graph itself, run with an input and a weight that NumPy rounded."""
    text, values, shape = LAYERS[case]
    recipe, graph, x = RECIPES[kind], single(text, values, shape), floats(*shape, seed=8)
    (layer,) = layers_of(graph)
    factors = np.array([1, 2, 0.5, 3], np.float32) if divided else np.ones(4, np.float32)
    along = factors if layer.linear else factors.reshape(-1, *[1] * (x.ndim - 2))
    form, settings, ends = FORMATS[recipe.activation.format], recipe.weight, (-1.5, 2.0)
    axis = weight_axis(layer.node) if settings.per_channel else None
    scaled, kind_of_weight = scaled_inputs(layer, factors), FORMATS[settings.format]
    found = quantize_weight(scaled, kind_of_weight, axis=axis, symmetric=settings.centred)
    narrow = kind_of_weight.narrow if settings.centred else kind_of_weight
    rounded = fake_quantize(scaled, found.scale, found.zero_point, narrow, axis)
    grid = parameters(*ends, form, symmetric=recipe.activation.symmetric)
    (want,) = execute(graph, {"x": x})
    (have,) = execute(single(text, rounded, shape), {"x": fake_quantize(x / along, *grid, form)})
    error, channel = have.astype(np.float64) - want, x.ndim - 1 if layer.linear else 1
    error -= error.mean(tuple(i for i in range(error.ndim) if i != channel), keepdims=True)
    bias = floats(6, seed=9) if "b)" in text else np.zeros(want.shape[channel], np.float32)
    signal = want - (bias if layer.linear else bias.reshape(-1, *[1] * (x.ndim - 2)))

    bench = Bench(graph, layer, x, recipe)
    by = factors if divided else None
    np.testing.assert_allclose(bench.rounded(by), rounded, rtol=1e-6, atol=1e-7)
    noise = bench.noise(bench.rounded(by), ends, by)
    assert noise == pytest.approx(float((error**2).sum() / (signal.astype(np.float64) ** 2).sum()), rel=1e-3)
    assert noise > 1e-5
    assert bench.noise(bench.rounded(by), ends, by) == noise, "nothing is left behind"


def test_an_offset_is_no_noise() -> None:
    """A bias makes up for it."""
    graph = single("MatMul(x, w)", floats(4, 6), (50, 4))
    (layer,) = layers_of(graph)
    ones = Bench(graph, layer, np.ones((50, 4), np.float32), Recipe())
    assert ones.noise(ones.weight() + np.float32(0.5), (0.0, 255.0)) == pytest.approx(0.0, abs=1e-6)
    other = Bench(graph, layer, floats(50, 4), Recipe())
    assert other.noise(other.weight() + np.float32(0.5), (-4.0, 4.0)) > 1e-3


@pytest.mark.parametrize("text", ["MatMul(x, w)", "Gemm<transB=1>(x, w)", "Conv(x, w)"])
def test_some_of_many_outputs_stand_for_all(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    conv, transposed = text.startswith("Conv"), "transB" in text
    values = floats(*((500, 8) if conv or transposed else (8, 500)))
    values = values.reshape(500, 8, 1, 1) if conv else values
    shape = (4, 8, 5, 5) if conv else (60, 8)
    graph, x = single(text, values, shape), floats(*shape)
    (layer,) = layers_of(graph)
    noises = []
    for most, looked_at in ((128, 125), (1000, 500)):
        monkeypatch.setattr(local, "OUTPUTS", most)
        bench = Bench(graph, layer, x, Recipe())
        assert bench.weight().size == looked_at * 8
        noises.append(bench.noise(bench.rounded(), (-2.0, 2.0)))
    assert noises[0] == pytest.approx(noises[1], rel=0.1)
    assert noises[0] != noises[1]


def test_outputs_that_share_a_scale_or_read_other_inputs_are_all_looked_at() -> None:
    values = floats(8, 500)
    graph = single("MatMul(x, w)", values, (9, 8))
    (layer,) = layers_of(graph)
    assert Bench(graph, layer, floats(9, 8), RECIPES["per tensor"]).weight().shape == (8, 500)
    depthwise = single("Conv<group=200>(x, w)", floats(200, 1, 1, 1), (1, 200, 3, 3))
    (layer,) = layers_of(depthwise)
    assert Bench(depthwise, layer, floats(1, 200, 3, 3), Recipe()).weight().shape == (200, 1, 1, 1)


def test_a_layer_that_returns_zeros() -> None:
    graph, x = single("MatMul(x, w)", np.zeros((4, 6), np.float32), (9, 4)), floats(9, 4)
    (layer,) = layers_of(graph)
    bench = Bench(graph, layer, x, Recipe())
    assert bench.noise(bench.rounded(), (-1.0, 1.0)) == 0.0


def test_the_graph_is_not_touched() -> None:
    graph = single("MatMul(x, w)", floats(4, 6), (9, 4))
    (layer,) = layers_of(graph)
    before = weight(layer.weight).copy()
    bench = Bench(graph, layer, floats(9, 4), Recipe())
    bench.noise(bench.rounded(np.full(4, 3, np.float32)), (-1.0, 1.0), np.full(4, 3, np.float32))
    np.testing.assert_array_equal(weight(layer.weight), before)
    np.testing.assert_array_equal(bench.x, floats(9, 4))
