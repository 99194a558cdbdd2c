"""What lies between layers: element-wise operators, pooling, Concat, and operators that only move values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.graph import Graph
from onnxq.passes.fold_integer import FoldInteger
from onnxq.targets import CPU
from tests.onnx_text import (
    apply,
    assert_same,
    assert_within,
    changes,
    grid,
    into,
    lines,
    listing,
    ops,
    out_of,
    read,
    refusal,
)

X = grid("x", -3, 3)
IMAGE = "2,4,6,6"
SOFTMAX = {"y_scale": np.float32(1 / 256), "y_zero": np.uint8(0)}


def one(
    call: str,
    y: dict[str, Any],
    *,
    x: str = IMAGE,
    rank: int = 0,
    weights: dict[str, Any] | None = None,
    outputs: str = "",
    opset: int = 17,
) -> Graph:
    """Q(call(DQ x)); the call reads `x_f` and makes `c`."""
    body = into("x") + f"[op] c = {call}\n" + out_of("c")
    names = ",".join("abcdef"[: rank or x.count(",") + 1])
    return read(f"(float[{x}] x) => (float[{names}] y{outputs}) {{ {body} }}", X | y | (weights or {}), opset)


def two(
    call: str, y: dict[str, Any], *, z: str = IMAGE, weights: dict[str, Any] | None = None, opset: int = 17
) -> Graph:
    """Q(call(DQ x, DQ z)); the call reads `x_f` and `z_f` and makes `c`."""
    body = into("x", "z") + f"[op] {call}\n" + out_of("c")
    values = X | grid("z", -2, 4) | y | (weights or {})
    return read(f"(float[{IMAGE}] x, float[{z}] z) => (float[a,b,c,d] y) {{ {body} }}", values, opset)


UNARY: dict[str, tuple[str, dict[str, Any], str]] = {
    "QLinearSigmoid": ("Sigmoid(x_f)", grid("y", 0, 1), IMAGE),
    "QLinearLeakyRelu": ("LeakyRelu<alpha=0.2>(x_f)", grid("y", -0.6, 3), IMAGE),
    "QLinearLeakyRelu, Relu": ("Relu(x_f)", grid("y", 0, 2.5), IMAGE),
    "QLinearSoftmax, last axis": ("Softmax<axis=-1>(x_f)", SOFTMAX, IMAGE),
    "QLinearSoftmax, other axis": ("Softmax<axis=1>(x_f)", SOFTMAX, IMAGE),
    "QLinearSoftmax, no axis": ("Softmax(x_f)", SOFTMAX, IMAGE),
    "QLinearSoftmax, other grid": ("Softmax<axis=-1>(x_f)", {**SOFTMAX, "y_scale": np.float32(1 / 255.9)}, IMAGE),
    "QLinearGlobalAveragePool, 1d": ("GlobalAveragePool(x_f)", grid("y", -1, 1), "2,4,9"),
    "QLinearGlobalAveragePool": ("GlobalAveragePool(x_f)", grid("y", -0.4, 0.4), IMAGE),
    "QLinearGlobalAveragePool, 3d": ("GlobalAveragePool(x_f)", grid("y", -0.3, 0.3), "2,4,5,5,5"),
    "QLinearAveragePool, 1d": ("AveragePool<kernel_shape=[3]>(x_f)", grid("y", -2, 2), "2,4,9"),
    "QLinearAveragePool": (
        "AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x_f)",
        grid("y", -2, 2),
        IMAGE,
    ),
    "QLinearAveragePool, ceil": (
        "AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x_f)",
        grid("y", -2, 2),
        IMAGE,
    ),
    "QLinearAveragePool, padding counts": (
        "AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x_f)",
        grid("y", -2, 2),
        IMAGE,
    ),
    "QLinearAveragePool, 3d": ("AveragePool<kernel_shape=[3,3,3]>(x_f)", grid("y", -1, 1), "2,4,5,5,5"),
}


@pytest.mark.parametrize("opset", [10, 11, 13, 17, 21])
@pytest.mark.parametrize("case", UNARY)
def test_function_of_one_tensor(case: str, opset: int) -> None:
    call, y, x = UNARY[case]
    before = one(call, y, x=x, opset=opset)
    after = apply(FoldInteger(), before)
    assert ops(after.graph) == ["QuantizeLinear", case.split(",")[0], "DequantizeLinear"]
    assert [(c.node, c.done) for c in changes(after)] == [("op", "QLinear operator")]
    assert_within(before, after.graph, float(y["y_scale"]))


def test_relu_is_leaky_relu_with_slope_0() -> None:
    assert listing(apply(FoldInteger(), one("Relu(x_f)", grid("y", 0, 3))).graph) == lines(
        """
        x_q = QuantizeLinear(x, x_scale, x_zero)
        y_q = com.microsoft.QLinearLeakyRelu<alpha=0>(x_q, x_scale, x_zero, y_scale, y_zero)
        y = DequantizeLinear(y_q, y_scale, y_zero)
        """
    )


def test_average_pool_with_dilations_of_1() -> None:
    """The integer operator has no such attribute: the runtime would refuse the model."""
    before = one("AveragePool<kernel_shape=[3,3], dilations=[1,1]>(x_f)", grid("y", -2, 2), opset=19)
    after = apply(FoldInteger(), before)
    assert ops(after.graph)[1] == "QLinearAveragePool"
    assert_within(before, after.graph, 4 / 255)


AVERAGES = {
    "dilations=[2,2]": "takes no dilations",
    "ceil_mode=1, count_include_pad=1, strides=[2,2], pads=[1,1,1,1]": "counts the padding that ceil_mode adds",
}


@pytest.mark.parametrize("attributes", AVERAGES)
def test_average_that_no_kernel_computes(attributes: str) -> None:
    before = one(f"AveragePool<kernel_shape=[3,3], {attributes}>(x_f)", grid("y", -2, 2), opset=19)
    after = apply(FoldInteger(), before)
    assert AVERAGES[attributes] in refusal(after, "op")
    assert listing(after.graph) == listing(before)


@pytest.mark.parametrize("opset", [10, 11, 13, 17, 21])
@pytest.mark.parametrize("z", [IMAGE, "4,1,1"], ids=["same shape", "broadcast"])
@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_sum_and_product(op: str, z: str, opset: int) -> None:
    y = grid("y", -5, 7)
    before = two(f"c = {op}(x_f, z_f)", y, z=z, opset=opset)
    after = apply(FoldInteger(), before)
    assert ops(after.graph) == ["QuantizeLinear", "QuantizeLinear", f"QLinear{op}", "DequantizeLinear"]
    assert_within(before, after.graph, float(y["y_scale"]))


def test_sum_with_itself() -> None:
    before = one("Add(x_f, x_f)", grid("y", -6, 6))
    after = apply(FoldInteger(), before)
    assert ops(after.graph) == ["QuantizeLinear", "QLinearAdd", "DequantizeLinear"]
    assert_within(before, after.graph, 12 / 255)


def test_sum_with_a_constant() -> None:
    weights = grid("w", -2, 2) | {"w": np.arange(4, dtype=np.uint8).reshape(4, 1, 1) * 60}
    body = into("x") + "w_f = DequantizeLinear(w, w_scale, w_zero) [op] c = Add(x_f, w_f)" + out_of("c")
    before = read(f"(float[{IMAGE}] x) => (float[a,b,c,d] y) {{ {body} }}", X | weights | grid("y", -5, 5))
    after = apply(FoldInteger(), before)
    assert ops(after.graph) == ["QuantizeLinear", "QLinearAdd", "DequantizeLinear"]
    assert_within(before, after.graph, 10 / 255)


@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_relu_behind_a_sum_is_saturation(op: str) -> None:
    y = grid("y", 0, 6)
    before = two(f"s = {op}(x_f, z_f) c = Relu(s)", y)
    after = apply(FoldInteger(), before)
    assert ops(after.graph) == ["QuantizeLinear", "QuantizeLinear", f"QLinear{op}", "DequantizeLinear"]
    assert_within(before, after.graph, float(y["y_scale"]))


@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_relu_behind_a_sum_with_a_symmetric_range(op: str) -> None:
    y = grid("y", 0, 6, symmetric=True)
    before = two(f"s = {op}(x_f, z_f) c = Relu(s)", y)
    after = apply(FoldInteger(), before)
    assert ops(after.graph) == ["QuantizeLinear", "QuantizeLinear", f"QLinear{op}", "Clip", "DequantizeLinear"]
    assert_within(before, after.graph, float(y["y_scale"]))


def test_concat_on_one_scale_moves_integers() -> None:
    before = two("c = Concat<axis=1>(x_f, z_f)", grid("y", -3, 3), weights=grid("z", -3, 3))
    after = apply(FoldInteger(), before)
    assert listing(after.graph) == lines(
        """
        x_q = QuantizeLinear(x, x_scale, x_zero)
        z_q = QuantizeLinear(z, z_scale, z_zero)
        y_q = Concat<axis=1>(x_q, z_q)
        y = DequantizeLinear(y_q, y_scale, y_zero)
        """
    )
    assert_same(before, after.graph)


@pytest.mark.parametrize("part", ["scale", "zero"])
def test_concat_whose_scale_or_zero_point_differs(part: str) -> None:
    """Either alone is enough for QLinearConcat."""
    y = grid("y", -3, 3) | ({"y_scale": np.float32(0.03)} if part == "scale" else {"y_zero": np.uint8(100)})
    before = two("c = Concat<axis=1>(x_f, z_f)", y, weights=grid("z", -3, 3))
    after = apply(FoldInteger(), before)
    assert "QLinearConcat" in ops(after.graph)
    assert_within(before, after.graph, float(y["y_scale"]))


@pytest.mark.parametrize("opset", [10, 11, 13, 17, 21])
def test_concat_on_several_scales(opset: int) -> None:
    y = grid("y", -3, 4)
    before = two(
        "c = Concat<axis=-1>(x_f, z_f, x_f)" if opset > 10 else "c = Concat<axis=3>(x_f, z_f, x_f)", y, opset=opset
    )
    after = apply(FoldInteger(), before)
    assert ops(after.graph) == ["QuantizeLinear", "QuantizeLinear", "QLinearConcat", "DequantizeLinear"]
    assert_within(before, after.graph, float(y["y_scale"]))


SIGNED = {name: grid(name, -3, 3, format="int8") for name in "xyz"}


@pytest.mark.parametrize("signed", ["x", "y", "z"])
@pytest.mark.parametrize("op", ["Add", "Mul", "Concat<axis=1>"])
def test_signed_integers(op: str, signed: str) -> None:
    """QLinear operators take one type for all tensors, and the kernels that are fast take unsigned ones."""
    before = two(f"c = {op}(x_f, z_f)", grid("y", -5, 5), weights=SIGNED[signed])
    after = apply(FoldInteger(), before)
    assert f"{'output' if signed == 'y' else 'input'} is int8" in refusal(after, "op")
    assert listing(after.graph) == listing(before)


@pytest.mark.parametrize(
    "call", ["Add(x_f, x_f)", "Sigmoid(x_f)", "Concat<axis=1>(x_f, x_f)", "Transpose<perm=[0,2,3,1]>(x_f)"]
)
def test_read_elsewhere(call: str) -> None:
    before = one(call, X_AS_Y, outputs=", float[a,b,c,d] c")
    after = apply(FoldInteger(), before)
    assert refusal(after, "op") == "Its output 'c' is read elsewhere as a float."
    assert listing(after.graph) == listing(before)


@pytest.mark.parametrize(
    "call", ["Tanh(x_f)", "Clip(x_f)", "HardSwish(x_f)", "Sub(x_f, x_f)", "SpaceToDepth<blocksize=2>(x_f)"]
)
def test_operator_without_an_integer_kernel(call: str) -> None:
    before = one(call, X_AS_Y)
    after = apply(FoldInteger(), before)
    assert listing(after.graph) == listing(before)
    assert changes(after) == []


X_AS_Y = grid("y", -3, 3)
INT = {
    "shape": np.array([2, -1]),
    "wide": np.array([3, 2, 4, 6, 6]),
    "start": np.array([1, 0]),
    "end": np.array([3, 5]),
}
INT |= {"rows": np.array([[0, 3], [2, 2]]), "first": np.array([0]), "parts": np.array([1, 3]), "half": np.array([3, 3])}
INT |= {"pads": np.array([0, 0, 1, 2, 0, 0, 3, 0]), "two": np.array([1, 2]), "axis": np.array([2])}
SIZES = {
    "zero": np.float32(0),
    "one": np.float32(1),
    "double": np.array([1, 1, 2, 2], np.float32),
    "roi": np.zeros(0, np.float32),
}
MOVERS: dict[str, tuple[str, str, int, tuple[int, ...]]] = {
    "MaxPool": ("MaxPool<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(x_f)", IMAGE, 4, (12, 13, 17, 21)),
    "MaxPool, 1d": ("MaxPool<kernel_shape=[3]>(x_f)", "2,4,9", 3, (12, 17)),
    "Reshape": ("Reshape(x_f, shape)", IMAGE, 2, (10, 13, 17, 21)),
    "Transpose": ("Transpose<perm=[0,2,3,1]>(x_f)", IMAGE, 4, (10, 13, 17, 21)),
    "Flatten": ("Flatten(x_f)", IMAGE, 2, (10, 13, 17, 21)),
    "Squeeze": ("Squeeze(x_f, first)", "1,4,6", 2, (13, 17, 21)),
    "Squeeze, attribute": ("Squeeze<axes=[0]>(x_f)", "1,4,6", 2, (10, 11)),
    "Unsqueeze": ("Unsqueeze(x_f, first)", "4,6", 3, (13, 17, 21)),
    "Unsqueeze, attribute": ("Unsqueeze<axes=[0]>(x_f)", "4,6", 3, (10, 11)),
    "Slice": ("Slice(x_f, start, end)", IMAGE, 4, (10, 13, 17, 21)),
    "Gather": ("Gather<axis=1>(x_f, rows)", IMAGE, 5, (10, 13, 17, 21)),
    "Expand": ("Expand(x_f, wide)", IMAGE, 5, (10, 13, 17, 21)),
    "DepthToSpace": ("DepthToSpace<blocksize=2>(x_f)", IMAGE, 4, (11, 13, 17, 21)),
    "Resize": ('Resize<mode="nearest">(x_f, "", double)', IMAGE, 4, (13, 17, 21)),
    "Resize, opset 10": ("Resize(x_f, double)", IMAGE, 4, (10,)),
    "Resize, opset 11": ("Resize(x_f, roi, double)", IMAGE, 4, (11,)),
    "Pad": ("Pad(x_f, pads)", IMAGE, 4, (11, 13, 17, 21)),
    "Pad, explicit zero": ("Pad(x_f, pads, zero)", IMAGE, 4, (11, 13, 17, 21)),
    "Pad, chosen axes": ("Pad(x_f, two, zero, axis)", IMAGE, 4, (18, 21)),
    "Pad, mirrored": ('Pad<mode="reflect">(x_f, pads)', IMAGE, 4, (11, 13, 17, 21)),
}


def test_every_mover_of_the_target_is_folded() -> None:
    assert {case.split(",")[0] for case in MOVERS} | {"Split"} == CPU.movers


MOVES = [(case, opset) for case, (_, _, _, opsets) in MOVERS.items() for opset in opsets]


@pytest.mark.parametrize(("case", "opset"), MOVES)
def test_mover(case: str, opset: int) -> None:
    call, x, rank, _ = MOVERS[case]
    before = one(call, X_AS_Y, x=x, rank=rank, weights=INT | SIZES, opset=opset)
    after = apply(FoldInteger(), before)
    assert ops(after.graph) == ["QuantizeLinear", case.split(",")[0], "DequantizeLinear"]
    assert [(c.node, c.done) for c in changes(after)] == [("op", "integers")]
    assert_same(before, after.graph)


STILL: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "only the scale differs": (
        "Transpose<perm=[0,2,3,1]>(x_f)",
        X_AS_Y | {"y_scale": np.float32(0.03)},
        17,
        "different scales",
    ),
    "another scale": ("Transpose<perm=[0,2,3,1]>(x_f)", grid("y", -3, 4), 17, "different scales"),
    "another zero point": ("Flatten<axis=3>(x_f)", X_AS_Y | {"y_zero": np.uint8(7)}, 17, "different scales"),
    "Resize computes": ('Resize<mode="linear">(x_f, "", double)', X_AS_Y, 17, "Resize computes new values"),
    "Resize fills": (
        'Resize<mode="nearest", coordinate_transformation_mode="tf_crop_and_resize">(x_f, box, double)',
        X_AS_Y | {"box": np.array([0, 0, 0, 0, 1, 1, 2, 2], np.float32)},
        17,
        "beyond the edges",
    ),
    "MaxPool before opset 12": ("MaxPool<kernel_shape=[2,2]>(x_f)", X_AS_Y, 11, "Before opset 12, MaxPool"),
    "DepthToSpace before opset 11": ("DepthToSpace<blocksize=2>(x_f)", X_AS_Y, 10, "Before opset 11, DepthToSpace"),
    "Pad before opset 11": ("Pad<pads=[0,0,1,1,0,0,1,1]>(x_f)", X_AS_Y, 10, "Before opset 11, Pad"),
    "Pad with another value": ("Pad(x_f, pads, one)", X_AS_Y, 17, "something else than zeros"),
    "signed": ("Transpose<perm=[0,2,3,1]>(x_f)", SIGNED["x"] | SIGNED["y"], 17, "input is int8"),
    "from unsigned to signed": (
        "Transpose<perm=[0,2,3,1]>(x_f)",
        {"x_scale": np.float32(0.02), "x_zero": np.uint8(0), "y_scale": np.float32(0.02), "y_zero": np.int8(0)},
        17,
        "output is int8",
    ),
}


@pytest.mark.parametrize("case", STILL)
def test_mover_stays_in_float(case: str) -> None:
    call, y, opset, reason = STILL[case]
    before = one(call, y, weights=INT | SIZES | X | y, opset=opset, rank=2 if "Flatten" in call else 0)
    after = apply(FoldInteger(), before)
    assert reason in refusal(after, "op")
    assert listing(after.graph) == listing(before)


def test_a_chain_of_movers() -> None:
    body = into("x") + "c = Transpose<perm=[0,2,3,1]>(x_f) c_q = QuantizeLinear(c, x_scale, x_zero)"
    body += " c_f = DequantizeLinear(c_q, x_scale, x_zero) d = Flatten(c_f)" + out_of("d")
    before = read(f"(float[{IMAGE}] x) => (float[a,b] y) {{ {body} }}", X | X_AS_Y)
    after = apply(FoldInteger(), before)
    assert ops(after.graph) == ["QuantizeLinear", "Transpose", "Flatten", "DequantizeLinear"]
    assert_same(before, after.graph)


def split(
    *,
    second: dict[str, Any],
    outputs: str = "",
    tail: str = "",
    weights: dict[str, Any] | None = None,
    opset: int = 17,
) -> Graph:
    call = "Split<axis=1, split=[1,3]>(x_f)" if opset < 13 else "Split<axis=1>(x_f, parts)"
    body = into("x") + f"[op] c, d = {call}\n" + out_of("c") + (tail or out_of("d", "z"))
    values = X | X_AS_Y | second | {"parts": INT["parts"]} | (weights or {})
    return read(f"(float[{IMAGE}] x) => (float[a,b,c,d] y, float[a,e,c,d] z{outputs}) {{ {body} }}", values, opset)


@pytest.mark.parametrize("opset", [10, 11, 13, 17, 21])
def test_split(opset: int) -> None:
    before = split(second=grid("z", -3, 3), opset=opset)
    after = apply(FoldInteger(), before)
    assert ops(after.graph) == ["QuantizeLinear", "Split", "DequantizeLinear", "DequantizeLinear"]
    assert [(c.node, c.done) for c in changes(after)] == [("op", "integers")]
    assert_same(before, after.graph)


ONE_SIDED = grid("x", 0, 3) | grid("y", 0, 3)


def test_split_moves_integers_to_every_part() -> None:
    assert listing(apply(FoldInteger(), split(second=grid("z", -3, 3))).graph) == lines(
        """
        x_q = QuantizeLinear(x, x_scale, x_zero)
        y_q, z_q = Split<axis=1>(x_q, parts)
        y = DequantizeLinear(y_q, y_scale, y_zero)
        z = DequantizeLinear(z_q, z_scale, z_zero)
        """
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"second": grid("z", -3, 4)}, "different scales"),
        ({"second": grid("z", -3, 3, format="int8")}, "different scales"),
        ({"second": {"z_scale": np.float32(3 / 255), "z_zero": np.int8(0)}, "weights": ONE_SIDED}, "different scales"),
        ({"second": {}, "tail": "z = Abs(d)"}, "'d' does not go through one QuantizeLinear"),
        ({"second": grid("z", -3, 3), "outputs": ", float[a,e,c,d] d"}, "'d' does not go through one QuantizeLinear"),
        ({"second": grid("z", -3, 3), "outputs": ", float[a,b,c,d] c"}, "'c' does not go through one QuantizeLinear"),
    ],
)
def test_split_stays_in_float(options: dict[str, Any], reason: str) -> None:
    before = split(**options)
    after = apply(FoldInteger(), before)
    assert reason in refusal(after, "op")
    assert listing(after.graph) == listing(before)
