"""How lookup tables are stored: in rows of 8 bits, in blocks of 4, or in the blocks of a layer with the same weight.

Gather(w, i), MatMul(x, Transpose(w))  =>  both read w' in blocks: the same integers, scales and zero points
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from onnxq.graph import MICROSOFT, Constant, Graph, Node, Tensor, Variable, weight
from onnxq.layers import Layer
from onnxq.nbits import Parts, blocked_layers
from onnxq.plan import NodePlan, Plan, Treatment
from onnxq.recipe import Recipe
from onnxq.rewrite import Change
from onnxq.weights import as_matrix, matrix_shape

PART = 1 << 22
"""Numbers of two tables that are compared at a time."""

SMALL = 0.25
"""Tables with less than this share of the largest one's numbers keep 8 bits: they hold positions, and save nothing."""


def stored_lookups(graph: Graph, nodes: Mapping[str, NodePlan], recipe: Recipe) -> dict[str, NodePlan]:
    """Other decisions for lookups whose tables become integers: those that share a layer's weight, or take 4 bits.

    Args:
        graph: the float model.
        nodes: what was decided about its nodes.
        recipe: what was asked for.
    """
    lookups = [n for n in graph.nodes if n.op == "Gather" and n.name in nodes and _stored(nodes[n.name])]
    if recipe.format == "qdq" or recipe.weight.embedding_bits == 8 or not lookups:
        return {}
    largest = max(_size(node.inputs[0]) for node in lookups)
    layers, found = list(blocked_layers(graph, nodes)), dict[str, NodePlan]()
    for node in lookups:
        table, before = node.inputs[0], nodes[node.name]
        if not _fits(table, recipe):
            continue
        twin = next((layer for layer in layers if _same(table, layer)), None)
        if twin is not None:
            name = twin.node.name
            bits = nodes[name].bits if recipe.weight.embedding_bits == 4 else 8
            reason = f"Its table is the weight of '{name}', and looked up in the blocks of that."
            found[node.name] = before.model_copy(update={"shares": name, "bits": bits, "reason": reason})
            if bits > nodes[name].bits:
                reason = "Its weight is also a lookup table: once in 8 bits is smaller than in 4 and in 8, and closer."
                found[name] = nodes[name].model_copy(update={"bits": bits, "reason": reason})
        elif recipe.weight.embedding_bits == 4 and _size(table) >= SMALL * largest:
            found[node.name] = before.model_copy(update={"bits": 4, "reason": "Embedding table in 4 bits."})
    return found


def _stored(decision: NodePlan) -> bool:
    return decision.treatment is Treatment.WEIGHT


def _size(table: Tensor) -> int:
    rows, width = (int(size) for size in table.shape or ())  # type: ignore[arg-type]
    return rows * width


def _fits(table: Tensor, recipe: Recipe) -> bool:
    """Whether rows are whole blocks, as the kernel of a lookup wants them."""
    width = int((table.shape or (0, 0))[1])  # type: ignore[arg-type]
    return width % recipe.weight.block(width) == 0


def _same(table: Tensor, layer: Layer) -> bool:
    """Whether a layer's outputs are the rows of a table, number by number; read in parts, up to where they differ."""
    shape = matrix_shape(layer)
    if shape != tuple(table.shape or ()) or table.dtype != layer.weight.dtype:
        return False
    rows, matrix = weight(table), as_matrix(layer, weight(layer.weight))
    height = max(1, PART // shape[1])
    return all(np.array_equal(rows[i : i + height], matrix[i : i + height]) for i in range(0, shape[0], height))


def table_layer(table: Constant) -> Layer:
    """A table as the weight of a layer with an output for each row."""
    data, twin = Variable("", table.dtype), Constant(table.name, table._values)
    return Layer(Node("Gemm", attrs={"transB": 1}, inputs=[data, twin]), data, twin, None, ())


def block_lookup(graph: Graph, node: Node, parts: Parts, bits: int) -> None:
    """Look rows up in a table in blocks, as `MatMulNBits` stores a weight.

    Gather(w, i) => GatherBlockQuantized(Reshape(values), i, scale, zero point)
    """
    name, ids, output, table = node.name, node.inputs[1], node.outputs[0], node.inputs[0]
    values, scale, *zero = parts
    assert values is not None
    assert scale is not None
    rows, blocks, size = (int(axis) for axis in values.shape or ())  # type: ignore[arg-type]
    graph.remove(node)
    flat = graph.variable(f"{values.name}_rows", np.dtype(np.uint8), (rows, blocks * size))
    shape = graph.constant(f"{values.name}_shape", np.array([rows, blocks * size]))
    graph.add("Reshape", [values, shape], [flat], name=f"{name}_rows")
    cast = scale.dtype != table.dtype  # a layer in half precision beside a table that is not
    found = graph.variable(f"{output.name}_unscaled", scale.dtype, output.shape) if cast else output
    how = {"bits": bits, "block_size": size * 8 // bits, "gather_axis": 0, "quantize_axis": 1}
    graph.add("GatherBlockQuantized", [flat, ids, scale, *zero], [found], name=name, domain=MICROSOFT, **how)
    if cast:
        to = {np.dtype(np.float32): 1, np.dtype(np.float16): 10}[np.dtype(table.dtype)]
        graph.add("Cast", [found], [output], name=f"{name}_cast", to=to)


def shared_lookups(graph: Graph, plan: Plan, stored: Mapping[str, Parts]) -> Iterator[Change]:
    """Let lookups read the blocks of layers, by the layer's name, where the plan says that they share them."""
    for node in [n for n in graph.nodes if n.op == "Gather" and n.name in plan.nodes]:
        decision = plan.nodes[node.name]
        if decision.treatment is Treatment.WEIGHT and decision.shares in stored:
            name = node.name
            block_lookup(graph, node, stored[decision.shares], plan.nodes[decision.shares].bits)
            yield Change(name, "Gather", "GatherBlockQuantized", decision.reason)
