"""What README.md shows for pipelines works as it stands there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "models"


def block(mark: str) -> str:
    """The code that follows a mark in README.md."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition(f"<!-- {mark} -->")[2]
    return re.search(r"```\w+\n(.*?)```", text, re.DOTALL).group(1)  # type: ignore[union-attr]


def test_the_step_after_an_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="the export needs PyTorch")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    layers = torch.nn
    model = layers.Sequential(layers.Conv2d(8, 16, 3), layers.ReLU(), layers.Flatten(), layers.Linear(16 * 36, 10))
    model.eval()
    pixels = torch.randn(1, 8, 8, 8)
    calibration = np.random.default_rng(0).standard_normal((32, 8, 8, 8)).astype(np.float32)
    names: dict[str, Any] = {"model": model, "pixels": pixels, "calibration": calibration}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        exec(block("export").partition("assert")[0], names)
    assert names["result"].status in ("optimized", "left alone")  # as fast as in integers, a small model may stay
    assert (tmp_path / "model.int8.onnx").exists()


def test_the_shell_commands(tmp_path: Path) -> None:
    place = {"model.onnx": "digits.onnx", "calibration.npz": "digits_calibration.npz", "test.npz": "digits_test.npz"}
    for name, source in place.items():
        (tmp_path / name).write_bytes((MODELS / source).read_bytes())
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block("shell")],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "result.json").read_text())["status"] in ("optimized", "left alone")
    assert "Traceback" not in done.stderr


def test_the_container_installs_what_there_is() -> None:
    text = (ROOT / "tools" / "Containerfile").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = re.search(r'"/source\[(.*?)\]"', text).group(1).split(",")  # type: ignore[union-attr]
    assert set(extras) <= set(project["optional-dependencies"])
    entry = re.search(r'ENTRYPOINT \["(.*?)"\]', text).group(1)  # type: ignore[union-attr]
    assert entry in project["scripts"]
