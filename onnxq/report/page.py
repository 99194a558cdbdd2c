"""A document and where it comes from, as a page: template, style, scripts and charts in one file."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from onnxq.report import Origin
from onnxq.report.document import Document, key
from onnxq.report.rows import Group, Row, float_groups, layer_rows

MOST_SENTENCES = 5
"""Findings that are spelled out; the table holds them all."""

PART = 500
"""Rows of the table of layers that are laid out at first, and whenever its end comes into sight."""

TONES = {"optimized": "good", "passed": "good", "left alone": "fair", "explained": "plain"}
"""How a result is coloured; anything else is bad."""


@dataclass(frozen=True)
class Page:
    """What the template asks for.

    Attributes:
        doc: the document.
        origin: where it comes from.
    """

    doc: Document
    origin: Origin

    @cached_property
    def status(self) -> str:
        """One or two words for what happened."""
        passed = self.doc("/passed")
        if passed is not None:
            return "passed" if passed else "found wanting"
        return str(self.doc("/status") or "explained")

    @property
    def tone(self) -> str:
        """Good, fair, bad, or plain where nothing was judged."""
        return TONES.get(self.status, "bad")

    @property
    def reasons(self) -> list[str]:
        """Why it was left alone, rejected or found wanting."""
        return [*(self.doc("/reasons") or []), *([self.doc("/reason")] if self.doc("/reason") else [])]

    @cached_property
    def proofs(self) -> list[str]:
        """Where proofs stand: one, or one for each provider."""
        many = [f"/proofs/{place}" for place in range(len(self.doc("/proofs") or []))]
        return many or (["/proof"] if self.doc("/proof") else [])

    @cached_property
    def diagnosis(self) -> str | None:
        """Where a diagnosis stands: the whole document may be one."""
        if self.doc("/findings") is not None:
            return ""
        return "/diagnosis" if self.doc("/diagnosis") else None

    def rows(self, proof: str) -> list[Row]:
        """The table of layers."""
        return layer_rows(self.doc, proof)

    def floats(self, proof: str) -> list[Group]:
        """What stayed in float, and why."""
        return float_groups(self.doc, proof)

    def worst_output(self, proof: str) -> str | None:
        """The output that is farthest from the float model's."""
        outputs = self.doc(f"{proof}/outputs")
        return min(outputs, key=lambda name: outputs[name]["cosine"] or -2.0) if outputs else None

    @property
    def unproven(self) -> bool:
        """Whether a model was written that nobody compared with its float model."""
        return self.status == "optimized" and not self.proofs

    @property
    def not_written(self) -> bool:
        """Whether the plan is of a model that was tried and not written."""
        return self.status in ("left alone", "rejected") and bool(self.doc("/plan"))

    def measures(self, proof: str) -> list[tuple[str, str, str]]:
        """What is known of outputs beside their errors: key, form and heading; what none has is left out."""
        outputs = (self.doc(f"{proof}/outputs") or {}).values()
        titles = (
            ("agreement", "percent", "same argmax"),
            ("kl", "number", "KL"),
            ("top1_float", "percent", f"top-1 {self.doc(f'{proof}/reference')}"),
            ("top1", "percent", "top-1"),
        )
        return [each for each in titles if any(output[each[0]] is not None for output in outputs)]

    @property
    def has_charts(self) -> bool:
        """Whether there is something to draw: a frontier, a training curve, histograms."""
        return bool(self.doc("/frontier") or self.doc("/lesson") or self.doc("/ranges"))

    @property
    def embedded(self) -> Markup:
        """The document as text inside a script element, where nothing can end that element."""
        text = json.dumps(self.doc.content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return Markup(_harmless(text))


def _harmless(text: str) -> str:
    """JSON that holds no character of markup: these stand only inside strings, where they may be written as numbers."""
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def render(document: Any, origin: Origin) -> str:
    """The page of a document."""
    environment = Environment(
        loader=PackageLoader("onnxq.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    page = Page(Document(document), origin)
    scripts = ["page.js"]
    library, digests = "", []
    if page.has_charts:
        scripts.append("charts.js")
        library, digest = _library()
        digests.append(digest)
    sources = [_source(name) for name in scripts]
    template = environment.get_template("page.html.jinja")
    return template.render(
        page=page,
        doc=page.doc,
        key=key,
        number=page.doc.number,
        share=page.doc.share,
        style=Markup(_source("style.css")),
        scripts=[Markup(source) for source in sources],
        digests=[*map(_digest, sources), *digests],
        library=library,
        most=MOST_SENTENCES,
        part=PART,
    )


def _source(name: str) -> str:
    return files("onnxq.report").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """What a content security policy calls a script."""
    return f"sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}"


@lru_cache(maxsize=1)
def _library() -> tuple[str, str]:
    """Plotly, packed to a third and as text, and the digest of what it is unpacked to."""
    found = find_spec("plotly")  # to import it would take longer, and bring nothing
    assert found is not None
    assert found.origin is not None
    source = Path(found.origin).with_name("package_data").joinpath("plotly.min.js").read_bytes()
    packed = base64.b64encode(gzip.compress(source, 9, mtime=0)).decode()
    return packed, _digest(source.decode("utf-8"))
