"""Which readers of which tensors see something else in the quantized graph."""

from __future__ import annotations

import numpy as np

from onnxq.diagnosis.suspects import Case, open_case
from onnxq.graph import Graph
from tests.onnx_text import Array, floats, grid, integers, read

FLOAT = """(float[n,6] x) => (float[n,4] y, float[n,8] r) {
    [one] a = MatMul(x, v) [act] r = Relu(a) [two] y = MatMul(r, w)
}"""
WEIGHTS = {"v": floats(6, 8), "w": floats(8, 4, seed=4)}
PARTS: dict[str, Array] = {
    **integers("v_quantized", (6, 8)),
    **integers("w_quantized", (8, 4)),
    **grid("x", -3, 3),
    **grid("a", -9, 9),
    **grid("r", 0, 9),
    **grid("y", -30, 30),
}
WEIGHT_LINES = """
    v_f = DequantizeLinear(v_quantized, v_quantized_scale, v_quantized_zero)
    w_f = DequantizeLinear(w_quantized, w_quantized_scale, w_quantized_zero)
"""


def case(quantized: str, float_text: str = FLOAT, **more: Array) -> Case:
    used = {name: values for name, values in (PARTS | more).items() if name in quantized or name in WEIGHT_LINES}
    return open_case(read(float_text, WEIGHTS), graph(quantized, used))


def graph(text: str, weights: dict[str, Array]) -> Graph:
    made = read(text.replace("WEIGHTS", WEIGHT_LINES), weights)
    made.tidy()
    return made


def seen(found: Case) -> set[tuple[str, tuple[str, ...]]]:
    """Activations that are rounded, and for whom."""
    return {(s.tensor, s.readers) for s in found.switches.values() if s.values is None}


def test_a_float_operator_beside_a_quantized_reader_sees_floats() -> None:
    found = case(
        """(float[n,6] x) => (float[n,4] y, float[n,8] r) { WEIGHTS
        x_q = QuantizeLinear(x, x_scale, x_zero) x_f = DequantizeLinear(x_q, x_scale, x_zero)
        [one] a = MatMul(x_f, v_f) [act] r = Relu(a)
        r_q = QuantizeLinear(r, r_scale, r_zero) r_f = DequantizeLinear(r_q, r_scale, r_zero)
        [side] k = ReduceMean<axes=[1]>(r) [two] z = MatMul(r_f, w_f) y = Add(z, k)
    }""",
        FLOAT.replace(
            "[two] y = MatMul(r, w)", "[side] k = ReduceMean<axes=[1]>(r) [two] z = MatMul(r, w) y = Add(z, k)"
        ),
    )
    assert seen(found) == {("x", ("one",)), ("r", ("two",))}, "the output r is what Relu returned"
    assert [suspect.node.name for suspect in found.suspects.values()] == ["one", "two"]
    assert found.suspects["one"].weight == ["one: weight"]
    assert found.suspects["one"].activation == ["one: input"]


def test_an_output_that_is_made_in_floats_is_not_rounded() -> None:
    found = case(
        """(float[n,6] x) => (float[n,8] y, float[n,8] r) { WEIGHTS
        x_q = QuantizeLinear(x, x_scale, x_zero) x_f = DequantizeLinear(x_q, x_scale, x_zero)
        [one] a = MatMul(x_f, v_f) [act] r = Relu(a)
        r_q = QuantizeLinear(r, r_scale, r_zero) r_f = DequantizeLinear(r_q, r_scale, r_zero) [two] y = LeakyRelu(r_f)
    }""",
        FLOAT.replace("y = MatMul(r, w)", "y = LeakyRelu(r)").replace("float[n,4] y", "float[n,8] y"),
    )
    assert seen(found) == {("x", ("one",)), ("r", ("two",))}


def test_an_output_that_is_made_in_integers_is_rounded() -> None:
    found = case("""(float[n,6] x) => (float[n,4] y, float[n,8] r) { WEIGHTS
        x_q = QuantizeLinear(x, x_scale, x_zero) x_f = DequantizeLinear(x_q, x_scale, x_zero)
        [one] a = MatMul(x_f, v_f) [act] r_unquantized = Relu(a)
        r_quantized = QuantizeLinear(r_unquantized, r_scale, r_zero) r = DequantizeLinear(r_quantized, r_scale, r_zero)
        [two] y_before = MatMul(r, w_f)
        y_quantized = QuantizeLinear(y_before, y_scale, y_zero) y = DequantizeLinear(y_quantized, y_scale, y_zero)
    }""")
    assert seen(found) == {("x", ("one",)), ("r", ("two",)), ("r", ("r",)), ("y", ("y",))}
    assert found.suspects["one"].activation == ["one: input", "r: between"]
    assert found.suspects["two"].activation == ["two: input", "y: between"]


def test_a_tensor_between_operators_belongs_to_the_layer_that_makes_it() -> None:
    found = case(
        """(float[n,6] x) => (float[n,4] y, float[n,8] r) { WEIGHTS
        x_q = QuantizeLinear(x, x_scale, x_zero) x_f = DequantizeLinear(x_q, x_scale, x_zero)
        [one] a = MatMul(x_f, v_f) a_quantized = QuantizeLinear(a, a_scale, a_zero)
        a_f = DequantizeLinear(a_quantized, a_scale, a_zero)
        [act] r = LeakyRelu(a_f) [two] y = MatMul(r, w)
    }""",
        FLOAT.replace("Relu", "LeakyRelu"),
        w=WEIGHTS["w"],
    )
    assert seen(found) == {("x", ("one",)), ("a", ("act",))}
    assert found.suspects["one"].activation == ["one: input", "a: between"]
    assert "two" not in found.suspects, "its weight is float"


def test_rounding_before_a_relu_is_told_as_rounding_behind_it() -> None:
    found = case(
        """(float[n,6] x) => (float[n,4] y) { WEIGHTS
        x_quantized = QuantizeLinear(x, x_scale, x_zero)
        [one] a_quantized = QLinearMatMul(x_quantized, x_scale, x_zero, v_quantized, v_quantized_scale,
            v_quantized_zero, r_scale, r_zero)
        a = DequantizeLinear(a_quantized, r_scale, r_zero)
        [side] k = ReduceMean<axes=[1]>(a)
        [two] z = MatMul(a, w) y = Add(z, k)
    }""",
        """(float[n,6] x) => (float[n,4] y) {
        [one] a = MatMul(x, v) [act] r = Relu(a) [side] k = ReduceMean<axes=[1]>(r) [two] z = MatMul(r, w) y = Add(z, k)
    }""",
        w=WEIGHTS["w"],
    )
    assert seen(found) == {("x", ("one",)), ("r", ("side", "two"))}


def test_constants_that_other_operators_read() -> None:
    text = "(float[n,6] x, int64[n] i) => (float[n,6] y) { [look] e = Gather(t, i) s = Mul(x, g) y = Add(e, s) }"
    exact = read(text, {"t": floats(9, 6), "g": floats(6, seed=2)})
    rows = integers("t_quantized", (9, 6), axis=0)
    rows["t_scale"] = rows.pop("t_quantized_scale").reshape(9, 1)
    factor = integers("g_quantized", (6,))
    del rows["t_quantized_zero"]
    quantized = read(
        """(float[n,6] x, int64[n] i) => (float[n,6] y) {
        q = Gather(t_quantized, i) c = Cast<to=1>(q) h = Gather(t_scale, i) e = Mul(c, h)
        g_f = DequantizeLinear(g_quantized, g_quantized_scale, g_quantized_zero) s = Mul(x, g_f) y = Add(e, s)
    }""",
        rows | factor,
    )
    found = open_case(exact, quantized)
    values = {switch.tensor: switch.values for switch in found.switches.values()}
    assert values.keys() == {"t", "g"}
    assert values["t"] is not None
    np.testing.assert_allclose(values["t"], rows["t_quantized"] * rows["t_scale"], rtol=1e-6)
    assert found.suspects["look"].weight == ["t: constant"]


def test_the_float_graph_is_not_touched() -> None:
    exact = read("(float[n,2,4,4] x) => (float[n,3,4,4] y) { [c] y = Conv(x, k) }", {"k": floats(3, 2, 1, 1)})
    parts = integers("k_quantized", (3, 2, 1, 1)) | grid("x", -3, 3) | {"b": np.array([5, -6, 7], np.int32)}
    scales = {"b_scale": np.asarray(0.01, np.float32)}
    quantized = read(
        """(float[n,2,4,4] x) => (float[n,3,4,4] y) {
        x_q = QuantizeLinear(x, x_scale, x_zero) x_f = DequantizeLinear(x_q, x_scale, x_zero)
        k_f = DequantizeLinear(k_quantized, k_quantized_scale, k_quantized_zero) b_f = DequantizeLinear(b, b_scale)
        [c] y = Conv(x_f, k_f, b_f)
    }""",
        parts | scales,
    )
    found = open_case(exact, quantized)
    assert len(exact.nodes[0].inputs) == 2
    bias = found.switches["c: bias"].values
    assert bias is not None
    np.testing.assert_allclose(bias, [0.05, -0.06, 0.07], rtol=1e-6)
    assert found.suspects["c"].weight == ["c: weight", "c: bias"]
