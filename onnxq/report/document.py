"""The JSON document behind a page, and its numbers as HTML that says where they stand in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from onnxq.report.figures import FORMS, NONE


def key(name: object) -> str:
    """A name as a step of a pointer into a document (RFC 6901)."""
    return str(name).replace("~", "~0").replace("/", "~1")


@dataclass(frozen=True)
class Document:
    """A document as it was read from JSON."""

    content: Any

    def __call__(self, pointer: str) -> Any:
        """The value at a place, such as /proof/outputs/logits; None where there is none."""
        value = self.content
        for step in pointer.split("/")[1:]:
            if isinstance(value, dict):
                value = value.get(step.replace("~1", "/").replace("~0", "~"))
            elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
                value = value[int(step)]
            else:
                return None
        return value

    def number(self, form: str, pointer: str, none: str = NONE) -> Markup:
        """The number at a place: `<data value="0.0161" data-at="/proof/nodes/1/scale">0.0161</data>`."""
        value = self(pointer)
        if value is None:
            return escape(none)
        return Markup('<data value="{}" data-at="{}">{}</data>').format(value, pointer, FORMS[form](value))

    def share(self, part: str, whole: str, form: str = "percent") -> Markup:
        """One number as a share of another one, naming both."""
        quotient = self(part) / self(whole)
        return Markup('<data value="{}" data-part="{}" data-whole="{}">{}</data>').format(
            quotient, part, whole, FORMS[form](quotient)
        )
