"""From a Q/DQ graph to a simulation of it, and what was trained back into its constants.

    DQ(Q(x, s, z), s, z)    =>    Quantizer(x)             and back: s and z as they were learned
    DQ(w', s, z)            =>    Quantizer(w)             and back: w', s and z
    DQ(b': int32, ...)      =>    b in whole units         and back: b' in units of its layer's two scales

The graph keeps every node and every name, whoever wrote the Q/DQ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from onnxq.graph import Array, Graph, Node, is_constant, weight
from onnxq.graph import Tensor as Edge
from onnxq.numerics.affine import dequantize
from onnxq.numerics.formats import FORMATS, Format
from onnxq.training.fake_quant import Grid, Quantizer
from onnxq.training.simulation import Simulation, Weight
from onnxq.training.sites import Site, constants_of, find_sites


class Passing(nn.Module):
    """Hands on what it is given: the rounding was done before."""

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """As it came."""
        return x


class Rounding(nn.Module):
    """A QuantizeLinear and its DequantizeLinear in one, with what was learned instead of what the graph holds."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """The tensor on the grid."""
        found: Tensor = self.quantizer(x)
        return found


class Dequantizing(nn.Module):
    """A DequantizeLinear of integers that the graph holds and looks up."""

    def forward(self, x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
        """(x - zero_point) * scale, for one scale."""
        return (x if zero_point is None else x.float() - zero_point.float()) * scale


@dataclass
class Blueprint:
    """A Q/DQ graph taken apart: what is trained, and where it goes back to.

    Attributes:
        graph: the Q/DQ graph.
        sites: grids of activations, and their quantizers.
        weights: DequantizeLinear of a weight, and the weight.
        biases: constants or outputs of DequantizeLinear that layers add.
    """

    graph: Graph
    sites: list[tuple[Site, Quantizer]] = field(default_factory=list)
    weights: list[tuple[Node, Weight]] = field(default_factory=list)
    biases: dict[str, Edge] = field(default_factory=dict)


def take_apart(graph: Graph, exact: Graph | None = None, keep: bool = True) -> tuple[Simulation, Blueprint]:
    """A simulation of a Q/DQ graph, and how to put it together again.

    Args:
        graph: with Q/DQ of 2 to 8 bits, scales and zero points constant.
        exact: the float model that it was made of; weights then begin at their floats. None: at what they are.
        keep: whether they begin no farther from there than where they round to the integers of the graph.

    Raises:
        ModelError: integers are read by something that has no gradient.
        UnsupportedModel: an operator has no counterpart in PyTorch.
    """
    plan, replaced = Blueprint(graph), dict[str, Callable[..., Any]]()
    for site in find_sites(graph):
        scale, zero = site.parameters
        axis = int(site.quantizes[0].attrs.get("axis", 1)) if scale.size > 1 else None
        shape = () if axis is None else scale.shape
        quantizer = Quantizer(Grid(site.form, scale.reshape(shape), zero.reshape(shape), axis))
        plan.sites.append((site, quantizer))
        replaced.update({node.name: Rounding(quantizer) for node in site.quantizes})
        replaced.update({node.name: Passing() for node in site.others if node.op in ("Clip", "DequantizeLinear")})
    originals = {node.name: node for node in exact.nodes} if exact else {}
    for node in [n for n in graph.nodes if n.op == "DequantizeLinear" and n.name not in replaced]:
        if not is_constant(node.inputs[0]):
            replaced[node.name] = Dequantizing()
        elif weight(node.inputs[0]).dtype == np.int32:
            plan.biases[node.outputs[0].name] = node.outputs[0]
            replaced[node.name] = Passing()  # never called: the constant of its name comes first
        else:
            module = _stored(node, originals, keep)
            plan.weights.append((node, module))
            replaced[node.name] = module
    for node, _ in plan.weights:
        plan.biases.update({edge.name: edge for layer in node.outputs[0].outputs for edge in _bias_of(graph, layer)})
    constants = {name: _bias_values(edge) for name, edge in plan.biases.items()}
    activations = {site.name: quantizer for site, quantizer in plan.sites}
    weights = {node.outputs[0].name: module for node, module in plan.weights}
    simulation = Simulation(graph, replaced, activations, weights, constants)
    simulation.units.update(_units(plan))
    return simulation, plan


def _units(plan: Blueprint) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """What integer biases are counted in, as it is learned: of few bits these units are wide."""
    grids = {node.name: quantizer for site, quantizer in plan.sites for node in site.others}
    grids |= {node.name: module.quantizer for node, module in plan.weights}
    for name, edge in plan.biases.items():
        if is_constant(edge) or len(edge.outputs) != 1:
            continue
        makers = [tensor.inputs[0].name for tensor in edge.outputs[0].inputs[:2] if tensor.inputs]
        found = [grids[maker] for maker in makers if maker in grids]
        if len(found) == 2:
            yield name, partial(_product, *found)


def _product(one: Quantizer, other: Quantizer) -> Tensor:
    return one.scale().detach() * other.scale().detach()


def _stored(node: Node, originals: Mapping[str, Node], keep: bool) -> Weight:
    """The weight behind a DequantizeLinear, in the floats that it was made of where these are known."""
    values = weight(node.inputs[0])
    scale, zero = constants_of(node)
    integers, zero = values.astype(np.int16), zero.astype(np.int16)
    block = int(node.attrs.get("block_size", 0))
    axis = int(node.attrs.get("axis", 1)) if block or scale.size > 1 else None
    shape = scale.shape if axis is not None else ()
    form = _smallest(integers, zero, FORMATS[values.dtype.name])
    grid = Grid(form, scale.reshape(shape), zero.reshape(shape), axis, block)
    wide, middle = (_wide(part, grid, integers) for part in (grid.scale, grid.zero_point))
    floats = np.asarray((integers - middle) * wide, np.float32)
    return Weight(_original(node, originals, floats), grid, integers if keep else None)


def _wide(part: Array, grid: Grid, integers: Array) -> Array:
    """Scales or zero points, shaped so that they broadcast to the integers."""
    if grid.axis is None:
        return part
    if grid.block:
        return np.take(np.repeat(part, grid.block, grid.axis), np.arange(integers.shape[grid.axis]), grid.axis)
    return part.reshape([-1 if i == grid.axis % integers.ndim else 1 for i in range(integers.ndim)])


def _smallest(integers: Array, zero: Array, container: Format) -> Format:
    """The format of the fewest bits that holds a weight; without its lowest integer where that is not used."""
    low, high = (int(end) for end in (min(integers.min(), zero.min()), max(integers.max(), zero.max())))
    kind = container.name.rstrip("0123456789")
    for bits in range(2, container.bits + 1):
        form = FORMATS.get(f"{kind}{bits}")
        if form is not None and form.qmin <= low and high <= form.qmax:
            form = Format(form.name, bits, form.qmin, form.qmax, container.dtype, form.signed)
            return form.narrow if form.signed and low > form.qmin else form
    return container


def _original(node: Node, originals: Mapping[str, Node], floats: Array) -> Array:
    """The float weight of the layer that reads it, turned as the integers are."""
    for reader in node.outputs[0].outputs:
        before = originals.get(reader.name)
        if before is None or len(before.inputs) < 2 or not is_constant(before.inputs[1]):
            continue
        values = weight(before.inputs[1])
        turned = [found for found in (values, values.T) if found.shape == floats.shape]
        if turned:
            return min(turned, key=lambda found: float(np.square(found - floats).sum()))
    return floats


def _bias_of(graph: Graph, layer: Node) -> Iterator[Edge]:
    """The constant that a layer adds, unless something else needs it as it is."""
    reader = layer.outputs[0].outputs[0] if layer.op == "MatMul" and len(layer.outputs[0].outputs) == 1 else None
    if layer.op in ("Conv", "ConvTranspose", "Gemm"):
        edges = layer.inputs[2:3]
    else:
        edges = list(reader.inputs) if reader is not None and reader.op == "Add" else []
    for edge in edges:
        if is_constant(edge) and edge.dtype == np.float32 and not graph.kept(edge) and len(edge.outputs) == 1:
            yield edge


def _bias_values(edge: Edge) -> Array:
    if is_constant(edge):
        return weight(edge)
    (maker,) = edge.inputs
    scale, zero = constants_of(maker)
    axis = int(maker.attrs.get("axis", 1)) if scale.size > 1 else None
    shape = () if axis is None else scale.shape
    return dequantize(weight(maker.inputs[0]), scale.reshape(shape), zero.reshape(shape), axis)
