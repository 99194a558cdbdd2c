"""Factors and shifts of channels behind a quantized weight go into its scales and the bias."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxq.graph import Array, Constant, Graph, Later, Node, Tensor, is_constant, weight
from onnxq.islands import dq, float_bias, scales, zero_points
from onnxq.layers import only_reader
from onnxq.numerics.formats import FORMATS
from onnxq.pipeline import Context, Promise, Within
from onnxq.rewrite import Bind, Change, Either, Match, Missing, Op
from onnxq.spec import Fact

LAYER = Op(("Conv", "Gemm"), (Bind("x"), dq("w"), Missing(Either((dq("bias"), Bind("float_bias"))))), name="layer")


@dataclass(frozen=True)
class ScaleWeights:
    """Take what scales and shifts the channels of a layer into the scales of its weight, and its bias.

        BatchNormalization(Conv(x, DQ(w, s), b))  =>  Conv(x, DQ(w, s * f), b * f + shift)
        Add(Div(Conv(x, DQ(w, s)), f), b)         =>  Conv(x, DQ(w, s / f), b)

    The integers stay; where a factor is negative they change their sign. Leaves a layer alone whose output is read
    elsewhere, a factor of 0, integers that have no negative in their format, and scales of blocks.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})
    promise: ClassVar[Promise] = Within(steps=1)

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each operator behind a layer."""
        for node in list(graph.nodes):
            while node.outputs and (reader := only_reader(graph, node.outputs[0])) is not None:
                match = LAYER.match(node.outputs[0])
                found = None if match is None else _line(reader, node)
                if match is None or found is None:
                    break
                name, op = reader.name, reader.op
                obstacle = _obstacle(match, *found)
                if obstacle is not None:
                    yield Change(name, op, "", obstacle)
                    break
                _absorb(graph, match, reader, *found)
                yield Change(name, op, node.op, f"It is in the scales and the bias of '{node.name}' now.")


def _line(node: Node, layer: Node) -> tuple[Array, Array] | None:
    """Factor and shift of each channel of the layer's output, in float64; None for anything else."""
    if node.domain:
        return None
    if node.op == "BatchNormalization":
        if node.attrs.get("training_mode", 0) or not all(is_constant(t) for t in node.inputs[1:5]):
            return None
        gamma, beta, mean, variance = (weight(t).astype(np.float64) for t in node.inputs[1:5])
        factor = gamma / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
        return factor, beta - mean * factor
    if node.op not in ("Mul", "Div", "Add", "Sub"):
        return None
    first = node.inputs[0] is layer.outputs[0]
    other = node.inputs[1 if first else 0]
    if (not first and node.op in ("Div", "Sub")) or (values := _channels(other, layer)) is None:
        return None
    one, none = np.ones_like(values), np.zeros_like(values)
    with np.errstate(divide="ignore"):
        return {"Mul": (values, none), "Div": (1 / values, none), "Add": (one, values), "Sub": (one, -values)}[node.op]


def _channels(tensor: Tensor, layer: Node) -> Array | None:
    """A constant as one number for each channel of a layer's output; None where it is something else."""
    if not is_constant(tensor) or tensor.dtype != np.float32:
        return None
    rank, count = len(layer.inputs[1].shape or ()), _count(layer)
    shape = [int(size) for size in tensor.shape or ()]  # type: ignore[arg-type]
    shape = [1] * (rank - len(shape)) + shape
    wanted = [1, count, *[1] * (rank - 2)] if rank else []
    if len(shape) != rank or (shape != wanted and any(size != 1 for size in shape)):
        return None
    return np.broadcast_to(weight(tensor).astype(np.float64).reshape(-1), count)


def _axis(layer: Node) -> int:
    return 0 if layer.op == "Conv" or layer.attrs.get("transB", 0) else 1


def _count(layer: Node) -> int:
    shape = layer.inputs[1].shape or ()
    return int(shape[_axis(layer)]) if len(shape) > 1 else 0  # type: ignore[arg-type]


def _obstacle(match: Match, factor: Array, shift: Array) -> str | None:
    layer, before = match.nodes["layer"], match.nodes["w_dequantize"]
    scale, bias = scales(match, "w"), match.get("bias") or match.get("float_bias")
    if not is_constant(match["w"]) or (bias is not None and not is_constant(bias)):
        return "The weight or the bias before it is no constant."
    if layer.op == "Gemm" and any(layer.attrs.get(key, 1.0) != 1.0 for key in ("alpha", "beta")):
        return "The Gemm before it scales its operands."
    if before.attrs.get("block_size", 0):
        return "The weight before it has a scale for each block."
    if scale.size > 1 and int(before.attrs.get("axis", 1)) % len(match["w"].shape or ()) != _axis(layer):
        return "The weight before it has scales along its inputs."
    floats = float_bias(match)
    if floats is not None and floats.size not in (1, _count(layer)):
        return "The bias before it does not have one number for each channel."
    if not np.isfinite(factor).all() or not np.isfinite(shift).all() or not factor.all():
        return "A factor of 0, or one that is not finite, leaves no scale."
    return _sign_obstacle(match, factor)


def _sign_obstacle(match: Match, factor: Array) -> str | None:
    """Why integers cannot change their sign where the factor is negative."""
    if (factor > 0).all():
        return None
    values, zero, form = _flipped(match, factor), zero_points(match, "w"), FORMATS[zero_points(match, "w").dtype.name]
    inside = bool(np.unique(zero).size == 1 and form.qmin <= values.min() and values.max() <= form.qmax)
    return None if inside else "A factor is negative, and the integers before it have no negative in their format."


def _flipped(match: Match, factor: Array) -> Array:
    """The integers, mirrored at the zero point where the factor is negative."""
    values = weight(match["w"]).astype(np.int32)
    shape = [1] * values.ndim
    shape[_axis(match.nodes["layer"])] = -1
    zero = int(zero_points(match, "w").astype(np.int32).reshape(-1)[0])
    return np.where(factor.reshape(shape) < 0, 2 * zero - values, values)


def _absorb(graph: Graph, match: Match, reader: Node, factor: Array, shift: Array) -> None:
    layer, before, count = match.nodes["layer"], match.nodes["w_dequantize"], len(factor)
    integers = match["w"]
    if (factor < 0).any():
        values = _flipped(match, factor).astype(integers.dtype)
        integers = Constant(graph.fresh(f"{integers.name}_flipped"), Later(values.shape, values.dtype, lambda: values))
    if (factor != 1).any():
        scale = (np.broadcast_to(scales(match, "w").reshape(-1), count) * np.abs(factor)).astype(np.float32)
        zero = np.broadcast_to(zero_points(match, "w").reshape(-1), count)
        parts = [graph.constant(f"{layer.name}_scale", scale), _constant(graph, f"{layer.name}_zero_point", zero)]
        made = graph.variable(f"{layer.name}_scaled", layer.inputs[1].dtype, layer.inputs[1].shape)
        attributes = {**before.attrs, "axis": _axis(layer)}
        graph.add("DequantizeLinear", [integers, *parts], [made], name=f"{layer.name}_dequantize", **attributes)
        layer.inputs[1] = made
    bias = float_bias(match)
    moved = (0.0 if bias is None else bias.astype(np.float64)) * factor + shift
    if bias is not None or moved.any():
        _set_bias(layer, graph.constant(f"{layer.name}_bias", moved.astype(np.float32)))
    output = reader.outputs[0]
    graph.remove(reader)
    layer.outputs[0] = output


def _constant(graph: Graph, wish: str, values: Array) -> Constant:
    kept = np.ascontiguousarray(values)
    return Constant(graph.fresh(wish), Later(kept.shape, kept.dtype, lambda: kept))


def _set_bias(layer: Node, bias: Tensor) -> None:
    if len(layer.inputs) > 2:
        layer.inputs[2] = bias
    else:
        layer.inputs.append(bias)
