"""The forms that each layer of a model can take, and the noise that each form alone brings to the outputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnxq.calibration.collect import Progress, silent
from onnxq.calibration.data import Data
from onnxq.channels import layers_of
from onnxq.graph import Array, Graph, weight
from onnxq.layers import Layer, layer_of
from onnxq.numerics.formats import FORMATS
from onnxq.plan import Plan, TensorPlan, Treatment
from onnxq.search.switches import Grid, Shares, Switch, SwitchBoard
from onnxq.targets import Target
from onnxq.weights import corrected_bias, rounded_weight, seen_weight

STATIC, DYNAMIC, FLOAT = Treatment.STATIC.value, Treatment.DYNAMIC.value, Treatment.FLOAT.value


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
        return (STATIC, DYNAMIC, FLOAT) if self.layers[name].linear else (STATIC, FLOAT)

    def switches(self, name: str, form: str, alone: bool = False) -> Iterator[Switch]:
        """What has to be turned on for a layer to be in a form; `alone`: while all others are float."""
        if form == FLOAT:
            return
        layer, settings = self.layers[name], self.plan.recipe.weight
        node, decision = layer.node, self.plan.nodes[name]
        # the scale of a dynamic input was not there when errors were made to cancel, and no bias makes up for the rest
        rounding = decision.rounding if form == STATIC else ""
        found = rounded_weight(layer, settings, decision.per_channel, rounding)
        yield Switch(f"{name}|{form} weight", node.inputs[1].name, (name,), values=seen_weight(layer, found))
        if form == DYNAMIC:
            yield Switch(f"{name}|dynamic", layer.data.name, (name,), dynamic=True)
            return
        tensor = self.plan.tensors[layer.data.name]
        yield Switch(f"{name}|activation", layer.data.name, (name,), grid=grid_of(tensor))
        bias = corrected_bias(layer, found, tensor.means)
        if bias is not None and layer.bias is not None:
            holder = layer.tail[0] if node.op == "MatMul" else node
            yield Switch(f"{name}|bias", layer.bias.name, (holder.name,), values=_shaped(bias, layer))
        output = self._output(layer, alone)
        if output is not None:
            yield Switch(f"{name}|output", output, (), grid=grid_of(self.plan.tensors[output]))

    def _output(self, layer: Layer, alone: bool) -> str | None:
        """The quantized output of a convolution, unless another layer counts it as its input."""
        whole = layer_of(self.graph, layer.node, self.target.absorbed)
        assert isinstance(whole, Layer)
        name = whole.output.name
        counted = not alone and any(other.data.name == name for other in self.layers.values())
        return None if layer.linear or counted or name not in self.plan.tensors else name

    def shares(
        self, forms: tuple[str, ...], data: Data, samples: int, progress: Progress = silent, *, alone: bool = False
    ) -> Shares:
        """Noise of each layer in each of some forms, as groups `layer|form`."""
        groups: dict[str, list[str]] = {}
        switches: dict[str, Switch] = {}
        for name in self.layers:
            for form in forms:
                if form in self.of(name):
                    found = {switch.name: switch for switch in self.switches(name, form, alone)}
                    switches |= found
                    groups[f"{name}|{form}"] = list(found)
        board = SwitchBoard(self.graph, list(switches.values()), data, samples)
        return board.shares(groups, progress)


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
    shares = Forms(graph, target, plan).shares((STATIC,), data, samples, progress, alone=True)
    return {name.removesuffix(f"|{STATIC}"): noise for name, noise in shares.noise.items()}
