"""The table of GPU figures, tried on the CPU: its rows, its reasons where it has none, and that no GPU is no error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cuda_table
import pytest
from cuda_report import Row, first_sentence, markdown, plain

import onnxq
from onnxq import runtime
from onnxq.errors import RecipeError
from onnxq.options import Options
from onnxq.recipe import make_recipe

DIGITS = Path(__file__).parents[2] / "models" / "digits.onnx"
OWN = f"{DIGITS}={DIGITS.with_name('digits_calibration.npz')}"


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_table, "SHARE", 0.0)


def rows(folder: Path, *words: str) -> dict[str, dict[str, Any]]:
    file = folder / "table.json"
    assert cuda_table.main(["--cpu", "--own", OWN, "--test", "4", "--json", str(file), *words]) == 0
    return {row["variant"]: row for row in json.loads(file.read_text())["rows"]}


def test_a_quantized_model_has_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(tmp_path, "--variants", "int8")
    assert list(found) == ["float32", "int8"]
    assert found["float32"]["sqnr_db"] is None  # infinite, which JSON does not know
    quantized = found["int8"]
    assert 0.999 < quantized["cosine"] < 1
    assert quantized["size"] < 0.4
    assert quantized["milliseconds"] > 0
    assert (quantized["memcpy"], quantized["on_cpu"]) == (0, quantized["kernels"])
    assert capsys.readouterr().out.count("| digits |") == 2


def test_what_cannot_be_built_says_why_and_the_others_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unwilling(values: dict[str, Any]) -> Any:
        if values["mode"] == "fp16":
            raise RecipeError("No halves in v1.2 of this. Take another mode.")
        if values["mode"] == "weight-int4":
            raise KeyError("block")
        return make_recipe(values)

    monkeypatch.setattr(cuda_table, "make_recipe", unwilling)
    found = rows(tmp_path)
    assert found["fp16"]["note"] == "not built: No halves in v1.2 of this."
    assert found["int4"]["note"] == "not built, crashed: KeyError: 'block'"
    assert found["fp16"]["cosine"] is found["int4"]["milliseconds"] is None
    assert found["int8"]["speedup"] > 0


def test_inputs_and_outputs_that_stay_on_the_device_change_the_time_alone(tmp_path: Path) -> None:
    there, resident = (rows(tmp_path, "--variants", "weight8", *words) for words in ((), ("--resident",)))
    for variant, row in resident.items():
        assert row["milliseconds"] > 0
        assert row["speedup"] > 0
        assert {**row, "milliseconds": 0, "speedup": 0} == {**there[variant], "milliseconds": 0, "speedup": 0}


def test_a_target_is_asked_for_by_provider() -> None:
    for provider, target in ((cuda_table.CUDA, "cuda"), (runtime.CPU, "cpu")):
        assert cuda_table.Settings(provider, (), 1, 1, 2).target == target


@pytest.mark.parametrize("variant", cuda_table.MODES)
def test_every_variant_can_be_built_for_a_gpu(variant: str, tmp_path: Path) -> None:
    subject = cuda_table.from_file(OWN)
    recipe = cuda_table.recipe_of(variant, "cuda")
    out, options = tmp_path / "out.onnx", Options(check=False)
    result = onnxq.optimize(subject.path, out, data=subject.calibration, recipe=recipe, options=options)
    assert result.output == str(out), result.reason


def test_without_the_provider_it_says_so_and_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runtime, "providers", lambda: [runtime.CPU])
    assert cuda_table.main(["--own", OWN]) == 0
    said = capsys.readouterr().out.strip()
    assert said.startswith(f"ONNX Runtime {runtime.version()} has no CUDAExecutionProvider here")
    assert first_sentence(said) == said


def test_without_a_gpu_it_says_so_and_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class OnCpu:
        def __init__(self, model: bytes, providers: list[str]) -> None: ...

        def get_providers(self) -> list[str]:
            return [runtime.CPU]

    monkeypatch.setattr(runtime, "providers", lambda: [cuda_table.CUDA, runtime.CPU])
    monkeypatch.setattr("onnxruntime.InferenceSession", OnCpu)
    assert cuda_table.main(["--own", OWN]) == 0
    assert "cannot use a GPU here" in capsys.readouterr().out


def test_a_model_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cuda_table.main(["--cpu", "--own", "absent.onnx"]) == 2
    assert "absent.onnx" in capsys.readouterr().err


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--variants", "int2"], ["--models", "resnet"]):
        with pytest.raises(SystemExit):
            cuda_table.main(["--cpu", *words])
        assert "choose from" in capsys.readouterr().err


def test_unknown_figures_are_empty_cells() -> None:
    lines = markdown([Row("m", "int4", "not built: a | b."), Row("m", "fp16", sqnr_db=float("nan"))]).splitlines()
    assert {line.replace("\\|", "").count("|") for line in lines} == {11}
    assert "| nan |" in lines[-1]
    assert plain(Row("m", "fp16", sqnr_db=float("nan")))["sqnr_db"] is None
