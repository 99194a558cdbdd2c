"""Weights of linear layers in blocks of 8-bit or 4-bit integers."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest

from onnxq.channels import layers_of
from onnxq.graph import Graph, weight
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.plan import NodePlan, Plan, Treatment
from onnxq.recipe import Recipe, Weight
from onnxq.weights import blocked_weight, seen_blocks
from tests.onnx_text import Array, apply, changes, execute, floats, lines, listing, normal, ops, read, sqnr

W = {"w": floats(80, 24), "wt": floats(24, 80), "b": floats(24), "row": floats(1, 24), "t": floats(500, 80)}
LEAST = 39.0
"""A block of 32 normal numbers spans 4.2 deviations: 4.2 / 255 / sqrt(12) of noise, 46 dB; the kernel rounds the
activations to 8 bits in blocks as well (`accuracy_level` 4), which costs as much again: 43 dB. Four less, since few
numbers are drawn."""


Bits = Literal[4, 8]


def plan(*names: str, block: Any = 32, bits: Bits = 8, **wish: Any) -> Plan:
    nodes = {name: NodePlan(op="MatMul", treatment=Treatment.WEIGHT, reason="A layer.", bits=bits) for name in names}
    return Plan(recipe=Recipe(weight=Weight(block_size=block, **wish)), nodes=nodes)


def model(body: str, *, x: str = "3,80", opset: int = 17) -> Graph:
    names = ",".join("abcd"[: x.count(",") + 1])
    return read(f"(float[{x}] x) => (float[{names}] y) {{ {body} }}", W, opset)


def assert_close(before: Graph, after: Graph, least: float = LEAST) -> None:
    feeds = normal(before)
    for optimize in (False, True):
        for want, have in zip(execute(before, feeds), execute(after, feeds, optimize=optimize), strict=True):
            assert have.shape == want.shape
            assert sqnr(want, have) > least


FORMS = {
    "MatMul": ("[fc] y = MatMul(x, w)", "3,80", ""),
    "MatMul of three axes": ("[fc] y = MatMul(x, w)", "2,3,80", ""),
    "MatMul with bias": ("[fc] m = MatMul(x, w) y = Add(m, b)", "3,80", "b"),
    "MatMul with a row": ("[fc] m = MatMul(x, w) y = Add(row, m)", "3,80", "row_flat"),
    "Gemm": ("[fc] y = Gemm(x, w)", "3,80", ""),
    "Gemm with bias": ("[fc] y = Gemm(x, w, b)", "3,80", "b"),
    "Gemm, transposed weight": ("[fc] y = Gemm<transB=1>(x, wt, b)", "3,80", "b"),
}


BLOCKS: tuple[Any, ...] = (16, 32, 64, 128, 256, "channel")


def size(block: Any) -> int:
    """Inputs of a block: 128 is the power of 2 that holds all 80."""
    return 128 if block == "channel" else int(block)


@pytest.mark.parametrize("symmetric", [None, True])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("form", FORMS)
def test_layer(form: str, block: Any, symmetric: bool | None) -> None:
    """80 inputs fill no whole number of blocks but those of 16."""
    body, x, bias = FORMS[form]
    before = model(body, x=x)
    result = apply(QuantizeWeights(), before, plan("fc", block=block, symmetric=symmetric))
    name, block = "wt" if "wt" in body else "w", size(block)
    more = f', {name}_zero_point, "", {bias}' if bias else f", {name}_zero_point"
    if symmetric:
        more = f', "", "", {bias}' if bias else ""
    attributes = f"K=80, N=24, accuracy_level=4, bits=8, block_size={block}"
    assert (
        listing(result.graph) == f"y = com.microsoft.MatMulNBits<{attributes}>(x, {name}_quantized, {name}_scale{more})"
    )
    assert [(c.node, c.done) for c in changes(result)] == [("fc", "MatMulNBits")]
    stored, blocks = weight(result.graph.nodes[0].inputs[1]), -(-80 // block)
    assert (stored.dtype, stored.shape) == (np.uint8, (24, blocks, block))
    assert weight(result.graph.nodes[0].inputs[2]).shape == (24, blocks)
    if not symmetric:
        assert weight(result.graph.nodes[0].inputs[3]).shape == (24, blocks)
    assert_close(before, result.graph)


LEAST_OF_4_BITS = 16.0
"""The same with 15 steps in place of 255: 21 dB for 32 numbers in a block, 18 for 256, which reach farther."""


@pytest.mark.parametrize("symmetric", [None, True])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("form", FORMS)
def test_layer_in_4_bits(form: str, block: Any, symmetric: bool | None) -> None:
    """Two integers in a byte, the earlier input in the lower half; two zero points likewise, the last one alone."""
    body, x, _ = FORMS[form]
    before = model(body, x=x)
    settled = plan("fc", block=block, bits=4, symmetric=symmetric)
    result = apply(QuantizeWeights(), before, settled)
    block = size(block)
    (node,) = [node for node in result.graph.nodes if node.op == "MatMulNBits"]
    assert (node.attrs["bits"], node.attrs["block_size"], node.attrs["K"], node.attrs["N"]) == (4, block, 80, 24)
    stored, blocks = weight(node.inputs[1]), -(-80 // block)
    assert (stored.dtype, stored.shape) == (np.uint8, (24, blocks, block // 2))
    (layer,) = layers_of(before)
    found = blocked_weight(layer, settled.recipe.weight, 4)
    in_pairs = np.stack([stored & 15, stored >> 4], axis=-1).reshape(24, -1)
    np.testing.assert_array_equal(in_pairs[:, :80], found.integers())
    if not symmetric:
        zeros = weight(node.inputs[3])
        assert (zeros.dtype, zeros.shape) == (np.uint8, (24, -(-blocks // 2)))
        in_pairs = np.stack([zeros & 15, zeros >> 4], axis=-1).reshape(24, -1)
        np.testing.assert_array_equal(in_pairs[:, :blocks], np.asarray(found.zero_point))
    assert_close(before, result.graph, LEAST_OF_4_BITS)


def handed_on(graph: Graph) -> Array:
    """The weight as the runtime has it, by rows of inputs: what it returns for one input after the other."""
    (tensor,) = graph.inputs
    return execute(graph, {tensor.name: np.eye(80, dtype=np.float32)}, optimize=True)[0]


@pytest.mark.parametrize("symmetric", [None, True])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("form", ["MatMul", "Gemm, transposed weight"])
def test_the_runtime_reads_the_integers_that_were_stored(
    form: str, bits: Bits, block: Any, symmetric: bool | None
) -> None:
    """Each in its place: one input alone is rounded to itself, whatever else its block holds."""
    before = model(FORMS[form][0].replace(", b)", ")"), x="80,80")
    settled = plan("fc", block=block, bits=bits, symmetric=symmetric, fit=False)
    after = apply(QuantizeWeights(), before, settled).graph
    (layer,) = layers_of(before)
    found = blocked_weight(layer, settled.recipe.weight, bits)
    seen = seen_blocks(layer, found)
    expected = seen.T if "transB" in FORMS[form][0] else seen
    np.testing.assert_allclose(handed_on(after), expected, rtol=0, atol=1e-5)
    step = np.repeat(np.abs(found.scale), size(block), axis=1)[:, :80].T
    most = float((np.abs(expected - handed_on(before)) / step).max())
    assert 0.4 < most < (1.01 if symmetric else 0.51), "the side with one integer less is cut by half a step more"


def test_one_weight_in_both_widths_is_stored_twice() -> None:
    before = model("[one] p = MatMul(x, w) [two] q = MatMul(x, w) y = Add(p, q)")
    mixed = plan("one", "two")
    four = mixed.nodes["two"].model_copy(update={"bits": 4})
    result = apply(QuantizeWeights(), before, mixed.model_copy(update={"nodes": {**mixed.nodes, "two": four}}))
    assert [node.attrs.get("bits") for node in result.graph.nodes] == [8, 4, None]
    stored = [weight(node.inputs[1]) for node in result.graph.nodes[:2]]
    assert [values.shape for values in stored] == [(24, 3, 32), (24, 3, 16)]
    assert_close(before, result.graph, LEAST_OF_4_BITS)


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
    stored = sorted(t.name for t in result.graph.tensors().values() if t.dtype == np.uint8)
    assert stored == ["w_quantized", "w_zero_point"]
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
