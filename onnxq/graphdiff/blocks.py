"""How a large graph folds: blocks by the scopes in the names of nodes, and by runs of neighbours where there are none.

/encoder/layer.0/attention/MatMul      encoder > layer.0 > attention

Both graphs fold alike: what stands for each other lies in the same block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby, takewhile

from onnxq.graphdiff.findings import GraphDiff

FLAT = 150
"""Units up to which a graph is drawn whole."""

MOST = 40
"""Children of one block; more are parted into runs."""

THROUGH = " … "
"""Between the first and the last of some neighbours."""

LEAST = 4
"""Units from which on a scope is worth a block."""

Scope = tuple[str, ...]
Unit = tuple[str | None, str | None]
"""Two nodes that stand for each other, before and after, or one that has no partner."""


@dataclass(eq=False)
class Block:
    """Some units and other blocks, in the order of the graph.

    Attributes:
        label: what a reader sees.
        children: numbers of units, and blocks.
    """

    label: str
    children: list[int | Block] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Units in it and in the blocks in it."""
        return sum(1 if isinstance(child, int) else child.size for child in self.children)

    def walk(self) -> Iterator[Block]:
        """Itself and all blocks in it, each before those in it."""
        yield self
        for child in self.children:
            if isinstance(child, Block):
                yield from child.walk()


def units_of(found: GraphDiff) -> list[Unit]:
    """What is folded as one, in the order of the first graph; what came in the second stands behind what it follows."""
    first, second = ({node.name: place for place, node in enumerate(m.nodes)} for m in (found.before, found.after))
    units: list[Unit] = list(found.kept)
    for edit in found.edits:
        paired = bool(edit.before and edit.after)
        units += [(edit.before[0], edit.after[0])] if paired else []
        units += [(name, None) for name in edit.before[paired:]]
        units += [(None, name) for name in edit.after[paired:]]
    place = {other: first[one] for one, other in units if one is not None and other is not None}
    behind: dict[str, int] = {}
    last = -1
    for node in found.after.nodes:
        last = place.get(node.name, last)
        behind[node.name] = last

    def order(unit: Unit) -> tuple[int, int]:
        one, other = unit
        return (first[one], -1) if one is not None else (behind[other or ""], second[other or ""])

    return sorted(units, key=order)


def fold(units: Sequence[Unit]) -> Block:
    """The blocks of a graph, in one that holds everything."""
    root = Block("")
    if len(units) <= FLAT:
        root.children = list(range(len(units)))
        return root
    known: dict[Scope, Block] = {(): root}
    for number, scope in enumerate(_scopes(units)):
        _block(known, scope).children.append(number)
    return _parted(_tidied(root), units)


def _scopes(units: Sequence[Unit]) -> list[Scope]:
    """The scope of each unit; one without belongs to what those before and behind it have in common."""
    own: list[Scope] = [tuple(part for part in (one or other or "").split("/")[:-1] if part) for one, other in units]
    before = list(accumulate(own, _latest))
    behind = list(accumulate(reversed(own), _latest))[::-1]
    return [scope or _common(*around) for scope, *around in zip(own, before, behind, strict=True)]


def _latest(last: Scope, scope: Scope) -> Scope:
    return scope or last


def _common(one: Scope, other: Scope) -> Scope:
    return tuple(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _block(scopes: dict[Scope, Block], scope: Scope) -> Block:
    for depth in range(1, len(scope) + 1):
        if scope[:depth] not in scopes:
            scopes[scope[:depth]] = made = Block(scope[depth - 1])
            scopes[scope[: depth - 1]].children.append(made)
    return scopes[scope]


def _tidied(block: Block) -> Block:
    """Without blocks of few units, and without such that hold nothing but another one."""
    children: list[int | Block] = []
    for child in block.children:
        if isinstance(child, int):
            children.append(child)
            continue
        inner = _tidied(child)
        children += inner.children if inner.size < LEAST else [inner]
    if len(children) == 1 and isinstance(only := children[0], Block):
        return Block(f"{block.label}/{only.label}".strip("/"), only.children)
    return Block(block.label, children)


def _parted(block: Block, units: Sequence[Unit]) -> Block:
    """With no more than so many children in any block: those that follow each other share one, loose nodes first."""
    children = [_parted(child, units) if isinstance(child, Block) else child for child in block.children]
    if len(children) > MOST:
        loose = groupby(children, key=lambda child: isinstance(child, Block))
        runs = [(is_block, list(run)) for is_block, run in loose]
        parts = [([child] for child in run) if is_block else _runs(run, MOST) for is_block, run in runs]
        children = [part[0] if len(part) == 1 else _run(part, units) for cut in parts for part in cut]
    while len(children) > MOST:
        children = [_run(part, units) for part in _runs(children, max(LEAST, -(-len(children) // MOST)))]
    return Block(block.label, children)


def _runs(children: Sequence[int | Block], most: int) -> Iterator[Sequence[int | Block]]:
    return (children[start : start + most] for start in range(0, len(children), most))


def _run(children: Sequence[int | Block], units: Sequence[Unit]) -> Block:
    ends = [child.label if isinstance(child, Block) else _last(units[child]) for child in (children[0], children[-1])]
    first, last = ends[0].partition(THROUGH)[0], ends[1].rpartition(THROUGH)[2]
    return Block(f"{first}{THROUGH}{last}", list(children))


def _last(unit: Unit) -> str:
    return (unit[0] or unit[1] or "").rpartition("/")[2]


def homes(root: Block, units: Sequence[Unit], side: int) -> Mapping[str, int]:
    """The number of the block in which each node of one graph lies; blocks are counted in the order of `walk`."""
    return {
        name: number
        for number, block in enumerate(root.walk())
        for child in block.children
        if isinstance(child, int) and (name := units[child][side]) is not None
    }
