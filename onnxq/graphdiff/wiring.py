"""Whether two nodes that stand for each other read the same; what stands for itself between them is looked through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest

from onnxq.graphdiff.families import COMMUTATIVE
from onnxq.graphdiff.findings import Detail
from onnxq.graphdiff.fixed import FixedValues
from onnxq.graphdiff.grouping import Group, Grouping
from onnxq.graphdiff.indexed import Indexed

Origin = tuple[int, int] | str
"""A group and which of its outputs (-1: it has other operators on the other side), or an end of the model."""


@dataclass(eq=False)
class Wiring:
    """Knows where every tensor comes from.

    Attributes:
        grouping: every node of both graphs.
        fixed: what does not depend on the inputs of the model.
    """

    grouping: Grouping
    fixed: FixedValues
    _known: tuple[dict[str, frozenset[Origin]], dict[str, frozenset[Origin]]] = field(default_factory=lambda: ({}, {}))

    @property
    def sides(self) -> tuple[Indexed, Indexed]:
        """Both graphs."""
        return self.grouping.sides

    def details(self, group: Group, same: bool) -> Iterator[Detail]:
        """Where the main nodes of a group read something else: place by place if their operators are the same."""
        one, other = group.first[0], group.second[0]
        node, twin = self.sides[0].nodes[one], self.sides[1].nodes[other]
        if same and node.op not in COMMUTATIVE and len(node.inputs) == len(twin.inputs):
            yield from self._by_place(one, other)
            return
        before, after = self._all(0, group.first), self._all(1, group.second)
        if before != after:
            yield _rewired("inputs", self.names(0, before), self.names(1, after))

    def _by_place(self, one: int, other: int) -> Iterator[Detail]:
        first, second = self.sides
        number, roles = self.grouping.of[0][one], first.roles(one)
        for role, left, right in zip(roles, first.nodes[one].inputs, second.nodes[other].inputs, strict=True):
            if self._outside(0, left.name, number) != self._outside(1, right.name, number):
                yield _rewired(role, left.name, right.name)
        for name, twin in zip_longest(first.captured(one), second.captured(other), fillvalue=""):
            fixed = name in first.fixed and twin in second.fixed
            same = self.fixed.same(name, twin) if fixed else True
            if not same or self._outside(0, name, number) != self._outside(1, twin, number):
                yield _rewired("bodies", name, twin)

    def _outside(self, side: int, name: str, number: int) -> frozenset[Origin]:
        """Where a tensor comes from; for the own group stands what that reads."""
        origins = self.origins(side, name)
        if not any(isinstance(origin, tuple) and origin[0] == number for origin in origins):
            return origins
        group = self.grouping.groups[number]
        inner = self._all(side, (group.second if side else group.first))
        return frozenset(o for o in origins | inner if not (isinstance(o, tuple) and o[0] == number))

    def _all(self, side: int, places: list[int]) -> frozenset[Origin]:
        """Where everything comes from that some nodes read, themselves left out."""
        number, indexed = self.grouping.of[side][places[0]], self.sides[side]
        found = {
            origin for place in places for _, name in indexed.operands(place) for origin in self.origins(side, name)
        }
        return frozenset(o for o in found if not (isinstance(o, tuple) and o[0] == number))

    def origins(self, side: int, name: str) -> frozenset[Origin]:
        """Where a tensor comes from: the next groups before it that both graphs have, and ends of the model."""
        known, indexed, of = self._known[side], self.sides[side], self.grouping.of[side]
        waiting = [name]
        while waiting:
            at = waiting[-1]
            maker = indexed.makers.get(at)
            if at in known or not at or at in indexed.fixed:
                known.setdefault(at, frozenset())
            elif maker is None:
                known[at] = frozenset({indexed.ends.get(at, at)})
            elif self.grouping.groups[of[maker]].paired and self.grouping.makes(side, maker):
                known[at] = frozenset({(of[maker], self._output(side, maker, at))})
            else:
                read = [needed for _, needed in indexed.operands(maker)]
                missing = [needed for needed in read if needed not in known]
                if missing:
                    waiting += missing
                    continue
                known[at] = frozenset().union(*(known[needed] for needed in read))
            waiting.pop()
        return known[name]

    def _output(self, side: int, maker: int, name: str) -> int:
        group = self.grouping.groups[self.grouping.of[side][maker]]
        if len(group.first) != 1 or len(group.second) != 1:
            return -1
        return [tensor.name for tensor in self.sides[side].nodes[maker].outputs].index(name)

    def names(self, side: int, origins: frozenset[Origin]) -> str:
        """Origins as a reader knows them."""
        found = []
        for origin in origins:
            if isinstance(origin, str):
                found.append(origin.removeprefix("end "))
            else:
                group = self.grouping.groups[origin[0]]
                found.append(self.sides[side].nodes[(group.second if side else group.first)[0]].name)
        return ", ".join(sorted(found)) or "nothing"


def _rewired(place: str, before: str, after: str) -> Detail:
    return Detail(aspect="rewired", name=place, before=before or "nothing", after=after or "nothing")
