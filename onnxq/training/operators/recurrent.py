"""Recurrent layers, step by step: LSTM, GRU and RNN in one or both directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onnxq.training.operators.calls import Call, Operator, together

Function = Callable[[Tensor], Tensor]
State = tuple[Tensor, ...]
Step = Callable[["Direction", Tensor, State], State]

FUNCTIONS: Mapping[str, Function] = {
    "HardSigmoid": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1),
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Softplus": torch.nn.functional.softplus,
    "Softsign": torch.nn.functional.softsign,
    "Tanh": torch.tanh,
}
"""Activations of gates that are written here."""


@dataclass(frozen=True)
class Direction:
    """One direction of a layer.

    Attributes:
        weight: what multiplies the input, [gates*hidden, input].
        recurrence: what multiplies the state, [gates*hidden, hidden].
        bias: of the input, [gates*hidden].
        recurrent_bias: of the state, [gates*hidden].
        peepholes: what the cell adds to the gates of an LSTM, three of [hidden].
        functions: the activations.
        call: the node, for its attributes.
    """

    weight: Tensor
    recurrence: Tensor
    bias: Tensor
    recurrent_bias: Tensor
    peepholes: tuple[Tensor, ...]
    functions: Sequence[Function]
    call: Call

    def bounded(self, x: Tensor) -> Tensor:
        """What goes into an activation, within the bounds of the attribute `clip`."""
        limit = self.call.get("clip")
        return x if limit is None else x.clamp(-limit, limit)


def lstm_step(layer: Direction, x: Tensor, state: State) -> State:
    """Gates in the order input, output, forget, cell; `x` is multiplied by its weight already."""
    (h, c), (f, g, last) = state, layer.functions
    i, o, forget, cell = (x + h @ layer.recurrence.T + layer.recurrent_bias).chunk(4, -1)
    peep_i, peep_o, peep_f = layer.peepholes or (torch.zeros_like(c),) * 3
    i = f(layer.bounded(i + peep_i * c))
    forget = 1 - i if layer.call.get("input_forget", 0) else f(layer.bounded(forget + peep_f * c))
    c = forget * c + i * g(layer.bounded(cell))
    return f(layer.bounded(o + peep_o * c)) * last(c), c


def gru_step(layer: Direction, x: Tensor, state: State) -> State:
    """Gates in the order update, reset, hidden."""
    (h,), (f, g) = state, layer.functions
    size = h.shape[-1]
    first = x[:, : 2 * size] + h @ layer.recurrence[: 2 * size].T + layer.recurrent_bias[: 2 * size]
    z, r = f(layer.bounded(first)).chunk(2, -1)
    weight, bias = layer.recurrence[2 * size :], layer.recurrent_bias[2 * size :]
    after = layer.call.get("linear_before_reset", 0)
    hidden = r * (h @ weight.T + bias) if after else (r * h) @ weight.T + bias
    return ((1 - z) * g(layer.bounded(x[:, 2 * size :] + hidden)) + z * h,)


def rnn_step(layer: Direction, x: Tensor, state: State) -> State:
    """One gate."""
    (h,), (f,) = state, layer.functions
    return (f(layer.bounded(x + h @ layer.recurrence.T + layer.recurrent_bias)),)


@dataclass(frozen=True)
class Cell:
    """A kind of recurrent layer.

    Attributes:
        step: (layer, input, state) -> next state, the output first.
        gates: how many.
        states: the places of the initial states among the inputs.
        activations: those of one direction if nothing else is said.
    """

    step: Step
    gates: int
    states: tuple[int, ...]
    activations: tuple[str, ...]


def _directions(call: Call, cell: Cell) -> list[Direction]:
    _, weight, recurrence = together(*(call.data(index) for index in range(3)))
    count, hidden = weight.shape[0], recurrence.shape[-1]
    names = call.get("activations") or list(cell.activations) * count
    unknown = [name for name in names if name not in FUNCTIONS]
    if unknown or call.get("activation_alpha") or call.get("activation_beta"):
        raise call.refuse(f"recurrent layer with activations {', '.join(names)} and their parameters")
    functions = [FUNCTIONS[name] for name in names]
    bias = call.at(3)
    bias = weight.new_zeros(count, 2 * cell.gates * hidden) if bias is None else bias.to(weight.device)
    peepholes = call.at(7)
    size = len(cell.activations)
    return [
        Direction(
            weight[d],
            recurrence[d],
            *_halves(bias[d]),
            () if peepholes is None else peepholes[d].to(weight.device).chunk(3),
            functions[size * d : size * (d + 1)],
            call,
        )
        for d in range(count)
    ]


def _halves(bias: Tensor) -> tuple[Tensor, Tensor]:
    size = bias.shape[0] // 2
    return bias[:size], bias[size:]


def _run(cell: Cell, layer: Direction, x: Tensor, state: State, places: range) -> tuple[Tensor, State]:
    """All steps in one direction; after its end a sequence keeps its state and gives zeros."""
    lengths = layer.call.at(4)
    given = x @ layer.weight.T + layer.bias
    outputs: dict[int, Tensor] = {}
    for place in places:
        new = cell.step(layer, given[place], state)
        outputs[place] = new[0]
        if lengths is not None:
            inside = (place < lengths.to(x.device))[:, None]
            outputs[place] = torch.where(inside, new[0], torch.zeros_like(new[0]))
            new = tuple(torch.where(inside, n, old) for n, old in zip(new, state, strict=True))
        state = new
    return torch.stack([outputs[place] for place in sorted(outputs)]), state


def recurrent(cell: Cell) -> Operator:
    """The operator of a kind of layer: all outputs [time, directions, batch, hidden], then the last states."""

    def run(call: Call) -> tuple[Tensor, ...]:
        layers = _directions(call, cell)
        batch_first = bool(call.get("layout", 0))
        x = call.data().to(layers[0].weight.device)
        x = x.transpose(0, 1) if batch_first else x
        states = [_first(call.at(index), x, layers) for index in cell.states]
        ways = _ways(call, x.shape[0])
        done = [_run(cell, layer, x, tuple(state[d] for state in states), ways[d]) for d, layer in enumerate(layers)]
        y = torch.stack([outputs for outputs, _ in done], 1)
        last = [torch.stack([state[index] for _, state in done]) for index in range(len(cell.states))]
        if batch_first:
            return y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in last)
        return y, *last

    return run


def _first(given: Tensor | None, x: Tensor, layers: Sequence[Direction]) -> Tensor:
    if given is None:
        return x.new_zeros(len(layers), x.shape[1], layers[0].recurrence.shape[-1])
    return (given.transpose(0, 1) if layers[0].call.get("layout", 0) else given).to(x.device)


def _ways(call: Call, steps: int) -> list[range]:
    """The order of the steps in each direction."""
    forward, backward = range(steps), range(steps - 1, -1, -1)
    return {"reverse": [backward], "bidirectional": [forward, backward]}.get(call.get("direction"), [forward])


RECURRENT: Mapping[str, Operator] = {
    "GRU": recurrent(Cell(gru_step, 3, (5,), ("Sigmoid", "Tanh"))),
    "LSTM": recurrent(Cell(lstm_step, 4, (5, 6), ("Sigmoid", "Tanh", "Tanh"))),
    "RNN": recurrent(Cell(rnn_step, 1, (5,), ("Tanh",))),
}
