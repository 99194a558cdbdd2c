"""Runs the command line, and turns what goes wrong into one line and an exit code."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType

from onnxq.errors import CrashError
from onnxq.guard import guarded

DONE, WRONG, DEFECT = 0, 2, 3
"""Exit codes; a command returns 1 where it checked a model and found it wanting."""

STOPPED, PIPE, TERMINATED = 130, 141, 143
"""Exit codes after a signal, as shells count them: 128 and SIGINT, SIGPIPE or SIGTERM."""


def main() -> None:
    """`onnxq` and `python -m onnxq`."""
    signal.signal(signal.SIGTERM, _terminate)  # so that half-written files are taken away
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without Unicode is no reason to fail
    words = sys.argv[1:]
    try:
        code = guarded(lambda: run(words))
    except CrashError as error:
        code = complain(error, str(error), words)
    sys.exit(code)


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command like Ctrl-C does."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def run(words: Sequence[str]) -> int:
    """Run one command. Returns the exit code; what goes wrong is said in one line on standard error."""
    import typer

    from onnxq.cli import app
    from onnxq.errors import OnnxqError

    command = typer.main.get_command(app)
    wrong_use: type[Exception] = typer.BadParameter.__bases__[0]  # of every error about the words themselves
    try:
        with command.make_context("onnxq", list(words), obj=tuple(words)) as context:
            code = command.invoke(context)
        sys.stdout.flush()
        return int(code or DONE)
    except typer.Exit as stop:
        return int(stop.exit_code)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE
    except KeyboardInterrupt as error:
        return complain(error, "Stopped.", words, TERMINATED if isinstance(error, Terminated) else STOPPED)
    except OnnxqError as error:
        return complain(error, str(error), words)
    except wrong_use as error:
        return complain(error, _usage(error), words)
    except MemoryError as error:
        return complain(error, "There is not enough memory. Give --memory a limit, or a smaller --batch.", words)
    except OSError as error:
        place = f"'{error.filename}': " if error.filename else ""
        return complain(error, f"{place}{error.strerror or error}. Check the disk and the permissions.", words)
    except Exception as error:
        traceback.print_exc()
        return complain(error, f"{error!r} is a defect of onnxq. Please report it with the lines above.", words, DEFECT)


def _usage(error: Exception) -> str:
    said, context = getattr(error, "format_message", error.__str__)(), getattr(error, "ctx", None)
    stop = "" if said.endswith((".", "?")) else "."
    return f"{said}{stop} See '{context.command_path if context else 'onnxq'} --help'."


def complain(error: BaseException, message: str, words: Sequence[str], code: int = WRONG) -> int:
    """Say what is wrong in one line, and as JSON where that was asked for."""
    line = printable(" ".join(message.split()))
    print(f"onnxq: error: {line}", file=sys.stderr)
    if "--json" in words:
        print(json.dumps({"error": {"type": type(error).__name__, "message": line}}, indent=1))
    return code


def printable(text: str) -> str:
    """The text with what a terminal would obey written out: names in a model may hold anything."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


if __name__ == "__main__":
    main()
