"""The one doorway to ONNX Runtime: sessions, providers, the kernels that really ran, and fair timing."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from onnxq.errors import DataError, OutputError, ProviderError, UnsupportedModel
from onnxq.interface import TensorSpec

ort.set_default_logger_severity(4)

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]
CPU = "CPUExecutionProvider"

ELEMENT_TYPES: Mapping[str, np.dtype] = {
    "float": np.dtype(np.float32),
    "double": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bool": np.dtype(np.bool_),
    **{f"{sign}int{bits}": np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
"""Instruction sets that decide how fast integer kernels are, as Linux calls them."""

CPUINFO = Path("/proc/cpuinfo")


def version() -> str:
    """The version of the installed ONNX Runtime."""
    return str(ort.__version__)


def machine() -> str:
    """What timing depends on: the processor, its instruction sets, how many there are, and the runtime's version."""
    lines: dict[str, str] = {}
    with suppress(OSError, UnicodeDecodeError):
        for line in CPUINFO.read_text(encoding="utf-8").splitlines():
            field, _, value = line.partition(":")
            lines.setdefault(field.strip(), value.strip())
    flags = lines.get("flags", lines.get("Features", "")).split()
    name = lines.get("model name") or platform.processor() or platform.machine()
    parts = [name, *(found for found in INSTRUCTIONS if found in flags), f"{cpus()} CPUs", f"onnxruntime {version()}"]
    return ", ".join(parts)


def cpus() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


MEMINFO = Path("/proc/meminfo")


def free_memory() -> int | None:
    """Bytes that programs may still take without others being pushed out; None where the system does not tell."""
    with suppress(OSError, UnicodeDecodeError, ValueError):
        for line in MEMINFO.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return None


def providers() -> list[str]:
    """The execution providers that are installed here, the fastest first."""
    return list(ort.get_available_providers())


def check_providers(wanted: Sequence[str]) -> None:
    """Raise ProviderError where a provider was asked for that is not installed."""
    present = providers()
    for provider in wanted:
        if provider not in present:
            raise ProviderError(
                f"Execution provider '{provider}' is not installed. Present here: {', '.join(present)}."
            )


@dataclass(frozen=True)
class Kernel:
    """One operation as the runtime executed it.

    Attributes:
        node: its name after the runtime's own fusions.
        op: the operator that ran.
        provider: the execution provider it ran on.
        microseconds: the time of one run, the median if not said otherwise.
    """

    node: str
    op: str
    provider: str
    microseconds: float


class Session:
    """A model that is ready to run.

    Args:
        model: a path, or a serialized model.
        folder: where the external data of a serialized model lies.
        provider: the execution provider to run on; the CPU takes what it cannot.
        threads: threads inside one operator; 0 lets the runtime choose.
        optimize: whether the runtime may fuse and rewrite the graph.
        profile: whether to record what runs, for `kernels`.
        pooled: whether this is one of many sessions that run by turns: it takes its memory out of one `pool`,
            so that what one session just used is warm for the next, as it is between the operators of one model;
            and its threads rest between runs.

    Raises:
        UnsupportedModel: the runtime refuses the model; its own reason is part of the message.
        ProviderError: the provider is not installed.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        folder: Path | None = None,
        provider: str = CPU,
        threads: int = 0,
        optimize: bool = True,
        profile: bool = False,
        pooled: bool = False,
    ) -> None:
        check_providers([provider])
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
        if folder is not None and isinstance(model, bytes):
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        if pooled:
            options.add_session_config_entry("session.use_env_allocators", "1")
            options.add_session_config_entry("session.force_spinning_stop", "1")
        if profile:
            options.enable_profiling = True
            scratch = Path(tempfile.mkdtemp(prefix="onnxq."))
            self._clean_up = weakref.finalize(self, shutil.rmtree, scratch, ignore_errors=True)
            options.profile_file_prefix = str(scratch / "run")
        chosen = [provider] if provider == CPU else [provider, CPU]
        try:
            self._session = ort.InferenceSession(
                model if isinstance(model, bytes) else str(model), options, providers=chosen, enable_fallback=0
            )
        except Exception as error:
            raise UnsupportedModel(
                f"ONNX Runtime {version()} refuses the model: {_reason(error)}. Export it for this version, or install "
                "one that knows it."
            ) from error
        if provider not in self._session.get_providers():
            raise ProviderError(
                f"Execution provider '{provider}' is installed, but does not start here. Check its device and drivers."
            )
        self.inputs = tuple(_spec(value) for value in self._session.get_inputs())
        self.outputs = tuple(_spec(value) for value in self._session.get_outputs())

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once. Returns outputs by name. Raises DataError where the model fails on these inputs."""
        names = [spec.name for spec in self.outputs] if outputs is None else list(outputs)
        try:
            return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
        except Exception as error:
            raise DataError(
                f"The model fails on the given data: {_reason(error)}. Check the values and shapes."
            ) from error

    def kernels(self, quantile: float = 0.5) -> list[Kernel]:
        """What ran since the session was made, in order of execution. Ends the recording; needs `profile=True`.

        `quantile` says which of the runs of a kernel gives its time: the median one, or a faster one below 0.5.

        Raises:
            OutputError: the disk was too full for the recording.
        """
        file = Path(self._session.end_profiling())
        try:
            events = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:  # the runtime does not say that it could not write
            raise OutputError(
                f"What the runtime recorded in '{file.parent}' was cut off. Free some space there, or name another "
                "folder with the environment variable TMPDIR."
            ) from error
        finally:
            self._clean_up()
        times: dict[tuple[str, str, str], list[float]] = {}
        for event in events:
            args = event.get("args", {})
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time") and "op_name" in args:
                key = (event["name"].removesuffix("_kernel_time"), args["op_name"], args.get("provider", ""))
                times.setdefault(key, []).append(float(event["dur"]))
        return [Kernel(*key, float(np.quantile(durations, quantile))) for key, durations in times.items()]


SMALLEST = bytes.fromhex(
    "080712003a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801620f0a017912"
    "0a0a08080112040a02080142040a00100d"
)
"""A model that returns what it is given."""


def starts(provider: str) -> bool:
    """Whether an execution provider is installed, and finds its device."""
    try:
        Session(SMALLEST, provider=provider, threads=1)
    except (ProviderError, UnsupportedModel):
        return False
    return True


@contextmanager
def pool() -> Iterator[None]:
    """A pool of memory for the `pooled` sessions that are made inside; it is gone when it was left and they are."""
    _open_pool()
    try:
        yield
    finally:
        _open_pool()  # an empty one in its place: that is how the runtime lets go of the other


def _open_pool() -> None:
    kind = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    place = ort.OrtMemoryInfo("Cpu", kind, 0, ort.OrtMemType.DEFAULT)
    sizes = {"max_mem": 0, "initial_chunk_size_bytes": -1, "max_dead_bytes_per_chunk": -1}
    ort.create_and_register_allocator(place, ort.OrtArenaCfg({**sizes, "arena_extend_strategy": 1}))


def _reason(error: Exception) -> str:
    text = str(error).replace("\n", " ")
    return text.split(" : ", 3)[-1].strip()[:400].rstrip(" .")


def _spec(value: Any) -> TensorSpec:
    inner = value.type.removeprefix("tensor(").removesuffix(")")
    known = value.type.startswith("tensor(") and inner in ELEMENT_TYPES
    shape = tuple(value.shape) if value.shape is not None else None
    return TensorSpec(value.name, ELEMENT_TYPES[inner] if known else np.dtype(object), shape)


def tensor_types(model: bytes, folder: Path | None = None) -> tuple[TensorSpec, ...]:
    """Element type of every output of a model in which all inner tensors are outputs, as the runtime infers them."""
    return Session(model, folder=folder, optimize=False, threads=1).outputs


@dataclass(frozen=True)
class Timing:
    """Latency of one model among others.

    Attributes:
        milliseconds: median time of one run.
        speedup: how many times faster than the first model: median over rounds of the ratio within the round.
    """

    milliseconds: float
    speedup: float


def interleave(sessions: Sequence[Session], feeds: Feeds, *, seconds: float = 4.0, rounds: int = 40) -> list[Timing]:
    """Time models in turns on the same inputs, so that a slow moment of the machine hits all of them alike.

    Args:
        sessions: models with the same inputs; the first is the reference.
        feeds: one batch.
        seconds: how long to measure altogether, at least five rounds.
        rounds: how many rounds at most.
    """
    for session in sessions:  # the first run allocates
        session.run(feeds)
    taken: list[list[float]] = [[] for _ in sessions]
    began = time.perf_counter()
    while len(taken[0]) < 5 or (len(taken[0]) < rounds and time.perf_counter() - began < seconds):
        for session, times in zip(sessions, taken, strict=True):
            start = time.perf_counter()
            session.run(feeds)
            times.append(time.perf_counter() - start)
    return [
        Timing(
            1e3 * statistics.median(times),
            statistics.median(first / own for first, own in zip(taken[0], times, strict=True)),
        )
        for times in taken
    ]


LOAD_AND_RUN = """
import resource, sys, numpy, onnxruntime
def held():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
model, provider, feeds = sys.argv[1], sys.argv[2], dict(numpy.load(sys.argv[3]))
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
before = held()
session = onnxruntime.InferenceSession(model, options, providers=[provider])
session.run(None, feeds)
print(held() - before)
"""


def loaded_memory(model: Path, feeds: Feeds, provider: str = CPU) -> int:
    """Bytes that a loaded model takes after one run, measured in a process of its own; 0 where that cannot be told.

    That is memory of the CPU: what another device holds is not told.
    """
    if provider != CPU:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder) / "feeds.npz"
        np.savez(stored, **feeds)  # type: ignore[arg-type]
        command = [sys.executable, "-c", LOAD_AND_RUN, str(model), provider, str(stored)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    return max(int(done.stdout), 0) if done.stdout.strip().lstrip("-").isdigit() else 0
