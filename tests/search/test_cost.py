"""Every layer has a time in each form that it can take, and what was timed computes what the whole model does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from onnxq.graph import Graph, is_constant, to_model
from onnxq.memo import Memo
from onnxq.numerics.affine import parameters
from onnxq.numerics.formats import UINT8
from onnxq.passes import FOLD, QUANTIZE
from onnxq.pipeline import Context, run
from onnxq.placement import place, place_linear
from onnxq.plan import Plan, TensorPlan, Treatment
from onnxq.recipe import Recipe
from onnxq.runtime import CPU as CPU_PROVIDER
from onnxq.runtime import Kernel, Session
from onnxq.search.cost import Boundary, Costs, Sampler, measure_costs
from onnxq.search.stopwatch import Sample, Stopwatch
from onnxq.spec import Fact
from onnxq.targets import CPU
from tests.onnx_text import Array, floats, normal, read, serialize

PICTURES = """
(float[N,3,8,8] x) => (float[N,6,4,4] y) {
  [stem] a = Conv <pads = [1,1,1,1]> (x, w0)
  [one] b = Conv <pads = [1,1,1,1]> (a, w1, c1)
  [act1] r1 = Relu(b)
  [two] c = Conv <pads = [1,1,1,1]> (r1, w2, c2)
  [act2] r2 = Relu(c)
  [add] s = Add(r1, r2)
  [act3] r3 = Relu(s)
  [pool] p = MaxPool <kernel_shape = [2,2], strides = [2,2]> (r3)
  [three] d = Conv <pads = [1,1,1,1]> (p, w3)
  y = Neg(d)
}
"""
KERNELS = {
    "w0": floats(6, 3, 3, 3),
    "w1": floats(6, 6, 3, 3, seed=1),
    "c1": floats(6),
    "w2": floats(6, 6, 3, 3, seed=2),
    "c2": floats(6, seed=9),
    "w3": floats(6, 6, 3, 3, seed=3),
}
LAYERS = ["stem", "one", "two", "three"]

SENTENCES = """
(float[N,T,8] x) => (float[N,T,8] y, float[N,T,5] z) {
  [query] q = MatMul(x, wq)
  [key] k0 = MatMul(x, wk)
  [bias] k = Add(k0, c)
  [join] s = Sub(q, k)
  [value] y = MatMul(s, wv)
  [head] z = MatMul(k, wh)
}
"""
MATRICES = {
    "wq": floats(8, 8),
    "wk": floats(8, 8, seed=1),
    "c": floats(8),
    "wv": floats(8, 8, seed=2),
    "wh": floats(8, 5, seed=4),
}
LINEAR = ["query", "key", "value", "head"]


def pictures() -> Graph:
    return read(PICTURES, KERNELS)


def sentences() -> Graph:
    return read(SENTENCES, MATRICES)


def values(graph: Graph, feeds: Mapping[str, Array], *, optimize: bool = False) -> dict[str, Array]:
    """All inner tensors and outputs."""
    names = [n for n, t in graph.tensors().items() if t.inputs and not is_constant(t)]
    model = to_model(graph, extra_outputs=names).SerializeToString()
    return {**feeds, **Session(model, threads=1, optimize=optimize).run(feeds, names)}


def static(graph: Graph) -> Plan:
    """The plan in which everything that can runs on static integers."""
    placement = place(graph, CPU, Recipe())
    seen = values(graph, normal(graph))
    tensors = {}
    for name, source in placement.tensors.items():
        low, high = float(min(seen[source].min(), 0)), float(seen[source].max())
        scale, zero_point = parameters(low, high, UINT8)
        tensors[name] = TensorPlan(
            format="uint8", scale=float(scale), zero_point=int(zero_point), low=low, high=high, reason="Seen."
        )
    return Plan(recipe=Recipe(), nodes=placement.nodes, tensors=tensors)


def linear(graph: Graph, treatment: Treatment) -> Plan:
    return Plan(recipe=Recipe(), nodes=place_linear(graph, Recipe(), treatment).nodes)


def quantized(graph: Graph, plan: Plan) -> Graph:
    return run((*QUANTIZE, *FOLD), graph, Context(CPU, plan), frozenset({Fact.NAMED, Fact.NORMAL})).graph


TIMES = {"QuantizeLinear": 20.0, "DequantizeLinear": 30.0, "DynamicQuantizeLinear": 40.0, "QLinearConv": 3.0}
LAYOUTS = {"Conv": ("ReorderInput", 1.0, "ReorderOutput", 2.0), "QLinearConv": ("Transpose", 4.0, "Transpose", 8.0)}


@dataclass
class Fake:
    """A timer that remembers the samples, and says what they take: 10 microseconds where `TIMES` knows nothing else."""

    samples: list[tuple[str, Sample]] = field(default_factory=list)
    calls: int = 0

    def __call__(self, samples: Mapping[str, Sequence[Sample]], watch: Stopwatch) -> dict[str, list[list[Kernel]]]:
        self.calls += 1
        self.samples += [(form, one) for form, some in samples.items() for one in some]
        return {form: [self.kernels(one) for one in some] for form, some in samples.items()}

    def kernels(self, sample: Sample) -> list[Kernel]:
        nodes = sample.part.nodes
        ran = [Kernel(node.name, node.op, CPU_PROVIDER, TIMES.get(node.op, 10.0)) for node in nodes]
        if nodes[0].op in LAYOUTS:
            before, enter, after, leave = LAYOUTS[nodes[0].op]
            ran = [Kernel("in", before, CPU_PROVIDER, enter), *ran, Kernel("out", after, CPU_PROVIDER, leave)]
        return ran

    def ops(self, form: str) -> list[list[str]]:
        return [[node.op for node in sample.part.nodes] for name, sample in self.samples if name == form]


def measure(
    graph: Graph, plans: Mapping[str, Plan], names: Sequence[str], fake: Fake, memo: Memo | None = None
) -> Costs:
    watch = Stopwatch(timer=fake, memo=memo or Memo(None))
    return measure_costs(graph, plans, names, normal(graph), CPU, watch)


@pytest.fixture
def graph() -> Graph:
    return pictures()


@pytest.fixture
def plans(graph: Graph) -> dict[str, Plan]:
    return {"static": static(graph)}


def test_layers_have_a_time_in_each_form_that_they_can_take(graph: Graph, plans: dict[str, Plan]) -> None:
    fake = Fake()
    costs = measure(graph, plans | {"dynamic": linear(graph, Treatment.DYNAMIC)}, LAYERS, fake)
    assert costs.layers == {
        "stem": {"float": 10.0},  # few channels: the plan leaves it in float
        "one": {"float": 20.0, "static": 3.0},  # with the Relu that belongs to it
        "two": {"float": 20.0, "static": 3.0},
        "three": {"float": 10.0, "static": 3.0},
    }
    assert ["Conv", "Relu"] in fake.ops("float")
    assert fake.ops("static") == [["QLinearConv"]] * 2, "one and two are alike; nothing but the kernel is timed"


def test_equal_layers_are_timed_once(graph: Graph, plans: dict[str, Plan]) -> None:
    fake = Fake()
    measure(graph, plans, ["one", "two"], fake)
    assert fake.ops("float") == [["Conv", "Relu"]]
    assert fake.calls == 1


def test_a_second_run_finds_all_in_the_memo(graph: Graph, plans: dict[str, Plan]) -> None:
    memo, first, second = Memo(None), Fake(), Fake()
    before = measure(graph, plans, LAYERS, first, memo)
    after = measure(graph, plans, LAYERS, second, memo)
    assert before == after
    assert (first.calls, second.calls) == (1, 0)


def test_boundaries_are_told_with_what_changes_the_layout(graph: Graph, plans: dict[str, Plan]) -> None:
    costs = measure(graph, plans, [*LAYERS, "add"], Fake())
    assert costs.boundary["a"] == Boundary(quantize=20 + 2 + 4, dequantize=30 + 0 + 1), "the stem has no static form"
    assert costs.boundary["r1"] == Boundary(quantize=20 + 2 + 4, dequantize=30 + 8 + 1)
    assert costs.boundary["r3"] == Boundary(quantize=20, dequantize=30), "no layer makes it, none reads it"
    assert costs.boundary["d"] == Boundary(quantize=20 + 2, dequantize=30 + 8), "no layer reads it"
    assert set(costs.boundary) == set(plans["static"].tensors)


def test_operators_between_layers_can_be_measured_too(graph: Graph, plans: dict[str, Plan]) -> None:
    fake = Fake()
    costs = measure(graph, plans, ["add", "act3", "pool"], fake)
    assert costs.layers == {
        "add": {"float": 10.0, "static": 10.0},
        "act3": {"float": 10.0, "static": 0.0},  # the addition saturates where the Relu would cut
        "pool": {"float": 10.0, "static": 10.0},
    }
    assert ["QLinearAdd"] in fake.ops("static")
    assert ["Transpose", "MaxPool", "Transpose"] in fake.ops("static"), "between convolutions the channels are last"


def test_linear_layers_take_all_forms() -> None:
    graph, fake = sentences(), Fake()
    forms = {"static": static(graph)}
    forms |= {name: linear(graph, Treatment(name)) for name in ("dynamic", "weight")}
    costs = measure(graph, forms, LINEAR, fake)
    assert list(costs.layers) == LINEAR
    assert all(set(found) == {"float", "static", "dynamic", "weight"} for found in costs.layers.values())
    assert set(map(tuple, fake.ops("static"))) == {("MatMulIntegerToFloat",)}
    assert set(map(tuple, fake.ops("weight"))) == {("MatMulNBits",)}
    assert set(map(tuple, fake.ops("dynamic"))) == {
        ("MatMulIntegerToFloat",),
        ("DynamicQuantizeMatMul",),
        ("DynamicQuantizeLinear",),
    }
    assert costs.layers["key"] == {"float": 20.0, "static": 10.0, "dynamic": 10.0, "weight": 10.0}, "with its bias"
    dynamic = {name: boundary.dynamic for name, boundary in costs.boundary.items()}
    assert dynamic == {"x": 40.0, "s": 0.0, "k": 0.0}, "only x is read by two layers, which share its integers"


def test_float_needs_no_plan_and_takes_none(graph: Graph, plans: dict[str, Plan]) -> None:
    assert measure(graph, {}, ["one"], Fake()).layers == {"one": {"float": 20.0}}
    assert measure(graph, {"float": plans["static"]}, ["one"], Fake()).layers == {"one": {"float": 20.0}}
    assert measure(graph, {}, [], Fake()) == Costs(layers={}, boundary={})


def test_a_form_that_leaves_a_layer_as_it_is_is_absent(graph: Graph, plans: dict[str, Plan]) -> None:
    plan = plans["static"]
    nodes = {**plan.nodes, "three": plan.nodes["three"].model_copy(update={"treatment": Treatment.FLOAT})}
    costs = measure(graph, {"static": plan.model_copy(update={"nodes": nodes})}, LAYERS, Fake())
    assert {name for name, forms in costs.layers.items() if "static" in forms} == {"one", "two"}


def test_the_graph_is_not_touched(graph: Graph, plans: dict[str, Plan]) -> None:
    graph.tensors()["r1"].shape = None  # which the runtime would know
    before, names = serialize(graph), dict(graph.names)
    measure(graph, plans, [*LAYERS, "pool"], Fake())
    assert serialize(graph) == before
    assert dict(graph.names) == names
    assert graph.tensors()["r1"].shape is None


@pytest.mark.parametrize("make", [pictures, sentences])
def test_parts_compute_what_the_whole_does(make: type) -> None:
    # Arrange
    graph: Graph = make()
    forms = {"static": static(graph), "dynamic": linear(graph, Treatment.DYNAMIC)}
    forms["weight"] = linear(graph, Treatment.WEIGHT)
    whole = {form: values(quantized(graph, plan), normal(graph)) for form, plan in forms.items()}
    whole["float"] = values(graph, normal(graph))
    names = LAYERS if make is pictures else LINEAR
    fake = Fake()
    # Act
    measure(graph, forms, names, fake)
    # Assert
    compared = 0
    for form, sample in fake.samples:
        for output, value in Session(serialize(sample.part), threads=1, optimize=False).run(sample.feeds).items():
            if form in whole and output in whole[form]:
                compared += 1
                np.testing.assert_allclose(value, whole[form][output], rtol=1e-4, atol=1e-4)
    assert compared >= len(names)


def test_parts_alike_share_the_values_of_the_first(graph: Graph) -> None:
    cuts = {"one": (["a"], ["r1"]), "two": (["r1"], ["r2"]), "three": (["p"], ["d"])}
    found = Sampler(normal(graph), 1).take(graph, cuts)
    assert found["one"] is found["two"] is not found["three"]
    assert Sampler(normal(graph), 1).take(graph, {}) == {}


def test_values_are_those_of_the_feeds(graph: Graph) -> None:
    fake = Fake()
    feeds = normal(graph, seed=5, batch=3)
    measure_costs(graph, {}, ["three"], feeds, CPU, Stopwatch(timer=fake))
    ((_, sample),) = fake.samples
    np.testing.assert_allclose(sample.feeds["p"], values(graph, feeds)["p"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [pictures, sentences])
def test_the_real_timer_gives_times(make: type) -> None:
    graph: Graph = make()
    forms = {"static": static(graph), "dynamic": linear(graph, Treatment.DYNAMIC)}
    names = [*LAYERS, "add", "pool"] if make is pictures else LINEAR
    costs = measure_costs(graph, forms, names, normal(graph), CPU, Stopwatch(seconds=0.0))
    assert all(time >= 0 for forms in costs.layers.values() for time in forms.values())
    assert sum(time for forms in costs.layers.values() for time in forms.values()) > 0
    assert Costs.model_validate_json(costs.model_dump_json()) == costs
