"""Two small layers and their data, and the command line as a function."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxq.__main__ import run


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be one JSON document."""
        return json.loads(self.out)


Command = Callable[..., Done]


@pytest.fixture
def onnxq(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process."""

    def command(*words: object) -> Done:
        capsys.readouterr()
        code = run([str(word) for word in words])
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return command


def two_layers() -> onnx.ModelProto:
    """MatMul, Add, Relu, MatMul: x float32[batch, 16] -> y float32[batch, 4]."""
    random = np.random.default_rng(0)
    weights = {"first": (16, 32), "bias": (32,), "second": (32, 4)}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "first"], ["a"], "one"),
            helper.make_node("Add", ["a", "bias"], ["b"], "add"),
            helper.make_node("Relu", ["b"], ["c"], "relu"),
            helper.make_node("MatMul", ["c", "second"], ["y"], "two"),
        ],
        "two layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(random.standard_normal(s).astype(np.float32), n) for n, s in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """`two_layers` in a file."""
    path = tmp_path / "model.onnx"
    onnx.save(two_layers(), path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """24 samples for `two_layers`."""
    path = tmp_path / "data.npz"
    np.savez(path, x=np.random.default_rng(1).standard_normal((24, 16)).astype(np.float32))
    return path
