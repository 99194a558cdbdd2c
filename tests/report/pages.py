"""Reading a page back: its document, and every number that it shows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

SUFFIXES = {
    "KiB": 2.0**10,
    "MiB": 2.0**20,
    "GiB": 2.0**30,
    "B": 1.0,
    "%": 0.01,
    "ms": 1.0,
    "µs": 1.0,
    "s": 1.0,
    "dB": 1.0,
    "×": 1.0,
    "": 1.0,
}
"""What a unit stands for."""


@dataclass(frozen=True)
class Shown:
    """A number on a page.

    Attributes:
        text: as a person reads it.
        value: as a program does.
        at: where it stands in the document; empty for the quotient of two others.
        part: the place of the dividend.
        whole: that of the divisor.
    """

    text: str
    value: float
    at: str = ""
    part: str = ""
    whole: str = ""


@dataclass
class Reader(HTMLParser):
    """Takes a page apart.

    Attributes:
        numbers: every one that is shown.
        texts: what stands in elements that have an id, scripts included.
        tags: every start tag with its attributes.
    """

    numbers: list[Shown] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    _open: dict[str, str | None] | None = None
    _id: str | None = None

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.tags.append((tag, known))
        self._open = known if tag == "data" else None
        self._id = known.get("id")

    def handle_endtag(self, tag: str) -> None:
        self._open, self._id = None, None

    def handle_data(self, data: str) -> None:
        if self._id:
            self.texts[self._id] = self.texts.get(self._id, "") + data
        if self._open is not None:
            places = {key: str(self._open.get(f"data-{key}") or "") for key in ("at", "part", "whole")}
            self.numbers.append(Shown(data, float(str(self._open["value"])), **places))


def read(page: Path | str) -> Reader:
    """A page, taken apart."""
    reader = Reader()
    reader.feed(page.read_text(encoding="utf-8") if isinstance(page, Path) else page)
    return reader


def document(reader: Reader) -> Any:
    """The document that a page holds."""
    return json.loads(reader.texts["document"])


def lookup(found: Any, pointer: str) -> Any:
    """The value at a place (RFC 6901)."""
    for step in pointer.split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        found = found[int(step)] if isinstance(found, list) else found[step]
    return found


def wrong_numbers(numbers: list[Shown], found: Any) -> Iterator[str]:
    """What a page says otherwise than its document: the value, or how it is written."""
    for shown in numbers:
        exact = lookup(found, shown.at) if shown.at else lookup(found, shown.part) / lookup(found, shown.whole)
        if shown.value != exact:
            yield f"{shown}: the document has {exact}"
        if not math.isclose(read_back(shown.text), exact, rel_tol=0.06, abs_tol=0.006):
            yield f"{shown}: reads as {read_back(shown.text)}, and is {exact}"


def read_back(text: str) -> float:
    """A number as it is written, with its unit."""
    match = re.fullmatch(r"(-?[\d,.]+(?:e[+-]\d+)?)\s*(\D*)", text)
    assert match is not None, text
    return float(match[1].replace(",", "")) * SUFFIXES[match[2]]
