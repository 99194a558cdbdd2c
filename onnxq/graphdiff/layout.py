"""Where nodes and blocks are drawn: in layers, by igraph's version of Sugiyama's method.

Each block is laid out for itself, so that a page can unfold any of them: it only moves apart what is around it.
igraph 1.0.0 ends the process with a segmentation fault on one in some thousand graphs, so it is not used;
0.10.8, 0.11.6 and 0.11.9 went through 36,000 random ones each.
Source: Sugiyama, Tagawa, Toda: Methods for visual understanding of hierarchical system structures, 1981.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import igraph

from onnxq.graphdiff.blocks import Block, fold, homes, units_of
from onnxq.graphdiff.findings import GraphDiff, ModelView
from onnxq.plan import Record

VERSION = str(igraph.__version__)

ROUNDS = 24
"""How often igraph goes through the layers to take out crossings."""


class BlockView(Record):
    """A block as a page shows it.

    Attributes:
        label: its name.
        parent: the number of the block around it; -1 for the outermost one.
    """

    label: str
    parent: int


class SideLayout(Record):
    """Where everything of one graph is drawn.

    Attributes:
        homes: the number of the block around each node, in the order of the graph.
        nodes: place across and layer of each node within its block.
        blocks: likewise of each block within the one around it; None where it holds nothing of this graph.
    """

    homes: list[int]
    nodes: list[tuple[float, int]]
    blocks: list[tuple[float, int] | None]


class Layout(Record):
    """Where both graphs are drawn.

    Attributes:
        blocks: those of both.
        sides: first and second graph.
    """

    blocks: list[BlockView]
    sides: list[SideLayout]


def is_safe(version: str) -> bool:
    """Whether this version of igraph can be trusted with any graph."""
    return version.startswith("0.")


def lay_out(found: GraphDiff) -> Layout:
    """Fold both graphs, and lay out every block of them."""
    units = units_of(found)
    root = fold(units)
    blocks = list(root.walk())
    parents = {id(root): -1}
    for number, block in enumerate(blocks):
        parents.update((id(child), number) for child in block.children if isinstance(child, Block))
    views = [BlockView(label=block.label, parent=parents[id(block)]) for block in blocks]
    models = (found.before, found.after)
    sides = [_side(model, homes(root, units, side), views) for side, model in enumerate(models)]
    return Layout(blocks=views, sides=sides)


def _side(model: ModelView, homes: Mapping[str, int], blocks: Sequence[BlockView]) -> SideLayout:
    where = [homes[node.name] for node in model.nodes]
    held = {number for home in where for number in _up(home, blocks)}
    children: dict[int, list[int]] = {number: [] for number in held}  # nodes from 0 up, blocks from -1 down
    for place, home in enumerate(where):
        children[home].append(place)
    for number in sorted(held - {0}):
        children[blocks[number].parent].append(-number)
    links: dict[int, dict[tuple[int, int], None]] = {number: {} for number in held}
    edges = list(_edges(model))
    moving = _moving(model, edges)
    loose = set(range(len(where))) - moving
    loose |= {-number for number in held - {number for place in moving for number in _up(where[place], blocks)}}
    for one, other in edges:
        links_at, ends = _meeting(one, other, where, blocks)
        links[links_at][ends] = None
    places: dict[int, tuple[float, int]] = {}
    for number, inner in children.items():
        places.update(_layers(inner, list(links[number]), loose))
    return SideLayout(
        homes=where,
        nodes=[places[place] for place in range(len(where))],
        blocks=[places.get(-number) if number else None for number in range(len(blocks))],
    )


def _edges(model: ModelView) -> Iterator[tuple[int, int]]:
    makers = {name: place for place, node in enumerate(model.nodes) for name in node.outputs if name}
    for place, node in enumerate(model.nodes):
        for name in dict.fromkeys([*node.inputs, *node.captured]):
            if name in makers:
                yield makers[name], place


def _up(number: int, blocks: Sequence[BlockView]) -> Iterator[int]:
    """A block and those around it."""
    while number >= 0:
        yield number
        number = blocks[number].parent


def _meeting(one: int, other: int, where: Sequence[int], blocks: Sequence[BlockView]) -> tuple[int, tuple[int, int]]:
    """The innermost block that holds two nodes, and which of its children hold them."""
    paths = [[node, *(-number for number in _up(where[node], blocks))] for node in (one, other)]
    depth = -1
    while len(paths[0]) > -depth and len(paths[1]) > -depth and paths[0][depth - 1] == paths[1][depth - 1]:
        depth -= 1
    return -paths[0][depth], (paths[0][depth - 1], paths[1][depth - 1])


def _moving(model: ModelView, edges: Sequence[tuple[int, int]]) -> set[int]:
    """Nodes that depend on an input of the model."""
    inputs = {spec.rpartition(": ")[0] for spec in model.inputs}
    found = {place for place, node in enumerate(model.nodes) if inputs & {*node.inputs, *node.captured}}
    for one, other in sorted(edges, key=lambda edge: edge[1]):
        found |= {other} if one in found else set()
    return found


def _layers(
    children: Sequence[int], links: Sequence[tuple[int, int]], loose: set[int]
) -> Iterator[tuple[int, tuple[float, int]]]:
    """Place across and layer of each child of a block."""
    numbers = {child: number for number, child in enumerate(children)}
    graph = igraph.Graph(len(children), [(numbers[a], numbers[b]) for a, b in links], directed=True)
    graph.delete_edges(graph.feedback_arc_set(None, "eades"))  # blocks may need each other
    layers = _depths(graph, [child in loose for child in children])
    drawn = graph.layout_sugiyama(layers=layers, maxiter=ROUNDS)
    for child, (across, _), layer in zip(children, drawn.coords, layers, strict=False):
        yield child, (round(float(across), 2), layer)


def _depths(graph: igraph.Graph, loose: Sequence[bool]) -> list[int]:
    """A layer for each: one below the lowest that it needs; constants right above who reads them."""
    order, found = graph.topological_sorting(), [0] * graph.vcount()
    for vertex in order:
        found[vertex] = max((found[before] + 1 for before in graph.predecessors(vertex)), default=0)
    for vertex in reversed(order):
        after = [found[reader] for reader in graph.successors(vertex)]
        if after and (loose[vertex] or not graph.indegree(vertex)):
            found[vertex] = min(after) - 1
    lowest = min(found, default=0)
    return [layer - lowest for layer in found]
