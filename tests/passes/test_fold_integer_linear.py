"""Linear layers and products of two activations: every variant folds, runs and stays close; what stays in float."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.graph import Graph
from onnxq.numerics.affine import quantize_bias
from onnxq.passes.fold_integer import FoldInteger
from tests.onnx_text import (
    apply,
    assert_same,
    assert_within,
    changes,
    floats,
    grid,
    integers,
    into,
    lines,
    listing,
    ops,
    out_of,
    read,
    refusal,
    stored,
)

K, N = 8, 5
Y = grid("y", -60, 60)
STEP = float(Y["y_scale"])
FLOAT_SUM = 1e-5
"""Float sums of K products and a bias err by at most K + 1 roundings of 6e-8, relative to the largest partial sum;
integer sums are exact. Ten times that, since a sum may cancel."""
FORMS = {
    "Gemm": ("[fc] c = Gemm(x_f, w_f{b})", (K, N), 1),
    "Gemm, transposed weight": ("[fc] c = Gemm<transB=1>(x_f, w_f{b})", (N, K), 0),
    "MatMul": ("[fc] {m} = MatMul(x_f, w_f)\n{add}", (K, N), 1),
}


def linear(
    form: str,
    *,
    x: tuple[int, ...] = (3, K),
    axis: bool = True,
    bias: str = "",
    swap: bool = False,
    relu: bool = False,
    integer: bool = False,
    bias_shape: tuple[int, ...] = (N,),
    weights: dict[str, Any] | None = None,
    inputs: str = "",
    outputs: str = "",
    rank: int = 0,
    opset: int = 17,
) -> Graph:
    """A linear layer behind DQ; with `integer`, its output goes through Q and DQ."""
    text, shape, channels = FORMS[form]
    along = channels if axis else None
    values: dict[str, Any] = grid("x", -3, 3) | integers("w", shape, axis=along) | Y | (weights or {})
    if bias == "int32":
        values["b"], values["b_scale"] = quantize_bias(floats(N), values["x_scale"], values["w_scale"])
        values["b_zero"] = np.zeros_like(values["b_scale"], np.int32)
    elif bias == "float":
        values["b_f"] = floats(*bias_shape)
    add = f"c = Add({'b_f, m' if swap else 'm, b_f'})\n" if bias else ""
    body = into("x") + stored("w", along) + (stored("b", 0 if axis else None) if bias == "int32" else "")
    body += text.format(b=", b_f" if bias else "", m="m" if bias else "c", add=add) + "\n"
    body += "r = Relu(c)\n" if relu else ""
    last = "r" if relu else "c"
    body += out_of(last) if integer else f"y = Identity({last})\n"
    sizes, names = ",".join(map(str, x)), ",".join("abcde"[: rank or len(x)])
    return read(f"(float[{sizes}] x{inputs}) => (float[{names}] y{outputs}) {{ {body} }}", values, opset)


def test_gemm_with_a_bias_returns_integers() -> None:
    after = apply(FoldInteger(), linear("Gemm, transposed weight", bias="int32", integer=True))
    assert listing(after.graph) == lines(
        """
        x_q = QuantizeLinear(x, x_scale, x_zero)
        y_q = com.microsoft.QGemm<transB=1>(x_q, x_scale, x_zero, w, w_scale, w_zero, b, y_scale, y_zero)
        y = DequantizeLinear(y_q, y_scale, y_zero)
        """
    )


def test_product_with_a_bias_returns_floats() -> None:
    after = apply(FoldInteger(), linear("MatMul", bias="float"))
    assert listing(after.graph) == lines(
        """
        x_q = QuantizeLinear(x, x_scale, x_zero)
        c = com.microsoft.MatMulIntegerToFloat(x_q, w, x_scale, w_scale, x_zero, "", b_f)
        y = Identity(c)
        """
    )


@pytest.mark.parametrize("axis", [False, True], ids=["per tensor", "per channel"])
@pytest.mark.parametrize("bias", ["", "int32", "float"])
@pytest.mark.parametrize("form", FORMS)
def test_float_output(form: str, bias: str, axis: bool) -> None:
    before = linear(form, bias=bias, axis=axis)
    after = apply(FoldInteger(), before)
    assert ops(after.graph) == ["QuantizeLinear", "MatMulIntegerToFloat", "Identity"]
    assert [(c.node, c.done) for c in changes(after)] == [("fc", "MatMulIntegerToFloat")]
    assert_same(before, after.graph, rtol=FLOAT_SUM)


@pytest.mark.parametrize("relu", [False, True], ids=["plain", "Relu"])
@pytest.mark.parametrize("axis", [False, True], ids=["per tensor", "per channel"])
@pytest.mark.parametrize("bias", ["", "int32", "float"])
@pytest.mark.parametrize("form", FORMS)
def test_integer_output(form: str, bias: str, axis: bool, relu: bool) -> None:
    y = grid("y", 0, 50) if relu else Y
    before = linear(form, bias=bias, axis=axis, relu=relu, integer=True, weights=y)
    after = apply(FoldInteger(), before)
    kernel = "QLinearMatMul" if form == "MatMul" and not bias else "QGemm"
    assert ops(after.graph) == ["QuantizeLinear", kernel, "DequantizeLinear"]
    assert [(c.node, c.done) for c in changes(after)] == [("fc", kernel)]
    assert_within(before, after.graph, float(y["y_scale"]))


@pytest.mark.parametrize("x", [(K,), (2, 3, K), (2, 2, 3, K)], ids=["1-D", "3-D", "4-D"])
@pytest.mark.parametrize("bias", ["", "float"])
def test_product_of_any_rank(x: tuple[int, ...], bias: str) -> None:
    before = linear("MatMul", x=x, bias=bias)
    after = apply(FoldInteger(), before)
    assert ops(after.graph) == ["QuantizeLinear", "MatMulIntegerToFloat", "Identity"]
    assert_same(before, after.graph, rtol=FLOAT_SUM)


@pytest.mark.parametrize("x", [(2, 3, K), (2, 2, 3, K)], ids=["3-D", "4-D"])
def test_product_of_any_rank_returns_integers(x: tuple[int, ...]) -> None:
    before = linear("MatMul", x=x, integer=True)
    after = apply(FoldInteger(), before)
    assert ops(after.graph) == ["QuantizeLinear", "QLinearMatMul", "DequantizeLinear"]
    assert_within(before, after.graph, STEP)


def test_bias_needs_a_matrix_where_integers_come_out() -> None:
    """QGemm takes two axes, QLinearMatMul no bias: the product and its bias return floats, which Q makes integer."""
    before = linear("MatMul", x=(2, 3, K), bias="float", integer=True)
    after = apply(FoldInteger(), before)
    assert ops(after.graph) == ["QuantizeLinear", "MatMulIntegerToFloat", "QuantizeLinear", "DequantizeLinear"]
    assert_within(before, after.graph, STEP)


@pytest.mark.parametrize("bias", ["int32", "float"])
@pytest.mark.parametrize("integer", [False, True])
def test_bias_on_the_left(bias: str, integer: bool) -> None:
    before = linear("MatMul", bias=bias, swap=True, integer=integer)
    after = apply(FoldInteger(), before)
    assert "Add" not in ops(after.graph)
    assert_same(before, after.graph, rtol=FLOAT_SUM, atol=STEP if integer else 0)


@pytest.mark.parametrize("x", [(3, K), (2, 3, K)])
def test_bias_of_one_row_of_several_axes(x: tuple[int, ...]) -> None:
    before = linear("MatMul", x=x, bias="float", bias_shape=(1, N))
    after = apply(FoldInteger(), before)
    assert "Add" not in ops(after.graph)
    assert_same(before, after.graph, rtol=FLOAT_SUM)


@pytest.mark.parametrize("format", ["int8", "uint8"])
@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_asymmetric_weight(form: str, integer: bool, format: str) -> None:
    """Linear kernels take a zero point for each channel."""
    _, shape, channels = FORMS[form]
    weight = integers("w", shape, axis=channels, format=format, symmetric=False)
    assert np.unique(weight["w_zero"]).size > 1
    before = linear(form, integer=integer, weights=weight)
    after = apply(FoldInteger(), before)
    assert ops(after.graph)[1] in ("MatMulIntegerToFloat", "QGemm", "QLinearMatMul")
    assert_same(before, after.graph, rtol=FLOAT_SUM, atol=STEP if integer else 0)


@pytest.mark.parametrize("opset", [10, 11, 13, 17, 21])
@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_every_opset(form: str, integer: bool, opset: int) -> None:
    for bias in ("", "float"):
        if opset == 10 and form.startswith("Gemm") and not bias:
            continue  # the bias of Gemm became optional in opset 11
        before = linear(form, bias=bias, integer=integer, axis=opset >= 13, opset=opset)
        after = apply(FoldInteger(), before)
        assert "DequantizeLinear" not in ops(after.graph)[:2]
        assert_same(before, after.graph, rtol=FLOAT_SUM, atol=STEP if integer else 0)


PRODUCTS = {
    "2-D": ((5, K), (K, 3)),
    "attention": ((2, 4, 5, 6), (2, 4, 6, 3)),
    "broadcast": ((4, 5, 6), (6, 3)),
}


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("shapes", PRODUCTS)
def test_two_activations(shapes: str, integer: bool) -> None:
    a, b = PRODUCTS[shapes]
    body = into("a", "b") + "[product] c = MatMul(a_f, b_f)\n" + (out_of("c") if integer else "y = Identity(c)")
    text = f"(float[{','.join(map(str, a))}] a, float[{','.join(map(str, b))}] b)"
    y = grid("y", -8, 8)
    before = read(
        f"{text} => (float[{','.join('uvwx'[: len(a)])}] y) {{ {body} }}", grid("a", -3, 3) | grid("b", -2, 3) | y
    )
    after = apply(FoldInteger(), before)
    kernel = "QLinearMatMul" if integer else "MatMulIntegerToFloat"
    assert [(c.node, c.done) for c in changes(after)] == [("product", kernel)]
    assert ops(after.graph)[2] == kernel
    assert_same(before, after.graph, rtol=FLOAT_SUM, atol=float(y["y_scale"]) if integer else 0)


FLOAT_FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "scale of 0": ({"weights": {"w_scale": np.float32(0)}, "axis": False}, "A scale of its weight is 0"),
    "int16 weight": ({"weights": integers("w", (K, N), format="int16"), "axis": False, "opset": 21}, "int16"),
    "signed input": ({"weights": grid("x", -3, 3, format="int8")}, "Its input is int8"),
    "scale for each input channel": (
        {"weights": {"x_scale": np.full(K, 0.02, np.float32), "x_zero": np.full(K, 128, np.uint8)}},
        "several scales",
    ),
}


@pytest.mark.parametrize("form", ["Gemm", "MatMul"])
@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("case", FLOAT_FORMS)
def test_stays_in_float(case: str, integer: bool, form: str) -> None:
    options, reason = FLOAT_FORMS[case]
    before = linear(form, integer=integer, **options)
    after = apply(FoldInteger(), before)
    assert reason in refusal(after, "fc")
    assert listing(after.graph) == listing(before)


@pytest.mark.parametrize(("form", "wrong"), [("Gemm", 0), ("Gemm, transposed weight", 1), ("MatMul", 0)])
@pytest.mark.parametrize("integer", [False, True])
def test_scales_along_the_inputs(form: str, wrong: int, integer: bool) -> None:
    text, shape, right = FORMS[form]
    body = (
        into("x")
        + stored("w", wrong)
        + text.format(b="", m="c", add="")
        + (out_of("c") if integer else "\ny = Identity(c)")
    )
    weights = grid("x", -3, 3) | integers("w", shape, axis=wrong) | Y
    before = read(f"(float[3,{K}] x) => (float[a,b] y) {{ {body} }}", weights)
    after = apply(FoldInteger(), before)
    assert refusal(after, "fc").endswith(f"along axis {wrong}, not along the output channels (axis {right}).")
    assert listing(after.graph) == listing(before)


@pytest.mark.parametrize(("axis", "scales"), [(0, (2, N)), (1, (K, 1)), (0, (1, N))])
def test_block_wise_scales(axis: int, scales: tuple[int, int]) -> None:
    block = (K, N)[axis] // scales[axis]
    body = into("x") + f"w_f = DequantizeLinear<axis={axis}, block_size={block}>(w, w_scale) [fc] y = MatMul(x_f, w_f)"
    weights = grid("x", -3, 3) | {"w": integers("w", (K, N))["w"], "w_scale": np.abs(floats(*scales))}
    before = read(f"(float[3,{K}] x) => (float[a,b] y) {{ {body} }}", weights, opset=21)
    after = apply(FoldInteger(), before)
    assert "a scale for each block" in refusal(after, "fc")
    assert listing(after.graph) == listing(before)


def test_batched_weight() -> None:
    body = into("x") + stored("w") + "[fc] y = MatMul(x_f, w_f)"
    weights = grid("x", -3, 3) | integers("w", (2, K, N))
    before = read(f"(float[2,3,{K}] x) => (float[a,b,c] y) {{ {body} }}", weights)
    after = apply(FoldInteger(), before)
    assert refusal(after, "fc") == "Its weight has 3 axes; integer kernels want 2."
    assert listing(after.graph) == listing(before)


@pytest.mark.parametrize("attributes", ["alpha=0.5", "transA=1"])
def test_gemm_that_no_kernel_computes(attributes: str) -> None:
    body = into("x") + stored("w") + f"[fc] y = Gemm<{attributes}>(x_f, w_f)"
    before = read(f"(float[{K},{K}] x) => (float[a,b] y) {{ {body} }}", grid("x", -3, 3) | integers("w", (K, N)))
    after = apply(FoldInteger(), before)
    assert refusal(after, "fc") == "A Gemm with transA or alpha has no integer kernel."
    assert listing(after.graph) == listing(before)


def test_gemm_that_scales_its_bias() -> None:
    body = into("x") + stored("w") + "[fc] y = Gemm<beta=2.0>(x_f, w_f, b)"
    weights = grid("x", -3, 3) | integers("w", (K, N)) | {"b": floats(N)}
    before = read(f"(float[3,{K}] x) => (float[a,b] y) {{ {body} }}", weights)
    after = apply(FoldInteger(), before)
    assert refusal(after, "fc") == "A Gemm with beta has no integer kernel."
    assert listing(after.graph) == listing(before)


@pytest.mark.parametrize("shape", [(N, 1), (N, N), (1,)], ids=["a column", "a matrix", "one number"])
def test_gemm_whose_bias_is_no_row(shape: tuple[int, ...]) -> None:
    before = linear("Gemm", x=(N, K), bias="float", bias_shape=shape)
    after = apply(FoldInteger(), before)
    assert refusal(after, "fc") == "Its bias does not have one number for each output channel."
    assert listing(after.graph) == listing(before)


@pytest.mark.parametrize("shape", [(N, 1), (N, N), (1,), (1, 1, N)], ids=["column", "matrix", "number", "more axes"])
def test_sum_that_is_no_bias_stays_behind_the_product(shape: tuple[int, ...]) -> None:
    before = linear("MatMul", x=(N, K), bias="float", bias_shape=shape, rank=max(2, len(shape)))
    after = apply(FoldInteger(), before)
    assert ops(after.graph) == ["QuantizeLinear", "MatMulIntegerToFloat", "Add", "Identity"]
    assert_same(before, after.graph, rtol=FLOAT_SUM)


@pytest.mark.parametrize("form", ["Gemm", "MatMul"])
def test_bias_that_is_no_constant(form: str) -> None:
    before = linear(form, bias="input", inputs=f", float[{N}] b_f")
    after = apply(FoldInteger(), before)
    if form == "Gemm":
        assert refusal(after, "fc") == "Its bias is no constant."
        assert listing(after.graph) == listing(before)
    else:
        assert ops(after.graph) == ["QuantizeLinear", "MatMulIntegerToFloat", "Add", "Identity"]
        assert_same(before, after.graph, rtol=FLOAT_SUM)


def test_bias_beyond_32_bits_is_added_in_float() -> None:
    weight, y = integers("w", (K, N)) | {"w_scale": np.float32(1e-9)}, grid("y", -3, 3)
    before = linear("Gemm", axis=False, bias="float", integer=True, weights=weight | y)
    after = apply(FoldInteger(), before)
    assert ops(after.graph) == ["QuantizeLinear", "MatMulIntegerToFloat", "QuantizeLinear", "DequantizeLinear"]
    assert_within(before, after.graph, float(y["y_scale"]))


def test_relu_that_the_range_does_not_replace() -> None:
    """The layer still runs on integers, and returns floats to the Relu."""
    before = linear("Gemm", bias="int32", relu=True, integer=True, weights=Y)
    after = apply(FoldInteger(), before)
    assert ops(after.graph)[1:3] == ["MatMulIntegerToFloat", "Relu"]
    assert_within(before, after.graph, STEP)


def test_product_that_is_read_beside_its_bias() -> None:
    before = linear("MatMul", bias="float", outputs=", float[a,b] m")
    after = apply(FoldInteger(), before)
    assert ops(after.graph) == ["QuantizeLinear", "MatMulIntegerToFloat", "Add", "Identity"]
    assert_same(before, after.graph, rtol=FLOAT_SUM)


def test_signed_output() -> None:
    """Integers of the wrong sign are made from floats."""
    before = linear("Gemm", integer=True, weights=grid("y", -60, 60, format="int8"))
    after = apply(FoldInteger(), before)
    assert ops(after.graph)[1] == "MatMulIntegerToFloat"
    assert_within(before, after.graph, STEP)


@pytest.mark.parametrize("signed", ["a", "b"])
@pytest.mark.parametrize("integer", [False, True])
def test_signed_activations(signed: str, integer: bool) -> None:
    """Two signed operands run three to four times slower than floats on x86."""
    body = into("a", "b") + "[product] c = MatMul(a_f, b_f)\n" + (out_of("c") if integer else "y = Identity(c)")
    weights = grid("a", -3, 3) | grid("b", -3, 3) | Y | grid(signed, -3, 3, format="int8")
    before = read(f"(float[5,{K}] a, float[{K},3] b) => (float[u,v] y) {{ {body} }}", weights)
    after = apply(FoldInteger(), before)
    assert refusal(after, "product") == "Its input is int8; integer kernels here want uint8."
    assert listing(after.graph) == listing(before)


def test_product_that_is_read_as_a_float_too() -> None:
    body = into("a", "b") + "[product] c = MatMul(a_f, b_f)\n" + out_of("c") + "z = Abs(c)"
    before = read(
        f"(float[5,{K}] a, float[{K},3] b) => (float[u,v] y, float[u,v] z) {{ {body} }}",
        grid("a", -3, 3) | grid("b", -3, 3) | Y,
    )
    after = apply(FoldInteger(), before)
    assert ops(after.graph)[2] == "MatMulIntegerToFloat"
    assert_same(before, after.graph, rtol=FLOAT_SUM, atol=STEP)
