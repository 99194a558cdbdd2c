"""Pairs and the nodes around them as edits: what was folded into a pair belongs to it, and the rest stands for itself.

Conv + BatchNormalization + Relu => QLinearConv      the pair takes in what has no partner beside it
Relu => QuantizeLinear + DequantizeLinear            no pair, but the same neighbours
QuantizeLinear + DequantizeLinear                    inserted
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from onnxq.graph import Node
from onnxq.graphdiff.families import CONVERSIONS, FOLDED, is_integer
from onnxq.graphdiff.indexed import Indexed
from onnxq.graphdiff.matching import Matching

FAR = 4
"""How far from a pair a node may be that was folded into it."""

BETWEEN = "what is before and behind them"
"""How nodes are matched that have no pair among them."""

Places = list[int]
Beside = Callable[[Indexed, int], Iterator[int]]


@dataclass(frozen=True)
class Taking:
    """What belongs to a pair whose nodes differ; what depends on constants alone always does.

    Attributes:
        back: how far from it a node may be that does not follow it.
        may: whether this node belongs to the main one.
    """

    back: int
    may: Callable[[Node, Node], bool]


REPLACED = Taking(FAR, lambda main, near: not (near.op in CONVERSIONS and is_integer(main)))
"""For other operators. Conversions beside an integer one stand for themselves: they are the border of the integers."""

STORED = Taking(FAR, lambda _, near: near.op not in CONVERSIONS)
"""For a table whose rows are integers now: what makes floats of them."""

SET = Taking(1, lambda _, near: near.op in FOLDED)
"""For the same operator with other weights or attributes."""


@dataclass
class Group:
    """Nodes of both graphs that stand for each other, the main ones first; one side may be empty."""

    first: Places = field(default_factory=list)
    second: Places = field(default_factory=list)
    by: str = ""

    @property
    def paired(self) -> bool:
        """Whether it has nodes on both sides."""
        return bool(self.first and self.second)


@dataclass(eq=False)
class Grouping:
    """Every node of both graphs, each in one group."""

    matching: Matching
    groups: list[Group] = field(default_factory=list)
    of: tuple[dict[int, int], dict[int, int]] = field(default_factory=lambda: ({}, {}))

    @property
    def sides(self) -> tuple[Indexed, Indexed]:
        """Both graphs."""
        return self.matching.first, self.matching.second

    def add(self, first: Iterable[int], second: Iterable[int], by: str) -> int:
        """A new group; returns its number."""
        self.groups.append(Group([], [], by))
        for side, places in enumerate((first, second)):
            for place in places:
                self.put(side, place, len(self.groups) - 1)
        return len(self.groups) - 1

    def put(self, side: int, place: int, number: int) -> None:
        """Add a node to a group."""
        (self.groups[number].second if side else self.groups[number].first).append(place)
        self.of[side][place] = number

    def makes(self, side: int, place: int) -> bool:
        """Whether what a node makes is made by its group: it is a main one, or stands behind it."""
        return place in self._makers[side]

    @cached_property
    def _makers(self) -> tuple[set[int], set[int]]:
        found: tuple[set[int], set[int]] = set(), set()
        for one in self.groups:
            for side, places in enumerate((one.first, one.second)):
                waiting = places[:1] if one.by != BETWEEN else list(places)
                inside = set(places)
                while waiting:
                    place = waiting.pop()
                    found[side].add(place)
                    inside.discard(place)
                    waiting += {near for near in readers(self.sides[side], place) if near in inside}
        return found

    def free(self, side: int) -> Places:
        """Nodes of a side that are in no group yet."""
        return [place for place in range(len(self.sides[side].nodes)) if place not in self.of[side]]


def group(matching: Matching) -> Grouping:
    """Put every node into a group."""
    found = Grouping(matching)
    for place, partner in sorted(matching.pairs.items()):
        found.add([place], [partner], matching.by[place])
    for side in (0, 1):
        _absorb(found, side, _other_operators(found), REPLACED)
    _join(found)
    for side in (0, 1):
        _absorb(found, side, [number for number in _other_settings(found) if _stored_otherwise(found, number)], STORED)
        _absorb(found, side, _other_settings(found), SET)
    for side in (0, 1):
        for places in _components(found, side):
            found.add(*((places, []) if side == 0 else ([], places)), "")
    for one in found.groups:  # the main node first, the others in the order of their graph
        one.first[1:], one.second[1:] = sorted(one.first[1:]), sorted(one.second[1:])
    return found


def _other_operators(found: Grouping) -> Places:
    first, second = found.sides
    return [
        number
        for number, pair in enumerate(found.groups)
        if first.nodes[pair.first[0]].op != second.nodes[pair.second[0]].op
    ]


def _other_settings(found: Grouping) -> Places:
    first, second = found.sides
    return [
        number
        for number, pair in enumerate(found.groups)
        if pair.by != BETWEEN and first.local[pair.first[0]] != second.local[pair.second[0]]
    ]


def _stored_otherwise(found: Grouping, number: int) -> bool:
    """Whether the main nodes of a group make floats on one side and integers on the other."""
    first, second = found.sides
    pair = found.groups[number]
    made = [*first.nodes[pair.first[0]].outputs[:1], *second.nodes[pair.second[0]].outputs[:1]]
    kinds = {"float" in np.dtype(tensor.dtype).name for tensor in made if tensor.dtype is not None}
    return len(kinds) == 2


def readers(side: Indexed, place: int) -> Iterator[int]:
    """The nodes that read what a node makes."""
    for tensor in side.nodes[place].outputs:
        for reader, _ in side.readers.get(tensor.name, ()):
            yield reader


def followers(side: Indexed, place: int) -> Iterator[int]:
    """Those among them that may belong to it: one that only makes floats of it belongs to who reads them then."""
    return (reader for reader in readers(side, place) if side.nodes[reader].op != "DequantizeLinear")


def neighbours(side: Indexed, place: int) -> Iterator[int]:
    """The nodes that make what a node reads, and those that read what it makes."""
    for _, name in side.operands(place):
        if name in side.makers:
            yield side.makers[name]
    yield from readers(side, place)


def _absorb(found: Grouping, side: int, numbers: Places, taking: Taking) -> None:
    """Give nodes that are in no group to the nearest of some pairs: what follows a pair first, then all others."""
    indexed = found.sides[side]
    for beside, most in ((followers, FAR), (neighbours, taking.back)):
        free = set(found.free(side))
        waiting = deque((number, place, 0) for number in numbers for place in _places(found, side, number))
        while waiting:
            number, place, far = waiting.popleft()
            core = indexed.nodes[_places(found, side, number)[0]]
            for near in beside(indexed, place) if far < most else ():
                if near in free and (not indexed.moving(near) or taking.may(core, indexed.nodes[near])):
                    free.discard(near)
                    found.put(side, near, number)
                    waiting.append((number, near, far + 1))


def _places(found: Grouping, side: int, number: int) -> Places:
    return found.groups[number].second if side else found.groups[number].first


# Nodes without any pair


def _components(found: Grouping, side: int) -> list[Places]:
    """Nodes in no group, those together that hang together."""
    indexed, left, parts = found.sides[side], found.free(side), []
    free = set(left)
    for start in left:
        if start not in free:
            continue
        free.discard(start)
        part, waiting = [start], [start]
        while waiting:
            for near in neighbours(indexed, waiting.pop()):
                if near in free:
                    free.discard(near)
                    part.append(near)
                    waiting.append(near)
        parts.append(sorted(part))
    return parts


Border = tuple[frozenset[str], frozenset[str]]
"""What stands before and behind some nodes: numbers of groups, and ends of the model."""


def _border(found: Grouping, side: int, places: Places) -> Border:
    indexed, inside = found.sides[side], set(places)
    before, behind = set(), set()
    for place in places:
        for _, name in indexed.moving(place):
            maker = indexed.makers.get(name)
            if maker is None:
                before.add(indexed.ends.get(name, name))
            elif maker not in inside:
                before.add(str(found.of[side].get(maker)))
        for tensor in indexed.nodes[place].outputs:
            behind |= {indexed.ends[f"> {tensor.name}"]} if f"> {tensor.name}" in indexed.ends else set()
            readers = {reader for reader, _ in indexed.readers.get(tensor.name, ())} - inside
            behind |= {str(found.of[side].get(reader)) for reader in readers}
    return frozenset(before), frozenset(behind)


def _join(found: Grouping) -> None:
    """Take the nodes of both graphs that stand between the same neighbours for each other."""
    sides = [[(places, _border(found, side, places)) for places in _components(found, side)] for side in (0, 1)]
    known: dict[tuple[str, int], Places] = {}
    for number, (_, border) in enumerate(sides[1]):
        for end, names in enumerate(border):
            for name in names:
                known.setdefault((name, end), []).append(number)
    scored = []
    for number, (_, border) in enumerate(sides[0]):
        near = [other for name in border[0] for other in known.get((name, 0), ())]
        for other in sorted(set(near)):
            shared = [len(border[end] & sides[1][other][1][end]) for end in (0, 1)]
            if all(shared):
                scored.append((-sum(shared), number, other))
    taken: tuple[set[int], set[int]] = set(), set()
    for _, number, other in sorted(scored):
        if number not in taken[0] and other not in taken[1]:
            taken[0].add(number)
            taken[1].add(other)
            found.add(sides[0][number][0], sides[1][other][0], BETWEEN)
