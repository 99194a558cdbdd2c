"""Each kind of difference between two graphs, with a case in which it must not be reported."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.graphdiff.findings import GraphDiff
from tests.graphdiff.pairs import differ, lines
from tests.onnx_text import floats, grid, integers, into, out_of, stored

LINEAR = "(float[N,16] x) => (float[N,8] y)"
PICTURE = "(float[2,3,8,8] x) => (float[2,4,8,8] y)"
SMALL = "(float[N,4] x) => (float[N,4] y)"
CONV = "c = Conv<pads=[1,1,1,1]>(x, w, b)\n"
NORM = "n = BatchNormalization(c, scale, b, mean, var)\n"

W, CHANNELS = floats(16, 8), 1 + floats(4, seed=4) ** 2
PLAIN: dict[str, Any] = {"w": W, "b": floats(8, seed=9)}
IMAGE: dict[str, Any] = {
    "w": floats(4, 3, 3, 3),
    "b": floats(4, seed=2),
    "scale": CHANNELS,
    "mean": floats(4, seed=6),
    "var": 1 + floats(4, seed=7) ** 2,
}
FACTOR = (IMAGE["scale"] / np.sqrt(IMAGE["var"] + 1e-5)).reshape(-1, 1, 1, 1)
INTEGER: dict[str, Any] = {**integers("w", (16, 8), axis=1), **grid("x", -3, 3), **grid("y", -4, 4), "b": floats(8)}
INTEGER["f"] = ((INTEGER["w"].astype(np.float32) - INTEGER["w_zero"]) * INTEGER["w_scale"]).astype(np.float32)


def texts(found: GraphDiff) -> list[str]:
    """How each detail was and is."""
    return [f"{detail.before} -> {detail.after}" for edit in found.edits for detail in edit.details]


def apart(found: GraphDiff) -> list[float | None]:
    """By how much numbers differ."""
    return [detail.max_difference for edit in found.edits for detail in edit.details if detail.aspect == "weights"]


def names(before: str, after: str, weights: dict[str, Any] | None = None) -> tuple[str, str, dict[str, Any]]:
    return before, after, weights or {}


SAME = {
    "the same text": names(f"{SMALL} {{ a = Relu(x) y = Neg(a) }}", f"{SMALL} {{ a = Relu(x) y = Neg(a) }}"),
    "inner tensors renamed": names(f"{SMALL} {{ a = Relu(x) y = Neg(a) }}", f"{SMALL} {{ q = Relu(x) y = Neg(q) }}"),
    "nodes renamed": names(f"{SMALL} {{ [n] y = Relu(x) }}", f"{SMALL} {{ [m] y = Relu(x) }}"),
    "a default written out": names(f"{SMALL} {{ y = LeakyRelu(x) }}", f"{SMALL} {{ y = LeakyRelu<alpha=0.01>(x) }}"),
    "a weight renamed": names(f"{LINEAR} {{ y = MatMul(x, w) }}", f"{LINEAR} {{ y = MatMul(x, v) }}", {"w": W, "v": W}),
    "operands of a sum exchanged": names(
        f"{SMALL} {{ a = Relu(x) y = Add(a, x) }}", f"{SMALL} {{ a = Relu(x) y = Add(x, a) }}"
    ),
    "trailing optional input": names(
        f"{SMALL} {{ y = Clip(x, low) }}", f'{SMALL} {{ y = Clip(x, low, "") }}', {"low": np.float32(0)}
    ),
    "independent nodes in another order": names(
        f"{SMALL} {{ a = Relu(x) b = Neg(x) y = Sub(a, b) }}", f"{SMALL} {{ b = Neg(x) a = Relu(x) y = Sub(a, b) }}"
    ),
    "the same computation twice": names(
        f"{SMALL} {{ a = Relu(x) b = Relu(x) y = Sub(a, b) }}", f"{SMALL} {{ a = Relu(x) b = Relu(x) y = Sub(b, a) }}"
    ),
    "nothing at all": names("(float[4] x) => (float[4] x) { }", "(float[4] x) => (float[4] x) { }"),
}


@pytest.mark.parametrize("case", SAME)
def test_what_computes_the_same_is_the_same(case: str) -> None:
    before, after, weights = SAME[case]
    found = differ(before, after, weights)
    assert found.empty, lines(found)
    assert found.counts["kept"] == len(found.before.nodes)
    assert not any(found.raises(alarm) for alarm in ("inserted", "removed", "replaced", "interface", "precision"))


INSERTED = (f"{SMALL} {{ y = Relu(x) }}", f"{SMALL} {{ i = Neg(x) y = Relu(i) }}")


def test_inserted_and_removed() -> None:
    assert lines(differ(*INSERTED)) == ["inserted Neg"]
    assert lines(differ(INSERTED[1], INSERTED[0])) == ["removed Neg"]
    assert lines(differ(f"{SMALL} {{ y = Relu(x) d = Neg(x) }}", f"{SMALL} {{ y = Relu(x) }}")) == ["removed Neg"]
    twice = f"{SMALL} {{ a = Relu(x) b = Relu(x) y = Add(a, b) }}"
    assert lines(differ(twice, f"{SMALL} {{ a = Relu(x) y = Add(a, a) }}")) == ["removed Relu"]


def test_a_constant_that_became_a_weight() -> None:
    before = f"{SMALL} {{ c = Constant<value = float[4] {{1,2,3,4}}>() y = Add(x, c) }}"
    found = differ(before, f"{SMALL} {{ y = Add(x, k) }}", {"k": np.array([1, 2, 3, 4], np.float32)})
    assert lines(found) == ["removed Constant"]
    assert found.raises("removed")
    assert not found.raises("precision")


def test_another_operator() -> None:
    found = differ(f"{SMALL} {{ a = Relu(x) y = Neg(a) }}", f"{SMALL} {{ a = Sigmoid(x) y = Neg(a) }}")
    assert lines(found) == ["replaced Relu -> Sigmoid"]
    assert found.raises("replaced")
    assert not found.raises("inserted")


def test_attributes() -> None:
    found = differ(f"{SMALL} {{ y = LeakyRelu(x) }}", f"{SMALL} {{ y = LeakyRelu<alpha=0.02>(x) }}")
    assert lines(found) == ["changed LeakyRelu: attributes alpha"]
    assert texts(found) == ["0.01 -> 0.02"]
    assert found.raises("changed")
    assert not found.raises("precision")


def test_weights_with_their_largest_difference() -> None:
    moved = W.copy()
    moved[3, 2] += 0.25
    before, after = f"{LINEAR} {{ y = MatMul(x, w) }}", f"{LINEAR} {{ y = MatMul(x, v) }}"
    found = differ(before, after, {"w": W, "v": moved})
    assert lines(found) == ["changed MatMul: weights w"]
    assert apart(found) == [pytest.approx(0.25, rel=1e-6)]
    assert not found.raises("precision")
    found = differ(before, f"{LINEAR} {{ u = Cast<to=1>(v) y = MatMul(x, u) }}", {"w": W, "v": W.astype(np.float16)})
    assert lines(found) == ["replaced MatMul -> MatMul + Cast: weights w"]
    assert texts(found) == ["float32[16, 8] -> float16[16, 8]"]
    assert 0 < (apart(found)[0] or 0) < 2e-3
    assert found.raises("precision")


def test_a_weight_that_was_turned() -> None:
    weights = PLAIN | {"v": np.ascontiguousarray(W.T)}
    found = differ(f"{LINEAR} {{ y = Gemm(x, w, b) }}", f"{LINEAR} {{ y = Gemm<transB=1>(x, v, b) }}", weights)
    assert lines(found) == ["changed Gemm: attributes transB, weights w"]
    assert apart(found) == [0.0]


def test_a_folded_norm_is_a_factor_for_each_channel() -> None:
    weights = IMAGE | {"w2": (IMAGE["w"] * FACTOR).astype(np.float32), "b2": floats(4, seed=5)}
    after = f"{PICTURE} {{ c = Conv<pads=[1,1,1,1]>(x, w2, b2) y = Relu(c) }}"
    found = differ(f"{PICTURE} {{ {CONV} {NORM} y = Relu(n) }}", after, weights)
    assert lines(found) == ["replaced Conv + BatchNormalization -> Conv: weights w b"]
    assert "each channel rescaled" in texts(found)[0]
    assert (apart(found)[0] or 1) < 1e-5


def test_fusion() -> None:
    fused = '{ y = com.microsoft.FusedConv<pads=[1,1,1,1],activation="Relu">(x, w, b) }'
    found = differ(f"{PICTURE} {{ {CONV} y = Relu(c) }}", f"{PICTURE} {fused}", IMAGE)
    assert lines(found) == ["replaced Conv + Relu -> com.microsoft.FusedConv"]
    found = differ(f"{LINEAR} {{ m = MatMul(x, w) y = Add(m, b) }}", f"{LINEAR} {{ y = Gemm(x, w, b) }}", PLAIN)
    assert lines(found) == ["replaced MatMul + Add -> Gemm"]
    before = f"{LINEAR} {{ m = MatMul(x, w) s = Sigmoid(m) t = Mul(m, s) y = Neg(t) }}"
    after = f"{LINEAR} {{ m = MatMul(x, w) t = com.microsoft.QuickGelu<alpha=1.0>(m) y = Neg(t) }}"
    assert lines(differ(before, after, PLAIN)) == ["replaced Sigmoid + Mul -> com.microsoft.QuickGelu"]


def test_conversions_are_inserted_around_what_stays() -> None:
    before = f"{LINEAR} {{ m = MatMul(x, f) y = Relu(m) }}"
    after = f"{LINEAR} {{ {into('x')} {stored('w', 1)} m = MatMul(x_f, w_f) r = Relu(m) {out_of('r')} }}"
    found = differ(before, after, INTEGER)
    assert lines(found) == [
        "inserted QuantizeLinear + DequantizeLinear",
        "replaced MatMul -> MatMul + DequantizeLinear: weights f",
        "inserted QuantizeLinear + DequantizeLinear",
    ]
    assert texts(found)[0].startswith("float32[16, 8] -> int8[16, 8], 8 scales from")
    assert apart(found) == [0.0]
    assert found.raises("precision")
    node = next(node for node in found.after.nodes if node.op == "QuantizeLinear")
    assert node.grids == {"x": "uint8, scale 0.02353, zero point 127"}


def test_an_activation_that_the_range_replaces() -> None:
    before = f"{LINEAR} {{ m = MatMul(x, f) y = Relu(m) }}"
    found = differ(before, f"{LINEAR} {{ m = MatMul(x, f) {out_of('m')} }}", INTEGER)
    assert lines(found) == ["replaced Relu -> QuantizeLinear + DequantizeLinear: requantized x"]


def test_integer_operators() -> None:
    before = f"{LINEAR} {{ m = MatMul(x, f) y = Add(m, b) }}"
    after = f"{LINEAR} {{ y = com.microsoft.DynamicQuantizeMatMul(x, w, w_scale, w_zero, b) }}"
    found = differ(before, after, INTEGER)
    assert lines(found) == ["replaced MatMul + Add -> com.microsoft.DynamicQuantizeMatMul: weights f, requantized B"]
    spelled = """{ q, s, z = DynamicQuantizeLinear(x) i = MatMulInteger(q, w, z, w_zero) c = Cast<to=1>(i)
        t = Mul(s, w_scale) m = Mul(c, t) y = Add(m, b) }"""
    (line,) = lines(differ(before, f"{LINEAR} {spelled}", INTEGER))
    assert line.startswith("replaced MatMul -> MatMulInteger + DynamicQuantizeLinear + Cast + Mul + Mul: weights f")


def test_scales() -> None:
    before = f"{LINEAR} {{ {into('x')} y = MatMul(x_f, f) }}"
    other = "x_q = QuantizeLinear(x, y_scale, y_zero) x_f = DequantizeLinear(x_q, y_scale, y_zero)"
    found = differ(before, f"{LINEAR} {{ {other} y = MatMul(x_f, f) }}", INTEGER)
    assert lines(found) == ["changed QuantizeLinear: requantized x", "changed DequantizeLinear: requantized x"]
    assert texts(found)[0] == "uint8, scale 0.02353, zero point 127 -> uint8, scale 0.03137, zero point 127"
    assert found.raises("precision")
    assert differ(before, before, INTEGER).empty


def test_types() -> None:
    half = "h = Cast<to=10>(x) m = MatMul(h, v) r = Relu(m) y = Cast<to=1>(r)"
    weights = {"w": W, "v": W.astype(np.float16)}
    found = differ(f"{LINEAR} {{ m = MatMul(x, w) y = Relu(m) }}", f"{LINEAR} {{ {half} }}", weights)
    assert lines(found) == [
        "inserted Cast",
        "changed MatMul: weights w, retyped m",
        "changed Relu: retyped y",
        "inserted Cast",
    ]
    wide = differ(f"{SMALL} {{ y = Relu(x) }}", "(double[N,4] x) => (double[N,4] y) { y = Relu(x) }")
    assert lines(wide) == ["changed Relu: retyped y"]
    assert wide.raises("interface")
    assert wide.raises("precision")


def test_wiring() -> None:
    found = differ(f"{SMALL} {{ a = Relu(x) y = Sub(a, x) }}", f"{SMALL} {{ a = Relu(x) y = Sub(x, a) }}")
    assert lines(found) == ["changed Sub: rewired A B"]
    split = "(float[N,4] x) => (float[N,2] y, float[N,2] z)"
    before = f"{split} {{ a, b = Split<axis=1>(x) y = Relu(a) z = Sigmoid(b) }}"
    after = f"{split} {{ a, b = Split<axis=1>(x) y = Relu(b) z = Sigmoid(a) }}"
    assert lines(differ(before, after)) == ["changed Relu: rewired X", "changed Sigmoid: rewired X"]
    skipped = differ(
        f"{SMALL} {{ a = Relu(x) b = Neg(a) y = Add(b, x) }}", f"{SMALL} {{ a = Relu(x) b = Neg(a) y = Add(b, a) }}"
    )
    assert lines(skipped) == ["changed Add: rewired inputs"]


IF = """(bool c, float[4] x) => (float[4] y) {{ k = Neg(x) y = If(c) <then_branch = one () => (float[4] {0}) {{
    {1} = Relu(k) {0} = Neg({1}) }}, else_branch = two () => (float[4] {2}) {{ {2} = {3}(x) }}> }}"""


def test_bodies() -> None:
    before = IF.format("a", "t", "b", "Abs")
    assert differ(before, IF.format("q", "r", "s", "Abs")).empty
    found = differ(before, IF.format("a", "t", "b", "Exp"))
    assert lines(found) == ["changed If: attributes else_branch"]
    assert texts(found) == ["graph of Abs -> graph of Exp"]
    captured = next(node for node in found.before.nodes if node.op == "If").captured
    assert captured == ["x", "k"]  # of the else branch, then of the other one
    assert lines(differ(before, before.replace("Neg(x)", "Abs(x)"))) == ["replaced Neg -> Abs"]
    assert lines(differ(before, before.replace("Relu(k)", "Relu(x)"))) == ["changed If: rewired bodies"]


def test_operands_exchanged_in_a_body() -> None:
    text = "(bool c, float[4] x) => (float[4] y) {{ k = Neg(x) y = If(c) <{}> }}"
    branches = (
        "then_branch = one () => (float[4] a) {{ a = Sub({}) }}, else_branch = two () => (float[4] b) {{ b = Exp(x) }}"
    )
    before, after = (text.format(branches.format(order)) for order in ("k, x", "x, k"))
    assert differ(before, before).empty
    assert lines(differ(before, after)) == ["changed If: rewired bodies bodies"]


def test_weights_of_another_size() -> None:
    weights = {"w": floats(16, 6), "v": floats(6, 8), "w2": floats(16, 12, seed=8), "v2": floats(12, 8, seed=9)}
    before, after = (f"{LINEAR} {{ m = MatMul(x, w{n}) y = MatMul(m, v{n}) }}" for n in ("", "2"))
    found = differ(before, after, weights)
    assert lines(found) == ["changed MatMul: weights w", "changed MatMul: weights v"]
    assert apart(found) == [None, None]


def test_two_graphs_that_have_nothing_in_common() -> None:
    other = "(float[2,3,8,8] p) => (float[2,4,8,8] z, float[2,4,8,8] u) { z = Conv<pads=[1,1,1,1]>(p, k) u = Exp(z) }"
    found = differ(f"{LINEAR} {{ m = MatMul(x, w) y = Relu(m) }}", other, {"w": W, "k": IMAGE["w"]})
    assert sorted(lines(found)) == ["inserted Conv + Exp", "removed MatMul + Relu"]
    assert len(found.interface) == 5
    assert found.raises("interface")


def test_sizes() -> None:
    found = differ(*INSERTED)
    assert (found.edits[0].bytes_before, found.edits[0].bytes_after) == (0, 0)
    before = f"{LINEAR} {{ m = MatMul(x, f) y = Add(m, b) }}"
    after = f"{LINEAR} {{ y = com.microsoft.DynamicQuantizeMatMul(x, w, w_scale, w_zero, b) }}"
    found = differ(before, after, INTEGER)
    assert found.edits[0].bytes_before == 4 * (16 * 8 + 8)
    assert found.edits[0].bytes_after == 16 * 8 + 4 * 8 + 8 + 4 * 8
    assert found.before.weight_bytes >= found.edits[0].bytes_before
