"""Everything that quantization did to a float graph, as switches, sorted by the operator that it was done to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from onnxq.channels import HOMOGENEOUS, input_channels
from onnxq.diagnosis.constants import Numbers, dequantized
from onnxq.diagnosis.matching import ABSORBED, Pair, bare, pair_up
from onnxq.diagnosis.stored import Input, Reader, StoredLayer
from onnxq.graph import Array, Constant, Graph, Node, Tensor, is_constant, weight
from onnxq.layers import Layer
from onnxq.node_runs import OUTPUT_PARAMETERS
from onnxq.numerics.rescaling import Factors, find_factors
from onnxq.search.switches import Grid, Switch


@dataclass(eq=False)
class Suspect:
    """An operator of the float graph, and the switches for what quantization did to it.

    Attributes:
        node: the operator.
        pair: its weight before and after; None for an operator without a quantized weight.
        factors: by which a tool rescaled its weight before rounding it.
        weight: switches of its weight and its bias.
        activation: switches of what it reads, or of what it makes where operators without a weight read that.
    """

    node: Node
    pair: Pair | None = None
    factors: Factors | None = None
    weight: list[str] = field(default_factory=list)
    activation: list[str] = field(default_factory=list)

    @property
    def switches(self) -> list[str]:
        """All of them."""
        return [*self.weight, *self.activation]

    @property
    def input(self) -> Input:
        """How it reads its activation."""
        return None if self.pair is None else self.pair.stored.data


@dataclass(frozen=True, eq=False)
class Case:
    """A float graph and all that was done to it.

    Attributes:
        graph: the float graph; convolutions whose bias was corrected got one of zeros.
        suspects: by name of the operator, in the order of the graph.
        switches: by name.
        lost: quantized layers that no float layer was found for.
    """

    graph: Graph
    suspects: dict[str, Suspect]
    switches: dict[str, Switch]
    lost: list[StoredLayer]


def open_case(graph: Graph, quantized: Graph) -> Case:
    """Compare a normalized float graph with a quantized one. The float graph is not touched."""
    graph = graph.copy()
    reader = Reader.of(quantized)
    pairs, lost = pair_up(graph, [*reader.layers(), *reader.float_layers()])
    work = Work(graph, reader, [pair for pair in pairs if pair.is_quantized])
    for pair in pairs:
        if pair.is_quantized:
            work.add_layer(pair)
        else:
            work.factors(pair)  # which tell those of the layers behind it
    work.add_between()
    work.add_constants()
    order = {node.name: place for place, node in enumerate(graph.nodes)}
    suspects = dict(sorted(work.suspects.items(), key=lambda item: order[item[0]]))
    return Case(graph, suspects, work.switches, [stored for stored in lost if stored.weight.scales])


@dataclass
class Work:
    """A case in the making.

    Attributes:
        graph: the float graph.
        reader: the quantized graph.
        pairs: layers of both.
        suspects: as in `Case`.
        switches: as in `Case`.
        scaled: by how much the channels of a tensor of the float graph were multiplied, where they were.
        owners: the layer that makes a tensor, activations behind it included.
    """

    graph: Graph
    reader: Reader
    pairs: list[Pair]
    suspects: dict[str, Suspect] = field(default_factory=dict)
    switches: dict[str, Switch] = field(default_factory=dict)
    scaled: dict[str, Array] = field(default_factory=dict)
    owners: dict[str, Layer] = field(default_factory=dict)

    def suspect(self, node: Node) -> Suspect:
        """The one for an operator."""
        return self.suspects.setdefault(node.name, Suspect(node))

    def switch(self, switch: Switch) -> str:
        """Take in a switch; returns its name."""
        self.switches[switch.name] = switch
        return switch.name

    # layers

    def add_layer(self, pair: Pair) -> None:
        """Weight, bias and input of a layer."""
        layer, suspect = pair.layer, self.suspect(pair.layer.node)
        suspect.pair, suspect.factors = pair, self.factors(pair)
        name, values = layer.node.name, stored_weight(pair, suspect.factors)
        suspect.weight.append(self.switch(Switch(f"{name}: weight", layer.weight.name, (name,), values=values)))
        suspect.weight.extend(self.bias_switch(pair, suspect.factors))
        data, made = pair.stored.data, Switch(f"{name}: input", layer.data.name, (name,), dynamic=True)
        if isinstance(data, Grid):
            stretch = None if suspect.factors is None else suspect.factors.input
            grid = stretched(data, stretch, 1 if layer.node.op == "Conv" else -1)
            made = replace(made, dynamic=False, grid=grid)
        if data is not None:
            suspect.activation.append(self.switch(made))
        for node in (layer.node, *layer.tail):
            self.owners[node.outputs[0].name] = layer

    def factors(self, pair: Pair) -> Factors | None:
        """How a tool rescaled the weight. The layer before tells how its input was scaled."""
        layer, groups = pair.layer, int(pair.layer.node.attrs.get("group", 1))
        before = scale_of(layer.data, self.scaled)
        known = None if before is None or before.size != input_channels(layer) else 1 / before
        exact, changed = pair.exact, pair.stored.weight.values
        if layer.linear:
            exact, changed = exact.T, changed.T
        found = find_factors(exact, changed, groups, known)
        if found is not None and np.any(found.output != 1):
            self.scaled.update(dict.fromkeys((t.outputs[0].name for t in (layer.node, *layer.tail)), found.output))
        return found

    def bias_switch(self, pair: Pair, factors: Factors | None) -> Iterator[str]:
        """The corrected or rounded bias."""
        layer, bias = pair.layer, pair.stored.bias
        if bias is None or (layer.bias is None and layer.node.op == "MatMul"):
            return
        bias = (bias / (1.0 if factors is None else factors.output)).astype(np.float32)
        if layer.bias is None:
            zeros = self.graph.constant(f"{layer.node.name}_no_bias", np.zeros_like(bias))
            if len(layer.node.inputs) > 2:
                layer.node.inputs[2] = zeros
            else:
                layer.node.inputs.append(zeros)
        tensor, holder = layer.bias or layer.node.inputs[2], layer.tail[0] if layer.node.op == "MatMul" else layer.node
        floats = weight(tensor)
        if floats.size == bias.size and not np.array_equal(floats.reshape(-1), bias):
            values = bias.reshape(floats.shape)
            yield self.switch(Switch(f"{layer.node.name}: bias", tensor.name, (holder.name,), values=values))

    # what other operators read

    def add_between(self) -> None:
        """Activations that operators without a quantized weight read as integers."""
        tensors = self.graph.tensors()
        layers = {pair.layer.node.name for pair in self.pairs}
        for name, grid in self._past_activations(activation_grids(self.reader, tensors)).items():
            tensor, floats = tensors[name], self._float_readers(name)
            readers = [node for node in dict.fromkeys(tensor.outputs) if node.name not in layers | floats]
            chosen = [*(node.name for node in readers), *([name] if self.graph.kept(tensor) and not floats else [])]
            if not chosen:
                continue
            owner = self.owners[name].node if name in self.owners else next(iter((*tensor.inputs, *readers)))
            axis = 1 if owner.op == "Conv" or len(tensor.shape or ()) >= 4 else -1
            grid = stretched(grid, _inverse(scale_of(tensor, self.scaled)), axis)
            switch = Switch(f"{name}: between", name, tuple(chosen), grid=grid)
            self.suspect(owner).activation.append(self.switch(switch))

    def _past_activations(self, grids: Mapping[str, Grid]) -> dict[str, Grid]:
        """Grids of what layers make, taken behind the activation that rounding to them has replaced."""
        moved: dict[str, Grid] = {}
        for name, grid in grids.items():
            layer = self.owners.get(name)
            last = layer.tail[-1] if layer is not None and layer.tail else None
            if last is not None and last.op in ABSORBED and last.inputs[0].name == name:
                moved[last.outputs[0].name] = grid
            else:
                moved[name] = grid
        return {**moved, **{name: grid for name, grid in grids.items() if name in moved}}

    def _float_readers(self, name: str) -> set[str]:
        """Nodes of the quantized graph that read a tensor in floats as some float operator made it."""
        tensor = self.reader.tensors.get(name)
        if tensor is None or (tensor.inputs and tensor.inputs[0].op == "DequantizeLinear"):
            return set()
        found = {node.name for node in tensor.outputs if node.op not in ("QuantizeLinear", "DynamicQuantizeLinear")}
        return found | ({""} if self.reader.graph.kept(tensor) else set())

    def add_constants(self) -> None:
        """Other constants that are stored in integers: embedding tables, rows that an Add or a Mul reads."""
        done = {switch.tensor for switch in self.switches.values()} | {p.layer.weight.name for p in self.pairs}
        tensors = {name: t for name, t in self.graph.tensors().items() if is_constant(t) and name not in done}
        holders = {node.name: pair.layer.node for pair in self.pairs for node in pair.layer.tail}
        for name, numbers in constant_forms(self.reader, tensors).items():
            tensor = tensors[name]
            if numbers.values.shape != tuple(tensor.shape or ()) or tensor.dtype != np.float32:
                continue
            owner = next(iter(tensor.outputs))
            suspect = self.suspect(holders.get(owner.name, owner))
            suspect.weight.append(self.switch(Switch(f"{name}: constant", name, values=numbers.values)))


def stored_weight(pair: Pair, factors: Factors | None) -> Array:
    """The weight as the layer sees it, without what it was rescaled by, in the layout of the float graph."""
    values, node = pair.stored.weight.values, pair.layer.node
    if factors is not None:
        groups = int(node.attrs.get("group", 1))
        values = factors.removed(values.T).T if pair.layer.linear else factors.removed(values, groups)
    return values.T if node.op == "Gemm" and node.attrs.get("transB", 0) else values


def stretched(grid: Grid, factors: Array | None, axis: int) -> Grid:
    """The grid of x / factors as one of x: a scale for each channel."""
    if factors is None or not np.any(factors != 1) or np.size(grid.scale) > 1:
        return grid
    return Grid((grid.scale * factors).astype(np.float32), grid.zero_point, grid.format, axis)


def _inverse(factors: Array | None) -> Array | None:
    return None if factors is None else 1 / factors


def scale_of(tensor: Tensor, known: Mapping[str, Array]) -> Array | None:
    """By how much the channels of a tensor were multiplied, found behind operators that pass factors on."""
    for _ in range(100):
        if tensor.name in known:
            return known[tensor.name]
        maker = tensor.inputs[0] if tensor.inputs else None
        if maker is None or maker.op not in HOMOGENEOUS | {"Clip", "Identity", "Add"}:
            return None
        tensor = next((t for t in maker.inputs if not is_constant(t) and t.name), tensor)
    return None


def activation_grids(reader: Reader, floats: Mapping[str, Tensor]) -> dict[str, Grid]:
    """Fixed grids of activations, by their names in the float graph."""
    found: dict[str, Grid] = {}
    for node in reader.graph.nodes:
        if node.op not in OUTPUT_PARAMETERS:
            continue
        names = [node.outputs[0].name, *([node.inputs[0].name] if node.op == "QuantizeLinear" else [])]
        scale, zero_point = OUTPUT_PARAMETERS[node.op]
        grid = reader.grid(node, scale, zero_point)
        name = next((n for n in (bare(name, floats) for name in reversed(names)) if n is not None), None)
        if name is not None and isinstance(grid, Grid) and not is_constant(floats[name]):
            found.setdefault(name, grid)
    return found


def constant_forms(reader: Reader, floats: Mapping[str, Tensor]) -> dict[str, Numbers]:
    """Constants that are stored in integers, by their names in the float graph."""
    found: dict[str, Numbers] = {}
    for tensor in reader.graph.weights():
        name = bare(tensor.name, floats)
        if name is None or name == tensor.name or tensor.dtype is None or tensor.dtype.kind not in "iu":
            continue
        numbers = _behind_dequantize(reader, tensor) or _beside_its_scale(reader, tensor)
        if numbers is not None:
            found[name] = numbers
    return found


def _behind_dequantize(reader: Reader, tensor: Constant) -> Numbers | None:
    readers = [node for node in tensor.outputs if node.op == "DequantizeLinear" and node.inputs[0] is tensor]
    return reader.constants.numbers(readers[0].outputs[0]) if readers else None


def _beside_its_scale(reader: Reader, tensor: Constant) -> Numbers | None:
    """A constant that comes with others called NAME_scale and NAME_zero_point."""
    for stem in (tensor.name.removesuffix("_quantized"), tensor.name):
        scale = reader.constants.value(reader.tensors.get(f"{stem}_scale"))
        if scale is None:
            continue
        values, zero_point = weight(tensor), reader.constants.value(reader.tensors.get(f"{stem}_zero_point"))
        return dequantized(values, scale, zero_point, 0) if scale.size in (1, *values.shape[:1]) else None
    return None
