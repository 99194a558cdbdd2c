"""Convolutions: every variant folds, runs and stays within one step; and what must stay in float."""

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

FOLDED = ["QuantizeLinear", "QLinearConv", "DequantizeLinear"]
Y = grid("y", -40, 40)
STEP = float(Y["y_scale"])


def conv(
    *,
    x: tuple[int, ...] = (2, 4, 7, 7),
    w: tuple[int, ...] = (6, 4, 3, 3),
    attributes: str = "",
    axis: int | None = 0,
    bias: str = "",
    tail: str = "",
    weights: dict[str, Any] | None = None,
    inputs: str = "",
    outputs: str = "",
    opset: int = 17,
) -> Graph:
    """Q(tail(Conv(DQ x, DQ w, bias))); the tail reads `c` and makes `a`."""
    values: dict[str, Any] = grid("x", -3, 3) | integers("w", w, axis=axis) | Y | (weights or {})
    if bias == "int32":
        values["b"], values["b_scale"] = quantize_bias(floats(w[0]), values["x_scale"], values["w_scale"])
        values["b_zero"] = np.zeros_like(values["b_scale"], np.int32)
    elif bias == "float":
        values.setdefault("b_f", floats(w[0]))
    body = into("x") + stored("w", axis)
    body += stored("b", None if axis is None else 0) if bias == "int32" else ""
    body += f"[conv] c = Conv{attributes}(x_f, w_f{', b_f' if bias else ''})\n"
    body += f"{tail}\n{out_of('a' if tail else 'c')}"
    sizes, names = ",".join(map(str, x)), ",".join("abcde"[: len(x)])
    return read(f"(float[{sizes}] x{inputs}) => (float[{names}] y{outputs}) {{ {body} }}", values, opset)


VARIANTS: dict[str, dict[str, Any]] = {
    "1d": {"x": (2, 4, 9), "w": (6, 4, 3)},
    "2d": {"attributes": "<pads=[1,0,2,1], strides=[2,2]>"},
    "3d": {"x": (1, 2, 5, 5, 5), "w": (4, 2, 3, 3, 3)},
    "grouped": {"attributes": "<group=2>", "w": (6, 2, 3, 3)},
    "depthwise": {"attributes": "<group=4, pads=[1,1,1,1]>", "w": (4, 1, 3, 3)},
    "dilated": {"attributes": "<dilations=[2,2]>"},
    "padded by the runtime": {"attributes": '<auto_pad="SAME_UPPER", strides=[2,2]>'},
}


@pytest.mark.parametrize("bias", ["", "int32", "float"])
@pytest.mark.parametrize("axis", [None, 0], ids=["per tensor", "per channel"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_conv(variant: str, axis: int | None, bias: str) -> None:
    before = conv(axis=axis, bias=bias, **VARIANTS[variant])
    after = apply(FoldInteger(), before)
    assert ops(after.graph) == FOLDED
    (change,) = changes(after)
    assert (change.node, change.op, change.done) == ("conv", "Conv", "QLinearConv")
    assert_within(before, after.graph, STEP)


def test_stored_bias_is_used_as_it_is() -> None:
    assert listing(apply(FoldInteger(), conv(attributes="<group=2>", w=(6, 2, 3, 3), bias="int32")).graph) == lines(
        """
        x_q = QuantizeLinear(x, x_scale, x_zero)
        y_q = QLinearConv<group=2>(x_q, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, b)
        y = DequantizeLinear(y_q, y_scale, y_zero)
        """
    )


def test_bias_on_another_grid_is_moved_to_the_grid_of_the_accumulator() -> None:
    foreign = {"b": np.arange(6, dtype=np.int32), "b_scale": np.float32(0.7), "b_zero": np.int32(0)}
    body = into("x") + stored("w", 0) + stored("b") + "c = Conv(x_f, w_f, b_f)" + out_of("c")
    weights = grid("x", -3, 3) | integers("w", (6, 4, 3, 3), axis=0) | Y | foreign
    before = read(f"(float[2,4,7,7] x) => (float[a,b,c,d] y) {{ {body} }}", weights)
    after = apply(FoldInteger(), before)
    assert ops(after.graph) == FOLDED
    assert_within(before, after.graph, STEP)


@pytest.mark.parametrize("opset", [10, 11, 13, 17, 21])
def test_every_opset(opset: int) -> None:
    before = conv(axis=None if opset < 13 else 0, bias="float", opset=opset)
    after = apply(FoldInteger(), before)
    assert ops(after.graph) == FOLDED
    assert_within(before, after.graph, STEP)


@pytest.mark.parametrize("format", ["int8", "uint8"])
def test_asymmetric_weight(format: str) -> None:
    weight = integers("w", (6, 4, 3, 3), format=format, symmetric=False)
    assert weight["w_zero"] not in (0, 128)
    before = conv(axis=None, weights=weight)
    after = apply(FoldInteger(), before)
    assert ops(after.graph) == FOLDED
    assert_within(before, after.graph, STEP)


def test_scales_of_one_element_become_scalars() -> None:
    lists = {name: np.reshape(value, 1) for name, value in (grid("x", -3, 3) | Y).items()}
    weight = {name: np.reshape(v, 1) if v.ndim == 0 else v for name, v in integers("w", (6, 4, 3, 3)).items()}
    before = conv(axis=None, bias="float", weights=weight | lists)
    after = apply(FoldInteger(), before)
    (layer,) = [node for node in after.graph.nodes if node.op == "QLinearConv"]
    assert [tensor.shape for tensor in layer.inputs if "scale" in tensor.name or "zero" in tensor.name] == [()] * 6
    assert_within(before, after.graph, STEP)


CLIP = {"low": np.float32(0), "high": np.float32(6)}
TAILS = {
    "Relu": ("a = Relu(c)", grid("y", 0, 30)),
    "Clip at the ends of the range": ("a = Clip(c, low, high)", grid("y", 0, 6)),
    "Clip beyond the range": ("a = Clip(c, low, high)", grid("y", 0, 4)),
    "Clip without an upper end": ('a = Clip(c, low, "")', grid("y", 0, 30)),
    "Clip without any end": ("a = Clip(c)", Y),
}


@pytest.mark.parametrize("tail", TAILS)
def test_saturation_replaces_the_activation(tail: str) -> None:
    text, y = TAILS[tail]
    before = conv(bias="int32", tail=text, weights=CLIP | y)
    after = apply(FoldInteger(), before)
    assert ops(after.graph) == FOLDED
    assert_within(before, after.graph, float(y["y_scale"]))


def test_clip_with_attributes_before_opset_11() -> None:
    y = grid("y", 0, 6)
    before = conv(axis=None, tail="a = Clip<min=0.0, max=6.0>(c)", weights=y, opset=10)
    after = apply(FoldInteger(), before)
    assert ops(after.graph) == FOLDED
    assert_within(before, after.graph, float(y["y_scale"]))


REACHING = {
    "Relu, symmetric": ("a = Relu(c)", grid("y", 0, 30, symmetric=True), (128, 255)),
    "Clip, symmetric": ("a = Clip(c, low, high)", grid("y", 0, 6, symmetric=True), (128, 255)),
    "Clip below the upper end": ("a = Clip(c, low, high)", grid("y", 0, 10.2), (0, 150)),
    "Clip inside the range": ("a = Clip(c, low, high)", grid("y", -2, 10.75), (40, 160)),
}


@pytest.mark.parametrize("tail", REACHING)
def test_activation_that_cuts_the_range_runs_on_integers(tail: str) -> None:
    text, y, limits = REACHING[tail]
    before = conv(bias="int32", tail=text, weights=CLIP | y)
    after = apply(FoldInteger(), before)
    assert [change.done for change in changes(after)] == ["QLinearConv, Clip"]
    assert listing(after.graph) == lines(
        """
        x_q = QuantizeLinear(x, x_scale, x_zero)
        y_q_unclipped = QLinearConv(x_q, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, b)
        y_q = Clip(y_q_unclipped, y_q_limit, y_q_limit_1)
        y = DequantizeLinear(y_q, y_scale, y_zero)
        """
    )
    (clip,) = [node for node in after.graph.nodes if node.op == "Clip"]
    assert tuple(int(bound.values) for bound in clip.inputs[1:]) == limits  # type: ignore[attr-defined]
    assert_within(before, after.graph, float(y["y_scale"]))


def per_channel(*, format: str) -> dict[str, Any]:
    """An asymmetric weight with a zero point of its own for each channel."""
    return integers("w", (6, 4, 3, 3), axis=0, format=format, symmetric=False)


def as_float16(values: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: np.asarray(v, np.float16) if name in names else v for name, v in values.items()}


def large_bias() -> dict[str, Any]:
    """A weight so small that the bias, in its units, does not fit in 32 bits."""
    weight = integers("w", (6, 4, 3, 3))
    return weight | {"w_scale": np.float32(1e-9), "b_f": np.full(6, 100, np.float32)}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "read elsewhere": (
        {"tail": "a = Relu(c) other = Abs(c)", "outputs": ", float[a,b,c,d] other", "weights": grid("y", 0, 30)},
        "'c' is read elsewhere",
    ),
    "a graph output": (
        {"tail": "a = Relu(c)", "outputs": ", float[a,b,c,d] c", "weights": grid("y", 0, 30)},
        "'c' is read elsewhere",
    ),
    "signed input": (
        {"weights": grid("x", -3, 3, format="int8")},
        "Its input is int8; integer kernels here want uint8",
    ),
    "signed output": ({"weights": grid("y", -40, 40, format="int8")}, "Its output is int8"),
    "16-bit input": ({"weights": grid("x", -3, 3, format="uint16"), "opset": 21}, "Its input is uint16"),
    "16-bit weight": ({"weights": integers("w", (6, 4, 3, 3), format="int16"), "axis": None, "opset": 21}, "int16"),
    "scales along the inputs": (
        {"weights": integers("w", (6, 4, 3, 3), axis=1), "axis": 1},
        "scales along axis 1, not along the output channels (axis 0)",
    ),
    "zero point for each channel": ({"weights": per_channel(format="uint8")}, "a zero point for each channel"),
    "bias not constant": ({"bias": "input", "inputs": ", float[6] b_f"}, "bias is no constant"),
    "bias beyond 32 bits": ({"bias": "float", "axis": None, "weights": large_bias()}, "32 bits would overflow"),
    "infinite bias": ({"bias": "float", "weights": {"b_f": np.full(6, np.inf, np.float32)}}, "bias is not finite"),
    "limits not constant": (
        {"tail": "a = Clip(c, low, high)", "weights": grid("y", 0, 6), "inputs": ", float low, float high"},
        "limits of its activation are no constants",
    ),
    "Clip on integers before opset 12": (
        {"tail": "a = Relu(c)", "weights": grid("y", 0, 30, symmetric=True), "axis": None, "opset": 11},
        "Before opset 12, Clip takes no integers",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_stays_in_float(case: str) -> None:
    options, reason = REFUSED[case]
    before = conv(**options)
    after = apply(FoldInteger(), before)
    assert reason in refusal(after, "conv")
    assert listing(after.graph) == listing(before)


def test_scale_that_is_no_constant() -> None:
    """No rule matches at all: QLinearConv could take it, but nothing could be said about its range."""
    body = into("x") + stored("w", 0) + "c = Conv(x_f, w_f)" + out_of("c")
    weights = integers("w", (6, 4, 3, 3), axis=0) | Y | {"x_zero": np.uint8(128)}
    before = read(f"(float[2,4,7,7] x, float x_scale) => (float[a,b,c,d] y) {{ {body} }}", weights)
    after = apply(FoldInteger(), before)
    assert listing(after.graph) == listing(before)
    assert changes(after) == []


def test_weight_that_is_no_constant() -> None:
    body = into("x", "w") + "[conv] c = Conv(x_f, w_f)" + out_of("c")
    weights = grid("x", -3, 3) | grid("w", -1, 1, format="int8") | Y
    before = read(f"(float[2,4,7,7] x, float[6,4,3,3] w) => (float[a,b,c,d] y) {{ {body} }}", weights)
    after = apply(FoldInteger(), before)
    assert refusal(after, "conv") == "Its weight is no constant."
    assert listing(after.graph) == listing(before)


def test_float16_scales() -> None:
    names = ("x_scale", "w_scale", "y_scale")
    weights = as_float16(grid("x", -3, 3) | integers("w", (6, 4, 3, 3), axis=0) | Y, names)
    body = into("x") + stored("w", 0) + "[conv] c = Conv(x_f, w_f)" + out_of("c")
    before = read(f"(float16[2,4,7,7] x) => (float16[a,b,c,d] y) {{ {body} }}", weights, opset=19)
    after = apply(FoldInteger(), before)
    assert refusal(after, "conv").startswith("Its scales are not float32")
    assert listing(after.graph) == listing(before)


@pytest.mark.parametrize("output_dtype", [3, 5], ids=["int8", "int16"])
def test_output_type_without_a_zero_point(output_dtype: int) -> None:
    body = into("x") + stored("w", 0) + "[conv] c = Conv(x_f, w_f)"
    body += f" y_q = QuantizeLinear<output_dtype={output_dtype}>(c, y_scale) y = DequantizeLinear(y_q, y_scale)"
    weights = grid("x", -3, 3) | integers("w", (6, 4, 3, 3), axis=0) | {"y_scale": np.float32(0.5)}
    before = read(f"(float[2,4,7,7] x) => (float[a,b,c,d] y) {{ {body} }}", weights, opset=21)
    after = apply(FoldInteger(), before)
    assert refusal(after, "conv").startswith("Its output is int")
    assert listing(after.graph) == listing(before)


def test_without_zero_points_at_all() -> None:
    """The specification then means uint8 and 0."""
    body = "x_q = QuantizeLinear(x, x_scale) x_f = DequantizeLinear(x_q, x_scale) w_f = DequantizeLinear(w, w_scale)"
    body += " a = Conv(x_f, w_f) y_q = QuantizeLinear(a, y_scale) y = DequantizeLinear(y_q, y_scale)"
    weight = integers("w", (6, 4, 3, 3))
    weights = {"x_scale": np.float32(0.01), "y_scale": np.float32(0.1), "w": weight["w"], "w_scale": weight["w_scale"]}
    before = read(f"(float[2,4,7,7] x) => (float[a,b,c,d] y) {{ {body} }}", weights)
    after = apply(FoldInteger(), before)
    assert ops(after.graph) == FOLDED
    assert_within(before, after.graph, 0.1)


def test_dequantized_twice_folds_twice() -> None:
    """Two convolutions that share input, weight and scales."""
    body = into("x") + stored("w", 0) + "c = Conv(x_f, w_f) d = Conv<pads=[1,1,1,1]>(x_f, w_f)"
    body += out_of("c") + "z_q = QuantizeLinear(d, y_scale, y_zero) z = DequantizeLinear(z_q, y_scale, y_zero)"
    weights = grid("x", -3, 3) | integers("w", (6, 4, 3, 3), axis=0) | Y
    before = read(f"(float[2,4,7,7] x) => (float[a,b,c,d] y, float[a,b,e,f] z) {{ {body} }}", weights)
    after = apply(FoldInteger(), before)
    assert sorted(ops(after.graph)) == sorted([*FOLDED, "QLinearConv", "DequantizeLinear"])
    assert_same(before, after.graph, atol=STEP)
