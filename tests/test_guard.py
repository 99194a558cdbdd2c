"""What ends the working process from below is told in one line, and nobody works on for a command that is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

if not hasattr(os, "fork"):
    pytest.skip("Without fork a command works in one process.", allow_module_level=True)

MAIN = "from onnxq.__main__ import main; import onnxq.__main__ as program; program.run = lambda words: work(); main()"
"""The command, whose work is a function of ours."""


def command(work: str, *words: str) -> list[str]:
    """A command that does this work, in Python."""
    body = "\n".join(f"    {line}" for line in work.splitlines())
    ready = "import os, signal, sys, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)"
    return [sys.executable, "-c", f"{ready}\ndef work():\n{body}\n{MAIN}", *words]


def run(work: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(work, *words), capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("code", [0, 1, 2, 130])
def test_the_exit_code_is_that_of_the_work(code: int) -> None:
    done = run(f"print('done', flush=True)\nreturn {code}")
    assert (done.returncode, done.stdout, done.stderr) == (code, "done\n", "")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("SIGABRT", "Native code crashed (SIGABRT): most likely ONNX Runtime, on this model or on its data."),
        ("SIGSEGV", "Native code crashed (SIGSEGV)"),
        ("SIGKILL", "The system killed the process (SIGKILL): most likely the memory ran out."),
    ],
)
def test_a_crash_is_one_clear_line(name: str, says: str) -> None:
    done = run(f"os.kill(os.getpid(), signal.{name})\ntime.sleep(60)")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"onnxq: error: {says}")
    assert done.stderr.count("\n") == 1


def test_a_crash_is_told_to_programs() -> None:
    done = run("os.abort()", "--json")
    assert done.returncode == 2
    assert '"type": "CrashError"' in done.stdout


def test_other_signals_are_exit_codes_as_shells_count_them() -> None:
    done = run("os.kill(os.getpid(), signal.SIGUSR1)\ntime.sleep(60)")
    assert (done.returncode, done.stderr) == (128 + signal.SIGUSR1, "")


STUBBORN = """
try:
    print("ready", os.getpid(), flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.5)
    print("cleared up", flush=True)
    return 130
"""


def test_ctrl_c_reaches_the_work_twice_and_counts_once() -> None:
    """A terminal tells both processes, and the first one hands it on."""
    with subprocess.Popen(command(STUBBORN), stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready")
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.read() == "cleared up\n"
    assert process.returncode == 130


@pytest.mark.skipif(sys.platform != "linux", reason="Only Linux ends the child of a process that was killed.")
def test_nobody_works_on_for_a_command_that_was_killed() -> None:
    work = 'print("ready", os.getpid(), flush=True)\ntime.sleep(3)\nprint("worked on", flush=True)\nreturn 0'
    with subprocess.Popen(command(work), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline().split()[1])
        assert child != process.pid
        process.kill()
        assert process.stdout.read() == "", "it is closed when the child is gone"
    until = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and "Z" not in state(child):
        assert time.monotonic() < until


def state(process: int) -> str:
    """How a process is; a zombie where it is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_a_model_that_the_runtime_crashes_on(tmp_path: Path) -> None:
    """ONNX Runtime 1.32 aborts on two outputs where `num_outputs` says one; others may refuse it."""
    node = helper.make_node("Split", ["x"], ["a", "b"], axis=1, num_outputs=1)
    sizes = {"x": 6, "a": 3, "b": 3}
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, size]) for name, size in sizes.items()]
    graph = helper.make_graph([node], "g", infos[:1], infos[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "m.onnx")
    words = ["optimize", tmp_path / "m.onnx", "-o", tmp_path / "out.onnx"]
    done = subprocess.run([sys.executable, "-m", "onnxq", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("onnxq: error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
