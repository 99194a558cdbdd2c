"""onnxq beside ONNX Runtime's own quantizer: same models, data and threads; quality, latency, time, memory, size.

    python tools/compare.py --zoo PATH [--models minilm,...] [--peers onnxq:static-int8,ort:minmax,...]
                            [--threads 1] [--json FILE] [--markdown FILE]

A peer is `onnxq:RECIPE`, with any further options after a plus sign (`onnxq:static-int8+--range=entropy`), or
`ort:` and one of minmax, percentile, entropy, minmax-matmul, dynamic. Each tool runs as a process of its own, so its
peak memory is its own; a crash is a row with its last line of error. ONNX Runtime's quantizer has no thread option:
its sessions are given one here. CPU seconds show what other tools took.
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
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from zoo import TASKS, Array, Items, Scores, Task, ZooError, calibration_npz

ORT_STATIC = ("minmax", "percentile", "entropy", "minmax-matmul")
ORT = (*ORT_STATIC, "dynamic")
TRANSFORMERS_ONLY = ("ort:minmax-matmul", "ort:dynamic", "onnxq:dynamic-int8")
"""Peers that run by default on transformers alone: their authors advise against them elsewhere."""
DEFAULT_PEERS = ("onnxq:static-int8", "onnxq:dynamic-int8", *(f"ort:{variant}" for variant in ORT))
FLOAT = "float"
WITHOUT_DATA = ("dynamic-int8", "weight-int8")


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
        if tool not in ("onnxq", "ort") or not recipe or (tool == "ort" and (recipe not in ORT or options)):
            raise PeerError(
                f"No peer '{text}'. Write onnxq:RECIPE+--option=value, or ort: and one of {', '.join(ORT)}."
            )
        return cls(tool, recipe, tuple(options))

    def __str__(self) -> str:
        return "+".join([f"{self.tool}:{self.recipe}", *self.options])

    def command(self, model: Path, data: Path, out: Path, threads: int) -> list[str]:
        """The command line that makes `out` from `model`."""
        if self.tool == "ort":
            return [sys.executable, __file__, "--quantize", self.recipe, str(model), str(data), str(out), str(threads)]
        with_data = [] if self.recipe in WITHOUT_DATA else ["--data", str(data)]
        head = [sys.executable, "-m", "onnxq", "optimize", str(model), "-o", str(out), *with_data]
        return [*head, "--recipe", self.recipe, "--json", *self.options]


@dataclass(frozen=True)
class ToolRun:
    """What one run of a tool took: wall and CPU seconds, and the peak of resident memory in MiB."""

    seconds: float
    cpu_seconds: float
    peak_mib: float
    error: str = ""


@dataclass(frozen=True)
class Row:
    """One peer on one model; `milliseconds` and `speedup` by batch, `size` as a share of the float model's."""

    peer: str
    run: ToolRun | None = None
    error: str = ""
    scores: Scores = field(default_factory=dict)
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    speedup: Mapping[str, float] = field(default_factory=dict)
    size: float | None = None


# ---- running the tools ---------------------------------------------------------------------------------------------


def run_tool(command: Sequence[str]) -> ToolRun:
    """Run a command and measure it.

    It is started from a fresh, small process: Linux hands the peak of the starting process on to the started one,
    and ours holds a test set.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(_measure, command).result()


def _measure(command: Sequence[str]) -> ToolRun:
    # some tools drop files where they are started
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, cwd=folder)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        errors.seek(0)
        message = errors.read().decode(errors="replace")
    code = process.returncode = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return ToolRun(seconds, usage.ru_utime + usage.ru_stime, peak, _last_line(message, code) if code else "")


def _last_line(message: str, code: int) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1][:240] if lines else f"exit status {code}"


# ---- ONNX Runtime's quantizer, in its own process --------------------------------------------------------------------


def quantize_with_ort(variant: str, model: str, data: str, out: str, threads: int) -> None:
    """Quantize as its documentation advises: pre-process, then static Q/DQ or dynamic, weights per channel."""
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_dynamic, quantize_static

    _limit_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        prepared = _preprocess(model, Path(folder) / "prepared.onnx")
        if variant == "dynamic":
            quantize_dynamic(prepared, out, per_channel=True, weight_type=QuantType.QInt8)
            return
        method = {"percentile": CalibrationMethod.Percentile, "entropy": CalibrationMethod.Entropy}
        quantize_static(
            prepared,
            out,
            _Reader(data),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=method.get(variant, CalibrationMethod.MinMax),
            op_types_to_quantize=["MatMul"] if variant == "minmax-matmul" else None,
        )


def _limit_threads(threads: int) -> None:
    """Give every session of this process so many threads: the quantizer makes its own and takes no such option."""
    original = ort.SessionOptions

    def limited() -> Any:
        options = original()
        options.intra_op_num_threads = threads
        return options

    ort.SessionOptions = limited


def _preprocess(model: str, prepared: Path) -> Path:
    """Bring the model to what the quantizer needs, as a patient user would.

    Opset 13: below it, its per-channel models do not load. Symbolic shape inference fails on some exports
    ("Incomplete symbolic shape inference"): it is left out there.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    model = _with_opset_13(model, prepared.with_name("opset13.onnx"))
    try:
        quant_pre_process(model, prepared)
    except Exception:
        quant_pre_process(model, prepared, skip_symbolic_shape=True)
    return prepared


def _with_opset_13(model: str, converted: Path) -> str:
    """The path of the model itself, or of a copy if its opset is older."""
    import onnx
    from onnx.version_converter import convert_version

    loaded = onnx.load(model, load_external_data=False)
    if next(entry.version for entry in loaded.opset_import if entry.domain in ("", "ai.onnx")) >= 13:
        return model
    onnx.save(convert_version(loaded, 13), converted)
    return str(converted)


class _Reader:
    """The items of an .npz one at a time, as the quantizer asks for them."""

    def __init__(self, path: str) -> None:
        with np.load(path) as stored:
            items = Items(dict(stored))
        self._items: Iterator[dict[str, Array]] = (items.item(i) for i in range(len(items)))

    def get_next(self) -> dict[str, Array] | None:
        return next(self._items, None)


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


def latency(sessions: Mapping[str, Any], feed: Mapping[str, Array], budget: float = 20.0) -> dict[str, float]:
    """Median milliseconds of each session. All take turns, round by round, so that noise meets all of them alike.

    Before each timed run is one that is not, so that the caches hold the model's own weights. `budget` in seconds
    bounds the rounds, which are 9 to 101.
    """
    times: dict[str, list[float]] = {name: [] for name in sessions}
    start, rounds = time.perf_counter(), 0
    while rounds < 9 or (rounds < 101 and time.perf_counter() - start < budget):
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
        run = run_tool(peer.command(self.model, self.data, out, self.threads))
        if run.error:
            return Row(str(peer), run, run.error.replace(f"{folder}{os.sep}", "")), None
        try:
            session = open_model(out, self.threads)
            scores = self.task.judge(self.reference, outputs(session, self.task, self.test), self.test)
        except Exception as error:  # whatever the peer's model does wrong is the peer's result
            return Row(str(peer), run, _last_line(str(error).replace(f"{folder}{os.sep}", ""), 1)), None
        return Row(str(peer), run, scores=scores, size=size(out) / self.model.stat().st_size), session


def compare(task: Task, peers: Sequence[Peer], zoo: Path, threads: int) -> list[Row]:
    """Rows of one model, the float model first."""
    model = task.path(zoo)
    _, test = task.split(zoo)
    session = open_model(model, threads)
    reference = outputs(session, task, test)
    tried = [(Row(FLOAT, scores=task.judge(reference, reference, test), size=1.0), session)]
    with tempfile.TemporaryDirectory() as folder:
        case = Case(task, model, calibration_npz(zoo, task.key, Path(folder)), test, reference, threads)
        for number, peer in enumerate(peers):
            print(f"{task.key}: {peer}", file=sys.stderr, flush=True)
            tried.append(case.attempt(peer, Path(folder) / str(number)))
        sessions = {row.peer: session for row, session in tried if session is not None}
        times = {f"b{batch}": latency(sessions, test.item(0, batch)) for batch in task.batches}
    return [_timed(row, times) if row.peer in sessions else row for row, _ in tried]


def _timed(row: Row, times: Mapping[str, Mapping[str, float]]) -> Row:
    milliseconds = {batch: of[row.peer] for batch, of in times.items()}
    speedup = {batch: of[FLOAT] / of[row.peer] for batch, of in times.items()}
    return replace(row, milliseconds=milliseconds, speedup=speedup)


# ---- showing the rows ------------------------------------------------------------------------------------------------


def markdown(key: str, rows: Sequence[Row]) -> str:
    """The rows as a table, and below it why a peer has no figures."""
    scores, batches = list(rows[0].scores), list(rows[0].milliseconds)
    head = ["peer", *scores, *(f"{batch} ms" for batch in batches), "tool s", "CPU s", "peak MiB", "size"]
    table = [head, ["---"] + ["--:"] * (len(head) - 1), *(_cells(row, scores, batches) for row in rows)]
    lines = [f"| {' | '.join(line)} |" for line in table]
    failures = [f"- {row.peer}: `{row.error}`" for row in rows if row.error]
    return "\n".join([f"### {key}", "", *lines, *([""] if failures else []), *failures, ""])


def _cells(row: Row, scores: Sequence[str], batches: Sequence[str]) -> list[str]:
    run = row.run
    return [
        row.peer,
        *(_score(name, row.scores[name]) if row.scores else "failed" for name in scores),
        *(f"{row.milliseconds[b]:.2f} **{row.speedup[b]:.2f}x**" if row.speedup else "" for b in batches),
        *([f"{run.seconds:.1f}", f"{run.cpu_seconds:.1f}", f"{run.peak_mib:.0f}"] if run else [""] * 3),
        f"{row.size:.3f}" if row.size else "",
    ]


def _score(name: str, value: float) -> str:
    return f"{value:.4f}" if "cos" in name or "Spearman" in name else f"{value:.2f}"


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


# ---- command line ----------------------------------------------------------------------------------------------------


def main(words: Sequence[str]) -> int:
    """Compare, print, save. 2 if the zoo, a model or a peer is not there."""
    if words[:1] == ["--quantize"]:  # how this file runs itself as the process of ONNX Runtime's quantizer
        variant, model, data, out, threads = words[1:]
        quantize_with_ort(variant, model, data, out, int(threads))
        return 0
    arguments = _arguments(words)
    try:
        tasks = [_task(key) for key in arguments.models.split(",")]
        peers = [Peer.parse(text) for text in arguments.peers.split(",")] if arguments.peers else None
        tables = {}
        for task in tasks:
            tables[task.key] = compare(task, peers or _default_peers(task), arguments.zoo.resolve(), arguments.threads)
            print(markdown(task.key, tables[task.key]), flush=True)
    except (PeerError, ZooError) as error:
        print(error, file=sys.stderr)
        return 2
    _save(arguments, tables)
    return 0


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="onnxq beside ONNX Runtime's quantizer on real models and data.")
    parser.add_argument("--zoo", type=Path, required=True, help="folder that holds models/ and data/")
    parser.add_argument("--models", default=",".join(TASKS), help="comma between; default: all")
    parser.add_argument("--peers", default="", help="comma between; default: those that suit the model")
    parser.add_argument("--threads", type=int, default=1, help="threads in an operator; default: 1")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--markdown", type=Path, help="file to write the tables to")
    return parser.parse_args(words)


def _task(key: str) -> Task:
    if key not in TASKS:
        raise PeerError(f"No model '{key}'. Choose from {', '.join(TASKS)}.")
    return TASKS[key]


def _default_peers(task: Task) -> list[Peer]:
    return [Peer.parse(text) for text in DEFAULT_PEERS if task.transformer or text not in TRANSFORMERS_ONLY]


def _save(arguments: argparse.Namespace, tables: Mapping[str, Sequence[Row]]) -> None:
    if arguments.json:
        models = {key: [_plain(row) for row in rows] for key, rows in tables.items()}
        arguments.json.write_text(json.dumps({**conditions(arguments.threads), "models": models}, indent=1) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(markdown(key, rows) for key, rows in tables.items()))


def _plain(row: Row) -> dict[str, Any]:
    """The row as JSON has it: no infinity, which is the SQNR of the float model against itself."""
    scores = {name: value if np.isfinite(value) else None for name, value in row.scores.items()}
    return {**asdict(row), "scores": scores}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
