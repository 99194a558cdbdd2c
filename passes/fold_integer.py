"""Fold Q/DQ and the float operator between them into the integer operator that the runtime has for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxq.graph import MICROSOFT, Graph, Node, Tensor, weight
from onnxq.islands import (
    Made,
    bias_fits,
    clip_takes_integers,
    constant_weight,
    dq,
    flat_bias,
    float_bias,
    inner_read_once,
    integer_bias,
    moves_integers,
    pads_integers,
    parameters,
    parts_alike,
    plain_average,
    q,
    same_scale,
    saturates,
    scales,
    two_axes,
    unsigned,
    zero_points,
)
from onnxq.layers import LAYERS, clip_limits
from onnxq.numerics.formats import FORMATS
from onnxq.operands import refine, weights
from onnxq.pipeline import Context, Promise, Within
from onnxq.rewrite import Around, Bind, Build, Change, Each, Either, Match, Missing, Op, Pattern, Rule, apply, maker
from onnxq.spec import Fact

MOVERS = (
    "MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand", "DepthToSpace",
    "Resize",
)  # fmt: skip
"""SpaceToDepth is none of them: not every release of the runtime has an integer kernel."""
UNARY = {
    "Sigmoid": "QLinearSigmoid",
    "LeakyRelu": "QLinearLeakyRelu",
    "Relu": "QLinearLeakyRelu",
    "Softmax": "QLinearSoftmax",
    "GlobalAveragePool": "QLinearGlobalAveragePool",
    "AveragePool": "QLinearAveragePool",
}
BINARY = {"Add": "QLinearAdd", "Mul": "QLinearMul"}


@dataclass(frozen=True)
class FoldInteger:
    """Replace float islands between DequantizeLinear and QuantizeLinear by integer operators.

        Q(Relu(Conv(DQ x, DQ w, DQ b)))  =>  QLinearConv(x, w, b)
        Add(MatMul(DQ x, DQ w), b)       =>  MatMulIntegerToFloat(x, w, b)
        Q(Gemm(DQ x, DQ w, b))           =>  QGemm(x, w, b)
        Q(Add(DQ a, DQ b))               =>  QLinearAdd(a, b)
        Q(MaxPool(DQ x))                 =>  MaxPool(x), where both have one scale

    Leaves a node alone where its activations are signed (slower than float on x86; `UnsignedActivations` comes first),
    where a weight is no constant or has its scales along another axis, and where an inner tensor is read elsewhere.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.INTEGER})
    promise: ClassVar[Promise] = Within(steps=1)

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each operator, folded or not."""
        said: set[str] = set()
        for change in apply(RULES, graph, context):
            said.add(change.node)
            yield change
        for node in [n for n in graph.nodes if n.name not in said and n.op in LAYERS]:
            if CONV.match(node.outputs[0]) is not None:
                yield Change(node.name, node.op, "", "No QuantizeLinear stands behind it, which its kernel needs.")
            elif _stored_in_bytes(node) and maker(node.inputs[0], "DequantizeLinear") is None:
                yield Change(node.name, node.op, "", "Only its weight is quantized: what it reads comes as floats.")


def _stored_in_bytes(node: Node) -> bool:
    """Whether a layer reads a weight of 8 bits through DequantizeLinear, without blocks, which have their own pass."""
    match = dq("w").match(node.inputs[1])
    blocks = match is None or match.nodes["w_dequantize"].attrs.get("block_size", 0)
    return match is not None and not blocks and match["w"].dtype in (np.int8, np.uint8)


BIAS = Either((dq("bias"), Bind("float_bias")))
MATMUL = Op("MatMul", (dq("x"), dq("w")), name="layer")
BIASED = Either(
    (
        Op("Gemm", (dq("x"), dq("w"), Missing(BIAS)), name="layer"),
        Op("Add", (MATMUL, BIAS), name="add", swap=True),
    )
)
CONV = Op("Conv", (dq("x"), dq("w"), Missing(BIAS)), name="layer")
PRODUCT = Op("MatMul", (dq("a", Made("a")), dq("b", Made("b"))), name="layer")
BOTH = Op(tuple(BINARY), (dq("a"), dq("b")), name="layer")
ACTIVATIONS = ("Relu", "Clip")


def build_conv(match: Match, graph: Graph, context: Context) -> None:
    """QLinearConv; an activation is what saturation at the ends of its output range does."""
    layer = match.nodes["layer"]
    refine(match, graph)
    y = parameters(match, graph, "y")
    inputs = [match["x"], *parameters(match, graph, "x"), *weights(match, graph), *y]
    bias = integer_bias(match, graph)
    graph.add("QLinearConv", [*inputs, *([bias] if bias else [])], [match.output], name=layer.name, **layer.attrs)


def clipped(build: Build) -> Build:
    """An operator and the activation on its integers, for ranges that reach beyond the activation (symmetric ones)."""

    def build_both(match: Match, graph: Graph, context: Context) -> None:
        limits = clip_limits(match.nodes["activation"])
        assert limits is not None
        scale, zero_point = scales(match, "y"), zero_points(match, "y")
        form = FORMATS[zero_point.dtype.name]
        ends = [np.clip(np.rint(np.float32(end) / scale) + zero_point, form.qmin, form.qmax) for end in limits]
        output, match.output = match.output, graph.variable(f"{match.output.name}_unclipped")
        build(match, graph, context)
        bounds = [graph.constant(f"{output.name}_limit", np.asarray(end, form.dtype)) for end in ends]
        graph.add("Clip", [match.output, *bounds], [output], name=match.nodes["activation"].name)

    return build_both


def build_linear_float(match: Match, graph: Graph, context: Context) -> None:
    """MatMulIntegerToFloat; a zero point of zeros is left out, which saves the runtime a correction."""
    values, scale, zero_point = weights(match, graph, turned=True)
    x_scale, x_zero_point = parameters(match, graph, "x")
    symmetric = not weight(zero_point).any()
    bias = float_bias(match)
    stored = match.get("float_bias")
    if stored is not None and len(stored.shape or ()) == 1:
        last: list[Tensor] = [stored]
    else:
        last = [] if bias is None else [graph.constant(f"{match.nodes['layer'].name}_bias", bias)]
    inputs = [match["x"], values, x_scale, scale, x_zero_point, None if symmetric else zero_point]
    name = match.nodes["layer"].name
    graph.add("MatMulIntegerToFloat", [*inputs, *last], [match.output], name=name, domain=MICROSOFT)


def build_linear_integer(match: Match, graph: Graph, context: Context) -> None:
    """QGemm with a bias, QLinearMatMul without."""
    layer = match.nodes["layer"]
    x, y = parameters(match, graph, "x"), parameters(match, graph, "y")
    if layer.op == "MatMul" and "add" not in match.nodes:
        inputs = [match["x"], *x, *weights(match, graph), *y]
        graph.add("QLinearMatMul", inputs, [match.output], name=layer.name)
        return
    transposed = int(layer.attrs.get("transB", 0))
    refine(match, graph)
    gemm = [match["x"], *x, *weights(match, graph), integer_bias(match, graph), *y]
    graph.add("QGemm", gemm, [match.output], name=layer.name, domain=MICROSOFT, transB=transposed)


def build_product(match: Match, graph: Graph, context: Context) -> None:
    """The product of two activations, with integers or floats coming out."""
    (a_scale, a_zero), (b_scale, b_zero) = (parameters(match, graph, name) for name in ("a", "b"))
    name = match.nodes["layer"].name
    if "quantize" in match.nodes:
        inputs = [match["a"], a_scale, a_zero, match["b"], b_scale, b_zero, *parameters(match, graph, "y")]
        graph.add("QLinearMatMul", inputs, [match.output], name=name)
    else:
        mixed = [match["a"], match["b"], a_scale, b_scale, a_zero, b_zero]
        graph.add("MatMulIntegerToFloat", mixed, [match.output], name=name, domain=MICROSOFT)


def build_unary(match: Match, graph: Graph, context: Context) -> None:
    """A function of one tensor; Relu is LeakyRelu with slope 0."""
    layer = match.nodes["layer"]
    attributes: dict[str, Any] = dict(layer.attrs)
    if layer.op == "Relu":
        attributes["alpha"] = 0.0
    if layer.op.endswith("AveragePool"):
        attributes["channels_last"] = 0
        attributes.pop("dilations", None)  # all 1
    if layer.op == "Softmax":
        attributes["opset"] = graph.opset
        attributes.setdefault("axis", -1 if graph.opset >= 13 else 1)
    inputs = [match["x"], *parameters(match, graph, "x"), *parameters(match, graph, "y")]
    graph.add(UNARY[layer.op], inputs, [match.output], name=layer.name, domain=MICROSOFT, **attributes)


def build_binary(match: Match, graph: Graph, context: Context) -> None:
    """Sum or product, element by element."""
    layer = match.nodes["layer"]
    sides = [part for name in ("a", "b") for part in (match[name], *parameters(match, graph, name))]
    inputs = [*sides, *parameters(match, graph, "y")]
    graph.add(BINARY[layer.op], inputs, [match.output], name=layer.name, domain=MICROSOFT)


def build_mover(match: Match, graph: Graph, context: Context) -> None:
    """The same operator, on integers."""
    layer = match.nodes["layer"]
    graph.add(layer.op, [match["x"], *layer.inputs[1:]], [match.output], name=layer.name, **layer.attrs)


def build_split(match: Match, graph: Graph, context: Context) -> None:
    """The same operator, on integers; each output takes the place of the QuantizeLinear behind it."""
    layer, outputs = match.nodes["layer"], [match.output]
    for tensor in layer.outputs[1:]:
        (quantize,) = tensor.outputs
        outputs.append(quantize.outputs[0])
        graph.remove(quantize)
    graph.add("Split", [match["x"], *layer.inputs[1:]], outputs, name=layer.name, **layer.attrs)


def build_pad(match: Match, graph: Graph, context: Context) -> None:
    """Pad on integers, with the zero point where the float operator pads with 0."""
    layer = match.nodes["layer"]
    zero_point = parameters(match, graph, "x")[1]
    inputs = [match["x"], layer.inputs[1], zero_point, *layer.inputs[3:]]
    graph.add("Pad", inputs, [match.output], name=layer.name, **layer.attrs)


def build_concat(match: Match, graph: Graph, context: Context) -> None:
    """Concat where all parts share the scale of the whole, QLinearConcat where they do not."""
    layer = match.nodes["Concat"]
    parts = [f"x{index}" for index in range(len(layer.inputs))]
    y_scale, y_zero = scales(match, "y"), zero_points(match, "y")
    if all(np.array_equal(scales(match, p), y_scale) and np.array_equal(zero_points(match, p), y_zero) for p in parts):
        graph.add("Concat", [match[p] for p in parts], [match.output], name=layer.name, **layer.attrs)
        return
    sides = [item for part in parts for item in (match[part], *parameters(match, graph, part))]
    inputs = [*parameters(match, graph, "y"), *sides]
    graph.add("QLinearConcat", inputs, [match.output], name=layer.name, domain=MICROSOFT, **layer.attrs)


def activation_behind(inner: Pattern) -> Pattern:
    """A layer with or without an activation behind it."""
    return Either((Around(ACTIVATIONS, inner, "activation"), inner))


LAYER = (unsigned, constant_weight, flat_bias, inner_read_once)
INTEGER_LAYER = (*LAYER, bias_fits)
RULES = (
    Rule("QLinearConv", q(activation_behind(CONV)), build_conv, "layer", (*INTEGER_LAYER, saturates)),
    Rule(
        "QLinearConv, Clip",
        q(Around(ACTIVATIONS, CONV, "activation")),
        clipped(build_conv),
        "layer",
        (*INTEGER_LAYER, clip_takes_integers),
    ),
    Rule("QGemm", q(activation_behind(BIASED)), build_linear_integer, "layer", (*INTEGER_LAYER, saturates, two_axes)),
    Rule("QLinearMatMul", q(activation_behind(MATMUL)), build_linear_integer, "layer", (*LAYER, saturates)),
    Rule("MatMulIntegerToFloat", BIASED, build_linear_float, "layer", LAYER),  # the bias before the bare product
    Rule("MatMulIntegerToFloat", MATMUL, build_linear_float, "layer", LAYER),
    Rule("QLinearMatMul", q(PRODUCT), build_product, "layer", (unsigned, inner_read_once)),
    Rule("MatMulIntegerToFloat", PRODUCT, build_product, "layer", (unsigned,)),
    Rule(
        "QLinear operator",
        q(Op(tuple(UNARY), (dq("x"),), name="layer")),
        build_unary,
        "layer",
        (unsigned, inner_read_once, plain_average),
    ),
    Rule("QLinear operator", q(activation_behind(BOTH)), build_binary, "layer", (unsigned, inner_read_once, saturates)),
    Rule(
        "QLinear operator, Clip",
        q(Around(ACTIVATIONS, BOTH, "activation")),
        clipped(build_binary),
        "layer",
        (unsigned, inner_read_once, clip_takes_integers),
    ),
    Rule(
        "Concat", q(Each("Concat", lambda index: dq(f"x{index}"))), build_concat, "Concat", (unsigned, inner_read_once)
    ),
    Rule(
        "integers",
        q(Around(MOVERS, dq("x"), "layer")),
        build_mover,
        "layer",
        (unsigned, inner_read_once, same_scale, moves_integers),
    ),
    Rule(
        "integers",
        q(Around("Pad", dq("x"), "layer")),
        build_pad,
        "layer",
        (unsigned, inner_read_once, same_scale, pads_integers),
    ),
    Rule("integers", q(Around("Split", dq("x"), "layer")), build_split, "layer", (unsigned, parts_alike)),
)
