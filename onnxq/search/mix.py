"""The form of every layer and of every operator between them, chosen together by measured noise and measured time.

A tensor between two operators costs time where one of them runs on integers and the other does not; so the cheapest
form of a layer depends on its neighbours, and all are chosen at once (`choice.py`). Noise adds up while it is small.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxq.channels import input_channels
from onnxq.graph import weight
from onnxq.plan import NodePlan, Treatment
from onnxq.search.choice import Choice, Edge, Group, Option, fastest, knee
from onnxq.search.cost import Boundary, Costs
from onnxq.search.forms import BITS, DYNAMIC, FLOAT, STATIC
from onnxq.search.grouping import Grouping, made, read_by
from onnxq.weights import blocked_bytes

BUDGETS = (math.inf, 0.1, 0.056, 0.032, 0.018, 0.01, 0.0056, 0.0032, 0.0018, 0.001, 0.00056, 0.00032, 0.0001)
"""Noise over signal that plans may leave, from bold to cautious: down to 40 dB, mostly in steps of 2.5."""

TOLERANCE = 0.005
"""Share of the time that is given away for accuracy: what no measurement of a model can tell apart."""


@dataclass(frozen=True)
class Mixture:
    """A way to run a model.

    Attributes:
        nodes: decisions about all that is not left static.
        noise: predicted noise over signal at the outputs.
        microseconds: predicted time of what was chosen about.
        bytes: of the weights of layers.
    """

    nodes: Mapping[str, NodePlan]
    noise: float
    microseconds: float
    bytes: int


@dataclass(frozen=True)
class Table:
    """What is known of every form.

    Attributes:
        grouping: what a form is chosen for, and who reads what.
        noise: by the names that `Grouping.noise` gives.
        costs: microseconds of layers, of operators between them, and of tensors between unlike neighbours.
    """

    grouping: Grouping
    noise: Mapping[str, float]
    costs: Costs

    def groups(self) -> list[Group]:
        """Every group with noise, time and bytes of its forms; what its neighbours decide is left to `edges`."""
        members = self.grouping.members
        return [Group(name, tuple(self._options(name, found))) for name, found in members.items()]

    def _options(self, group: str, members: Sequence[str]) -> Iterator[Option]:
        forms = self.grouping.forms
        for form in (STATIC, DYNAMIC, *BITS, FLOAT):
            possible = [form in (forms.of(m) if m in forms.layers else (STATIC, FLOAT)) for m in members]
            known = all(form in self.costs.layers.get(m, {}) for m in members)
            if all(possible) and known:
                noise = sum(self.noise.get(f"{member}|{form}", 0.0) for member in members)
                time = sum(self.costs.layers[member][form] for member in members)
                more = self._own(group, members) if form == STATIC else (0.0, 0.0)
                time += self._boundary(group).dynamic if form == DYNAMIC else 0.0
                time += self._balanced(group) if form in (STATIC, DYNAMIC) else 0.0
                yield Option(form, noise + more[0], time + more[1], sum(self._bytes(m, form) for m in members))

    def _own(self, group: str, members: Sequence[str]) -> tuple[float, float]:
        """Noise and time of tensors at the ends of static operators, as far as no other group has a say in them.

        What operators make that always return floats is quantized; what is made and read as floats is dequantized.
        """
        grouping, noise, time = self.grouping, 0.0, 0.0
        for tensor in sorted(grouping.reading[group].keys() - grouping.makers.keys()):
            noise += self.noise.get(read_by(tensor, group), 0.0)
            time += self._boundary(tensor).quantize / grouping.readers(tensor)
        for member in members:
            for tensor in grouping.makes(member):
                noise += 0.0 if grouping.moves(member) else self.noise.get(made(tensor), 0.0)
                time += self._boundary(tensor).dequantize * len(grouping.others(tensor))
        return noise, time

    def _balanced(self, group: str) -> float:
        """The time of a Mul that is there for the sake of integers alone."""
        mul = self.grouping.muls.get(group)
        return self.costs.layers.get(mul.name, {}).get(FLOAT, 0.0) if mul is not None else 0.0

    def _bytes(self, member: str, form: str) -> int:
        """What the weight of a layer takes in a form."""
        forms = self.grouping.forms
        if member not in forms.layers:
            return 0
        layer, settings = forms.layers[member], forms.plan.recipe.weight
        size, inputs = weight(layer.weight).size, input_channels(layer)
        if form in BITS:
            return blocked_bytes(settings, BITS[form], inputs, size // inputs)
        return 4 * size if form == FLOAT else size

    def _boundary(self, tensor: str) -> Boundary:
        return self.costs.boundary.get(tensor, Boundary())

    def edges(self) -> list[Edge]:
        """What unlike neighbours cost: time, and the noise of a tensor that is rounded for its reader alone."""
        found, grouping = [], self.grouping
        forms = {group.name: [option.name for option in group.options] for group in self.groups()}
        for group, names in grouping.reading.items():
            for name in sorted(names.keys() & grouping.makers.keys()):
                maker, boundary = grouping.makers[name], self._boundary(name)
                if maker == group:
                    continue
                leave, enter = boundary.dequantize * len(names[name]), boundary.quantize / grouping.readers(name)
                rounded = self.noise.get(read_by(name, group), 0.0)
                times = {(STATIC, b): leave for b in forms[group] if b != STATIC and STATIC in forms[maker]}
                ends = [(a, STATIC) for a in forms[maker] if a != STATIC and STATIC in forms[group]]
                times |= dict.fromkeys(ends, enter)
                found.append(Edge(maker, group, times, dict.fromkeys(ends, rounded)))
        return found


def fastest_mixture(table: Table) -> Mixture:
    """The fastest way to run a model, whatever noise it leaves."""
    choice = knee(table.groups(), table.edges(), tolerance=TOLERANCE)
    assert choice is not None, "Without limits there is a choice."
    return _mixture(table, choice)


def best_trade(table: Table, rate: float, max_bytes: float | None = None) -> Mixture | None:
    """The least time where noise costs time as well; None where nothing is small enough.

    Args:
        table: what is known of every form.
        rate: what noise as large as the signal costs, as a multiple of the least time of the model.
        max_bytes: what weights may take; None is no limit.
    """
    price = rate * fastest_mixture(table).microseconds
    groups = [
        replace(g, options=tuple(replace(o, microseconds=o.microseconds + price * o.error) for o in g.options))
        for g in table.groups()
    ]
    edges = [
        replace(e, pairs={ends: time + price * e.errors.get(ends, 0.0) for ends, time in e.pairs.items()})
        for e in table.edges()
    ]
    choice = fastest(groups, edges, max_bytes=max_bytes)
    if choice is None:
        return None
    return _mixture(table, replace(choice, microseconds=choice.microseconds - price * choice.error))


def uniform(table: Table, form: str) -> dict[str, NodePlan]:
    """Every group in this form if it can take it, else in float."""
    options = {group.name: [option.name for option in group.options] for group in table.groups()}
    return decisions(table, {name: form if form in known else FLOAT for name, known in options.items()})


def layers_of(table: Table, nodes: Mapping[str, NodePlan]) -> dict[str, NodePlan]:
    """What is decided about layers alone: all that stands between them stays static.

    A tensor that changes its form on the way may change its layout all the way, which no part of a model shows.
    """
    return {name: plan for name, plan in nodes.items() if name in table.grouping.forms.layers}


def mixtures(table: Table, factor: float = 1.0, max_bytes: float | None = None) -> list[Mixture]:
    """Different ways to run a model, each the fastest within a budget of noise, from bold to cautious.

    Args:
        table: what is known of every form.
        factor: how many times the noise of a model is that of the sums.
        max_bytes: what weights may take; None is no limit.
    """
    groups, edges = table.groups(), table.edges()
    found: list[Mixture] = []
    for budget in BUDGETS if groups else ():
        limit = budget / factor if math.isfinite(budget) else None
        choice = knee(groups, edges, max_error=limit, max_bytes=max_bytes, tolerance=TOLERANCE)
        if choice is not None:
            mixture = _mixture(table, choice)
            if all(mixture.nodes != other.nodes for other in found):
                found.append(mixture)
    return found


def _mixture(table: Table, choice: Choice) -> Mixture:
    return Mixture(decisions(table, choice.options), choice.error, choice.microseconds, choice.bytes)


def decisions(table: Table, options: Mapping[str, str]) -> dict[str, NodePlan]:
    """What is decided about nodes where each group takes a form; those that stay static are left out."""
    grouping = table.grouping
    found: dict[str, NodePlan] = {}
    for group, members in grouping.members.items():
        form = options[group]
        for name in members if form != STATIC else ():
            found[name] = NodePlan(
                op=grouping.nodes[name].op,
                treatment=Treatment.WEIGHT if form in BITS else Treatment(form),
                reason=_reason(table, name, form),
                per_channel=grouping.forms.plan.nodes[name].per_channel,
                bits=BITS.get(form, 8),
                measured=_measured(table, name),
            )
    return found


def _measured(table: Table, name: str) -> dict[str, float]:
    """Everything that is known about the forms of a node, three digits of it."""
    times = {f"{form} us": time for form, time in table.costs.layers.get(name, {}).items()}
    noise = {f"{f} noise": own for f in (STATIC, DYNAMIC, *BITS) if (own := _noise(table, name, f)) is not None}
    return {key: float(f"{value:.3g}") for key, value in (noise | times).items()}


def _noise(table: Table, name: str, form: str) -> float | None:
    """What a layer in this form adds alone: its weight and its input."""
    own, layers = table.noise.get(f"{name}|{form}"), table.grouping.forms.layers
    if own is None or name not in layers or form != STATIC:
        return own
    tensor = layers[name].data.name
    return own + table.noise.get(read_by(tensor, tensor), 0.0)  # a group of layers is called like what they read


def _reason(table: Table, name: str, form: str) -> str:
    times = table.costs.layers[name]
    if name not in table.grouping.forms.layers:
        return "Its neighbours are float: Q and DQ around it would cost more than it saves."
    if STATIC not in times:
        return "With fixed scales it found no integer kernel."
    noise = _noise(table, name, STATIC) or 0.0
    kept = f"{-10 * np.log10(noise):.0f} dB" if noise > 0 else "all"
    what = WORDS[form]
    own, fixed = (f"{times[each]:.0f} µs" for each in (form, STATIC))
    if times[form] <= times[STATIC]:
        return f"{what} it is faster here: {own} against {fixed} with fixed scales."
    return f"{what} it adds less noise: with fixed scales ({fixed} instead of {own}) the outputs keep {kept} over it."


WORDS = {
    FLOAT: "In float",
    DYNAMIC: "With a scale for each run",
    **{form: f"With a weight of {bits} bits" for form, bits in BITS.items()},
}
"""How the reason for a form begins."""
