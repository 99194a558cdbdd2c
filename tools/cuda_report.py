"""The rows of `tools/cuda_table.py` as a markdown table and as JSON has them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One variant of a model. None: not known, for the reason in `note`.

    Args:
        model: its name.
        variant: float32, fp16, int8, weight8 or int4.
        note: why there are no figures, or what onnxq said.
        cosine: of the first output to that of the float model on the CPU, the mean over the items.
        sqnr_db: signal to quantization noise of the same.
        milliseconds: median latency of a batch.
        speedup: times as fast as float32 on the same provider.
        memcpy: copies between the memories of GPU and CPU in one run.
        on_cpu: operators that run on the CPU; all of them, where that is the provider.
        kernels: operators that run, after the runtime's fusions.
        size: the model's bytes, as a share of the float model's.
    """

    model: str
    variant: str
    note: str = ""
    cosine: float | None = None
    sqnr_db: float | None = None
    milliseconds: float | None = None
    speedup: float | None = None
    memcpy: int | None = None
    on_cpu: int | None = None
    kernels: int | None = None
    size: float | None = None


def first_sentence(text: str) -> str:
    """The text up to the first full stop that ends a sentence, on one line."""
    return re.split(r"(?<=\.)\s", " ".join(text.split()), maxsplit=1)[0]


def markdown(rows: Sequence[Row]) -> str:
    """All rows as one table."""
    head = ["model", "variant", "cosine", "SQNR dB", "ms", "times float32", "Memcpy", "on CPU", "size", "note"]
    rule = ["---", "---", *["--:"] * (len(head) - 3), "---"]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *map(_cells, rows)))


def _cells(row: Row) -> list[str]:
    place = "" if row.on_cpu is None else f"{row.on_cpu} of {row.kernels}"
    return [
        row.model,
        row.variant,
        _number(row.cosine, ".5f"),
        _number(row.sqnr_db, ".1f"),
        _number(row.milliseconds, ".3f"),
        _number(row.speedup, ".2f"),
        _number(row.memcpy, "d"),
        place,
        _number(row.size, ".3f"),
        row.note.replace("|", "\\|"),
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def plain(row: Row) -> dict[str, Any]:
    """A row as JSON has it: no infinity, which is the SQNR of equal outputs, and no NaN."""
    known = asdict(row).items()
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in known}
