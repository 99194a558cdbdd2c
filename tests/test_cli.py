"""The command line: every command, every option, what it prints where, and its exit codes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import onnx
import pytest
from rich.console import Console

from onnxq import api, recipe, tables, wishes
from onnxq.inspection import Summary
from onnxq.passes import PIPELINES
from onnxq.proof import FloatNode, Proof
from onnxq.result import Result

if TYPE_CHECKING:
    from tests.conftest import Clock, Command

COMMANDS = ("optimize", "calibrate", "inspect", "validate", "eval", "bench", "passes")
STATIC = ("--recipe", "static-int8")
"""What no time decides about."""

FAST = ("--no-validate", "--json", "--quiet")
"""Enough to see what was decided."""


def python(*words: object, code: str | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """`python -m onnxq`, or a program, in a process of its own."""
    start = ["-c", code] if code is not None else ["-m", "onnxq"]
    command = [sys.executable, *start, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def test_help_is_quick_because_it_imports_nothing_heavy() -> None:
    code = (
        "import sys; from onnxq.__main__ import run\n"
        "codes = [run(words) for words in (['--help'], ['optimize', '--help'], ['--version'], ['--wrong'])]\n"
        "assert codes == [0, 0, 0, 2], codes\n"
        "assert not {'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)"
    )
    done = python(code=code)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(onnxq: Command, command: str) -> None:
    done = onnxq(command, "--help")
    assert (done.code, done.err) == (0, "")
    assert "--json" in done.out
    assert "--quiet" in done.out


def test_help_names_every_choice(onnxq: Command) -> None:
    said = " ".join(onnxq("optimize", "--help").out.replace("│", " ").split())
    for choices in (recipe.RangeRule, recipe.ActivationFormat, recipe.WeightFormat, recipe.GraphFormat, recipe.Mode):
        assert all(choice in said for choice in get_args(choices))


def test_the_script_that_an_installation_makes() -> None:
    (script,) = entry_points(group="console_scripts", name="onnxq")
    assert script.value == "onnxq.__main__:main"


def test_python_m_onnxq(model: Path) -> None:
    done = python("inspect", model, "--json")
    assert (done.returncode, json.loads(done.stdout)["opset"]) == (0, 17)
    assert python("--version").stdout.startswith("onnxq ")


def test_no_command_is_wrong_use(onnxq: Command) -> None:
    done = onnxq()
    assert (done.code, done.out, done.err) == (2, "", "onnxq: error: Missing command. See 'onnxq --help'.\n")


# optimize


def test_json_is_one_document_and_tables_go_to_standard_error(onnxq: Command, model: Path, data: Path) -> None:
    done = onnxq("optimize", model, "--data", data, *STATIC, "--seconds", 0, "--json")
    assert done.code == 0
    assert done.json.keys() == set(Result.model_fields)
    assert done.json["proof"].keys() == set(Proof.model_fields)
    assert done.json["status"] == "optimized"
    assert done.json["output"] == str(model.with_name("model.int8.onnx"))
    assert "Latency" in done.err


def test_a_person_reads_tables_on_standard_output(onnxq: Command, model: Path, data: Path) -> None:
    words = ("--validation", data, *STATIC, "--seconds", 0, "--keep-float", "two")
    done = onnxq("optimize", model, "--data", data, *words)
    assert (done.code, done.err) == (0, "")
    for word in ("Size", "Latency", "cosine", "SQNR", "argmax", "Kernels", "1 thread", "batch of 1"):
        assert word in done.out
    assert "1 MatMul: The recipe keeps it in float. Such as two." in done.out
    assert "calibrated on 24 samples; validated on" in done.out
    assert "model.int8.onnx" in done.out
    assert len(done.out.splitlines()) <= 40


def test_quiet_says_nothing(onnxq: Command, model: Path, data: Path) -> None:
    done = onnxq("optimize", model, "--data", data, "--no-validate", "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert model.with_name("model.int8.onnx").exists()


@pytest.mark.parametrize(
    ("words", "place", "value"),
    [
        (["--recipe", "auto"], ("mode",), "mixed-int8"),
        (["--recipe", "mixed-int8"], ("mode",), "mixed-int8"),
        (["--recipe", "static-int8"], ("mode",), "static-int8"),
        (["--recipe", "dynamic-int8"], ("mode",), "dynamic-int8"),
        (["--recipe", "weight-int8"], ("mode",), "weight-int8"),
        (["--target", "cpu"], ("plan", "recipe", "target"), "cpu"),
        (["--activations", "int8", "--format", "qdq"], ("plan", "tensors", "x", "format"), "int8"),
        (["--symmetric"], ("plan", "tensors", "x", "zero_point"), 128),
        (["--affine"], ("plan", "recipe", "activation", "symmetric"), False),
        (["--per-tensor"], ("plan", "nodes", "two", "per_channel"), False),
        (["--per-channel"], ("plan", "nodes", "two", "per_channel"), True),
        (["--weights", "uint8"], ("plan", "recipe", "weight", "format"), "uint8"),
        (["--no-balance"], ("plan", "recipe", "balance"), False),
        (["--balance"], ("plan", "recipe", "balance"), True),
        (["--least-sqnr", "0"], ("plan", "recipe", "least_sqnr"), 0.0),
        (["--range", "percentile", "--percent", "90"], ("plan", "recipe", "activation", "percent"), 90.0),
        (["--samples", "5"], ("calibrated",), 5),
        (["--no-validate"], ("proof",), None),
    ],
)
def test_an_option_shows_in_the_result(
    onnxq: Command, model: Path, data: Path, words: list[str], place: tuple[str, ...], value: object
) -> None:
    found = onnxq("optimize", model, "--data", data, *STATIC, *words, *FAST).json
    for key in place:
        found = found[key]
    assert found == value


def test_contract_flags_show_in_the_recipe_of_the_plan(onnxq: Command, model: Path, data: Path) -> None:
    words = ("--metric", "cosine", "--max-drop", "50%", "--min-speedup", 0, "--max-size", "500KB", "--seconds", 0)
    done = onnxq("optimize", model, "--data", data, *STATIC, *words, "--json")
    assert done.json["plan"]["recipe"]["contract"] == {
        "metric": "cosine",
        "max_drop": 0.5,
        "min_speedup": 0.0,
        "max_size": 500_000,
    }
    score = done.json["proof"]["score"]
    assert (score["metric"], score["output"], score["samples"]) == ("cosine", "y", 6)
    assert 0 < score["drop"] < 0.01
    assert "The mean cosine of output 'y' to the float model's is" in done.err
    assert "(limit 50)" in done.err


@pytest.mark.usefixtures("clock")
def test_what_breaks_the_contract_ends_with_1(onnxq: Command, model: Path, data: Path) -> None:
    best, before = model.with_name("best.onnx"), sorted(model.parent.iterdir())
    words = ("optimize", model, "--data", data, "--min-speedup", 100)
    done = onnxq(*words)
    assert done.code == 1
    assert "rejected, mixed-int8" in done.out
    assert "2 times the float model's speed, below the 100 that --min-speedup asks for." in " ".join(done.out.split())
    assert "Best kept" not in done.out
    assert sorted(model.parent.iterdir()) == before
    done = onnxq(*words, "--keep-best", best, "--json")
    assert (done.code, done.json["status"], done.json["output"], done.json["kept"]) == (1, "rejected", None, str(best))
    assert "Best kept" in done.err
    assert "MatMulIntegerToFloat" in operators(best)
    assert not model.with_name("model.int8.onnx").exists()


def test_what_is_too_slow_is_left_alone_and_ends_with_0(onnxq: Command, model: Path, data: Path, clock: Clock) -> None:
    clock.speedups = [0.5]
    done = onnxq("optimize", model, "--data", data)
    assert done.code == 0
    assert "model.onnx: left alone" in done.out
    assert "0.5 times the float model's speed" in done.out
    assert model.with_name("model.int8.onnx").read_bytes() == model.read_bytes()


def test_notes_about_the_contract_are_warnings(onnxq: Command, model: Path, clock: Clock) -> None:
    note = "The accuracy was not judged: the data is random. Give --data."
    for speedup in (2.0, 0.5):
        clock.speedups = [speedup]
        done = onnxq("optimize", model, "--no-cache", "--json")
        assert note in done.json["warnings"]
        assert note in done.err


def test_what_was_measured_is_remembered(onnxq: Command, model: Path, data: Path, tmp_path: Path, clock: Clock) -> None:
    places: dict[str, list[object]] = {"here": ["--cache", tmp_path / "cache"], "usual": [], "nowhere": ["--no-cache"]}
    usual = Path(os.environ["ONNXQ_CACHE"])
    for name, words in places.items():
        clock.speedups = [2.0]
        first = onnxq("optimize", model, "-o", tmp_path / f"{name}.onnx", "--data", data, *words, "--json").json
        clock.speedups = [0.5]
        again = onnxq("optimize", model, "-o", tmp_path / f"{name}.onnx", "--data", data, *words, "--json").json
        assert first["status"] == "optimized"
        assert again["status"] == ("left alone" if name == "nowhere" else "optimized")
        assert (tmp_path / "cache").is_dir()
        assert bool(list(usual.iterdir())) == (name != "here")


def test_nothing_is_remembered_outside_of_the_tests() -> None:
    folder = python(code="from onnxq.memo import default_folder; print(default_folder())").stdout.strip()
    assert folder == os.environ["ONNXQ_CACHE"]
    assert not Path(folder).is_relative_to(Path.home() / ".cache")


def test_contract_flags_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('[contract]\nmetric = "kl"\nmax_drop = "2%"\n')
    wish = wishes.make_wish(str(file), {"contract": {"metric": None, "max_drop": "3%", "max_size": "30%"}})
    assert wish.contract == recipe.Contract(metric="kl", max_drop=0.03, max_size="30%")


@pytest.mark.parametrize("rule", [r for r in get_args(recipe.RangeRule) if r != "auto"])
def test_range_rules(onnxq: Command, model: Path, data: Path, rule: str) -> None:
    plan = onnxq("optimize", model, "--data", data, *STATIC, "--range", rule, *FAST).json["plan"]
    assert rule in plan["tensors"]["x"]["reason"]


@pytest.mark.parametrize("pattern", ["one", "MatMul", "on?"])
def test_keep_float_takes_a_name_an_operator_or_a_pattern(
    onnxq: Command, model: Path, data: Path, pattern: str
) -> None:
    found = onnxq("optimize", model, "--data", data, "--keep-float", "two", "--keep-float", pattern, *FAST).json
    assert found["status"] == "left alone"
    assert "The recipe keeps it in float." in found["reason"]


def test_keep_float_of_one_node(onnxq: Command, model: Path, data: Path) -> None:
    nodes = onnxq("optimize", model, "--data", data, *STATIC, "--keep-float", "two", *FAST).json["plan"]["nodes"]
    assert [nodes[name]["treatment"] for name in ("one", "two")] == ["static", "float"]


def test_format_qdq(onnxq: Command, model: Path, data: Path, tmp_path: Path) -> None:
    for name, marker in (("integer", "MatMulIntegerToFloat"), ("qdq", "DequantizeLinear")):
        words = ("--data", data, *STATIC, "--format", name)
        assert onnxq("optimize", model, "-o", tmp_path / name, *words, *FAST).code == 0
        assert marker in operators(tmp_path / name)
    assert "MatMulIntegerToFloat" not in operators(tmp_path / "qdq")


def test_threads_and_batch_are_what_is_measured(onnxq: Command, model: Path, data: Path) -> None:
    words = (*STATIC, "--threads", 2, "--batch", 3, "--seconds", 0, "--json", "--quiet")
    proof = onnxq("optimize", model, "--data", data, *words).json["proof"]
    assert (proof["threads"], proof["batch"]) == (2, 3)


def test_a_memory_limit_changes_no_byte(onnxq: Command, model: Path, data: Path, tmp_path: Path) -> None:
    for name, memory in (("free", []), ("tight", ["--memory", "1KB"])):
        assert onnxq("optimize", model, "-o", tmp_path / name, "--data", data, *STATIC, *memory, *FAST).code == 0
    assert (tmp_path / "free").read_bytes() == (tmp_path / "tight").read_bytes()


def test_twice_the_same_command_gives_the_same_bytes(onnxq: Command, model: Path, data: Path, tmp_path: Path) -> None:
    for name in ("once", "twice"):
        words = (*STATIC, "-o", tmp_path / f"{name}.onnx", "--save-plan", tmp_path / f"{name}.json")
        assert onnxq("optimize", model, "--data", data, *words, *FAST).code == 0
    for kind in ("onnx", "json"):
        assert (tmp_path / f"once.{kind}").read_bytes() == (tmp_path / f"twice.{kind}").read_bytes()


# recipes


def test_flags_override_the_file(onnxq: Command, model: Path, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(
        'mode = "static-int8"\n[activation]\nrange = "entropy"\nformat = "int8"\n[nodes."*"]\nper_channel = false\n'
    )
    words = ("--recipe", file, "--range", "minmax", "--keep-float", "two")
    plan = onnxq("optimize", model, "--data", data, *words, *FAST).json["plan"]
    assert plan["recipe"]["activation"]["range"] == "minmax"
    assert plan["recipe"]["activation"]["format"] == "int8"
    assert plan["nodes"]["one"]["per_channel"] is False
    assert plan["nodes"]["two"]["treatment"] == "float"


def test_a_pattern_of_the_flags_goes_before_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text("[nodes.a]\nper_channel = false\n[nodes.b]\nper_channel = false\n")
    wish = wishes.make_wish(str(file), {"nodes": {"b": {"quantize": False}}})
    assert list(wish.nodes) == ["b", "a"]
    assert not wish.override("b", "Conv").quantize


def test_a_file_keeps_what_no_flag_says(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text("[weight]\nblock_size = 64\nper_channel = false\n")
    wish = wishes.make_wish(str(file), {"weight": {"format": "uint8", "per_channel": None}})
    assert wish.weight == recipe.Weight(block_size=64, per_channel=False, format="uint8")


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ("1000", 1000),
        ("500MB", 500_000_000),
        ("2GB", 2_000_000_000),
        ("2 GiB", 2 << 30),
        ("1.5kb", 1500),
        ("3B", 3),
        ("1TiB", 1 << 40),
    ],
)
def test_memory_sizes(size: str, count: int) -> None:
    assert wishes.bytes_of(size) == count


# plans and statistics


def test_a_saved_plan_gives_the_same_model_without_data(
    onnxq: Command, model: Path, data: Path, tmp_path: Path
) -> None:
    plan, first, second = tmp_path / "plan.json", tmp_path / "first.onnx", tmp_path / "second.onnx"
    assert onnxq("optimize", model, "-o", first, "--data", data, *STATIC, "--save-plan", plan, *FAST).code == 0
    done = onnxq("optimize", model, "-o", second, "--plan", plan, *FAST)
    assert (done.code, done.json["mode"]) == (0, "static-int8")
    assert first.read_bytes() == second.read_bytes()


def test_an_edited_plan_is_followed(onnxq: Command, model: Path, data: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    onnxq("optimize", model, "--data", data, *STATIC, "--save-plan", plan, *FAST)
    edited = json.loads(plan.read_text())
    edited["nodes"]["two"]["treatment"] = "float"
    plan.write_text(json.dumps(edited))
    output = tmp_path / "edited.onnx"
    assert onnxq("optimize", model, "-o", output, "--plan", plan, *FAST).code == 0
    assert "MatMul" in operators(output)


def test_where_nothing_is_decided_no_plan_is_written(onnxq: Command, model: Path, tmp_path: Path) -> None:
    words = ("--keep-float", "MatMul", "--save-plan", tmp_path / "plan.json")
    done = onnxq("optimize", model, *words, *FAST)
    assert (done.code, done.json["status"]) == (0, "left alone")
    assert "no plan was written" in done.json["warnings"][-1]
    assert not (tmp_path / "plan.json").exists()
    assert "left alone" in onnxq("optimize", model, *words).out


def test_statistics_stand_for_the_data(onnxq: Command, model: Path, data: Path, tmp_path: Path) -> None:
    array = np.load(data)["x"]
    files = []
    for name, part in (("a", array[:12]), ("b", array[12:])):
        np.savez(tmp_path / f"{name}.npz", x=part)
        files += ["--statistics", tmp_path / f"{name}.stats.npz"]
        done = onnxq("calibrate", model, "-o", files[-1], "--data", tmp_path / f"{name}.npz", "--json", "--quiet")
        assert done.json == {"output": str(files[-1]), "samples": 12, "tensors": 2, "non_finite": {}}
    split, whole = tmp_path / "split.onnx", tmp_path / "whole.onnx"
    rule = (*STATIC, "--range", "entropy")
    joined = onnxq("optimize", model, "-o", split, *files, *rule, *FAST).json["plan"]["tensors"]
    words = ("--data", data, "--validation", data)
    direct = onnxq("optimize", model, "-o", whole, *words, *rule, *FAST).json["plan"]["tensors"]
    for name in ("x", "c"):
        assert (joined[name]["low"], joined[name]["high"]) == (direct[name]["low"], direct[name]["high"])


def test_calibrate_options(onnxq: Command, model: Path, data: Path, tmp_path: Path) -> None:
    def statistics(*words: object) -> tuple[dict[str, Any], bytes]:
        done = onnxq("calibrate", model, "--output", tmp_path / "s.npz", "--data", data, *words, "--json")
        assert "Statistics" in done.err
        return done.json, (tmp_path / "s.npz").read_bytes()

    found, plain = statistics("--recipe", "static-int8", "--target", "cpu")
    assert (found["tensors"], found["samples"]) == (2, 24)
    assert statistics("--memory", "1KB", "--threads", 1)[1] == plain
    assert statistics("--samples", 7)[0]["samples"] == 7
    assert statistics("--keep-float", "two")[0]["tensors"] == 1


# found wanting


@pytest.fixture
def broken_plan(onnxq: Command, model: Path, data: Path, tmp_path: Path) -> Path:
    """A plan whose scales are so large that everything becomes 0."""
    plan = tmp_path / "broken.json"
    onnxq("optimize", model, "--data", data, *STATIC, "--save-plan", plan, *FAST)
    model.with_name("model.int8.onnx").unlink()
    edited = json.loads(plan.read_text())
    for tensor in edited["tensors"].values():
        tensor["scale"] *= 1000
    plan.write_text(json.dumps(edited))
    return plan


def test_a_rejected_model_is_not_written(onnxq: Command, model: Path, data: Path, broken_plan: Path) -> None:
    before = sorted(model.parent.iterdir())
    words = ("optimize", model, "--data", data, "--plan", broken_plan, "--seconds", 0)
    done = onnxq(*words, "--json")
    assert (done.code, done.json["status"], done.json["output"]) == (1, "rejected", None)
    assert "mean cosine" in done.json["reason"]
    assert "rejected" in done.err
    assert sorted(model.parent.iterdir()) == before


def test_force_writes_it_nevertheless(onnxq: Command, model: Path, data: Path, broken_plan: Path) -> None:
    done = onnxq("optimize", model, "--data", data, "--plan", broken_plan, "--seconds", 0, "--force")
    assert done.code == 0
    assert model.with_name("model.int8.onnx").exists()


def test_the_plan_of_a_rejected_model_is_saved_to_be_edited(
    onnxq: Command, model: Path, data: Path, broken_plan: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again.json"
    words = ("--plan", broken_plan, "--save-plan", again, "--seconds", 0, "--quiet")
    assert onnxq("optimize", model, "--data", data, *words).code == 1
    assert json.loads(again.read_text()) == json.loads(broken_plan.read_text())


@pytest.fixture
def pair(onnxq: Command, model: Path, data: Path) -> tuple[Path, Path]:
    """The float model and the quantized one."""
    onnxq("optimize", model, "--data", data, *STATIC, *FAST)
    return model, model.with_name("model.int8.onnx")


def test_validate_passes_and_prints_tables(onnxq: Command, pair: tuple[Path, Path], data: Path) -> None:
    words = ("--min-cosine", 0.99, "--min-agreement", 0.5, "--threads", 1, "--batch", 2, "--seconds", 0)
    done = onnxq("validate", *pair, "--data", data, *words)
    assert (done.code, done.err) == (0, "")
    assert "Passed." in done.out
    assert "batch of 2" in done.out


@pytest.mark.parametrize(
    ("threshold", "reason"), [(["--min-cosine", "1"], "mean cosine"), (["--min-agreement", "1"], "agrees in")]
)
def test_validate_below_a_threshold(
    onnxq: Command, model: Path, data: Path, broken_plan: Path, threshold: list[str], reason: str
) -> None:
    onnxq("optimize", model, "--plan", broken_plan, *FAST)
    words = ("--min-cosine", -1, *threshold, "--seconds", 0, "--json", "--providers", "CPUExecutionProvider")
    done = onnxq("validate", model, model.with_name("model.int8.onnx"), "--data", data, *words)
    assert (done.code, done.json["passed"]) == (1, False)
    assert reason in done.json["reasons"][0]
    assert reason in done.err
    assert done.json["proofs"][0].keys() == set(Proof.model_fields)


def test_validate_judges_the_drop_that_is_asked_for(
    onnxq: Command, pair: tuple[Path, Path], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("validate", *pair, "--data", data, "--seconds", 0)
    done = onnxq(*words, "--metric", "sqnr", "--max-drop", "0%", "--json")
    assert (done.code, done.json["passed"]) == (1, False)
    (reason,) = done.json["reasons"]
    assert reason.startswith("On CPUExecutionProvider: The noise of output 'y' is ")
    assert reason.endswith("% of its signal (limit 0).")
    assert "(limit 0)" in done.err
    passed = onnxq(*words, "--metric", "sqnr", "--max-drop", "50%")
    assert passed.code == 0
    assert "The noise of output 'y'" in passed.out
    assert "(limit 50)" in passed.out
    unjudged = onnxq(*words, "--metric", "kl")
    assert unjudged.code == 0
    assert "nats." in unjudged.out
    assert "limit" not in unjudged.out


def test_validate_with_a_function_of_the_users(
    onnxq: Command, pair: tuple[Path, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text("def size(outputs, feeds, labels): return len(outputs['y']) - len(feeds['x']) + 2")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    done = onnxq("validate", *pair, "--data", data, "--seconds", 0, "--metric", "own:size", "--json", "--quiet")
    score = done.json["proofs"][0]["score"]
    assert (score["metric"], score["float_value"], score["value"], score["drop"]) == ("own:size", 2, 2, 0)


def test_validate_finds_new_infinities(onnxq: Command, model: Path, data: Path, tmp_path: Path) -> None:
    broken = onnx.load(model)
    weights = next(w for w in broken.graph.initializer if w.name == "second")
    weights.CopyFrom(onnx.numpy_helper.from_array(np.full((32, 4), np.inf, np.float32), "second"))
    onnx.save(broken, tmp_path / "broken.onnx")
    words = ("--min-cosine", -1, "--seconds", 0, "--json", "--quiet")
    done = onnxq("validate", model, tmp_path / "broken.onnx", "--data", data, *words)
    assert done.code == 1
    assert done.json["reasons"] == [
        "Output 'y' on CPUExecutionProvider holds NaN or infinity where the float model's does not."
    ]


# the other commands


def test_bench(onnxq: Command, pair: tuple[Path, Path], data: Path) -> None:
    words = ("--data", data, "--threads", 1, "--batch", 4, "--seconds", 0, "--providers", "CPUExecutionProvider")
    done = onnxq("bench", *pair, *words, "--json")
    first, second = done.json["models"]
    assert (first["model"], second["model"]) == tuple(map(str, pair))
    assert (first["batch"], first["threads"], first["speedup"]) == (4, 1, 1.0)
    assert "MatMulIntegerToFloat" in second["kernels"]
    assert "latency" in done.err
    assert "latency" in onnxq("bench", pair[0], "--seconds", 0).out  # random data


def test_inspect(onnxq: Command, pair: tuple[Path, Path]) -> None:
    found = onnxq("inspect", pair[1], "--json", "--quiet").json
    assert found.keys() == set(Summary.model_fields)
    assert found["quantized"] == "integer operators"
    said = onnxq("inspect", pair[1]).out
    assert "x: float32[batch, 16]" in said
    assert "per channel" in said
    assert "0 of 2 layers on integers" in onnxq("inspect", pair[0]).out


def test_passes_lists_them_in_order(onnxq: Command) -> None:
    names = [type(step).__name__ for steps in PIPELINES.values() for step in steps]
    done = onnxq("passes", "--json")
    assert [found["name"] for found in done.json["passes"]] == names
    assert all(name in done.err for name in names)


# progress


def test_progress_tells_rate_and_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    paper = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(tables, "console", lambda *, stderr: paper)
    bars = tables.Bars()
    for done in (0, 2, 4):
        bars("calibrate", done, 4)
    bars("validate", 1, 2)
    bars.close()
    said = screen.getvalue()
    for word in ("calibrate", "4/4", "/s", "0:00", "validate", "1/2"):
        assert word in said


def test_a_log_is_told_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    bars = tables.Bars()
    bars("calibrate", 1, 2)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(tables, "SILENCE", 0.0)
    bars("train: loss 0.5", 1200, 2000)
    monkeypatch.undo()
    bars("validate", 1, 2)
    bars.close()
    assert capsys.readouterr() == ("", "train: loss 0.5: 1,200 of 2,000\n")
    quiet = tables.Bars(silent=True)
    monkeypatch.setattr(tables, "SILENCE", 0.0)
    quiet("calibrate", 1, 2)
    assert capsys.readouterr() == ("", "")


def test_what_functions_of_the_user_print_is_no_part_of_the_json(
    onnxq: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "import numpy as np\ndef f():\n print('loud')\n return {'pixels': np.zeros((2, 1, 32, 32), np.float32)}\n"
    (tmp_path / "loud_data.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    digits = Path(__file__).parents[1] / "models" / "digits.onnx"
    done = onnxq("bench", digits, "--data", "python:loud_data:f", "--seconds", 0, "--json")
    assert (done.code, len(done.json["models"])) == (0, 1)
    assert "loud" in done.err


# tables


def test_float_nodes_are_grouped_by_reason_layers_first() -> None:
    nodes = [
        FloatNode(node="s", op="Softmax", reason="There is no integer kernel for Softmax."),
        FloatNode(node="e", op="Erf", reason="There is no integer kernel for Erf."),
        FloatNode(node="m", op="MatMul", reason="It multiplies two activations."),
    ]
    groups = tables.float_groups(nodes)
    assert [reason for _, reason, _ in groups] == [
        "It multiplies two activations.",
        "There is no integer kernel for it.",
    ]
    assert dict(groups[1][0]) == {"Softmax": 1, "Erf": 1}


def test_names_with_brackets_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    tables.console().print("x[red] :smile: [/]")
    assert capsys.readouterr().out == "x[red] :smile: [/]\n"


def test_json_knows_no_nan(onnxq: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        api, "describe_passes", lambda: [{"stage": float("nan"), "name": "", "does": "", "promise": ""}]
    )
    assert onnxq("passes", "--json", "--quiet").json == {
        "passes": [{"stage": None, "name": "", "does": "", "promise": ""}]
    }


# how it ends


def failing(error: BaseException) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_ctrl_c_is_one_line(onnxq: Command, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "inspect", failing(KeyboardInterrupt()))
    done = onnxq("inspect", model)
    assert (done.code, done.out, done.err) == (130, "", "onnxq: error: Stopped.\n")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device", "/disk/file"), MemoryError()])
def test_what_the_machine_lacks_is_one_line(
    onnxq: Command, model: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(api, "inspect", failing(error))
    done = onnxq("inspect", model)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert ("/disk/file" in done.err) == isinstance(error, OSError)


def test_a_defect_of_ours_shows_its_traceback(onnxq: Command, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "inspect", failing(RuntimeError("oh")))
    done = onnxq("inspect", model, "--json")
    assert done.code == 3
    assert "Traceback" in done.err
    assert "report" in done.err.splitlines()[-1]
    assert done.json["error"]["type"] == "RuntimeError"


def test_a_closed_pipe_is_quiet(model: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen(
        [sys.executable, "-m", "onnxq", "inspect", str(model)], stdout=writer, stderr=subprocess.PIPE
    ) as process:
        os.close(writer)
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to catch.")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_leaves_nothing_behind(model: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    (tmp_path / "slow.py").write_text(
        "import glob, os, time\n"
        "import numpy as np\n"
        "class Slow:\n"
        "    def __len__(self): return 8\n"
        "    def __getitem__(self, index):\n"
        "        if index and glob.glob('.model.int8.onnx.*') and not os.path.exists('started'):\n"
        "            open('started', 'w').close(); time.sleep(60)\n"
        "        return {'x': np.ones((1, 16), np.float32)}\n"
        "def feeds(): return Slow()\n"
    )
    before = {path.name for path in tmp_path.iterdir()}
    words = ["optimize", str(model), "--data", "python:slow:feeds", "--recipe", "dynamic-int8"]
    ready = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a background job ignores it
    command = [sys.executable, "-B", "-c", f"{ready}; from onnxq.__main__ import main; main()", *words]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        while not (tmp_path / "started").exists():
            assert process.poll() is None
        assert list(tmp_path.glob(".model.int8.onnx.*")), "stopped while the model was half-written"
        process.send_signal(number)
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == code, said
    assert said == b"onnxq: error: Stopped.\n"
    assert {path.name for path in tmp_path.iterdir()} == before | {"started"}


def test_a_terminal_without_unicode(model: Path) -> None:
    renamed = onnx.load(model)
    renamed.graph.input[0].name = renamed.graph.node[0].input[0] = "größe"
    onnx.save(renamed, model)
    done = python("inspect", model, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "gr??e: float32[batch, 16]" in done.stdout
