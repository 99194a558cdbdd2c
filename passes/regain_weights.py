"""A weight that an exporter turned back into floats gets its integers back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxq.graph import Graph, Node, is_constant, weight
from onnxq.layers import LAYERS, weight_axis
from onnxq.numerics.grids import common_steps
from onnxq.pipeline import Context, Promise, Within
from onnxq.rewrite import Change, maker
from onnxq.spec import Fact


@dataclass(frozen=True)
class RegainWeights:
    """Find the grid that the floats of a trained weight lie on, where an exporter folded its Q/DQ.

        Conv(DQ(x), w)  =>  Conv(DQ(x), DQ(w', s)),  w = w' * s to the last bits of a float

    Leaves a weight alone that is on no grid of 127 steps to either side for each channel, one whose input is no
    quantized tensor, and those before opset 13.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})
    promise: ClassVar[Promise] = Within(steps=1)

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each weight."""
        for node in [n for n in graph.nodes if n.op in LAYERS and not n.domain]:
            values = node.inputs[1]
            quantized = maker(node.inputs[0], "DequantizeLinear") is not None
            if not quantized or not is_constant(values) or values.dtype != np.float32 or graph.opset < 13:
                continue
            done = _regain(graph, node)
            reason = "Its floats lie on a grid of 8 bits." if done else "Its floats lie on no grid of 8 bits."
            yield Change(node.name, node.op, "DequantizeLinear" if done else "", reason)


def _regain(graph: Graph, node: Node) -> bool:
    """Store a weight in integers; False where they are none."""
    tensor, values, axis = node.inputs[1], weight(node.inputs[1]), weight_axis(node)
    if values.size == 0 or values.ndim < 2:
        return False
    rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    steps = common_steps(rows)
    if steps is None:
        return False
    along = [-1 if i == axis else 1 for i in range(values.ndim)]
    integers = np.rint(values / steps.reshape(along)).astype(np.int8)
    name = tensor.name
    parts = [
        graph.constant(f"{name}_regained", integers),
        graph.constant(f"{name}_scale", steps),
        graph.constant(f"{name}_zero_point", np.zeros(steps.shape, np.int8)),
    ]
    made = graph.variable(f"{name}_dequantized", tensor.dtype, tensor.shape)
    graph.add("DequantizeLinear", parts, [made], name=f"{node.name}_dequantize", axis=axis)
    node.inputs[1] = made
    return True
