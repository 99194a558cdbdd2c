"""Bad input: one line that names what is wrong and what to do, exit code 2, and every file as it was."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from tests.conftest import Command

Refused = Callable[..., str]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def refused(onnxq: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Run a command that must be refused. Returns the line that says why, which must hold all of the words."""
    scratch = tmp_path.with_name(tmp_path.name + "_scratch")
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))

    def command(*words: object, says: tuple[object, ...]) -> str:
        before, folders = contents(tmp_path), sorted(tmp_path.rglob("*"))
        done = onnxq(*words)
        assert done.code == 2, done
        assert done.out == ""
        assert done.err.startswith("onnxq: error: ")
        assert done.err.count("\n") == 1, done.err
        assert "Traceback" not in done.err
        for word in says:
            assert str(word) in done.err, done.err
        assert contents(tmp_path) == before
        assert sorted(tmp_path.rglob("*")) == folders
        assert not list(scratch.iterdir())
        as_json = onnxq(*words, "--json")
        assert as_json.code == 2
        assert as_json.json["error"]["message"] == as_json.err.removeprefix("onnxq: error: ").rstrip("\n")
        return as_json.err

    return command


# the model


def test_missing_file(refused: Refused, tmp_path: Path) -> None:
    for command in ("optimize", "inspect", "bench"):
        refused(command, tmp_path / "absent.onnx", says=("absent.onnx", "does not exist", "Check the path"))


def test_a_folder(refused: Refused, tmp_path: Path) -> None:
    refused("optimize", tmp_path, says=(tmp_path, "is a folder"))


def test_an_empty_file(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    refused("optimize", tmp_path / "empty.onnx", says=("empty.onnx", "is empty"))


@pytest.mark.parametrize("content", [b"hello world, this is text", b"\x89PNG\r\n\x1a\n" + bytes(99), b"PK\x03\x04 zip"])
def test_not_an_onnx_file(refused: Refused, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.onnx").write_bytes(content)
    refused("optimize", tmp_path / "odd.onnx", says=("odd.onnx", "is not an ONNX model"))


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.999])
def test_a_truncated_file(refused: Refused, model: Path, share: float) -> None:
    content = model.read_bytes()
    model.write_bytes(content[: int(share * len(content))])
    refused("optimize", model, says=("model.onnx",))


@pytest.fixture
def external(model: Path) -> Path:
    """The model with its weights in a file beside it."""
    path = model.with_name("external.onnx")
    onnx.save(onnx.load(model), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def test_missing_external_data(refused: Refused, external: Path) -> None:
    external.with_name("weights.bin").unlink()
    refused("optimize", external, says=("external.onnx", "weights.bin", "missing"))


def test_external_data_that_was_cut_off(refused: Refused, external: Path) -> None:
    weights = external.with_name("weights.bin")
    weights.write_bytes(weights.read_bytes()[:-10])
    refused("optimize", external, says=("external.onnx", "weights.bin", "bytes"))


@pytest.mark.parametrize("place", ["../weights.bin", "/etc/hostname", "sub/../../weights.bin"])
def test_external_data_outside_the_folder(refused: Refused, external: Path, place: str) -> None:
    stored = onnx.load(external, load_external_data=False)
    for tensor in stored.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = place
    external.write_bytes(stored.SerializeToString())
    refused("optimize", external, says=("external.onnx", place, "outside the model's folder"))


def change(path: Path, edit: Callable[[onnx.ModelProto], Any]) -> None:
    """Edit a model in its file."""
    changed = onnx.load(path)
    edit(changed)
    path.write_bytes(changed.SerializeToString())


def test_unknown_operator(refused: Refused, model: Path, data: Path) -> None:
    change(model, lambda m: setattr(m.graph.node[2], "op_type", "Relu7"))
    refused("optimize", model, "--data", data, says=("model.onnx", "Relu7"))


def test_unknown_domain(refused: Refused, model: Path, data: Path) -> None:
    def edit(stored: onnx.ModelProto) -> None:
        stored.graph.node[2].domain = "com.example"
        stored.opset_import.append(helper.make_opsetid("com.example", 1))

    change(model, edit)
    refused("optimize", model, "--data", data, says=("model.onnx", "com.example"))


def test_a_domain_that_is_not_imported(refused: Refused, model: Path, data: Path) -> None:
    change(model, lambda m: setattr(m.graph.node[2], "domain", "com.example"))
    refused("optimize", model, "--data", data, says=("model.onnx", "com.example"))


def test_an_opset_newer_than_the_runtime(refused: Refused, model: Path, data: Path) -> None:
    change(model, lambda m: setattr(m.opset_import[0], "version", 1000))
    refused("optimize", model, "--data", data, says=("model.onnx", "1000", onnxruntime.__version__))


def test_duplicate_tensor_names(refused: Refused, model: Path, data: Path) -> None:
    def edit(stored: onnx.ModelProto) -> None:
        stored.graph.node[2].output[0] = "a"
        stored.graph.node[3].input[0] = "a"

    change(model, edit)
    refused("optimize", model, "--data", data, says=("model.onnx", "'a'"))


def test_a_tensor_that_nobody_makes(refused: Refused, model: Path, data: Path) -> None:
    change(model, lambda m: m.graph.node[2].input.__setitem__(0, "nowhere"))
    refused("optimize", model, "--data", data, says=("model.onnx", "nowhere"))


def test_a_weight_of_the_wrong_length(refused: Refused, model: Path, data: Path) -> None:
    change(model, lambda m: setattr(m.graph.initializer[0], "raw_data", b"123"))
    refused("optimize", model, "--data", data, says=("model.onnx", "first", "3 bytes"))


def test_shapes_that_do_not_fit(refused: Refused, model: Path, data: Path, tmp_path: Path) -> None:
    good = tmp_path / "good.onnx"
    good.write_bytes(model.read_bytes())
    wrong = numpy_helper.from_array(np.ones((7, 4), np.float32), "second")
    change(model, lambda m: m.graph.initializer[2].CopyFrom(wrong))
    for words in (["optimize"], ["calibrate", "-o", tmp_path / "s.npz"], ["validate", good], ["bench", good]):
        refused(*words, model, "--data", data, says=("model.onnx", "two", "MatMul"))
    refused("validate", model, good, "--data", data, says=("model.onnx", "two", "MatMul"))


# data


def stored(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


X = np.zeros((4, 16), np.float32)
EXPECTED = "x: float32[batch, 16]"


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"z": X}, ("z", EXPECTED)),
        ({"x": X[:, :5]}, ("x", EXPECTED)),
        ({"x": X[:, :, np.newaxis]}, ("x", EXPECTED)),
        ({"x": np.full((4, 16), "word")}, ("x", EXPECTED)),
        ({"x": X[:0]}, ("holds no samples", EXPECTED)),
        ({}, (EXPECTED,)),
    ],
)
@pytest.mark.parametrize("command", ["optimize", "calibrate", "validate", "bench"])
def test_data_that_does_not_fit(
    refused: Refused, model: Path, tmp_path: Path, arrays: dict[str, Any], says: tuple[str, ...], command: str
) -> None:
    wrong = stored(tmp_path / "wrong.npz", **arrays)
    more: dict[str, list[object]] = {"calibrate": ["-o", tmp_path / "s.npz"], "validate": [model]}
    refused(command, model, *more.get(command, []), "--data", wrong, says=("wrong.npz", *says))


def test_data_of_nan(refused: Refused, model: Path, tmp_path: Path) -> None:
    wrong = stored(tmp_path / "wrong.npz", x=np.full_like(X, np.nan))
    refused("optimize", model, "--data", wrong, says=("'x'", "NaN"))
    refused("calibrate", model, "-o", tmp_path / "s.npz", "--data", wrong, says=("'x'", "NaN"))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("absent.npz", ("absent.npz", "does not exist")),
        ("model.onnx", ("model.onnx", "no known kind")),
        ("broken.npz", ("broken.npz",)),
        ("empty", ("empty",)),
        ("imagse:folder", ("imagse", "images:FOLDER")),
        ("images:folder", ("rank", EXPECTED)),
        ("text:some.txt?tokenizer=t.json", ("input_ids", EXPECTED)),
        ("python:absent_module:function", ("absent_module",)),
        ("python:json:absent", ("absent",)),
        ("python:json", ("python:MODULE:FUNCTION",)),
    ],
)
def test_data_that_is_not_there(
    refused: Refused, model: Path, monkeypatch: pytest.MonkeyPatch, source: str, says: tuple[str, ...]
) -> None:
    monkeypatch.chdir(model.parent)
    Path("broken.npz").write_bytes(b"PK\x03\x04 this is no archive")
    Path("empty").mkdir()
    refused("optimize", "model.onnx", "--data", source, says=says)
    refused("optimize", "model.onnx", "--data", "random", "--validation", source, says=says)


def test_static_without_data(refused: Refused, model: Path) -> None:
    refused("optimize", model, "--recipe", "static-int8", says=("--data", "dynamic-int8"))


# the output


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("place", ["os.replace", "pathlib.Path.write_bytes", "tempfile.mkdtemp"])
def test_no_free_disk(refused: Refused, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    output = model.with_name("model.int8.onnx")
    output.write_bytes(b"what was there before")
    monkeypatch.setattr(place, full_disk)
    refused("optimize", model, "--data", data, says=("No space left on device",))


def test_no_free_disk_for_statistics(
    refused: Refused, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.replace", full_disk)
    refused("calibrate", model, "-o", tmp_path / "s.npz", "--data", data, says=("s.npz", "No space left"))


def test_no_free_disk_for_the_plan(
    onnxq: Command, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model was written whole before, and stays; of the plan there is nothing."""
    monkeypatch.setattr("pathlib.Path.write_text", full_disk)
    before = set(contents(tmp_path))
    words = ("--save-plan", tmp_path / "plan.json", "--no-validate")
    done = onnxq("optimize", model, "--data", data, *words)
    assert done.code == 2
    assert "plan.json" in done.err
    assert set(contents(tmp_path)) == before | {"model.int8.onnx"}


@pytest.mark.usefixtures("clock")  # the runtime's own profile would be cut off first
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of a file.")
def test_a_write_that_fails_half_way(refused: Refused, model: Path, external: Path, data: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: the first bytes are written, the others are not."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        refused("optimize", model, "--data", data, says=("model.int8.onnx", "File too large", "Free some space"))
        refused("optimize", external, "--data", data, says=("external.int8.onnx", "File too large"))
        refused("calibrate", model, "-o", tmp_path / "s.npz", "--data", data, says=("s.npz", "File too large"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_an_output_that_is_the_input(refused: Refused, model: Path, data: Path) -> None:
    link = model.with_name("link.onnx")
    link.symlink_to(model)
    for output in (model, link, model.parent / "." / model.name):
        refused("optimize", model, "-o", output, "--data", data, says=(output, "is the input model", "--output"))
        refused("calibrate", model, "-o", output, "--data", data, says=(output,))


def test_an_output_that_is_the_data(refused: Refused, model: Path, data: Path, tmp_path: Path) -> None:
    refused("optimize", model, "-o", data, "--data", data, says=(data, "--data"))
    refused("calibrate", model, "-o", data, "--data", data, says=(data, "--data"))
    refused("optimize", model, "--save-plan", data, "--data", data, says=(data, "--data"))
    refused("optimize", model, "--keep-best", data, "--data", data, says=(data, "--data"))


def test_two_outputs_in_one_file(refused: Refused, model: Path, data: Path, tmp_path: Path) -> None:
    same = tmp_path / "same"
    for one, other in (("-o", "--save-plan"), ("-o", "--keep-best"), ("--save-plan", "--keep-best")):
        says = (same, other, "Name two files")
        refused("optimize", model, one, same, other, tmp_path / "." / "same", "--data", data, says=says)
    usual = model.with_name("model.int8.onnx")
    refused("optimize", model, "--keep-best", usual, "--data", data, says=(usual, "Name two files"))
    refused("optimize", model, "--keep-best", model, "--data", data, says=(model, "is the input model"))


def test_a_folder_that_does_not_exist(refused: Refused, model: Path, data: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    refused("optimize", model, "-o", absent / "m.onnx", "--data", data, says=(absent, "does not exist"))
    refused("calibrate", model, "-o", absent / "s.npz", "--data", data, says=(absent, "does not exist"))
    for flag in ("--save-plan", "--keep-best"):
        refused("optimize", model, flag, absent / "file", "--data", data, says=(absent, "does not exist"))


def test_an_output_that_is_a_folder(refused: Refused, model: Path, data: Path, tmp_path: Path) -> None:
    refused("optimize", model, "-o", tmp_path, "--data", data, says=(tmp_path, "is a folder"))


def test_an_output_that_is_a_link_or_a_pipe(refused: Refused, model: Path, data: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.txt"
    elsewhere.write_text("mine")
    (tmp_path / "link.onnx").symlink_to(elsewhere)
    refused("optimize", model, "--data", data, "-o", tmp_path / "link.onnx", says=("link.onnx", "Name a plain file"))
    os.mkfifo(tmp_path / "pipe")
    refused("optimize", model, "--data", data, "-o", tmp_path / "pipe", says=("pipe", "Name a plain file"))
    refused("optimize", model, "--data", data, "-o", elsewhere / "x.onnx", says=("elsewhere.txt", "is no folder"))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="The superuser may write everywhere.")
def test_a_folder_that_may_not_be_written(refused: Refused, model: Path, data: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    refused("optimize", model, "-o", locked / "m.onnx", "--data", data, says=(locked, "cannot be written"))


def test_a_frontier_that_cannot_be_written(refused: Refused, model: Path, data: Path, tmp_path: Path) -> None:
    def no(place: Path, *says: object, words: tuple[object, ...] = ()) -> None:
        refused("optimize", model, "--data", data, "--frontier", place, *words, says=("--frontier", *says))

    no(data, data, "is no folder")
    no(data / "models", data, "does not exist")
    no(tmp_path / "absent" / "models", tmp_path / "absent", "does not exist", "Create it")
    first = tmp_path / "models" / "model.int8.1.onnx"
    first.parent.mkdir()
    no(first.parent, first, "this run needs it", words=("--keep-best", first))
    first.symlink_to(data)
    no(first.parent, first, "is no plain file")
    first.unlink()
    (tmp_path / "models" / "model.int8.5.onnx").mkdir()
    no(first.parent, "model.int8.5.onnx", "is no plain file")


def test_a_frontier_over_the_model(refused: Refused, model: Path, data: Path) -> None:
    own = model.rename(model.with_name("a.1.onnx"))
    words = ("--data", data, "-o", model.with_name("a.onnx"), "--frontier", model.parent)
    refused("optimize", own, *words, says=(own, "this run needs it", "--frontier"))
    weights = model.with_name("a.1.onnx.data")
    onnx.save(onnx.load(own), model, save_as_external_data=True, location=weights.name, size_threshold=0)
    own.unlink()
    refused("optimize", model, *words, says=(weights, "this run needs it", "--frontier"))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="The superuser may write everywhere.")
def test_a_frontier_in_a_folder_that_may_not_be_written(
    refused: Refused, model: Path, data: Path, tmp_path: Path
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    for place in (locked, locked / "models"):
        refused("optimize", model, "--data", data, "--frontier", place, says=(locked, "cannot be written"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--no-validate"], "--no-validate leaves nothing to compare"),
        (["--recipe", "static-int8"], "one model, static-int8. Leave out --frontier, or"),
        (["--recipe", "dynamic-int8"], "one model, dynamic-int8"),
        (["--format", "qdq"], "--format qdq"),
        (["--statistics", "any.npz"], "--statistics"),
    ],
)
def test_a_frontier_of_one_model(
    refused: Refused, model: Path, data: Path, tmp_path: Path, words: list[str], says: str
) -> None:
    folder = tmp_path / "models"
    refused("optimize", model, "--data", data, *words, "--frontier", folder, says=(says, "--frontier"))


def test_a_frontier_without_data_or_by_a_plan(
    onnxq: Command, refused: Refused, model: Path, data: Path, tmp_path: Path
) -> None:
    folder, plan = tmp_path / "models", tmp_path / "plan.json"
    refused("optimize", model, "--frontier", folder, says=("--frontier", "Give --data"))
    saved = ("--recipe", "static-int8", "--no-validate", "--save-plan", plan)
    assert onnxq("optimize", model, "--data", data, *saved).code == 0
    refused("optimize", model, "--plan", plan, "--frontier", folder, says=("--plan makes one model", "--frontier"))


# recipes, plans, statistics


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("colour = 3\n", ("colour", "Unknown key")),
        ("[activation]\nrounding = 1\n", ("activation.rounding", "Unknown key")),
        ('mode = "int4"\n', ("mode", "int4")),
        ("[contract]\nspeed = 2\n", ("contract.speed", "Unknown key", "min_speedup")),
        ("[weight]\nblock_size = 48\n", ("weight.block_size", "48")),
        ("mode = = 3\n", ("recipe.toml", "TOML")),
        ("\ud800", ("recipe.toml", "TOML")),
    ],
)
def test_a_wrong_recipe(
    refused: Refused, model: Path, data: Path, tmp_path: Path, text: str, says: tuple[str, ...]
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_bytes(text.encode("utf-8", "surrogatepass"))
    refused("optimize", model, "--data", data, "--recipe", recipe, says=says)
    refused("calibrate", model, "-o", tmp_path / "s", "--data", data, "--recipe", recipe, says=says)


def test_a_recipe_that_is_not_there(refused: Refused, model: Path) -> None:
    refused("optimize", model, "--recipe", "static-int4", says=("static-int4", "static-int8", ".toml"))
    refused("optimize", model, "--recipe", "absent.toml", says=("absent.toml", "cannot be read"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--range", "widest"], ("widest", "percentile")),
        (["--format", "onnx"], ("onnx", "qdq")),
        (["--target", "tpu"], ("tpu", "cpu")),
        (["--activations", "int7"], ("int7", "uint8")),
        (["--weights", "int7"], ("int7", "uint8")),
        (["--range", "percentile", "--percent", "200"], ("percent", "200")),
        (["--range", "minmax", "--percent", "99"], ("--percent", "--range percentile")),
        (["--recipe", "dynamic-int8", "--format", "qdq"], ("--format integer",)),
        (["--memory", "lots"], ("--memory", "lots", "500MB")),
        (["--memory", "0"], ("--memory", "500MB")),
        (["--memory", "-5MB"], ("--memory", "-5MB")),
        (["--metric", "top5"], ("top5", "agreement", "MODULE:FUNCTION")),
        (["--metric", "top1"], ("top1", "labels", "data.npz")),
        (["--metric", "absent_module:f"], ("absent_module:f", "ModuleNotFoundError")),
        (["--metric", "json:absent"], ("json", "no function 'absent'")),
        (["--max-drop", "lots"], ("--max-drop", "lots", "0.5%")),
        (["--max-drop", "1"], ("--max-drop", "1 % or 100 %")),
        (["--min-speedup", "-1"], ("--min-speedup", "-1")),
        (["--max-size", "big"], ("--max-size", "big", "500MB")),
        (["--max-drop", "1%", "--no-validate"], ("--no-validate", "contract")),
        (["--keep-best", "best.onnx", "--no-validate"], ("--no-validate", "contract")),
        (["--cache", ".", "--no-cache"], ("--cache", "--no-cache", "one of them")),
        (["--cache", __file__], ("--cache", "onnxq optimize --help")),
        (["--samples", "0"], ("--samples", "onnxq optimize --help")),
        (["--samples", "many"], ("--samples", "onnxq optimize --help")),
        (["--threads", "-1"], ("--threads", "onnxq optimize --help")),
        (["--batch", "0"], ("--batch", "onnxq optimize --help")),
        (["--seconds", "-1"], ("--seconds", "onnxq optimize --help")),
        (["--colour"], ("--colour", "onnxq optimize --help")),
    ],
)
def test_a_wrong_value(refused: Refused, model: Path, data: Path, words: list[str], says: tuple[str, ...]) -> None:
    refused("optimize", model, "--data", data, *words, says=says)


def test_an_unknown_command(refused: Refused) -> None:
    refused("optimise", says=("optimise", "onnxq --help"))


@pytest.fixture
def plan(onnxq: Command, model: Path, data: Path, tmp_path: Path) -> Path:
    """A plan for the model."""
    path = tmp_path / "plan.json"
    words = ("--data", data, "--recipe", "static-int8", "--save-plan", path, "--no-validate")
    onnxq("optimize", model, "-o", tmp_path / "first.onnx", *words)
    return path


def other_model(path: Path) -> Path:
    """A model with other names."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "other")],
        "other",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 16])],
        [numpy_helper.from_array(np.eye(16, dtype=np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_plan_of_another_model(refused: Refused, plan: Path, tmp_path: Path) -> None:
    other = other_model(tmp_path / "other.onnx")
    refused("optimize", other, "--plan", plan, says=("plan", "does not have"))


def test_a_plan_without_a_range(refused: Refused, model: Path, plan: Path) -> None:
    edited = json.loads(plan.read_text())
    del edited["tensors"]["c"]
    plan.write_text(json.dumps(edited))
    refused("optimize", model, "--plan", plan, says=("'two'", "'c'"))


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda p: p.update(colour=3), ("colour", "plan")),
        (lambda p: p["nodes"]["one"].update(treatment="magic"), ("nodes.one.treatment", "magic")),
        (lambda p: p["tensors"]["x"].update(scale=-1), ("tensors.x.scale", "-1")),
        (lambda p: p["tensors"]["x"].update(zero_point=300), ("tensors.x.zero_point", "300")),
        (lambda p: p.pop("nodes"), ("nodes",)),
    ],
)
def test_a_wrong_plan(
    refused: Refused, model: Path, plan: Path, edit: Callable[[dict[str, Any]], object], says: tuple[str, ...]
) -> None:
    edited = json.loads(plan.read_text())
    edit(edited)
    plan.write_text(json.dumps(edited))
    refused("optimize", model, "--plan", plan, says=says)


def test_a_plan_that_is_no_plan(refused: Refused, model: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text("{ this is not")
    (tmp_path / "list.json").write_text("[1, 2]")
    refused("optimize", model, "--plan", tmp_path / "odd.json", says=("odd.json", "JSON"))
    refused("optimize", model, "--plan", tmp_path / "list.json", says=("plan",))
    refused("optimize", model, "--plan", tmp_path / "absent.json", says=("absent.json", "cannot be read"))


def test_a_plan_and_a_recipe(refused: Refused, model: Path, plan: Path) -> None:
    flags = (["--recipe", "auto"], ["--range", "mse"], ["--keep-float", "one"], ["--per-tensor"], ["--max-drop", "1%"])
    for words in flags:
        refused("optimize", model, "--plan", plan, *words, says=("--plan", "recipe"))


def test_a_plan_and_statistics(refused: Refused, model: Path, plan: Path, tmp_path: Path) -> None:
    words = ("--plan", plan, "--statistics", tmp_path / "s.npz")
    refused("optimize", model, *words, says=("--plan or --statistics, not both",))


def test_an_unknown_key_names_the_known_ones(refused: Refused, model: Path, data: Path, tmp_path: Path) -> None:
    for text, says in (("speed = 1", ("'speed'", "least_sqnr")), ("[activation]\nrnge = 'mse'", ("rnge", "percent"))):
        (tmp_path / "r.toml").write_text(text)
        refused("optimize", model, "--data", data, "--recipe", tmp_path / "r.toml", says=says)


def test_statistics_of_another_model(refused: Refused, onnxq: Command, model: Path, data: Path, tmp_path: Path) -> None:
    other, statistics = other_model(tmp_path / "other.onnx"), tmp_path / "s.npz"
    assert onnxq("calibrate", other, "-o", statistics, "--data", data).code == 0
    refused("optimize", model, "--statistics", statistics, says=("'c'",))


def test_statistics_that_are_none(refused: Refused, model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.npz").write_bytes(b"not an archive")
    refused("optimize", model, "--statistics", tmp_path / "odd.npz", says=("odd.npz",))
    refused("optimize", model, "--statistics", data, says=("data.npz",))
    refused("optimize", model, "--statistics", tmp_path / "absent.npz", says=("absent.npz",))


# providers and pairs of models


def test_an_absent_provider_names_the_present_ones(refused: Refused, model: Path, data: Path) -> None:
    says = ("QuantumExecutionProvider", *onnxruntime.get_available_providers())
    providers = ("--providers", "CPUExecutionProvider,QuantumExecutionProvider")
    refused("validate", model, model, "--data", data, *providers, says=says)
    refused("bench", model, *providers, says=says)


def test_models_that_cannot_be_compared(refused: Refused, model: Path, data: Path, tmp_path: Path) -> None:
    other = other_model(tmp_path / "other.onnx")
    change(other, lambda m: setattr(m.graph.input[0], "name", "z"))
    change(other, lambda m: m.graph.node[0].input.__setitem__(0, "z"))
    refused("validate", model, other, "--data", data, says=("inputs of the two models differ", "x", "z"))
    refused("bench", model, other, "--data", data, says=("inputs of the two models differ", "x", "z"))


def test_outputs_of_another_shape(refused: Refused, model: Path, data: Path, tmp_path: Path) -> None:
    other = other_model(tmp_path / "other.onnx")
    refused("validate", model, other, "--data", data, says=("'y'", "shape"))


def test_agreement_needs_a_classifier(refused: Refused, data: Path, tmp_path: Path) -> None:
    one = other_model(tmp_path / "one.onnx")
    change(one, lambda m: m.graph.output[0].type.tensor_type.shape.dim[1].__setattr__("dim_value", 1))
    change(one, lambda m: m.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((16, 1), np.float32), "w")))
    words = ("--seconds", 0, "--min-agreement", 0.9)
    refused("validate", one, one, "--data", data, *words, says=("--min-agreement", "--min-cosine"))


def test_a_drop_needs_real_data(refused: Refused, model: Path) -> None:
    words = ("--data", "random", "--seconds", 0, "--max-drop", "1%")
    refused("validate", model, model, *words, says=("--max-drop", "real data"))


def test_a_metric_that_does_not_fit(refused: Refused, model: Path, data: Path) -> None:
    words = ("--data", data, "--seconds", 0, "--metric")
    says = ("perplexity", "[batch, length] of tokens", "y float32[8, 4]")
    refused("validate", model, model, *words, "perplexity", says=says)
    refused("validate", model, model, *words, "top1", says=("labels",))
    refused("validate", model, model, *words, "math:fsum", says=("math:fsum", "TypeError"))
    refused("optimize", model, *words, "perplexity", says=("perplexity", "[batch, length] of tokens"))
