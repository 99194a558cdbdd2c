"""The forms that each layer of a model can take, and what has to be rounded for each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from onnxq.calibration.collect import Progress, silent
from onnxq.calibration.data import Data
from onnxq.channels import input_channels, layers_of
from onnxq.graph import Array, Graph, weight
from onnxq.layers import Layer, layer_of
from onnxq.numerics.formats import FORMATS
from onnxq.plan import Plan, TensorPlan, Treatment
from onnxq.search.switches import Grid, Switch, SwitchBoard
from onnxq.targets import Target
from onnxq.weights import blocked_weight, corrected_bias, rounded_weight, seen_blocks, seen_weight

STATIC, DYNAMIC, FLOAT = Treatment.STATIC.value, Treatment.DYNAMIC.value, Treatment.FLOAT.value
WEIGHT_8, WEIGHT_4 = "8-bit weight", "4-bit weight"

BITS: Mapping[str, Literal[4, 8]] = {WEIGHT_8: 8, WEIGHT_4: 4}
"""Forms in which the weight alone is stored in integers."""


@dataclass(frozen=True)
class Forms:
    """What could become of the layers of a graph.

    Attributes:
        graph: the float model.
        target: what runs it.
        plan: the plan in which every layer that can is static.
    """

    graph: Graph
    target: Target
    plan: Plan

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """The layers that the plan runs on static integers, by name."""
        return {
            layer.node.name: layer
            for layer in layers_of(self.graph)
            if self.plan.treatment(layer.node.name) is Treatment.STATIC and layer.data.name in self.plan.tensors
        }

    def of(self, name: str) -> tuple[str, ...]:
        """The forms that a layer can take; the first one is preferred among equals."""
        return (STATIC, DYNAMIC, *BITS, FLOAT) if self.layers[name].linear else (STATIC, FLOAT)

    def rounded(self, name: str, form: str) -> Iterator[Switch]:
        """What has to be turned on for a layer to be in a form, but for a static input and output."""
        layer = self.layers[name]
        if form in BITS:
            settings, inputs = self.plan.recipe.weight, input_channels(layer)
            values = seen_blocks(layer, blocked_weight(layer, settings, BITS[form]))
            yield Switch(f"{name}|{form}", layer.node.inputs[1].name, (name,), values=values)
            yield Switch(f"{name}|blocks", layer.data.name, (name,), blocks=(inputs, settings.block(inputs)))
        elif form != FLOAT:
            yield from self._integers(name, form)

    def _integers(self, name: str, form: str) -> Iterator[Switch]:
        layer, settings = self.layers[name], self.plan.recipe.weight
        node, decision = layer.node, self.plan.nodes[name]
        # the scale of a dynamic input was not there when errors were made to cancel, and no bias makes up for the rest
        rounding = decision.rounding if form == STATIC else ""
        found = rounded_weight(layer, settings, decision.per_channel, rounding)
        yield Switch(f"{name}|{form} weight", node.inputs[1].name, (name,), values=seen_weight(layer, found))
        if form == DYNAMIC:
            yield Switch(f"{name}|dynamic", layer.data.name, (name,), dynamic=True)
            return
        bias = corrected_bias(layer, found, self.plan.tensors[layer.data.name].means)
        if bias is not None and layer.bias is not None:
            holder = layer.tail[0] if node.op == "MatMul" else node
            yield Switch(f"{name}|bias", layer.bias.name, (holder.name,), values=_shaped(bias, layer))

    def alone(self, name: str) -> Iterator[Switch]:
        """All that a static layer rounds in a model in which everything else is float."""
        yield from self.rounded(name, STATIC)
        tensor = self.layers[name].data.name
        yield Switch(f"{name}|activation", tensor, (name,), grid=self.grid(tensor))
        output = self.made(name)
        if output is not None:
            yield Switch(f"{name}|output", output, (), grid=self.grid(output))

    def made(self, name: str) -> str | None:
        """The tensor that a static layer makes as integers; linear layers return floats."""
        whole = layer_of(self.graph, self.layers[name].node, self.target.absorbed)
        assert isinstance(whole, Layer)
        made = whole.output.name
        return made if not whole.linear and made in self.plan.tensors else None

    def grid(self, tensor: str) -> Grid:
        """The grid of an activation of the plan."""
        return grid_of(self.plan.tensors[tensor])


def _shaped(bias: Array, layer: Layer) -> Array:
    assert layer.bias is not None
    return bias.reshape(np.shape(weight(layer.bias)))


def grid_of(plan: TensorPlan) -> Grid:
    """The grid of an activation."""
    form = FORMATS[plan.format]
    return Grid(np.asarray(plan.scale, np.float32), np.asarray(plan.zero_point, form.dtype), form)


def layer_shares(
    graph: Graph, target: Target, plan: Plan, data: Data, samples: int, progress: Progress = silent
) -> dict[str, float]:
    """Noise over signal at the worst output that each static layer alone causes, the worst first."""
    forms = Forms(graph, target, plan)
    groups = {name: list(forms.alone(name)) for name in forms.layers}
    switches = [switch for found in groups.values() for switch in found]
    board = SwitchBoard(graph, switches, data, samples)
    return board.shares({name: [s.name for s in found] for name, found in groups.items()}, progress).noise
