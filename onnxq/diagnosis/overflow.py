"""How often layers of unsigned activations and signed weights overflow 16 bits on processors without VNNI."""

from __future__ import annotations

import numpy as np

from onnxq.diagnosis.matching import Pair
from onnxq.graph import Array
from onnxq.numerics.affine import parameters, quantize
from onnxq.numerics.formats import UINT8
from onnxq.numerics.saturation import saturated
from onnxq.numerics.unfold import unfold
from onnxq.search.switches import Grid

ROWS = 2048
"""Places of a layer that are looked at, spread over all of them."""


def can_overflow(pair: Pair) -> bool:
    """Whether an integer kernel adds products of this layer in pairs; a depthwise convolution does not."""
    form, data, node = pair.stored.weight.format, pair.stored.data, pair.layer.node
    unsigned = data == "dynamic" or (isinstance(data, Grid) and data.format == UINT8)
    channels = (pair.layer.weight.shape or (0, 0))[1]
    return form is not None and form.signed and unsigned and not (node.op == "Conv" and channels == 1)


def overflow_share(pair: Pair, x: Array) -> float | None:
    """The share of a layer's outputs in which a pair of products overflows; None where it cannot be told.

    ONNX Runtime multiplies convolutions with the channels innermost: neighbours are channels of one place.
    """
    node, weight = pair.layer.node, pair.stored.weight.integers
    if weight is None or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    integers = _integers(pair.stored.data, x)
    if node.op != "Conv":
        found = saturated(_some(integers.reshape(-1, integers.shape[-1])), weight)
        return float(found.mean())
    groups = int(node.attrs.get("group", 1))
    blocks = np.split(weight, groups)
    window = [node.attrs.get(name) for name in ("strides", "pads", "dilations")]
    shares = []
    for block, part in zip(blocks, np.split(integers, groups, axis=1), strict=True):
        rows = _some(unfold(part, weight.shape[2:], *window))
        inner = rows.reshape(len(rows), block.shape[1], -1).swapaxes(1, 2).reshape(len(rows), -1)
        shares.append(float(saturated(inner, np.moveaxis(block, 1, -1).reshape(len(block), -1).T).mean()))
    return float(np.mean(shares))


def _integers(data: object, x: Array) -> Array:
    """The activation as it is stored."""
    if isinstance(data, Grid) and np.size(data.scale) == 1:
        return quantize(x, data.scale, data.zero_point, data.format)
    return quantize(x, *parameters(float(x.min(initial=0)), float(x.max(initial=0)), UINT8), UINT8)


def _some(rows: Array) -> Array:
    """Rows that are spread over all."""
    return rows[:: max(1, len(rows) // ROWS)]
