"""What a comparison found, as tables, as sentences about who is ahead, and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

Scores = Mapping[str, float]

SQNR = "SQNR dB"
FALLING = frozenset({"perplexity"})
"""Scores of which less is better."""


@dataclass(frozen=True)
class ToolRun:
    """What one run of a tool took: wall and CPU seconds, and the peak of resident memory in MiB.

    `note` says what a tool decided where that is not plain from its model, `error` why there is no model.
    """

    seconds: float
    cpu_seconds: float
    peak_mib: float
    error: str = ""
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One peer on one model; `milliseconds` and `speedup` by batch, `size` as a share of the float model's."""

    peer: str
    run: ToolRun | None = None
    error: str = ""
    scores: Scores = field(default_factory=dict)
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    speedup: Mapping[str, float] = field(default_factory=dict)
    size: float | None = None


@dataclass(frozen=True)
class Table:
    """All peers on one model, the float model first.

    Args:
        key: the model's name on the command line.
        rows: the float model, then one for each peer.
        main: the score that the model's task is judged by; SQNR is the other one that decides who is ahead.
        items: how many items the calibration and the test have.
    """

    key: str
    rows: Sequence[Row]
    main: str
    items: tuple[int, int]


# ---- who is ahead ----------------------------------------------------------------------------------------------------


def verdicts(table: Table) -> list[str]:
    """For each peer of onnxq, which variants of ort are both at least as accurate and faster; no margin for noise."""
    own = [row for row in table.rows if row.peer.startswith("onnxq:")]
    others = [row for row in table.rows if row.peer.startswith("ort:") and row.speedup]
    return [sentence for row in own if others for sentence in _sentences(row, others, table)]


def _sentences(row: Row, others: Sequence[Row], table: Table) -> Iterator[str]:
    if not row.speedup:
        yield f"{row.peer} has no figures to compare."
    for score, batch in product(dict.fromkeys((SQNR, table.main)), row.speedup):
        ahead = ", ".join(_ahead(row, others, score, batch))
        if ahead:
            yield f"By {score} at {batch}, at least as accurate as {row.peer} and faster: {ahead}."
        else:
            yield f"By {score} at {batch}, no variant of ort is at least as accurate as {row.peer} and faster."


def _ahead(row: Row, others: Sequence[Row], score: str, batch: str) -> Iterator[str]:
    for other in others:
        faster = row.milliseconds[batch] / other.milliseconds[batch]
        if faster > 1 and _merit(other, score) >= _merit(row, score):
            figures = f"{_score(score, other.scores[score])} against {_score(score, row.scores[score])}"
            yield f"{other.peer} ({figures}, {faster:.2f}x as fast)"


def _merit(row: Row, score: str) -> float:
    """The score, turned so that more is better; a broken model's comes last."""
    value = -row.scores[score] if score in FALLING else row.scores[score]
    return -math.inf if math.isnan(value) else value


# ---- tables ----------------------------------------------------------------------------------------------------------


def markdown(table: Table) -> str:
    """The rows as a table; below it who is ahead, what a tool decided, and why a peer has no figures."""
    rows = table.rows
    scores, batches = list(rows[0].scores), list(rows[0].milliseconds)
    head = ["peer", *scores, *(f"{batch} ms" for batch in batches), "tool s", "CPU s", "peak MiB", "size"]
    cells = [head, ["---"] + ["--:"] * (len(head) - 1), *(_cells(row, scores, batches) for row in rows)]
    lines = [f"| {' | '.join(line)} |" for line in cells]
    title = "### {}: {} items for the calibration, {} others for the test".format(table.key, *table.items)
    notes = [f"- {line}" for line in verdicts(table)]
    notes += [f"- {row.peer}: {row.run.note}" for row in rows if row.run and row.run.note and not row.error]
    notes += [f"- {row.peer}: `{row.error}`" for row in rows if row.error]
    return "\n".join([title, "", *lines, *([""] if notes else []), *notes, ""])


def _cells(row: Row, scores: Sequence[str], batches: Sequence[str]) -> list[str]:
    run = row.run
    return [
        row.peer,
        *(_score(name, row.scores[name]) if row.scores else "failed" for name in scores),
        *(f"{row.milliseconds[b]:.2f} **{row.speedup[b]:.2f}x**" if row.speedup else "" for b in batches),
        *([f"{run.seconds:.1f}", f"{run.cpu_seconds:.1f}", f"{run.peak_mib:.0f}"] if run else [""] * 3),
        f"{row.size:.3f}" if row.size else "",
    ]


def _score(name: str, value: float) -> str:
    return f"{value:.4f}" if "cos" in name or "Spearman" in name else f"{value:.2f}"


# ---- JSON ------------------------------------------------------------------------------------------------------------


def document(tables: Sequence[Table]) -> dict[str, Any]:
    """By model: the rows, how many items there were, and who is ahead."""
    return {
        "models": {table.key: [_plain(row) for row in table.rows] for table in tables},
        "items": {table.key: {"calibration": table.items[0], "test": table.items[1]} for table in tables},
        "verdicts": {table.key: verdicts(table) for table in tables},
    }


def _plain(row: Row) -> dict[str, Any]:
    """The row as JSON has it: no infinity, which is the SQNR of the float model against itself."""
    scores = {name: value if math.isfinite(value) else None for name, value in row.scores.items()}
    return {**asdict(row), "scores": scores}
