"""Two graphs from ONNX text, and what is different between them in a few lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from onnxq.graph import Graph
from onnxq.graphdiff.compare import compare
from onnxq.graphdiff.findings import Edit, GraphDiff
from tests.onnx_text import read


def differ(
    before: str | Graph, after: str | Graph, weights: Mapping[str, Any] | None = None, opset: int = 17
) -> GraphDiff:
    """Compare two graphs; both may use the same weights, those that they read stay."""
    graphs = [read(one, weights, opset) if isinstance(one, str) else one for one in (before, after)]
    found = compare(graphs[0], graphs[1], ("before.onnx", "after.onnx"))
    check_accounts(found)
    return found


def check_accounts(found: GraphDiff) -> None:
    """Every node of both graphs is kept or in one edit, and the counts say so."""
    for side, model in enumerate((found.before, found.after)):
        kept = [pair[side] for pair in found.kept]
        edited = [name for edit in found.edits for name in (edit.after if side else edit.before)]
        assert Counter(kept + edited) == Counter(node.name for node in model.nodes)
    assert found.counts["kept"] == len(found.kept)
    for kind in ("inserted", "removed", "replaced", "changed"):
        assert found.counts[kind] == sum(edit.kind == kind for edit in found.edits)
    for edit in found.edits:
        assert (bool(edit.before), bool(edit.after)) == (edit.kind != "inserted", edit.kind != "removed")
        assert bool(edit.matched_by) == (edit.kind not in ("inserted", "removed"))
        if edit.kind == "changed":
            assert edit.details


def lines(found: GraphDiff) -> list[str]:
    """One for each edit: `replaced Conv + Relu -> QLinearConv: requantized x w y, weights w`."""
    ops = [{node.name: node.op for node in model.nodes} for model in (found.before, found.after)]
    return [_line(edit, ops) for edit in found.edits]


def _line(edit: Edit, ops: list[dict[str, str]]) -> str:
    before, after = (
        " + ".join(known[name] for name in names) for known, names in zip(ops, (edit.before, edit.after), strict=True)
    )
    about: dict[str, list[str]] = {}
    for detail in edit.details:
        about.setdefault(detail.aspect, []).append(detail.name)
    said = ", ".join(" ".join([aspect, *names]) for aspect, names in about.items())
    what = before if edit.kind == "changed" else " -> ".join(filter(None, (before, after)))
    return f"{edit.kind} {what}{f': {said}' if said else ''}"
