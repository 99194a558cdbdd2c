"""A graph that rounds as its quantized form will, and that can be trained: what is trained, and how it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onnxq.graph import Array, Graph
from onnxq.training.batches import channels_last
from onnxq.training.fake_quant import Grid, Quantizer
from onnxq.training.interpreter import Interpreter

NEARLY_HALF = 0.49
"""How far from the middle of its step a weight may begin, so that it rounds to that."""

LOWEST, HIGHEST = -0.1, 1.1
"""Where the share of a step that is added ends before it is cut off, so that it reaches 0 and 1."""


def share_up(upward: Tensor) -> Tensor:
    """From a number to the share of a step that is added to the one below: AdaRound's rectified sigmoid."""
    return (torch.sigmoid(upward) * (HIGHEST - LOWEST) + LOWEST).clamp(0, 1)


class Weight(nn.Module):
    """A weight in floats, which are trained, and what is left of it on its grid.

    Attributes:
        values: the floats.
        quantizer: the grid.
        upward: where it only rounds up or down, what decides about that; None otherwise.
        free: the floats that it goes back to before it is trained; None where it is trained from where it is.
    """

    def __init__(self, values: Array, grid: Grid, integers: Array | None = None, *, free: bool = False) -> None:
        """Begin at floats; where these round to something else than integers that are known, as near as rounds to them.

        Args:
            values: the float weight.
            grid: where its scales lie.
            integers: what was found for it, shaped likewise; None for the nearest ones.
            free: whether training starts from the floats all the same.
        """
        super().__init__()
        self.values = nn.Parameter(channels_last(torch.from_numpy(np.array(values, np.float32))))
        self.quantizer = Quantizer(grid)
        self.upward: nn.Parameter | None = None
        self.free = self.values.detach().clone() if free and integers is not None else None
        if integers is not None:
            self._move_to(torch.from_numpy(integers.astype(np.float32)))

    def _move_to(self, integers: Tensor) -> None:
        scale, zero = self.quantizer.along_all(self.values)
        other = torch.from_numpy(self.quantizer.integers(self.values).astype(np.float32)) != integers
        with torch.no_grad():
            middle, room = (integers - zero) * scale, NEARLY_HALF * scale.abs()
            near = torch.minimum(torch.maximum(self.values, middle - room), middle + room)
            self.values.copy_(torch.where(other, near, self.values))

    def forward(self, *_: Any) -> Tensor:
        """The weight as its layer will see it."""
        if self.upward is not None:
            return self._between(share_up(self.upward))
        rounded: Tensor = self.quantizer(self.values)
        return rounded

    def let_go(self) -> None:
        """Go back to the floats, if that is how it is trained."""
        if self.free is not None:
            with torch.no_grad():
                self.values.copy_(self.free)
            self.free = None

    def soften(self) -> None:
        """From here on, each number lies between the step below and the step above, beginning where it is."""
        scale, _ = self.quantizer.along_all(self.values)
        with torch.no_grad():
            steps = self.values / scale
            share = (steps - torch.floor(steps)).clamp(0.01, 0.99)
            reached = (share - LOWEST) / (HIGHEST - LOWEST)
            self.upward = nn.Parameter(torch.log(reached / (1 - reached)))

    def harden(self) -> None:
        """Settle on the step below or above."""
        assert self.upward is not None
        with torch.no_grad():
            settled = self._between((self.upward >= 0).float())
            self.values.copy_(settled)
        self.upward = None

    def _between(self, share: Tensor) -> Tensor:
        scale, zero = self.quantizer.along_all(self.values)
        form = self.quantizer.grid.form
        steps = torch.floor(self.values.detach() / scale) + share
        return torch.clamp(steps, form.qmin - zero, form.qmax - zero) * scale

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
        units: of those that integers hold in the end, what these count.
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
        self.units: dict[str, Callable[[], Tensor]] = {}
        self.plain = nn.ParameterList(self.constants.values())

    def forward(self, feeds: Mapping[str, Tensor], wanted: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Outputs by name, or the inner tensors that are wanted."""
        held = self.interpreter.constants
        held.update(self.constants)
        held.update({name: _whole(self.constants[name], unit()) for name, unit in self.units.items()})
        held.update({name: module() for name, module in self.weights.items()})
        found: dict[str, Tensor] = self.interpreter(feeds, wanted)
        return found

    def state(self) -> dict[str, Tensor]:
        """Everything that is trained, by name, each once."""
        return {name: values.detach() for name, values in self.named_parameters()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up a state."""
        with torch.no_grad():
            for name, values in self.named_parameters():
                values.copy_(state[name])

    @property
    def quantizers(self) -> list[Quantizer]:
        """All grids: of activations, then of weights."""
        return [*self.activations.values(), *(module.quantizer for module in self.weights.values())]


def _whole(values: Tensor, unit: Tensor) -> Tensor:
    """The nearest whole numbers of units, with the gradient of the identity."""
    nearest = torch.round(values.detach().double() / unit).float() * unit
    return values + (nearest - values.detach())
