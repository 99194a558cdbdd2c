"""Attention in every spelling that exporters have becomes one operator; everything else stays as it is."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from onnxq.graph import Graph
from onnxq.passes.fuse_attention import FuseAttention
from tests.onnx_text import Array, apply, assert_same, changes, floats, lines, listing, ops, read, refusal

W: dict[str, Any] = {
    "quarter": np.float32(0.25),
    "half": np.float32(0.5),
    "two": np.float32(2),
    "factors": floats(4, 1, 1),
    "zero": np.float32(0),
    "apart": np.array([0, 0, 4, 4]),
    "fewer": np.array([0, 0, 2, 4]),
    "single": np.array([0, 0, 1, 4]),
    "whole": np.array([0, 0, 16]),
    "again": np.array([1, 1, 2, 1, 1]),
    "axis2": np.array([2]),
    "axis1": np.array([1]),
    "four": np.array([4]),
    "begin": np.array([0]),
    "second": np.array([2]),
    "third": np.array([3]),
    "end": np.array([4]),
    "left": np.array([-1]),
    "causal": np.where(np.tri(5) > 0, 0, -1e4).astype(np.float32),
}
INPUTS = "float[batch,row,16] q, float[batch,column,16] k, float[batch,column,16] v"
HEADS = """
    q4 = Reshape(q, apart) k4 = Reshape(k, apart) v4 = Reshape(v, apart)
    qt = Transpose<perm=[0,2,1,3]>(q4) vt = Transpose<perm=[0,2,1,3]>(v4)
"""
KEYS = "kt = Transpose<perm=[0,2,3,1]>(k4)"
TURNED = "k5 = Transpose<perm=[0,2,1,3]>(k4)"
SWAPPED = f"""
    {TURNED} z = Shape(k5) z01 = Slice(z, begin, second) z2 = Slice(z, second, third) z3 = Slice(z, third, end)
    flat = Concat<axis=0>(left, z2, z3) k6 = Reshape(k5, flat) k7 = Transpose<perm=[0,2,1]>(k6)
    back = Concat<axis=0>(z01, z3, z2) kt = Reshape(k7, back)
"""
SCORES = "[scores] s0 = MatMul(qt, kt) [small] s1 = Mul(s0, quarter)"
END = "[mix] o = MatMul(p, vt) [turn] t = Transpose<perm=[0,2,1,3]>(o) y = Reshape(t, whole)"
PLAIN = f"{HEADS} {KEYS} {SCORES} [soft] p = Softmax<axis=-1>(s1) {END}"
MASKED = f"{HEADS} {KEYS} {SCORES} [mask] s2 = Add(s1, mask) [soft] p = Softmax(s2) {END}"
GUARDED = f"""
    {HEADS} {SWAPPED} qs = Mul(qt, half) ks = Mul(half, kt) [scores] s0 = MatMul(qs, ks)
    [mask] s2 = Add(s0, mask) soft = Softmax(s2) n = IsNaN(soft) [guard] p = Where(n, zero, soft) {END}
"""


def repeated(name: str) -> str:
    return (
        f"{name}u = Unsqueeze({name}h, axis2) {name}e = Expand({name}u, again) {name}r = Reshape({name}e, back{name}) "
    )


GROUPED = f"""
    q4 = Reshape(q, apart) k4 = Reshape(k, fewer) v4 = Reshape(v, fewer)
    qt = Transpose<perm=[0,2,1,3]>(q4) kh = Transpose<perm=[0,2,1,3]>(k4) vh = Transpose<perm=[0,2,1,3]>(v4)
    size = Shape(kh) b = Slice(size, begin, axis1) n = Slice(size, second, third)
    backk = Concat<axis=0>(b, four, n, four) backv = Concat<axis=0>(b, four, n, four)
    {repeated("k")} {repeated("v")} kt = Transpose<perm=[0,1,3,2]>(kr) {SCORES}
    p = Softmax(s1) {END.replace("vt", "vr")}
"""
GROUPED_INPUTS = INPUTS.replace("column,16", "column,8")


def model(body: str, inputs: str = INPUTS, mask: str = "", opset: int = 23) -> Graph:
    given = f"{inputs}, float[{mask}] mask" if mask else inputs
    return read(f"({given}) => (float[a,b,16] y) {{ {body} }}", W, opset)


def feeds(channels: int = 16, **mask: Array) -> dict[str, Array]:
    return {"q": floats(2, 3, 16), "k": floats(2, 5, channels, seed=1), "v": floats(2, 5, channels, seed=2), **mask}


FUSED: dict[str, str] = {
    "no mask": PLAIN,
    "over a constant": PLAIN.replace("Mul(s0, quarter)", "Div(s0, two)"),
    "no scale": PLAIN.replace(SCORES, "s1 = MatMul(qt, kt)"),
    "the last axis by its number": PLAIN.replace("axis=-1", "axis=3"),
    "keys turned twice": PLAIN.replace(KEYS, f"{TURNED} kt = Transpose<perm=[0,1,3,2]>(k5)"),
    "keys swapped by Reshape": PLAIN.replace(KEYS, SWAPPED),
    "both operands scaled": PLAIN.replace(SCORES, "a = Mul(half, qt) b = Div(kt, two) s1 = MatMul(a, b)"),
}


@pytest.mark.parametrize("body", FUSED.values(), ids=FUSED)
def test_fuses(body: str) -> None:
    before = model(body)
    after = apply(FuseAttention(), before)
    assert [(c.op, c.done) for c in changes(after)] == [("Transpose", "Attention")]
    assert "Softmax" not in ops(after.graph)
    assert_same(before, after.graph, feeds())


def test_the_whole_picture() -> None:
    after = apply(FuseAttention(), model(PLAIN))
    expected = """
        q4 = Reshape(q, apart)
        k4 = Reshape(k, apart)
        v4 = Reshape(v, apart)
        t_q_joined = Reshape(q4, t_q_shape)
        t_k_joined = Reshape(k4, t_k_shape)
        t_v_joined = Reshape(v4, t_v_shape)
        t_joined = Attention<kv_num_heads=4, q_num_heads=4, scale=0.25>(t_q_joined, t_k_joined, t_v_joined)
        t = Reshape(t_joined, t_shape)
        y = Reshape(t, whole)
    """
    assert sorted(listing(after.graph).splitlines()) == sorted(lines(expected).splitlines())


MASKS: dict[str, tuple[tuple[int, ...], bool]] = {
    "batch,1,1,column": ((2, 1, 1, 5), True),
    "batch,1,row,1": ((2, 1, 3, 1), True),
    "batch,1,row,unknown": ((2, 1, 3, 5), True),
    "column": ((5,), True),
    "1,1,row,column": ((1, 1, 3, 5), False),
    "batch,4,row,column": ((2, 4, 3, 5), False),
    "row,column": ((3, 5), False),
}


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("axes", MASKS)
def test_masks_are_stretched_where_they_may_have_to(axes: str, swapped: bool) -> None:
    shape, stretched = MASKS[axes]
    before = model(MASKED.replace("Add(s1, mask)", "Add(mask, s1)") if swapped else MASKED, mask=axes)
    after = apply(FuseAttention(), before)
    assert "Attention" in ops(after.graph)
    assert ("Expand" in ops(after.graph)) == stretched
    assert_same(before, after.graph, feeds(mask=3 * floats(*shape, seed=4)))


def test_a_constant_mask() -> None:
    before = model(MASKED.replace("mask)", "causal)"))
    after = apply(FuseAttention(), before)
    assert "Attention" in ops(after.graph)
    assert_same(before, after.graph, feeds() | {"q": floats(2, 5, 16)})


def test_a_mask_that_two_attentions_share_is_stretched_once() -> None:
    names = ("q4", "k4", "v4", "qt", "kt", "vt", "s0", "s1", "s2", "p", "o", "t", "y")
    second = re.sub(rf"\b({'|'.join(names)})\b", r"\1b", MASKED.replace("quarter", "half"))
    unnamed = re.sub(r"\[[a-z]+\]", "", second)
    body = f"{MASKED.replace('y =', 'ya =')} {unnamed} y = Sub(ya, yb)"
    before = model(body, mask="batch,1,1,column")
    after = apply(FuseAttention(), before)
    assert (ops(after.graph).count("Attention"), ops(after.graph).count("Expand")) == (2, 1)
    assert_same(before, after.graph, feeds(mask=floats(2, 1, 1, 5)), rtol=1e-5)


def test_positions_that_may_look_at_nothing_return_zeros() -> None:
    mask = floats(2, 1, 3, 5)
    mask[0, 0, 1] = mask[1] = -np.inf
    before = model(GUARDED, mask="batch,1,row,column")
    after = apply(FuseAttention(), before)
    assert ops(after.graph)[-4:] == ["IsNaN", "Where", "Reshape", "Reshape"]
    assert_same(before, after.graph, feeds(mask=mask))


def test_heads_that_serve_several_queries() -> None:
    before = model(GROUPED, GROUPED_INPUTS)
    after = apply(FuseAttention(), before)
    (node,) = [node for node in after.graph.nodes if node.op == "Attention"]
    assert (node.attrs["q_num_heads"], node.attrs["kv_num_heads"]) == (4, 2)
    assert_same(before, after.graph, feeds(8))


def test_one_head_that_serves_all_queries() -> None:
    body = PLAIN.replace("Reshape(k, apart)", "Reshape(k, single)").replace("Reshape(v, apart)", "Reshape(v, single)")
    before = model(body, INPUTS.replace("column,16", "column,4"))
    after = apply(FuseAttention(), before)
    assert "Attention" in ops(after.graph)
    assert_same(before, after.graph, feeds(4))


READ = "r = ReduceSum<keepdims=0>({}) z = Reshape(t, whole) y = Mul(z, r)"
UNMASKED = GUARDED.replace("[mask] s2 = Add(s0, mask) soft = Softmax(s2)", "soft = Softmax(s0)")
REFUSED: dict[str, tuple[str, str]] = {
    "another axis": (PLAIN.replace("axis=-1", "axis=2"), "Its Softmax does not run over the keys."),
    "a factor for each head": (PLAIN.replace("(s0, quarter)", "(s0, factors)"), "It scales by more than one number."),
    "scores are read": (PLAIN.replace("y = Reshape(t, whole)", READ.format("s0")), "'s0' is read elsewhere too."),
    "weights are read": (PLAIN.replace("y = Reshape(t, whole)", READ.format("p")), "'p' is read elsewhere too."),
    "1/2 for NaN": (UNMASKED.replace("zero, soft", "half, soft"), "It replaces NaN by something else than 0."),
    "scores for NaN": (UNMASKED.replace("zero, soft", "zero, s0"), "It replaces NaN by something else than 0."),
}


@pytest.mark.parametrize("case", REFUSED)
def test_leaves_alone(case: str) -> None:
    body, reason = REFUSED[case]
    before = model(body)
    after = apply(FuseAttention(), before)
    assert refusal(after, "turn") == reason
    assert listing(after.graph) == listing(before)


def test_leaves_old_opsets_alone() -> None:
    before = model(PLAIN, opset=22)
    assert refusal(apply(FuseAttention(), before), "turn") == "Attention came with opset 23; the model has 22."


def test_leaves_doubles_alone() -> None:
    weights = {name: v.astype(np.float64) if v.dtype == np.float32 else v for name, v in W.items()}
    before = read(f"({INPUTS.replace('float', 'double')}) => (double[a,b,16] y) {{ {PLAIN} }}", weights, 23)
    assert refusal(apply(FuseAttention(), before), "turn") == "It computes in float64, not in float32."


def test_leaves_heads_alone_whose_number_is_not_known() -> None:
    before = model(PLAIN.replace("(q, apart)", "(q, shape)"), f"{INPUTS}, int64[4] shape")
    assert refusal(apply(FuseAttention(), before), "turn") == "The number of its heads is not known."


def test_leaves_heads_alone_that_are_not_as_many() -> None:
    inputs = INPUTS.replace("column,16] v", "column,4] v")
    before = model(PLAIN.replace("Reshape(v, apart)", "Reshape(v, single)"), inputs)
    assert refusal(apply(FuseAttention(), before), "turn") == "4 heads of queries meet 4 of keys and 1 of values."


def test_leaves_a_result_alone_that_is_turned_otherwise() -> None:
    body = PLAIN.replace("t = Transpose<perm=[0,2,1,3]>(o)", "t = Transpose<perm=[0,2,3,1]>(o)")
    before = model(body.replace("Reshape(t, whole)", "Reshape(t, rows)"), f"{INPUTS}, int64[3] rows")
    reason = "Its result is not turned back to [batch, positions, heads, channels]."
    assert refusal(apply(FuseAttention(), before), "turn") == reason


def test_leaves_keys_alone_that_another_reshape_mixes() -> None:
    body = PLAIN.replace(KEYS, SWAPPED.replace("Concat<axis=0>(left, z2, z3)", "Concat<axis=0>(left, z3, z2)"))
    before = model(body)
    reason = "Its keys go through a Reshape that may do more than swap two axes."
    assert refusal(apply(FuseAttention(), before), "turn") == reason


def test_leaves_heads_alone_that_are_repeated_otherwise() -> None:
    before = model(GROUPED.replace("Unsqueeze(kh, axis2)", "Unsqueeze(kh, axis1)"), GROUPED_INPUTS)
    reason = "Its keys or values are repeated along something else than heads."
    assert refusal(apply(FuseAttention(), before), "turn") == reason


def test_leaves_other_products_alone() -> None:
    for body in (PLAIN.replace("perm=[0,2,3,1]", "perm=[0,2,1,3]"), PLAIN.replace("Softmax<axis=-1>(s1)", "Relu(s1)")):
        before = model(body.replace("column", "row"), INPUTS.replace("column,16", "4,16").replace("row,16", "4,16"))
        after = apply(FuseAttention(), before)
        assert (listing(after.graph), changes(after)) == (listing(before), [])
