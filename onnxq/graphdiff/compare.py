"""Two graphs in, what is different between them out.

index ── match ── group ── details ── GraphDiff
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from onnxq.graph import Graph
from onnxq.graphdiff import views
from onnxq.graphdiff.details import RESCALED, Comparison
from onnxq.graphdiff.families import rounds
from onnxq.graphdiff.findings import Detail, Edit, GraphDiff, InterfaceChange, Kind
from onnxq.graphdiff.grouping import Group, Grouping, group
from onnxq.graphdiff.indexed import prepare
from onnxq.graphdiff.interfaces import compare_interfaces
from onnxq.graphdiff.matching import match


def compare(first: Graph, second: Graph, names: tuple[str, str]) -> GraphDiff:
    """Say what is different between two graphs; neither is touched. Types count where both tell them.

    Args:
        first: as it was.
        second: as it is.
        names: of their files.
    """
    sides = prepare(first, second)
    matching, weights = match(*sides)
    grouping = group(matching)
    comparison = Comparison(grouping, weights)
    edits, kept = [], []
    for _, one in sorted(_in_order(grouping), key=lambda item: item[0]):
        edit = make_edit(comparison, one)
        if edit is None:
            kept.append((sides[0].nodes[one.first[0]].name, sides[1].nodes[one.second[0]].name))
        else:
            edits.append(edit)
    return GraphDiff(
        before=views.of_model(sides[0], names[0]),
        after=views.of_model(sides[1], names[1]),
        interface=[*compare_interfaces(first, second), *_moved_outputs(comparison)],
        edits=edits,
        kept=kept,
        counts=_counts(edits, len(kept)),
    )


def make_edit(comparison: Comparison, one: Group) -> Edit | None:
    """What happened to the nodes of a group; None where nothing did."""
    first, second = comparison.sides
    single = len(one.first) == 1 and len(one.second) == 1
    details: list[Detail] = comparison.details(one) if one.paired else []
    same = single and first.nodes[one.first[0]].op == second.nodes[one.second[0]].op
    same = same and (first.nodes[one.first[0]].domain or "") == (second.nodes[one.second[0]].domain or "")
    if same and not details:
        return None
    kind: Kind = "changed" if same else "replaced" if one.paired else "removed" if one.first else "inserted"
    nodes = [first.nodes[place] for place in one.first] + [second.nodes[place] for place in one.second]
    return Edit(
        kind=kind,
        before=[first.nodes[place].name for place in one.first],
        after=[second.nodes[place].name for place in one.second],
        matched_by=one.by,
        details=details,
        precision=any(map(_is_precision, details)) or (kind != "changed" and any(map(rounds, nodes))),
        bytes_before=sum(first.holdings[place] for place in one.first),
        bytes_after=sum(second.holdings[place] for place in one.second),
    )


def _is_precision(detail: Detail) -> bool:
    """Whether numbers are held in another type, or rounded to other ones."""
    if detail.aspect == "weights":
        return detail.before.partition("[")[0] != detail.after.removesuffix(RESCALED).partition("[")[0]
    return detail.aspect in ("retyped", "requantized")


def _in_order(grouping: Grouping) -> Iterator[tuple[tuple[int, int, int], Group]]:
    """Groups with their place: that of the first graph, or behind what comes before in the second."""
    partner: dict[int, int] = {}
    for one in grouping.groups:
        if one.paired:
            partner.update((place, one.first[0]) for place in one.second)
    last, behind = -1, {}
    for place in range(len(grouping.sides[1].nodes)):
        last = partner.get(place, last)
        behind[place] = last
    for one in grouping.groups:
        if one.first:
            yield (one.first[0], 0, 0), one
        else:
            yield (behind[min(one.second)], 1, min(one.second)), one


def _moved_outputs(comparison: Comparison) -> Iterator[InterfaceChange]:
    """Outputs of the model that come from elsewhere than before."""
    first, second = comparison.sides
    known = {tensor.name for tensor in second.graph.outputs}
    for tensor in first.graph.outputs:
        name = tensor.name
        if name not in known or first.sources.get(name) == second.sources.get(name):
            continue
        origins = comparison.wiring.origins(0, name), comparison.wiring.origins(1, name)
        constant = name in first.fixed and name in second.fixed and not comparison.fixed.same(name, name)
        if origins[0] != origins[1] or constant:
            before, after = (comparison.wiring.names(side, found) for side, found in enumerate(origins))
            yield InterfaceChange(what="output", name=name, before=f"made by {before}", after=f"made by {after}")


def _counts(edits: list[Edit], kept: int) -> dict[str, int]:
    kinds = Counter(edit.kind for edit in edits)
    aspects = Counter(aspect for edit in edits for aspect in {detail.aspect for detail in edit.details})
    found = {"kept": kept} | {kind: kinds[kind] for kind in ("inserted", "removed", "replaced", "changed")}
    return found | {name: aspects[name] for name in ("retyped", "requantized", "weights", "attributes", "rewired")}
