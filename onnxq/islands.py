"""What stands between DequantizeLinear and QuantizeLinear: patterns for it, what a match holds, and guards.

A guard returns None, or the sentence why an integer operator cannot take the place of the match.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxq.graph import Array, Graph, Tensor, is_constant, weight
from onnxq.layers import clip_limits, only_reader, pads_with_zeros
from onnxq.numerics.affine import dequantize, quantize_bias, representable, safe_weight_scale
from onnxq.numerics.formats import FORMATS
from onnxq.pipeline import Context
from onnxq.rewrite import Bind, Match, Missing, Op, Pattern

OPSETS = {"MaxPool": 12, "DepthToSpace": 11}
"""The first opset in which an operator that moves values takes integers."""

OUTPUT_TYPES = {0: "uint8", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16"}
"""What QuantizeLinear without a zero point returns, by its `output_dtype`."""

WEIGHT_TYPES = ("int8", "uint8", "int4", "uint4")
"""What weights of integer operators are made of; those of 4 bits are widened."""

INNER = ("layer", "Concat", "add", "activation")
"""The float operators of a picture, the last one last."""


@dataclass(frozen=True)
class Made(Pattern):
    """Any tensor that is no weight; remembered by name."""

    name: str

    def match(self, tensor: Tensor) -> Match | None:
        """Binds the tensor itself."""
        return None if is_constant(tensor) else Bind(self.name).match(tensor)


def dq(name: str, integers: Pattern | None = None) -> Pattern:
    """An integer tensor behind DequantizeLinear; binds it, its scale and its zero point."""
    scale = Bind(f"{name}_scale", constant=True)
    zero_point = Missing(Bind(f"{name}_zero_point", constant=True))
    return Op("DequantizeLinear", (integers or Bind(name), scale, zero_point), name=f"{name}_dequantize")


def q(inner: Pattern) -> Pattern:
    """A tensor that goes through QuantizeLinear; binds the scale and the zero point as those of `y`."""
    zero_point = Missing(Bind("y_zero_point", constant=True))
    return Op("QuantizeLinear", (inner, Bind("y_scale", constant=True), zero_point), name="quantize")


def inner_read_once(match: Match, graph: Graph, context: Context) -> str | None:
    """The float tensors inside the picture must not be read elsewhere."""
    for name in INNER:
        node = match.nodes.get(name)
        last = node is None or node.outputs[0] is match_output(match)
        if node is not None and not last and only_reader(graph, node.outputs[0]) is None:
            return f"Its output '{node.outputs[0].name}' is read elsewhere as a float."
    return None


def match_output(match: Match) -> Tensor | None:
    """The tensor at the end of the picture, before anything was replaced."""
    for name in ("quantize", *reversed(INNER)):
        if name in match.nodes:
            return match.nodes[name].outputs[0]
    return None


def unsigned(match: Match, graph: Graph, context: Context) -> str | None:
    """Activations that come and go in the format of the target, with one scale of float32 for the tensor."""
    wanted = context.target.activation
    names = [name.removesuffix("_scale") for name in match.tensors if name.endswith("_scale")]
    if any(match[f"{name}_scale"].dtype != np.float32 for name in names):
        return "Its scales are not float32, so it computes in a type that integer kernels do not return."
    for name in (n for n in names if n not in ("w", "bias")):
        what = "output" if name == "y" else "input"
        if zero_points(match, name).dtype.name != wanted:
            return f"Its {what} is {zero_points(match, name).dtype}; integer kernels here want {wanted}."
        if scales(match, name).size != 1:
            return f"Its {what} has several scales; integer kernels want one for the tensor."
    return None


def constant_weight(match: Match, graph: Graph, context: Context) -> str | None:
    """A weight of 8 or 4 bits with a scale for the tensor, or one for each output channel."""
    tensor, node = match["w"], match.nodes["layer"]
    if not is_constant(tensor):
        return "Its weight is no constant."
    if zero_points(match, "w").dtype.name not in WEIGHT_TYPES:
        return f"Its weight is {zero_points(match, 'w').dtype}; integer kernels want 8 bits."
    if not (np.isfinite(scales(match, "w")) & (scales(match, "w") > 0)).all():
        return "A scale of its weight is 0, negative or not finite."
    if node.op == "Conv" and np.unique(zero_points(match, "w")).size > 1:
        return "Its weight has a zero point for each channel; not every release of the runtime convolves with that."
    rank = len(tensor.shape or ())
    if node.op != "Conv" and rank != 2:
        return f"Its weight has {rank} axes; integer kernels want 2."
    if match.nodes["w_dequantize"].attrs.get("block_size", 0):
        return "Its weight has a scale for each block; integer kernels want one for each output channel."
    if scales(match, "w").size > 1:
        channels = 0 if node.op == "Conv" or node.attrs.get("transB", 0) else 1
        axis = int(match.nodes["w_dequantize"].attrs.get("axis", 1)) % rank
        if axis != channels:
            return f"Its weight has scales along axis {axis}, not along the output channels (axis {channels})."
    if node.op == "Gemm" and (node.attrs.get("transA", 0) or node.attrs.get("alpha", 1.0) != 1.0):
        return "A Gemm with transA or alpha has no integer kernel."
    return None


def flat_bias(match: Match, graph: Graph, context: Context) -> str | None:
    """A constant bias with one number for each output channel."""
    bias = match.get("bias") or match.get("float_bias")
    if bias is None:
        return None
    if not is_constant(bias):
        return "Its bias is no constant."
    node, weights, shape = match.nodes["layer"], match["w"].shape or (), tuple(bias.shape or (1,))
    channels = weights[0] if node.op == "Conv" or node.attrs.get("transB", 0) else weights[1]
    row = shape[-1] == channels and all(size == 1 for size in shape[:-1])
    if not row or len(shape) > max(1, input_rank(match)):
        return "Its bias does not have one number for each output channel."
    return "A Gemm with beta has no integer kernel." if node.attrs.get("beta", 1.0) != 1.0 else None


def bias_fits(match: Match, graph: Graph, context: Context) -> str | None:
    """The bias in units of the int32 accumulator leaves room for the products."""
    floats = float_bias(match)
    if floats is None:
        return None
    if not np.isfinite(floats).all():
        return "Its bias is not finite."
    scale = scales(match, "w")
    depth = weight(match["w"]).size // floats.size
    safe = safe_weight_scale(floats, scales(match, "x"), scale, depth)
    if np.any(safe > scale * np.float32(1.001)):
        return "Its bias is too large for the scales of its input and its weight: 32 bits would overflow."
    return None


def saturates(match: Match, graph: Graph, context: Context) -> str | None:
    """The activation does no more than the ends of the output range do."""
    node = match.nodes.get("activation")
    if node is None:
        return None
    limits = clip_limits(node)
    if limits is None:
        return f"The limits of {node.op} '{node.name}' are no constants."
    low, high = output_range(match)
    half = float(scales(match, "y")) / 2
    if low < limits[0] - half or high > limits[1] + half:
        return f"Its output range [{low:.6g}, {high:.6g}] goes beyond what {node.op} lets through."
    return None


def two_axes(match: Match, graph: Graph, context: Context) -> str | None:
    """QGemm multiplies matrices, and adds a bias; QLinearMatMul takes any rank, but no bias."""
    if match.nodes["layer"].op == "Gemm" or "add" not in match.nodes or input_rank(match) == 2:
        return None
    return "An integer output with a bias needs a matrix as input."


def input_rank(match: Match) -> int:
    """How many axes the input of a layer has; 0 where that is not known."""
    return len(match["x"].shape or match.nodes["layer"].inputs[0].shape or ())


def same_scale(match: Match, graph: Graph, context: Context) -> str | None:
    """An operator that moves values cannot change their scale."""
    x, y = zero_points(match, "x"), zero_points(match, "y")
    if np.array_equal(scales(match, "x"), scales(match, "y")) and np.array_equal(x, y) and x.dtype == y.dtype:
        return None
    return "Its input and output have different scales, and it only moves values."


def parts_alike(match: Match, graph: Graph, context: Context) -> str | None:
    """Every output of Split goes through one QuantizeLinear, with the scale of the input."""
    node = match.nodes["layer"]
    source = dq("x").match(node.inputs[0])
    for tensor in node.outputs:
        reader = only_reader(graph, tensor)
        part = q(Bind("part")).match(reader.outputs[0]) if reader is not None else None
        if source is None or part is None:
            return f"Its output '{tensor.name}' does not go through one QuantizeLinear."
        if (obstacle := same_scale(source | part, graph, context)) is not None:
            return obstacle
    return None


def moves_integers(match: Match, graph: Graph, context: Context) -> str | None:
    """The operator has an integer kernel, and computes nothing new."""
    node = match.nodes["layer"]
    if node.op == "Resize" and node.attrs.get("mode", "nearest") != "nearest":
        return "Resize computes new values between the old ones, in floats."
    if node.op == "Resize" and node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return "Resize fills in a float beyond the edges."
    first = OPSETS.get(node.op, 0)
    return f"Before opset {first}, {node.op} takes no integers." if graph.opset < first else None


def plain_average(match: Match, graph: Graph, context: Context) -> str | None:
    """The integer AveragePool has no dilations, and counts padding behind the edge that rounding up adds."""
    attributes = match.nodes["layer"].attrs
    if any(step != 1 for step in attributes.get("dilations", ())):
        return "The integer AveragePool takes no dilations."
    if attributes.get("ceil_mode", 0) and attributes.get("count_include_pad", 0):
        return "The integer AveragePool counts the padding that ceil_mode adds."
    return None


def scales(match: Match, name: str) -> Array:
    """The scale of a quantized tensor, 0-d where it is one number."""
    values = weight(match[f"{name}_scale"])
    return values.reshape(()) if values.size == 1 else values


def zero_points(match: Match, name: str) -> Array:
    """The zero point of a quantized tensor; zeros of its type where none is given."""
    tensor = match.get(f"{name}_zero_point")
    if tensor is None:
        return np.zeros(scales(match, name).shape, integer_type(match, name))
    values = weight(tensor)
    return values.reshape(()) if values.size == 1 else values


def integer_type(match: Match, name: str) -> np.dtype:
    """The type of a quantized tensor that has no zero point to tell it."""
    if name == "y":
        return np.dtype(OUTPUT_TYPES.get(match.nodes["quantize"].attrs.get("output_dtype", 0), object))
    return match[name].dtype or np.dtype(np.uint8)


def output_range(match: Match) -> tuple[float, float]:
    """What the quantized output can represent."""
    zero_point = zero_points(match, "y")
    low, high = representable(scales(match, "y"), zero_point, FORMATS[zero_point.dtype.name])
    return float(low), float(high)


def parameters(match: Match, graph: Graph, name: str) -> tuple[Tensor, Tensor]:
    """Scale and zero point of a quantized tensor as inputs of an integer operator; existing constants are shared."""
    scale, zero_point = match[f"{name}_scale"], match.get(f"{name}_zero_point")
    plain = scales(match, name)
    if scale.shape != plain.shape:
        scale = graph.constant(f"{name}_scale", plain)
    if zero_point is None or tuple(zero_point.shape or ()) != plain.shape:
        zero_point = graph.constant(f"{name}_zero_point", np.broadcast_to(zero_points(match, name), plain.shape))
    return scale, zero_point


def float_bias(match: Match) -> Array | None:
    """The bias in floats, one number for each output channel."""
    if (stored := match.get("float_bias")) is not None:
        return weight(stored).reshape(-1)
    if (bias := match.get("bias")) is None:
        return None
    values = weight(bias)
    scale = scales(match, "bias")
    return dequantize(values, scale, zero_points(match, "bias"), axis=0 if scale.ndim else None).reshape(-1)


def integer_bias(match: Match, graph: Graph) -> Tensor | None:
    """The bias as int32 with scale = input scale * weight scale; the stored integers where they have that scale."""
    if (floats := float_bias(match)) is None:
        return None
    values, scale = quantize_bias(floats, scales(match, "x"), scales(match, "w"))
    stored = match.get("bias")
    if stored is not None and stored.dtype == np.int32 and len(stored.shape or ()) == 1:
        same = np.allclose(np.broadcast_to(scales(match, "bias"), scale.shape), scale, rtol=1e-6, atol=0)
        if same and not zero_points(match, "bias").any():
            return stored
    return graph.constant(f"{match.nodes['layer'].name}_bias_quantized", values)


def clip_takes_integers(match: Match, graph: Graph, context: Context) -> str | None:
    """Clip on integers came with opset 12."""
    if clip_limits(match.nodes["activation"]) is None:
        return "The limits of its activation are no constants."
    return None if graph.opset >= 12 else "Before opset 12, Clip takes no integers."


def pads_integers(match: Match, graph: Graph, context: Context) -> str | None:
    """Padding with a constant must be padding with zeros, which the zero point stands for."""
    if graph.opset < 11:
        return "Before opset 11, Pad takes no integers."
    return None if pads_with_zeros(match.nodes["layer"]) else "It pads with something else than zeros."
