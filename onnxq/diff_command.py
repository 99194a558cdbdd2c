"""`onnxq diff` and the options that only it has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from onnxq import flags
from onnxq.errors import RecipeError
from onnxq.reporting import check_outputs, report

if TYPE_CHECKING:
    from onnxq.graphdiff.findings import Alarm

Before = Annotated[Path, typer.Argument(help="The model as it was.", show_default=False)]
After = Annotated[Path, typer.Argument(help="The model as it is.", show_default=False)]
Page = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE",
        rich_help_panel=flags.RESULT,
        help="Draw both graphs side by side in one page that needs no network.",
        show_default=False,
    ),
]
FailOn = Annotated[
    str | None,
    typer.Option(
        "--fail-on",
        metavar="WORDS",
        rich_help_panel=flags.CONTRACT,
        help="Exit with code 1 where the models differ in one of these: inserted, removed, replaced, changed (nodes), "
        "interface (inputs and outputs), precision (types, scales, conversions). Separated by commas.",
        show_default=False,
    ),
]
Everything = Annotated[
    bool, typer.Option("--all", rich_help_panel=flags.RESULT, help="List every edit, also those that are alike.")
]


def diff(
    before: Before,
    after: After,
    fail_on: FailOn = None,
    html: Page = None,
    everything: Everything = False,
    as_json: flags.AsJson = False,
    quiet: flags.Quiet = False,
) -> int:
    """Say what is different between two models, whoever made them: nodes, weights, scales, types, interface.

    onnxq diff model.onnx model.int8.onnx --html diff.html
    """
    from onnxq import diff_table, diffing
    from onnxq.graphdiff.writer import page_writer

    alarms = _alarms(fail_on)
    for model in (before, after):
        check_outputs(model, {"--html": html})
    draw = None if html is None else page_writer()
    found = diffing.diff(before, after)
    if draw is not None and html is not None:
        draw(found, html)
    report(found, lambda: diff_table.differences(found, everything=everything), as_json, quiet, html)
    return 1 if any(found.raises(alarm) for alarm in alarms) else 0


def _alarms(words: str | None) -> list[Alarm]:
    """What `--fail-on` names. Raises RecipeError."""
    from onnxq.graphdiff.findings import Alarm

    asked = [] if words is None else [word.strip() for word in words.split(",")]
    for word in asked:
        if word not in get_args(Alarm):
            raise RecipeError(f"--fail-on does not know '{word}'. Known are {', '.join(get_args(Alarm))}.")
    return [alarm for alarm in get_args(Alarm) if alarm in asked]
