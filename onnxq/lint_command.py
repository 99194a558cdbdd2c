"""`onnxq lint`: what will not run as integers, as a table or as JSON."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from onnxq import flags
from onnxq.reporting import report

if TYPE_CHECKING:
    from rich.console import RenderableType

    from onnxq.linting import Lint


def lint(
    model: flags.Model,
    target: flags.Target = None,
    as_json: flags.AsJson = False,
    quiet: flags.Quiet = False,
) -> int:
    """Say which operators of a model, made by any tool, will not run as integers, and why. Needs no data.

    Exit code 1 where one of them is an operator with a weight.
    """
    from onnxq.linting import lint as find

    found = find(model, target=target or "cpu")
    report(found, lambda: complaints(model, found), as_json, quiet)
    return 0 if found.clean else 1


def complaints(model: Path, found: Lint) -> RenderableType:
    """A row for each reason, those of operators with a weight first."""
    from rich.console import Group

    from onnxq.tables import _table, _title

    verb = "can run" if found.kind == "float" else "run"
    head = _title(
        f"{model.name}: {found.kind}, {found.integer} of {found.layers} layers {verb} in integers on {found.target}"
    )
    if not found.complaints:
        return Group(head, "", _title("Nothing to complain about.", "bold green"))
    counts = Counter((not each.layer, each.op, each.reason) for each in found.complaints)
    first = {(not each.layer, each.op, each.reason): each.node for each in reversed(found.complaints)}
    table = _table("", "operator", "why", "such as", left=4)
    for key, count in sorted(counts.items(), key=lambda entry: (entry[0][0], -entry[1], entry[0])):
        table.add_row(str(count), key[1] + ("" if key[0] else " (layer)"), key[2], first[key])
    return Group(head, "", table)
