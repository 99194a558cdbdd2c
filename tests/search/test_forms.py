"""What each form of a layer is made of, and the noise that it brings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.calibration.collect import collect
from onnxq.calibration.data import Data, open_data
from onnxq.decision import decide
from onnxq.graph import Graph
from onnxq.passes import FOLD, QUANTIZE
from onnxq.pipeline import Context, run
from onnxq.placement import place, place_linear
from onnxq.plan import Treatment
from onnxq.recipe import make_recipe
from onnxq.search.forms import DYNAMIC, FLOAT, STATIC, Forms, grid_of, layer_shares
from onnxq.search.switches import Switch
from onnxq.targets import CPU
from onnxq.weights import corrected_bias, differences, rounded_weight, seen_weight
from tests.onnx_text import EVERYTHING, execute, floats, read

RECIPE = make_recipe({"activation": {"range": "minmax"}})
LINEAR = """(float[n,8] x) => (float[n,6] y) {
    [one] a = MatMul(x, w1) [add] b = Add(a, b1) [act] r = Relu(b) [two] y = Gemm(r, w2) }"""
CONVS = """(float[n,4,8,8] x) => (float[n,c,h,w] y) {
    [one] a = Conv(x, w1, b1) [act] r = Relu(a) [two] b = Conv(r, w2, b2) [out] y = Sigmoid(b) }"""


def linear() -> Graph:
    return read(LINEAR, {"w1": floats(8, 12), "b1": floats(12), "w2": floats(12, 6)})


def convs() -> Graph:
    weights = {"w1": floats(8, 4, 3, 3), "b1": floats(8), "w2": floats(6, 8, 1, 1), "b2": floats(6, seed=1)}
    return read(CONVS, weights)


def data(graph: Graph) -> Data:
    (tensor,) = graph.inputs
    shape = [size if isinstance(size, int) else 16 for size in tensor.shape or ()]
    return open_data({tensor.name: floats(*shape, seed=7)}, graph.interface().inputs)


def forms(graph: Graph, **wish: Any) -> Forms:
    recipe = make_recipe({"activation": {"range": "minmax"}} | wish)
    placement = place(graph, CPU, recipe)
    seen = collect(graph, sorted(set(placement.tensors.values())), data(graph), threads=1)
    return Forms(graph, CPU, decide(placement, seen, recipe, CPU))


def by_name(found: Forms, layer: str, form: str, *, alone: bool = False) -> dict[str, Switch]:
    return {switch.name: switch for switch in found.switches(layer, form, alone)}


def test_linear_layers_can_be_dynamic_and_convolutions_not() -> None:
    assert list(forms(linear()).layers) == list(forms(convs()).layers) == ["one", "two"]
    assert forms(linear()).of("one") == (STATIC, DYNAMIC, FLOAT)
    assert forms(convs()).of("one") == (STATIC, FLOAT)


def test_layers_are_those_that_the_plan_makes_static() -> None:
    assert list(forms(linear(), nodes={"two": {"quantize": False}}).layers) == ["one"]


def test_a_static_linear_layer() -> None:
    found = forms(linear())
    layer, plan = found.layers["one"], found.plan
    switches = by_name(found, "one", STATIC)
    assert list(switches) == ["one|static weight", "one|activation", "one|bias"]
    integers = rounded_weight(layer, plan.recipe.weight, True)
    weight, activation, bias = switches.values()
    assert (weight.tensor, weight.readers) == ("w1", ("one",))
    np.testing.assert_array_equal(weight.values, seen_weight(layer, integers))
    assert (activation.tensor, activation.readers) == ("x", ("one",))
    assert activation.grid is not None
    assert float(activation.grid.scale) == pytest.approx(plan.tensors["x"].scale)
    assert (bias.tensor, bias.readers) == ("b1", ("add",)), "the Add behind a MatMul holds its bias"
    np.testing.assert_array_equal(bias.values, corrected_bias(layer, integers, plan.tensors["x"].means))


def test_a_layer_without_a_bias_has_none_to_switch() -> None:
    assert list(by_name(forms(linear()), "two", STATIC)) == ["two|static weight", "two|activation"]


def test_a_dynamic_layer() -> None:
    weight, dynamic = by_name(forms(linear()), "one", DYNAMIC).values()
    assert (weight.name, dynamic.name) == ("one|dynamic weight", "one|dynamic")
    assert (dynamic.tensor, dynamic.readers, dynamic.dynamic) == ("x", ("one",), True)


def test_other_integers_of_the_plan_are_those_of_the_static_form_alone() -> None:
    found = forms(linear())
    layer, plan = found.layers["one"], found.plan
    nearest = rounded_weight(layer, plan.recipe.weight, True)
    text = differences(nearest.values // 2, nearest.values)
    node = plan.nodes["one"].model_copy(update={"rounding": text})
    other = Forms(found.graph, CPU, plan.model_copy(update={"nodes": {**plan.nodes, "one": node}}))
    static, bias = (by_name(other, "one", STATIC)[f"one|{part}"].values for part in ("static weight", "bias"))
    chosen = rounded_weight(layer, plan.recipe.weight, True, text)
    np.testing.assert_array_equal(static, seen_weight(layer, chosen))
    np.testing.assert_array_equal(bias, corrected_bias(layer, chosen, plan.tensors["x"].means))
    dynamic = by_name(other, "one", DYNAMIC)["one|dynamic weight"].values
    np.testing.assert_array_equal(dynamic, seen_weight(layer, nearest))


def test_float_needs_nothing() -> None:
    assert by_name(forms(linear()), "one", FLOAT) == {}


def test_the_output_of_a_convolution_counts_once() -> None:
    """The input of the next layer is the output of this one, unless that one is float."""
    found = forms(convs())
    assert "one|output" not in by_name(found, "one", STATIC)
    assert by_name(found, "one", STATIC, alone=True)["one|output"].tensor == "r"
    output = by_name(found, "two", STATIC)["two|output"]
    assert (output.tensor, output.readers) == ("b", ())
    bias = by_name(found, "two", STATIC)["two|bias"]
    assert (bias.tensor, bias.readers) == ("b2", ("two",))


def test_a_layer_that_shares_its_scales_does_so_here() -> None:
    settings = {"nodes": {"one": {"per_channel": False}}}
    shared, own = (by_name(forms(linear(), **wish), "one", STATIC)["one|static weight"] for wish in (settings, {}))
    assert np.abs(np.asarray(shared.values) - np.asarray(own.values)).max() > 0


def test_a_grid_is_that_of_the_plan() -> None:
    plan = forms(linear()).plan.tensors["r"]
    grid = grid_of(plan)
    assert (grid.scale.dtype, grid.zero_point.dtype) == (np.float32, np.uint8)
    assert float(grid.scale) == pytest.approx(plan.scale)
    assert int(grid.zero_point) == plan.zero_point


def measured(graph: Graph, treatment: Treatment, only: str) -> float:
    """Noise over signal of the model in which one layer alone is quantized."""
    others = {n.name: {"quantize": False} for n in graph.nodes if n.name in ("one", "two") and n.name != only}
    recipe = make_recipe({"activation": {"range": "minmax"}, "nodes": others})
    placement = place(graph, CPU, recipe) if treatment is Treatment.STATIC else place_linear(graph, recipe, treatment)
    seen = collect(graph, sorted(set(placement.tensors.values())), data(graph), threads=1)
    plan = decide(placement, seen, recipe, CPU)
    quantized = run([*QUANTIZE, *FOLD], graph, Context(CPU, plan), EVERYTHING).graph
    batches = list(data(graph).batches())
    want, have = (
        np.concatenate([execute(made, feeds)[0] for feeds in batches]).astype(np.float64) for made in (graph, quantized)
    )
    return float(((want - have) ** 2).sum() / (want**2).sum())


@pytest.mark.parametrize("layer", ["one", "two"])
@pytest.mark.parametrize("model", [linear, convs])
def test_shares_are_what_a_model_with_this_layer_alone_loses(model: Any, layer: str) -> None:
    graph = model()
    found = layer_shares(graph, CPU, forms(graph).plan, data(graph), 16)
    assert found.keys() == {"one", "two"}
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert found[layer] == pytest.approx(measured(graph, Treatment.STATIC, layer), rel=0.3)


@pytest.mark.parametrize("layer", ["one", "two"])
def test_shares_of_dynamic_layers(layer: str) -> None:
    graph = linear()
    found = forms(graph).shares((STATIC, DYNAMIC), data(graph), 16)
    assert found.noise.keys() == {"one|static", "one|dynamic", "two|static", "two|dynamic"}
    assert found.noise[f"{layer}|dynamic"] == pytest.approx(measured(graph, Treatment.DYNAMIC, layer), rel=0.3)


def test_convolutions_have_no_dynamic_share() -> None:
    graph = convs()
    assert forms(graph).shares((STATIC, DYNAMIC), data(graph), 4).noise.keys() == {"one|static", "two|static"}
