"""Lookup tables in blocks: their own in 4 bits, or those of a layer that has the same weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.graph import Graph, to_model, weight
from onnxq.lookups import stored_lookups
from onnxq.modelfile import load
from onnxq.passes.quantize_embeddings import QuantizeEmbeddings
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.placement import embeddings, place_linear
from onnxq.plan import Plan, Treatment
from onnxq.recipe import Recipe
from onnxq.runtime import Session
from tests.onnx_text import Array, apply, execute, floats, listing, ops, read, sqnr

TABLE = floats(300, 96)
IDS = {"ids": np.array([[0, 299, 7], [-1, 3, 3]])}
TIED = {
    "a transposed copy": ("y = MatMul(e, h)", {"t": TABLE, "h": np.ascontiguousarray(TABLE.T)}),
    "the same weight": ("f = Reshape(e, s) y = Gemm<transB=1>(f, t)", {"t": TABLE, "s": np.array([-1, 96])}),
    "an equal weight": (
        "f = Reshape(e, s) y = Gemm<transB=1>(f, h)",
        {"t": TABLE, "h": TABLE, "s": np.array([-1, 96])},
    ),
}
OTHER = "y = MatMul(e, h)", {"t": TABLE, "h": floats(96, 300, seed=5)}


def model(body: str, weights: dict[str, Any]) -> Graph:
    rank = "a,b" if "Gemm" in body else "a,b,c"
    text = f"(int64[2,3] ids) => (float[{rank}] y) {{ [emb] e = Gather(t, ids) {body.replace('y =', '[head] y =')} }}"
    return read(text, weights)


def planned(graph: Graph, bits: Literal[4, 8] = 4, **wishes: Any) -> Plan:
    recipe = Recipe.model_validate(wishes)
    nodes = place_linear(graph, recipe, Treatment.WEIGHT, bits).nodes | embeddings(graph, recipe)
    return Plan(recipe=recipe, nodes=nodes | stored_lookups(graph, nodes, recipe))


def quantized(graph: Graph, plan: Plan) -> Graph:
    return apply(QuantizeWeights(), apply(QuantizeEmbeddings(), graph, plan).graph, plan).graph


def rows(graph: Graph) -> Array:
    """What is looked up for each row of the table."""
    session = Session(to_model(graph, extra_outputs=["e"]).SerializeToString(), threads=1)
    found = [session.run({"ids": ids}, ["e"])["e"] for ids in np.arange(300).reshape(-1, 2, 3)]
    return np.concatenate(found).reshape(300, -1)


@pytest.mark.parametrize("symmetric", [True, None])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("case", TIED)
def test_a_tied_table_is_stored_once(case: str, bits: Any, symmetric: bool | None) -> None:
    before = model(*TIED[case])
    plan = planned(before, bits, weight={"symmetric": symmetric, "embedding_bits": 4 if bits == 4 else None})
    assert (plan.nodes["emb"].shares, plan.nodes["emb"].bits) == ("head", bits)
    after = quantized(before, plan)
    assert [op for op in ops(after) if op in ("GatherBlockQuantized", "MatMulNBits")] == [
        "GatherBlockQuantized",
        "MatMulNBits",
    ]
    stored = [t for t in after.weights() if t.dtype == np.uint8]
    assert len(stored) == (1 if symmetric else 2)
    want, have = (execute(graph, IDS, optimize=True)[0] for graph in (before, after))
    assert sqnr(want, have) > (13 if bits == 4 else 34)


@pytest.mark.parametrize("case", TIED)
def test_by_default_a_tied_table_takes_8_bits_and_the_layer_with_it(case: str) -> None:
    plan = planned(model(*TIED[case]), 4)
    assert {name: node.bits for name, node in plan.nodes.items()} == {"emb": 8, "head": 8}
    assert "closer" in plan.nodes["head"].reason


@pytest.mark.parametrize("block", [16, 32])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_lookup_is_exactly_the_weight_of_the_layer(bits: Any, block: int) -> None:
    """96 inputs in blocks of 32 are an odd number of blocks: the last zero point of a row has a byte for itself."""
    before = model(*TIED["a transposed copy"])
    wish = {"block_size": block, "embedding_bits": 4 if bits == 4 else None}
    after = quantized(before, planned(before, bits, weight=wish))
    (node,) = [node for node in after.nodes if node.op == "MatMulNBits"]
    values, scale, zero = (weight(tensor) for tensor in node.inputs[1:4])
    wide = np.stack([values & 15, values >> 4], -1).reshape(300, 96) if bits == 4 else values.reshape(300, 96)
    origin = np.stack([zero & 15, zero >> 4], -1).reshape(300, -1)[:, : 96 // block] if bits == 4 else zero
    expected = (wide - np.repeat(origin, block, 1).astype(np.float32)) * np.repeat(scale, block, 1)
    np.testing.assert_allclose(rows(after), expected, rtol=1e-6, atol=1e-7)


def test_half_precision() -> None:
    half = TABLE.astype(np.float16)
    text = "(int64[2,3] ids) => (float16[a,b,c] y) { [emb] e = Gather(t, ids) [head] y = MatMul(e, h) }"
    before = read(text, {"t": half, "h": np.ascontiguousarray(half.T)})
    after = quantized(before, planned(before))
    assert ops(after) == ["Reshape", "GatherBlockQuantized", "MatMulNBits"]
    want, have = (execute(graph, IDS, optimize=True)[0].astype(np.float32) for graph in (before, after))
    assert sqnr(want, have) > 13


UNTIED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "another weight": (*OTHER, {}),
    "one number differs": ("y = MatMul(e, h)", {"t": TABLE, "h": TABLE.T + np.eye(96, 300, dtype=np.float32) / 64}, {}),
    "another type": (
        "f = Cast<to=10>(e) g = MatMul(f, h) y = Cast<to=1>(g)",
        {"t": TABLE, "h": TABLE.T.astype(np.float16)},
        {},
    ),
    "the head stays in float": (*TIED["a transposed copy"], {"nodes": {"head": {"quantize": False}}}),
    "8 bits were asked for": (*TIED["a transposed copy"], {"weight": {"embedding_bits": 8}}),
    "rows are no whole blocks": (*TIED["a transposed copy"], {"weight": {"block_size": 64}}),
    "in the form qdq": (*TIED["a transposed copy"], {"format": "qdq"}),
}


@pytest.mark.parametrize("case", UNTIED)
def test_other_tables_have_rows_of_their_own(case: str) -> None:
    body, weights, wishes = UNTIED[case]
    before = model(body, weights)
    plan = planned(before, **wishes)
    assert (plan.nodes["emb"].shares, plan.nodes["emb"].bits) == ("", 8)
    assert "GatherBlockQuantized" not in ops(quantized(before, plan))


@pytest.mark.parametrize("wish", [{"embeddings": False}, {"embedding_bits": 4, "embeddings": False}])
def test_tables_that_are_to_stay_in_float_do(wish: dict[str, Any]) -> None:
    before = model(*TIED["a transposed copy"])
    assert "emb" not in planned(before, weight=wish).nodes


def test_a_table_in_4_bits() -> None:
    before = model(*OTHER)
    plan = planned(before, weight={"embedding_bits": 4})
    assert (plan.nodes["emb"].shares, plan.nodes["emb"].bits) == ("", 4)
    after = quantized(before, plan)
    assert listing(after).count("GatherBlockQuantized") == 1
    assert 17 < sqnr(TABLE, rows(after)) < 30


def test_two_lookups_share_one_table() -> None:
    text = "(int64[2,3] ids) => (float[a,b,c] y) { [p] a = Gather(t, ids) [q] b = Gather(t, ids) y = Add(a, b) }"
    before = read(text, {"t": TABLE})
    after = quantized(before, planned(before, weight={"embedding_bits": 4}))
    assert len([t for t in after.weights() if t.name.startswith("t_quantized") and t.dtype == np.uint8]) == 1


def test_small_tables_beside_a_large_one_keep_8_bits() -> None:
    """Positions, sines and cosines: nothing is saved, and much depends on them."""
    text = "(int64[2,3] ids) => (float[a,b,c] y) { [word] a = Gather(t, ids) [place] b = Gather(p, ids) y = Add(a, b) }"
    before = read(text, {"t": floats(1024, 96), "p": floats(200, 96)})
    plan = planned(before, weight={"embedding_bits": 4})
    assert {name: node.bits for name, node in plan.nodes.items()} == {"word": 4, "place": 8}


def test_a_plan_whose_layer_was_put_back_to_float() -> None:
    """The table has rows of its own then."""
    before = model(*TIED["a transposed copy"])
    plan = planned(before)
    head = plan.nodes["head"].model_copy(update={"treatment": Treatment.FLOAT})
    after = quantized(before, plan.model_copy(update={"nodes": plan.nodes | {"head": head}}))
    assert ops(after) == ["Gather", "Cast", "Gather", "Mul", "MatMul"]


@pytest.mark.parametrize("mode", ["weight-int8", "weight-int4"])
def test_a_whole_model_with_data(mode: str, tmp_path: Path) -> None:
    source, target, whole = (tmp_path / name for name in ("m.onnx", "out.onnx", "rows.onnx"))
    onnx.save(to_model(model(*TIED["a transposed copy"])), source)
    data = {"ids": np.random.default_rng(0).integers(0, 300, (8, 2, 3))}
    options, sizes = onnxq.Options(seconds=0.0), []
    for path, bits in ((target, None), (whole, 8)):
        recipe = Recipe.model_validate({"mode": mode, "weight": {"embedding_bits": bits}})
        result = onnxq.optimize(source, path, data=data, recipe=recipe, options=options)
        assert result.status == "optimized"
        sizes.append(path.stat().st_size)
    assert sizes[1] - sizes[0] > (0.8 if mode == "weight-int8" else 0.4) * TABLE.size  # of 4 bits the head takes 8 then
    assert load(target).interface() == load(source).interface()
