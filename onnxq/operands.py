"""The weight of a match as integer operators read it: in 8 bits, and in steps that a bias can be rounded to."""

from __future__ import annotations

import numpy as np

from onnxq.graph import INT4, UINT4, Constant, Graph, Later, Tensor, weight
from onnxq.islands import float_bias, parameters, scales, zero_points
from onnxq.nbits import widened
from onnxq.numerics.affine import safe_weight_scale
from onnxq.rewrite import Match


def weights(match: Match, graph: Graph, turned: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """The weight of a layer in 8 bits, its scale and its zero point; turned: that of a linear layer as it multiplies.

    [inputs, outputs]
    """
    values, (scale, zero_point) = match["w"], parameters(match, graph, "w")
    if turned and match.nodes["layer"].attrs.get("transB", 0):
        stored = np.ascontiguousarray(weight(values).T)
        values = Constant(graph.fresh(f"{values.name}_transposed"), Later(stored.shape, stored.dtype, lambda: stored))
    if zero_point.dtype in (INT4, UINT4):
        values, zero_point = widened(graph, values, zero_point)
    return values, scale, zero_point


def refine(match: Match, graph: Graph) -> None:
    """Few integers far apart, as many as they are: 8 steps of 0.4 are 128 of 0.025, and a bias is rounded to those.

    w * scale = (w * 2^k) * (scale / 2^k)
    """
    doublings = spare_bits(match)
    if not doublings:
        return
    values, scale, zero_point = weight(match["w"]), scales(match, "w"), zero_points(match, "w")
    name, factor = match["w"].name, values.dtype.type(1 << doublings)
    match.tensors["w"] = graph.constant(f"{name}_refined", values * factor)
    match.tensors["w_scale"] = graph.constant(f"{name}_refined_scale", scale / np.float32(factor))
    match.tensors["w_zero_point"] = graph.constant(f"{name}_refined_zero_point", zero_point * factor)


def spare_bits(match: Match) -> int:
    """How often the integers of a weight can be doubled, for a bias that is not in their units yet.

    Not at all where a weight is stored in 4 bits, and not where the bias would overflow its 32.
    """
    floats, stored = float_bias(match), match.get("bias")
    if floats is None or zero_points(match, "w").dtype != np.int8 or (stored is not None and stored.dtype == np.int32):
        return 0
    largest = max(int(np.abs(part.astype(np.int16)).max()) for part in (weight(match["w"]), zero_points(match, "w")))
    doublings = max((127 // max(largest, 1)).bit_length() - 1, 0)
    depth, scale = weight(match["w"]).size // floats.size, scales(match, "w")
    while doublings:
        finer = scale / np.float32(1 << doublings)
        if not np.any(safe_weight_scale(floats, scales(match, "x"), finer, depth) > finer * np.float32(1.001)):
            break
        doublings -= 1
    return doublings
