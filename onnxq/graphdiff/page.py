"""A comparison as one page that needs no network: its data is the JSON of the comparison, and where to draw what."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from pydantic_core import to_json

from onnxq.graphdiff.findings import GraphDiff
from onnxq.graphdiff.layout import lay_out
from onnxq.modelfile import replacing
from onnxq.version import __version__


def write(found: GraphDiff, place: Path) -> None:
    """Write the page in one step. Raises OutputError."""
    text = render(found)
    with replacing(place) as file:
        file.write_text(text, encoding="utf-8")


def render(found: GraphDiff) -> str:
    """The page."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    folder = files("onnxq.graphdiff")
    parts = {name: (folder / f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js", "jinja")}
    return environment.from_string(parts["jinja"]).render(
        title=f"{found.before.name} and {found.after.name}",
        style=parts["css"],
        script=parts["js"],
        data=embedded({"diff": found, "layout": lay_out(found)}),
        version=__version__,
    )


def embedded(document: object) -> str:
    """JSON that may stand in a script element, whatever names are in it."""
    return to_json(document, inf_nan_mode="null").decode().replace("<", "\\u003c")
