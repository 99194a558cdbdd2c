"""Every form in which a tool stores a layer: its weight, its bias, and how it reads its input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from onnxq.diagnosis.stored import Reader, StoredLayer, make_grid
from onnxq.numerics.formats import INT8, UINT8
from onnxq.search.switches import Grid
from tests.onnx_text import Array, floats, grid, integers, read

W: dict[str, Array] = integers("w", (6, 4), axis=1, symmetric=False)
FLAT = ((W["w"].astype(np.float32) - W["w_zero"]) * W["w_scale"]).astype(np.float32)
STEPS = grid("x", -3, 3) | grid("y", -9, 9)
BIAS = {"b": np.array([10, -20, 30, 40], np.int32)}
C = {"c": np.ones(4, np.float32)}
TURNED = {**W, "w": np.ascontiguousarray(W["w"].T)}
MICROSOFT = "com.microsoft."


def layers(
    body: str, weights: Mapping[str, Any], interface: str = "(float[n,6] x) => (float[n,4] y)"
) -> list[StoredLayer]:
    used = {name: values for name, values in weights.items() if name in body}
    return list(Reader.of(read(f"{interface} {{ {body} }}", used)).layers())


def only(body: str, weights: Mapping[str, Any], **options: Any) -> StoredLayer:
    (found,) = layers(body, weights, **options)
    return found


IN = "q = QuantizeLinear(x, x_scale, x_zero) f = DequantizeLinear(q, x_scale, x_zero) "
OUT = " y = DequantizeLinear(z, y_scale, y_zero)"
V = "v = DequantizeLinear<axis=1>(w, w_scale, w_zero) "
VT = "v = DequantizeLinear<axis=0>(w, w_scale, w_zero) "
K = "k = DequantizeLinear(b, x_scale) "
Q = "q = QuantizeLinear(x, x_scale, x_zero) "
D = "q, xs, xz = DynamicQuantizeLinear(x) "
INTEGER = "q, x_scale, x_zero, w, w_scale, w_zero"
SCALED = "c = Cast<to=1>(m) s = Mul(xs, w_scale) y = Mul(c, s)"
FORMS: dict[str, tuple[str, dict[str, Array], str, bool]] = {
    "MatMul": (IN + V + "y = MatMul(f, v)", W, "static", False),
    "Gemm": (IN + V + K + "y = Gemm(f, v, k)", W | BIAS, "static", True),
    "Gemm turned": (IN + VT + "y = Gemm<transB=1>(f, v)", TURNED, "static", False),
    "MatMul, Transpose": (IN + VT + "t = Transpose(v) y = MatMul(f, t)", TURNED, "static", False),
    "MatMul, Add": (IN + V + K + "m = MatMul(f, v) y = Add(m, k)", W | BIAS, "static", True),
    "MatMul, Q, DQ, Add": (
        IN + V + K + "m = MatMul(f, v) mq = QuantizeLinear(m, y_scale, y_zero) "
        "mf = DequantizeLinear(mq, y_scale, y_zero) y = Add(mf, k)",
        W | BIAS,
        "static",
        True,
    ),
    "QLinearMatMul": (Q + f"z = QLinearMatMul({INTEGER}, y_scale, y_zero)" + OUT, W, "static", False),
    "QGemm": (Q + f"z = {MICROSOFT}QGemm({INTEGER}, b, y_scale, y_zero)" + OUT, W | BIAS, "static", True),
    "QGemm turned": (Q + f"y = {MICROSOFT}QGemm<transB=1>({INTEGER}, b)", TURNED | BIAS, "static", True),
    "MatMulIntegerToFloat": (
        Q + f"y = {MICROSOFT}MatMulIntegerToFloat(q, w, x_scale, w_scale, x_zero, w_zero, c)",
        W | C,
        "static",
        True,
    ),
    "MatMulIntegerToFloat, dynamic": (
        D + f"y = {MICROSOFT}MatMulIntegerToFloat(q, w, xs, w_scale, xz, w_zero)",
        W,
        "dynamic",
        False,
    ),
    "DynamicQuantizeMatMul": (
        f"y = {MICROSOFT}DynamicQuantizeMatMul(x, w, w_scale, w_zero, c)",
        W | C,
        "dynamic",
        True,
    ),
    "MatMulInteger": (
        D + "m = MatMulInteger(q, w, xz, w_zero) " + SCALED,
        W,
        "dynamic",
        False,
    ),
    "MatMul, dynamic": (D + "f = DequantizeLinear(q, xs, xz) " + V + "y = MatMul(f, v)", W, "dynamic", False),
    "MatMul, weight only": (V + "y = MatMul(x, v)", W, "float", False),
}


@pytest.mark.parametrize("form", FORMS)
def test_linear_layers(form: str) -> None:
    body, weights, treatment, has_bias = FORMS[form]
    found = only(body, weights | STEPS)
    np.testing.assert_allclose(found.weight.values, FLAT, rtol=1e-6)
    np.testing.assert_array_equal(found.weight.integers, W["w"])
    assert (found.weight.scales, found.weight.axis, found.weight.format) == (4, 1, INT8)
    assert not found.is_convolution
    if treatment == "static":
        assert isinstance(found.data, Grid)
        assert (found.data.scale.item(), found.data.zero_point.item()) == (
            STEPS["x_scale"].item(),
            STEPS["x_zero"].item(),
        )
    else:
        assert found.data == {"dynamic": "dynamic", "float": None}[treatment]
    assert (found.bias is not None) == has_bias
    if found.bias is not None and "b" in weights:
        unit = STEPS["x_scale"] * (W["w_scale"] if form.startswith("QGemm") else 1)
        np.testing.assert_allclose(found.bias, BIAS["b"] * unit, rtol=1e-6)


INTEGERS_OUT = {"QLinearMatMul", "QGemm", "MatMul, Q, DQ, Add"}


@pytest.mark.parametrize("form", FORMS)
def test_who_returns_integers(form: str) -> None:
    body, weights, *_ = FORMS[form]
    assert only(body, weights | STEPS).returns_integers == (form in INTEGERS_OUT)


def test_convolutions() -> None:
    picture = "(float[n,2,4,4] x) => (float[n,3,4,4] y)"
    kernel = integers("w", (3, 2, 1, 1), axis=0)
    values = kernel["w"] * kernel["w_scale"].reshape(-1, 1, 1, 1)
    bias = {"b": np.array([1, 2, 3], np.int32)}
    fixed = only(Q + f"z = QLinearConv({INTEGER}, y_scale, y_zero, b)" + OUT, kernel | STEPS | bias, interface=picture)
    moving = only(
        D + "m = ConvInteger(q, w, xz) c = Cast<to=1>(m) s = Mul(xs, one) p = Mul(c, s) y = Add(p, p)",
        {"w": kernel["w"], "one": np.float32(0.5)},
        interface=picture,
    )
    np.testing.assert_allclose(fixed.weight.values, values, rtol=1e-6)
    assert fixed.bias is not None
    np.testing.assert_allclose(fixed.bias, bias["b"] * STEPS["x_scale"] * kernel["w_scale"], rtol=1e-6)
    assert (fixed.weight.axis, fixed.is_convolution, fixed.returns_integers) == (0, True, True)
    np.testing.assert_allclose(moving.weight.values, kernel["w"] * 0.5)
    assert (moving.data, moving.weight.scales, moving.is_convolution) == ("dynamic", 1, True)
    assert "p" in moving.names, "the float model knows the tensor behind the scales"


PADDED = "p = Pad(q, pads) z = QLinearConv(p, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero)"


@pytest.mark.parametrize(
    ("pads", "kept"),
    [([0, 0, 0, 0, 0, 2, 0, 0], 2), ([0, 0, 1, 1, 0, 0, 1, 1], 4), ([0, 1, 0, 0, 0, 1, 0, 0], 4)],
    ids=["channels behind", "pixels", "channels around"],
)
def test_channels_that_were_padded_are_left_out(pads: list[int], kept: int) -> None:
    kernel = integers("w", (3, 4, 1, 1), axis=0) | {"pads": np.asarray(pads)}
    picture = f"(float[n,{4 - pads[1] - pads[5]},4,4] x) => (float[n,3,{4 + 2 * pads[2]},{4 + 2 * pads[3]}] y)"
    found = only(Q + PADDED + OUT, kernel | STEPS, interface=picture)
    assert found.weight.integers is not None
    np.testing.assert_array_equal(found.weight.integers, kernel["w"][:, :kept])
    assert found.weight.values.shape == found.weight.integers.shape


def test_layers_that_stayed_in_float() -> None:
    weights = {"u": np.arange(24, dtype=np.float32).reshape(6, 4), "v": np.ones((5, 4), np.float32)} | W
    body = (
        "a = MatMul(x, u) b = Gemm<transB=1>(a, v) v8 = DequantizeLinear<axis=1>(w, w_scale, w_zero) y = MatMul(x, v8)"
    )
    graph = read(f"(float[n,6] x) => (float[n,5] b, float[n,4] y) {{ {body} }}", weights)
    first, second = Reader.of(graph).float_layers()
    assert (first.names[1:], first.weight.scales, first.data) == (("u", "a"), 0, None)
    np.testing.assert_array_equal(first.weight.values, weights["u"])
    assert second.weight.values.shape == (4, 5), "as a product has it"
    assert [layer.names[2] for layer in Reader.of(graph).layers()] == ["y"]
    fused = read(
        f"(float[n,2,4,4] x) => (float[n,3,4,4] y) {{ y = {MICROSOFT}FusedConv(x, k) }}", {"k": floats(3, 2, 1, 1)}
    )
    assert [layer.is_convolution for layer in Reader.of(fused).float_layers()] == [True]


def test_what_is_no_layer_with_a_quantized_weight() -> None:
    plain = {"w": np.ones((6, 4), np.float32)}
    assert layers("y = MatMul(x, w)", plain) == []
    assert layers(IN + "y = MatMul(f, w)", plain | STEPS) == [], "its weight is float"
    both = IN + "t = Transpose(f) z = MatMul(f, t) y = MatMul(z, x)"
    assert layers(both, STEPS, interface="(float[6,6] x) => (float[6,6] y)") == [], "activations alone"


def test_grids_that_are_none() -> None:
    zero = np.zeros((), np.uint8)
    assert make_grid(np.asarray(np.inf, np.float32), zero) is None
    assert make_grid(np.asarray(0, np.float32), zero) is None
    assert make_grid(np.asarray(1, np.float32), np.zeros((), np.int32)) is None
    found = make_grid(np.asarray([0.5], np.float32), np.asarray([7], np.uint8))
    assert found is not None
    assert (found.scale.shape, int(found.zero_point), found.format) == ((), 7, UINT8)
