"""What a person reads of a model alone, and of the texts that two models write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from onnxq.tables import _table, _title, sheet

if TYPE_CHECKING:
    from onnxq.continuation import Continuations
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
    return Group(_title(model.name), "", table, "", sheet(rows))


def continuations(found: Continuations) -> RenderableType:
    """What two models write after one prompt, and how fast."""
    one, other = found.reference, found.candidate
    table = _table("Tokens per second", "float", "quantized", "")
    speed = f"{found.prefill_speedup:.2f}x as fast"
    table.add_row(f"Prompt of {one.prompt}", _rate(one.prefill_per_second), _rate(other.prefill_per_second), speed)
    if found.decode_speedup is not None:
        speed = f"{found.decode_speedup:.2f}x as fast"
        rates = (_rate(one.decode_per_second), _rate(other.decode_per_second))
        table.add_row(f"{len(one.tokens)} new ones", *rates, speed)
    rows: list[tuple[str, RenderableType]] = [
        ("Prompt", _written(found.prompt_text, found.prompt)),
        ("Float", _written(found.reference_text, one.tokens)),
        ("Quantized", _written(found.candidate_text, other.tokens)),
        ("", Text(f"{_difference(found)}.", style="" if found.first_difference is None else "yellow", overflow="fold")),
    ]
    return Group(table, "", sheet(rows))


def _rate(per_second: float | None) -> str:
    if per_second is None:
        return ""
    return f"{per_second:.3g}" if per_second < 100 else f"{per_second:.0f}"


def _written(text: str | None, tokens: Sequence[int]) -> Text:
    """A text, or its tokens where nothing makes text of them."""
    return Text(" ".join(map(str, tokens)) if text is None else text, overflow="fold")


def _difference(found: Continuations) -> str:
    if found.first_difference is None:
        return "The same text"
    count = len(found.reference.tokens)
    said = f"The texts part at new token {found.first_difference + 1} of {count}"
    if found.agreement is None:
        return said
    return f"{said}; after the float model's text, {100 * found.agreement:.3g} % of its tokens are taken"
