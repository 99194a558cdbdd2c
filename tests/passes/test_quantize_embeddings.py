"""Lookup tables in 8 bits, with a scale for each row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.graph import Graph, weight
from onnxq.numerics.affine import quantize_weight
from onnxq.passes import quantize_embeddings
from onnxq.passes.quantize_embeddings import QuantizeEmbeddings
from onnxq.plan import NodePlan, Plan, Treatment
from onnxq.recipe import Recipe
from tests.onnx_text import Array, apply, changes, execute, floats, lines, listing, ops, read, sqnr

TABLE = floats(50, 8) * np.logspace(-2, 2, 50, dtype=np.float32)[:, None]
IDS = {"ids": np.array([[0, 49, 7], [-1, 3, 3]])}


def plan(*names: str) -> Plan:
    found = {name: NodePlan(op="Gather", treatment=Treatment.WEIGHT, reason="A table.") for name in names}
    return Plan(recipe=Recipe(), nodes=found)


def model(body: str, rank: int = 3, *, weights: dict[str, Any] | None = None, opset: int = 17) -> Graph:
    names = ",".join("abcd"[:rank])
    return read(f"(int64[2,3] ids) => (float[{names}] y) {{ {body} }}", {"t": TABLE} | (weights or {}), opset)


def noise(before: Graph, after: Graph, feeds: dict[str, Array] = IDS) -> float:
    """The least signal to noise ratio, in dB, of any optimization level."""
    (reference,) = execute(before, feeds)
    return min(sqnr(reference, execute(after, feeds, optimize=optimize)[0]) for optimize in (False, True))


LEAST = 40.0
"""Eight normal numbers reach 1.4 deviations, at the worst 2.8, and a row keeps 127 steps up to there, so that its noise
is 1.4 / 127 / sqrt(12), 50 dB, 44 at the worst. Four less, since few numbers are drawn."""


def test_looks_up_integers_and_their_scale() -> None:
    before = model("[emb] y = Gather(t, ids)")
    result = apply(QuantizeEmbeddings(), before, plan("emb"))
    assert listing(result.graph) == lines(
        """
        y_quantized = Gather(t_quantized, ids)
        y_unscaled = Cast<to=1>(y_quantized)
        y_scale = Gather(t_scale, ids)
        y = Mul(y_unscaled, y_scale)
        """
    )
    assert [(c.node, c.op, c.done) for c in changes(result)] == [("emb", "Gather", "int8 Gather")]
    tensors = result.graph.tensors()
    assert weight(tensors["t_quantized"]).dtype == np.int8
    assert tensors["t_scale"].shape == (50, 1)
    assert noise(before, result.graph) > LEAST


def test_every_row_keeps_its_own_accuracy() -> None:
    """Rows differ by four orders of magnitude; one scale for the table would leave nothing of the small ones."""
    before = model("[emb] y = Gather(t, ids)")
    after = apply(QuantizeEmbeddings(), before, plan("emb")).graph
    rows = {"ids": np.arange(48).reshape(16, 3)}
    before.inputs[0].shape = after.inputs[0].shape = (16, 3)
    for graph in (before, after):
        graph.shell.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 16
    want, have = execute(before, rows)[0].reshape(48, 8), execute(after, rows)[0].reshape(48, 8)
    assert min(sqnr(a, b) for a, b in zip(want, have, strict=True)) > LEAST


@pytest.mark.parametrize("opset", [10, 11, 13, 17, 21])
def test_every_opset(opset: int) -> None:
    before = model("[emb] y = Gather(t, ids)", opset=opset)
    assert noise(before, apply(QuantizeEmbeddings(), before, plan("emb")).graph) > LEAST


def test_table_that_several_lookups_share_is_stored_once() -> None:
    before = model("[one] a = Gather(t, ids) [two] b = Gather(t, ids) y = Add(a, b)")
    after = apply(QuantizeEmbeddings(), before, plan("one", "two")).graph
    assert [t.name for t in after.tensors().values() if t.dtype == np.int8] == ["t_quantized"]
    assert noise(before, after) > LEAST


def test_table_that_another_operator_reads_stays_beside_it() -> None:
    """As where the output layer of a language model reads its embedding."""
    before = model("[emb] a = Gather(t, ids) u = Transpose(t) y = MatMul(a, u)")
    after = apply(QuantizeEmbeddings(), before, plan("emb")).graph
    assert {"t", "t_quantized"} <= set(after.tensors())
    assert noise(before, after) > LEAST


def test_row_of_zeros() -> None:
    before = model("[emb] y = Gather(t, ids)", weights={"t": np.where(np.arange(50)[:, None] == 3, 0, TABLE)})
    after = apply(QuantizeEmbeddings(), before, plan("emb")).graph
    assert not execute(after, IDS)[0][1, 1:].any()


@pytest.mark.parametrize("names", [(), ("other",)])
def test_leaves_alone_what_the_plan_does_not_name(names: tuple[str, ...]) -> None:
    before = model("[emb] y = Gather(t, ids)")
    result = apply(QuantizeEmbeddings(), before, plan(*names))
    assert listing(result.graph) == listing(before)
    assert changes(result) == []


def test_leaves_layers_of_the_same_treatment_alone() -> None:
    before = model("[emb] a = Gather(t, ids) [fc] y = MatMul(a, w)", weights={"w": floats(8, 8)})
    result = apply(QuantizeEmbeddings(), before, plan("emb", "fc"))
    assert ops(result.graph).count("MatMul") == 1
    assert [c.node for c in changes(result)] == ["emb"]


def test_a_table_in_half_precision_hands_on_what_it_did() -> None:
    half = (TABLE / 8).astype(np.float16)
    before = read("(int64[2,3] ids) => (float16[a,b,c] y) { [emb] y = Gather(t, ids) }", {"t": half})
    after = apply(QuantizeEmbeddings(), before, plan("emb")).graph
    tensors = after.tensors()
    assert [tensors[name].dtype for name in ("t_quantized", "t_scale")] == [np.int8, np.float16]
    (cast,) = [node for node in after.nodes if node.op == "Cast"]
    assert cast.attrs == {"to": 10}
    (have,) = execute(after, IDS)
    assert have.dtype == np.float16
    assert noise(before, after) > LEAST


def test_a_table_is_rounded_when_it_is_read_and_by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large one is never held in floats; where its parts end does not show."""
    before, parts = model("[emb] y = Gather(t, ids)"), list[int]()

    def counted(values: Array, *wishes: Any, **more: Any) -> Any:
        parts.append(len(values))
        return quantize_weight(values, *wishes, **more)

    whole = apply(QuantizeEmbeddings(), before, plan("emb")).graph.tensors()
    monkeypatch.setattr(quantize_embeddings, "quantize_weight", counted)
    monkeypatch.setattr(quantize_embeddings, "PART", 7 * 8)
    found = apply(QuantizeEmbeddings(), before, plan("emb")).graph.tensors()
    assert parts == []
    for name in ("t_quantized", "t_scale"):
        np.testing.assert_array_equal(weight(found[name]), weight(whole[name]))
    assert parts[:8] == [7] * 7 + [1]
