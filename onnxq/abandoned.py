"""Hidden folders beside an output: locked as long as somebody writes into them, cleared away once nobody does."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""A file in such a folder that its owner holds locked; the lock goes with the process, however that ends."""

LETTERS = 8
"""Random letters at the end of the name of such a folder, as `tempfile.mkdtemp` chooses them."""

AGE = 60.0
"""Seconds after which a folder without that file is abandoned: its owner was stopped before it could write one."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder locked. Raises OSError where nothing can be written."""
    with open(folder / LOCK, "wb") as file:
        _lock(file)
        yield


def clear_abandoned(output: Path) -> None:
    """Remove the folders that killed runs left beside an output; those of running ones stay."""
    prefix = f".{output.name}."
    with suppress(OSError):
        for folder in sorted(output.parent.iterdir()):
            if folder.name.startswith(prefix) and len(folder.name) == len(prefix) + LETTERS and _is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    if folder.is_symlink() or not folder.is_dir():
        return False
    try:
        with open(folder / LOCK, "rb") as file:
            return _lock(file)
    except FileNotFoundError:
        with suppress(OSError):
            return time.time() - folder.stat().st_mtime > AGE
        return False
    except OSError:
        return False


def _lock(file: IO[bytes]) -> bool:
    """Lock a file. Returns whether that could be done; never where the system has no such locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
