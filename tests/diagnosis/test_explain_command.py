"""`onnxq explain`: a table and sentences for people, one document for programs, one line for what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Command
from tests.diagnosis.quantizers import by_runtime, loud_input, perceptron, pictures, rows


@pytest.fixture
def case(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A float model, what ONNX Runtime made of it, and data."""
    model, x = loud_input(tmp_path / "model.onnx"), pictures(loud=500.0)
    np.savez(tmp_path / "data.npz", x=x)
    return model, by_runtime(model, x, integer=True), tmp_path / "data.npz"


def test_tells_a_person(onnxq: Command, case: tuple[Path, Path, Path]) -> None:
    model, quantized, data = case
    done = onnxq("explain", model, quantized, "--data", data, "--top", 2)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].startswith(f"{quantized.name}: ")
    assert "dB of signal over noise at 'y'" in lines[0]
    assert [word in lines[2] for word in ("Operator", "alone", "share", "weight", "input")] == [True] * 5
    assert lines[4].split()[:2] == ["Conv", "conv0"]
    flat = " ".join(done.out.split())
    assert "1. Conv 'conv0' causes" in flat
    assert "Keep 'conv0' in float. That should gain" in flat
    assert "2. Conv" in flat
    assert "3. Conv" not in flat
    assert "In float together they should gain" in flat
    assert "4 layers, 4 operators in all" in flat


def test_tells_a_program(onnxq: Command, case: tuple[Path, Path, Path]) -> None:
    model, quantized, data = case
    done = onnxq("explain", model, quantized, "--data", data, "--top", 1, "--samples", 3, "--json", "--quiet")
    assert done.code == 0
    found = done.json
    assert (found["output"], found["samples"], found["layers"], len(found["findings"])) == ("y", 3, 4, 4)
    first = found["findings"][0]
    assert (first["node"], first["treatment"], first["input_outlier"]["channel"]) == ("conv0", "static", 5)
    assert [finding["cures"] != [] for finding in found["findings"]] == [True, False, False, False]
    assert found["simulated_db"] == pytest.approx(found["measured_db"], abs=1)


def test_without_cures(onnxq: Command, case: tuple[Path, Path, Path]) -> None:
    model, quantized, data = case
    done = onnxq("explain", model, quantized, "--data", data, "--top", 0)
    assert done.code == 0
    assert "conv0" in done.out
    assert "That should gain" not in done.out
    assert "In float together" not in done.out


def test_what_is_wrong_is_said_in_one_line(onnxq: Command, case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model, quantized, data = case
    other = perceptron(tmp_path / "other.onnx")
    np.savez(tmp_path / "rows.npz", x=rows())
    wrong = {
        "quantized already": (quantized, quantized, data),
        "holds no quantized weight": (model, model, data),
        "has shape [24, 16]": (model, quantized, tmp_path / "rows.npz"),
        "does not exist": (model, quantized, tmp_path / "nowhere.npz"),
        "holds no quantized weight that": (other, other, tmp_path / "rows.npz"),
    }
    for words, (first, second, source) in wrong.items():
        done = onnxq("explain", first, second, "--data", source)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("onnxq: error: ")
        assert done.err.count("\n") == 1
        assert words in done.err
    assert onnxq("explain", model, quantized).code == 2
    assert onnxq("explain", model, quantized, "--data", data, "--samples", 0).code == 2
