"""The proof: a float model against a quantized one, on the same data and in the same run.

Not called validate.py: a module of that name would hide the function `onnxq.validate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.calibration.collect import Progress, silent, unmasked
from onnxq.calibration.data import Data, mask_of
from onnxq.channels import Factors
from onnxq.comparison import Comparison, OutputProof, batch_size, paired
from onnxq.continuation import Continuations
from onnxq.fake_quant import brings_scales
from onnxq.graph import Graph, to_model
from onnxq.kernels import by_operator, elsewhere, profile
from onnxq.metric import Meter, Score, resolve
from onnxq.node_runs import NodeRun, integer_forms, node_runs
from onnxq.numerics.affine import dequantize
from onnxq.numerics.halves import HIGHEST
from onnxq.numerics.metrics import sqnr_db
from onnxq.plan import Record
from onnxq.recipe import Contract
from onnxq.runtime import CPU, Feeds, Session, interleave, loaded_memory

Array = np.ndarray[Any, Any]

LAYER_BATCH = 4
"""Samples on which errors of inner tensors are measured."""

LAYER_GROUP = 16
"""Inner tensors that are held at a time, at first and at least."""

LAYER_BYTES = 1 << 26
"""What those of one model may take; where the first ones take less, more are held."""

EXPLAINED = 10.0
"""Decibels that factors between channels must explain before they are believed."""

LAYER_GROWTH = 8
"""How many times as many at most: later tensors may be larger."""


class LayerError(Record):
    """Error of one inner tensor, with all errors that came before it.

    Attributes:
        tensor: its name.
        op: what makes it.
        sqnr_db: 10 log10(signal / noise); None where there is no noise.
        rescaled: whether a factor was found for each of its channels and taken out: whoever quantized the model moved
            it to the layers behind (SmoothQuant, cross-layer equalization).
    """

    tensor: str
    op: str
    sqnr_db: float | None
    rescaled: bool = False


class FloatNode(Record):
    """An operator that stayed in float, and why."""

    node: str
    op: str
    reason: str


class Proof(Record):
    """What validation found.

    Attributes:
        data: what it was measured on.
        samples: how many samples.
        seen: whether calibration saw the same samples.
        provider: the execution provider.
        threads: threads of the runtime; 0 is its own choice.
        outputs: by name.
        layers: errors of inner tensors, the worst first.
        nodes: every node of the quantized model that ran or holds integers: its grid, its weight and its time.
        kernels: how many of each operator really ran, after the runtime's own fusions.
        kernel_microseconds: time by operator in one run.
        on_cpu: how many of each operator the CPU took, where another provider was asked for.
        copies: how often a tensor went from one to the other.
        reference: what it was compared with: the `float` model, or one that brought its `Q/DQ` along; figures called
            float are of that one.
        float_nodes: operators that stayed in float, and why.
        size: bytes of the quantized model on disk, external data included.
        size_float: the same for the float model; 0 where it is not in a file.
        memory: bytes that the loaded model takes after one run; 0 where the system does not tell.
        memory_float: the same for the float model.
        milliseconds: median latency of one batch.
        milliseconds_float: the same for the float model.
        speedup: median of the ratios of interleaved runs, float / quantized.
        batch: samples in the batch that was timed.
        score: what the quantized model loses by the metric of the contract; None on random data.
        generation: what both models write after one prompt, if `validate` was asked for it.
    """

    data: str
    samples: int
    seen: bool
    provider: str
    threads: int
    outputs: dict[str, OutputProof]
    layers: list[LayerError]
    kernels: dict[str, int]
    kernel_microseconds: dict[str, float]
    float_nodes: list[FloatNode]
    size: int
    size_float: int
    memory: int
    memory_float: int
    milliseconds: float
    milliseconds_float: float
    speedup: float
    batch: int
    score: Score | None = None
    generation: Continuations | None = None
    on_cpu: dict[str, int] = {}
    copies: int = 0
    reference: str = "float"
    nodes: list[NodeRun] = []

    @property
    def cosine(self) -> float:
        """The worst mean cosine of all outputs."""
        return min((o.cosine for o in self.outputs.values()), default=1.0)

    @property
    def finite(self) -> bool:
        """Whether no output holds NaN or infinity of its own."""
        return all(output.finite for output in self.outputs.values())


def compare_outputs(
    reference: Session, candidate: Session, data: Data, contract: Contract, progress: Progress = silent
) -> tuple[dict[str, OutputProof], Score | None]:
    """The figures of every output, and the score, from one pass over the data.

    Made-up data shows nothing about accuracy, and has no score; neither has a model whose outputs hold no numbers.
    """
    found = {spec.name: Comparison() for spec in reference.outputs}
    meter: Meter | None = None
    for batch in paired(reference, candidate, data, progress):
        for name, comparison in found.items():
            comparison.add(name, batch)
        if batch.expected and not data.is_random:
            meter = meter or resolve(contract, batch).meter()
            meter.add(batch)
    return {name: comparison.proof() for name, comparison in found.items()}, meter.score() if meter else None


def layer_errors(
    reference: Graph, candidate: Graph, data: Data, factors: Mapping[str, Factors] | None = None
) -> list[LayerError]:
    """Error of every float tensor that both graphs hold, in floats or as integers; the worst first.

    `factors` says what the channels of tensors of the candidate were divided by; None where that is not known, and is
    found out.
    """
    forms = integer_forms(candidate)
    makers = {t.name: node for node in reference.nodes for t in node.outputs if t.name}
    floats = {name for name, t in candidate.tensors().items() if t.inputs}
    names = [
        name
        for name, t in reference.tensors().items()
        if name in makers and t.dtype == np.float32 and (name in forms or name in floats)
    ]
    feeds = next(data.take(slice(0, LAYER_BATCH)).batches(LAYER_BATCH))
    errors: list[LayerError] = []
    start, size = 0, LAYER_GROUP
    while start < len(names):
        part = names[start : start + size]
        expected = _inner(reference, part, feeds)
        fitting = LAYER_BYTES * len(part) // max(1, sum(value.nbytes for value in expected.values()))
        start, size = start + size, max(LAYER_GROUP, min(LAYER_GROWTH * size, fitting))
        got = _inner(candidate, [forms[n][0] if n in forms else n for n in part], feeds)
        for name in part:
            value = got[forms[name][0]] if name in forms else got[name]
            if name in forms:
                value = dequantize(value, forms[name][1].reshape(()), forms[name][2].reshape(()))
            if factors is not None and name in factors:
                value = value * _along(*factors[name], value.ndim)
            if value.shape == expected[name].shape:
                mask = mask_of(feeds)  # what padding holds has no range, and no effect
                pair = unmasked(expected[name], mask), unmasked(value, mask)
                found, moved = _tensor_sqnr(*pair), False
                if factors is None and found is not None:
                    found, moved = _without_factors(*pair, found)
                errors.append(LayerError(tensor=name, op=makers[name].op, sqnr_db=found, rescaled=moved))
    return sorted(errors, key=lambda error: (error.sqnr_db is None, error.sqnr_db or 0.0))


def _along(axis: int, factors: Sequence[float], rank: int) -> Array:
    return np.asarray(factors, np.float32).reshape(-1, *[1] * (rank - axis - 1))


def _tensor_sqnr(reference: Array, value: Array) -> float | None:
    end = HIGHEST if value.dtype == np.float16 else 1e30  # attention masks hold the lowest float, or what stands for it
    usable = np.isfinite(reference) & (np.abs(reference) < end)
    found = sqnr_db(reference[usable], value[usable])
    return found if np.isfinite(found) else None


def _without_factors(reference: Array, value: Array, plain: float) -> tuple[float, bool]:
    """The error that is left when a factor is taken out of each channel, if that explains most of it.

    The factors are those of least squares, along the second axis or the last one.
    """
    best = plain
    for axis in {1, reference.ndim - 1} if reference.ndim > 1 else ():
        exact, found = (np.moveaxis(np.asarray(t, np.float64), axis, 0) for t in (reference, value))
        exact, found = (t.reshape(len(t), -1) for t in (exact, found))
        with np.errstate(all="ignore"):
            power = np.square(found).sum(axis=1, keepdims=True)
            scale = np.where(power > 0, (exact * found).sum(axis=1, keepdims=True) / power, 1.0)
            left = _tensor_sqnr(exact, found * scale)
        best = max(best, plain if left is None else left)
    return (best, True) if best > plain + EXPLAINED else (plain, False)


def _inner(graph: Graph, names: Sequence[str], feeds: Feeds) -> dict[str, Array]:
    model = to_model(graph, extra_outputs=names).SerializeToString()
    return Session(model, folder=graph.folder).run(feeds, list(names))


def disk_size(model: Path, graph: Graph) -> int:
    """Bytes of a model file with its external data."""
    return sum(file.stat().st_size for file in {model, *graph.files} if file.exists())


def prove(
    reference: tuple[Path, Graph],
    candidate: tuple[Path, Graph],
    data: Data,
    *,
    seen: bool,
    float_nodes: Mapping[str, tuple[str, str]],
    provider: str = CPU,
    threads: int = 1,
    batch: int = 1,
    layers: bool = True,
    seconds: float = 3.0,
    contract: Contract | None = None,
    factors: Mapping[str, Factors] | None = None,
    progress: Progress = silent,
) -> Proof:
    """Compare two models that lie in files.

    Args:
        reference: the float model, as a path and as a graph.
        candidate: the quantized model.
        data: what to run them on.
        seen: whether calibration saw it.
        float_nodes: operator and reason for each node that stayed in float.
        provider: the execution provider to run both on.
        threads: threads of the runtime inside one operator.
        batch: samples in the batch that is timed.
        layers: whether to measure the errors of inner tensors too.
        seconds: time for the latency measurement.
        contract: what accuracy is measured by.
        factors: what the channels of inner tensors of the quantized model were divided by; None where nobody knows.
        progress: told after each batch.

    Raises:
        UnsupportedModel: the runtime refuses one of the models.
        DataError: the data does not fit.
        RecipeError: the metric of the contract does not fit the model or the data.
    """
    first = Session(reference[0], provider=provider, threads=threads)
    second = Session(candidate[0], provider=provider, threads=threads)
    outputs, score = compare_outputs(first, second, data, contract or Contract(), progress)
    feeds = next(data.batches(batch))
    before, after = interleave([first, second], feeds, seconds=seconds)
    kernels = profile(candidate[0], provider, threads, feeds)
    counts, times = by_operator(kernels)
    on_cpu, copies = elsewhere(kernels, provider)
    return Proof(
        data=data.description,
        samples=len(data),
        seen=seen,
        provider=provider,
        threads=threads,
        outputs=outputs,
        layers=layer_errors(reference[1], candidate[1], data, factors) if layers else [],
        kernels=counts,
        kernel_microseconds=times,
        float_nodes=[FloatNode(node=n, op=op, reason=why) for n, (op, why) in float_nodes.items()],
        size=disk_size(*candidate),
        size_float=disk_size(*reference),
        memory=loaded_memory(candidate[0], feeds, provider),
        memory_float=loaded_memory(reference[0], feeds, provider),
        milliseconds=after.milliseconds,
        milliseconds_float=before.milliseconds,
        speedup=after.speedup,
        batch=batch_size(feeds),
        score=score,
        on_cpu=on_cpu,
        copies=copies,
        reference="Q/DQ" if brings_scales(reference[1]) else "float",
        nodes=node_runs(candidate[1], kernels),
    )
