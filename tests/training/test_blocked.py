"""Weights in blocks: untouched they are as rounding makes them, trained they are what `MatMulNBits` computes with."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest

from onnxq.build import GIVEN
from onnxq.graph import Graph, weight
from onnxq.lookups import stored_lookups
from onnxq.nbits import blocked_layers
from onnxq.passes import QUANTIZE
from onnxq.pipeline import Context, run
from onnxq.plan import NodePlan, Plan, Treatment
from onnxq.recipe import Recipe, Weight, make_recipe
from onnxq.shelf import Shelf
from onnxq.targets import CPU as TARGET
from onnxq.weights import blocked_weight, shelf_name
from tests.onnx_text import Array, floats, normal, ops, read, serialize

torch = pytest.importorskip("torch", reason="training needs PyTorch")

from onnxq.training.blocked import Blueprint, put_together, take_apart  # noqa: E402
from onnxq.training.simulation import Simulation  # noqa: E402
from tests.training.classroom import executed, jolt, planned, simulated  # noqa: E402

W = {"w": floats(80, 24), "wt": floats(24, 80), "b": floats(24), "t": floats(50, 96), "o": floats(24, 24, seed=5)}
FORMS = {
    "MatMul": "[fc] y = MatMul(x, w)",
    "MatMul with bias": "[fc] m = MatMul(x, w) y = Add(m, b)",
    "Gemm with bias": "[fc] y = Gemm(x, w, b)",
    "Gemm, transposed weight": "[fc] y = Gemm<transB=1>(x, wt, b)",
    "two layers": "[fc] m = MatMul(x, w) r = Relu(m) [two] y = MatMul(r, o)",
}
TIED = "(int64[2,3] ids) => (float[a,c] y) { [emb] e = Gather(t, ids) r = Reshape(e, shape) [head] y = %s }"
WAYS = {"the same": "Gemm<transB=1>(r, t)", "an equal one": "Gemm<transB=1>(r, u)", "turned": "MatMul(r, v)"}
Bits = Literal[4, 8]


def model(form: str, opset: int = 17) -> Graph:
    return read(f"(float[5,80] x) => (float[a,c] y) {{ {FORMS[form]} }}", W, opset)


def plan_of(graph: Graph, bits: Bits, level: Literal[0, 4] = 0, **wishes: Any) -> Plan:
    """Every layer and lookup in blocks; at level 0 the kernel does not round what it reads."""
    recipe = Recipe(mode="weight-int4" if bits == 4 else "weight-int8", weight=Weight(**wishes))
    nodes = {
        node.name: NodePlan(op=node.op, treatment=Treatment.WEIGHT, reason="By hand.", bits=bits, accuracy_level=level)
        for node in graph.nodes
        if node.op in ("MatMul", "Gemm", "Gather")
    }
    return Plan(recipe=recipe, nodes={**nodes, **stored_lookups(graph, nodes, recipe)})


def finished(exact: Graph, plan: Plan, found: Blueprint, student: Simulation) -> tuple[Graph, Shelf]:
    """The quantized graph with what was trained, and the shelf that it reads."""
    shelf = Shelf()
    graph = run(QUANTIZE, exact, Context(TARGET, plan, shelf), GIVEN).graph
    put_together(found, student, shelf, graph)
    return graph, shelf


def assert_close(expected: Array, found: Array, share: float = 1e-5) -> None:
    assert np.unique(expected).size > 4
    np.testing.assert_allclose(found, expected, rtol=0, atol=share * float(np.abs(expected).max()))


KINDS: dict[str, tuple[Bits, dict[str, Any]]] = {
    "4 bits": (4, {"block_size": 32}),
    "4 bits, symmetric": (4, {"block_size": 16, "symmetric": True}),
    "8 bits": (8, {"block_size": 64}),
    "8 bits, symmetric": (8, {"block_size": "channel", "symmetric": True}),
}
"""80 inputs fill no whole number of blocks but those of 16."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_untouched_weights_are_rounded_as_without_training(form: str, kind: str) -> None:
    bits, wish = KINDS[kind]
    exact = model(form)
    plan = plan_of(exact, bits, **wish)
    student, found = take_apart(exact, plan, Shelf())
    _, shelf = finished(exact, plan, found, student)
    untrained = run(QUANTIZE, exact, Context(TARGET, plan, Shelf()), GIVEN).graph
    for layer in blocked_layers(exact, plan.nodes):
        kept, expected = shelf.get(shelf_name(layer, bits)), blocked_weight(layer, plan.recipe.weight, bits)
        assert kept is not None
        np.testing.assert_array_equal(kept.integers(), expected.integers())
        np.testing.assert_array_equal(kept.scale, expected.scale)
        assert (kept.zero_point is None) == (expected.zero_point is None) == bool(wish.get("symmetric"))
        if expected.zero_point is not None and kept.zero_point is not None:
            np.testing.assert_array_equal(kept.zero_point, expected.zero_point)
    feeds = normal(exact)
    assert_close(executed(untrained, feeds)["y"], simulated(student, feeds)["y"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_the_kernel_computes_what_was_trained(form: str, kind: str) -> None:
    bits, wish = KINDS[kind]
    exact = model(form)
    plan, feeds = plan_of(exact, bits, **wish), normal(exact)
    student, found = take_apart(exact, plan, Shelf())
    before = simulated(student, feeds)["y"]
    jolt(student, 0.05)
    graph, _ = finished(exact, plan, found, student)
    assert set(ops(graph)) <= {"MatMulNBits", "Relu"}
    expected = simulated(student, feeds)["y"]
    assert np.abs(expected - before).max() > 0.01 * np.abs(before).max()
    assert_close(expected, executed(graph, feeds)["y"])


def test_biases_are_trained_and_come_back() -> None:
    exact = model("Gemm with bias")
    plan = plan_of(exact, 4)
    student, found = take_apart(exact, plan, Shelf())
    assert list(found.biases) == ["b"]
    with torch.no_grad():
        student.constants["b"].add_(1.0)
    graph, _ = finished(exact, plan, found, student)
    np.testing.assert_array_equal(weight(graph.tensors()["b"]), W["b"] + 1)


def test_the_format_qdq_holds_what_was_trained() -> None:
    exact = model("two layers", 21)
    plan = plan_of(exact, 4, block_size=16)
    plan = plan.model_copy(update={"recipe": plan.recipe.model_copy(update={"format": "qdq"})})
    student, found = take_apart(exact, plan, Shelf())
    jolt(student, 0.05)
    graph, _ = finished(exact, plan, found, student)
    assert ops(graph).count("DequantizeLinear") == 2
    feeds = normal(exact)
    assert_close(simulated(student, feeds)["y"], executed(graph, feeds)["y"])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("way", WAYS)
def test_a_table_that_is_looked_up_in_the_blocks_of_a_layer_is_trained_with_it(way: str, bits: Bits) -> None:
    twins = {"the same": {}, "an equal one": {"u": W["t"]}, "turned": {"v": np.ascontiguousarray(W["t"].T)}}
    exact = read(TIED % WAYS[way], {"t": W["t"], "shape": np.array([-1, 96]), **twins[way]})
    plan = plan_of(exact, bits, embedding_bits=4)
    assert plan.nodes["emb"].shares == "head"
    student, found = take_apart(exact, plan, Shelf())
    jolt(student, 0.05)
    graph, _ = finished(exact, plan, found, student)
    assert [op for op in ops(graph) if op != "Reshape"] == ["GatherBlockQuantized", "MatMulNBits"]
    feeds = {"ids": np.arange(6).reshape(2, 3)}
    assert_close(simulated(student, feeds)["y"], executed(graph, feeds)["y"])


def test_layers_of_one_weight_are_trained_as_one() -> None:
    exact = read("(float[5,24] x) => (float[a,c] y) { [p] a = MatMul(x, o) r = Relu(a) [q] y = MatMul(r, o) }", W)
    plan = plan_of(exact, 4)
    student, found = take_apart(exact, plan, Shelf())
    assert list(found.layers) == list(student.weights) == ["o"]
    jolt(student, 0.05)
    graph, _ = finished(exact, plan, found, student)
    feeds = normal(exact)
    assert_close(simulated(student, feeds)["y"], executed(graph, feeds)["y"])


def test_what_a_plan_leaves_in_float_keeps_its_bits() -> None:
    exact = model("two layers")
    plan = plan_of(exact, 4)
    kept = plan.nodes["two"].model_copy(update={"treatment": Treatment.FLOAT})
    plan = plan.model_copy(update={"nodes": {**plan.nodes, "two": kept}})
    student, found = take_apart(exact, plan, Shelf())
    assert list(student.weights) == ["w"]
    assert sum(values.numel() for values in student.parameters()) < W["w"].size * 1.2
    jolt(student, 0.05)
    graph, _ = finished(exact, plan, found, student)
    np.testing.assert_array_equal(weight(graph.tensors()["o"]), W["o"])


def test_the_float_graph_is_not_touched() -> None:
    exact = model("Gemm, transposed weight")
    before = serialize(exact)
    plan = plan_of(exact, 4)
    student, found = take_apart(exact, plan, Shelf())
    jolt(student, 0.1)
    finished(exact, plan, found, student)
    assert serialize(exact) == before


def test_a_language_model_runs_as_it_was_simulated() -> None:
    """At accuracy level 4 the kernel rounds what it reads to 8 bits in blocks: 5.7e-5 of noise over the whole model."""
    tokens = {"input_ids": np.random.default_rng(0).integers(0, 1024, (8, 24))}
    recipe = make_recipe({"mode": "weight-int4", "weight": {"method": "rtn"}})
    build, exact, data = planned("decoder", recipe, tokens)
    assert build.plan is not None
    student, found = take_apart(exact, build.plan, Shelf())
    jolt(student, 0.01)
    put_together(found, student, build.shelf, build.graph)
    feeds = data.sample(0)
    expected, made = simulated(student, feeds)["logits"], executed(build.graph, feeds)["logits"]
    noise = np.square(made - expected).mean() / expected.var()
    assert noise < 3e-4
