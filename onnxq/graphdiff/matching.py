"""Which node of one graph is which of another: by data flow, by weights, by names, and by what is beside it.

The surest evidence comes first, and what it settles is not asked about again.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Callable, Container, Hashable, Iterator
from dataclasses import dataclass, field

from onnxq.diagnosis.matching import bare
from onnxq.graph import Node
from onnxq.graphdiff.families import SLIGHT, family
from onnxq.graphdiff.indexed import Indexed
from onnxq.graphdiff.likeness import Weights, alike

COUNTED = re.compile(r"^/?(node|n|op)?[_/.:]*(?P<op>[a-z]*?)(_?\d+)*$", re.IGNORECASE)
"""Names that count: another export gives them to other nodes."""

FAR = 4
"""Nodes that a walk from one pair to the next looks through."""

Key = Callable[[Indexed, int], Hashable]


@dataclass(eq=False)
class Matching:
    """Pairs of nodes, as they are found.

    Attributes:
        first: one side.
        second: the other.
        pairs: place in the second graph by place in the first.
        back: the other way round.
        by: how each pair was found, by its place in the first graph.
    """

    first: Indexed
    second: Indexed
    pairs: dict[int, int] = field(default_factory=dict)
    back: dict[int, int] = field(default_factory=dict)
    by: dict[int, str] = field(default_factory=dict)

    @property
    def free(self) -> tuple[list[int], list[int]]:
        """Nodes without a partner."""
        return (
            [place for place in range(len(self.first.nodes)) if place not in self.pairs],
            [place for place in range(len(self.second.nodes)) if place not in self.back],
        )

    def join(self, one: int, other: int, by: str) -> bool:
        """Take two nodes for the same, unless one of them has a partner."""
        if one in self.pairs or other in self.back:
            return False
        self.pairs[one], self.back[other], self.by[one] = other, one, by
        return True


def match(first: Indexed, second: Indexed) -> tuple[Matching, tuple[Weights, Weights]]:
    """Find the partner of every node that has one."""
    found, weights = Matching(first, second), (Weights(first), Weights(second))
    _equal(found, lambda side, place: side.forward[place], "data flow from the inputs")
    _equal(found, lambda side, place: side.backward[place], "data flow to the outputs")
    _equal(found, _held, "equal weights")
    for one, other in alike(*weights, found.free):
        found.join(one, other, "weights that are alike")
    _named(found, counted=False)
    _spread(found, weights, 1)
    _spread(found, weights, FAR)
    _named(found, counted=True)
    _spread(found, weights, FAR)
    return found, weights


def _held(side: Indexed, place: int) -> Hashable:
    """Family and weights of a node with a weight of some size."""
    names = [name for _, name in side.operands(place) if name in side.values]
    large = sorted(side.values[name] for name in names if side.count(name) >= 8)
    return (family(side.nodes[place].op), *large) if large and side.moving(place) else None


def _equal(found: Matching, key: Key, by: str) -> None:
    """Join nodes whose keys are equal: of several, those that go on alike, then those of one name, then in order."""
    groups: dict[Hashable, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for side, (indexed, places) in enumerate(zip((found.first, found.second), found.free, strict=True)):
        for place in places:
            if (value := key(indexed, place)) is not None:
                groups[value][side].append(place)
    certain = by != "equal weights"
    for ones, others in groups.values():
        if len(ones) == 1 and len(others) == 1:
            found.join(ones[0], others[0], by)
        elif ones and others:
            _sorted_out(found, ones, others, by, in_order=certain)


def _sorted_out(found: Matching, ones: list[int], others: list[int], by: str, *, in_order: bool) -> None:
    finer: tuple[Key, ...] = (
        lambda side, place: (side.forward[place], side.backward[place]),
        lambda side, place: side.nodes[place].name,
        lambda side, place: next((t.name for t in side.nodes[place].outputs), ""),
    )
    for key in finer:
        known: dict[Hashable, list[int]] = defaultdict(list)
        for other in others:
            if other not in found.back:
                known[key(found.second, other)].append(other)
        for one in ones:
            waiting = known.get(key(found.first, one)) if one not in found.pairs else None
            if waiting:
                found.join(one, waiting.pop(0), by)
    if in_order:
        left = [one for one in ones if one not in found.pairs]
        for one, other in zip(left, [other for other in others if other not in found.back], strict=False):
            found.join(one, other, by)


# Names


def _named(found: Matching, *, counted: bool) -> None:
    """Join nodes of one family that share a name, as it is or inside of what a tool made of it.

    Args:
        found: the pairs so far.
        counted: whether names that merely count are believed.
    """
    known: dict[str, list[int]] = defaultdict(list)
    free, others = found.free
    for one in free:
        for name in _names(found.first.nodes[one]):
            if counted or not _counts(name, found.first.nodes[one]):
                known[name].append(one)
    for other in others:
        node = found.second.nodes[other]
        for name in _names(node):
            inner = name if name in known else None if counted else bare(name, known)
            match = [o for o in known.get(inner or "", ()) if _same_work(found, o, other) and o not in found.pairs]
            if len(match) == 1 and found.join(match[0], other, "names"):
                break


def _names(node: Node) -> list[str]:
    return list(dict.fromkeys([node.name, *(t.name for t in node.outputs[:1] if t.name)]))


def _counts(name: str, node: Node) -> bool:
    """Whether a name says no more than the operator and a number."""
    seen = COUNTED.match(name)
    return seen is not None and seen["op"].lower() in ("", "x", "t", "tensor", "output", "val", node.op.lower())


def _same_work(found: Matching, one: int, other: int) -> bool:
    return family(found.first.nodes[one].op) == family(found.second.nodes[other].op)


# What is beside


def _spread(found: Matching, weights: tuple[Weights, Weights], far: int) -> None:
    """Join the neighbours of pairs, and theirs, where it is clear which is which."""
    waiting = deque(sorted(found.pairs.items()))
    while waiting:
        one, other = waiting.popleft()
        for near, opposite in ((_after, _after), (_before, _before)):
            left = list(near(found.first, one, found.pairs, far))
            right = list(opposite(found.second, other, found.back, far))
            if left and right:
                waiting.extend(_clear(found, weights, left, right))


Step = tuple[int, int]
"""A node beside another one, and the input of it (or of the other) that joins them."""


def _after(side: Indexed, place: int, taken: Container[int], far: int) -> Iterator[Step]:
    """Nodes without a partner that read what a node makes, themselves or through some that are slight."""
    edge, seen = [place], {place}
    for _ in range(far):
        near = [step for at in edge for t in side.nodes[at].outputs for step in side.readers.get(t.name, ())]
        edge = []
        for at, slot in near:
            if at not in seen and at not in taken:
                seen.add(at)
                yield at, slot
                edge += [at] if side.nodes[at].op in SLIGHT else []


def _before(side: Indexed, place: int, taken: Container[int], far: int) -> Iterator[Step]:
    """Nodes without a partner that make what a node reads, themselves or through some that are slight."""
    edge, seen = [place], {place}
    for _ in range(far):
        near = [
            (side.makers[n], order) for at in edge for order, (_, n) in enumerate(side.moving(at)) if n in side.makers
        ]
        edge = []
        for at, order in near:
            if at not in seen and at not in taken:
                seen.add(at)
                yield at, order
                edge += [at] if side.nodes[at].op in SLIGHT else []


def _clear(
    found: Matching, weights: tuple[Weights, Weights], left: list[Step], right: list[Step]
) -> Iterator[tuple[int, int]]:
    """Pairs among the neighbours of a pair that are the only ones of their kind on both sides, ever less strictly."""
    keys: tuple[Callable[[Indexed, Step], Hashable], ...] = (
        lambda side, step: (side.local[step[0]], step[1]),
        lambda side, step: side.local[step[0]],
        lambda side, step: (side.kinds[step[0]], step[1]),
        lambda side, step: (family(side.nodes[step[0]].op), step[1]),
        lambda side, step: family(side.nodes[step[0]].op),
    )
    for key in keys:
        ones, others = _only(found.first, left, key, found.pairs), _only(found.second, right, key, found.back)
        for value, one in ones.items():
            other = others.get(value)
            if other is not None and _fit(found, weights, one, other) and found.join(one, other, "data flow"):
                yield one, other


def _only(
    side: Indexed, steps: list[Step], key: Callable[[Indexed, Step], Hashable], taken: Container[int]
) -> dict[Hashable, int]:
    found: dict[Hashable, int | None] = {}
    for step in steps:
        if step[0] not in taken:
            value = key(side, step)
            found[value] = step[0] if value not in found else None
    return {value: place for value, place in found.items() if place is not None}


def _fit(found: Matching, weights: tuple[Weights, Weights], one: int, other: int) -> bool:
    """Whether two neighbours may be the same: weights of one shape, or else the very same attributes."""
    shapes = weights[0].shape(one), weights[1].shape(other)
    return None in shapes or shapes[0] == shapes[1] or found.first.kinds[one] == found.second.kinds[other]
