"""What each form of a layer is made of, and the noise that it brings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

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
from onnxq.search.forms import BITS, DYNAMIC, FLOAT, STATIC, WEIGHT_4, WEIGHT_8, Forms, grid_of, layer_shares
from onnxq.search.switches import Switch, SwitchBoard
from onnxq.targets import CPU
from onnxq.weights import blocked_weight, corrected_bias, differences, rounded_weight, seen_blocks, seen_weight
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


def by_name(found: Forms, layer: str, form: str) -> dict[str, Switch]:
    return {switch.name: switch for switch in found.rounded(layer, form)}


def test_linear_layers_can_take_every_form_and_convolutions_two() -> None:
    assert list(forms(linear()).layers) == list(forms(convs()).layers) == ["one", "two"]
    assert forms(linear()).of("one") == (STATIC, DYNAMIC, WEIGHT_8, WEIGHT_4, FLOAT)
    assert forms(convs()).of("one") == (STATIC, FLOAT)


def test_layers_are_those_that_the_plan_makes_static() -> None:
    assert list(forms(linear(), nodes={"two": {"quantize": False}}).layers) == ["one"]
    twins = "(float[n,8] x) => (float[n,12] y) { [one] a = MatMul(x, w1) [two] b = MatMul(x, w1) y = Mul(a, b) }"
    found = forms(read(twins, {"w1": floats(8, 12)}), nodes={"two": {"quantize": False}})
    assert list(found.layers) == ["one"], "though there is a range for what the other one reads"


def test_a_static_linear_layer() -> None:
    """Its input is rounded where it is made or read, so that is no part of the layer."""
    found = forms(linear())
    layer, plan = found.layers["one"], found.plan
    switches = by_name(found, "one", STATIC)
    assert list(switches) == ["one|static weight", "one|bias"]
    integers = rounded_weight(layer, plan.recipe.weight, True)
    weight, bias = switches.values()
    assert (weight.tensor, weight.readers) == ("w1", ("one",))
    np.testing.assert_array_equal(weight.values, seen_weight(layer, integers))
    assert (bias.tensor, bias.readers) == ("b1", ("add",)), "the Add behind a MatMul holds its bias"
    np.testing.assert_array_equal(bias.values, corrected_bias(layer, integers, plan.tensors["x"].means))


def test_a_layer_without_a_bias_has_none_to_switch() -> None:
    assert list(by_name(forms(linear()), "two", STATIC)) == ["two|static weight"]


def test_alone_a_layer_rounds_its_input_too() -> None:
    found = forms(linear())
    *inside, activation = found.alone("one")
    assert [switch.name for switch in inside] == list(by_name(found, "one", STATIC))
    assert (activation.tensor, activation.readers) == ("x", ("one",))
    assert activation.grid is not None
    assert float(activation.grid.scale) == pytest.approx(found.plan.tensors["x"].scale)


def test_alone_a_convolution_rounds_its_output_too() -> None:
    found = forms(convs())
    assert list(by_name(found, "two", STATIC)) == ["two|static weight", "two|bias"]
    bias = by_name(found, "two", STATIC)["two|bias"]
    assert (bias.tensor, bias.readers) == ("b2", ("two",))
    for layer, made in (("one", "r"), ("two", "b")):
        output = list(found.alone(layer))[-1]
        assert (output.name, output.tensor, output.readers) == (f"{layer}|output", made, ())
        assert output.grid is not None
        assert float(output.grid.scale) == pytest.approx(found.plan.tensors[made].scale)


def test_a_convolution_makes_integers_and_a_linear_layer_floats() -> None:
    layers = ("one", "two")
    assert [forms(convs()).made(layer) for layer in layers] == ["r", "b"], "behind an activation that it absorbs"
    assert [forms(linear()).made(layer) for layer in layers] == [None, None]
    assert "r" in forms(linear()).plan.tensors, "which the first linear layer makes all the same"
    found = forms(convs())
    short = {name: tensor for name, tensor in found.plan.tensors.items() if name != "b"}
    assert Forms(found.graph, CPU, found.plan.model_copy(update={"tensors": short})).made("two") is None


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


@pytest.mark.parametrize("block", [16, 32])
@pytest.mark.parametrize("form", BITS)
def test_a_layer_whose_weight_alone_is_in_integers(form: str, block: int) -> None:
    found = forms(linear(), weight={"block_size": block})
    layer = found.layers["two"]
    weight, blocks = by_name(found, "two", form).values()
    assert (weight.name, weight.tensor, weight.readers) == (f"two|{form}", "w2", ("two",))
    np.testing.assert_array_equal(
        weight.values, seen_blocks(layer, blocked_weight(layer, found.plan.recipe.weight, BITS[form]))
    )
    assert (blocks.name, blocks.tensor, blocks.readers, blocks.blocks) == ("two|blocks", "r", ("two",), (12, block))


def test_both_widths_of_a_weight_share_what_the_kernel_does_to_its_input() -> None:
    """One switch of one name: what stands beside it differs."""
    found = forms(linear())
    eight, four = (by_name(found, "one", form) for form in (WEIGHT_8, WEIGHT_4))
    assert eight.keys() & four.keys() == {"one|blocks"}


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


def measured(graph: Graph, treatment: Treatment, only: str, bits: Literal[4, 8] = 8) -> float:
    """Noise over signal of the model in which one layer alone is quantized."""
    others = {n.name: {"quantize": False} for n in graph.nodes if n.name in ("one", "two") and n.name != only}
    recipe = make_recipe({"activation": {"range": "minmax"}, "nodes": others})
    placement = place(graph, CPU, recipe) if treatment is Treatment.STATIC else place_linear(graph, recipe, treatment)
    seen = collect(graph, sorted(set(placement.tensors.values())), data(graph), threads=1)
    nodes = {name: plan.model_copy(update={"bits": bits}) for name, plan in placement.nodes.items()}
    plan = decide(replace(placement, nodes=nodes), seen, recipe, CPU)
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


@pytest.mark.parametrize("form", [DYNAMIC, *BITS])
@pytest.mark.parametrize("layer", ["one", "two"])
def test_other_forms_add_what_a_model_with_this_layer_alone_loses(form: str, layer: str) -> None:
    graph = linear()
    switches = list(forms(graph).rounded(layer, form))
    board = SwitchBoard(graph, switches, data(graph), 16)
    found = board.noise([switch.name for switch in switches])
    treatment = Treatment.WEIGHT if form in BITS else Treatment.DYNAMIC
    assert found == pytest.approx(measured(graph, treatment, layer, BITS.get(form, 8)), rel=0.1)
    assert found > (1e-3 if form == WEIGHT_4 else 1e-6)


def test_shares_of_no_layer_are_none() -> None:
    graph = linear()
    plan = forms(graph, nodes={"*": {"quantize": False}}).plan
    assert layer_shares(graph, CPU, plan, data(graph), 4) == {}
