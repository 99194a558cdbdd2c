"""Weights of linear layers in blocks of 8-bit integers."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.graph import Graph, weight
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.plan import NodePlan, Plan, Treatment
from onnxq.recipe import Recipe, Weight
from tests.onnx_text import apply, changes, execute, floats, lines, listing, normal, ops, read, sqnr

W = {"w": floats(80, 24), "wt": floats(24, 80), "b": floats(24), "row": floats(1, 24), "t": floats(500, 80)}
LEAST = 39.0
"""A block of 32 normal numbers reaches 2.1 deviations: 2.1 / 127 / sqrt(12) of noise, 46 dB; the kernel rounds the
activations to 8 bits in blocks as well (`accuracy_level` 4), which costs as much again: 43 dB. Four less, since few
numbers are drawn."""


def plan(*names: str, block: int = 32) -> Plan:
    found = {name: NodePlan(op="MatMul", treatment=Treatment.WEIGHT, reason="A layer.") for name in names}
    return Plan(recipe=Recipe(weight=Weight(block_size=block)), nodes=found)  # type: ignore[arg-type]


def model(body: str, *, x: str = "3,80", opset: int = 17) -> Graph:
    names = ",".join("abcd"[: x.count(",") + 1])
    return read(f"(float[{x}] x) => (float[{names}] y) {{ {body} }}", W, opset)


def assert_close(before: Graph, after: Graph) -> None:
    feeds = normal(before)
    for optimize in (False, True):
        for want, have in zip(execute(before, feeds), execute(after, feeds, optimize=optimize), strict=True):
            assert have.shape == want.shape
            assert sqnr(want, have) > LEAST


FORMS = {
    "MatMul": ("[fc] y = MatMul(x, w)", "3,80", ""),
    "MatMul of three axes": ("[fc] y = MatMul(x, w)", "2,3,80", ""),
    "MatMul with bias": ("[fc] m = MatMul(x, w) y = Add(m, b)", "3,80", "b"),
    "MatMul with a row": ("[fc] m = MatMul(x, w) y = Add(row, m)", "3,80", "row_flat"),
    "Gemm": ("[fc] y = Gemm(x, w)", "3,80", ""),
    "Gemm with bias": ("[fc] y = Gemm(x, w, b)", "3,80", "b"),
    "Gemm, transposed weight": ("[fc] y = Gemm<transB=1>(x, wt, b)", "3,80", "b"),
}


@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("form", FORMS)
def test_layer(form: str, block: int) -> None:
    """80 inputs fill no whole number of blocks but those of 16."""
    body, x, bias = FORMS[form]
    before = model(body, x=x)
    result = apply(QuantizeWeights(), before, plan("fc", block=block))
    name = "wt" if "wt" in body else "w"
    more = f', "", "", {bias}' if bias else ""
    attributes = f"K=80, N=24, accuracy_level=4, bits=8, block_size={block}"
    assert (
        listing(result.graph) == f"y = com.microsoft.MatMulNBits<{attributes}>(x, {name}_quantized, {name}_scale{more})"
    )
    assert [(c.node, c.done) for c in changes(result)] == [("fc", "MatMulNBits")]
    stored, blocks = weight(result.graph.nodes[0].inputs[1]), -(-80 // block)
    assert (stored.dtype, stored.shape) == (np.uint8, (24, blocks, block))
    assert weight(result.graph.nodes[0].inputs[2]).shape == (24 * blocks,)
    assert_close(before, result.graph)


@pytest.mark.parametrize("opset", [10, 11, 13, 17, 21])
def test_every_opset(opset: int) -> None:
    before = model("[fc] y = Gemm(x, w, b)", opset=opset)
    assert_close(before, apply(QuantizeWeights(), before, plan("fc")).graph)


def test_activation_stays_behind_the_layer() -> None:
    before = model("[fc] p = MatMul(x, w) s = Add(p, b) y = Relu(s)")
    result = apply(QuantizeWeights(), before, plan("fc"))
    assert ops(result.graph) == ["MatMulNBits", "Relu"]
    assert_close(before, result.graph)


def test_weight_that_two_layers_share_is_stored_once() -> None:
    before = model("[one] p = MatMul(x, w) [two] q = MatMul(x, w) y = Add(p, q)")
    result = apply(QuantizeWeights(), before, plan("one", "two"))
    assert [t.name for t in result.graph.tensors().values() if t.dtype == np.uint8] == ["w_quantized"]
    assert_close(before, result.graph)


def test_weight_that_two_layers_read_in_both_directions() -> None:
    before = read(
        "(float[3,80] x) => (float[a,b] y) { [one] p = MatMul(x, w) [two] y = Gemm<transB=1>(p, w) }", {"w": W["w"]}
    )
    result = apply(QuantizeWeights(), before, plan("one", "two"))
    assert ops(result.graph) == ["MatMulNBits", "MatMulNBits"]
    assert_close(before, result.graph)


def test_leaves_alone_what_the_plan_does_not_name() -> None:
    before = model("[fc] y = MatMul(x, w)")
    result = apply(QuantizeWeights(), before, plan("other"))
    assert listing(result.graph) == listing(before)
    assert changes(result) == []


def test_leaves_lookups_to_another_pass() -> None:
    before = read("(int64[2] i) => (float[a,b] y) { [emb] g = Gather(t, i) [fc] y = MatMul(g, w) }", W)
    result = apply(QuantizeWeights(), before, plan("emb", "fc"))
    assert ops(result.graph) == ["Gather", "MatMulNBits"]
    assert listing(result.graph).startswith(lines("g = Gather(t, i)"))
