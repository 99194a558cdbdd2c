"""How the weight and the bias of a layer become integers; written once, for what is built and for what is predicted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxq.calibration.statistics import channel_axis
from onnxq.graph import Array, weight
from onnxq.layers import Layer, weight_axis
from onnxq.numerics.affine import QuantizedWeight, dequantize, quantize_weight
from onnxq.numerics.bias import mean_error
from onnxq.numerics.formats import FORMATS
from onnxq.recipe import Weight


def rounded_weight(layer: Layer, settings: Weight, per_channel: bool) -> QuantizedWeight:
    """The weight of a layer in the integers that the recipe asks for."""
    axis = weight_axis(layer.node) if per_channel else None
    form = FORMATS[settings.format]
    return quantize_weight(weight(layer.node.inputs[1]), form, axis=axis, symmetric=settings.symmetric)


def seen_weight(layer: Layer, found: QuantizedWeight) -> Array:
    """The weight as the layer sees it: integers times scales."""
    axis = weight_axis(layer.node) if found.scale.ndim else None
    return dequantize(found.values, found.scale, found.zero_point, axis)


def corrected_bias(layer: Layer, found: QuantizedWeight, means: Sequence[float]) -> Array | None:
    """The bias in floats, less the mean error that the rounded weight makes; None where there is no bias.

    Args:
        layer: the layer, with its float weight.
        found: its rounded weight.
        means: mean of each input channel as `channel_axis` has it; nothing is corrected where there are none, or where
            the layer has its channels along another axis.
    """
    node, known = layer.node, np.asarray(means)
    bias = None if layer.bias is None else weight(layer.bias).reshape(-1)
    values, rounded = weight(node.inputs[1]), seen_weight(layer, found)
    by_rows = node.op == "Conv" or bool(node.attrs.get("transB", 0))
    groups = int(node.attrs.get("group", 1))
    inputs = values.shape[1] * groups if by_rows else values.shape[0]
    rank = values.ndim if node.op == "Conv" else len(layer.data.shape or values.shape)
    elsewhere = channel_axis(rank) != (1 if node.op == "Conv" else rank - 1)
    if known.shape != (inputs,) or elsewhere or (bias is None and node.op == "MatMul"):
        return bias
    error = mean_error(rounded, values, known, groups) if by_rows else mean_error(rounded.T, values.T, known)
    return ((0.0 if bias is None else bias) - error).astype(np.float32)
