"""A layer that stays in float gets its float weight back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxq.graph import Constant, Graph, is_constant, weight
from onnxq.numerics.affine import dequantize
from onnxq.numerics.formats import FORMATS
from onnxq.pipeline import Context, Exact, Promise
from onnxq.rewrite import Change
from onnxq.spec import Fact

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm"})
"""Operators for which the runtime would dequantize the weight on every run. (MatMul has a kernel of its own.)"""


@dataclass(frozen=True)
class RestoreWeights:
    """Dequantize a weight once instead of on every run.

        Conv(x, DQ(w')) => Conv(x, w)

    Comes after folding: what is left then found no integer kernel. Leaves weights of MatMul alone, which the runtime
    takes as they are, weights with block-wise scales, and weights that are outputs too.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.INTEGER})
    gives: ClassVar[frozenset[Fact]] = frozenset()
    promise: ClassVar[Promise] = Exact()

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each weight."""
        for node in [n for n in graph.nodes if n.op == "DequantizeLinear" and all(map(is_constant, n.inputs))]:
            output, readers = node.outputs[0], {reader.op for reader in node.outputs[0].outputs}
            if not readers <= LAYERS or graph.kept(output) or node.attrs.get("block_size", 0):
                continue
            values, scale = weight(node.inputs[0]), weight(node.inputs[1])
            if values.dtype.name not in FORMATS:  # float8
                continue
            zero_point = weight(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(scale.shape, values.dtype)
            axis = int(node.attrs.get("axis", 1)) if scale.size > 1 else None
            shape = () if axis is None else scale.shape
            floats = dequantize(values, scale.reshape(shape), zero_point.reshape(shape), axis).astype(scale.dtype)
            graph.redirect(output, Constant(graph.fresh(f"{output.name}_float"), floats))
            yield Change(node.name, node.op, "float weight", "The layer that reads it stays in float.")
