"""Forms chosen together, from made-up noise and made-up times; and that what is counted is what a model rounds."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise, product
from math import inf
from typing import Any

import numpy as np
import pytest

from onnxq.calibration.collect import collect
from onnxq.calibration.data import Data, open_data
from onnxq.decision import decide
from onnxq.graph import Graph, weight
from onnxq.passes import BALANCE, FOLD, QUANTIZE
from onnxq.pipeline import Context, run
from onnxq.placement import place
from onnxq.plan import BalancePlan, NodePlan, Plan, Treatment
from onnxq.recipe import Recipe, make_recipe
from onnxq.search.choice import Edge
from onnxq.search.cost import Boundary, Costs
from onnxq.search.forms import BITS, DYNAMIC, FLOAT, STATIC, WEIGHT_4, WEIGHT_8, Forms
from onnxq.search.grouping import Grouping
from onnxq.search.mix import BUDGETS, Mixture, Table, best_trade, fastest_mixture, layers_of, mixtures, uniform
from onnxq.search.switches import SwitchBoard
from onnxq.targets import CPU
from tests.onnx_text import EVERYTHING, execute, floats, read

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


READ = """(float[n,8,6,6] x) => (float[n,8,6,6] y, float[n,8,6,6] b) {
    [one] a = Conv(x, w, k) [two] b = Conv(a, w, k) [SUM] s = Add(a, b) [three] e = Conv(s, w, k)
    [tanh] t = Tanh(a) [abs] u = Abs(a) [mul] v = Mul(t, u) [end] y = Mul(e, v) }"""
"""Two float operators read `a`, beside two on integers; `b` is promised, `e` is read as floats alone."""


def chain() -> Graph:
    return read(CHAIN, {"w": floats(8, 8, 1, 1)})


def heads() -> Graph:
    return read(HEADS, {"w": floats(8, 8)})


def read_by_all() -> Graph:
    return read(READ, {"w": floats(8, 8, 1, 1) / 3, "k": floats(8, seed=9)})


def data(graph: Graph) -> Data:
    (tensor,) = graph.inputs
    shape = [size if isinstance(size, int) else 4 for size in tensor.shape or ()]
    return open_data({tensor.name: floats(*shape)}, graph.interface().inputs)


def grouping(graph: Graph, **wish: Any) -> Grouping:
    recipe = make_recipe({"activation": {"range": "minmax"}} | wish)
    placement = place(graph, CPU, recipe)
    seen = collect(graph, sorted(set(placement.tensors.values())), data(graph), threads=1)
    return Grouping(Forms(graph, CPU, decide(placement, seen, recipe, CPU)))


def table(
    found: Grouping,
    prices: Prices | None = None,
    noise: Mapping[str, float] | None = None,
    boundary: Boundary | None = None,
    usual: Mapping[str, float] = CHEAP,
) -> Table:
    """Prices and noise of some parts; other nodes cost `usual`, other layers make next to no noise, tensors none."""
    plan = found.forms.plan
    static = [name for name, node in plan.nodes.items() if node.treatment is Treatment.STATIC]
    layers = {name: dict(usual) for name in static} | {name: dict(price) for name, price in (prices or {}).items()}
    costs = Costs(layers=layers, boundary=dict.fromkeys(plan.tensors, boundary or Boundary()))
    quiet = {f"{name}|{form}": 1e-8 for name in found.forms.layers for form in found.forms.of(name)[:-1]}
    return Table(found, quiet | dict(noise or {}), costs)


def bold(made: Table) -> Mapping[str, NodePlan]:
    """What the boldest mixture does not leave static."""
    return mixtures(made)[0].nodes


def treatments(nodes: Mapping[str, NodePlan]) -> dict[str, str]:
    return {name: plan.treatment.value for name, plan in nodes.items()}


def test_static_everywhere_where_that_is_cheap_and_silent() -> None:
    (made,) = mixtures(table(grouping(chain())))
    assert made.nodes == {}
    assert (made.noise, made.microseconds) == pytest.approx((3e-8, 30.0))


def test_float_where_static_is_slower() -> None:
    (made,) = mixtures(table(grouping(chain()), {"two": {STATIC: 30.0, FLOAT: 20.0}}))
    assert treatments(made.nodes) == {"two": FLOAT}
    assert made.nodes["two"].reason == "In float it is faster here: 20 µs against 30 µs with fixed scales."
    assert made.nodes["two"].measured == {"static noise": 1e-8, "static us": 30, "float us": 20}
    assert made.microseconds == pytest.approx(40.0)
    assert made.noise == pytest.approx(2e-8)


def test_an_isolated_float_layer_pays_for_its_boundaries() -> None:
    """Two between static neighbours: what made its input is dequantized, what reads its output is quantized."""
    prices = {"two": {STATIC: 30.0, FLOAT: 20.0}}

    def chosen(boundary: Boundary) -> dict[str, str]:
        return treatments(bold(table(grouping(chain()), prices, boundary=boundary)))

    assert chosen(Boundary(quantize=4.0, dequantize=5.0)) == {"two": FLOAT}
    assert chosen(Boundary(quantize=8.0, dequantize=5.0)) == {}
    assert chosen(Boundary(quantize=0.0, dequantize=13.0)) == {}
    all_slower = {name: {STATIC: 30.0, FLOAT: 28.0} for name in ("one", "two", "three")}
    together = bold(table(grouping(chain()), all_slower, boundary=Boundary(quantize=9.0, dequantize=9.0)))
    assert treatments(together) == dict.fromkeys(("one", "two", "three"), FLOAT), "they pay none"


def test_the_input_of_the_model_is_quantized_for_static_layers() -> None:
    made = table(grouping(chain()), {"one": {STATIC: 27.0, FLOAT: 30.0}}, boundary=Boundary(quantize=2.0))
    assert bold(made) == {}
    assert mixtures(made)[0].microseconds == pytest.approx(49.0)


def test_what_two_groups_read_is_quantized_once() -> None:
    """The sum and the layer both read what the first makes: half of the boundary falls on each."""
    graph = read(SUM, {"w": floats(8, 8, 1, 1)})
    made = table(grouping(graph), boundary=Boundary(quantize=6.0, dequantize=4.0))
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
    nodes = bold(table(grouping(graph), slow | {"SUM": {STATIC: 1.0, FLOAT: 2.0}}, boundary=dear))
    assert treatments(nodes) == dict.fromkeys(("one", "two", "SUM", "three"), FLOAT)
    assert nodes["SUM"].reason == "Its neighbours are float: Q and DQ around it would cost more than it saves."


def test_a_node_may_be_called_like_a_tensor() -> None:
    """As some exporters call them: the layer that reads tensor 's', and the operator 's' that makes it."""
    graph = read(SUM.replace("[SUM]", "[s]"), {"w": floats(8, 8, 1, 1)})
    made = table(grouping(graph), {"three": {STATIC: 30.0, FLOAT: 20.0}, "s": CHEAP})
    assert treatments(bold(made)) == {"three": FLOAT}
    assert [members for members in made.grouping.members.values() if "three" in members] == [["three"]]


def edges_of(made: Table) -> dict[tuple[str, str], Edge]:
    return {(edge.first, edge.second): edge for edge in made.edges()}


def test_who_reads_floats_alone_is_paid_for_by_whoever_makes_integers() -> None:
    """Each float reader dequantizes what a convolution makes for itself, and so does an output."""
    made = table(grouping(read_by_all()), boundary=Boundary(dequantize=5.0))
    times = {group.name: [option.microseconds for option in group.options] for group in made.groups()}
    assert times == {
        "x": [20.0, 30.0],  # `tanh` and `abs` read `a`
        "a": [15.0, 30.0],  # somebody reads `b` outside
        "s": [15.0, 30.0],  # `end` reads `e`
        "Add 'SUM'": [10.0, 30.0],
    }
    leaving = {ends: edge.pairs[STATIC, FLOAT] for ends, edge in edges_of(made).items()}
    assert leaving == {("x", "a"): 5.0, ("x", "Add 'SUM'"): 5.0, ("a", "Add 'SUM'"): 5.0, ("Add 'SUM'", "s"): 5.0}
    text = HEADS.replace("m = Mul(s, v)", "m = Tanh(s) [q2] a = MatMul(s, w) [k2] b = MatMul(s, w)")
    both = table(
        grouping(read(text.replace("Tanh(o)", "Mul(a, b)"), {"w": floats(8, 8)})), boundary=Boundary(dequantize=5)
    )
    assert edges_of(both)["Add 'sum'", "s"].pairs[STATIC, FLOAT] == 10.0, "two layers of one group"


def test_an_edge_carries_the_noise_of_a_tensor_that_is_rounded_for_its_reader_alone() -> None:
    noise = {"a|made": 0.5, "a|read by a": 0.25, "a|read by Add 'SUM'": 0.125, "x|read by x": 0.0625}
    made = table(grouping(read_by_all()), noise=noise)
    edges = edges_of(made)
    assert edges["x", "a"].errors == {(FLOAT, STATIC): 0.25}
    assert edges["x", "Add 'SUM'"].errors == {(FLOAT, STATIC): 0.125}
    assert edges["a", "Add 'SUM'"].errors == {(FLOAT, STATIC): 0.0}
    errors = {group.name: {option.name: option.error for option in group.options} for group in made.groups()}
    assert errors["x"] == pytest.approx({STATIC: 0.5625, FLOAT: 0.0}, abs=1e-7)
    assert errors["a"] == pytest.approx({STATIC: 0.0, FLOAT: 0.0}, abs=1e-7)


def test_every_form_that_is_no_integer_maker_rounds_for_its_reader() -> None:
    text = HEADS.replace("[mul] m = Mul(s, v)", "[tanh] m = Tanh(s)").replace("[v] v = MatMul(x, w)", "")
    text = text.replace("[out] o = MatMul(m, w)", "[out] o = MatMul(s, w)").replace("Tanh(o)", "Mul(o, m)")
    usual = {STATIC: 10.0, DYNAMIC: 12.0, WEIGHT_8: 20.0, FLOAT: 30.0}
    made = table(
        grouping(read(text, {"w": floats(8, 8)})),
        {"sum": {STATIC: 1.0, FLOAT: 2.0}},
        {"s|read by s": 0.25},
        Boundary(quantize=3.0, dequantize=4.0),
        usual,
    )
    edge = edges_of(made)["Add 'sum'", "s"]
    assert edge.errors == {(FLOAT, STATIC): 0.25}
    assert edge.pairs == {(FLOAT, STATIC): 3.0, **{(STATIC, form): 4.0 for form in (DYNAMIC, WEIGHT_8, FLOAT)}}


def test_what_only_moves_integers_adds_no_noise() -> None:
    text = CHAIN.replace("[r1] b = Relu(a)", "[pool] b = MaxPool<kernel_shape=[2,2]>(a)")
    noise = {"a|made": 0.5, "b|made": 0.25}
    made = table(grouping(read(text, {"w": floats(8, 8, 1, 1)})), noise=noise)
    errors = {group.name: group.options[0].error for group in made.groups()}
    assert errors == pytest.approx({"x": 0.5, "b": 0.0, "d": 0.0, "MaxPool 'pool'": 0.0}, abs=1e-7)


def test_what_an_activation_behind_a_sum_rounds_counts() -> None:
    """The sum saturates where the activation would cut, so nobody rounds before that."""
    text = SUM.replace("[three] e = Conv(s, w)", "[relu] r = Relu(s) [three] e = Conv(r, w)")
    made = table(grouping(read(text, {"w": floats(8, 8, 1, 1)})), noise={"r|made": 0.5})
    errors = {group.name: group.options[0].error for group in made.groups()}
    assert errors == pytest.approx({"x": 0, "a": 0, "r": 0, "Add 'SUM'": 0, "Relu 'relu'": 0.5}, abs=1e-7)


# that what is counted is what a model rounds


def counted(found: Grouping, chosen: Mapping[str, str]) -> list[str]:
    """The parts of the noise that make up the sum where each group takes a form."""
    costs, names = table(found, usual=dict.fromkeys([STATIC, DYNAMIC, *BITS, FLOAT], 1.0)).costs, []
    for name in found.rounded:
        one = Table(found, {name: 1.0}, costs)
        own = [option.error for group in one.groups() for option in group.options if option.name == chosen[group.name]]
        total = sum(own) + sum(e.errors.get((chosen[e.first], chosen[e.second]), 0.0) for e in one.edges())
        assert total in (0.0, 1.0), f"{name} counts {total} times"
        names += [name] if total else []
    return names


def built(found: Grouping, chosen: Mapping[str, str]) -> Graph | None:
    """The model in which each group takes a form; None where one of them can not, for what lies around it."""
    graph, recipe = found.forms.graph, found.forms.plan.recipe
    forms = {name: chosen[group] for group, members in found.members.items() for name in members}
    placement = place(graph, CPU, recipe, {name: "" for name, form in forms.items() if form != STATIC})
    for name, form in forms.items():
        if form == STATIC and placement.nodes[name].treatment is not Treatment.STATIC:
            return None
        if form not in (STATIC, FLOAT):
            treatment = Treatment.WEIGHT if form in BITS else Treatment(form)
            placement.nodes[name] = NodePlan(op="MatMul", treatment=treatment, reason="", bits=BITS.get(form, 8))
    seen = collect(graph, sorted(set(placement.tensors.values())), data(graph), threads=1)
    plan = decide(placement, seen, recipe, CPU)
    return run([*QUANTIZE, *FOLD], graph, Context(CPU, plan), EVERYTHING).graph


def lost(graph: Graph, other: Graph) -> list[float]:
    """Noise over signal of each output."""
    (feeds,) = data(graph).batches(4)
    pairs = zip(execute(graph, feeds), execute(other, feeds), strict=True)
    exact = [(want.astype(np.float64), (have - want).astype(np.float64)) for want, have in pairs]
    return [float((error**2).sum() / (want**2).sum()) for want, error in exact]


@pytest.mark.parametrize(
    ("model", "forms", "least"), [(read_by_all, (STATIC, FLOAT), 10), (heads, (STATIC, DYNAMIC, WEIGHT_4, FLOAT), 17)]
)
def test_what_is_counted_for_a_choice_is_what_its_model_loses(model: Any, forms: tuple[str, ...], least: int) -> None:
    """Whatever form each group takes: all that is counted, turned on together, beside the model that is built."""
    graph = model()
    found = grouping(graph)
    switches = {switch.name: switch for own in found.rounded.values() for switch in own}
    board = SwitchBoard(graph, list(switches.values()), data(graph), 4)
    groups = table(found, usual=dict.fromkeys(forms, 1.0)).groups()
    compared = 0
    for picked in product(*([option.name for option in group.options] for group in groups)):
        chosen = {group.name: form for group, form in zip(groups, picked, strict=True)}
        candidate = built(found, chosen)
        if candidate is not None:
            on = {switch.name for name in counted(found, chosen) for switch in found.rounded[name]}
            noise = list(board.outputs_noise(on).values())
            assert noise == pytest.approx(lost(graph, candidate), rel=0.02, abs=1e-9), chosen
            compared += 1
    assert compared >= least


LINEAR = {STATIC: 10.0, DYNAMIC: 10.1, FLOAT: 30.0}


def test_dynamic_where_it_is_quieter_and_nearly_as_fast() -> None:
    noise = {"out|static": 0.003, "out|dynamic": 1e-5, "m|read by m": 0.002}
    nodes = bold(table(grouping(heads()), noise=noise, usual=LINEAR))
    assert treatments(nodes) == {"out": DYNAMIC}
    assert nodes["out"].reason == (
        "With a scale for each run it adds less noise: with fixed scales (10 µs instead of 10 µs) the outputs "
        "keep 23 dB over it."
    )
    assert nodes["out"].measured["static noise"] == 0.005, "of its weight and of what it reads"
    assert nodes["out"].measured["dynamic noise"] == 1e-5, "of its weight, whose input is rounded as it comes"
    slow = {"out": LINEAR | {DYNAMIC: 15.0}}
    assert bold(table(grouping(heads()), slow, noise, usual=LINEAR)) == {}


def test_layers_that_read_one_tensor_share_a_decision() -> None:
    """And quantize it once, at run time, too."""
    made = table(grouping(heads()), noise={"v|static": 0.3, "v|dynamic": 1e-5}, usual=LINEAR)
    assert treatments(bold(made)) == dict.fromkeys("qkv", DYNAMIC)
    (group,) = [group for group in made.groups() if group.name == "x"]
    assert [option.microseconds for option in group.options] == pytest.approx([30.0, 30.3, 90.0])
    costly = table(grouping(heads()), usual=LINEAR, boundary=Boundary(dynamic=5.0, quantize=2.0))
    (group,) = [group for group in costly.groups() if group.name == "x"]
    assert [option.microseconds for option in group.options] == pytest.approx([32.0, 35.3, 90.0])


def test_a_form_that_one_of_them_lacks_is_none() -> None:
    made = table(grouping(heads()), {"v": CHEAP}, usual=LINEAR)
    forms_of = {group.name: [option.name for option in group.options] for group in made.groups()}
    assert (forms_of["x"], forms_of["m"]) == ([STATIC, FLOAT], [STATIC, DYNAMIC, FLOAT])


def test_a_form_that_a_layer_cannot_take_is_none() -> None:
    for group in table(grouping(chain()), usual=LINEAR).groups():
        assert [option.name for option in group.options] == [STATIC, FLOAT]
    text = "(float[n,8,8] x) => (float[n,8,8] y) { a = Conv(x, w3) b = MatMul(x, w) y = Mul(a, b) }"
    both = grouping(read(text, {"w3": floats(8, 8, 1), "w": floats(8, 8)}))
    (group,) = table(both, usual=LINEAR).groups()
    assert [option.name for option in group.options] == [STATIC, FLOAT]


def test_who_reads_a_linear_layer_on_integers_quantizes() -> None:
    """Linear layers return floats."""
    made = table(grouping(heads()), usual=LINEAR, boundary=Boundary(quantize=2.0, dequantize=3.0))
    times = {group.name: group.options[0].microseconds for group in made.groups()}
    assert times == pytest.approx({"x": 32.0, "m": 10.0, "Add 'sum'": 14.0, "Mul 'mul'": 12.0})
    ends = {(edge.first, edge.second) for edge in made.edges()}
    assert ends == {("Add 'sum'", "Mul 'mul'"), ("Mul 'mul'", "m")}
    twice = grouping(read(HEADS.replace("Mul(s, v)", "Mul(s, q)"), {"w": floats(8, 8)}))
    made = table(twice, usual=LINEAR, boundary=Boundary(quantize=2.0))
    times = {group.name: group.options[0].microseconds for group in made.groups()}
    assert times == pytest.approx({"x": 32.0, "m": 10.0, "Add 'sum'": 13.0, "Mul 'mul'": 11.0}), "once for two"


def test_a_layer_without_an_integer_kernel_stays_in_float() -> None:
    nodes = bold(table(grouping(chain()), {"two": {FLOAT: 20.0}}, boundary=Boundary(quantize=1.0, dequantize=1.0)))
    assert treatments(nodes) == {"two": FLOAT}
    assert nodes["two"].reason == "With fixed scales it found no integer kernel."


def test_from_bold_to_cautious() -> None:
    noise = {"one|static": 0.5, "two|static": 0.005, "three|static": 0.0008}
    found = mixtures(table(grouping(chain()), noise=noise))
    assert [treatments(made.nodes) for made in found] == [
        {},
        {"one": FLOAT},
        {"one": FLOAT, "two": FLOAT},
        {"one": FLOAT, "two": FLOAT, "three": FLOAT},
    ]
    assert [made.noise for made in found] == pytest.approx([0.5058, 0.0058, 0.0008, 0.0], abs=1e-7)
    assert [made.microseconds for made in found] == pytest.approx([30.0, 50.0, 70.0, 90.0])
    reason = found[1].nodes["one"].reason
    assert "In float it adds less noise: with fixed scales (10 µs instead of 30 µs) the outputs keep 3 dB" in reason


def test_budgets_fall_from_none_at_all() -> None:
    assert list(BUDGETS) == sorted(BUDGETS, reverse=True)
    assert BUDGETS[0] == inf
    assert all(0 < budget <= 0.1 for budget in BUDGETS[1:])


def test_budgets_shrink_where_models_are_noisier_than_sums() -> None:
    found = table(grouping(chain()), noise=dict.fromkeys(("one|static", "two|static", "three|static"), 0.019))
    plain, shrunk = ([3 - len(made.nodes) for made in mixtures(found, factor)] for factor in (1.0, 5.0))
    assert plain == [3, 2, 1, 0], "static layers: all, within 0.056, within 0.032, within 0.018"
    assert shrunk == [3, 1, 0], "without a budget all of them; within 0.1 / 5; within 0.056 / 5"


def test_noise_counts_wherever_it_comes_from() -> None:
    """The last two belong to what the first and the third layer make."""
    noise = {"two|static": 3e-3, "x|read by x": 0.02, "b|made": 0.3, "e|made": 4.0}
    found = mixtures(table(grouping(chain()), noise=noise))
    assert [made.noise for made in found] == pytest.approx([4.323, 0.003, 0.0], abs=1e-7)
    assert [set(made.nodes) for made in found] == [set(), {"one", "three"}, {"one", "two", "three"}]
    first = found[1].nodes["one"]
    assert first.measured["static noise"] == 0.02, "of its weight and of what it reads"
    assert "the outputs keep 17 dB over it." in first.reason


def test_what_the_plan_says_about_weights_stays() -> None:
    found = grouping(heads(), nodes={"out": {"per_channel": False}})
    nodes = bold(table(found, {"out": {STATIC: 9.0, DYNAMIC: 3.0, FLOAT: 30.0}}, usual=LINEAR))
    assert treatments(nodes) == {"out": DYNAMIC}
    assert nodes["out"].per_channel is False
    assert nodes["out"].op == "MatMul"


# weights alone

WEIGHTS = {STATIC: 10.0, DYNAMIC: 12.0, WEIGHT_8: 14.0, WEIGHT_4: 14.2, FLOAT: 30.0}


def two_sizes(inputs: int = 40, outputs: int = 24, **wish: Any) -> Grouping:
    """A layer whose inputs fill no whole number of blocks, and one whose weight lies the other way."""
    text = "(float[n,{i}] x) => (float[n,8] y) {{ [one] a = MatMul(x, w) b = Tanh(a) [two] y = Gemm<transB=1>(b, v) }}"
    weights = {"w": floats(inputs, outputs), "v": floats(8, outputs)}
    return grouping(read(text.format(i=inputs), weights), **wish)


def options(made: Table) -> dict[str, dict[str, int]]:
    return {group.name: {option.name: option.bytes for option in group.options} for group in made.groups()}


@pytest.mark.parametrize(("symmetric", "parts"), [(True, 2), (None, 3)])
@pytest.mark.parametrize("block", [16, 32, 64, "channel"])
def test_bytes_are_those_that_the_weights_of_a_model_take(block: int | str, symmetric: bool | None, parts: int) -> None:
    """Integers and scales, and zero points where blocks have their own."""
    found = two_sizes(weight={"block_size": block, "symmetric": symmetric})
    made = options(table(found, usual=WEIGHTS))
    for group, name, size in (("x", "one", 40 * 24), ("b", "two", 24 * 8)):
        assert made[group][FLOAT] == 4 * size
        assert made[group][STATIC] == made[group][DYNAMIC] == size
        for form, bits in BITS.items():
            node = NodePlan(op="", treatment=Treatment.WEIGHT, reason="", bits=bits)
            plan = Plan(recipe=found.forms.plan.recipe, nodes={name: node})
            graph = run(QUANTIZE, found.forms.graph, Context(CPU, plan), EVERYTHING).graph
            (layer,) = [node for node in graph.nodes if node.op == "MatMulNBits"]
            assert len(layer.inputs) == 1 + parts
            assert made[group][form] == sum(weight(tensor).nbytes for tensor in layer.inputs[1:]), form


def test_operators_between_take_no_bytes_and_layers_add_up() -> None:
    made = options(table(grouping(heads()), usual=WEIGHTS))
    assert made["x"] == {form: 3 * size for form, size in made["m"].items()}
    assert set(made["Add 'sum'"].values()) == {0}


def test_a_weight_alone_in_integers_where_that_is_fastest_or_small() -> None:
    """Half as fast again as static, but quieter; and where there is no room, 4 bits of the weight."""
    noise = {"one|static": 0.5, "one|dynamic": 0.4, "one|8-bit weight": 0.003, "one|4-bit weight": 0.02}
    found = table(two_sizes(640), noise=noise, usual=WEIGHTS)
    forms = [made.nodes.get("one") for made in mixtures(found)]
    assert [node and (node.treatment, node.bits) for node in forms] == [
        None,
        (Treatment.WEIGHT, 8),
        (Treatment.FLOAT, 8),
    ]
    assert forms[1] is not None
    assert forms[1].op == "MatMul"
    assert forms[1].reason == (
        "With a weight of 8 bits it adds less noise: with fixed scales (10 µs instead of 14 µs) the outputs keep "
        "3 dB over it."
    )
    assert forms[1].measured["4-bit weight noise"] == 0.02
    assert forms[1].measured["8-bit weight us"] == 14.0
    size = options(found)["x"]
    (small,) = mixtures(found, max_bytes=size[STATIC] - 1)
    assert (small.nodes["one"].treatment, small.nodes["one"].bits) == (Treatment.WEIGHT, 4)
    assert list(small.nodes) == ["one"]
    assert small.bytes == size[WEIGHT_4] + options(found)["b"][STATIC]
    assert small.noise == pytest.approx(0.02, abs=1e-6)


@pytest.mark.parametrize("most", [0, -5])
def test_no_mixture_is_smaller_than_the_smallest(most: int) -> None:
    found = table(two_sizes(), usual=WEIGHTS)
    least = sum(min(sizes.values()) for sizes in options(found).values())
    assert [made.bytes for made in mixtures(found, max_bytes=least)] == [least]
    assert mixtures(found, max_bytes=least - 1) == mixtures(found, max_bytes=most) == []
    assert best_trade(found, 1.0, most) is None
    trade = best_trade(found, 1.0, least)
    assert trade is not None
    assert trade.bytes == least


def test_a_mul_that_balances_channels_takes_time_where_integers_read_it() -> None:
    graph = two_sizes().forms.graph
    factors = BalancePlan(factors=[1.0] * 39 + [8.0], multiplies=True, reason="")
    plan = Plan(recipe=Recipe(), nodes={}, balance={"x": factors})
    found = grouping(run(BALANCE, graph, Context(CPU, plan), EVERYTHING).graph)
    made = table(found, {"x_balance": {FLOAT: 5.0}}, usual=WEIGHTS)
    times = {group.name: [option.microseconds for option in group.options] for group in made.groups()}
    assert times == {"x_balanced": [15.0, 17.0, 14.0, 14.2, 30.0], "b": [10.0, 12.0, 14.0, 14.2, 30.0]}


# trades


NOISES = [
    {"q|static": 0.2, "k|static": 0.1, "out|static": 0.05, "out|dynamic": 0.002, "s|made": 0.01, "m|made": 0.02},
    {"x|read by x": 0.3, "q|read by Add 'sum'": 0.01, "s|made": 0.4, "m|read by m": 0.2, "out|4-bit weight": 0.1},
    {"m|read by m": 0.9, "s|read by Mul 'mul'": 0.5, "m|made": 1e-4, "s|made": 1e-4},
]


def everything(made: Table) -> list[Mixture]:
    """Every choice there is; what it decides about nodes left out."""
    groups, found = made.groups(), []
    for picked in product(*(group.options for group in groups)):
        names = {group.name: option.name for group, option in zip(groups, picked, strict=True)}
        ends = [(edge, (names[edge.first], names[edge.second])) for edge in made.edges()]
        noise = sum(option.error for option in picked) + sum(edge.errors.get(pair, 0.0) for edge, pair in ends)
        time = sum(option.microseconds for option in picked) + sum(edge.pairs.get(pair, 0.0) for edge, pair in ends)
        found.append(Mixture({}, noise, time, sum(option.bytes for option in picked)))
    return found


@pytest.mark.parametrize("most", [None, 4 * 64])
@pytest.mark.parametrize("rate", [0.0, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("noise", NOISES)
def test_the_best_trade_is_the_best_of_all(noise: Mapping[str, float], rate: float, most: int | None) -> None:
    boundary, quick = Boundary(quantize=1.0, dequantize=2.0), {"mul": {STATIC: 20.0, FLOAT: 10.0}}
    made = table(grouping(heads()), quick, noise, boundary, WEIGHTS)
    choices = everything(made)
    least = min(choice.microseconds for choice in choices)

    def price(choice: Mixture) -> float:
        return choice.microseconds / least + rate * choice.noise

    found = best_trade(made, rate, most)
    assert found is not None
    small = [choice for choice in choices if most is None or choice.bytes <= most]
    sums = [(choice.noise, choice.microseconds, choice.bytes) for choice in small]
    assert pytest.approx((found.noise, found.microseconds, found.bytes)) in sums, "its time is that of the model alone"
    assert price(found) <= min(map(price, small)) * (1 + 1e-3)


def test_trades_grow_cautious_as_noise_grows_dear() -> None:
    made = table(grouping(heads()), noise=NOISES[0], boundary=Boundary(quantize=3.0), usual=WEIGHTS)
    trades = [trade for rate in (0.0, 1.0, 1e3) if (trade := best_trade(made, rate)) is not None]
    assert [trade.noise for trade in trades] == sorted((trade.noise for trade in trades), reverse=True)
    assert [trade.microseconds for trade in trades] == sorted(trade.microseconds for trade in trades)
    assert len({trade.noise for trade in trades}) == 3


def test_the_fastest_mixture_is_that_whatever_its_noise() -> None:
    made = table(grouping(heads()), noise={"out|static": 1e6, "q|static": 1e9}, usual=WEIGHTS)
    found = fastest_mixture(made)
    assert found.nodes == {}
    assert found.noise == pytest.approx(1e9 + 1e6)
    assert found.microseconds == pytest.approx(min(choice.microseconds for choice in everything(made)))
    near = table(grouping(heads()), noise={"out|static": 0.5}, usual=WEIGHTS | {DYNAMIC: 10.2})
    assert treatments(fastest_mixture(near).nodes) == {"out": DYNAMIC}, "no measurement can tell the two apart"


def test_everything_in_one_form() -> None:
    """What cannot take it is float, operators between layers too."""
    made = table(grouping(heads()), {"v": {STATIC: 10.0, FLOAT: 30.0}}, usual=WEIGHTS)
    everybody = dict.fromkeys(("q", "k", "v", "sum", "mul", "out"), FLOAT)
    assert treatments(uniform(made, FLOAT)) == everybody
    assert uniform(made, STATIC) == {}
    assert treatments(uniform(made, DYNAMIC)) == everybody | {"out": DYNAMIC}
    assert treatments(uniform(made, WEIGHT_4)) == everybody | {"out": "weight"}
    assert [uniform(made, form)["out"].bits for form in (WEIGHT_8, WEIGHT_4)] == [8, 4]


def test_what_stands_between_layers_can_be_left_static() -> None:
    made = table(grouping(heads()), usual=WEIGHTS)
    nodes = uniform(made, DYNAMIC)
    assert layers_of(made, nodes) == {name: nodes[name] for name in ("q", "k", "v", "out")}


def test_a_model_without_groups_has_no_mixtures() -> None:
    assert mixtures(table(grouping(heads(), nodes={"*": {"quantize": False}}))) == []


def test_mixtures_grow_more_cautious() -> None:
    """Each is faster than all that are quieter."""
    found = mixtures(table(grouping(heads()), noise=NOISES[0], boundary=Boundary(quantize=3.0), usual=WEIGHTS))
    assert len(found) > 3
    for before, after in pairwise(found):
        assert before.noise > after.noise
        assert before.microseconds < after.microseconds
