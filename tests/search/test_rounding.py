"""Errors of inputs that go together cancel; what gains nothing on other samples is left as it is; a plan replays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxq import Options, Recipe, Result, optimize
from onnxq.calibration.collect import collect
from onnxq.calibration.data import Data, open_data
from onnxq.channels import layers_of
from onnxq.decision import decide
from onnxq.graph import Graph, to_model
from onnxq.numerics.affine import dequantize, quantize
from onnxq.numerics.formats import FORMATS
from onnxq.passes import QUANTIZE
from onnxq.pipeline import Context, run
from onnxq.placement import place
from onnxq.plan import NodePlan, Plan, Treatment
from onnxq.recipe import make_recipe
from onnxq.search import rounding
from onnxq.search.forms import Forms
from onnxq.search.rounding import View, better_rounding, helpful
from onnxq.search.sensitivity import noise_meter
from onnxq.study import Study
from onnxq.targets import CPU
from onnxq.weights import differences, rounded_weight
from tests.onnx_text import EVERYTHING, Array, execute, floats, read

WISH = {"activation": {"range": "minmax"}}
LINEAR = "(float[n,24] x) => (float[n,10] y) { [fc] m = MatMul(x, w) [add] y = Add(m, b) }"
TWO = """(float[n,24] x) => (float[n,10] y) {
    [one] a = MatMul(x, v) [add] c = Add(a, k) [act] r = Relu(c) [two] y = Gemm<transB=1>(r, t, b) }"""
CONV = "(float[n,4,9,7] x) => (float[n,6,h,w] y) { [conv] y = Conv<ATTRIBUTES>(x, w, b) }"
WEIGHTS = {"w": floats(24, 10), "b": floats(10), "v": floats(24, 16), "k": floats(16), "t": floats(10, 16, seed=4)}
OTHERS = slice(48, None)


def rows(count: int, inputs: int = 24, *, mixed: bool = True, seed: int = 0) -> Array:
    """Inputs that are mixtures of a few causes, or each for itself; both above zero on average."""
    random = np.random.default_rng(seed)
    causes = random.normal(size=(count, 4)) @ np.random.default_rng(9).normal(size=(4, inputs))
    own = random.normal(size=(count, inputs))
    return np.asarray((causes + 0.2 * own if mixed else own) + 1, np.float32)


def linear(**weights: Array) -> Graph:
    return read(LINEAR, {name: WEIGHTS[name] for name in ("w", "b")} | weights)


def open_rows(graph: Graph, x: Array | Sequence[Mapping[str, Array]]) -> Data:
    feeds: Any = x if not isinstance(x, np.ndarray) else {graph.inputs[0].name: x}
    return open_data(feeds, graph.interface().inputs)


def plan_of(graph: Graph, data: Data, **wish: Any) -> Plan:
    recipe = make_recipe(WISH | wish)
    placement = place(graph, CPU, recipe)
    seen = collect(graph, sorted(set(placement.tensors.values())), data, threads=1)
    return decide(placement, seen, recipe, CPU)


def found_in(graph: Graph, x: Any, plan: Plan | None = None, **noise: float) -> dict[str, str]:
    data = open_rows(graph, x)
    plan = plan or plan_of(graph, data)
    static = [name for name, node in plan.nodes.items() if node.treatment is Treatment.STATIC]
    return better_rounding(graph, plan, data, noise or dict.fromkeys(static, 1.0))


def rounded_by(plan: Plan, found: Mapping[str, str]) -> Plan:
    nodes = {n: node.model_copy(update={"rounding": found.get(n, "")}) for n, node in plan.nodes.items()}
    return plan.model_copy(update={"nodes": nodes})


def error(graph: Graph, plan: Plan, x: Array) -> float:
    """The squared error at the outputs, beside a model whose input alone is rounded: what the weight makes of it."""
    quantized = run(QUANTIZE, graph, Context(CPU, plan), EVERYTHING).graph
    tensor = plan.tensors["x"]
    grid = np.float32(tensor.scale), np.uint8(tensor.zero_point)
    x = dequantize(quantize(x, *grid, FORMATS[tensor.format]), *grid)
    (want,), (have,) = execute(graph, {"x": x}), execute(quantized, {"x": x})
    return float(np.square(want.astype(np.float64) - have).sum())


BODIES = ("m = MatMul(x, w) [add] y = Add(m, b)", "y = MatMul(x, w)", "y = Gemm(x, w, b)", "y = Gemm<transB=1>(x, w)")


@pytest.mark.parametrize("body", BODIES)
def test_errors_of_inputs_that_go_together_cancel(body: str) -> None:
    values = floats(10, 24) if "transB" in body else WEIGHTS["w"]
    graph = read(LINEAR.replace(BODIES[0], body), {"w": values, "b": WEIGHTS["b"]})
    data = open_rows(graph, rows(128))
    plan = plan_of(graph, data)
    found = better_rounding(graph, plan, data, {"fc": 1.0})
    assert list(found) == ["fc"]
    unseen = rows(500, seed=1)
    assert error(graph, rounded_by(plan, found), unseen) < 0.2 * error(graph, plan, unseen)


def test_errors_at_the_mean_are_left_to_the_bias_where_there_is_one() -> None:
    graph = linear()
    data = open_rows(graph, rows(128))
    plan, unseen = plan_of(graph, data), rows(500, seed=1)
    tensor = plan.tensors["x"].model_copy(update={"means": []})
    blind = plan.model_copy(update={"tensors": {**plan.tensors, "x": tensor}})
    with_bias = rounded_by(plan, better_rounding(graph, plan, data, {"fc": 1.0}))
    without = rounded_by(plan, better_rounding(graph, blind, data, {"fc": 1.0}))
    assert error(graph, with_bias, unseen) < 0.8 * error(graph, without, unseen)


def test_inputs_that_have_nothing_to_do_with_each_other_gain_nothing() -> None:
    x = rows(128, mixed=False)
    assert found_in(linear(), x) == {}


def test_what_goes_together_in_the_fitted_samples_alone_gains_nothing() -> None:
    """Every fourth sample, counted from the first that is looked at, is of another kind."""
    x = rows(64)
    x[8 + 3 :: 4] = rows(len(x[8 + 3 :: 4]), mixed=False)
    assert found_in(linear(), x) == {}
    assert found_in(linear(), rows(64)) != {}


def test_each_layer_has_to_help_the_outputs() -> None:
    """One is rounded so that its errors cancel, the other so that they add up."""
    graph = read(TWO, {name: WEIGHTS[name] for name in "vktb"})
    data = open_rows(graph, rows(256))
    plan = plan_of(graph, data)
    forms = Forms(graph, CPU, plan)
    found = better_rounding(graph, plan, data, {"one": 1.0, "two": 1.0})
    nearest = rounded_weight(forms.layers["two"], plan.recipe.weight, True).values
    worse = {**found, "two": differences(nearest - np.sign(nearest), nearest)}
    told: list[tuple[int, int]] = []
    assert helpful(forms, worse, data, 64, lambda _, done, total: told.append((done, total))) == {"one": found["one"]}
    assert told == [(1, 2), (2, 2)]
    assert helpful(forms, {}, data, 64) == {}


def test_layers_behind_each_other_see_their_own_inputs() -> None:
    graph = read(TWO, {name: WEIGHTS[name] for name in "vktb"})
    data = open_rows(graph, rows(256))
    plan = plan_of(graph, data)
    found = better_rounding(graph, plan, data, {"one": 1.0, "two": 1.0})
    assert set(found) == {"one", "two"}
    meter = noise_meter(graph, Context(CPU), open_rows(graph, rows(300, seed=1)), 300)
    for name in found:
        assert meter(rounded_by(plan, {name: found[name]})) < meter(plan)


ATTRIBUTES = {
    "plain": "",
    "padded": "pads=[1,2,0,1]",
    "strided and dilated": "strides=[2,1], dilations=[1,2], pads=[1,1,1,1]",
    "valid": 'auto_pad="VALID"',
}


def pictures(count: int, seed: int = 0) -> Array:
    """Neighbours are alike."""
    fine = np.random.default_rng(seed).normal(size=(count, 4, 11, 9)) + 0.5
    return np.asarray(sum(fine[:, :, i : i + 9, j : j + 7] for i in range(3) for j in range(3)), np.float32)


def conv(attributes: str, **weights: Array) -> Graph:
    kept = {"w": floats(6, 4, 3, 3), "b": floats(6)} | weights
    return read(CONV.replace("<ATTRIBUTES>", f"<{attributes}>" if attributes else ""), kept)


@pytest.mark.parametrize("case", ATTRIBUTES)
def test_rows_are_what_a_layer_multiplies_its_weight_with(case: str) -> None:
    graph, x = conv(ATTRIBUTES[case]), pictures(3)
    plan = plan_of(graph, open_rows(graph, x)).tensors["x"]
    (layer,) = layers_of(graph)
    view = View.of(layer, plan.model_copy(update={"means": []}))
    values, y = floats(6, 4, 3, 3).reshape(6, -1), execute(graph, {"x": x})[0]
    have = view.rows(x, plan, 10**6, 0) @ values.T + floats(6)
    np.testing.assert_allclose(have, np.moveaxis(y, 1, -1).reshape(-1, 6), atol=10 * plan.scale)
    centred = View.of(layer, plan)
    shift = view.rows(x, plan, 10**6, 0) - centred.rows(x, plan, 10**6, 0)
    np.testing.assert_allclose(shift, np.broadcast_to(0.9 * np.repeat(plan.means, 9), shift.shape), rtol=1e-4)
    some = view.rows(x, plan, 50, 0)
    assert some.shape == (50, 36)
    assert {row.tobytes() for row in some} <= {row.tobytes() for row in view.rows(x, plan, 10**6, 0)}
    assert len({row.tobytes() for row in some}) == 50


@pytest.mark.parametrize("case", ATTRIBUTES)
def test_errors_within_a_window_cancel(case: str) -> None:
    graph = conv(ATTRIBUTES[case])
    data = open_rows(graph, pictures(40))
    plan = plan_of(graph, data)
    plan = plan.model_copy(update={"tensors": {"x": plan.tensors["x"]}})  # without the rounding of the output
    found = better_rounding(graph, plan, data, {"conv": 1.0})
    assert list(found) == ["conv"]
    unseen = pictures(20, seed=1)
    assert error(graph, rounded_by(plan, found), unseen) < 0.7 * error(graph, plan, unseen)


UNFIT: dict[str, tuple[str, dict[str, Array], dict[str, Any]]] = {
    "groups": ("group=2", {"w": floats(6, 2, 3, 3)}, {}),
    "pads that the runtime finds": ('auto_pad="SAME_UPPER"', {}, {}),
    "one scale for all": ("", {}, {"weight": {"per_channel": False}}),
    "unsigned": ("", {}, {"weight": {"format": "uint8"}}),
    "asymmetric": ("", {}, {"weight": {"symmetric": False}}),
}


@pytest.mark.parametrize("case", UNFIT)
def test_leaves_alone_what_is_no_single_product_of_symmetric_channels(case: str) -> None:
    attributes, weights, wish = UNFIT[case]
    graph, x = conv(attributes, **weights), pictures(40)
    plan = plan_of(graph, open_rows(graph, x), **wish)
    assert plan.treatment("conv") is Treatment.STATIC
    assert found_in(graph, x, plan) == {}


def test_leaves_alone_what_is_not_static_and_what_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, x = linear(), rows(64)
    plan = plan_of(graph, open_rows(graph, x))
    for treatment in (Treatment.DYNAMIC, Treatment.FLOAT):
        other = plan.model_copy(update={"nodes": {"fc": NodePlan(op="MatMul", treatment=treatment, reason="")}})
        assert found_in(graph, x, other, fc=1.0) == {}
    monkeypatch.setattr(rounding, "MOST_INPUTS", 23)
    assert found_in(graph, x, plan) == {}
    monkeypatch.setattr(rounding, "MOST_INPUTS", 24)
    assert found_in(graph, x, plan) != {}


def test_the_quietest_layers_stay_as_they_are() -> None:
    graph, x = read(TWO, {name: WEIGHTS[name] for name in "vktb"}), rows(256)
    assert set(found_in(graph, x, one=1.0, two=0.019)) == {"one"}
    assert set(found_in(graph, x, one=1.0, two=0.03)) == {"one", "two"}
    assert set(found_in(graph, x, one=1.0)) == {"one"}, "of the other nobody knows whether it matters"
    assert found_in(graph, x, one=0.0, two=0.0) == {}


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_samples_prove_nothing(count: int) -> None:
    graph = linear()
    plan = plan_of(graph, open_rows(graph, rows(64)))
    assert better_rounding(graph, plan, open_rows(graph, rows(64)).take(slice(0, count)), {"fc": 1.0}) == {}


def test_the_first_samples_are_not_looked_at() -> None:
    graph, x = linear(), rows(100)
    plan, other = plan_of(graph, open_rows(graph, x)), x.copy()
    other[:36] = 0
    assert found_in(graph, other, plan) == found_in(graph, x, plan)
    other[36] = 0
    assert found_in(graph, other, plan) != found_in(graph, x, plan)
    few, fewer = x[:40].copy(), x[:40].copy()
    fewer[:5] = 0
    assert found_in(graph, fewer, plan) == found_in(graph, few, plan)
    fewer[5] = 0
    assert found_in(graph, fewer, plan) != found_in(graph, few, plan)


def test_all_other_samples_count_in_the_end() -> None:
    """Those too that told whether the error falls."""
    graph, x = linear(), rows(100)
    plan, other = plan_of(graph, open_rows(graph, x)), x.copy()
    other[36 + 3 :: 4] = rows(16, seed=5)
    assert found_in(graph, other, plan).keys() == found_in(graph, x, plan).keys()
    assert found_in(graph, other, plan) != found_in(graph, x, plan)


def test_the_same_data_gives_the_same_integers_however_much_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, x = read(TWO, {name: WEIGHTS[name] for name in "vktb"}), rows(256)
    first = found_in(graph, x)
    assert len(first) == 2
    assert found_in(graph, x) == first
    monkeypatch.setattr(rounding, "HELD", 1)
    assert found_in(graph, x) == first


def test_layers_that_read_the_same_rows_are_told_them_once(monkeypatch: pytest.MonkeyPatch) -> None:
    text = LINEAR.replace("[add] y", "[second] o = MatMul(x, u) [add] y").replace("y) {", "y, float[n,3] o) {")
    graph, x = read(text, {"w": WEIGHTS["w"], "b": WEIGHTS["b"], "u": floats(24, 3)}), rows(64)
    plan = plan_of(graph, open_rows(graph, x))
    means = {name: tensor.model_copy(update={"means": []}) for name, tensor in plan.tensors.items()}
    made: list[View] = []
    honest = View.rows

    def counted(view: View, *more: Any) -> Array:
        made.append(view)
        return honest(view, *more)

    monkeypatch.setattr(View, "rows", counted)
    assert set(found_in(graph, x, plan.model_copy(update={"tensors": means}))) == {"fc", "second"}
    assert len(set(made)) == 1
    assert len(made) == 56


def test_padding_and_broken_samples_are_left_out() -> None:
    text = "(float[n,t,24] x, int64[n,t] attention_mask) => (float[n,t,10] y, int64[n,t] z)"
    body = "[fc] m = MatMul(x, w) y = Add(m, b) z = Identity(attention_mask)"
    graph = read(f"{text} {{ {body} }}", {"w": WEIGHTS["w"], "b": WEIGHTS["b"]})
    x, mask = rows(64 * 3).reshape(64, 3, 24), np.tile(np.array([1, 1, 0]), (64, 1))
    feeds = {"x": x, "attention_mask": mask}
    plan = plan_of(graph, open_data(feeds, graph.interface().inputs))

    def found(x: Array) -> dict[str, str]:
        data = open_data({"x": x, "attention_mask": mask}, graph.interface().inputs)
        return better_rounding(graph, plan, data, {"fc": 1.0})

    other, broken = x.copy(), x.copy()
    other[:, 2] = -9
    assert found(other) == found(x) != {}
    other[:, 1] = -9
    assert found(other) != found(x)
    broken[20, 0, 0] = np.inf
    assert found(broken).keys() == {"fc"}


def test_what_is_done_is_told() -> None:
    graph, told = read(TWO, {name: WEIGHTS[name] for name in "vktb"}), []
    data = open_rows(graph, rows(64))
    noise = {"one": 1.0, "two": 1.0}
    better_rounding(graph, plan_of(graph, data), data, noise, lambda *news: told.append(news))
    assert told == [("rounding", 1, 2), ("rounding", 2, 2)]


def model(folder: Path) -> Path:
    """Two linear layers in a file."""
    graph = read(TWO, {name: WEIGHTS[name] for name in "vktb"})
    onnx.save(to_model(graph), folder / "model.onnx")
    return folder / "model.onnx"


def optimized(path: Path, output: str, **more: Any) -> Result:
    wishes: dict[str, Any] = {"data": {"x": rows(128)}, "recipe": Recipe(mode="static-int8", balance=False)}
    return optimize(path, path.with_name(output), options=Options(seconds=0.0, check=False), **(wishes | more))


def roundings(result: Result) -> dict[str, str]:
    assert result.plan is not None
    return {name: node.rounding for name, node in result.plan.nodes.items() if node.rounding}


def test_a_plan_gives_the_same_bytes_without_data(tmp_path: Path) -> None:
    path = model(tmp_path)
    first = optimized(path, "first.onnx")
    assert set(roundings(first)) == {"one", "two"}
    optimized(path, "again.onnx", data=None, recipe=None, plan=first.plan)
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()
    nearest = make_recipe({"mode": "static-int8", "balance": False, "weight": {"rounding": "nearest"}})
    assert roundings(optimized(path, "nearest.onnx", recipe=nearest)) == {}
    assert (tmp_path / "first.onnx").read_bytes() != (tmp_path / "nearest.onnx").read_bytes()


def test_is_kept_only_where_the_outputs_gain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = model(tmp_path)
    louder = {True: 1.2, False: 1.0}

    def meter(study: Study, samples: int) -> Any:
        return lambda plan: louder[any(node.rounding for node in plan.nodes.values())]

    monkeypatch.setattr(Study, "meter", meter)
    assert roundings(optimized(path, "louder.onnx")) == {}
    louder[True] = 1.05  # each was measured to help alone, so a little doubt does not count
    assert set(roundings(optimized(path, "quieter.onnx"))) == {"one", "two"}


def test_layers_that_are_spared_have_no_integers(tmp_path: Path) -> None:
    recipe = Recipe(mode="static-int8", balance=False, least_sqnr=90.0)
    found = optimized(model(tmp_path), "spared.onnx", recipe=recipe)
    assert found.plan is not None
    static = {n for n, node in found.plan.nodes.items() if node.treatment is Treatment.STATIC}
    assert set(roundings(found)) <= static
