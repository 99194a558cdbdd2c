"""Who makes and who reads each quantized tensor, and that each part of the noise is what a model loses by it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.calibration.collect import collect
from onnxq.calibration.data import Data, open_data
from onnxq.channels import layers_of
from onnxq.decision import decide
from onnxq.graph import Graph
from onnxq.passes import BALANCE, FOLD, QUANTIZE
from onnxq.passes.insert_qdq import Insertion
from onnxq.pipeline import Context, run
from onnxq.placement import place
from onnxq.plan import BalancePlan, Plan
from onnxq.recipe import make_recipe
from onnxq.search.forms import DYNAMIC, STATIC, WEIGHT_4, WEIGHT_8, Forms
from onnxq.search.grouping import Grouping, made, read_by
from onnxq.search.switches import SwitchBoard
from onnxq.targets import CPU
from tests.onnx_text import EVERYTHING, execute, floats, read

RECIPE = make_recipe({"activation": {"range": "minmax"}})

CONVS = """(float[n,8,6,6] x) => (float[n,8,6,6] y, float[n,8,6,6] b) {
    [one] a = Conv(x, w1, k) [two] b = Conv(a, w2, k) [SUM] s = Add(a, b) [three] e = Conv(s, w3, k)
    [tanh] t = Tanh(a) [end] y = Mul(e, t) }"""
"""Tensor `a` has two integer readers and a float one; `b` is promised, and has an integer reader."""

ROWS = """(float[n,5,8] x) => (float[n,5,8] y, float[n,5,8] z) {
    [q] q = MatMul(x, w1) [k] k = MatMul(x, w2) [sum] s = Add(q, k) [out] o = MatMul(s, w3)
    [abs] p = Abs(x) [end] y = Tanh(o) [mean] z = Mul(p, o) }"""
"""Tensor `x` is given as floats, `q` and `k` come as floats out of linear layers; a float operator reads `x` too."""


def convs(text: str = CONVS) -> Graph:
    weights = {f"w{i}": floats(8, 8, 1, 1, seed=i) / 3 for i in (1, 2, 3)}
    return read(text, weights | {"k": floats(8, seed=9)})


def rows(text: str = ROWS) -> Graph:
    return read(text, {f"w{i}": floats(8, 8, seed=i) / 3 for i in (1, 2, 3)})


def data(graph: Graph) -> Data:
    (tensor,) = graph.inputs
    shape = [size if isinstance(size, int) else 16 for size in tensor.shape or ()]
    return open_data({tensor.name: floats(*shape, seed=7)}, graph.interface().inputs)


def grouping(graph: Graph, **wish: Any) -> Grouping:
    recipe = make_recipe({"activation": {"range": "minmax"}} | wish)
    placement = place(graph, CPU, recipe)
    seen = collect(graph, sorted(set(placement.tensors.values())), data(graph), threads=1)
    return Grouping(Forms(graph, CPU, decide(placement, seen, recipe, CPU)))


def called(*names: str) -> Graph:
    """`convs`, where the nodes have these names."""
    text = CONVS
    for old, new in zip(("one", "two", "SUM", "three", "tanh", "end"), names, strict=True):
        text = text.replace(f"[{old}]", f"[{new}]")
    return convs(text)


# who makes, who reads


def test_layers_that_read_one_tensor_and_each_operator_between_them_are_groups() -> None:
    assert grouping(convs()).members == {"x": ["one"], "a": ["two"], "s": ["three"], "Add 'SUM'": ["SUM"]}
    assert grouping(rows()).members == {"x": ["q", "k"], "s": ["out"], "Add 'sum'": ["sum"]}


def test_what_the_recipe_keeps_in_float_is_in_no_group() -> None:
    found = grouping(convs(), nodes={"two": {"quantize": False}})
    assert found.members == {"x": ["one"], "s": ["three"]}
    assert found.others("a") == ["two", "SUM", "tanh"]


def test_a_layer_of_unknown_range_is_in_no_group() -> None:
    forms = grouping(convs()).forms
    tensors = {name: tensor for name, tensor in forms.plan.tensors.items() if name != "s"}
    short = Forms(forms.graph, CPU, forms.plan.model_copy(update={"tensors": tensors}))
    assert [group for group, members in Grouping(short).members.items() if "three" in members] == []


def test_each_group_reads_tensors_through_some_of_its_members() -> None:
    assert grouping(convs()).reading == {
        "x": {"x": ["one"]},
        "a": {"a": ["two"]},
        "s": {"s": ["three"]},
        "Add 'SUM'": {"a": ["SUM"], "b": ["SUM"]},
    }
    assert grouping(rows()).reading["x"] == {"x": ["q", "k"]}


def test_a_tensor_that_is_read_twice_is_read_once() -> None:
    assert grouping(convs(CONVS.replace("Add(a, b)", "Add(b, b)"))).reading["Add 'SUM'"] == {"b": ["SUM"]}


def test_convolutions_and_operators_between_make_integers_and_linear_layers_do_not() -> None:
    assert grouping(convs()).makers == {"a": "x", "b": "a", "e": "s", "s": "Add 'SUM'"}
    found = grouping(rows())
    assert found.makers == {"s": "Add 'sum'"}
    assert {"x", "q", "k"} <= found.forms.plan.tensors.keys(), "which are rounded all the same"


def test_an_operator_may_make_several_tensors() -> None:
    text = """(float[n,8,6,6] x) => (float[n,8,6,6] y) { [one] a = Conv(x, w1, k) [split] b, c = Split<axis=1>(a, sizes)
        [two] d = Conv(b, half, k) [three] e = Conv(c, half, k) [sum] s = Add(d, e) [end] y = Tanh(s) }"""
    sizes, half = np.array([4, 4]), floats(8, 4, 1, 1)
    found = grouping(read(text, {"w1": floats(8, 8, 1, 1), "k": floats(8), "sizes": sizes, "half": half}))
    assert found.makes("split") == ["b", "c"]
    assert found.makers == {"a": "x", "b": "Split 'split'", "c": "Split 'split'", "d": "b", "e": "c"}
    assert found.moves("split")


def test_everybody_else_reads_floats() -> None:
    found = grouping(convs())
    others = {name: found.others(name) for name in ("x", "a", "b", "s", "e")}
    assert others == {"x": [], "a": ["tanh"], "b": ["b"], "s": [], "e": ["end"]}, "`b` by its name"
    assert grouping(rows()).others("x") == ["abs"]


def test_groups_that_read_a_tensor_are_counted() -> None:
    found = grouping(convs())
    readers = {name: found.readers(name) for name in ("x", "a", "b", "e")}
    assert readers == {"x": 1, "a": 2, "b": 1, "e": 1}, "1 where there is none, to divide by"
    assert grouping(rows()).readers("x") == 1, "two layers in one group"


def test_what_is_made_as_integers_is_rounded_for_everybody() -> None:
    found = grouping(convs())
    assert [found.rounded_for(name) for name in ("x", "a", "b", "e")] == [("one",), (), (), ()]
    assert grouping(rows()).rounded_for("x") == ("q", "k")
    assert grouping(rows()).rounded_for("q") == ("sum",)


MOVES = """(float[n,8,6,6] x) => (float[n,c,h,w] y) { [one] a = Conv(x, w1, k)
    [pool] b = MaxPool<kernel_shape=[2,2]>(a) [two] c = Conv(b, w2, k) [leaky] d = LeakyRelu(c) [sum] s = Add(d, b)
    [three] e = Conv(s, w3, k) [join] f = Concat<axis=1>(e, s) [four] g = Conv(f, wide, k) [end] y = Tanh(g) }"""


def test_what_only_moves_values_rounds_none() -> None:
    wide = {"wide": floats(8, 16, 1, 1), **{f"w{i}": floats(8, 8, 1, 1, seed=i) for i in (1, 2, 3)}, "k": floats(8)}
    found = grouping(read(MOVES, wide))
    moves = {member: found.moves(member) for members in found.members.values() for member in members}
    assert moves == {
        "one": False, "two": False, "three": False, "four": False, "pool": True, "leaky": False, "sum": False,
        "join": False,
    }, "the sum that is joined has a grid of its own, for somebody else reads it"  # fmt: skip
    alone = grouping(read(MOVES.replace("Concat<axis=1>(e, s)", "Concat<axis=1>(e, e)"), wide))
    assert alone.moves("join")


SATURATED = """(float[n,8,6,6] x) => (float[n,8,6,6] y) {
    [one] a = Conv(x, w1, k) [two] b = Conv(a, w2, k) [sum] s = Add(a, b) [relu] r = Relu(s)
    [three] e = Conv(r, w3, k) [end] y = Tanh(e) }"""


def test_the_sum_behind_which_an_activation_saturates_is_rounded_once() -> None:
    """The sum itself is on no grid, so its activation does not just move values on one."""
    found = grouping(convs(SATURATED))
    assert "s" not in found.forms.plan.tensors
    assert (found.makes("sum"), found.makes("relu")) == ([], ["r"])
    assert (found.moves("sum"), found.moves("relu")) == (False, False)


def test_a_mul_that_balances_channels_belongs_to_the_group_that_reads_it() -> None:
    graph = rows()
    factors = BalancePlan(factors=[1.0] * 7 + [8.0], multiplies=True, reason="")
    plan = Plan(recipe=RECIPE, nodes={}, balance={"x": factors})
    assert grouping(graph).muls == {}
    found = grouping(run(BALANCE, graph, Context(CPU, plan), EVERYTHING).graph)
    assert {name: mul.op for name, mul in found.muls.items()} == {"x_balanced": "Mul"}
    assert found.members["x_balanced"] == ["q", "k"]
    assert [tensor.name for tensor in found.muls["x_balanced"].outputs] == ["x_balanced"]


# noise


def lost(graph: Graph, other: Graph) -> float:
    """Noise over signal at the worst output of another model."""
    (feeds,) = data(graph).take(slice(0, 16)).batches(16)
    ratios = []
    for want, have in zip(execute(graph, feeds), execute(other, feeds), strict=True):
        exact, error = want.astype(np.float64), (have - want).astype(np.float64)
        ratios.append(float((error**2).sum() / (exact**2).sum()))
    return max(ratios)


def rounded(found: Grouping, tensor: str, group: str = "") -> Graph:
    """The model in which one tensor is rounded: for a group, or for everybody."""
    graph = found.forms.graph.copy()
    held, members = graph.tensors()[tensor], found.reading[group][tensor] if group else []
    integer = {id(node) for node in held.outputs if node.name in members}
    Insertion(graph, found.forms.plan).quantize_tensor(held, not group, integer)
    return graph


@pytest.mark.parametrize("model", [convs, rows])
def test_noise_of_tensors_is_what_a_model_loses_where_they_alone_are_rounded(model: Any) -> None:
    graph = model()
    found = grouping(graph)
    noise = found.noise(data(graph), 16)
    parts = {read_by(t, group): rounded(found, t, group) for group, names in found.reading.items() for t in names}
    parts |= {made(tensor): rounded(found, tensor) for tensor in found.makers}
    assert parts.keys() == {name for name in noise if "|made" in name or "|read by" in name}
    for name, built in parts.items():
        assert noise[name] == pytest.approx(lost(graph, built), rel=1e-3), name
        assert noise[name] > 1e-7, name


@pytest.mark.parametrize("model", [convs, rows])
def test_noise_of_layers_is_what_a_model_loses_where_weight_and_bias_alone_are_rounded(model: Any) -> None:
    graph = model()
    found = grouping(graph)
    noise = found.noise(data(graph), 16)
    for name in found.forms.layers:
        built = graph.copy()
        (layer,) = [layer for layer in layers_of(built) if layer.node.name == name]
        Insertion(built, found.forms.plan).quantize_layer(layer, returns_integers=False)
        assert noise[f"{name}|{STATIC}"] == pytest.approx(lost(graph, built), rel=1e-3), name
        assert noise[f"{name}|{STATIC}"] > 1e-7, name


def test_noise_is_told_apart_by_what_can_be_rounded_alone() -> None:
    """What the model gives as floats is rounded for those that want integers; what a convolution makes for all."""
    graph = convs()
    layers = {f"{name}|{STATIC}" for name in ("one", "two", "three")}
    readers = {"x|read by x", "a|read by a", "a|read by Add 'SUM'", "b|read by Add 'SUM'", "s|read by s"}
    assert grouping(graph).noise(data(graph), 1).keys() == layers | readers | {f"{t}|made" for t in "abse"}
    graph = rows()
    forms = (STATIC, DYNAMIC, WEIGHT_8, WEIGHT_4)
    layers = {f"{name}|{form}" for name in ("q", "k", "out") for form in forms}
    readers = {"x|read by x", "q|read by Add 'sum'", "k|read by Add 'sum'", "s|read by s"}
    assert grouping(graph).noise(data(graph), 1).keys() == layers | readers | {"s|made"}


def test_a_float_reader_sees_what_a_convolution_makes_and_not_what_is_given() -> None:
    """Each model has a float path to an output of its own, on which only what is made as integers leaves noise."""
    text = CONVS.replace("float[n,8,6,6] b)", "float[n,8,6,6] b, float[n,8,6,6] t)").replace("Mul(e, t)", "Sin(e)")
    graph = convs(text)
    found = grouping(graph)
    (feeds,) = data(graph).batches(16)
    exact = execute(graph, feeds)[2]
    for part, built in (("a", rounded(found, "a")), ("x", rounded(found, "x", "x"))):
        assert np.abs(execute(built, feeds)[2] - exact).max() > 1e-4, part
    read_alone = execute(rounded(found, "a", "a"), feeds)[2]
    np.testing.assert_array_equal(read_alone, exact)
    noise = found.noise(data(graph), 16)
    assert noise["a|made"] > 1.2 * max(noise["a|read by a"], noise["a|read by Add 'SUM'"])


@pytest.mark.parametrize("names", ["absety", "xacsbe"], ids=["what they make", "what they read"])
def test_nodes_may_be_called_like_tensors(names: str) -> None:
    graph, plain = called(*names), convs()
    noise, expected = (grouping(model).noise(data(model), 4) for model in (graph, plain))
    assert len(noise) == len(expected) == 12
    assert list(noise.values()) == list(expected.values())


def test_equal_selections_are_measured_once() -> None:
    graph, told = rows(), list[tuple[str, int, int]]()
    found = grouping(graph)
    noise = found.noise(data(graph), 4, lambda *step: told.append(step))
    assert noise["s|made"] == noise["s|read by s"], "nobody else reads it"
    runs = len(noise) - 1
    assert told == [("search", done, runs) for done in range(1, runs + 1)]


@pytest.mark.parametrize("model", [convs, rows])
def test_everything_static_is_what_the_static_model_loses(model: Any) -> None:
    graph = model()
    found = grouping(graph)
    switches = list(found.static())
    quantized = run([*QUANTIZE, *FOLD], graph, Context(CPU, found.forms.plan), EVERYTHING).graph
    noise = SwitchBoard(graph, switches, data(graph), 16).noise([switch.name for switch in switches])
    assert noise == pytest.approx(lost(graph, quantized), rel=0.02)


def test_a_planned_tensor_is_on_the_grid_of_the_plan_for_those_who_see_that() -> None:
    found = grouping(rows())
    for name, readers in (("x", ("q", "k")), ("s", ())):
        switch = found.planned(name)
        assert (switch.tensor, switch.readers) == (name, readers)
        assert switch.grid is not None
        assert float(switch.grid.scale) == pytest.approx(found.forms.plan.tensors[name].scale)
