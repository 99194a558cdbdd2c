"""Lookup tables in 8 bits, with a scale for each row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxq.graph import Array, Constant, Graph, Later, Node, Tensor, weight
from onnxq.lookups import block_lookup, table_layer
from onnxq.nbits import Parts, stored_blocks
from onnxq.numerics.affine import QuantizedWeight, quantize_weight
from onnxq.numerics.formats import INT8
from onnxq.pipeline import Context, Lossy, Promise
from onnxq.plan import Treatment
from onnxq.rewrite import Change
from onnxq.spec import Fact

FLOAT, FLOAT16 = 1, 10
"""Element types in ONNX."""

PART = 1 << 22
"""Numbers of a table that are rounded at a time."""


@dataclass(frozen=True)
class QuantizeEmbeddings:
    """Store a lookup table as integers, and give only the rows that are read their scale.

        Gather(w, i) => Cast(Gather(w', i)) * Gather(scale, i)      in 8 bits, a scale for each row
        Gather(w, i) => GatherBlockQuantized(w', i)                 in 4 bits, a scale for each block

    Standard operators for 8 bits on purpose: they run everywhere, in a quarter of the time of the runtime's block-wise
    lookup. Leaves tables alone that the plan does not name, and those that share the blocks of a layer.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NORMAL})
    gives: ClassVar[frozenset[Fact]] = frozenset()
    promise: ClassVar[Promise] = Lossy()

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each lookup; one table that several lookups share is stored once."""
        plan = context.plan
        assert plan is not None
        tables: dict[str, tuple[Tensor, Tensor]] = {}
        blocks: dict[str, Parts] = {}
        for node in [n for n in graph.nodes if n.op == "Gather" and plan.treatment(n.name) is Treatment.WEIGHT]:
            table, name, decision = node.inputs[0], node.name, plan.nodes[node.name]
            if plan.treatment(decision.shares) is Treatment.WEIGHT:
                continue
            if decision.bits == 4 and not decision.shares:
                assert isinstance(table, Constant)
                if table.name not in blocks:
                    blocks[table.name] = stored_blocks(graph, table_layer(table), plan.recipe.weight, 4, context.shelf)
                block_lookup(graph, node, blocks[table.name], 4)
                yield Change(name, "Gather", "GatherBlockQuantized", "Embedding table in 4 bits, in blocks.")
                continue
            if table.name not in tables:
                tables[table.name] = _store(graph, table)
            _replace(graph, node, *tables[table.name])
            yield Change(name, "Gather", "int8 Gather", "Embedding table in 8 bits, a scale for each row.")


def _store(graph: Graph, table: Tensor) -> tuple[Tensor, Tensor]:
    """Integers and scales of the rows; they are computed when they are read, a part of the table at a time."""
    rows, width = (int(size) for size in table.shape or ())  # type: ignore[arg-type]
    kind = np.dtype(table.dtype)

    def parts() -> Iterator[tuple[slice, QuantizedWeight]]:
        values = weight(table)
        for start in range(0, rows, max(1, PART // width)):
            part = slice(start, start + max(1, PART // width))
            yield part, quantize_weight(values[part], INT8, axis=0)

    def integers() -> Array:
        found = np.empty((rows, width), np.int8)
        for part, rounded in parts():
            found[part] = rounded.values
        return found

    def scales() -> Array:
        return np.concatenate([rounded.scale for _, rounded in parts()]).reshape(-1, 1).astype(kind)

    return (
        Constant(graph.fresh(f"{table.name}_quantized"), Later((rows, width), np.dtype(np.int8), integers)),
        Constant(graph.fresh(f"{table.name}_scale"), Later((rows, 1), kind, scales)),
    )


def _replace(graph: Graph, node: Node, values: Tensor, scales: Tensor) -> None:
    name, ids, output, attributes = node.name, node.inputs[1], node.outputs[0], dict(node.attrs)
    to = FLOAT16 if scales.dtype == np.float16 else FLOAT
    graph.remove(node)
    rows, floats, factor = (graph.variable(f"{output.name}_{part}") for part in ("quantized", "unscaled", "scale"))
    graph.add("Gather", [values, ids], [rows], name=name, **attributes)
    graph.add("Cast", [rows], [floats], name=f"{name}_cast", to=to)
    graph.add("Gather", [scales, ids], [factor], name=f"{name}_scale", **attributes)
    graph.add("Mul", [floats, factor], [output], name=f"{name}_dequantize")
