"""How onnxq's float16, int8 and int4 models do on a GPU: nearness to the float model on the CPU, latency, copies.

    python tools/cuda_table.py --zoo PATH [--models minilm,...] [--own MODEL.onnx[=DATA] ...] [--variants fp16,...]
                               [--batch 1] [--resident] [--test 64] [--json FILE] [--cpu]

Every variant of a model runs on the CUDA provider and is timed in turns with the float model there, inputs and outputs
in the memory of the CPU, or with `--resident` in that of the GPU. DATA is whatever onnxq takes (`onnxq optimize
--data`); without it random numbers. `Memcpy` counts the copies between GPU and CPU inside of a run, `on CPU` the
operators that run there: arithmetic of shapes, and what the GPU has no kernel for. With `--cpu` the same table is made
on the CPU provider, of models for the CPU. Without a GPU it says so, and is done.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime as ort
from compare import conditions
from cuda_report import Row, first_sentence, markdown, plain
from textmodel import parsed
from zoo import TASKS, Array, Feeds, Task, ZooError, count, sqnr_db

import onnxq
from onnxq import runtime
from onnxq.calibration.data import Data, open_data
from onnxq.errors import OnnxqError
from onnxq.modelfile import load
from onnxq.options import Options
from onnxq.proof import disk_size
from onnxq.recipe import Recipe, make_recipe
from onnxq.runtime import Session

CUDA = "CUDAExecutionProvider"
FLOAT = "float32"
MODES: Mapping[str, str] = MappingProxyType(
    {"fp16": "fp16", "int8": "static-int8", "weight8": "weight-int8", "int4": "weight-int4"}
)
"""The variants beside float32, and the mode of the recipe that makes each."""
FOR_TENSORRT: Mapping[str, Any] = MappingProxyType(
    {"format": "qdq", "activation": {"format": "int8", "symmetric": True}}
)
"""What static-int8 needs beside its mode for the target cuda."""
SHARE = 3.0
"""Seconds that each variant of a model is timed for."""


@dataclass(frozen=True)
class Settings:
    """Where and how everything is measured.

    `items`: how many test items at most; `resident`: whether inputs and outputs stay where the model runs.
    """

    provider: str
    variants: tuple[str, ...]
    threads: int
    batch: int
    items: int
    resident: bool = False

    @property
    def target(self) -> str:
        """What the recipe calls the provider."""
        return "cuda" if self.provider == CUDA else "cpu"


@dataclass(frozen=True)
class Subject:
    """A model with data; `reduce`: (one output, its inputs) -> what of it is compared."""

    name: str
    path: Path
    calibration: Data
    test: Data
    reduce: Callable[[Array, Feeds], Array] = lambda output, feeds: output


# ---- models ----------------------------------------------------------------------------------------------------------


def from_zoo(task: Task, zoo: Path, most: int) -> Subject:
    """A task of the zoo. Raises ZooError."""
    path = task.path(zoo)
    inputs = load(path).interface().inputs
    calibration, test = (open_data(dict(items.feeds), inputs) for items in task.split(zoo, most))
    return Subject(task.key, path, calibration, test, task.reduce)


def from_file(words: str) -> Subject:
    """A model of one's own, `PATH` or `PATH=DATA`. Raises OnnxqError."""
    path, _, data = words.partition("=")
    opened = open_data(data or "random", load(path).interface().inputs)
    halves = opened.split(len(opened) // 2) if len(opened) > 1 else (opened, opened)
    return Subject(Path(path).stem, Path(path), *halves)


def build(subject: Subject, variant: str, folder: Path, settings: Settings) -> tuple[Path, str]:
    """The file of a variant, and what onnxq said if it left the model alone. Raises OnnxqError."""
    if variant == FLOAT:
        return subject.path, ""
    out = folder / f"{variant}.onnx"
    recipe = recipe_of(variant, settings.target)
    # unproven: this table is the proof
    options = Options(check=False, threads=settings.threads, providers=(settings.provider,))
    result = onnxq.optimize(subject.path, out, data=subject.calibration, recipe=recipe, options=options)
    if result.output is None:
        raise OnnxqError(result.reason)
    return out, f"{result.status}: {first_sentence(result.reason)}" if result.reason else ""


def recipe_of(variant: str, target: str) -> Recipe:
    """What makes a variant for a target; static int8 for a GPU is Q/DQ as TensorRT takes it."""
    more = FOR_TENSORRT if target == "cuda" and MODES[variant] == "static-int8" else {}
    return make_recipe({"mode": MODES[variant], "target": target, **more})


# ---- measuring -------------------------------------------------------------------------------------------------------


def measure(subject: Subject, settings: Settings) -> list[Row]:
    """The rows of a model, float32 first."""
    reference = outputs(Session(subject.path, threads=settings.threads), subject, settings)
    with TemporaryDirectory(prefix="onnxq.") as folder:
        tried: list[tuple[Row, Session | None]] = []
        for variant in (FLOAT, *settings.variants):
            print(f"{subject.name}: {variant}", file=sys.stderr, flush=True)
            tried.append(_attempt(subject, variant, reference, Path(folder), settings))
        times = _times(subject, {row.variant: session for row, session in tried if session}, settings)
    return [replace(row, **times.get(row.variant, {})) for row, _ in tried]


def _attempt(
    subject: Subject, variant: str, reference: Sequence[Array], folder: Path, settings: Settings
) -> tuple[Row, Session | None]:
    """One variant, but for its latency: a row, and the session or None after a failure."""
    row, failure = Row(subject.name, variant), "not built"
    try:
        path, note = build(subject, variant, folder, settings)
        failure = "not run"
        session = Session(path, provider=settings.provider, threads=settings.threads)
        found = outputs(session, subject, settings)
        size = disk_size(path, load(path)) / disk_size(subject.path, load(subject.path))
        row = replace(row, note=note, size=size, **_scores(reference, found), **_placement(path, subject, settings))
    except OnnxqError as error:
        return replace(row, note=f"{failure}: {first_sentence(str(error))}"), None
    except Exception as error:  # a defect is a cell of the table, and the others are made all the same
        return replace(row, note=f"{failure}, crashed: {type(error).__name__}: {first_sentence(str(error))}"), None
    return row, session


def outputs(session: Session, subject: Subject, settings: Settings) -> list[Array]:
    """The first output for each test item."""
    first = session.outputs[0].name
    feeds = [subject.test.sample(place) for place in range(min(settings.items, len(subject.test)))]
    return [subject.reduce(session.run(feed, [first])[first], feed).astype(np.float64).ravel() for feed in feeds]


def _scores(reference: Sequence[Array], found: Sequence[Array]) -> dict[str, Any]:
    cosines = [
        float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
        for one, other in zip(reference, found, strict=True)
    ]
    noise = sqnr_db(np.concatenate(list(reference)), np.concatenate(list(found)))
    return {"cosine": float(np.mean(cosines)), "sqnr_db": noise}


def _placement(path: Path, subject: Subject, settings: Settings) -> dict[str, Any]:
    """Where the operators of a run are executed."""
    session = Session(path, provider=settings.provider, threads=settings.threads, profile=True)
    session.run(_batch(subject, settings))
    kernels = session.kernels()
    return {
        "memcpy": sum(kernel.op.startswith("Memcpy") for kernel in kernels),
        "on_cpu": sum(kernel.provider == runtime.CPU for kernel in kernels),
        "kernels": len(kernels),
    }


def _times(subject: Subject, sessions: Mapping[str, Session], settings: Settings) -> dict[str, dict[str, Any]]:
    """Latencies by variant; speed-ups are missing where float32 itself does not run."""
    if not sessions:
        return {}
    feed = _batch(subject, settings)
    device = "cuda" if settings.provider == CUDA else "cpu"
    timed = [Resident(session, feed, device) if settings.resident else session for session in sessions.values()]
    taken = runtime.interleave(timed, feed, seconds=SHARE * len(sessions), rounds=100)
    return {
        name: {"milliseconds": timing.milliseconds} | ({"speedup": timing.speedup} if FLOAT in sessions else {})
        for name, timing in zip(sessions, taken, strict=True)
    }


class Resident(Session):
    """A session that runs on inputs which lie in the memory of its device, and leaves its outputs there."""

    def __init__(self, session: Session, feeds: Feeds, device: str) -> None:
        self._session = session._session
        self._binding = self._session.io_binding()
        for name, array in feeds.items():
            self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, device, 0))
        for spec in session.outputs:
            self._binding.bind_output(spec.name, device)

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run on what it was made with. Returns nothing: that would be a copy."""
        self._session.run_with_iobinding(self._binding)
        return {}


def _batch(subject: Subject, settings: Settings) -> Feeds:
    return next(subject.test.batches(settings.batch))


# ---- the GPU ---------------------------------------------------------------------------------------------------------


def gpu(settings: Settings) -> str:
    """The name of the GPU; empty where there is none, or none is used."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    with suppress(OSError):
        if settings.provider == CUDA:
            return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return ""


def why_no_gpu() -> str:
    """The sentence why nothing can run on a GPU here; empty where it can."""
    if CUDA not in runtime.providers():
        return f"ONNX Runtime {runtime.version()} has no {CUDA} here: install onnxruntime-gpu, or try --cpu."
    model = parsed("float[1] x", "", "y = Neg(x)", ["y"], opset=17).SerializeToString()
    with suppress(Exception):  # some versions raise, others fall back to the CPU
        if CUDA in ort.InferenceSession(model, providers=[CUDA]).get_providers():
            return ""
    return f"ONNX Runtime {runtime.version()} cannot use a GPU here: it needs one, its driver and CUDA, or try --cpu."


# ---- command line ----------------------------------------------------------------------------------------------------


def main(words: Sequence[str]) -> int:
    """Measure, print, save. 0 where there is no GPU, too; 2 if a model or its data is not there."""
    arguments = _arguments(words)
    provider = runtime.CPU if arguments.cpu else CUDA
    settings = Settings(
        provider, arguments.variants, arguments.threads, arguments.batch, arguments.test, arguments.resident
    )
    if provider == CUDA and (reason := why_no_gpu()):
        print(reason)
        return 0
    rows: list[Row] = []
    try:
        for subject in _subjects(arguments):
            rows += measure(subject, settings)
            if arguments.json:  # what is there stays there, whatever comes
                arguments.json.write_text(json.dumps(document(rows, settings), indent=1) + "\n")
    except (OnnxqError, ZooError) as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        print(markdown(rows))
    return 0


def document(rows: Sequence[Row], settings: Settings) -> dict[str, Any]:
    """The figures, and what they depend on."""
    where = {**conditions(settings.threads), **asdict(settings), "gpu": gpu(settings)}
    return {**where, "rows": [plain(row) for row in rows]}


def _subjects(arguments: argparse.Namespace) -> Iterator[Subject]:
    if arguments.zoo:
        for key in arguments.models:
            yield from_zoo(TASKS[key], arguments.zoo, arguments.test)
    yield from map(from_file, arguments.own)


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="onnxq's models on a GPU: nearness to float, latency, copies.")
    parser.add_argument("--zoo", type=Path, help="folder that holds models/ and data/")
    parser.add_argument("--models", type=_among(TASKS), default=tuple(TASKS), help="of the zoo; default: all")
    parser.add_argument("--own", action="append", default=[], metavar="MODEL[=DATA]", help="another model")
    parser.add_argument("--variants", type=_among(MODES), default=tuple(MODES), help="beside float32; default: all")
    parser.add_argument("--threads", type=int, default=1, help="threads of an operator on the CPU; default: 1")
    parser.add_argument("--batch", type=int, default=1, help="items in a timed batch; default: 1")
    parser.add_argument("--resident", action="store_true", help="time with inputs and outputs in the GPU's memory")
    parser.add_argument("--test", type=count, default=64, help="items whose outputs are compared, at most; default: 64")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--cpu", action="store_true", help="the same on the CPU provider")
    return parser.parse_args(words)


def _among(known: Mapping[str, object]) -> Callable[[str], tuple[str, ...]]:
    """Reads names with commas between, all of them among the known ones."""

    def read(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(","))
        if unknown := [name for name in chosen if name not in known]:
            raise argparse.ArgumentTypeError(f"no '{unknown[0]}'; choose from {', '.join(known)}")
        return chosen

    return read


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
