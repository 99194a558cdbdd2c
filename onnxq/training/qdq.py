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

from onnxq.errors import ModelError
from onnxq.graph import Array, Constant, Graph, Later, Node, is_constant, weight
from onnxq.graph import Tensor as Edge
from onnxq.numerics.affine import dequantize, quantize_bias, safe_weight_scale
from onnxq.numerics.formats import FORMATS, INT32, Format
from onnxq.training.fake_quant import Grid, Quantizer
from onnxq.training.simulation import Simulation, Weight

MOVERS = frozenset(
    {
        "MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand",
        "DepthToSpace", "Split", "Identity", "Resize",
    }
)  # fmt: skip
"""Operators that may stand on integers, because they compute nothing."""

JOINS = frozenset({"Concat", "Pad", *MOVERS})
"""Operators whose input and output may have to share a scale. Pad on integers fills with what the grid tells."""


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
class Site:
    """Nodes that share the grid of an activation.

    Attributes:
        name: of the first tensor that is rounded.
        form: the integers that it may hold.
        quantizes: QuantizeLinear nodes.
        others: what stands behind them, up to each DequantizeLinear.
    """

    name: str
    form: Format
    quantizes: list[Node] = field(default_factory=list)
    others: list[Node] = field(default_factory=list)

    @property
    def tensors(self) -> set[str]:
        """Everything that is called by the name of a tensor on this grid: what is rounded, and what comes of it."""
        behind = (tensor.name for node in self.others if node.op == "DequantizeLinear" for tensor in node.outputs)
        return {node.inputs[0].name for node in self.quantizes} | set(behind)

    @property
    def parameters(self) -> tuple[Array, Array]:
        """Scale and zero point as the graph holds them."""
        return constants_of(self.quantizes[0])


def constants_of(node: Node) -> tuple[Array, Array]:
    """Scale and zero point of a QuantizeLinear or DequantizeLinear. Raises ModelError."""
    if not all(is_constant(tensor) for tensor in node.inputs[1:] if tensor.name):
        raise ModelError(f"'{node.name}' ({node.op}): its scale or zero point is no constant, and cannot be trained.")
    scale = weight(node.inputs[1])
    if len(node.inputs) > 2 and node.inputs[2].name:
        return scale, weight(node.inputs[2])
    integers = node.outputs[0] if node.op == "QuantizeLinear" else node.inputs[0]
    return scale, np.zeros(scale.shape, integers.dtype or np.uint8)


def find_sites(graph: Graph) -> list[Site]:
    """The grids of activations: one for each tensor that is rounded, joined where operators between want one scale.

    Raises:
        ModelError: integers are read by something that has no gradient.
    """
    found: dict[str, Site] = {}
    for node in graph.nodes:
        if node.op != "QuantizeLinear" or node.domain or is_constant(node.inputs[0]):
            continue
        site = found[node.outputs[0].name] = _site(node)
        for other in list(_before(node, found)):
            if other is not site and _same_grid(site, other):
                other.quantizes += site.quantizes
                other.others += site.others
                found.update({name: other for name, known in found.items() if known is site})
                site = other
    return list({id(site): site for site in found.values()}.values())


def _site(node: Node) -> Site:
    """A QuantizeLinear with everything that reads its integers."""
    form = FORMATS[constants_of(node)[1].dtype.name]
    waiting, others = list(node.outputs[0].outputs), []
    while waiting:
        reader = waiting.pop()
        if reader in others:
            continue
        others.append(reader)
        if reader.op == "Clip":
            form = _cut(form, reader)
        if reader.op in MOVERS or reader.op == "Clip":
            waiting += [other for tensor in reader.outputs for other in tensor.outputs]
        elif reader.op != "DequantizeLinear":
            raise ModelError(
                f"'{reader.name}' ({reader.op}) reads integers, and has no gradient. Train the Q/DQ model."
            )
    return Site(node.inputs[0].name, form, [node], others)


def _cut(form: Format, clip: Node) -> Format:
    """The format of few bits that a Clip on integers leaves. Raises ModelError where there is none."""
    ends = [int(weight(tensor)) for tensor in clip.inputs[1:3] if tensor.name and is_constant(tensor)]
    for bits in range(2, 9):
        narrow = FORMATS[f"{form.name.rstrip('0123456789')}{bits}"]
        if len(ends) == 2 and narrow.qmin <= ends[0] and ends[1] <= narrow.qmax:
            return Format(narrow.name, bits, ends[0], ends[1], form.dtype, form.signed)
    raise ModelError(f"'{clip.name}' (Clip): its limits {ends} fit no format of 2 to 8 bits.")


def _before(node: Node, found: Mapping[str, Site]) -> Iterator[Site]:
    """The sites of what a QuantizeLinear's operand was moved or joined from."""
    waiting = list(node.inputs[0].inputs)
    while waiting:
        maker = waiting.pop()
        if maker.op == "DequantizeLinear" and maker.inputs[0].inputs:
            waiting.append(maker.inputs[0].inputs[0])
        elif maker.op == "QuantizeLinear" and maker.outputs[0].name in found:
            yield found[maker.outputs[0].name]
        elif maker.op in JOINS or maker.op == "Clip":
            waiting += [other for tensor in maker.inputs for other in tensor.inputs]


def _same_grid(one: Site, other: Site) -> bool:
    pairs = zip(one.parameters, other.parameters, strict=True)
    return one.form == other.form and all(np.array_equal(a, b) for a, b in pairs)


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


def take_apart(graph: Graph, exact: Graph | None = None) -> tuple[Simulation, Blueprint]:
    """A simulation of a Q/DQ graph, and how to put it together again.

    Args:
        graph: with Q/DQ of 2 to 8 bits, scales and zero points constant.
        exact: the float model that it was made of; weights then begin at their floats. None: at what they are.

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
            module = _stored(node, originals)
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


def _stored(node: Node, originals: Mapping[str, Node]) -> Weight:
    """The weight behind a DequantizeLinear, in the floats that it was made of where these are known."""
    values = weight(node.inputs[0])
    scale, zero = constants_of(node)
    integers, zero = values.astype(np.int16), zero.astype(np.int16)
    block = int(node.attrs.get("block_size", 0))
    axis = int(node.attrs.get("axis", 1)) if block or scale.size > 1 else None
    shape = scale.shape if axis is not None else ()
    form = _smallest(integers, zero, FORMATS[values.dtype.name])
    grid = Grid(form, scale.reshape(shape), zero.reshape(shape), axis, block)
    floats = _dequantized(integers, grid)
    return Weight(_original(node, originals, floats), grid)


def _dequantized(integers: Array, grid: Grid) -> Array:
    if not grid.block or grid.axis is None:
        return dequantize(integers, grid.scale, grid.zero_point, grid.axis)
    count = integers.shape[grid.axis]
    scale, zero = (
        np.take(np.repeat(part, grid.block, grid.axis), np.arange(count), grid.axis)
        for part in (grid.scale, grid.zero_point)
    )
    return np.asarray((integers - zero) * scale, np.float32)


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
        node.inputs[0] = _like(graph, node.inputs[0], module.quantizer.integers(module.values, scale))
    for name, edge in plan.biases.items():
        if is_constant(edge):
            graph.redirect(edge, Constant(edge.name, constants[name].astype(np.float32)))
        else:
            _set_bias(graph, edge, constants[name])


def _set_grid(graph: Graph, nodes: list[Node], grid: Grid, name: str) -> None:
    """Give scale and zero point to all nodes of a grid; a zero point that is left out is 0, and stays so."""
    holders = [node for node in nodes if node.op in ("QuantizeLinear", "DequantizeLinear")]
    scale = _like(graph, holders[0].inputs[1], grid.scale, f"{name}_scale")
    explicit = [node for node in holders if len(node.inputs) > 2 and node.inputs[2].name]
    zero = _like(graph, explicit[0].inputs[2], grid.zero_point, f"{name}_zero_point") if explicit else None
    for node in holders:
        node.inputs[1] = scale
        if zero is not None and node in explicit:
            node.inputs[2] = zero


def _like(graph: Graph, old: Edge, values: Array, wish: str = "") -> Constant:
    """A constant with other values, of the type and shape of an old one."""
    kind, shape = np.dtype(old.dtype), tuple(int(size) for size in old.shape or ())  # type: ignore[arg-type]
    made = np.ascontiguousarray(values.reshape(shape).astype(kind)).reshape(shape)
    held = Later(shape, kind, lambda: made) if kind.isbuiltin != 1 else made
    return Constant(graph.fresh(wish or f"{old.name}_trained"), held)


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
    maker.inputs[0] = Constant(graph.fresh(f"{maker.inputs[0].name}_trained"), integers)
    maker.inputs[1] = Constant(graph.fresh(f"{edge.name}_scale"), scale)
    if scale.ndim:
        maker.attrs["axis"] = 0
    if len(maker.inputs) > 2:
        maker.inputs[2] = Constant(graph.fresh(f"{edge.name}_zero_point"), np.zeros(scale.shape, INT32.dtype))
