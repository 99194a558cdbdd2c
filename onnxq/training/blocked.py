"""Weights that are stored in blocks of integers alone: the float model with these weights rounded, and back.

    MatMul(x, w)    =>    MatMul(x, Quantizer(w))          and back: integers, scales and zero points onto the shelf

From the shelf they go into `MatMulNBits`, its lookup table or Q/DQ, as the recipe has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn

from onnxq.graph import Array, Constant, Graph, weight
from onnxq.layers import Layer, weight_axis
from onnxq.nbits import blocked_layers
from onnxq.numerics.formats import FORMATS
from onnxq.numerics.rounding.blocks import Blocked, with_integers
from onnxq.plan import Plan
from onnxq.shelf import Shelf
from onnxq.training.fake_quant import Grid, Quantizer
from onnxq.training.simulation import Simulation, Weight
from onnxq.weights import blocked_weight, shelf_name


class Lookup(nn.Module):
    """A table that is a copy of a layer's weight, and is looked up in the blocks of that."""

    def __init__(self, weight: Weight, by_rows: bool) -> None:
        super().__init__()
        self.weight, self.by_rows = weight, by_rows

    def forward(self, _: Tensor, indices: Tensor) -> Tensor:
        """A row for each output of the layer."""
        table: Tensor = self.weight()
        return (table if self.by_rows else table.T)[indices.long()]


@dataclass
class Blueprint:
    """The weights of a float model that are rounded, and what else is trained.

    Attributes:
        plan: what says how.
        layers: one for each weight, by its name.
        blocks: as they were first rounded, by the same name.
        biases: names of what layers add.
    """

    plan: Plan
    layers: dict[str, Layer] = field(default_factory=dict)
    blocks: dict[str, Blocked] = field(default_factory=dict)
    biases: dict[str, Array] = field(default_factory=dict)


def take_apart(exact: Graph, plan: Plan, shelf: Shelf, keep: bool = True) -> tuple[Simulation, Blueprint]:
    """A simulation of a float model whose weights are rounded as they lie on the shelf, or else as a plan has it.

    A weight that two layers read in different bits is rounded for the first. `keep` tells whether weights begin no
    farther from their floats than where they round to the integers that were found, which is what training is held
    against. They are trained from the floats: measured on TinyStories in 4 bits, that leaves half the loss (perplexity
    +1.3 % in 600 steps, against +2.4 % in 1000 from the integers).

    Raises:
        UnsupportedModel: an operator has no counterpart in PyTorch.
    """
    found, weights = Blueprint(plan), dict[str, Weight]()
    for layer in blocked_layers(exact, plan.nodes):
        name, bits = layer.weight.name, plan.nodes[layer.node.name].bits
        if name in found.layers:
            continue
        blocks = shelf.get(shelf_name(layer, bits)) or blocked_weight(layer, plan.recipe.weight, bits)
        found.layers[name], found.blocks[name] = layer, blocks
        integers = blocks.integers() if _by_rows(layer) else blocks.integers().T
        weights[name] = Weight(weight(layer.weight), _grid(layer, blocks), integers if keep else None, free=True)
        if layer.bias is not None and len(layer.bias.outputs) == 1 and not exact.kept(layer.bias):
            found.biases[layer.bias.name] = weight(layer.bias)
    return Simulation(exact, _lookups(exact, plan, weights), {}, weights, found.biases), found


def _lookups(exact: Graph, plan: Plan, weights: Mapping[str, Weight]) -> dict[str, Lookup]:
    """What looks up a copy of a weight, and in the end the blocks of that."""
    layers = {layer.node.name: layer for layer in blocked_layers(exact, plan.nodes)}
    shares = {node: plan.nodes[node.name].shares for node in exact.nodes if node.name in plan.nodes}
    found = {n.name: layers[other] for n, other in shares.items() if other and n.inputs[0].name not in weights}
    return {name: Lookup(weights[layer.weight.name], _by_rows(layer)) for name, layer in found.items()}


def _by_rows(layer: Layer) -> bool:
    return weight_axis(layer.node) == 0


def _grid(layer: Layer, blocks: Blocked) -> Grid:
    """The grids of the blocks, along the inputs of the weight as it is stored."""
    zero = blocks.zero_point if blocks.zero_point is not None else np.full(blocks.scale.shape, blocks.middle, np.uint8)
    turn = (lambda part: part) if _by_rows(layer) else np.transpose
    axis = 1 if _by_rows(layer) else 0
    return Grid(FORMATS[f"uint{blocks.bits}"], turn(blocks.scale), turn(zero), axis, blocks.block)


def put_together(found: Blueprint, simulation: Simulation, shelf: Shelf, graph: Graph) -> None:
    """Put the weights on the shelf, where the quantized graph reads them, and what layers add into that graph."""
    for name, layer in found.layers.items():
        module, blocks = simulation.weights[name], found.blocks[name]
        shelf.put(shelf_name(layer, blocks.bits), _blocked(layer, blocks, module.quantizer, module))
    tensors = graph.tensors()
    for name in found.biases:
        if isinstance(tensors.get(name), Constant):
            values = simulation.constants[name].detach().cpu().numpy()
            graph.redirect(tensors[name], Constant(name, values.astype(tensors[name].dtype)))


def _blocked(layer: Layer, blocks: Blocked, quantizer: Quantizer, module: Weight) -> Blocked:
    grid, integers = quantizer.learned(), quantizer.integers(module.values)
    turn = np.asarray if _by_rows(layer) else np.transpose
    zero = None if blocks.zero_point is None else np.ascontiguousarray(turn(grid.zero_point)).astype(np.uint8)
    scale = np.ascontiguousarray(turn(grid.scale))
    fresh = Blocked(blocks.values, scale, zero, blocks.bits, blocks.inputs)
    return with_integers(fresh, np.ascontiguousarray(turn(integers)))
