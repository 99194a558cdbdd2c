"""`finetune` as a whole: what it recovers, what comes out, what is refused, and that nothing is left half done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxq import api, finetuning
from onnxq.curriculum import Curriculum, Lesson
from onnxq.errors import DataError, ModelError, OutputError, RecipeError, UnsupportedModel
from onnxq.finetuning import finetune
from onnxq.options import Options
from onnxq.plan import Plan
from onnxq.proof import Proof
from onnxq.recipe import Recipe, make_recipe
from onnxq.result import Result
from onnxq.runtime import Session
from tests.conftest import two_layers
from tests.onnx_text import floats, read, serialize

pytest.importorskip("torch", reason="training needs PyTorch")

if TYPE_CHECKING:
    from tests.conftest import Command

MODELS = Path(__file__).parents[1] / "models"
DIGITS = MODELS / "digits.onnx"
QUICK = Options(seconds=0.01)
WORDS = ("--seconds", 0, "--train-threads", 1, "--steps", 4, "--train-batch", 8)
"""On the command line, as quick."""


def static(bits: int = 8, activation_bits: int = 8, **more: Any) -> Recipe:
    """A static recipe whose plan is made quickly."""
    weights = {"bits": bits, "rounding": "nearest"}
    activation = {"bits": activation_bits, "range": "minmax"}
    return make_recipe({"mode": "static-int8", "weight": weights, "activation": activation, **more})


def course(**wishes: Any) -> Curriculum:
    return Curriculum(**{"threads": 1, "steps": 4, "batch": 8, **wishes})


def quickly(model: Any, output: Path | None = None, **more: Any) -> Result:
    """A few steps with a recipe of 4 bits."""
    return finetune(model, output, **{"recipe": static(4), "curriculum": course(), "options": QUICK, **more})


def constants(path: Path | str) -> dict[str, np.ndarray]:
    graph = onnx.load(path).graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def operators(path: Path | str) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


@pytest.fixture(autouse=True)
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is measured in a process of its own, which takes longer than all else."""
    monkeypatch.setattr("onnxq.proof.loaded_memory", lambda *_: 0)


# what it recovers


@pytest.mark.parametrize(
    ("bits", "activation_bits", "lost", "seed"),
    [(3, 3, 0.04, 0), (2, 8, 0.3, 1)],
)
def test_most_of_what_rounding_loses_comes_back(
    bits: int, activation_bits: int, lost: float, seed: int, tmp_path: Path
) -> None:
    """Of 450 test images, after 40 steps on 175 others: 86 to 90 % of 4.7 points, 96 % of 48; two thirds are asked."""
    result = finetune(
        DIGITS,
        tmp_path / "out.onnx",
        data=MODELS / "digits_calibration.npz",
        validation=MODELS / "digits_test.npz",
        recipe=static(bits, activation_bits),
        curriculum=Curriculum(threads=1, steps=40, rate=0.03, seed=seed),
        options=QUICK,
    )
    before, after = (score_of(proof) for proof in (result.untrained, result.proof))
    assert before.metric == after.metric == "top1"
    assert before.drop > lost
    assert after.drop < before.drop / 3
    assert {"QLinearConv"} <= operators(tmp_path / "out.onnx")
    if activation_bits < 8:
        assert "Clip" in operators(tmp_path / "out.onnx")


WORDS_MODEL = """(int64[batch,length] input_ids) => (float[batch,length,300] logits) {
    [emb] e = Gather(table, input_ids) [one] h = MatMul(e, w) [act] t = Tanh(h) [two] logits = MatMul(t, head)
}"""
"""A language model that looks at the last token alone."""


def test_a_language_model_learns_from_text_that_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its divergence from the float model is halved: 0.0098 to 0.0049 nats."""
    monkeypatch.setattr(finetuning, "TEXTS", 64)
    monkeypatch.setattr("onnxq.imagined.LENGTH", 32)
    weights = {"table": floats(300, 160), "w": floats(160, 160, seed=4) / 8, "head": floats(160, 300, seed=5) / 8}
    (tmp_path / "words.onnx").write_bytes(serialize(read(WORDS_MODEL, weights)))
    wanted = {"mode": "weight-int4", "weight": {"method": "rtn"}, "contract": {"metric": "kl", "min_speedup": 0}}
    result = quickly(tmp_path / "words.onnx", recipe=make_recipe(wanted), curriculum=course(steps=150))
    assert result.output == str(tmp_path / "words.int4.onnx")
    assert result.lesson is not None
    assert result.lesson.after < 0.65 * result.lesson.before
    before, after = (score_of(proof) for proof in (result.untrained, result.proof))
    assert before.metric == after.metric == "kl"
    assert after.drop < 0.65 * before.drop
    assert "MatMul" not in operators(tmp_path / "words.int4.onnx")


def score_of(proof: Proof | None) -> Any:
    assert proof is not None
    assert proof.score is not None
    return proof.score


# what comes out


def test_the_interface_stays(model: Path, data: Path, tmp_path: Path) -> None:
    quickly(model, tmp_path / "out.onnx", data=data)
    before, after = onnx.load(model).graph, onnx.load(tmp_path / "out.onnx").graph
    assert list(before.input) == list(after.input)
    assert list(before.output) == list(after.output)
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"), full_check=True)
    found = Session(tmp_path / "out.onnx", threads=1).run({"x": np.ones((5, 16), np.float32)})
    assert found["y"].shape == (5, 4)


def test_the_result_tells_of_the_lesson(model: Path, data: Path, tmp_path: Path) -> None:
    result = quickly(model, tmp_path / "out.onnx", data=data, recipe=static(3))
    assert result.status == "optimized"
    assert result.output == str(tmp_path / "out.onnx")
    assert isinstance(result.lesson, Lesson)
    assert isinstance(result.untrained, Proof)
    assert isinstance(result.proof, Proof)
    assert result.untrained.cosine != result.proof.cosine
    assert result.lesson.looks[-1].step == 4
    assert result.lesson.samples + result.lesson.held + 6 == 24
    told = json.loads(result.model_dump_json())
    assert told["lesson"]["looks"][0] == {"step": 0, "loss": result.lesson.before}
    assert told["untrained"]["outputs"] == json.loads(result.untrained.model_dump_json())["outputs"]
    assert told["untrained"]["outputs"] != told["proof"]["outputs"]


def test_it_is_as_good_as_its_lesson_says(model: Path, data: Path, tmp_path: Path) -> None:
    """More steps, and the model that is written is closer to the float one than without training."""
    result = quickly(model, tmp_path / "out.onnx", data=data, validation=data, curriculum=course(steps=100, hold=0.5))
    assert result.proof is not None
    assert result.untrained is not None
    assert result.proof.cosine > result.untrained.cosine


def test_what_is_not_trained_keeps_its_bits(model: Path, data: Path, tmp_path: Path) -> None:
    kept = static(4, nodes={"two": {"quantize": False}})
    quickly(model, tmp_path / "out.onnx", data=data, recipe=kept)
    before, after = constants(model), constants(tmp_path / "out.onnx")
    assert operators(tmp_path / "out.onnx") >= {"MatMul", "QuantizeLinear"}
    np.testing.assert_array_equal(before["second"], after["second"], strict=True)


def test_a_model_in_memory_gives_no_file(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    result = quickly(two_layers(), data=data)
    assert (result.status, result.output) == ("optimized", None)
    assert result.lesson is not None
    assert sorted(tmp_path.iterdir()) == before


def test_the_name_of_the_output(model: Path, data: Path) -> None:
    assert quickly(model, data=data).output == str(model.with_name("model.int8.onnx"))


def test_the_same_bytes_on_each_run(model: Path, data: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        quickly(model, tmp_path / f"{name}.onnx", data=data, curriculum=course(steps=40))
    other = course(steps=40, seed=1)
    quickly(model, tmp_path / "other.onnx", data=data, curriculum=other)
    one, two, three = ((tmp_path / f"{name}.onnx").read_bytes() for name in ("one", "two", "other"))
    assert one == two
    assert one != three


def test_blocks_train_too(model: Path, data: Path, tmp_path: Path) -> None:
    result = quickly(model, tmp_path / "out.onnx", data=data, curriculum=course(method="blocks", steps=10))
    assert result.lesson is not None
    assert [look.step for look in result.lesson.looks] == [0, 1, 2]
    assert result.lesson.held == result.lesson.samples


def test_qdq_is_written_where_it_is_asked_for(model: Path, data: Path, tmp_path: Path) -> None:
    wanted = static(4, format="qdq")
    quickly(model, tmp_path / "out.onnx", data=data, recipe=wanted)
    assert {"QuantizeLinear", "DequantizeLinear", "MatMul"} <= operators(tmp_path / "out.onnx")


def test_plan_in_plan_out(model: Path, data: Path, tmp_path: Path) -> None:
    first = quickly(model, tmp_path / "one.onnx", data=data, curriculum=course(steps=20, rate=0.3))
    assert first.plan is not None
    assert {tensor.reason for tensor in first.plan.tensors.values()} == {"Learned in training."}
    again = Plan.model_validate_json(first.plan.to_json())
    second = finetune(
        model, tmp_path / "two.onnx", data=data, plan=again, curriculum=course(steps=1, rate=1e-6), options=QUICK
    )
    assert second.plan is not None
    assert second.plan.recipe == first.plan.recipe
    assert second.plan.nodes == first.plan.nodes
    for name, tensor in second.plan.tensors.items():
        assert tensor.scale == pytest.approx(first.plan.tensors[name].scale, rel=1e-4)
    untrained = api.optimize(model, tmp_path / "three.onnx", plan=again, validation=data, options=QUICK)
    assert untrained.plan is not None
    assert untrained.plan.tensors == first.plan.tensors


def test_a_contract_that_is_broken_writes_nothing(model: Path, data: Path, tmp_path: Path) -> None:
    wanted = static(2, contract={"metric": "cosine", "max_drop": 1e-9, "min_speedup": 0})
    result = quickly(model, tmp_path / "out.onnx", data=data, recipe=wanted)
    assert result.status == "rejected"
    assert "cosine" in result.reason
    assert result.lesson is not None
    assert not (tmp_path / "out.onnx").exists()


# what is refused


def conditional() -> onnx.ModelProto:
    """`two_layers` with an If behind it."""
    model = two_layers()
    graph = model.graph
    graph.node[-1].output[0] = "z"
    branches = {
        name: helper.make_graph(
            [helper.make_node(op, ["z"], [f"{name}_y"], f"{name}_node")],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, ["batch", 4])],
        )
        for name, op in (("then_branch", "Neg"), ("else_branch", "Abs"))
    }
    graph.input.append(helper.make_tensor_value_info("which", TensorProto.BOOL, []))
    graph.node.append(helper.make_node("If", ["which"], ["y"], "choice", **branches))
    return model


def foreign() -> onnx.ModelProto:
    """`two_layers` with an operator of the runtime's own behind it."""
    model = two_layers()
    model.graph.node[-1].output[0] = "z"
    model.graph.node.append(helper.make_node("BiasGelu", ["z", "four"], ["y"], "odd", domain="com.microsoft"))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(4, np.float32), "four"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


ROWS = np.random.default_rng(1).standard_normal((24, 16)).astype(np.float32)


@pytest.mark.parametrize(
    ("build", "feeds", "says"),
    [
        (conditional, [{"x": ROWS[i : i + 1], "which": np.array(True)} for i in range(24)], r"If \(node 'choice'\)"),
        (foreign, {"x": ROWS}, r"com\.microsoft\.BiasGelu \(node 'odd'\)"),
    ],
)
def test_missing_operators_are_named(build: Callable[[], Any], feeds: Any, says: str, tmp_path: Path) -> None:
    onnx.save(build(), tmp_path / "model.onnx")
    with pytest.raises(UnsupportedModel, match=f"cannot be trained in PyTorch: these operators are missing.*{says}"):
        quickly(tmp_path / "model.onnx", tmp_path / "out.onnx", data=feeds)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("format", ["integer", "qdq"])
def test_integers_are_refused(format: str, model: Path, data: Path, tmp_path: Path) -> None:
    wanted = static(8, format=format)
    api.optimize(model, tmp_path / "int.onnx", data=data, recipe=wanted, options=Options(check=False))
    with pytest.raises(ModelError, match=r"holds integers or Q/DQ already. Train the float model"):
        quickly(tmp_path / "int.onnx", tmp_path / "out.onnx", data=data)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("mode", ["dynamic-int8", "fp16", "mixed-int8"])
def test_modes_without_scales_are_refused(mode: str, model: Path, data: Path) -> None:
    with pytest.raises(RecipeError, match=f"{mode} has no scales that can be learned. Take --recipe static-int8"):
        quickly(model, data=data, recipe=make_recipe({"mode": mode}))


def test_without_pytorch_the_command_to_install_it_is_said(
    model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetuning, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"Training needs PyTorch.*pip install 'onnxq\[train\]'"):
        quickly(model, data=data)


def test_no_data_and_no_language_model(model: Path) -> None:
    with pytest.raises(DataError, match=r"only a causal language model writes some itself\. Give --data"):
        quickly(model)


@pytest.mark.parametrize("same", ["model", "output"])
def test_a_checkpoint_has_a_file_of_its_own(same: str, model: Path, data: Path, tmp_path: Path) -> None:
    before = model.read_bytes()
    output = tmp_path / "out.onnx"
    with pytest.raises((OutputError, RecipeError), match=r"(model|out)\.onnx"):
        quickly(model, output, data=data, checkpoint=model if same == "model" else output)
    assert model.read_bytes() == before
    assert not output.exists()


# interrupted

KILLED = """
import os, signal, sys
from onnxq.finetuning import finetune
from onnxq.options import Options
from tests.test_finetuning import course, static

def told(what, done, total):
    if what.startswith("train") and done == 27:
        os.kill(os.getpid(), signal.SIGKILL)

model, output, data, state = sys.argv[1:]
finetune(model, output, data=data, recipe=static(4), curriculum=course(steps=40, rate=0.3), checkpoint=state,
         options=Options(seconds=0.01, progress=told))
"""


def test_a_run_that_is_killed_leaves_no_output_and_goes_on(model: Path, data: Path, tmp_path: Path) -> None:
    state, out = tmp_path / "state", tmp_path / "out.onnx"
    words = [sys.executable, "-c", KILLED, *map(str, (model, out, data, state))]
    done = subprocess.run(words, cwd=Path(__file__).parents[1], timeout=120, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert state.exists()
    assert not out.exists()
    asked: dict[str, Any] = {"data": data, "curriculum": course(steps=40, rate=0.3)}
    told: list[int] = []
    progress = Options(seconds=0.01, progress=lambda what, at, of: told.append(at) if "train" in what else None)
    resumed = quickly(model, out, checkpoint=state, **{**asked, "options": progress})
    assert min(told) == 27, "it goes on behind the last look, which was after 26 steps"
    whole = quickly(model, tmp_path / "whole.onnx", **asked)
    assert out.read_bytes() == (tmp_path / "whole.onnx").read_bytes()
    assert resumed.lesson is not None
    assert whole.lesson is not None
    assert resumed.lesson.looks == whole.lesson.looks


# the command line


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_help_names_what_it_can(onnxq: Command) -> None:
    done = onnxq("finetune", "--help")
    assert (done.code, done.err) == (0, "")
    said = " ".join(done.out.replace("│", " ").split())
    options = (
        "data", "train", "steps", "train-batch", "rate", "loss", "feature", "mix", "no-mix", "hold", "patience", "seed",
        "device", "train-threads", "checkpoint", "activation-bits", "bits", "recipe", "plan", "json", "quiet",
    )  # fmt: skip
    assert [name for name in options if f"--{name}" not in said] == []


def test_json_is_one_document_and_tables_go_to_standard_error(onnxq: Command, model: Path, data: Path) -> None:
    done = onnxq("finetune", model, "--data", data, "--bits", 4, *WORDS, "--json")
    assert done.code == 0, done.err
    assert done.json.keys() == set(Result.model_fields)
    assert done.json["lesson"].keys() == set(Lesson.model_fields)
    assert done.json["untrained"].keys() == set(Proof.model_fields)
    assert done.json["status"] == "optimized"
    assert "Trained" in done.err


def test_a_person_reads_what_training_did(onnxq: Command, model: Path, data: Path) -> None:
    more = ("--bits", 2, "--hold", 0.25, "--rate", 0.03, *WORDS, "--steps", 40)
    done = onnxq("finetune", model, "--data", data, *more)
    assert (done.code, done.err) == (0, "")
    said = " ".join(done.out.replace("│", " ").split())
    assert "Trained" in said
    assert "numbers on 14 samples, 40 steps on cpu in" in said
    assert "Loss" in said
    assert "steps, on 4 samples not learned from" in said
    assert "brought no gain" not in said
    assert "Untrained" in said
    assert "without training" in said
    assert "with it" in said


def test_training_in_vain_is_said(onnxq: Command, model: Path, data: Path) -> None:
    """A rate so low that nothing moves."""
    words = ("--bits", 4, "--rate", 1e-12, *WORDS)
    done = onnxq("finetune", model, "--data", data, *words)
    said = " ".join(done.out.split())
    assert "never less on 2 samples not learned from: the model is as calibration left it" in said
    assert "Training brought no gain." in said


def test_quiet_says_nothing(onnxq: Command, model: Path, data: Path) -> None:
    done = onnxq("finetune", model, "--data", data, "--bits", 4, *WORDS, "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert model.with_name("model.int8.onnx").exists()


def test_options_reach_the_training(onnxq: Command, model: Path, data: Path, tmp_path: Path) -> None:
    words = ("--train", "blocks", "--feature", "c", "--seed", 3, "--device", "cpu", "--rate", 0.1, "--patience", 2)
    files = ("--checkpoint", tmp_path / "state", "--save-plan", tmp_path / "plan.json", "-o", tmp_path / "out.onnx")
    done = onnxq("finetune", model, "--data", data, *WORDS, *words, *files, "--json", "--quiet")
    assert done.code == 0, done.err
    assert [look["step"] for look in done.json["lesson"]["looks"]] == [0, 1, 2]
    assert all((tmp_path / name).exists() for name in ("state", "plan.json", "out.onnx"))
    again = ("--plan", tmp_path / "plan.json", "-o", tmp_path / "again.onnx")
    done = onnxq("finetune", model, "--data", data, *WORDS, *again, "--json", "--quiet")
    assert done.code == 0, done.err
    assert (tmp_path / "again.onnx").exists()


def test_a_rejected_model_is_exit_code_1(onnxq: Command, model: Path, data: Path) -> None:
    words = ("--bits", 2, "--metric", "cosine", "--max-drop", 1e-9, "--min-speedup", 0)
    done = onnxq("finetune", model, "--data", data, *words, *WORDS)
    assert done.code == 1
    assert not model.with_name("model.int8.onnx").exists()


BAD: dict[str, tuple[tuple[Any, ...], str]] = {
    "a loss that nobody knows": (("--loss", "mse"), "--loss is 'mse': there is no such loss"),
    "a loss in no module": (("--loss", "no_such_module:f"), "Loss 'no_such_module:f' failed with ModuleNotFoundError"),
    "labels that nobody gave": (("--loss", "labels"), "needs data with an array 'labels'"),
    "no steps": (("--steps", 0), "--steps"),
    "steps that are no number": (("--steps", "many"), "--steps"),
    "a rate below 0": (("--rate", -1), "--rate is -1.0: "),
    "all held back": (("--hold", 1), "--hold is 1.0: "),
    "a method that nobody knows": (("--train", "magic"), "--train is 'magic': "),
    "a device that nobody knows": (("--device", "tpu"), "--device is 'tpu': "),
    "batches of none": (("--train-batch", 0), "--train-batch"),
    "half a bit": (("--bits", 4.5), "error: Static weights take a whole number of bits, not 4.5."),
    "too many bits": (("--bits", 9), "error: --bits is 9.0: "),
    "too few bits of activations": (("--activation-bits", 1), "error: --activation-bits is 1: "),
    "a range that there is not": (("--range", "widest"), "error: --range is 'widest': "),
    "a metric that there is not": (("--metric", "top5"), "error: --metric is 'top5': "),
    "a mode without scales": (("--recipe", "dynamic-int8"), "dynamic-int8 has no scales that can be learned"),
    "a feature that there is not": (("--feature", "nope*"), "Feature 'nope*' matches no tensor"),
    "output and checkpoint": (("-o", "{tmp}/same.onnx", "--checkpoint", "{tmp}/same.onnx"), "both name"),
    "the model as checkpoint": (("--checkpoint", "{model}"), "is the input model. Name another file with --checkpoint"),
    "the model as report": (("--report", "{model}"), "is the input model. Name another file with --report"),
    "the data as checkpoint": (("--checkpoint", "{data}"), "data.npz' is what --data reads"),
    "a plan and a recipe": (("--plan", "{plan}", "--bits", 4), "--plan brings its own recipe"),
    "a dynamic plan": (("--plan", "{plan}"), "runs layers dynamically"),
    "a plan that there is not": (("--plan", "{tmp}/none.json"), "none.json"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_words(what: str, onnxq: Command, model: Path, data: Path, tmp_path: Path) -> None:
    """One line, exit code 2, and every file as it was."""
    words, says = BAD[what]
    plan = tmp_path / "plan.json"
    if "{plan}" in words:
        wanted = make_recipe({"mode": "dynamic-int8"})
        result = api.optimize(model, tmp_path / "d.onnx", recipe=wanted, options=Options(check=False))
        assert result.plan is not None
        plan.write_text(result.plan.to_json())
    filled = [str(word).format(tmp=tmp_path, model=model, data=data, plan=plan) for word in words]
    before = contents(tmp_path)
    done = onnxq("finetune", model, "--data", data, *WORDS, *filled)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("onnxq: error: ")
    assert done.err.count("\n") == 1, done.err
    assert says in done.err
    assert contents(tmp_path) == before


def test_data_without_samples(onnxq: Command, model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "none.npz", x=np.zeros((0, 16), np.float32))
    before = contents(tmp_path)
    done = onnxq("finetune", model, "--data", tmp_path / "none.npz", *WORDS)
    assert done.code == 2
    assert "holds no samples" in done.err
    assert contents(tmp_path) == before


def test_a_checkpoint_that_is_none(onnxq: Command, model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("notes of mine")
    before = contents(tmp_path)
    done = onnxq("finetune", model, "--data", data, *WORDS, "--checkpoint", tmp_path / "state")
    assert done.code == 2
    assert "state' is no checkpoint of onnxq" in done.err
    assert contents(tmp_path) == before


def test_no_pytorch(onnxq: Command, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetuning, "find_spec", lambda name: None)
    before = contents(model.parent)
    done = onnxq("finetune", model, "--data", data, *WORDS)
    assert done.code == 2
    assert done.err == (
        "onnxq: error: Training needs PyTorch, which is not installed. Run: pip install 'onnxq[train]'\n"
    )
    assert contents(model.parent) == before


def test_help_imports_no_pytorch() -> None:
    code = "import sys; from onnxq.__main__ import run; run(['finetune', '--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, env={**os.environ})
    assert done.returncode == 0, done.stderr.decode()
