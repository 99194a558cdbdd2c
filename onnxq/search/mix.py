"""The form of every layer and of every operator between them, chosen together by measured noise and measured time.

A tensor between two operators costs time where one of them runs on integers and the other does not; so the cheapest
form of a layer depends on its neighbours, and all are chosen at once (`choice.py`). Noise adds up while it is small.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnxq.graph import Node
from onnxq.layers import Layer, layer_of
from onnxq.plan import NodePlan, Treatment
from onnxq.search.choice import Choice, Edge, Group, Option, knee
from onnxq.search.cost import Boundary, Costs
from onnxq.search.forms import DYNAMIC, FLOAT, STATIC, Forms

BUDGETS = (0.1, 0.056, 0.032, 0.018, 0.01, 0.0056, 0.0032, 0.0018, 0.001, 0.00056)
"""Noise over signal that plans may leave, from bold to cautious: 10 to 32.5 dB, in steps of 2.5."""

TOLERANCE = 0.02
"""Share of the time that is given away for accuracy."""


@dataclass(frozen=True)
class Mixture:
    """A way to run a model.

    Attributes:
        nodes: decisions about all that is not left static.
        noise: predicted noise over signal at the outputs.
        microseconds: predicted time of what was chosen about.
    """

    nodes: Mapping[str, NodePlan]
    noise: float
    microseconds: float


@dataclass(frozen=True)
class Table:
    """What is known of every form.

    Attributes:
        forms: the layers and what they can become.
        noise: by `layer|form`.
        costs: microseconds of layers, of operators between them, and of tensors between unlike neighbours.
    """

    forms: Forms
    noise: Mapping[str, float]
    costs: Costs

    @cached_property
    def nodes(self) -> dict[str, Node]:
        """Every node of the graph by name."""
        return {node.name: node for node in self.forms.graph.nodes}

    @cached_property
    def followers(self) -> list[Node]:
        """Operators without a weight that the static plan runs on integers."""
        plan, layers = self.forms.plan, self.forms.layers
        nodes = [n for n in self.forms.graph.nodes if plan.treatment(n.name) is Treatment.STATIC]
        return [n for n in nodes if n.name not in layers and n.op not in ("Conv", "MatMul", "Gemm")]

    @cached_property
    def members(self) -> dict[str, list[str]]:
        """Groups that take one form: layers that read the same tensor; each operator between layers for itself."""
        found: dict[str, list[str]] = {}
        for name, layer in self.forms.layers.items():
            found.setdefault(layer.data.name, []).append(name)
        # a node may be called like a tensor, so its group is not
        return found | {f"{node.op} '{node.name}'": [node.name] for node in self.followers}

    def groups(self) -> list[Group]:
        """Every group with noise and time of its forms; what its neighbours decide is left to `edges`."""
        return [Group(name, tuple(self._options(name, members))) for name, members in self.members.items()]

    def _options(self, group: str, members: Sequence[str]) -> Iterator[Option]:
        layers = self.forms.layers
        for form in (STATIC, DYNAMIC, FLOAT):
            possible = [form in (self.forms.of(m) if m in layers else (STATIC, FLOAT)) for m in members]
            known = all(form in self.costs.layers.get(m, {}) for m in members)
            if all(possible) and known:
                noise = sum(self.noise.get(f"{member}|{form}", 0.0) for member in members)
                time = sum(self.costs.layers[member][form] for member in members)
                yield Option(form, noise, time + self._own_boundary(group, members, form), 0)

    def _own_boundary(self, group: str, members: Sequence[str], form: str) -> float:
        """Quantizing what operators make that always return floats."""
        total = self._boundary(group).dynamic if form == DYNAMIC else 0.0
        if form != STATIC:
            return total
        read = {t.name for m in members for t in self.nodes[m].inputs if t.name in self.forms.plan.tensors}
        made = self._makers
        return total + sum(self._boundary(t).quantize / self._readers(t) for t in sorted(read - made.keys()))

    def _boundary(self, tensor: str) -> Boundary:
        return self.costs.boundary.get(tensor, Boundary())

    def _readers(self, tensor: str) -> int:
        """How many groups read a tensor on integers, if they may."""
        return max(1, len({group for group, names in self._reading.items() if tensor in names}))

    @cached_property
    def _reading(self) -> dict[str, set[str]]:
        """Quantized tensors that each group reads."""
        tensors = self.forms.plan.tensors
        return {
            group: {t.name for m in members for t in self.nodes[m].inputs if t.name in tensors}
            for group, members in self.members.items()
        }

    @cached_property
    def _makers(self) -> dict[str, str]:
        """For tensors that an operator makes as integers, if it may, its group; linear layers return floats."""
        made: dict[str, str] = {}
        of = {member: group for group, members in self.members.items() for member in members}
        for node in self.forms.graph.nodes:
            if node.name not in of:
                continue
            layer = layer_of(self.forms.graph, node, self.forms.target.absorbed)
            if isinstance(layer, Layer) and layer.linear:
                continue
            outputs = [layer.output] if isinstance(layer, Layer) else node.outputs
            made.update({t.name: of[node.name] for t in outputs})
        return made

    def edges(self) -> list[Edge]:
        """What unlike neighbours cost."""
        makers, found = self._makers, []
        forms = {group.name: {option.name for option in group.options} for group in self.groups()}
        for group, names in self._reading.items():
            for name in sorted(names & makers.keys()):
                boundary, readers = self._boundary(name), self._readers(name)
                pairs = {(STATIC, other): boundary.dequantize / readers for other in (DYNAMIC, FLOAT)}
                pairs[FLOAT, STATIC] = boundary.quantize / readers
                known = {(a, b): t for (a, b), t in pairs.items() if a in forms[makers[name]] and b in forms[group]}
                if makers[name] != group and known:
                    found.append(Edge(makers[name], group, known))
        return found


def mixtures(table: Table) -> list[Mixture]:
    """Different ways to run a model, each the best trade within a budget of noise, from bold to cautious."""
    groups, edges = table.groups(), table.edges()
    found: list[Mixture] = []
    for budget in BUDGETS:
        choice = knee(groups, edges, max_error=budget, tolerance=TOLERANCE)
        if choice is not None:
            mixture = Mixture(_decisions(table, choice), choice.error, choice.microseconds)
            if all(mixture.nodes != other.nodes for other in found):
                found.append(mixture)
    return found


def _decisions(table: Table, choice: Choice) -> dict[str, NodePlan]:
    nodes = table.nodes
    found: dict[str, NodePlan] = {}
    for group, members in table.members.items():
        form = choice.options[group]
        for name in members if form != STATIC else ():
            found[name] = NodePlan(
                op=nodes[name].op,
                treatment=Treatment(form),
                reason=_reason(table, name, form),
                per_channel=table.forms.plan.nodes[name].per_channel,
                measured=_measured(table, name),
            )
    return found


def _measured(table: Table, name: str) -> dict[str, float]:
    """Everything that is known about the forms of a node, three digits of it."""
    noise = {f"{f} noise": table.noise[f"{name}|{f}"] for f in (STATIC, DYNAMIC) if f"{name}|{f}" in table.noise}
    times = {f"{form} us": time for form, time in table.costs.layers.get(name, {}).items()}
    return {key: float(f"{value:.3g}") for key, value in (noise | times).items()}


def _reason(table: Table, name: str, form: str) -> str:
    times = table.costs.layers[name]
    if name not in table.forms.layers:
        return "Its neighbours are float: Q and DQ around it would cost more than it saves."
    if STATIC not in times:
        return "With fixed scales it found no integer kernel."
    noise = table.noise.get(f"{name}|{STATIC}", 0.0)
    kept = f"{-10 * np.log10(noise):.0f} dB" if noise > 0 else "all"
    what = "In float" if form == FLOAT else "With a scale for each run"
    compared = f"{times[form]:.0f} us against {times[STATIC]:.0f} us"
    if times[form] <= times[STATIC]:
        return f"{what} it is faster here: {compared} with fixed scales."
    return f"{what} it adds less noise: with fixed scales the outputs keep {kept} over its noise ({compared})."
