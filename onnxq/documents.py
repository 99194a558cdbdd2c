"""What `--json` prints, command by command, as JSON Schema (draft 2020-12): `onnxq schema [COMMAND]`.

What is promised: within a major version, a key that is there stays, with its type and its meaning, and so do the
values that a key may take where these are listed. Keys and listed values may be added: accept ones that you do not
know. A number that is NaN or infinite is null. A command that fails prints the document `error` in place of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from onnxq.diagnosis.findings import Diagnosis
from onnxq.errors import RecipeError
from onnxq.evaluation import Evaluation
from onnxq.inspection import Summary
from onnxq.plan import Record
from onnxq.proof import Proof
from onnxq.result import Result
from onnxq.version import __version__

DIALECT = "https://json-schema.org/draft/2020-12/schema"


class Calibrated(Record):
    """What `calibrate` wrote.

    Attributes:
        output: the file.
        samples: how many were run.
        tensors: how many were seen.
        non_finite: how often a value was NaN or infinite, by tensor.
    """

    output: str
    samples: int
    tensors: int
    non_finite: dict[str, int]


class Validated(Record):
    """What `validate` found.

    Attributes:
        passed: whether the exit code is 0.
        reasons: why it is not, one sentence each.
        proofs: by provider.
    """

    passed: bool
    reasons: list[str]
    proofs: list[Proof]


class Evaluated(Record):
    """What `eval` found, provider by provider."""

    evaluations: list[Evaluation]


class Timed(Record):
    """One model that `bench` timed.

    Attributes:
        model: its path.
        milliseconds: median latency of one batch.
        speedup: how many times as fast as the first model it is.
        provider: what it ran on.
        threads: of the runtime; 0 is its own choice.
        batch: samples in the batch.
        kernels: how many of each operator really ran.
    """

    model: str
    milliseconds: float
    speedup: float
    provider: str
    threads: int
    batch: int
    kernels: dict[str, int]


class Benched(Record):
    """What `bench` measured."""

    models: list[Timed]


class PassEntry(Record):
    """One pass.

    Attributes:
        stage: when it runs.
        name: of the pass.
        does: what it does, in a sentence.
        promise: how far outputs may move.
    """

    stage: str
    name: str
    does: str
    promise: str


class Passes(Record):
    """What `passes` lists, in order."""

    passes: list[PassEntry]


class Complaint(Record):
    """What went wrong.

    Attributes:
        type: the kind of error.
        message: what is wrong and what to do, in one line.
    """

    type: str
    message: str


class Failed(Record):
    """What any command prints where it fails; the exit code is 2 or more."""

    error: Complaint


DOCUMENTS: Mapping[str, Any] = {
    "optimize": Result,
    "finetune": Result,
    "calibrate": Calibrated,
    "inspect": Summary,
    "validate": Validated,
    "eval": Evaluated,
    "explain": Diagnosis,
    "bench": Benched,
    "passes": Passes,
    "lint": "onnxq.linting:Lint",
    "diff": "onnxq.graphdiff.findings:GraphDiff",
    "error": Failed,
}
"""What each command prints; a name stands for what is imported when it is asked for."""


class Published(GenerateJsonSchema):
    """The schema of what is printed: every key is there, others may come, and a float may be null."""

    schema_dialect = DIALECT

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        """NaN and infinity are printed as null; limits of what is read do not hold for them."""
        return {"type": ["number", "null"]}

    def field_is_required(self, field: Any, total: bool) -> bool:
        """What is printed holds every key."""
        return True

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """Keys may be added in later versions."""
        made = super().model_schema(schema)
        made.pop("additionalProperties", None)
        return made


def schema(command: str) -> dict[str, Any]:
    """The JSON Schema of what a command prints with --json. Raises RecipeError."""
    if command not in DOCUMENTS:
        raise RecipeError(f"'{command}' prints no document. Known are {', '.join(DOCUMENTS)}.")
    adapter: TypeAdapter[Any] = TypeAdapter(_record(DOCUMENTS[command]))
    made = adapter.json_schema(mode="serialization", schema_generator=Published)
    title = "onnxq: error" if command == "error" else f"onnxq {command} --json"
    return {"$schema": DIALECT, **made, "title": title, "$comment": f"onnxq {__version__}"}


def schemas() -> dict[str, dict[str, Any]]:
    """All of them, by command."""
    return {command: schema(command) for command in DOCUMENTS}


def _record(entry: Any) -> Any:
    if not isinstance(entry, str):
        return entry
    module, _, name = entry.partition(":")
    return getattr(import_module(module), name)
