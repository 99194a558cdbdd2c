"""A part of the sweep that stands for all of it: every kind of operator and of value that ONNX has test models for."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import onnxq

sys.path.append(str(Path(__file__).parents[1] / "tools"))

import sweep
import sweep_trial
from limited import Gone, Limited, Limits
from sweep_models import Case, all_cases, frozen, mutants, spread
from sweep_trial import PASSES, Finding, attempt

COUNT = 150
PARTS = 10
LIMITS = Limits(seconds=60.0, memory=8 * 2**30)
RECIPES = ("static-int8", "fp16", PASSES)
"""With data, without data, and what both are made of; the tool tries the others too."""


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    light = [case for case in all_cases(None) if not case.name.startswith("light/")]  # these take long
    return spread(light, COUNT)


@pytest.fixture(scope="module")
def trial() -> Iterator[Limited[Finding]]:
    with Limited(attempt, LIMITS) as process:
        yield process


@pytest.mark.parametrize("part", range(PARTS))
def test_nothing_breaks(cases: list[Case], trial: Limited[Finding], part: int) -> None:
    found = [trial(case, recipe) for case in cases[part::PARTS] for recipe in RECIPES]
    assert [(f.name, f.recipe, f.problems) for f in found if f.problems] == []
    assert all(f.outcome in ("optimized", "left alone", "rejected", "refused") for f in found)
    assert all(f.reason for f in found if f.outcome != "optimized")


def test_mutants_break_nothing_either(trial: Limited[Finding]) -> None:
    """Models whose fields were changed by chance: `tools/sweep.py --mutants` takes thousands."""
    made = list(mutants(all_cases(None), 60, seed=7))
    assert [case.model for case in made] == [case.model for case in mutants(all_cases(None), 60, seed=7)]
    found = [trial(case, recipe) for case in made for recipe in RECIPES]
    assert [(f.name, f.recipe, f.problems) for f in found if f.problems] == []
    assert {f.outcome for f in found} >= {"left alone", "refused"}


def test_the_part_stands_for_all(cases: list[Case]) -> None:
    models = [case.read() for case in cases]
    types = {info.type.tensor_type.elem_type for m in models for info in (*m.graph.input, *m.graph.output)}
    assert types >= {TensorProto.STRING, TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN, TensorProto.INT4}
    kinds = {info.type.WhichOneof("value") for m in models for info in (*m.graph.input, *m.graph.output)}
    assert kinds >= {"tensor_type", "sequence_type", "optional_type"}
    operators = {node.op_type for m in models for node in m.graph.node}
    assert operators >= {"If", "Loop", "Scan", "Conv", "MatMul", "LSTM", "Einsum"}
    assert {node.domain for m in models for node in m.graph.node} >= {"", "ai.onnx.ml", "ai.onnx.preview.training"}
    assert COUNT <= len(cases) < 2 * COUNT
    assert [case.name for case in spread(all_cases(None)[:400], 30)] == [
        case.name for case in spread(all_cases(None)[:400], 30)
    ]


def relu() -> Case:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Case("own/relu", made.SerializeToString(), {"x": np.array([-1, 1], np.float32)})


def result(output: Path, **fields: object) -> onnxq.Result:
    return onnxq.Result.model_validate(
        {"status": "left alone", "reason": "It is fine.", "output": str(output), **fields}
    )


BROKEN = {
    "another output": (helper.make_node("Abs", ["x"], ["y"]), {}, "changed from"),
    "no reason": (helper.make_node("Relu", ["x"], ["y"]), {"reason": ""}, "no reason"),
    "nothing written": (None, {}, "nothing written"),
    "written, and rejected": (helper.make_node("Relu", ["x"], ["y"]), {"status": "rejected"}, "rejected, and written"),
    "another name": (helper.make_node("Relu", ["x"], ["z"]), {}, "outputs changed"),
    "what does not run": (helper.make_node("Unheard", ["x"], ["y"]), {}, "does not run"),
    "an error that nobody promised": (helper.make_node("Abs", ["x"], ["y"]), {"status": "optimized"}, "is off by"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_breaks_is_seen(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    node, fields, words = BROKEN[case]

    def optimize(model: bytes, output: Path, **_: object) -> onnxq.Result:
        made = onnx.load_from_string(model)
        if node is not None:
            made.graph.node[0].CopyFrom(node)
            made.graph.output[0].name = node.output[0]
            onnx.save(made, output)
        return result(output, mode="auto", **fields)

    monkeypatch.setattr(onnxq, "optimize", optimize)
    assert words in " ".join(attempt(relu(), "auto").problems)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("odd"), "Traceback"),
        (onnxq.OnnxqError("two\nlines"), "no single line"),
        (onnxq.OnnxqError("no"), "refused, though it runs"),
    ],
)
def test_what_is_raised_is_seen(error: Exception, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def optimize(*_: object, **__: object) -> onnxq.Result:
        raise error

    monkeypatch.setattr(onnxq, "optimize", optimize)
    assert words in " ".join(attempt(relu(), "auto").problems)


def test_the_report_counts_all() -> None:
    findings = [
        Finding("a", "auto", "optimized"),
        Finding("b", "auto", "left alone", "The node 'x' has 3 axes."),
        Finding("c", "auto", "left alone", "The node 'y' has 4 axes."),
        Finding("d", "fp16", "died", "It died.", ["It died."]),
    ]
    assert sweep.markdown(findings).splitlines()[2:] == [
        "| auto | 3 | 1 | 2 | 0 | 0 | 0 |",
        "| fp16 | 1 | 0 | 0 | 0 | 0 | 1 |",
    ]
    assert "     2  The node … has N axes" in sweep.report(findings)
    assert "FAILED d, fp16: It died." in sweep.report(findings)


def test_inputs_become_weights() -> None:
    (made,) = (frozen(case) for case in all_cases(None) if case.name == "node/test_matmul_2d")
    assert made is not None
    stored = made.read()
    assert [info.name for info in stored.graph.input] == ["a"]
    assert [tensor.name for tensor in stored.graph.initializer] == ["b"]
    assert frozen(relu()) is None
    assert sweep_trial.attempt(made, PASSES).problems == []


def end(how: str) -> str:
    """What a process does in these tests."""
    if how == "dies":
        os.abort()
    if how == "sleeps":
        time.sleep(60)
    return how


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals like these.")
def test_a_process_that_is_gone_is_replaced() -> None:
    with Limited(end, Limits(seconds=0.5, memory=8 * 2**30)) as process:
        assert process("lives") == "lives"
        with pytest.raises(Gone, match=r"ended by SIGABRT"):
            process("dies")
        assert process("lives again") == "lives again"
        with pytest.raises(Gone, match=r"did not end within 0\.5 s"):
            process("sleeps")
        assert process("lives still") == "lives still"
