"""The report: one page that says what happened to a model and why, readable offline, on a phone, by day and by night.

    the JSON document of a command, the command itself  =>  report.html

The page holds the document itself, and every number on it is taken from there: `<data data-at="/proof/size">` names
the place (RFC 6901). It makes no request: style, scripts and the charts' library are inside. The same document gives
the same bytes. Needs the extra `report` (Jinja2, Plotly).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json, to_json

from onnxq import runtime
from onnxq.diagnosis.findings import Diagnosis
from onnxq.errors import RecipeError
from onnxq.graphdiff.findings import GraphDiff
from onnxq.graphdiff.writer import page_writer
from onnxq.modelfile import replacing
from onnxq.proof import Proof
from onnxq.result import Result
from onnxq.version import __version__

if TYPE_CHECKING:
    from onnxq.recipe import Recipe

NEEDED = ("jinja2", "plotly")
"""What the extra brings."""

LIBRARIES = ("onnx", "onnxruntime", "numpy")
"""Whose versions the page tells."""


@dataclass(frozen=True)
class Origin:
    """Where a document comes from.

    Attributes:
        command: what was run, as it is typed.
        subject: the model or models, by name.
        versions: by name of the software, and the machine.
    """

    command: str
    subject: str
    versions: Mapping[str, str]


def check_extra() -> None:
    """Find out before the work whether a report can be made. Raises RecipeError."""
    if not all(map(find_spec, NEEDED)):
        raise RecipeError("A report needs Jinja2 and Plotly, which are not installed. Run: pip install 'onnxq[report]'")


def write_report(
    found: Result | Diagnosis | Sequence[Proof] | GraphDiff | Mapping[str, Any],
    place: Path | str,
    *,
    command: str = "",
    subject: str = "",
) -> None:
    """Write what a command or a call found as a page; it is there in one step, whole or not at all.

    Args:
        found: what `optimize`, `finetune`, `explain`, `validate` or `diff` returned, or the document of a command.
        place: the file to write.
        command: what to run to get the same; an equivalent call if left out.
        subject: the model or models, by name; what the result says if left out.

    Raises:
        RecipeError: the extra `report` is not installed, or nothing like that was given.
        OutputError: the page cannot be written.
    """
    if isinstance(found, GraphDiff):
        page_writer()(found, Path(place))
        return
    if not isinstance(found, (Result, Diagnosis, Sequence, Mapping)) or isinstance(found, (str, bytes)):
        raise RecipeError(
            f"{type(found).__name__} has no report. Give what optimize, finetune, validate, explain or diff returned."
        )
    check_extra()
    from onnxq.report.page import render

    origin = Origin(command or equivalent(found), subject or _subject(found), versions())
    page = render(document_of(found), origin)
    with replacing(Path(place)) as file:
        file.write_text(page, encoding="utf-8")


def document_of(found: Result | Diagnosis | Sequence[Proof] | Mapping[str, Any]) -> Any:
    """What `--json` prints, read again; long roundings of weights are left out, as there."""
    if isinstance(found, Result) and found.plan is not None:
        found = found.model_copy(update={"plan": found.plan.brief()})
    if isinstance(found, Sequence):
        found = {"passed": True, "reasons": [], "proofs": list(found)}
    return from_json(to_json(found, inf_nan_mode="null"))


def versions() -> dict[str, str]:
    """What the figures depend on."""
    known = {"onnxq": __version__} | {name: version(name) for name in LIBRARIES}
    return {**known, "machine": runtime.machine()}


def equivalent(found: Result | Diagnosis | Sequence[Proof] | Mapping[str, Any]) -> str:
    """The call in Python that finds the same, for a model and data that the caller knows."""
    if isinstance(found, Result):
        name = "finetune" if found.lesson is not None else "optimize"
        recipe = "" if found.plan is None else _recipe(found.plan.recipe)
        return f"onnxq.{name}(model, {found.output!r}, data=data{recipe})"
    name = "explain" if isinstance(found, Diagnosis) else "validate"
    return f"onnxq.{name}(reference, candidate, data=data)"


def _recipe(recipe: Recipe) -> str:
    return f", recipe=onnxq.Recipe.model_validate({recipe.model_dump(mode='json', exclude_defaults=True)})"


def _subject(found: object) -> str:
    return Path(found.output).name if isinstance(found, Result) and found.output else "Quantized model"


Writer = Callable[[Any], None]
"""Writes the report of a document; does nothing where none was asked for."""
