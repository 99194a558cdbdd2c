"""How a command begins and ends: where it may write, progress on the way, and the result as tables or JSON."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from onnxq.errors import OutputError, RecipeError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from onnxq.calibration.collect import Progress
    from onnxq.result import Result


def check_outputs(model: Path, places: Mapping[str, Path | None]) -> None:
    """Find out before the work whether everything beside the model can be written, each to a file of its own."""
    from onnxq.modelfile import check_output

    named: dict[Path, str] = {}
    for flag, place in places.items():
        if place is None:
            continue
        if flag != "--output":  # which the API checks, once it has read the model
            check_output(model, place, flag)
        if place.resolve() in named:
            raise RecipeError(f"{flag} and {named[place.resolve()]} both name '{place}'. Name two files.")
        named[place.resolve()] = flag


def write_plan(result: Result, place: Path | None) -> Result:
    """Write the plan in one step, also of a rejected model: it is there to be edited."""
    if place is None:
        return result
    if result.plan is None:
        note = f"There was nothing to decide, so no plan was written to '{place}'."
        return result.model_copy(update={"warnings": [*result.warnings, note]})
    from onnxq.modelfile import replacing

    with replacing(place) as file:
        file.write_text(result.plan.to_json(), encoding="utf-8")
    return result


def check_page(place: Path | None) -> None:
    """Find out before the work whether a report can be made and written. Raises RecipeError or OutputError."""
    if place is None:
        return
    from onnxq.report import check_extra

    check_extra()
    if not os.access(place.parent, os.W_OK | os.X_OK):
        raise OutputError(f"'{place.parent}' cannot be written to. Choose another folder for --report.")


def write_page(document: Any, place: Path | None, context: typer.Context, subject: str) -> None:
    """Write a document as a page, with the words that were typed to get it."""
    if place is None:
        return
    from onnxq.report import write_report

    words = context.obj or ()
    write_report(document, place, command=shlex.join(["onnxq", *words]), subject=subject)


@contextmanager
def told(quiet: bool) -> Iterator[Progress]:
    """Progress on standard error; what functions of the user's print meanwhile goes there too."""
    from onnxq.tables import Bars

    bars = Bars(silent=quiet)
    try:
        with redirect_stdout(sys.stderr):
            yield bars
    finally:
        bars.close()


def report(
    document: Any, table: Callable[[], RenderableType], as_json: bool, quiet: bool, page: Path | None = None
) -> None:
    """The result as JSON, as tables for a person, or both on two channels; and where it was written as a page."""
    from pydantic_core import to_json

    from onnxq.tables import console, sheet

    if as_json:  # NaN and infinity become null: JSON knows neither
        print(to_json(document, indent=1, inf_nan_mode="null").decode())
    if not quiet:
        console(stderr=as_json).print(table())
        if page is not None:
            console(stderr=as_json).print(sheet([(f"{'Page':13}", str(page))]))
