"""The differences between two graphs in the manner of a code diff: what went, what came, and a line around it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from onnxq.graphdiff.findings import Detail, Edit, GraphDiff, InterfaceChange, ModelView, NodeView
from onnxq.quantities import plural, size_of

ALIKE, NODES, OPERATORS = 2, 6, 5
"""How many edits of one sort, nodes of one edit and operators of one line are listed."""

GONE, NEW, OTHER, QUIET, PLACE = "red", "green", "yellow", "dim", "cyan"


@dataclass(frozen=True)
class Side:
    """One graph, to look nodes up."""

    model: ModelView

    @cached_property
    def nodes(self) -> Mapping[str, NodeView]:
        """By name."""
        return {node.name: node for node in self.model.nodes}

    @cached_property
    def makers(self) -> Mapping[str, NodeView]:
        """By what they make."""
        return {name: node for node in self.model.nodes for name in node.outputs}

    @cached_property
    def readers(self) -> Mapping[str, NodeView]:
        """The first one that reads each tensor."""
        return {name: node for node in reversed(self.model.nodes) for name in node.inputs}


def differences(found: GraphDiff, *, everything: bool = False) -> RenderableType:
    """All of it; edits that are alike are shown once or twice and counted, unless everything is wanted."""
    lines: list[RenderableType] = [*_head(found)]
    if found.interface:
        lines += [Text(), Text("@@ interface @@", style=PLACE), *map(_interface, found.interface)]
    sides = Side(found.before), Side(found.after)
    sorts = Counter(sort_of(sides, edit) for edit in found.edits)
    shown: Counter[str] = Counter()
    for edit in found.edits:
        sort = sort_of(sides, edit)
        shown[sort] += 1
        folded = not everything and sorts[sort] > ALIKE + 1
        if not folded or shown[sort] <= ALIKE:
            lines += [Text(), *_chunk(sides, edit, everything)]
        if folded and shown[sort] == ALIKE:
            lines.append(Text(f"   and {sorts[sort] - ALIKE} more like this: {sort}", style="bold", overflow="fold"))
    return Group(*lines)


def _head(found: GraphDiff) -> Iterator[Text]:
    before, after, counts = found.before, found.after, found.counts
    yield Text(f"--- {before.name}", style=GONE, overflow="fold")
    yield Text(f"+++ {after.name}", style=NEW, overflow="fold")
    if found.empty:
        yield Text(
            f"The graphs are the same: {plural(len(before.nodes), 'node')}, {size_of(before.weight_bytes)} of weights."
        )
        return
    sizes = f"{size_of(before.weight_bytes)} -> {size_of(after.weight_bytes)} of weights"
    yield Text(f"{len(before.nodes):,} -> {plural(len(after.nodes), 'node')}, {sizes}", style="bold")
    kinds = [f"{counts[kind]} {kind}" for kind in ("replaced", "inserted", "removed", "changed") if counts[kind]]
    about = [f"{counts[a]} {a}" for a in ("requantized", "retyped", "weights", "attributes", "rewired") if counts[a]]
    detail = f" ({', '.join(about)})" if about else ""
    same = f"{plural(counts['kept'], 'node')} {'is' if counts['kept'] == 1 else 'are'} the same"
    yield Text(f"{same}; {', '.join(kinds) or 'no other node'}{detail}", overflow="fold")


def _interface(change: InterfaceChange) -> Text:
    name = change.name if change.what == "metadata" else f"{change.what} {change.name}"
    if not change.before:
        return Text(f"+ {name}: {change.after}", style=NEW, overflow="fold")
    if not change.after:
        return Text(f"- {name}: {change.before}", style=GONE, overflow="fold")
    return Text(f"~ {name}: {change.before} -> {change.after}", style=OTHER, overflow="fold")


def sort_of(sides: tuple[Side, Side], edit: Edit) -> str:
    """What an edit does, in words that it shares with those that do the same: `Conv + Relu -> QLinearConv`."""
    before, after = (
        " + ".join(_operators([side.nodes[name] for name in names]))
        for side, names in zip(sides, (edit.before, edit.after), strict=True)
    )
    if edit.kind in ("inserted", "removed"):
        return f"{after or before} {edit.kind}"
    aspects = sorted({detail.aspect for detail in edit.details})
    return f"{before}: {', '.join(aspects)}" if edit.kind == "changed" else f"{before} -> {after}"


def _operators(nodes: list[NodeView]) -> list[str]:
    counts = Counter(node.op.rpartition(".")[2] for node in nodes)
    words = [name if count == 1 else f"{count} {name}" for name, count in counts.items()]
    return words[:OPERATORS] + [f"{len(words) - OPERATORS} others"] * (len(words) > OPERATORS)


def _chunk(sides: tuple[Side, Side], edit: Edit, everything: bool) -> Iterator[RenderableType]:
    sizes = (
        f", {size_of(edit.bytes_before)} -> {size_of(edit.bytes_after)}" if edit.bytes_before + edit.bytes_after else ""
    )
    yield Text(f"@@ {edit.kind}{sizes} @@", style=PLACE)
    side, names = (sides[0], edit.before) if edit.before else (sides[1], edit.after)
    nodes = [side.nodes[name] for name in names]
    yield from _context(side.makers, [name for node in nodes for name in node.inputs], names)
    if edit.kind == "changed":
        yield _line("~", nodes[0], OTHER, "" if edit.before == edit.after else f"now {edit.after[0]}")
    else:
        yield from _nodes("-", sides[0], edit.before, GONE, everything)
        yield from _nodes("+", sides[1], edit.after, NEW, everything)
    yield from map(_detail, edit.details)
    yield from _grids(sides, edit)
    yield from _context(side.readers, [name for node in nodes for name in node.outputs], names)


def _context(known: Mapping[str, NodeView], tensors: list[str], inside: list[str]) -> Iterator[Text]:
    """The first node beside some tensors that is not among those that are shown anyway."""
    near = next((known[name] for name in tensors if name in known and known[name].name not in inside), None)
    if near is not None:
        yield _line(" ", near, QUIET)


def _nodes(mark: str, side: Side, names: list[str], style: str, everything: bool) -> Iterator[Text]:
    most = len(names) if everything or len(names) <= NODES + 1 else NODES
    for name in names[:most]:
        yield _line(mark, side.nodes[name], style)
    if len(names) > most:
        rest = _operators([side.nodes[name] for name in names[most:]])
        yield Text(f"{mark} and {len(names) - most} more nodes: {', '.join(rest)}", style=style, overflow="fold")


def _line(mark: str, node: NodeView, style: str, said: str = "") -> Text:
    op = node.op.removeprefix("com.microsoft.")
    return Text(f"{mark} {op:<18} {node.name}{f'  {said}' if said else ''}", style=style, overflow="fold")


def _detail(detail: Detail) -> RenderableType:
    before, after = detail.before, detail.after
    what = {"attributes": "attribute ", "rewired": "reads at ", "requantized": "grid of "}.get(detail.aspect, "")
    said = f"{before or 'none'} -> {after or 'none'}"
    if detail.aspect == "requantized" and not before:
        said = after
    if before == after:
        said = f"{before or 'values'}, other values"
    apart = "" if detail.max_difference is None else f", differs by {detail.max_difference:.3g} at most"
    return _indented(f"{what}{detail.name}: {said}{apart}")


def _grids(sides: tuple[Side, Side], edit: Edit) -> Iterator[RenderableType]:
    """The scales of conversions that came or went."""
    if edit.kind not in ("inserted", "removed"):
        return
    side, names = (sides[0], edit.before) if edit.before else (sides[1], edit.after)
    for name in names[:NODES]:
        for grid in side.nodes[name].grids.values():
            yield _indented(grid)


def _indented(text: str) -> RenderableType:
    return Padding(Text(text, overflow="fold"), (0, 0, 0, 6), expand=False)
