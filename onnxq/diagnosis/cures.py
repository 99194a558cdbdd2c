"""What could be done about an operator: each cure is a few more switches, or a few less, and so can be simulated.

per channel  its weight rounded anew, with a scale for each output channel
range        other ends of the grid of its input, from a histogram of the data
balance      input / s on a new grid, weight * s rounded anew (SmoothQuant; between convolutions: equalization)
keep float   without its switches; what integer operators before it make stays rounded
16 bits      65536 steps for its input
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from onnxq.calibration.collect import Seen, Statistics
from onnxq.calibration.ranges import RULES
from onnxq.channels import Space, input_channels, scaled_inputs, spaces
from onnxq.diagnosis.findings import CureKind
from onnxq.diagnosis.matching import Pair
from onnxq.diagnosis.suspects import Case, Suspect
from onnxq.graph import Array, Node, Tensor, weight
from onnxq.layers import Layer, weight_axis
from onnxq.numerics.affine import dequantize, parameters, quantize_weight
from onnxq.numerics.formats import FORMATS, UINT8, Format
from onnxq.search.switches import Grid, Switch

UINT16 = FORMATS["uint16"]

LEAST_REACH = 1e-3
"""No channel counts as reaching less far than this share of the farthest."""


@dataclass(frozen=True, eq=False)
class Trial:
    """One cure, ready to be simulated.

    Attributes:
        kind: as in `Cure`.
        sentence: what to do.
        more: switches to add; they come after those that they replace.
        off: names of switches that are gone, if they were there.
        nodes: as in `Cure`.
        rule: as in `Cure`.
    """

    kind: CureKind
    sentence: str
    more: tuple[Switch, ...] = ()
    off: frozenset[str] = frozenset()
    nodes: tuple[str, ...] = ()
    rule: str = ""


@dataclass(frozen=True, eq=False)
class Clinic:
    """A case, and what the data says about its tensors.

    Attributes:
        case: what was done to the float graph.
        statistics: of the tensors that cures are about.
        spaces: tensors whose channels can be rescaled for free, by name.
        tensors: of the float graph, by name.
        makers: the operator that returns a tensor in integers, whoever reads it: a convolution, or one between layers.
    """

    case: Case
    statistics: Statistics
    spaces: Mapping[str, Space]
    tensors: Mapping[str, Tensor]
    makers: Mapping[str, Node]

    @classmethod
    def of(cls, case: Case, statistics: Statistics) -> Clinic:
        """Look the case over."""
        found = {name: space for space in spaces(case.graph) for name in space.tensors}
        return cls(case, statistics, found, case.graph.tensors(), integer_makers(case))

    def trials(self, suspect: Suspect) -> Iterator[Trial]:
        """Everything that could help one operator."""
        switch = self._grid_switch(suspect)
        seen = None if switch is None else self.statistics.get(switch.tensor)
        if switch is not None and seen is not None:
            yield from self._ranges(switch, seen)
            yield from self._wider(switch, seen)
        if suspect.pair is not None and suspect.factors is None:
            yield from per_channel(suspect.pair)
            yield from self._balance(suspect.pair)
        yield from self._keep(suspect)

    def _grid_switch(self, suspect: Suspect) -> Switch | None:
        """The switch of an activation with one fixed grid."""
        found = (self.case.switches[name] for name in suspect.activation)
        return next((s for s in found if s.grid is not None and np.size(s.grid.scale) == 1), None)

    def _replaced(self, tensor: str, grid: Grid, label: str) -> tuple[Switch, ...]:
        """The same tensor on another grid, for all that read it on one."""
        same = [s for s in self.case.switches.values() if s.tensor == tensor and (s.grid or s.dynamic)]
        return tuple(replace(s, name=f"{s.name}, {label}", grid=grid, dynamic=False) for s in same)

    def _ranges(self, switch: Switch, seen: Seen) -> Iterator[Trial]:
        assert switch.grid is not None
        for rule, choose in RULES.items():
            ends = choose(seen.histogram)
            grid = grid_of(*ends, switch.grid.format, symmetric=_is_symmetric(switch.grid))
            said = f"Take the range of '{switch.tensor}' by {rule}, [{ends[0]:.4g}, {ends[1]:.4g}]."
            yield Trial("range", said, self._replaced(switch.tensor, grid, f"{switch.name} by {rule}"), rule=rule)

    def _wider(self, switch: Switch, seen: Seen) -> Iterator[Trial]:
        grid = grid_of(*RULES["minmax"](seen.histogram), UINT16)
        more = self._replaced(switch.tensor, grid, f"{switch.name} in 16 bits")
        yield Trial("16 bits", f"Give '{switch.tensor}' 16 bits.", more)

    # balance

    def _balance(self, pair: Pair) -> Iterator[Trial]:
        """Factors between the channels of the input and of the weight, where they can be had."""
        layer, data = pair.layer, pair.layer.data.name
        space, seen = self.spaces.get(data), self.statistics.get(data)
        names = (data,) if space is None else space.tensors
        readers = [s.pair for s in self.case.suspects.values() if s.pair and s.pair.layer.data.name in names]
        alike = all(p.stored.weight.format is not None and p.stored.data is not None for p in readers)
        if seen is None or seen.channels.high.shape != (input_channels(layer),) or not alike:
            return
        if space is None and not layer.linear:
            return
        reach = np.maximum(-seen.channels.low, seen.channels.high)
        factors = balancing_factors(reach, [p.layer for p in readers], np.inf if space is None else space.limit)
        label = f"{layer.node.name} balanced"
        more = [switch for name in names for switch in self._balanced_input(name, factors, label)]
        more += [balanced_weight(reader, factors, label) for reader in readers]
        makers = {id(maker.node) for maker in space.makers if isinstance(maker, Layer)} if space else set()
        if makers & {id(reader.layer.node) for reader in readers}:
            return
        more += [
            divided_weight(s.pair, factors, label)
            for s in self.case.suspects.values()
            if id(s.node) in makers and s.pair is not None and s.pair.stored.weight.format is not None
        ]
        cost = "" if space else ", at the cost of a Mul"
        said = f"Move the differences between the channels of '{data}' into the weights that read it{cost}."
        yield Trial("balance", said, tuple(more), off=frozenset(bias_of(reader) for reader in readers))

    def _balanced_input(self, name: str, factors: Array, label: str) -> tuple[Switch, ...]:
        seen = self.statistics.get(name)
        if seen is None or seen.channels.low.shape != factors.shape:
            return ()
        plain = grid_of(float(np.min(seen.channels.low / factors)), float(np.max(seen.channels.high / factors)), UINT8)
        axis = channel_axis(len(self.tensors[name].shape or ()))
        return self._replaced(
            name, Grid((plain.scale * factors).astype(np.float32), plain.zero_point, UINT8, axis), label
        )

    # float

    def _keep(self, suspect: Suspect) -> Iterator[Trial]:
        """The operator in float, alone, with what makes its input, and with what reads its output."""
        node, reads = suspect.node, [self.case.switches[name] for name in suspect.activation]
        groups = [{node.name}]
        groups += [
            {node.name, self.makers[s.tensor].name}
            for s in reads
            if s.readers == (node.name,) and s.tensor in self.makers
        ]
        behind = {name for s in reads if s.readers != (node.name,) for name in nodes_behind(s)}
        groups += [{node.name, *behind}] if behind else []
        yield from (self.in_float(group) for group in groups)

    def in_float(self, floats: set[str]) -> Trial:
        """Without what these operators need to be quantized, and nobody else."""
        off = frozenset(s.name for s in self.case.switches.values() if not self._stays(s, floats))
        names = [node.name for node in self.case.graph.nodes if node.name in floats]
        listed = " and ".join(f"'{name}'" for name in names)
        return Trial("keep float", f"Keep {listed} in float.", off=off, nodes=tuple(names))

    def _stays(self, switch: Switch, floats: set[str]) -> bool:
        """Whether something is still quantized while these operators are float."""
        if switch.values is not None:
            return not any(
                switch.name in self.case.suspects[name].weight for name in floats & self.case.suspects.keys()
            )
        maker = None if switch.dynamic else self.makers.get(switch.tensor)
        return bool(nodes_behind(switch) - floats) or (maker is not None and maker.name not in floats)


def nodes_behind(switch: Switch) -> set[str]:
    """Nodes that read a tensor on its grid; a model's output that does is none."""
    return set(switch.readers) - {switch.tensor}


def integer_makers(case: Case) -> dict[str, Node]:
    """The operators whose results are integers, by name of the result."""
    found: dict[str, Node] = {}
    known = {node.name: node for node in case.graph.nodes}
    for switch in [s for s in case.switches.values() if s.grid is not None]:
        for node in (known[name] for name in nodes_behind(switch)):
            pair = case.suspects[node.name].pair if node.name in case.suspects else None
            if pair is None:
                found.update((tensor.name, node) for tensor in node.outputs)
            elif pair.stored.returns_integers:
                found.update((part.outputs[0].name, node) for part in (node, *pair.layer.tail))
    return found


def channel_axis(rank: int) -> int:
    """Where statistics look for the channels of a tensor."""
    return 1 if rank >= 4 else -1


def grid_of(low: float, high: float, form: Format, *, symmetric: bool = False) -> Grid:
    """The grid that covers a range."""
    return Grid(*parameters(low, high, form, symmetric=symmetric), form)


def _is_symmetric(grid: Grid) -> bool:
    return grid.format.signed and not np.any(grid.zero_point)


def balancing_factors(reach: Array, readers: list[Layer], limit: float) -> Array:
    """s = sqrt(reach of the input / reach of the weights), so that both reach equally far (SmoothQuant, strength 0.5).

    Behind a Clip, s is at least reach / limit: no value of the data may pass the limit after the division.
    """
    one = np.ones(reach.shape, np.float32)
    weights = np.zeros(reach.shape)
    for layer in readers:
        weights = np.maximum(weights, _input_reach(layer, one))
    reach, weights = (np.maximum(x, LEAST_REACH * max(float(x.max()), 1e-30)) for x in (reach, weights))
    factors = np.sqrt(reach / weights)
    if limit < np.inf:
        return np.asarray(np.maximum(factors / factors.max(), reach / limit), np.float32)
    return np.asarray(factors / np.exp(np.mean(np.log(factors))), np.float32)


def _input_reach(layer: Layer, one: Array) -> Array:
    """The largest absolute weight of each input channel."""
    values = np.abs(scaled_inputs(layer, one))
    if layer.node.op != "Conv":
        return np.asarray(values.max(axis=0 if layer.node.attrs.get("transB", 0) else 1))
    groups = int(layer.node.attrs.get("group", 1))
    blocks = values.reshape(groups, values.shape[0] // groups, values.shape[1], -1)
    return np.asarray(blocks.max(axis=(1, 3)).reshape(-1))


def bias_of(pair: Pair) -> str:
    """The switch of a layer's bias, which makes up for the errors of the weight that is there now."""
    return f"{pair.layer.node.name}: bias"


def per_channel(pair: Pair) -> Iterator[Trial]:
    """A scale for each output channel, where all share one."""
    layer, form, name = pair.layer, pair.stored.weight.format, pair.layer.node.name
    if form is None or pair.stored.weight.axis is not None:
        return
    axis = weight_axis(layer.node)
    found = quantize_weight(weight(layer.weight), form, axis=axis, symmetric=form.signed)
    values = dequantize(found.values, found.scale, found.zero_point, axis)
    switch = Switch(f"{name}: weight, per channel", layer.weight.name, (name,), values=values)
    said = f"Give each output channel of the weight of '{name}' a scale of its own."
    yield Trial("per channel", said, (switch,), off=frozenset({bias_of(pair)}))


def balanced_weight(pair: Pair, factors: Array, label: str) -> Switch:
    """round(w * s) / s, for each input channel."""
    layer, name = pair.layer, pair.layer.node.name
    restored = scaled_inputs(layer, factors)
    rounded = round_like(pair, restored)
    values = weight(layer.weight) * (rounded / np.where(restored != 0, restored, 1.0))
    return Switch(f"{name}: weight, {label}", layer.weight.name, (name,), values=values.astype(np.float32))


def divided_weight(pair: Pair, factors: Array, label: str) -> Switch:
    """round(w / s) * s, for each output channel."""
    layer, name, axis = pair.layer, pair.layer.node.name, weight_axis(pair.layer.node)
    values = weight(layer.weight)
    along = factors.reshape([-1 if place == axis else 1 for place in range(values.ndim)])
    values = round_like(pair, (values / along).astype(np.float32)) * along
    return Switch(f"{name}: made, {label}", layer.weight.name, (name,), values=values.astype(np.float32))


def round_like(pair: Pair, values: Array) -> Array:
    """A weight in the layout of the float graph, rounded with as many scales as the stored one has."""
    form = pair.stored.weight.format
    assert form is not None
    axis = weight_axis(pair.layer.node) if pair.stored.weight.axis is not None else None
    found = quantize_weight(values, form, axis=axis, symmetric=form.signed)
    return dequantize(found.values, found.scale, found.zero_point, axis)
