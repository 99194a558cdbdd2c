"""What `--json` prints keeps to the schema that is published for it, and every key that is printed is in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from onnxq import documents
from onnxq.cli import app
from onnxq.documents import DOCUMENTS, schema
from onnxq.errors import RecipeError

if TYPE_CHECKING:
    from tests.conftest import Command

jsonschema = pytest.importorskip("jsonschema", reason="pip install jsonschema")

STATIC = ("--recipe", "static-int8", "--seconds", 0)


def strict(part: Any) -> Any:
    """A schema that refuses keys which it does not name."""
    if isinstance(part, list):
        return [strict(each) for each in part]
    if not isinstance(part, dict):
        return part
    closed = {"additionalProperties": False} if isinstance(part.get("properties"), dict) and "type" in part else {}
    return {**{key: strict(value) for key, value in part.items()}, **closed}


def check(command: str, found: object) -> None:
    """Hold a document against its schema."""
    jsonschema.Draft202012Validator(strict(schema(command))).validate(found)


@pytest.fixture
def quantized(onnxq: Command, model: Path, data: Path) -> Path:
    onnxq("optimize", model, "--data", data, *STATIC, "--no-validate", "--quiet")
    return model.with_name("model.int8.onnx")


def test_every_command_with_json_has_a_schema() -> None:
    names = {info.name or info.callback.__name__ for info in app.registered_commands if info.callback is not None}
    assert set(DOCUMENTS) == names - {"schema"} | {"error"}


@pytest.mark.parametrize("command", DOCUMENTS)
def test_a_schema_is_one(command: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(command))
    assert schema(command)["$schema"] == documents.DIALECT


@pytest.mark.parametrize(
    "words",
    [
        STATIC,
        ("--recipe", "dynamic-int8", "--seconds", 0),
        ("--recipe", "weight-int4", "--no-validate"),
        (*STATIC, "--explain", "--max-size", "80%"),
        (*STATIC, "--keep-float", "MatMul"),
    ],
)
def test_optimize(onnxq: Command, model: Path, data: Path, words: tuple[object, ...]) -> None:
    check("optimize", onnxq("optimize", model, "--data", data, *words, "--json").json)


@pytest.mark.usefixtures("clock")
def test_optimize_by_measuring(onnxq: Command, model: Path, data: Path, tmp_path: Path) -> None:
    check("optimize", onnxq("optimize", model, "--data", data, "--frontier", tmp_path / "f", "--json").json)
    check("optimize", onnxq("optimize", model, "--data", data, "--min-speedup", 100, "--json").json)


def test_finetune(onnxq: Command, model: Path, data: Path) -> None:
    pytest.importorskip("torch", reason="training needs PyTorch")
    found = onnxq("finetune", model, "--data", data, "--steps", 2, "--seconds", 0, "--json").json
    assert found["lesson"]
    check("finetune", found)


def test_two_models(onnxq: Command, model: Path, quantized: Path, data: Path) -> None:
    pair = (model, quantized, "--data", data, "--json")
    check("validate", onnxq("validate", *pair, "--seconds", 0).json)
    check("validate", onnxq("validate", *pair, "--seconds", 0, "--min-cosine", 1).json)
    check("explain", onnxq("explain", *pair).json)
    check("bench", onnxq("bench", *pair, "--seconds", 0).json)
    check("diff", onnxq("diff", model, quantized, "--json").json)


def test_one_model(onnxq: Command, model: Path, quantized: Path, data: Path, tmp_path: Path) -> None:
    for each in (model, quantized):
        check("inspect", onnxq("inspect", each, "--json").json)
        check("lint", onnxq("lint", each, "--json").json)
    check("calibrate", onnxq("calibrate", model, "-o", tmp_path / "s.npz", "--data", data, "--json").json)
    check("passes", onnxq("passes", "--json").json)


def test_eval() -> None:
    found = {"metric": "top1", "output": "y", "value": None, "samples": 3, "counted": 3, "standard_error": None}
    check("eval", {"evaluations": [{**found, "seconds": 0.1, "provider": "CPUExecutionProvider", "data": "d"}]})


def test_an_error(onnxq: Command, tmp_path: Path) -> None:
    done = onnxq("inspect", tmp_path / "gone.onnx", "--json")
    assert done.code == 2
    check("error", done.json)


def test_what_breaks_a_schema_is_seen(onnxq: Command, model: Path) -> None:
    found = onnxq("inspect", model, "--json").json
    for other in ({**found, "new": 1}, {k: v for k, v in found.items() if k != "opset"}, {**found, "opset": "17"}):
        with pytest.raises(jsonschema.ValidationError):
            check("inspect", other)
    jsonschema.validate({**found, "new": 1}, schema("inspect"))  # keys may be added


def test_schemas_are_printed(onnxq: Command) -> None:
    assert onnxq("schema", "validate").json == schema("validate")
    assert json.loads(onnxq("schema").out).keys() == DOCUMENTS.keys()
    done = onnxq("schema", "nothing")
    assert done.code == 2
    assert "prints no document" in done.err
    with pytest.raises(RecipeError):
        schema("nothing")
