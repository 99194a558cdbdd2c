"""A process for work that may die or never end: it is limited in time and memory, and replaced when it is gone."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")

FIRST = 60.0
"""Seconds that a new process may take to import what it needs, beside the limit of its first call."""


@dataclass(frozen=True)
class Limits:
    """What one call may take: seconds, and bytes of address space."""

    seconds: float
    memory: int


class Gone(Exception):
    """The process died, or did not come to an end; the message says which."""


class Limited(Generic[Result]):
    """Calls a function again and again, in a process of its own.

    The function is one of a module, and what it takes and returns can be pickled; it raises nothing.
    """

    def __init__(self, function: Callable[..., Result], limits: Limits) -> None:
        self.function, self.limits = function, limits
        self.process: Any = None
        self.connection: Connection[Any, Any] | None = None

    def __enter__(self) -> Limited[Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __call__(self, *arguments: Any) -> Result:
        """What the function returns. Raises Gone; the next call gets a new process then."""
        fresh = self.connection is None
        connection = self._started()
        try:
            connection.send(arguments)
            if connection.poll(self.limits.seconds + FIRST * fresh):
                result: Result = connection.recv()
                return result
            said = f"did not end within {self.limits.seconds:g} s"
        except (EOFError, OSError):
            self.process.join(5)
            said = _ended(self.process.exitcode)
        self.stop()
        raise Gone(f"The process {said}.")

    def _started(self) -> Connection[Any, Any]:
        if self.connection is None:
            context = get_context("spawn")
            self.connection, theirs = context.Pipe()
            arguments = (theirs, self.function, self.limits.memory)
            self.process = context.Process(target=_serve, args=arguments, daemon=True)
            self.process.start()
            theirs.close()
        return self.connection

    def stop(self) -> None:
        """End the process."""
        if self.connection is not None:
            self.connection.close()
            self.process.kill()
            self.process.join()
            self.connection = None


def _ended(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    with suppress(ValueError):
        return f"was ended by {signal.Signals(-code).name}"
    return f"was ended by signal {-code}"


def _serve(connection: Connection[Any, Any], function: Callable[..., Any], memory: int) -> None:
    """Answer calls until nobody asks any more."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    with suppress(EOFError):
        while True:
            arguments = connection.recv()
            connection.send(function(*arguments))
