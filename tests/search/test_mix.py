"""Forms chosen together, from made-up noise and made-up times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from onnxq.calibration.collect import collect
from onnxq.calibration.data import open_data
from onnxq.decision import decide
from onnxq.graph import Graph
from onnxq.placement import place
from onnxq.plan import NodePlan, Treatment
from onnxq.recipe import make_recipe
from onnxq.search.cost import Boundary, Costs
from onnxq.search.forms import DYNAMIC, FLOAT, STATIC, Forms
from onnxq.search.mix import BUDGETS, Table, mixtures
from onnxq.targets import CPU
from tests.onnx_text import floats, read

Prices = Mapping[str, Mapping[str, float]]
CHEAP = {STATIC: 10.0, FLOAT: 30.0}

CHAIN = """(float[n,8,6,6] x) => (float[n,c,h,w] y) {
    [one] a = Conv(x, w) [r1] b = Relu(a) [two] c = Conv(b, w) [r2] d = Relu(c) [three] e = Conv(d, w)
    [end] y = Sigmoid(e) }"""
SUM = """(float[n,8,6,6] x) => (float[n,c,h,w] y) {
    [one] a = Conv(x, w) [two] b = Conv(a, w) [SUM] s = Add(a, b) [three] e = Conv(s, w) [end] y = Sigmoid(e) }"""
HEADS = """(float[n,t,8] x) => (float[n,t,8] y) {
    [q] q = MatMul(x, w) [k] k = MatMul(x, w) [v] v = MatMul(x, w) [sum] s = Add(q, k) [mul] m = Mul(s, v)
    [out] o = MatMul(m, w) [end] y = Tanh(o) }"""


def chain() -> Graph:
    return read(CHAIN, {"w": floats(8, 8, 1, 1)})


def heads() -> Graph:
    return read(HEADS, {"w": floats(8, 8)})


def forms(graph: Graph, **wish: Any) -> Forms:
    recipe = make_recipe({"activation": {"range": "minmax"}} | wish)
    placement = place(graph, CPU, recipe)
    (tensor,) = graph.inputs
    shape = [size if isinstance(size, int) else 4 for size in tensor.shape or ()]
    data = open_data({tensor.name: floats(*shape)}, graph.interface().inputs)
    seen = collect(graph, sorted(set(placement.tensors.values())), data, threads=1)
    return Forms(graph, CPU, decide(placement, seen, recipe, CPU))


def table(
    found: Forms,
    prices: Prices | None = None,
    noise: Mapping[str, float] | None = None,
    boundary: Boundary | None = None,
    usual: Mapping[str, float] = CHEAP,
) -> Table:
    """Prices and noise of some layers; the others cost `usual` and make next to no noise."""
    static = [name for name, plan in found.plan.nodes.items() if plan.treatment is Treatment.STATIC]
    layers = {name: dict(usual) for name in static} | {name: dict(price) for name, price in (prices or {}).items()}
    costs = Costs(layers=layers, boundary=dict.fromkeys(found.plan.tensors, boundary or Boundary()))
    quiet = {f"{name}|{form}": 1e-8 for name in found.layers for form in (STATIC, DYNAMIC)}
    return Table(found, quiet | dict(noise or {}), costs)


def bold(made: Table) -> Mapping[str, NodePlan]:
    """What the boldest mixture does not leave static."""
    return mixtures(made)[0].nodes


def treatments(nodes: Mapping[str, NodePlan]) -> dict[str, str]:
    return {name: plan.treatment.value for name, plan in nodes.items()}


def test_static_everywhere_where_that_is_cheap_and_silent() -> None:
    (made,) = mixtures(table(forms(chain())))
    assert made.nodes == {}
    assert (made.noise, made.microseconds) == pytest.approx((3e-8, 30.0))


def test_float_where_static_is_slower() -> None:
    (made,) = mixtures(table(forms(chain()), {"two": {STATIC: 30.0, FLOAT: 20.0}}))
    assert treatments(made.nodes) == {"two": FLOAT}
    assert made.nodes["two"].reason == "In float it is faster here: 20 us against 30 us with fixed scales."
    assert made.nodes["two"].measured == {"static noise": 1e-8, "dynamic noise": 1e-8, "static us": 30, "float us": 20}
    assert made.microseconds == pytest.approx(40.0)
    assert made.noise == pytest.approx(2e-8)


def test_an_isolated_float_layer_pays_for_its_boundaries() -> None:
    """Two between static neighbours: what made its input is dequantized, what reads its output is quantized."""
    prices = {"two": {STATIC: 30.0, FLOAT: 20.0}}

    def chosen(boundary: Boundary) -> dict[str, str]:
        return treatments(bold(table(forms(chain()), prices, boundary=boundary)))

    assert chosen(Boundary(quantize=4.0, dequantize=5.0)) == {"two": FLOAT}
    assert chosen(Boundary(quantize=8.0, dequantize=5.0)) == {}
    assert chosen(Boundary(quantize=0.0, dequantize=13.0)) == {}
    all_slower = {name: {STATIC: 30.0, FLOAT: 28.0} for name in ("one", "two", "three")}
    together = bold(table(forms(chain()), all_slower, boundary=Boundary(quantize=9.0, dequantize=9.0)))
    assert treatments(together) == dict.fromkeys(("one", "two", "three"), FLOAT), "they pay none"


def test_the_input_of_the_model_is_quantized_for_static_layers() -> None:
    made = table(forms(chain()), {"one": {STATIC: 27.0, FLOAT: 30.0}}, boundary=Boundary(quantize=2.0))
    assert bold(made) == {}
    assert mixtures(made)[0].microseconds == pytest.approx(49.0)


def test_what_two_groups_read_is_quantized_once() -> None:
    """The sum and the layer both read what the first makes: half of the boundary falls on each."""
    graph = read(SUM, {"w": floats(8, 8, 1, 1)})
    made = table(forms(graph), boundary=Boundary(quantize=6.0, dequantize=4.0))
    pairs = {(edge.first, edge.second): edge.pairs for edge in made.edges()}
    key = "Add 'SUM'"
    assert pairs["x", "a"][FLOAT, STATIC] == pytest.approx(3.0)
    assert pairs["x", key][FLOAT, STATIC] == pytest.approx(3.0)
    assert pairs["a", key] == {(STATIC, FLOAT): pytest.approx(4.0), (FLOAT, STATIC): pytest.approx(6.0)}
    assert pairs[key, "s"][STATIC, FLOAT] == pytest.approx(4.0)


def test_operators_between_follow_their_neighbours() -> None:
    graph = read(SUM, {"w": floats(8, 8, 1, 1)})
    slow = {name: {STATIC: 30.0, FLOAT: 20.0} for name in ("one", "two", "three")}
    dear = Boundary(quantize=5.0, dequantize=5.0)
    nodes = bold(table(forms(graph), slow | {"SUM": {STATIC: 1.0, FLOAT: 2.0}}, boundary=dear))
    assert treatments(nodes) == dict.fromkeys(("one", "two", "SUM", "three"), FLOAT)
    assert nodes["SUM"].reason == "Its neighbours are float: Q and DQ around it would cost more than it saves."


def test_a_node_may_be_called_like_a_tensor() -> None:
    """As some exporters call them: the layer that reads tensor 's', and the operator 's' that makes it."""
    graph = read(SUM.replace("[SUM]", "[s]"), {"w": floats(8, 8, 1, 1)})
    made = table(forms(graph), {"three": {STATIC: 30.0, FLOAT: 20.0}, "s": CHEAP})
    assert treatments(bold(made)) == {"three": FLOAT}
    assert [members for members in made.members.values() if "three" in members] == [["three"]]


LINEAR = {STATIC: 10.0, DYNAMIC: 10.1, FLOAT: 30.0}


def test_dynamic_where_it_is_quieter_and_nearly_as_fast() -> None:
    noise = {"out|static": 0.004, "out|dynamic": 1e-5}
    nodes = bold(table(forms(heads()), noise=noise, usual=LINEAR))
    assert treatments(nodes) == {"out": DYNAMIC}
    assert nodes["out"].reason == (
        "With a scale for each run it adds less noise: with fixed scales the outputs keep 24 dB over its noise"
        " (10 us against 10 us)."
    )
    slow = {"out": LINEAR | {DYNAMIC: 15.0}}
    assert bold(table(forms(heads()), slow, noise, usual=LINEAR)) == {}


def test_layers_that_read_one_tensor_share_a_decision() -> None:
    """And quantize it once, at run time, too."""
    made = table(forms(heads()), noise={"v|static": 0.3, "v|dynamic": 1e-5}, usual=LINEAR)
    assert treatments(bold(made)) == dict.fromkeys("qkv", DYNAMIC)
    (group,) = [group for group in made.groups() if group.name == "x"]
    assert [option.microseconds for option in group.options] == pytest.approx([30.0, 30.3, 90.0])
    costly = table(forms(heads()), usual=LINEAR, boundary=Boundary(dynamic=5.0, quantize=2.0))
    (group,) = [group for group in costly.groups() if group.name == "x"]
    assert [option.microseconds for option in group.options] == pytest.approx([32.0, 35.3, 90.0])


def test_a_form_that_one_of_them_lacks_is_none() -> None:
    made = table(forms(heads()), {"v": CHEAP}, usual=LINEAR)
    forms_of = {group.name: [option.name for option in group.options] for group in made.groups()}
    assert (forms_of["x"], forms_of["m"]) == ([STATIC, FLOAT], [STATIC, DYNAMIC, FLOAT])


def test_a_form_that_a_layer_cannot_take_is_none() -> None:
    for group in table(forms(chain()), usual=LINEAR).groups():
        assert [option.name for option in group.options] == [STATIC, FLOAT]


def test_who_reads_a_linear_layer_on_integers_quantizes() -> None:
    """Linear layers return floats."""
    made = table(forms(heads()), usual=LINEAR, boundary=Boundary(quantize=2.0, dequantize=3.0))
    times = {group.name: group.options[0].microseconds for group in made.groups()}
    assert times == pytest.approx({"x": 32.0, "m": 10.0, "Add 'sum'": 14.0, "Mul 'mul'": 12.0})
    ends = {(edge.first, edge.second) for edge in made.edges()}
    assert ends == {("Add 'sum'", "Mul 'mul'"), ("Mul 'mul'", "m")}


def test_a_layer_without_an_integer_kernel_stays_in_float() -> None:
    nodes = bold(table(forms(chain()), {"two": {FLOAT: 20.0}}))
    assert treatments(nodes) == {"two": FLOAT}
    assert nodes["two"].reason == "With fixed scales it found no integer kernel."


def test_from_bold_to_cautious() -> None:
    noise = {"one|static": 0.05, "two|static": 0.005, "three|static": 0.0008}
    found = mixtures(table(forms(chain()), noise=noise))
    assert [treatments(made.nodes) for made in found] == [
        {},
        {"one": FLOAT},
        {"one": FLOAT, "two": FLOAT},
        {"one": FLOAT, "two": FLOAT, "three": FLOAT},
    ]
    assert all(made.noise <= max(BUDGETS) for made in found)
    assert [made.noise for made in found] == sorted((made.noise for made in found), reverse=True)
    assert [made.microseconds for made in found] == sorted(made.microseconds for made in found)
    assert "In float it adds less noise: with fixed scales the outputs keep 13 dB" in found[1].nodes["one"].reason


def test_budgets_fall() -> None:
    assert list(BUDGETS) == sorted(BUDGETS, reverse=True)


def test_what_the_plan_says_about_weights_stays() -> None:
    found = forms(heads(), nodes={"out": {"per_channel": False}})
    nodes = bold(table(found, {"out": {STATIC: 9.0, DYNAMIC: 3.0, FLOAT: 30.0}}, usual=LINEAR))
    assert treatments(nodes) == {"out": DYNAMIC}
    assert nodes["out"].per_channel is False
    assert nodes["out"].op == "MatMul"
