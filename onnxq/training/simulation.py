"""A graph that rounds as its quantized form will, and that can be trained: what is trained, and how it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onnxq.graph import Array, Graph
from onnxq.training.fake_quant import Grid, Quantizer
from onnxq.training.interpreter import Interpreter


class Weight(nn.Module):
    """A weight in floats, which are trained, and what is left of it on its grid.

    Attributes:
        values: the floats.
        quantizer: the grid.
    """

    def __init__(self, values: Array, grid: Grid) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.from_numpy(np.array(values, np.float32)))
        self.quantizer = Quantizer(grid)

    def forward(self, *_: Any) -> Tensor:
        """The weight as its layer will see it."""
        rounded: Tensor = self.quantizer(self.values)
        return rounded

    @property
    def step(self) -> float:
        """The width of a typical step: what a change of the weight is measured in."""
        return float(self.quantizer.scale().detach().abs().median())


class Simulation(nn.Module):
    """Runs a graph with PyTorch, rounding as its quantized form will.

    Attributes:
        graph: what runs.
        activations: the grids of activations, by the name of a tensor on each.
        weights: by the name of the tensor that layers read.
        constants: floats that are trained as they are, biases above all, by name.
    """

    def __init__(
        self,
        graph: Graph,
        replaced: Mapping[str, Callable[..., Any]],
        activations: Mapping[str, Quantizer],
        weights: Mapping[str, Weight],
        constants: Mapping[str, Array],
    ) -> None:
        """Put it together.

        Args:
            graph: the graph; with Q/DQ, or the float one.
            replaced: what runs instead of an operator, by the name of its node.
            activations: grids of activations.
            weights: rounded weights.
            constants: floats to be trained.

        Raises:
            UnsupportedModel: an operator has no counterpart in PyTorch.
        """
        super().__init__()
        self.graph = graph
        self.interpreter = Interpreter(graph, replaced)
        self.activations, self.weights = dict(activations), dict(weights)
        self.constants = {
            name: nn.Parameter(torch.from_numpy(np.array(values, np.float32))) for name, values in constants.items()
        }
        self.parts = nn.ModuleList([*self.activations.values(), *self.weights.values()])
        self.plain = nn.ParameterList(self.constants.values())

    def forward(self, feeds: Mapping[str, Tensor], wanted: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Outputs by name, or the inner tensors that are wanted."""
        held = self.interpreter.constants
        held.update(self.constants)
        held.update({name: module() for name, module in self.weights.items()})
        found: dict[str, Tensor] = self.interpreter(feeds, wanted)
        return found

    @property
    def quantizers(self) -> list[Quantizer]:
        """All grids: of activations, then of weights."""
        return [*self.activations.values(), *(module.quantizer for module in self.weights.values())]
