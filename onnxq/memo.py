"""Measurements remembered on disk: interrupted work goes on where it stopped, and later runs decide alike.

A value is found again by its kind (what was measured) and its key (all that it depends on), each in a file of its own.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TypeAlias

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"


def default_folder() -> Path | None:
    """ONNXQ_CACHE, else XDG_CACHE_HOME/onnxq, else ~/.cache/onnxq; None where nobody has a home."""
    if chosen := os.environ.get("ONNXQ_CACHE"):
        return Path(chosen)
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches) / "onnxq"
    with suppress(RuntimeError):
        return Path.home() / ".cache" / "onnxq"
    return None


@dataclass(frozen=True)
class Memo:
    """What was measured before.

    Attributes:
        folder: where it is kept, for other processes too; None remembers in memory alone, and so does a folder that
            cannot be written.
    """

    folder: Path | None = None
    _known: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def get(self, kind: str, key: Mapping[str, JSON]) -> JSON:
        """The value that was put, or None; a broken file counts as absent."""
        name = _name(kind, key)
        text = self._known.get(name)
        if text is None and self.folder is not None:
            with suppress(OSError, UnicodeDecodeError):
                text = (self.folder / name).read_text(encoding="utf-8")
        try:
            stored = json.loads(text or "")
            return stored["value"] if canonical(stored["key"]) == canonical(key) else None
        except (ValueError, LookupError, TypeError, RecursionError):
            return None

    def put(self, kind: str, key: Mapping[str, JSON], value: JSON) -> JSON:
        """Remember a value, and return it; or what another process remembered meanwhile: all decide alike."""
        found = self.get(kind, key)
        if found is not None:
            return found
        name, text = _name(kind, key), json.dumps({"key": key, "value": value}, sort_keys=True)
        self._known[name] = text
        if self.folder is not None:
            with suppress(OSError):
                _write(self.folder / name, text)
        return value


def canonical(key: object) -> str:
    """JSON that is the same text for the same content."""
    return json.dumps(key, sort_keys=True, separators=(",", ":"))


def _name(kind: str, key: Mapping[str, JSON]) -> str:
    return f"{kind}-{sha256(canonical(key).encode()).hexdigest()}.json"


def _write(path: Path, text: str) -> None:
    """The whole file or none: another process never reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(unfinished)
        raise
