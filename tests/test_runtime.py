"""The runtime's refusals become sentences, and what it measures comes back in order."""

from __future__ import annotations

import gc
import json
import platform
import re
import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import parser

from onnxq import runtime
from onnxq.errors import DataError, OutputError, ProviderError, UnsupportedModel
from onnxq.interface import TensorSpec
from onnxq.runtime import (
    CPU,
    Kernel,
    Session,
    Timing,
    check_providers,
    interleave,
    loaded_memory,
    pool,
    providers,
    tensor_types,
)

X = np.array([[1, -2]], np.float32)


def model(body: str = "t = Neg(x) y = Relu(t)", outputs: str = "float[N, 2] y", opset: int = 13) -> bytes:
    """A model of x float32[N, 2]."""
    text = f'<ir_version: 7, opset_import: ["" : {opset}]> g (float[N, 2] x) => ({outputs}) {{ {body} }}'
    made = parser.parse_model(text)
    for node in made.graph.node:
        node.name = f"the_{node.op_type}"
    content: bytes = made.SerializeToString()
    return content


def test_a_session_knows_its_inputs_and_outputs() -> None:
    session = Session(model())
    float32 = np.dtype(np.float32)
    assert session.inputs == (TensorSpec("x", float32, ("N", 2)),)
    assert session.outputs == (TensorSpec("y", float32, ("N", 2)),)


def test_outputs_come_by_name() -> None:
    session = Session(model("t = Neg(x) y = Relu(t)", "float[N, 2] t, float[N, 2] y"))
    assert {name: value.tolist() for name, value in session.run({"x": X}).items()} == {"t": [[-1, 2]], "y": [[0, 2]]}
    assert list(session.run({"x": X}, ["y"])) == ["y"]


def test_a_session_takes_a_path_or_bytes(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model())
    assert Session(path).run({"x": X})["y"].tolist() == Session(model()).run({"x": X})["y"].tolist()


def test_external_data_of_a_model_in_memory_is_found(tmp_path: Path) -> None:
    made = parser.parse_model("""
    <ir_version: 7, opset_import: ["" : 13]>
    g (float[N, 2] x) => (float[N, 2] y) <float[2] w = ["location": "w.bin"]> { y = Add(x, w) }
    """)
    (tmp_path / "w.bin").write_bytes(np.array([10, 20], np.float32).tobytes())
    session = Session(made.SerializeToString(), folder=tmp_path)
    assert session.run({"x": X})["y"].tolist() == [[11, 18]]


def test_a_missing_provider_is_named_with_those_that_are_there() -> None:
    with pytest.raises(ProviderError) as caught:
        Session(model(), provider="AbacusExecutionProvider")
    text = str(caught.value)
    assert "'AbacusExecutionProvider' is not installed" in text
    assert all(provider in text for provider in providers())
    check_providers(providers())
    with pytest.raises(ProviderError):
        check_providers([CPU, "AbacusExecutionProvider"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (model("y = NoSuchOperator(x)"), "No Op registered for NoSuchOperator"),
        (model(opset=99), "99"),
        (b"no model", "protobuf"),
        (model("t = Shape(x) y = Add(x, t)"), "Add"),
    ],
    ids=["operator", "opset", "bytes", "types"],
)
def test_a_refused_model_says_why(content: bytes, reason: str) -> None:
    with pytest.raises(
        UnsupportedModel, match=f"ONNX Runtime {runtime.version()} refuses the model: .*{reason}"
    ) as caught:
        Session(content)
    assert not re.search(r"\n|\.\.", str(caught.value))
    assert str(caught.value).endswith("Export it for this version, or install one that knows it.")


def test_a_missing_file_is_a_refusal() -> None:
    with pytest.raises(UnsupportedModel, match=r"gone\.onnx"):
        Session(Path("gone.onnx"))


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({}, r"\['x'\]"),
        ({"x": np.ones((1, 3), np.float32)}, "x.*Got: 3 Expected: 2"),
        ({"x": np.ones((1, 2), np.float64)}, "double.*float"),
        ({"x": np.ones(2, np.float32)}, "rank for input: x"),
    ],
)
def test_data_that_does_not_fit_is_named(feeds: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(DataError, match=f"The model fails on the given data: .*{words}.*Check the values and shapes"):
        Session(model()).run(feeds)


def test_kernels_are_those_that_ran() -> None:
    session = Session(model(), optimize=False, profile=True)
    for _ in range(3):
        session.run({"x": X})
    found = session.kernels()
    assert [(kernel.node, kernel.op, kernel.provider) for kernel in found] == [
        ("the_Neg", "Neg", CPU),
        ("the_Relu", "Relu", CPU),
    ]
    assert all(kernel.microseconds >= 0 for kernel in found)


def test_kernels_show_what_the_runtime_fused() -> None:
    text = """
    <ir_version: 7, opset_import: ["" : 13]>
    g (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y) <float[1, 1, 1, 1] w = {2}> { t = Conv(x, w)  y = Relu(t) }
    """
    ops: dict[bool, list[str]] = {}
    for optimize in (True, False):
        session = Session(parser.parse_model(text).SerializeToString(), optimize=optimize, profile=True)
        session.run({"x": np.ones((1, 1, 4, 4), np.float32)})
        ops[optimize] = [kernel.op for kernel in session.kernels()]
    assert ops[False] == ["Conv", "Relu"]
    assert "Relu" not in ops[True]


def test_profiles_leave_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Arrange
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    # Act: one that is read, one that is not, one that fails
    session = Session(model(), profile=True)
    session.run({"x": X})
    assert list(tmp_path.iterdir())
    session.kernels()
    assert list(tmp_path.iterdir()) == []
    Session(model(), profile=True).run({"x": X})
    with pytest.raises(UnsupportedModel):
        Session(b"", profile=True)
    gc.collect()
    # Assert
    assert list(tmp_path.iterdir()) == []


def test_interleaved_times_come_in_order() -> None:
    first, second, heavy = Session(model()), Session(model()), Session(model("t = MatMul(x, x) y = Relu(t)"))
    square = np.ones((2, 2), np.float32)
    found = interleave([first, second, heavy], {"x": square}, seconds=0, rounds=7)
    assert [type(timing) for timing in found] == [Timing] * 3
    assert found[0].speedup == 1
    assert all(timing.milliseconds > 0 and timing.speedup > 0 for timing in found)


def test_models_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    # Arrange: sessions that note their turns, and take 1 and 3 seconds
    clock = [0.0]
    turns: list[str] = []

    def fake(name: str, cost: float) -> Session:
        class Fake(Session):
            def __init__(self) -> None: ...

            def run(self, feeds: runtime.Feeds, outputs: object = None) -> dict[str, np.ndarray]:
                turns.append(name)
                clock[0] += cost
                return {}

        return Fake()

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    # Act
    one, three = interleave([fake("a", 1), fake("b", 3)], {}, seconds=100, rounds=6)
    # Assert: one round to warm up, then six
    assert turns == ["a", "b"] * 7
    assert (one, three) == (Timing(1000, 1), Timing(3000, 1 / 3))


@pytest.mark.parametrize(("seconds", "rounds", "expected"), [(0, 40, 5), (100, 3, 5), (10, 40, 5), (32, 40, 8)])
def test_how_long_is_measured(monkeypatch: pytest.MonkeyPatch, seconds: float, rounds: int, expected: int) -> None:
    clock, turns = [0.0], [0]

    class Fake(Session):
        def __init__(self) -> None: ...

        def run(self, feeds: runtime.Feeds, outputs: object = None) -> dict[str, np.ndarray]:
            clock[0] += 4
            turns[0] += 1
            return {}

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    interleave([Fake()], {}, seconds=seconds, rounds=rounds)
    assert turns[0] == expected + 1


def test_types_and_shapes_of_inner_tensors() -> None:
    body = "s = Shape(x) c = Cast <to = 10> (x) b = Greater(x, x) y = Relu(x)"
    found = tensor_types(model(body, "int64[2] s, float16[N, 2] c, bool[N, 2] b, float[N, 2] y"))
    assert [(spec.name, spec.dtype.name) for spec in found] == [
        ("s", "int64"),
        ("c", "float16"),
        ("b", "bool"),
        ("y", "float32"),
    ]
    assert found[1].shape == ("N", 2)


def test_types_that_numpy_lacks_are_objects() -> None:
    made = parser.parse_model("""
    <ir_version: 7, opset_import: ["" : 13]>
    g (string[2] x) => (string[2] y, seq(string[2]) z) { y = Identity(x)  z = SequenceConstruct(x) }
    """)
    assert [spec.dtype for spec in tensor_types(made.SerializeToString())] == [np.dtype(object)] * 2


def test_memory_is_measured_in_another_process(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model())
    assert loaded_memory(path, {"x": X}) > 0
    assert loaded_memory(tmp_path / "gone.onnx", {"x": X}) == 0


CPUINFO = """processor\t: 0
model name\t: Fast CPU @ 2.60GHz
flags\t\t: fpu avx2 avx512f avx512_vnni avx512_vnni_like rdpid

processor\t: 1
model name\t: Another
flags\t\t: fpu
"""


def test_a_machine_is_told_by_what_timing_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(CPUINFO)
    monkeypatch.setattr(runtime, "CPUINFO", cpuinfo)
    monkeypatch.setattr(runtime, "cpus", lambda: 2)
    words = f"2 CPUs, onnxruntime {runtime.version()}"
    assert runtime.machine() == f"Fast CPU @ 2.60GHz, avx2, avx512f, avx512_vnni, {words}"
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimddp i8mm\n")
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    assert runtime.machine() == f"arm, asimddp, i8mm, {words}"
    monkeypatch.setattr(runtime, "CPUINFO", tmp_path / "gone")
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "x86")
    assert runtime.machine() == f"x86, {words}"


def test_this_machine_has_processors() -> None:
    assert runtime.cpus() >= 1
    assert runtime.machine() == runtime.machine()


def test_pooled_sessions_compute_the_same() -> None:
    alone = Session(model()).run({"x": X})["y"].tolist()
    for _ in range(2):  # the second pool takes the place of the first
        with pool():
            first, second = Session(model(), pooled=True), Session(model(), pooled=True, threads=2)
            assert [session.run({"x": X})["y"].tolist() for session in (first, second)] == [alone, alone]
        assert first.run({"x": X})["y"].tolist() == alone, "a session outlives its pool"


@pytest.mark.parametrize(("quantile", "expected"), [(None, 3.0), (0.0, 1.0), (0.1, 1.4), (1.0, 50.0)])
def test_a_quantile_of_the_runs_can_be_asked_for(tmp_path: Path, quantile: float | None, expected: float) -> None:
    # Arrange: a session with a recording of five runs
    file = tmp_path / "profile.json"
    args = {"op_name": "Relu", "provider": CPU}
    events = [{"cat": "Node", "name": "n_kernel_time", "dur": dur, "args": args} for dur in (2, 1, 50, 3, 4)]
    file.write_text(json.dumps(events))
    session = Session(model(), profile=True)
    session._session.end_profiling()
    session._session = SimpleNamespace(end_profiling=lambda: str(file))
    # Act
    (kernel,) = session.kernels() if quantile is None else session.kernels(quantile)
    # Assert
    assert kernel == Kernel("n", "Relu", CPU, expected)


def test_a_provider_that_does_not_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of CUDA without a device: it is installed, and the runtime falls back to the CPU without a word."""
    monkeypatch.setattr(runtime, "providers", lambda: ["CUDAExecutionProvider", CPU])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ProviderError, match="is installed, but does not start here"):
            Session(model(), provider="CUDAExecutionProvider")
        assert not runtime.starts("CUDAExecutionProvider")
    assert runtime.starts(CPU)
    assert not runtime.starts("AbacusExecutionProvider")


@pytest.mark.parametrize("content", ['[{"cat": "Node", "na', ""])
def test_a_recording_that_was_cut_off_is_an_error(tmp_path: Path, content: str) -> None:
    session = Session(runtime.SMALLEST, profile=True, threads=1)
    session.run({"x": np.ones(1, np.float32)})
    cut = Path(session._session.end_profiling())
    cut.write_text(content)
    session._session = SimpleNamespace(end_profiling=lambda: str(cut))
    with pytest.raises(OutputError, match=r"cut off.*Free some space"):
        session.kernels()
    assert not cut.exists()
