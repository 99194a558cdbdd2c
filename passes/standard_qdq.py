"""Q/DQ of another domain is the standard one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from onnxq.graph import MICROSOFT, Graph, Node
from onnxq.pipeline import Context, Exact, Promise
from onnxq.rewrite import Change
from onnxq.spec import Fact

EIGHT_BITS = frozenset({"int8", "uint8"})
"""The types with integer kernels."""


@dataclass(frozen=True)
class StandardQdq:
    """Take Q/DQ of ONNX Runtime's own domain for the standard operators, where these hold the same.

        com.microsoft.DequantizeLinear(com.microsoft.QuantizeLinear(x))  =>  DequantizeLinear(QuantizeLinear(x))

    Leaves alone more or less than 8 bits, which that domain is mostly used for, and scales of channels without an axis
    or before opset 13.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset()
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})
    promise: ClassVar[Promise] = Exact()

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each operator of that domain."""
        for node in graph.nodes:
            if node.domain == MICROSOFT and node.op in ("QuantizeLinear", "DequantizeLinear"):
                obstacle = _obstacle(graph, node)
                if obstacle is None:
                    node.domain = None
                done = "" if obstacle else node.op
                yield Change(node.name, node.op, done, obstacle or "For 8 bits the standard operator is the same.")


def _obstacle(graph: Graph, node: Node) -> str | None:
    types = {t.dtype.name for t in (*node.inputs, *node.outputs) if t.name and t.dtype is not None}
    others = {name for name in types if "int" in name} - EIGHT_BITS - {"int32"}
    if others:
        return f"It holds {min(others)}, for which there are no integer kernels here."
    if node.inputs[1].shape not in ((), (1,)) and ("axis" not in node.attrs or graph.opset < 13):
        return "A scale for each channel takes an axis, and opset 13."
    return None if graph.opset >= 10 else "Before opset 10 there is no standard operator."
