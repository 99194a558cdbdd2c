"""Lookup tables in 8 bits, with a scale for each row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxq.graph import Graph, Node, Tensor, weight
from onnxq.numerics.affine import quantize_weight
from onnxq.numerics.formats import INT8
from onnxq.pipeline import Context, Lossy, Promise
from onnxq.plan import Treatment
from onnxq.rewrite import Change
from onnxq.spec import Fact

FLOAT = 1
"""The element type of float32 in ONNX."""


@dataclass(frozen=True)
class QuantizeEmbeddings:
    """Store a lookup table as integers, and give only the rows that are read their scale.

        Gather(w, i) => Cast(Gather(w', i)) * Gather(scale, i)

    Standard operators on purpose: they run everywhere, and cost what the runtime's own block-wise lookup costs. Leaves
    tables alone that the plan does not name.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NORMAL})
    gives: ClassVar[frozenset[Fact]] = frozenset()
    promise: ClassVar[Promise] = Lossy()

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each lookup; one table that several lookups share is stored once."""
        assert context.plan is not None
        tables: dict[str, tuple[Tensor, Tensor]] = {}
        for node in list(graph.nodes):
            if node.op != "Gather" or context.plan.treatment(node.name) is not Treatment.WEIGHT:
                continue
            table = node.inputs[0]
            if table.name not in tables:
                tables[table.name] = _store(graph, table)
            name = node.name
            _replace(graph, node, *tables[table.name])
            yield Change(name, "Gather", "int8 Gather", "Embedding table in 8 bits, a scale for each row.")


def _store(graph: Graph, table: Tensor) -> tuple[Tensor, Tensor]:
    found = quantize_weight(weight(table), INT8, axis=0)
    return (
        graph.constant(f"{table.name}_quantized", found.values),
        graph.constant(f"{table.name}_scale", found.scale.reshape(-1, 1).astype(np.float32)),
    )


def _replace(graph: Graph, node: Node, values: Tensor, scales: Tensor) -> None:
    name, ids, output, attributes = node.name, node.inputs[1], node.outputs[0], dict(node.attrs)
    graph.remove(node)
    rows, floats, factor = (graph.variable(f"{output.name}_{part}") for part in ("quantized", "unscaled", "scale"))
    graph.add("Gather", [values, ids], [rows], name=name, **attributes)
    graph.add("Cast", [rows], [floats], name=f"{name}_cast", to=FLOAT)
    graph.add("Gather", [scales, ids], [factor], name=f"{name}_scale", **attributes)
    graph.add("Mul", [floats, factor], [output], name=f"{name}_dequantize")
