"""onnxq beside ONNX Runtime's own quantizer: same models, data and threads; quality, latency, time, memory, size.

    python tools/compare.py --zoo PATH [--models minilm,...] [--peers onnxq:auto,ort:minmax,...]
                            [--threads 1] [--test N] [--json FILE] [--markdown FILE]

A peer is `onnxq:RECIPE`, with any further options after a plus sign (`onnxq:static-int8+--range=entropy`), where
`auto` is onnxq with no recipe at all and `+no-data` leaves the data out; or `ort:` and a variant of
`tools/ort_quantizer.py`. Each tool runs as a process of its own, so its peak memory is its own; onnxq starts without
its cache, so its time is that of a first run. A crash is a row with its last line of error, a rejection one with its
reason. CPU seconds show what ran on several threads.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnxruntime as ort
from comparison_report import Row, Table, ToolRun, document, markdown
from ort_quantizer import FOR_TRANSFORMERS, VARIANTS, missing_packages
from zoo import TASKS, Array, Items, Task, ZooError, count, save

DEFAULT_PEERS = ("onnxq:auto", *(f"ort:{variant}" for variant in VARIANTS))
TRANSFORMERS_ONLY = tuple(f"ort:{variant}" for variant in FOR_TRANSFORMERS)
FLOAT = "float"
WITHOUT_DATA = ("dynamic-int8",)
NO_DATA = "no-data"
QUANTIZER = Path(__file__).with_name("ort_quantizer.py")


class PeerError(Exception):
    """A peer or a model was asked for that does not exist."""


@dataclass(frozen=True)
class Peer:
    """A tool with its recipe and options."""

    tool: str
    recipe: str
    options: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Peer:
        """Read `tool:recipe+option+option`. Raises PeerError."""
        tool, _, rest = text.partition(":")
        recipe, *options = rest.split("+")
        if tool not in ("onnxq", "ort") or not recipe or (tool == "ort" and (recipe not in VARIANTS or options)):
            known = ", ".join(VARIANTS)
            raise PeerError(f"No peer '{text}'. Write onnxq:RECIPE+--option=value, or ort: and one of {known}.")
        if tool == "ort" and (missing := missing_packages(recipe)):
            raise PeerError(f"Peer '{text}' needs packages that are not there: pip install {' '.join(missing)}.")
        return cls(tool, recipe, tuple(options))

    def __str__(self) -> str:
        return "+".join([f"{self.tool}:{self.recipe}", *self.options])

    def run(self, model: Path, data: Path, out: Path, threads: int) -> ToolRun:
        """Make `out` from `model`."""
        run, printed = run_tool(self.command(model, data, out, threads))
        return _decision(run, printed) if self.tool == "onnxq" else run

    def command(self, model: Path, data: Path, out: Path, threads: int) -> list[str]:
        """The command line that makes `out` from `model`."""
        if self.tool == "ort":
            return [sys.executable, str(QUANTIZER), self.recipe, str(model), str(data), str(out), str(threads)]
        without = self.recipe in WITHOUT_DATA or NO_DATA in self.options
        with_data = [] if without else ["--data", str(data)]
        recipe = [] if self.recipe == "auto" else ["--recipe", self.recipe]
        head = [sys.executable, "-m", "onnxq", "optimize", str(model), "-o", str(out), *with_data, *recipe]
        options = [option for option in self.options if option != NO_DATA]
        return [*head, "--threads", str(threads), "--json", "--quiet", *options]


def _decision(run: ToolRun, printed: str) -> ToolRun:
    """The run with what onnxq says where it hands over no new model: rejected (none) or left alone (the float one)."""
    try:
        result = json.loads(printed)
    except ValueError:  # it did not come that far
        return run
    said = f"{result.get('status')}: {result.get('reason')}"
    if result.get("status") == "rejected":
        return replace(run, error=said)
    return replace(run, note=said) if result.get("status") == "left alone" else run


# ---- running the tools ---------------------------------------------------------------------------------------------


def run_tool(command: Sequence[str]) -> tuple[ToolRun, str]:
    """Run a command and measure it; the second value is what it wrote to standard output.

    It is started from a fresh, small process: Linux hands the peak of the starting process on to the started one,
    and ours holds a test set.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(_measure, command).result()


def _measure(command: Sequence[str]) -> tuple[ToolRun, str]:
    # some tools drop files where they are started
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors, tempfile.TemporaryDirectory() as folder:
        nothing_known = {**os.environ, "ONNXQ_CACHE": str(Path(folder) / "cache")}
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=errors, cwd=folder, env=nothing_known)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        printed, message = (_text(file) for file in (out, errors))
    code = process.returncode = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    error = _last_line(message, code) if code else ""
    return ToolRun(seconds, usage.ru_utime + usage.ru_stime, peak, error), printed


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _last_line(message: str, code: int) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1][:240] if lines else f"exit status {code}"


# ---- measuring the models --------------------------------------------------------------------------------------------


def open_model(path: Path, threads: int) -> Any:
    """A session on the CPU with so many threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def outputs(session: Any, task: Task, test: Items) -> Array:
    """First output for every test item. One at a time: dynamic quantization depends on what shares a batch."""
    feeds = (test.item(i) for i in range(len(test)))
    return np.concatenate([task.reduce(session.run(None, feed)[0], feed) for feed in feeds])


def latency(sessions: Mapping[str, Any], feed: Mapping[str, Array], share: float = 3.0) -> dict[str, float]:
    """Median milliseconds of each session. All take turns, round by round, so that noise meets all of them alike.

    Before each timed run is one that is not, so that the caches hold the model's own weights. `share`, the seconds
    that a session may take, bounds the rounds, which are 9 to 101.
    """
    times: dict[str, list[float]] = {name: [] for name in sessions}
    start, rounds = time.perf_counter(), 0
    while rounds < 9 or (rounds < 101 and time.perf_counter() - start < share * len(sessions)):
        for name, session in sessions.items():
            session.run(None, feed)
            begin = time.perf_counter()
            session.run(None, feed)
            times[name].append(1e3 * (time.perf_counter() - begin))
        rounds += 1
    return {name: statistics.median(values) for name, values in times.items()}


def size(model: Path) -> int:
    """Bytes of the model and its external data, which lie in a folder of their own."""
    return sum(f.stat().st_size for f in model.parent.iterdir() if f.suffix in (".onnx", ".data"))


@dataclass(frozen=True)
class Case:
    """One model with everything that its peers share. `reference`: the float model's outputs on the test items."""

    task: Task
    model: Path
    data: Path
    test: Items
    reference: Array
    threads: int

    def attempt(self, peer: Peer, folder: Path) -> tuple[Row, Any]:
        """Let a peer make its model in `folder` and judge it: the row, and the session, or None after a failure."""
        out = folder / "model.onnx"
        out.parent.mkdir()
        run = peer.run(self.model, self.data, out, self.threads)
        if run.error:
            return Row(str(peer), run, run.error.replace(f"{folder}{os.sep}", "")), None
        try:
            session = open_model(out, self.threads)
            scores = self.task.judge(self.reference, outputs(session, self.task, self.test), self.test)
        except Exception as error:  # whatever the peer's model does wrong is the peer's result
            return Row(str(peer), run, _last_line(str(error).replace(f"{folder}{os.sep}", ""), 1)), None
        return Row(str(peer), run, scores=scores, size=size(out) / self.model.stat().st_size), session


def compare(task: Task, peers: Sequence[Peer], zoo: Path, threads: int, most: int | None) -> Table:
    """All peers on one model, tested on so many labelled items at most. Raises ZooError."""
    model = task.path(zoo)
    calibration, test = task.split(zoo, most)
    session = open_model(model, threads)
    reference = outputs(session, task, test)
    tried = [(Row(FLOAT, scores=task.judge(reference, reference, test), size=1.0), session)]
    with tempfile.TemporaryDirectory() as folder:
        data = save(Path(folder) / f"{task.key}_calibration.npz", calibration)
        case = Case(task, model, data, test, reference, threads)
        for number, peer in enumerate(peers):
            print(f"{task.key}: {peer}", file=sys.stderr, flush=True)
            tried.append(case.attempt(peer, Path(folder) / str(number)))
        sessions = {row.peer: session for row, session in tried if session is not None}
        times = {f"b{batch}": latency(sessions, test.item(0, batch)) for batch in task.batches}
    rows = [_timed(row, times) if row.peer in sessions else row for row, _ in tried]
    return Table(task.key, rows, task.main, (len(calibration), len(test)))


def _timed(row: Row, times: Mapping[str, Mapping[str, float]]) -> Row:
    milliseconds = {batch: of[row.peer] for batch, of in times.items()}
    speedup = {batch: of[FLOAT] / of[row.peer] for batch, of in times.items()}
    return replace(row, milliseconds=milliseconds, speedup=speedup)


# ---- command line ----------------------------------------------------------------------------------------------------


def conditions(threads: int) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "onnxruntime": ort.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "threads": threads,
    }


def main(words: Sequence[str]) -> int:
    """Compare, print, save. 2 if the zoo, a model or a peer is not there."""
    arguments = _arguments(words)
    try:
        tasks = [_task(key) for key in arguments.models.split(",")]
        peers = {task.key: _peers(arguments.peers, task) for task in tasks}
        tables = []
        for task in tasks:
            zoo = arguments.zoo.resolve()
            tables.append(compare(task, peers[task.key], zoo, arguments.threads, arguments.test))
            print(markdown(tables[-1]), flush=True)
            _save(arguments, tables)  # what is there stays there, whatever comes
    except (PeerError, ZooError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="onnxq beside ONNX Runtime's quantizer on real models and data.")
    parser.add_argument("--zoo", type=Path, required=True, help="folder that holds models/ and data/")
    parser.add_argument("--models", default=",".join(TASKS), help="comma between; default: all")
    parser.add_argument("--peers", default="", help="comma between; default: those that suit the model")
    parser.add_argument("--threads", type=int, default=1, help="threads in an operator; default: 1")
    parser.add_argument("--test", type=count, help="labelled items to test on at most; default: the task's own number")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--markdown", type=Path, help="file to write the tables to")
    return parser.parse_args(words)


def _task(key: str) -> Task:
    if key not in TASKS:
        raise PeerError(f"No model '{key}'. Choose from {', '.join(TASKS)}.")
    return TASKS[key]


def _peers(wanted: str, task: Task) -> list[Peer]:
    suited = [text for text in DEFAULT_PEERS if task.transformer or text not in TRANSFORMERS_ONLY]
    return [Peer.parse(text) for text in (wanted.split(",") if wanted else suited)]


def _save(arguments: argparse.Namespace, tables: Sequence[Table]) -> None:
    if arguments.json:
        found = {**conditions(arguments.threads), **document(tables)}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(markdown(table) for table in tables))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
