"""Weights of linear layers in the bodies of If, Loop and Scan."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.bodies import outermost
from onnxq.graph import Graph, from_model, to_model
from onnxq.inner import inner_plans
from onnxq.modelfile import load
from onnxq.passes.fold_constants import FoldConstants
from onnxq.passes.quantize_bodies import QuantizeBodies
from onnxq.plan import Plan, Treatment
from onnxq.recipe import Recipe
from onnxq.runtime import Session
from onnxq.tensors import nested
from tests.onnx_text import Array, apply, changes, execute, floats, ops, serialize, sqnr

WIDTH = 64
W = {"w": floats(WIDTH, WIDTH), "v": floats(WIDTH, WIDTH, seed=1), "b": floats(WIDTH), "row": floats(1, WIDTH)}
LEAST = {4: 15.0, 8: 36.0}
"""dB that a layer or two keep."""


def branch(name: str, nodes: str, own: Mapping[str, Array] | None = None, kind: str = "float") -> str:
    """A body of If without weights; `merged` puts them in."""
    return f"{name} = {name} () => ({kind}[a,b] y_{name}) {{ {nodes} }}"


def merged(
    then: str,
    other: str,
    weights: Mapping[str, Any],
    inside: Mapping[str, Mapping[str, Any]] | None = None,
    kind: str = "float",
    before: str = "",
) -> Graph:
    """`y = If(c) { then } { other }` of x [2, 64]; weights around the bodies, and inside of each."""
    text = f"""<ir_version: 9, opset_import: ["" : 17]>
        g ({kind}[2,{WIDTH}] x, bool c) => ({kind}[a,b] y) {{
            {before} [choice] y = If(c) <{branch("then_branch", then, kind=kind)},
                                         {branch("else_branch", other, kind=kind)}> }}"""  # fmt: skip
    model = onnx.parser.parse_model(text)
    dtype = np.float16 if kind == "float16" else np.float32
    model.graph.initializer.extend(tensor(name, values, dtype) for name, values in weights.items())
    for stored in model.graph.node[-1].attribute:
        held = (inside or {}).get(stored.name, {})
        stored.g.initializer.extend(tensor(name, values, dtype) for name, values in held.items())
    return from_model(model)


def tensor(name: str, values: Array, dtype: Any) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(values.astype(dtype) if values.dtype.kind == "f" else values, name)


def quantized(graph: Graph, bits: Any = 8, **recipe: Any) -> tuple[Graph, Plan]:
    wishes = Recipe.model_validate(recipe)
    plan = Plan(recipe=wishes, nodes=inner_plans(graph, wishes, bits))
    outcome = apply(QuantizeBodies(), graph, plan)
    again = apply(QuantizeBodies(), outcome.graph, plan)
    assert serialize(again.graph) == serialize(outcome.graph)
    return outcome.graph, plan


def inner_ops(graph: Graph) -> list[list[str]]:
    """The operators of each body, in no order."""
    return [[node.op_type for node in body.node] for body in nested(outermost(graph))]


def held(graph: Graph) -> list[str]:
    """Weights that bodies hold."""
    return [
        item.name for body in nested(outermost(graph)) if isinstance(body, onnx.GraphProto) for item in body.initializer
    ]


def assert_close(before: Graph, after: Graph, bits: int = 8) -> None:
    """Either body computes what it did, and the model it was made of was left alone."""
    dtype = before.inputs[0].dtype or np.dtype(np.float32)
    for flag in (True, False):
        feeds = {"x": floats(2, WIDTH).astype(dtype), "c": np.array(flag)}
        want, have = (execute(graph, feeds, optimize=True)[0] for graph in (before, after))
        assert have.dtype == want.dtype
        assert sqnr(want.astype(np.float32), have.astype(np.float32)) > LEAST[bits]


BOTH = "y_then_branch = MatMul(x, w)", "a = MatMul(x, w) y_else_branch = MatMul(a, v)"
CASES: dict[str, tuple[tuple[str, str], dict[str, Any], dict[str, dict[str, Any]]]] = {
    "captured": (BOTH, {"w": W["w"], "v": W["v"]}, {}),
    "held by the bodies": (BOTH, {}, {"then_branch": {"w": W["w"]}, "else_branch": {"w": W["w"], "v": W["v"]}}),
    "held and captured": (BOTH, {"v": W["v"]}, {"then_branch": {"w": W["w"]}, "else_branch": {"w": W["w"]}}),
    "with a bias": (
        ("m = MatMul(x, w) y_then_branch = Add(m, b)", "y_else_branch = Gemm<transB=1>(x, v, b)"),
        {"w": W["w"], "v": W["v"]},
        {"then_branch": {"b": W["b"]}, "else_branch": {"b": W["b"]}},
    ),
    "with a bias of two axes": (("y_then_branch = Gemm(x, w, row)", "y_else_branch = Gemm(x, v)"), W, {}),
    "behind a Transpose": (
        (
            "t = Transpose<perm=[1,0]>(w) y_then_branch = MatMul(x, t)",
            "u = Transpose<perm=[1,0]>(w) y_else_branch = MatMul(x, u)",
        ),
        {"w": W["w"]},
        {},
    ),
}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("case", CASES)
def test_layers_in_both_branches(case: str, bits: int) -> None:
    (then, other), weights, inside = CASES[case]
    before = merged(then, other, weights, inside)
    untouched = serialize(before)
    after, plan = quantized(before, bits)
    assert serialize(before) == untouched
    assert {node.treatment for node in plan.nodes.values()} == {Treatment.WEIGHT}
    assert not {"MatMul", "Gemm", "Transpose"} & {op for found in inner_ops(after) for op in found}
    assert not [name for name in held(after) if name in ("w", "v")]
    assert {t.name for t in after.weights()} & {"w", "v"} == set()
    assert after.interface() == before.interface()
    assert_close(before, after, bits)


@pytest.mark.parametrize("case", ["captured", "held by the bodies", "behind a Transpose"])
def test_a_weight_of_both_branches_is_stored_once(case: str) -> None:
    (then, other), weights, inside = CASES[case]
    after, _ = quantized(merged(then, other, weights, inside))
    stored = [t.name for t in after.weights() if t.dtype == np.uint8 and "quantized" in t.name]
    assert len(stored) == (1 if "Transpose" in case else 2)


def test_equal_names_of_different_weights_are_kept_apart() -> None:
    inside = {"then_branch": {"w": W["w"]}, "else_branch": {"w": W["v"]}}
    before = merged("y_then_branch = MatMul(x, w)", "y_else_branch = MatMul(x, w)", {}, inside)
    after, _ = quantized(before)
    assert len([t for t in after.weights() if "quantized" in t.name]) == 2
    assert_close(before, after)


def test_half_precision() -> None:
    before = merged(*BOTH, {"w": W["w"] / 8, "v": W["v"] / 8}, kind="float16")
    after, _ = quantized(before)
    assert {t.dtype for t in after.weights() if "scale" in t.name} == {np.dtype(np.float16)}
    assert_close(before, after)


def test_a_weight_in_a_constant_node_of_the_body() -> None:
    numbers = ",".join(f"{value:.6f}" for value in W["w"].ravel())
    text = f"k = Constant<value = float[{WIDTH},{WIDTH}] {{{numbers}}}>() y_then_branch = MatMul(x, k)"
    before = merged(text, "y_else_branch = Neg(x)", {})
    after, _ = quantized(before)
    assert sorted(inner_ops(after)) == [["MatMulNBits"], ["Neg"]]
    assert_close(before, after)


def test_a_body_within_a_body() -> None:
    inner = "() => (float[p,q] i) { i = MatMul(x, w) }"
    other = "() => (float[p,q] j) { j = Neg(x) }"
    then = f"y_then_branch = If(c) <then_branch = deep {inner}, else_branch = deeper {other}>"
    inside = {"then_branch": {"w": W["w"]}, "else_branch": {"w": W["w"]}}
    before = merged(then, "y_else_branch = MatMul(x, w)", {}, inside)
    after, _ = quantized(before)
    assert held(after) == []
    assert_close(before, after)


def test_what_the_graph_around_it_still_reads_stays() -> None:
    then, other = "y_then_branch = MatMul(z, w)", "y_else_branch = Neg(z)"
    before = merged(then, other, {"w": W["w"]}, before="[out] z = MatMul(x, w)")
    after, _ = quantized(before)
    assert ops(after) == ["MatMul", "If"]
    assert {t.name for t in after.weights()} >= {"w"}
    assert_close(before, after)


def alike() -> Graph:
    """Two of three layers have one name."""
    then = "[one] a = MatMul(x, w) [fc] y_then_branch = MatMul(a, w)"
    return merged(then, "[fc] y_else_branch = MatMul(x, w)", {"w": W["w"]})


def test_names_in_the_plan() -> None:
    """A name that one layer has is its name; others come with what is around them."""
    assert list(inner_plans(alike(), Recipe(), 8)) == ["one", "choice/then_branch/fc", "choice/else_branch/fc"]


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [("one", 1), ("fc", 2), ("choice/then_branch/*", 1), ("MatMul", 3), ("choice/else_branch/fc", 1)],
)
def test_layers_that_the_recipe_keeps_in_float(pattern: str, kept: int) -> None:
    before = alike()
    after, _ = quantized(before, nodes={pattern: {"quantize": False}})
    assert sum(found.count("MatMul") for found in inner_ops(after)) == kept
    assert_close(before, after)


LEFT: dict[str, tuple[str, dict[str, Any]]] = {
    "two activations": ("y_then_branch = MatMul(x, x)", {}),
    "a weight of three axes": ("m = MatMul(x, k) y_then_branch = Squeeze(m)", {"k": floats(1, WIDTH, WIDTH)}),
    "a weight first": ("y_then_branch = MatMul(k, x)", {"k": floats(3, 2)}),
    "a Gemm with alpha": ("y_then_branch = Gemm<alpha=2.0>(x, w)", {"w": W["w"]}),
}


@pytest.mark.parametrize("case", LEFT)
def test_leaves_alone(case: str) -> None:
    body, weights = LEFT[case]
    before = merged(body, "y_else_branch = Neg(x)", weights)
    after, plan = quantized(before)
    assert serialize(after) == serialize(before)
    (decision,) = plan.nodes.values()
    assert decision.treatment is Treatment.FLOAT
    assert decision.reason


def test_says_that_it_rounds_without_data() -> None:
    before = merged("[fc] y_then_branch = MatMul(x, w)", "y_else_branch = Neg(x)", {"w": W["w"]})
    plan = Plan(recipe=Recipe(), nodes=inner_plans(before, Recipe(), 8))
    (change,) = changes(apply(QuantizeBodies(), before, plan))
    assert (change.node, change.op, change.done) == ("fc", "MatMul", "MatMulNBits")
    assert "without data" in change.reason


def test_a_scan() -> None:
    """The body of a Scan reads a weight around it for each row."""
    body = f"step (float[2,{WIDTH}] r) => (float[2,{WIDTH}] o) {{ o = MatMul(r, w) }}"
    text = f"""<ir_version: 9, opset_import: ["" : 17]> g (float[5,2,{WIDTH}] x) => (float[5,a,b] y) {{
        y = Scan<num_scan_inputs=1, body = {body}>(x) }}"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(tensor("w", W["w"], np.float32))
    before = from_model(model)
    after, _ = quantized(before)
    feeds = {"x": floats(5, 2, WIDTH)}
    assert sqnr(execute(before, feeds)[0], execute(after, feeds)[0]) > LEAST[8]


@pytest.mark.parametrize("mode", ["weight-int8", "weight-int4"])
@pytest.mark.parametrize("place", ["captured", "held by the bodies"])
def test_a_whole_model(place: str, mode: str, tmp_path: Path) -> None:
    (then, other), weights, inside = CASES[place]
    source, target = tmp_path / "merged.onnx", tmp_path / "out.onnx"
    graph = merged(then, other, weights, inside)
    onnx.save(to_model(graph), source)
    result = onnxq.optimize(source, target, recipe=Recipe(mode=mode), options=onnxq.Options(seconds=0.0))  # type: ignore[arg-type]
    assert result.status == "optimized"
    assert target.stat().st_size < source.stat().st_size * (0.35 if mode == "weight-int8" else 0.22)
    assert load(target).interface() == load(source).interface()
    assert held(load(target)) == []
    made = onnx.load(target)
    assert {entry.domain for entry in made.opset_import} == {"", "com.microsoft"}
    Session(target, threads=1).run({"x": floats(2, WIDTH), "c": np.array(False)})


def test_a_plan_can_be_handed_back(tmp_path: Path) -> None:
    source = tmp_path / "merged.onnx"
    onnx.save(to_model(merged(*CASES["captured"][0], CASES["captured"][1])), source)
    options, made = onnxq.Options(seconds=0.0), []
    result = onnxq.optimize(source, tmp_path / "1.onnx", recipe=Recipe(mode="weight-int4"), options=options)
    assert result.plan is not None
    plan = Plan.model_validate(json.loads(result.plan.to_json()))
    onnxq.optimize(source, tmp_path / "2.onnx", plan=plan, options=options)
    made = [(tmp_path / f"{number}.onnx").read_bytes() for number in (1, 2)]
    assert made[0] == made[1]


def test_captured_results_of_constants_are_found() -> None:
    """A Transpose around the body keeps its name for it, so that it is not folded."""
    then, other = "y_then_branch = MatMul(x, t)", "y_else_branch = Neg(x)"
    before = merged(then, other, {"w": W["w"]}, before="t = Transpose(w)")
    after, _ = quantized(apply(FoldConstants(), before).graph)
    assert ops(after) == ["If"]
    assert_close(before, after)
