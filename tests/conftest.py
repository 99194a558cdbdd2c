"""Small models and their data, a clock that tells fixed times, and the command line as a function."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxq import mixed, muls, proof
from onnxq.__main__ import run
from onnxq.layers import LAYERS
from onnxq.plan import Plan, Treatment
from onnxq.runtime import CPU, Kernel, Timing
from onnxq.search import rewrites
from onnxq.search.forms import WEIGHT_4, WEIGHT_8
from onnxq.search.stopwatch import Sample, Stopwatch
from onnxq.study import Study
from onnxq.trial import Trials


def pytest_configure(config: pytest.Config) -> None:
    """What tests measure is remembered in a folder of this run, by other processes too.

    No fixture: `Options` that stand at the top of a test file are made before the first one runs.
    """
    folder = mkdtemp(prefix="onnxq.cache.")
    config.add_cleanup(partial(rmtree, folder, ignore_errors=True))
    patch = pytest.MonkeyPatch()
    patch.setenv("ONNXQ_CACHE", folder)
    config.add_cleanup(patch.undo)


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


def chain(*, outlier: float) -> onnx.ModelProto:
    """Four convolutions with Relu; one channel of the second's output is `outlier` times as large as the others."""
    rng = np.random.default_rng(3)
    weights = [rng.normal(0, 0.25, (8, 8, 3, 3)).astype(np.float32) for _ in range(4)]
    weights[1][0] *= outlier
    weights[2][:, 0] /= outlier
    nodes, tensors, last = [], [], "x"
    for index, values in enumerate(weights):
        tensors.append(numpy_helper.from_array(values, f"w{index}"))
        output = "y" if index == 3 else f"r{index}"
        nodes.append(helper.make_node("Conv", [last, f"w{index}"], [f"c{index}"], f"conv{index}", pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [output], f"relu{index}"))
        last = output
    shape: list[str | int | None] = ["batch", 8, 12, 12]
    infos = [helper.make_tensor_value_info(name, 1, shape) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "chain", infos[:1], infos[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@dataclass
class Clock:
    """What models and their parts take, in place of real time.

    Attributes:
        speedups: of the candidates beside the float model, in the order in which they are timed; the last one stays.
        microseconds: of every part of a model by its form; what stands between forms takes 1.
        timed: how many candidates were timed.
    """

    speedups: list[float] = field(default_factory=lambda: [2.0])
    microseconds: dict[str, float] = field(
        default_factory=lambda: {"float": 90.0, "dynamic": 60.0, "static": 30.0, WEIGHT_8: 95.0, WEIGHT_4: 95.0}
    )
    timed: int = 0

    def interleave(self, sessions: Sequence[object], feeds: object, **_: object) -> list[Timing]:
        """In place of `onnxq.proof.interleave`."""
        speedup = self.speedups[min(self.timed, len(self.speedups) - 1)]
        self.timed += 1
        return [Timing(6.0, 1.0), Timing(6.0 / speedup, speedup)]

    def whole(self, plan: Plan) -> Timing:
        """In place of `Trials._timing`: the sum over layers."""
        layers = [node for node in plan.nodes.values() if node.op in LAYERS]
        weights = {4: WEIGHT_4, 8: WEIGHT_8}
        forms = [weights[n.bits] if n.treatment is Treatment.WEIGHT else n.treatment.value for n in layers]
        before, after = len(layers) * self.microseconds["float"], sum(self.microseconds[form] for form in forms)
        return Timing(after / 1e3, before / after)

    def take_turns(self, samples: Mapping[str, Sequence[Sample]], watch: Stopwatch) -> dict[str, list[list[Kernel]]]:
        """In place of `onnxq.search.stopwatch.take_turns`."""
        kernels = {form: [Kernel("part", "Part", CPU, self.microseconds.get(form, 1.0))] for form in samples}
        return {form: [kernels[form] for _ in some] for form, some in samples.items()}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Clock:
    """Fixed times in place of real ones; what they decide is remembered for this test alone."""
    clock = Clock()
    monkeypatch.setenv("ONNXQ_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(proof, "interleave", clock.interleave)
    monkeypatch.setattr(proof, "loaded_memory", lambda *_: 0)
    for module in (mixed, muls):
        monkeypatch.setattr(module, "Stopwatch", partial(Stopwatch, timer=clock.take_turns))
    monkeypatch.setattr(Trials, "_timing", lambda _, plan, __: clock.whole(plan))
    monkeypatch.setattr(Study, "_pace", lambda _: 2.0**-10)
    monkeypatch.setattr(rewrites, "interleave", lambda sessions, *_, **__: [Timing(6.0, 1.0) for _ in sessions])
    return clock


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
