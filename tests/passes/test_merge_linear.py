"""Linear layers that read one tensor become one, and everybody finds the results under the names they had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxq.graph import Graph, weight
from onnxq.modelfile import load
from onnxq.passes.merge_linear import MergeLinear
from tests.onnx_text import apply, assert_same, changes, floats, lines, listing, ops, read, refusal, serialize

W: dict[str, Any] = {
    "a": floats(16, 8, seed=1),
    "b": floats(16, 4, seed=2),
    "at": floats(8, 16, seed=3),
    "deep": floats(3, 16, 4, seed=4),
    "c": floats(8, seed=5),
    "d": floats(1, 4, seed=6),
    "two": np.array(2, np.float32),
}
ONE_AXIS = "float[16] x"
MATRIX = "float[2,16] x"
BATCH = "float[n,3,16] x"
BOTH = "float[n,3,8] y, float[n,3,4] z"


def model(body: str, inputs: str = BATCH, outputs: str = BOTH, opset: int = 17) -> Graph:
    return read(f"({inputs}) => ({outputs}) {{ {body} }}", W, opset)


MERGED: dict[str, tuple[str, str, str, int, str]] = {
    "without a bias": (
        "[one] y = MatMul(x, a) [two] z = MatMul(x, b)",
        BATCH,
        BOTH,
        17,
        "one_merged = MatMul(x, a_merged)\ny, z = Split<axis=2>(one_merged, one_split_sizes)",
    ),
    "with biases": (
        "[one] p = MatMul(x, a) [add] y = Add(p, c) [two] q = MatMul(x, b) z = Add(d, q)",
        BATCH,
        BOTH,
        17,
        """one_merged = MatMul(x, a_merged)
        one_merged_1 = Add(one_merged, c_merged)
        y, z = Split<axis=2>(one_merged_1, one_split_sizes)""",
    ),
    "with one bias": (
        "[one] y = MatMul(x, a) [two] q = MatMul(x, b) z = Add(q, d)",
        BATCH,
        BOTH,
        17,
        """one_merged = MatMul(x, a_merged)
        one_merged_1 = Add(one_merged, d_merged)
        y, z = Split<axis=2>(one_merged_1, one_split_sizes)""",
    ),
    "of one axis": (
        "[one] y = MatMul(x, a) [two] z = MatMul(x, b)",
        ONE_AXIS,
        "float[8] y, float[4] z",
        17,
        "one_merged = MatMul(x, a_merged)\ny, z = Split<axis=0>(one_merged, one_split_sizes)",
    ),
    "Gemm": (
        "[one] y = Gemm<transB=1, beta=0.5>(x, at) [two] z = Gemm(x, b, d)",
        MATRIX,
        "float[2,8] y, float[2,4] z",
        17,
        "one_merged = Gemm(x, at_merged, d_merged)\ny, z = Split<axis=1>(one_merged, one_split_sizes)",
    ),
    "Gemm without a bias": (
        "[one] y = Gemm(x, a) [two] z = Gemm(x, b)",
        MATRIX,
        "float[2,8] y, float[2,4] z",
        17,
        "one_merged = Gemm(x, a_merged)\ny, z = Split<axis=1>(one_merged, one_split_sizes)",
    ),
    "before opset 13": (
        "[one] y = MatMul(x, a) [two] z = MatMul(x, b)",
        BATCH,
        BOTH,
        12,
        "one_merged = MatMul(x, a_merged)\ny, z = Split<axis=2, split=[8, 4]>(one_merged)",
    ),
}


@pytest.mark.parametrize("case", MERGED)
def test_merges(case: str) -> None:
    body, inputs, outputs, opset, expected = MERGED[case]
    before = model(body, inputs, outputs, opset)
    after = apply(MergeLinear(), before)
    assert listing(after.graph) == lines(expected)
    done = [(change.node, change.done) for change in changes(after)]
    assert done == [("one", "Gemm" if "Gemm" in case else "MatMul"), ("two", "Split")]
    assert after.graph.nodes[0].name == "one"
    assert [tensor.name for tensor in after.graph.outputs] == ["y", "z"]
    assert_same(before, after.graph)


def test_what_lies_between_or_behind_stays() -> None:
    body = "[one] p = MatMul(x, a) r = Relu(p) [two] q = MatMul(x, b) y = Add(r, c) z = Tanh(q)"
    before = model(body)
    after = apply(MergeLinear(), before)
    assert sorted(ops(after.graph)) == sorted(["MatMul", "Split", "Relu", "Add", "Tanh"])
    assert_same(before, after.graph)


def test_an_inner_output_keeps_its_name() -> None:
    """The product is promised, so the Add behind it is no part of the layer."""
    before = model(
        "[one] p = MatMul(x, a) y = Add(p, c) [two] z = MatMul(x, b)", outputs=f"{BOTH}, float[n,3,8] p"
    )  # fmt: skip
    after = apply(MergeLinear(), before)
    expected = """one_merged = MatMul(x, a_merged)
    p, z = Split<axis=2>(one_merged, one_split_sizes)
    y = Add(p, c)"""
    assert listing(after.graph) == lines(expected)
    assert_same(before, after.graph)


def test_weights_and_biases_stand_side_by_side() -> None:
    after = apply(MergeLinear(), model(MERGED["with one bias"][0])).graph
    tensors = after.tensors()
    np.testing.assert_array_equal(weight(tensors["a_merged"]), np.hstack([W["a"], W["b"]]))
    np.testing.assert_array_equal(weight(tensors["d_merged"]), np.hstack([np.zeros(8, np.float32), W["d"][0]]))
    assert {"a", "b", "d"}.isdisjoint(tensors)


ALONE: dict[str, str] = {
    "different inputs": "r = Relu(x) y = MatMul(x, a) z = MatMul(r, b)",
    "different operators behind": "y = MatMul(x, a) z = ReduceMax<axes=[-1]>(x)",
    "a weight that is no constant": "w = Mul(b, u) y = MatMul(x, a) z = MatMul(x, w)",
    "a weight of three axes": "y = MatMul(x, a) z = MatMul(x, deep)",
}


@pytest.mark.parametrize("case", ALONE)
def test_leaves_alone_what_has_no_siblings(case: str) -> None:
    before = model(ALONE[case], inputs=f"{BATCH}, float[1] u", outputs="float[n,3,8] y, float[n,3,m] z")
    after = apply(MergeLinear(), before)
    assert (listing(after.graph), changes(after)) == (listing(before), [])


def test_leaves_alone_gemm_with_alpha() -> None:
    body = "y = Gemm(x, a) z = Gemm<alpha=2.0>(x, b)"
    before = model(body, MATRIX, "float[2,8] y, float[2,4] z")
    after = apply(MergeLinear(), before)
    assert (listing(after.graph), changes(after)) == (listing(before), [])


def test_leaves_doubles_alone() -> None:
    weights = {name: values.astype(np.float64) for name, values in W.items()}
    text = "(double[2,16] x) => (double[2,8] y, double[2,4] z) { y = MatMul(x, a) z = MatMul(x, b) }"
    before = read(text, weights)
    after = apply(MergeLinear(), before)
    assert (listing(after.graph), changes(after)) == (listing(before), [])


def test_a_shared_weight_is_not_stored_twice() -> None:
    body = "[one] y = MatMul(x, a) [two] z = MatMul(x, b) [three] v = MatMul(x, b)"
    before = model(body, outputs=f"{BOTH}, float[n,3,4] v")
    after = apply(MergeLinear(), before)
    assert refusal(after, "two") == refusal(after, "three")
    assert refusal(after, "two") == "Its weight 'b' is read elsewhere too, and would be stored twice."
    assert serialize(after.graph) == serialize(before)


def test_the_others_are_merged_beside_a_shared_weight() -> None:
    body = "[one] y = MatMul(x, a) t = Transpose(b) [two] z = MatMul(x, b) [three] u = MatMul(x, e)"
    outputs = "float[2,8] y, float[2,4] z, float[4,16] t, float[2,5] u"
    before = read(f"({MATRIX}) => ({outputs}) {{ {body} }}", W | {"e": floats(16, 5)})
    after = apply(MergeLinear(), before)
    assert [(c.node, c.done) for c in changes(after)] == [("two", ""), ("one", "MatMul"), ("three", "Split")]
    assert_same(before, after.graph)


def test_large_weights_stay_where_they_are() -> None:
    before = model(MERGED["without a bias"][0])
    size = 4 * 16 * (8 + 4)
    after = apply(MergeLinear(most=size - 1), before)
    assert refusal(after, "one").startswith("The weights of all layers that read 'x' take 0.000732 MiB")
    assert serialize(after.graph) == serialize(before)
    assert ops(apply(MergeLinear(most=size), before).graph) == ["MatMul", "Split"]


def test_external_weights_are_read_up_to_a_limit(tmp_path: Path) -> None:
    inner = model(MERGED["without a bias"][0])
    path = tmp_path / "model.onnx"
    stored = onnx.load_from_string(serialize(inner))
    onnx.save(stored, path, save_as_external_data=True, location="data", size_threshold=0)
    before = load(path)
    size = 4 * 16 * (8 + 4)
    after = apply(MergeLinear(most_external=size - 1), before)
    assert refusal(after, "two").startswith("Its weight lies in a file of its own")
    assert ops(apply(MergeLinear(most_external=size), before).graph) == ["MatMul", "Split"]
    assert ops(apply(MergeLinear(most_external=0), inner).graph) == ["MatMul", "Split"]


def test_an_input_of_unknown_rank_is_left_alone() -> None:
    before = model(MERGED["without a bias"][0])
    before.inputs[0].shape = None
    after = apply(MergeLinear(), before)
    assert refusal(after, "one") == "How many axes 'x' has is not known."


def test_a_captured_product_keeps_its_name() -> None:
    then, other = "() => (float[a,b,c] t) { t = Neg(p) }", "() => (float[a,b,c] u) { u = Add(p, c) }"
    body = f"""
        [one] p = MatMul(x, a) r = Add(p, c) [two] z = MatMul(x, b)
        m = ReduceSum<keepdims=0>(r) q = Greater(m, two)
        i = If(q)<then_branch = f {then}, else_branch = g {other}> y = Add(i, r)
    """
    before = model(body)
    after = apply(MergeLinear(), before)
    assert "p, z = Split<axis=2>(one_merged, one_split_sizes)" in listing(after.graph).splitlines()
    assert_same(before, after.graph)
