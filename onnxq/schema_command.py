"""`onnxq schema`: what the JSON of every command looks like, for programs that read it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

Command = Annotated[
    str | None,
    typer.Argument(metavar="[COMMAND]", help="A command, or error; all of them if left out.", show_default=False),
]


def schema(command: Command = None) -> int:
    """Print the JSON Schema of what a command prints with --json.

    Within a major version, keys stay, with their type and meaning; keys may be added.
    """
    from onnxq import documents

    found = documents.schemas() if command is None else documents.schema(command)
    print(json.dumps(found, indent=1))
    return 0
