"""Fake quantization that is written out in floats becomes Q/DQ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxq.fake_quant import FakeQuant, written_out
from onnxq.graph import Graph
from onnxq.pipeline import Context, Exact, Promise
from onnxq.rewrite import Change
from onnxq.spec import Fact


@dataclass(frozen=True)
class FindFakeQuant:
    """Write rounding to a grid, spelled in float operators, as QuantizeLinear and DequantizeLinear.

        Mul(Sub(Clip(Add(Round(Div(x, s)), z), 0, 255), z), s)  =>  DQ(Q(x, s, z), s, z)
        Mul(Round(Clip(Div(x, s), -7, 7)), s)                   =>  DQ(Clip(Q(x, s), -7, 7), s)

    Comes before constants are folded, which would leave floats of a weight. Leaves a chain alone that is read in
    between, whose numbers are no integers of 8 bits, and those before opset 13.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset()
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})
    promise: ClassVar[Promise] = Exact()

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each chain."""
        for node in list(graph.nodes):
            found = written_out(graph, node) if node.outputs else None
            if found is None:
                continue
            if graph.opset < 13:
                yield Change(node.name, node.op, "", "Before opset 13, integers have no Clip and no axis of scales.")
                continue
            name = node.name
            _write(graph, found)
            yield Change(name, "Mul", "DequantizeLinear", "It ends a chain that rounds to a grid.")


def _write(graph: Graph, found: FakeQuant) -> None:
    last, form = found.nodes[0], np.iinfo(found.zero_point.dtype)
    output, name, source = last.outputs[0], last.name, found.source
    parameters = [graph.constant(f"{name}_scale", found.scale), graph.constant(f"{name}_zero_point", found.zero_point)]
    attributes: dict[str, Any] = {} if found.axis is None else {"axis": found.axis}
    integers = graph.variable(f"{output.name}_quantized", found.zero_point.dtype, source.shape)
    graph.remove(last)
    graph.add("QuantizeLinear", [source, *parameters], [integers], name=f"{name}_quantize", **attributes)
    if (found.low, found.high) != (form.min, form.max):
        ends = (np.asarray(end, found.zero_point.dtype) for end in (found.low, found.high))
        limits = [graph.constant(f"{name}_limit", end) for end in ends]
        clipped = graph.variable(f"{output.name}_clipped", integers.dtype, source.shape)
        graph.add("Clip", [integers, *limits], [clipped], name=f"{name}_clip")
        integers = clipped
    graph.add("DequantizeLinear", [integers, *parameters], [output], name=name, **attributes)
