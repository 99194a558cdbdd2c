"""Which models of a zoo compute in PyTorch what they compute in ONNX Runtime: by our interpreter, and by onnx2torch.

    python tools/convert_zoo.py --zoo PATH [--onnx2torch] [--nodes] [--speed]

A zoo is a folder with models in it, at any depth; the sample models in models/ are looked at too. Inputs are random.
Differences are the largest of each output, as a share of its largest element. `--nodes` says how far the worst node is
off when it is fed the runtime's inputs, and `--speed` times one run with its gradients in both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from onnxq.calibration.data import open_data
from onnxq.errors import OnnxqError
from onnxq.graph import Graph, to_model
from onnxq.modelfile import load
from onnxq.runtime import Session
from onnxq.training.fidelity import check_fidelity, difference, own_differences
from onnxq.training.interpreter import Interpreter

SAMPLES = Path(__file__).resolve().parent.parent / "models"
TIMED: Mapping[str, int] = {"cifar10_resnet20.onnx": 32, "mobilenetv2_1.0_224.onnx": 8}
"""Models whose gradients are timed, and the batch."""
ROUNDS = 11
Feeds = Mapping[str, np.ndarray[Any, Any]]


def feeds_of(graph: Graph, batch: int = 1) -> Feeds:
    """Random inputs."""
    options = f"random?batch={batch}"
    return next(iter(open_data(options, graph.interface().inputs).batches(1)))


def ours(graph: Graph, feeds: Feeds) -> str:
    """How far the interpreter is off."""
    return f"{check_fidelity(graph, Interpreter(graph), feeds):.1e}"


def theirs(graph: Graph, feeds: Feeds) -> str:
    """How far a model of onnx2torch is off."""
    module = converted(graph)
    expected = Session(to_model(graph).SerializeToString(), folder=graph.folder, optimize=False).run(feeds)
    with torch.no_grad():
        found = module(*(torch.from_numpy(feeds[tensor.name]) for tensor in graph.inputs))
    outputs = [found] if isinstance(found, torch.Tensor) else list(found)
    pairs = zip(expected.values(), outputs, strict=True)
    return f"{max(difference(value, tensor.numpy()) for value, tensor in pairs):.1e}"


def converted(graph: Graph) -> torch.nn.Module:
    """What onnx2torch makes of a graph."""
    model = to_model(graph)
    if graph.folder is not None:
        onnx.external_data_helper.load_external_data_for_model(model, str(graph.folder))
    module: torch.nn.Module = import_module("onnx2torch").convert(model)
    return module.eval()


def worst_node(graph: Graph, feeds: Feeds) -> str:
    """The node that is furthest off on its own."""
    nodes = list(own_differences(graph, Interpreter(graph), feeds))
    step, off, _ = max(nodes, key=lambda node: node[1])
    return f"{off:.1e} {step.op}, of {len(nodes)}"


def words(attempt: Callable[[Graph, Feeds], str], graph: Graph, feeds: Feeds) -> str:
    """What an attempt gives, or why it fails."""
    try:
        return attempt(graph, feeds)
    except OnnxqError as error:
        return str(error)
    except Exception as error:  # onnx2torch raises whatever it meets
        return f"{type(error).__name__}: {error}".splitlines()[0]


def gradients(run: Callable[[], torch.Tensor]) -> None:
    """One run, and the gradients of its squares."""
    torch.autograd.backward([run().square().mean()])


def milliseconds(runs: Sequence[Callable[[], torch.Tensor]]) -> list[float]:
    """The median time of one run with its gradients, of each in turns; all see the same moments of the machine."""
    taken: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS + 1):
        for run, times in zip(runs, taken, strict=True):
            start = time.perf_counter()
            gradients(run)
            times.append(time.perf_counter() - start)
    return [1e3 * statistics.median(times[1:]) for times in taken]


def trainable(graph: Graph, channels_last: bool = False) -> Interpreter:
    """The interpreter with every float weight that has axes as a parameter."""
    module = Interpreter(graph)
    for name, tensor in module.constants.items():
        if tensor.is_floating_point() and tensor.ndim:
            last = channels_last and tensor.ndim == 4
            made = tensor.contiguous(memory_format=torch.channels_last) if last else tensor
            module.constants[name] = torch.nn.Parameter(made)
    return module


def speed(graph: Graph, batch: int) -> str:
    """Times of ours, of ours with channels last, and of onnx2torch."""
    name, output = graph.inputs[0].name, graph.outputs[0].name
    x = torch.from_numpy(feeds_of(graph, batch)[name])
    last = x.contiguous(memory_format=torch.channels_last)
    module, module_last, other = trainable(graph), trainable(graph, channels_last=True), converted(graph)
    runs: list[Callable[[], torch.Tensor]] = [
        lambda: module({name: x})[output],
        lambda: module_last({name: last})[output],
        partial(other, x),
    ]
    plain, channels, theirs = milliseconds(runs)
    return f"batch {batch}: {plain:.0f} ms, channels last {channels:.0f} ms, onnx2torch {theirs:.0f} ms"


def models(zoo: Path) -> Iterator[Path]:
    """The model files, those of the zoo first."""
    yield from sorted(zoo.rglob("*.onnx"))
    yield from sorted(SAMPLES.glob("*.onnx"))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--onnx2torch", action="store_true")
    parser.add_argument("--nodes", action="store_true")
    parser.add_argument("--speed", action="store_true")
    arguments = parser.parse_args()
    attempts: dict[str, Callable[[Graph, Feeds], str]] = {"ours": ours}
    if arguments.onnx2torch:
        attempts["onnx2torch"] = theirs
    if arguments.nodes:
        attempts["worst node"] = worst_node
    print(f"| model | {' | '.join(attempts)} |\n|{'---|' * (len(attempts) + 1)}")
    for path in models(arguments.zoo):
        graph = load(path)
        try:
            feeds = feeds_of(graph)
        except OnnxqError as error:
            print(f"| {path.name} | {error} |")
            continue
        cells = [words(attempt, graph, feeds)[:160] for attempt in attempts.values()]
        print(f"| {path.name} | {' | '.join(cells)} |", flush=True)
        if arguments.speed and path.name in TIMED:
            print(f"  {speed(graph, TIMED[path.name])}", flush=True)


if __name__ == "__main__":
    main()
