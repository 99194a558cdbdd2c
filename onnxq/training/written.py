"""What was trained, back in the constants of its Q/DQ graph: integers, scales, zero points and biases.

Every node, every tensor and every constant keeps its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxq.graph import Array, Constant, Graph, Later, Node, is_constant, weight
from onnxq.graph import Tensor as Edge
from onnxq.numerics.affine import quantize_bias, safe_weight_scale
from onnxq.numerics.formats import INT32
from onnxq.training.fake_quant import Grid
from onnxq.training.qdq import Blueprint
from onnxq.training.simulation import Simulation


def put_together(plan: Blueprint, simulation: Simulation) -> None:
    """Write what was trained into the constants of the Q/DQ graph."""
    graph = plan.graph
    constants = {name: values.detach().cpu().numpy() for name, values in simulation.constants.items()}
    for site, quantizer in plan.sites:
        _set_grid(graph, [*site.quantizes, *site.others], quantizer.learned(), site.name)
    for node, module in plan.weights:
        grid = module.quantizer.learned()
        scale = _safe(plan, node, grid, constants)
        _set_grid(graph, [node], Grid(grid.form, scale, grid.zero_point, grid.axis, grid.block), node.outputs[0].name)
        _replace(graph, [node], 0, module.quantizer.integers(module.values, scale), f"{node.outputs[0].name}_trained")
    for name, edge in plan.biases.items():
        if is_constant(edge):
            graph.redirect(edge, Constant(edge.name, constants[name].astype(np.float32)))
        else:
            _set_bias(graph, edge, constants[name])


def _set_grid(graph: Graph, nodes: list[Node], grid: Grid, name: str) -> None:
    """Give scale and zero point to all nodes of a grid; a zero point that is left out is 0, and stays so."""
    holders = [node for node in nodes if node.op in ("QuantizeLinear", "DequantizeLinear")]
    explicit = [node for node in holders if len(node.inputs) > 2 and node.inputs[2].name]
    _replace(graph, holders, 1, grid.scale, f"{name}_scale")
    if explicit:
        _replace(graph, explicit, 2, grid.zero_point, f"{name}_zero_point")


def _replace(graph: Graph, nodes: Sequence[Node], place: int, values: Array, wish: str) -> None:
    """Let all nodes read other values, of the old type and shape; under the old name where nobody else reads that."""
    old = nodes[0].inputs[place]
    kind, shape = np.dtype(old.dtype), tuple(int(size) for size in old.shape or ())  # type: ignore[arg-type]
    made = np.ascontiguousarray(values.reshape(shape).astype(kind)).reshape(shape)
    held = Later(shape, kind, lambda: made) if kind.isbuiltin != 1 else made
    new, before = Constant(wish, held), [node.inputs[place] for node in nodes]
    for node in nodes:
        node.inputs[place] = new
    free = next((tensor.name for tensor in before if not tensor.outputs and not graph.kept(tensor)), None)
    new.name = free or graph.fresh(wish)


def _input_scale(layer: Node) -> np.float32 | None:
    """The scale of what a layer reads; None where that is a float."""
    maker = layer.inputs[0].inputs[0] if layer.inputs[0].inputs else None
    found = weight(maker.inputs[1]) if maker is not None and maker.op == "DequantizeLinear" else None
    return np.float32(found.reshape(-1)[0]) if found is not None and found.size == 1 else None


def _safe(plan: Blueprint, node: Node, grid: Grid, constants: Mapping[str, Array]) -> Array:
    """The scales of a weight, raised where the accumulator of its layer could overflow."""
    scale = grid.scale
    for layer in node.outputs[0].outputs:
        bias = layer.inputs[2].name if len(layer.inputs) > 2 else ""
        given = _input_scale(layer)
        if bias in constants and given is not None and not grid.block:
            depth = int(np.prod(node.outputs[0].shape or (1,))) // max(1, constants[bias].size)  # type: ignore[arg-type]
            scale = safe_weight_scale(constants[bias].reshape(-1), given, scale, depth)
    return scale


def _set_bias(graph: Graph, edge: Edge, values: Array) -> None:
    """A bias as integers in units of its layer's two scales; as floats where no single layer tells them."""
    (maker,) = edge.inputs
    layer = edge.outputs[0] if len(edge.outputs) == 1 else None
    given = _input_scale(layer) if layer is not None else None
    behind = layer.inputs[1].inputs[0] if layer is not None and layer.inputs[1].inputs else None
    if given is None or behind is None or behind.op != "DequantizeLinear":
        graph.redirect(edge, graph.constant(f"{edge.name}_float", values.astype(np.float32)))
        return
    integers, scale = quantize_bias(values, given, weight(behind.inputs[1]).reshape(-1).squeeze())
    parts = [integers, scale, np.zeros(scale.shape, INT32.dtype)]
    for place, part in enumerate(parts[: len(maker.inputs)]):
        old = maker.inputs[place]
        maker.inputs[place] = new = Constant(old.name, part)
        new.name = old.name if not old.outputs else graph.fresh(f"{edge.name}_trained")
    if scale.ndim:
        maker.attrs["axis"] = 0
