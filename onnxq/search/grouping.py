"""Which nodes take one form together, who makes and who reads each quantized tensor, and what all that costs in noise.

A tensor is rounded where it is made, if what makes it runs on integers: then everybody reads it rounded. If not, it is
rounded for those of its readers that run on integers. Noise is told apart by that:

    layer|form              the weight of a layer (and its bias, and its input where its scale is found at run time)
    tensor|made             for all that read the tensor
    tensor|read by group    for one of them
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from onnxq.calibration.collect import Progress, silent
from onnxq.calibration.data import Data
from onnxq.channels import BALANCED
from onnxq.graph import Node
from onnxq.plan import Treatment
from onnxq.search.forms import FLOAT, STATIC, Forms
from onnxq.search.switches import Switch, SwitchBoard


@dataclass(frozen=True)
class Grouping:
    """The nodes of a model that a form is chosen for, in groups.

    Attributes:
        forms: the layers and what they can become.
    """

    forms: Forms

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

    @cached_property
    def reading(self) -> dict[str, dict[str, list[str]]]:
        """Quantized tensors that each group reads, and its members that read them."""
        found: dict[str, dict[str, list[str]]] = {group: {} for group in self.members}
        for group, members in self.members.items():
            for member in members:
                for name in dict.fromkeys(tensor.name for tensor in self.nodes[member].inputs):
                    if name in self.forms.plan.tensors:
                        found[group].setdefault(name, []).append(member)
        return found

    @cached_property
    def makers(self) -> dict[str, str]:
        """For tensors that an operator makes as integers, if it may, its group; linear layers return floats."""
        made: dict[str, str] = {}
        for group, members in self.members.items():
            for member in members:
                made.update(dict.fromkeys(self.makes(member), group))
        return made

    def makes(self, member: str) -> list[str]:
        """Quantized tensors that a node makes where it runs on integers."""
        if member in self.forms.layers:
            made = self.forms.made(member)
            return [] if made is None else [made]
        names = [tensor.name for tensor in self.nodes[member].outputs]
        return [name for name in names if name in self.forms.plan.tensors]

    @cached_property
    def muls(self) -> dict[str, Node]:
        """For groups that read balanced channels through a Mul, that Mul."""
        read = {layer.data.name: layer.data for layer in self.forms.layers.values()}
        return {name: data.inputs[0] for name, data in read.items() if name.endswith(BALANCED) and data.inputs}

    def readers(self, tensor: str) -> int:
        """How many groups read a tensor on integers, if they may."""
        return max(1, sum(tensor in names for names in self.reading.values()))

    def others(self, tensor: str) -> list[str]:
        """Who reads a tensor as floats in any case: nodes, and the tensor's own name where it is promised."""
        inside = {member for names in self.reading.values() for member in names.get(tensor, ())}
        held = self.forms.graph.tensors()[tensor]
        nodes = [node.name for node in dict.fromkeys(held.outputs) if node.name not in inside]
        return [*nodes, *([tensor] if self.forms.graph.kept(held) else [])]

    def rounded_for(self, tensor: str) -> tuple[str, ...]:
        """Who reads a tensor as integers where everything is static; empty for everybody."""
        if tensor in self.makers:
            return ()
        return tuple(member for names in self.reading.values() for member in names.get(tensor, ()))

    def static(self) -> Iterator[Switch]:
        """Everything that is rounded where all that can be is static."""
        for name in self.forms.layers:
            yield from self.forms.rounded(name, STATIC)
        for tensor in self.forms.plan.tensors:
            yield self.planned(tensor)

    def planned(self, tensor: str) -> Switch:
        """A tensor on the grid that the plan has for it."""
        return Switch(f"{tensor}|planned", tensor, self.rounded_for(tensor), grid=self.forms.grid(tensor))

    def moves(self, member: str) -> bool:
        """Whether an operator only moves values on a grid that they are on already."""
        if member in self.forms.layers:
            return False
        node, tensors = self.nodes[member], self.forms.plan.tensors
        read, written = ([t.name for t in ends if t.name in tensors] for ends in (node.inputs, node.outputs))
        # an activation behind a sum that saturates in its place reads no grid
        return bool(read) and len({(tensors[name].scale, tensors[name].zero_point) for name in (*read, *written)}) == 1

    def noise(self, data: Data, samples: int, progress: Progress = silent) -> dict[str, float]:
        """Noise over signal at the worst output of everything that is rounded, alone."""
        switches = {switch.name: switch for found in self.rounded.values() for switch in found}
        board = SwitchBoard(self.forms.graph, list(switches.values()), data, samples)
        selections = {name: tuple(switch.name for switch in found) for name, found in self.rounded.items()}
        distinct = dict.fromkeys(selections.values(), 0.0)
        for done, on in enumerate(distinct, 1):
            distinct[on] = board.noise(on)
            progress("search", done, len(distinct))
        return {name: distinct[on] for name, on in selections.items()}

    @cached_property
    def rounded(self) -> dict[str, list[Switch]]:
        """What has to be turned on for each part of the noise."""
        return dict(self._rounded())

    def _rounded(self) -> Iterator[tuple[str, list[Switch]]]:
        for name in self.forms.layers:
            for form in self.forms.of(name):
                if form != FLOAT:
                    yield f"{name}|{form}", list(self.forms.rounded(name, form))
        for tensor in self.forms.plan.tensors:
            by_group = {
                group: Switch(read_by(tensor, group), tensor, tuple(names[tensor]), grid=self.forms.grid(tensor))
                for group, names in self.reading.items()
                if tensor in names
            }
            for switch in by_group.values():
                yield switch.name, [switch]
            if tensor in self.makers:
                rest = tuple(self.others(tensor))
                more = [Switch(f"{tensor}|others", tensor, rest, grid=self.forms.grid(tensor))] if rest else []
                yield made(tensor), [*by_group.values(), *more]


def made(tensor: str) -> str:
    """What the noise of a tensor is called that is made as integers."""
    return f"{tensor}|made"


def read_by(tensor: str, group: str) -> str:
    """What the noise of a tensor is called that one group reads as integers."""
    return f"{tensor}|read by {group}"
