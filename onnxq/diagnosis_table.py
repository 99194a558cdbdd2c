"""What a person reads of a diagnosis: a row for each of the worst operators, then a sentence for each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from onnxq.quantities import plural
from onnxq.tables import _decibels, _percent, _table, _title, sheet

if TYPE_CHECKING:
    from onnxq.diagnosis.findings import Diagnosis, Finding
    from onnxq.result import Result

TOP = 5
"""Operators that get a sentence below the result of `optimize`."""

MOST_ROWS = 10
"""Operators that a person wants to see; the JSON document holds them all."""


def below(table: RenderableType, result: Result) -> RenderableType:
    """What `optimize` did, and below it where the error of the result comes from, if that was asked for."""
    if result.diagnosis is None:
        return table
    written = result.output if result.status == "optimized" else result.kept
    name = "The best model that was tried" if written is None else Path(written).name
    return Group(table, "", diagnosis(name, result.diagnosis, TOP))


def diagnosis(name: str, found: Diagnosis, top: int) -> RenderableType:
    """What `explain` found about a model."""
    head = _title(f"{name}: {_decibels(found.measured_db)} of signal over noise at '{found.output}'")
    rows: list[tuple[str, RenderableType]] = [
        ("" if place else "Findings", Text(f"{place + 1}. {finding.sentence}", overflow="fold"))
        for place, finding in enumerate(found.findings[:top])
    ]
    if found.all_float is not None:
        left = "" if found.all_float.sqnr_db is None else f", up to {_decibels(found.all_float.sqnr_db)}"
        rows.append(("All of them", f"In float together they should {found.all_float.promise}{left}."))
    adds_up = f"errors alone add up to {found.additivity:.2f} of all together"
    rows += [
        ("Simulated", f"{_decibels(found.simulated_db)}; {adds_up}"),
        ("Quantized", f"{plural(found.layers, 'layer')}, {plural(len(found.findings), 'operator')} in all"),
        ("Data", f"{found.data}; noise on the first {found.samples}"),
    ]
    rows += [("Note", Text(note, style="yellow", overflow="fold")) for note in found.notes]
    return Group(head, "", _rows(found.findings[: max(top, MOST_ROWS)]), "", sheet(rows))


def _rows(findings: list[Finding]) -> RenderableType:
    table = _table("Operator", "node", "alone", "share", "weight", "input", "there alone", "there, all", left=2)
    for finding in findings:
        parts = (finding.weight_noise, finding.activation_noise)
        whole = sum(part or 0.0 for part in parts)
        shares = [_percent(part / whole) if part is not None and whole else "" for part in parts]
        local = [
            "" if finding.local_db is None else _decibels(finding.local_db),
            "" if finding.accumulated_db is None else _decibels(finding.accumulated_db),
        ]
        table.add_row(finding.op, finding.node, _decibels(finding.sqnr_db), _percent(finding.share), *shares, *local)
    return table
