"""Rounded weights, found once and kept until they are written.

What is on a shelf in a folder outlives the process: a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from onnxq.errors import OutputError
from onnxq.numerics.rounding.blocks import Blocked


@dataclass
class Shelf:
    """Rounded weights by name.

    Attributes:
        folder: where they are kept; None for in memory, as long as the shelf lives.
        held: those that are kept in memory.
        prefix: what the names of this part of the shelf begin with.
        latest: the one that was computed last, beside those that are kept: its parts are asked for one by one.
    """

    folder: Path | None = None
    held: dict[str, Blocked] = field(default_factory=dict)
    prefix: str = ""
    latest: tuple[str, Blocked] | None = None

    def under(self, prefix: str) -> Shelf:
        """A part of the shelf with names of its own."""
        return replace(self, prefix=prefix, latest=None)

    def get(self, name: str) -> Blocked | None:
        """The weight of this name, where it was put; a broken file counts as absent."""
        if self.latest is not None and self.latest[0] == name:
            return self.latest[1]
        found = self.held.get(self.prefix + name) if self.folder is None else self._read(self._place(name))
        if found is not None:
            self.latest = name, found
        return found

    def put(self, name: str, found: Blocked) -> None:
        """Keep a weight."""
        self.latest = name, found
        if self.folder is None:
            self.held[self.prefix + name] = found
            return
        parts = {"values": found.values, "scale": found.scale, "size": np.array([found.bits, found.inputs])}
        parts |= {} if found.zero_point is None else {"zero_point": found.zero_point}
        place = self._place(name)
        draft = place.with_suffix(".part")
        try:
            self.folder.mkdir(exist_ok=True)
            with open(draft, "wb") as file:
                np.savez(file, **parts)  # type: ignore[arg-type]
            os.replace(draft, place)
        except OSError as error:
            raise OutputError(
                f"'{self.folder}' cannot be written ({error.strerror or error}). Free some space or choose another "
                "folder for the output."
            ) from error

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.held if self.folder is None else self._place(name).exists()

    def of(self, name: str, compute: Callable[[], Blocked]) -> Blocked:
        """The weight of this name; computed, and not kept, where it was not put."""
        found = self.get(name)
        if found is None:
            found = compute()
            self.latest = name, found
        return found

    def _place(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{sha256((self.prefix + name).encode()).hexdigest()[:32]}.npz"

    def _read(self, place: Path) -> Blocked | None:
        try:
            with open(place, "rb") as stream, np.load(stream) as file:
                parts: dict[str, Any] = {key: file[key] for key in file.files}
                bits, inputs = (int(value) for value in parts["size"])
                return Blocked(parts["values"], parts["scale"], parts.get("zero_point"), bits, inputs)
        except (OSError, EOFError, KeyError, ValueError, BadZipFile):
            return None


@contextmanager
def shelf_beside(output: Path | None, key: str) -> Iterator[Shelf]:
    """A shelf in a folder beside an output; it goes when the block ends well, is empty, or where the disk is full.

    What another key put there is thrown away: it was for another model, or for other wishes.
    """
    if output is None:
        yield Shelf()
        return
    folder = output.with_name(f".{output.name}.rounded")
    note = folder / "key"
    if not (note.is_file() and note.read_text(encoding="utf-8") == key):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(exist_ok=True)
        note.write_text(key, encoding="utf-8")
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise OutputError(
            f"'{output}' cannot be written ({error.strerror or error}). Free some space or choose another folder."
        ) from error
    done = True
    try:
        yield Shelf(folder)
    except OutputError:
        raise
    except BaseException:
        done = not any(folder.glob("*.npz"))
        raise
    finally:
        if done:
            shutil.rmtree(folder, ignore_errors=True)
