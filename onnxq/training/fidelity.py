"""Whether a graph computes in PyTorch what it computes in ONNX Runtime, and which operator is to blame if not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from onnxq.errors import UnsupportedModel
from onnxq.graph import Array, Graph, to_model
from onnxq.runtime import Session
from onnxq.training.interpreter import Interpreter, Step, as_tensor

TOLERANCE = 1e-3
"""How far a tensor may be off, as a share of its largest element.

Measured on the zoo with `python tools/convert_zoo.py --zoo ZOO --nodes`: of 5,385 nodes that are fed the runtime's
inputs all stay below 4e-6, but for an InstanceNormalization (1.1e-4) and Sigmoids far below zero (6e-4), where the
runtime is the one that is off.
"""

ADDED_UP = 10
"""How many times further an output may be off while every node is right on its own.

The same tool: outputs stay below 6e-6, but for those of a detector (5e-4) and of a style transfer (1.4e-3, of which the
runtime's own distance from float64 is 1.36e-3).
"""

HALF_TOLERANCE = 1e-2
"""`TOLERANCE` for float16 and bfloat16, which have 10 and 7 bits behind the point."""

AT_A_TIME = 32
"""Nodes whose inputs and outputs are held at a time."""


def check_fidelity(graph: Graph, module: Interpreter, feeds: Mapping[str, Array], threads: int = 0) -> float:
    """How far the module's outputs are from the runtime's at most, as a share of the largest element of each.

    Args:
        graph: the float model; the runtime runs it as it is, without its own rewriting.
        module: the same in PyTorch.
        feeds: one batch.
        threads: of the runtime; 0 lets it choose.

    Raises:
        UnsupportedModel: an output is off by more than `TOLERANCE`, and so is a node when it is fed the runtime's
            inputs: the first such node is named. Or no node is, and yet the output is off by `ADDED_UP` times that.
        DataError: the batch does not fit the model.
    """
    expected = _session(graph, (), threads).run(feeds)
    found = _run(module, feeds, list(expected))
    worst = max((difference(value, found[name]) for name, value in expected.items()), default=0.0)
    shares = [difference(value, found[name]) / tolerance(value) for name, value in expected.items()]
    if max(shares, default=0.0) > 1:
        _blame(graph, module, feeds, threads, worst)
    if max(shares, default=0.0) > ADDED_UP:
        raise UnsupportedModel(
            f"PyTorch's outputs are off by {worst:.2g} of their largest value, though no operator is on its own: "
            "rounding errors add up. Check the data, or quantize the model without training."
        )
    return worst


def tolerance(expected: Array) -> float:
    """How far a tensor may be off."""
    return HALF_TOLERANCE if expected.dtype.itemsize == 2 and expected.dtype.kind in "fV" else TOLERANCE


def difference(expected: Array, found: Array) -> float:
    """The largest difference of two arrays, as a share of the first one's largest finite element.

    Infinite where shapes differ, or where only one of them is NaN or infinite.
    """
    if expected.shape != found.shape:
        return float("inf")
    one, other = expected.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(one) & np.isfinite(other)
    if not np.array_equal(one[~finite], other[~finite], equal_nan=True):
        return float("inf")
    off = float(np.abs(one[finite] - other[finite]).max(initial=0.0))
    scale = float(np.abs(one[finite]).max(initial=0.0))
    return 0.0 if off == 0 else off / scale if scale else float("inf")


def _session(graph: Graph, extra: Sequence[str], threads: int) -> Session:
    model = to_model(graph, extra_outputs=extra).SerializeToString()
    return Session(model, folder=graph.folder, threads=threads, optimize=False)


def _run(module: Interpreter, feeds: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
    """Floats go where the module's constants are; integers stay on the CPU."""
    device = next((t.device for t in module.constants.values() if t.is_floating_point()), torch.device("cpu"))
    given = {name: as_tensor(values) for name, values in feeds.items()}
    with torch.no_grad():
        found = module({name: t.to(device) if t.is_floating_point() else t for name, t in given.items()}, wanted)
    return {name: _array(tensor) for name, tensor in found.items()}


def _array(tensor: Tensor) -> Array:
    values: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().cpu().numpy()
    return values


def _blame(graph: Graph, module: Interpreter, feeds: Mapping[str, Array], threads: int, worst: float) -> None:
    """Raise UnsupportedModel for the first node that is off on its own, if there is one."""
    for step, off, share in own_differences(graph, module, feeds, threads):
        if share > 1:
            raise UnsupportedModel(
                f"Node '{step.name}' ({step.op}) computes something else in PyTorch: off by {off:.2g} of its largest "
                f"value, and an output of the model by {worst:.2g}. Export it otherwise, or quantize without training."
            )


def own_differences(
    graph: Graph, module: Interpreter, feeds: Mapping[str, Array], threads: int = 0
) -> Iterator[tuple[Step, float, float]]:
    """For each node in order how far its outputs are off when it is fed the runtime's inputs, and in tolerances."""
    for start in range(0, len(module.steps), AT_A_TIME):
        steps = module.steps[start : start + AT_A_TIME]
        names = {name for step in steps for name in (*step.inputs, *step.outputs) if name}
        inner = sorted(names - {*feeds} - {*module.constants})
        values = {**feeds, **_session(graph, inner, threads).run(feeds, inner)}
        for step in steps:
            wanted = [name for name in step.outputs if name]
            found = _run(module, {name: values[name] for name in step.inputs if name in values}, wanted)
            off = {name: difference(values[name], found[name]) for name in wanted}
            shares = (own / tolerance(values[name]) for name, own in off.items())
            yield step, max(off.values(), default=0.0), max(shares, default=0.0)
