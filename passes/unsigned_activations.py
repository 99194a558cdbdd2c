"""The same steps under other names: signed activations become unsigned ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxq.graph import Graph, Node, Tensor, is_constant, weight
from onnxq.pipeline import Context, Exact, Promise
from onnxq.rewrite import Change
from onnxq.spec import Fact


@dataclass(frozen=True)
class UnsignedActivations:
    """Shift int8 activations by 128.

        DQ(Q(x, zero_point: int8), zero_point) => DQ(Q(x, zero_point + 128: uint8), zero_point + 128)

    Integer kernels on x86 run signed activations three to four times slower than floats. Leaves a tensor alone that
    anything but DequantizeLinear reads, and zero points that are no constants.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})
    promise: ClassVar[Promise] = Exact()

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each tensor that is shifted."""
        if context.target.activation != "uint8":
            return
        shifted: dict[str, Tensor] = {}
        for node in [n for n in graph.nodes if n.op == "QuantizeLinear" and not n.domain]:
            obstacle = _obstacle(graph, node)
            if obstacle is None:
                for user in [node, *node.outputs[0].outputs]:
                    user.inputs[2] = _shift(graph, user.inputs[2], shifted)
                node.outputs[0].dtype = np.dtype(np.uint8)
                node.attrs.pop("output_dtype", None)
                yield Change(node.name, node.op, "uint8", "Shifted by 128; the steps are the same.")
            elif obstacle:
                yield Change(node.name, node.op, "", obstacle)


def _obstacle(graph: Graph, node: Node) -> str | None:
    """None: shift it. Empty: it is unsigned already. Otherwise the sentence why not."""
    zero_point = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    if zero_point is None or zero_point.dtype != np.int8:
        return ""
    readers = node.outputs[0].outputs
    if graph.kept(node.outputs[0]) or any(r.op != "DequantizeLinear" or len(r.inputs) < 3 for r in readers):
        return "Something else than DequantizeLinear reads its int8 output."
    if not all(is_constant(user.inputs[2]) for user in [node, *readers]):
        return "Its zero point is no constant."
    return None


def _shift(graph: Graph, zero_point: Tensor, shifted: dict[str, Tensor]) -> Tensor:
    if zero_point.name not in shifted:
        values = (weight(zero_point).astype(np.int16) + 128).astype(np.uint8)
        shifted[zero_point.name] = graph.constant(f"{zero_point.name}_unsigned", values)
    return shifted[zero_point.name]
