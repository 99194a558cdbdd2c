"""Static recipes of few bits: integers of 2 to 7 bits in those of 8, cut off by Clip, and weights that fit them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from onnxq.build import GIVEN
from onnxq.graph import Graph, Node, to_model, weight
from onnxq.layers import weight_axis
from onnxq.numerics.affine import fake_quantize, parameters, quantize_weight
from onnxq.numerics.formats import FORMATS
from onnxq.passes import FOLD
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.pipeline import Context, run
from onnxq.plan import NodePlan, Plan, TensorPlan, Treatment
from onnxq.recipe import Recipe, make_recipe
from onnxq.runtime import Session
from onnxq.spec import Fact
from onnxq.targets import CPU
from tests.onnx_text import Array, apply, execute, floats, lines, listing, normal, ops, read, sqnr

if TYPE_CHECKING:
    from tests.conftest import Command

MODELS = Path(__file__).parents[2] / "models"
FEW = (2, 3, 4, 5, 6, 7)
W = {"w": floats(6, 4, 3, 3), "b": floats(6), "m": floats(8, 6), "n": floats(6, 5, seed=4), "k": floats(5)}
CONV = "(float[batch,4,6,6] x) => (float[a,b,c,d] y) { [conv] y = Conv(x, w, b) }"
LINEAR = "(float[batch,8] x) => (float[a,b] y) { [one] p = MatMul(x, m) [relu] r = Relu(p) [two] y = Gemm(r, n, k) }"


def few(bits: int, activation_bits: int | None = None, format: str = "uint8", **more: Any) -> Recipe:
    activation = {"bits": activation_bits or bits, "format": format, "symmetric": format == "int8"}
    return make_recipe({"mode": "static-int8", "weight": {"bits": bits, **more}, "activation": activation})


def quantized(text: str, recipe: Recipe, tensors: str) -> tuple[Graph, Graph]:
    """A graph with Q/DQ on the ranges of normal inputs, and without."""
    before = read(text, {name: values for name, values in W.items() if f" {name}" in text.replace("(", " ")})
    seen = normal(before, batch=8)
    for name in tensors.split():
        if name not in seen:
            seen |= {name: outputs(before, normal(before, batch=8), name)}
    return apply(
        InsertQdq(), before, plan_of(before, recipe, {name: seen[name] for name in tensors.split()})
    ).graph, before


def outputs(graph: Graph, feeds: dict[str, Array], name: str) -> Array:
    return Session(to_model(graph, extra_outputs=[name]).SerializeToString(), threads=1).run(feeds, [name])[name]


def plan_of(graph: Graph, recipe: Recipe, seen: dict[str, Array]) -> Plan:
    grid, tensors = recipe.activation.grid, {}
    for name, values in seen.items():
        low, high = float(values.min()), float(values.max())
        scale, zero = parameters(low, high, grid, symmetric=recipe.activation.symmetric)
        tensors[name] = TensorPlan(
            format=grid.name, scale=float(scale), zero_point=int(zero), low=low, high=high, reason="As seen."
        )
    nodes = {
        node.name: NodePlan(op=node.op, treatment=Treatment.STATIC, reason="By hand.")
        for node in graph.nodes
        if node.op in ("Conv", "MatMul", "Gemm")
    }
    return Plan(recipe=recipe, nodes=nodes, tensors=tensors)


def weights_of(graph: Graph) -> list[Node]:
    """DequantizeLinear of weights."""
    return [
        n for n in graph.nodes if n.op == "DequantizeLinear" and not n.inputs[0].inputs and n.inputs[0].dtype == np.int8
    ]


# as Q/DQ


@pytest.mark.parametrize("format", ["uint8", "int8"])
@pytest.mark.parametrize("bits", FEW)
def test_activations_of_few_bits_are_cut_off(bits: int, format: str) -> None:
    graph, _ = quantized(CONV, few(bits, format=format), "x y")
    form = FORMATS[f"{format.rstrip('8')}{bits}"]
    assert listing(graph) == lines(
        f"""
        b_dequantized = DequantizeLinear<axis=0>(b_quantized, b_scale, b_zero_point)
        w_dequantized = DequantizeLinear<axis=0>(w_quantized, w_scale, w_zero_point)
        x_quantized_wide = QuantizeLinear(x, x_scale, x_zero_point)
        x_quantized = Clip(x_quantized_wide, {form.name}_lowest, {form.name}_highest)
        x_dequantized = DequantizeLinear(x_quantized, x_scale, x_zero_point)
        y_unquantized = Conv(x_dequantized, w_dequantized, b_dequantized)
        y_quantized_wide = QuantizeLinear(y_unquantized, y_scale, y_zero_point)
        y_quantized = Clip(y_quantized_wide, {form.name}_lowest, {form.name}_highest)
        y = DequantizeLinear(y_quantized, y_scale, y_zero_point)
        """
    )
    limits = [weight(graph.tensors()[f"{form.name}_{end}"]) for end in ("lowest", "highest")]
    assert [int(limit) for limit in limits] == [form.qmin, form.qmax]
    assert {limit.dtype.name for limit in limits} == {format}


def test_8_bits_need_no_clip() -> None:
    assert "Clip" not in ops(quantized(CONV, few(4, 8), "x y")[0])
    assert "Clip" in ops(quantized(CONV, few(8, 4), "x y")[0])


@pytest.mark.parametrize("bits", FEW)
def test_a_q_dq_model_returns_so_many_values(bits: int) -> None:
    """As fake quantization has them."""
    graph, before = quantized(CONV, few(8, bits), "x y")
    feeds = normal(before, batch=8)
    y = outputs(graph, feeds, "y_unquantized")
    tensors = graph.tensors()
    scale, zero = weight(tensors["y_scale"]), weight(tensors["y_zero_point"])
    (found,) = execute(graph, feeds)
    np.testing.assert_array_equal(found, fake_quantize(y, scale, zero, FORMATS[f"uint{bits}"]))
    assert 1 << (bits - 1) < np.unique(found).size <= 1 << bits


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", FEW)
def test_weights_lie_in_their_range_and_are_fitted(bits: int, symmetric: bool) -> None:
    """Their squared error is not above that of rounding on the range of minimum and maximum."""
    graph, before = quantized(LINEAR, few(bits, 8, symmetric=symmetric), "x r")
    form = FORMATS[f"int{bits}"]
    found = weights_of(graph)
    assert len(found) == 2
    for node, name in zip(found, ("m", "n"), strict=True):
        values = weight(node.inputs[0])
        allowed = form.narrow if symmetric else form
        assert allowed.qmin <= values.min() < values.max() <= allowed.qmax
        assert values.max() == allowed.qmax or values.min() == allowed.qmin
        layer = next(n for n in before.nodes if n.op in ("MatMul", "Gemm") and n.inputs[1].name == name)
        axis = weight_axis(layer)
        exact = W[name].astype(np.float64)
        plain = quantize_weight(W[name], form, axis=axis, symmetric=symmetric)
        scale, zero = weight(node.inputs[1]), weight(node.inputs[2]).astype(np.int32)
        errors = np.square((values - zero) * scale - exact).sum(0)
        bare = np.square((plain.values - plain.zero_point.astype(np.int32)) * plain.scale - exact).sum(0)
        assert (errors <= bare * (1 + 1e-6)).all()
        if bits < 5:
            assert errors.sum() < 0.99 * bare.sum(), "few steps are better spent on what is common"


def test_8_bits_are_not_fitted() -> None:
    """Not even where one large number of 20 000 leaves coarse steps to all others."""
    values = floats(20_000, 3, seed=12)
    values[0] = 9
    before = read("(float[batch,20000] x) => (float[a,b] y) { [one] y = MatMul(x, big) }", {"big": values})
    form, found = FORMATS["int8"], {}
    for bits in (7, 8):
        plan = plan_of(before, few(bits), {"x": normal(before)["x"]})
        (node,) = weights_of(apply(InsertQdq(), before, plan).graph)
        found[bits] = weight(node.inputs[1])
    plain = quantize_weight(values, form, axis=1).scale
    np.testing.assert_array_equal(found[8], plain)
    assert (found[7] < 1.8 * plain).all(), "those of 7 bits are"


def test_more_bits_are_closer() -> None:
    found = []
    for bits in (*FEW, 8):
        graph, before = quantized(LINEAR, few(bits), "x r")
        feeds = normal(before, batch=8)
        found.append(sqnr(execute(before, feeds)[0], execute(graph, feeds)[0]))
    assert found == sorted(found)
    assert found[-1] - found[0] > 25


# folded


def folded(graph: Graph, recipe: Recipe) -> Graph:
    return run(FOLD, graph, Context(CPU, Plan(recipe=recipe, nodes={}, tensors={})), GIVEN | {Fact.QDQ}).graph


@pytest.mark.parametrize("format", ["uint8", "int8"])
@pytest.mark.parametrize("bits", FEW)
def test_integer_operators_keep_the_clip(bits: int, format: str) -> None:
    recipe = few(bits, format=format)
    graph, before = quantized(CONV, recipe, "x y")
    after = folded(graph, recipe)
    kinds = ops(after)
    assert kinds.count("QLinearConv") == 1
    assert kinds.count("Clip") == 2
    assert kinds.count("QuantizeLinear") == kinds.count("DequantizeLinear") == 1
    step = float(weight(graph.tensors()["y_scale"]))
    for seed in range(3):
        feeds = normal(before, seed, batch=8)
        (expected,) = execute(graph, feeds)
        assert np.unique(expected).size > 2
        for optimize in (False, True):
            (found,) = execute(after, feeds, optimize=optimize)
            assert np.abs(found - expected).max() <= 1.001 * step
            assert np.mean(np.abs(found - expected) > 0.01 * step) < 0.01


@pytest.mark.parametrize("bits", FEW)
def test_linear_layers_fold_too(bits: int) -> None:
    recipe = few(bits)
    graph, before = quantized(LINEAR, recipe, "x r")
    after = folded(graph, recipe)
    assert not {"MatMul", "Gemm"} & set(ops(after))
    for seed in range(3):
        feeds = normal(before, seed, batch=8)
        (expected,), (found,) = execute(graph, feeds), execute(after, feeds)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * float(np.abs(expected).max()))


# from the command line


def test_digits_in_4_bits(onnxq: Command, tmp_path: Path) -> None:
    """From planning to a proof; it loses some, and is no heap of ruins."""
    words = ("--recipe", "static-int8", "--bits", 4, "--activation-bits", 4, "--range", "minmax")
    data = ("--data", MODELS / "digits_calibration.npz", "--validation", MODELS / "digits_test.npz")
    out = tmp_path / "out.onnx"
    done = onnxq("optimize", MODELS / "digits.onnx", "-o", out, *words, *data, "--seconds", 0, "--json", "--quiet")
    assert done.code == 0, done.err
    plan, score = done.json["plan"], done.json["proof"]["score"]
    assert {tensor["format"] for tensor in plan["tensors"].values()} == {"uint4"}
    graph = onnx.load(out).graph
    kinds = [node.op_type for node in graph.node]
    assert {"QLinearConv", "Clip"} <= {*kinds}
    assert score["metric"] == "top1"
    assert 0.6 < score["value"] < 1
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "QLinearConv":
            assert np.unique(stored[node.input[3]]).size <= FORMATS["int4"].levels
