"""How the weight and the bias of a layer become integers; written once, for what is built and for what is predicted."""

from __future__ import annotations

import zlib
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onnxq.calibration.statistics import channel_axis
from onnxq.errors import ModelError, RecipeError
from onnxq.graph import Array, Node, weight
from onnxq.layers import Layer, weight_axis
from onnxq.numerics.affine import QuantizedWeight, dequantize, quantize, quantize_weight
from onnxq.numerics.bias import mean_error
from onnxq.numerics.formats import IntegerArray
from onnxq.numerics.rounding.blocks import Blocked, block_round
from onnxq.numerics.rounding.blocks import Method as BlockMethod
from onnxq.recipe import Weight


def rounded_weight(layer: Layer, settings: Weight, per_channel: bool, rounding: str = "") -> QuantizedWeight:
    """The weight of a layer in the integers that the recipe asks for.

    Args:
        layer: the layer, with its float weight.
        settings: what the recipe says about weights.
        per_channel: whether each output channel has a scale of its own.
        rounding: how other integers than the nearest were chosen, as `differences` writes it.

    Raises:
        RecipeError: the rounding does not fit the weight.
    """
    axis = weight_axis(layer.node) if per_channel else None
    form = settings.grid
    nearest = quantize_weight(weight(layer.node.inputs[1]), form, axis=axis, **settings.fitting)
    if not rounding:
        return nearest
    moved = _read(rounding, nearest.values.size)
    integers = form.narrow if settings.centred else form
    # what goes past the format wraps around, and an overflow by one ends outside of the narrow format
    values = None if moved is None else nearest.values + moved.view(form.dtype).reshape(nearest.values.shape)
    if values is None or not integers.qmin <= values.min() <= values.max() <= integers.qmax:
        raise RecipeError(
            f"Node '{layer.node.name}': the rounding in the plan does not fit its weight "
            f"{list(nearest.values.shape)}. Take it out to round to nearest, or make the plan again."
        )
    return replace(nearest, values=values)


def raised_weight(layer: Layer, settings: Weight, found: QuantizedWeight, scale: Array) -> QuantizedWeight:
    """The weight of a layer with other scales: where they differ from those that were found, rounded to nearest."""
    values, other = weight(layer.node.inputs[1]), np.asarray(scale != found.scale)
    axis = weight_axis(layer.node) if other.ndim else None
    nearest = quantize(values, scale, found.zero_point, settings.grid, axis)
    along = [1 if i != axis else -1 for i in range(values.ndim)]
    return QuantizedWeight(np.where(other.reshape(along), nearest, found.values), scale, found.zero_point)


def differences(chosen: IntegerArray, nearest: IntegerArray) -> str:
    """How 8-bit integers differ from the nearest: a byte for each, in the order of the weight, zlib, base64."""
    return b64encode(zlib.compress((chosen - nearest).tobytes())).decode()


def _read(text: str, size: int) -> NDArray[np.int8] | None:
    """Undo `differences`; None for anything else than so many bytes."""
    unpacker = zlib.decompressobj()
    try:
        raw = unpacker.decompress(b64decode(text, validate=True), size + 1)
    except (ValueError, zlib.error):
        return None
    return np.frombuffer(raw, np.int8) if len(raw) == size and unpacker.eof else None


def blocked_weight(layer: Layer, settings: Weight, bits: int, importance: Array | None = None) -> Blocked:
    """The weight of a linear layer with a scale for each block of inputs, as `MatMulNBits` stores it.

    Args:
        layer: the layer, with its float weight.
        settings: what the recipe says about weights.
        bits: 8 or 4.
        importance: the mean square of each input, where it is known.

    Raises:
        ModelError: the weight is not finite.
    """
    values = as_matrix(layer, weight(layer.weight)).T
    method: BlockMethod = "hqq" if settings.method == "hqq" else "mse" if settings.fit else "rtn"
    block, symmetric = settings.block(len(values)), settings.blocks_centred
    half = np.float16 in (layer.weight.dtype, layer.data.dtype)
    try:
        return block_round(
            values, bits=bits, block=block, symmetric=symmetric, method=method, importance=importance, half=half
        )
    except ValueError as error:
        raise ModelError(f"Weight '{layer.weight.name}': {error}") from None


def blocked_bytes(settings: Weight, bits: int, inputs: int, outputs: int) -> int:
    """What a weight takes in blocks, of which the last one is filled up; each has a scale, and perhaps a zero point."""
    block = settings.block(inputs)
    blocks = -(-inputs // block)
    zeros = 0 if settings.blocks_centred else -(-blocks * bits // 8)
    return outputs * (blocks * (block * bits // 8 + 4) + zeros)


def seen_blocks(layer: Layer, found: Blocked) -> Array:
    """The weight as a layer sees it whose weight is in blocks; shaped like the weight."""
    return found.seen() if _by_rows(layer.node) else np.ascontiguousarray(found.seen().T)


def shelf_name(layer: Layer, bits: int) -> str:
    """What the weight of a layer is called on a shelf: layers that share a weight share what becomes of it."""
    return f"{layer.weight.name}|{'rows' if _by_rows(layer.node) else 'columns'}|{bits}"


def matrix_shape(layer: Layer) -> tuple[int, int]:
    """Outputs and inputs of a linear layer."""
    first, second = (int(size) for size in layer.weight.shape or ())  # type: ignore[arg-type]
    return (first, second) if _by_rows(layer.node) else (second, first)


def as_matrix(layer: Layer, values: Array) -> Array:
    """Values shaped like the weight of a layer, as (outputs, inputs)."""
    if not layer.linear:
        return values.reshape(len(values), -1)
    return values if _by_rows(layer.node) else values.T


def seen_weight(layer: Layer, found: QuantizedWeight) -> Array:
    """The weight as the layer sees it: integers times scales."""
    axis = weight_axis(layer.node) if found.scale.ndim else None
    return dequantize(found.values, found.scale, found.zero_point, axis)


def corrected_means(layer: Layer, means: Sequence[float]) -> Array | None:
    """The mean of each input channel, where the bias makes up for what a rounded weight makes of it; else None.

    Args:
        layer: the layer.
        means: of each channel as `channel_axis` has it; None comes of an empty list, of a layer that has its channels
            along another axis, and of one that has no bias and no room for it.
    """
    node, known = layer.node, np.asarray(means)
    shape = weight(node.inputs[1]).shape
    inputs = shape[1] * int(node.attrs.get("group", 1)) if _by_rows(node) else shape[0]
    rank = len(shape) if node.op == "Conv" else len(layer.data.shape or shape)
    elsewhere = channel_axis(rank) != (1 if node.op == "Conv" else rank - 1)
    return None if known.shape != (inputs,) or elsewhere or (layer.bias is None and node.op == "MatMul") else known


def corrected_bias(layer: Layer, found: QuantizedWeight, means: Sequence[float]) -> Array | None:
    """The bias in floats, less the mean error that the rounded weight makes; None where there is no bias.

    Args:
        layer: the layer, with its float weight.
        found: its rounded weight.
        means: mean of each input channel, where `corrected_means` takes it.
    """
    node, known = layer.node, corrected_means(layer, means)
    bias = None if layer.bias is None else weight(layer.bias).reshape(-1)
    if known is None:
        return bias
    values, rounded = weight(node.inputs[1]), seen_weight(layer, found)
    groups = int(node.attrs.get("group", 1))
    error = mean_error(rounded, values, known, groups) if _by_rows(node) else mean_error(rounded.T, values.T, known)
    return ((0.0 if bias is None else bias) - error).astype(np.float32)


def _by_rows(node: Node) -> bool:
    """Whether a row of the weight is an output."""
    return node.op == "Conv" or bool(node.attrs.get("transB", 0))
