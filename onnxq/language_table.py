"""What a person reads of a model alone, and of the texts that two models write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType

from onnxq.tables import _sheet, _table, _title

if TYPE_CHECKING:
    from onnxq.evaluation import Evaluation


def evaluations(model: Path, found: Sequence[Evaluation]) -> RenderableType:
    """What `eval` measured, provider by provider."""
    counted = {"perplexity": "tokens", "top1": "labels"}.get(found[0].metric, "counted")
    table = _table("Provider", found[0].metric, "standard error", "samples", counted, "seconds")
    for one in found:
        error = "" if one.standard_error is None else f"{one.standard_error:.3g}"
        number = "" if one.counted is None else f"{one.counted}"
        table.add_row(one.provider, f"{one.value:.6g}", error, str(one.samples), number, f"{one.seconds:.3g}")
    output = f"output '{found[0].output}'" if found[0].output else "all outputs"
    rows: list[tuple[str, RenderableType]] = [("Measured on", output), ("Data", found[0].data)]
    return Group(_title(model.name), "", table, "", _sheet(rows))
