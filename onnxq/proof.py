"""The proof: a float model against a quantized one, on the same data and in the same run.

Not called validate.py: a module of that name would hide the function `onnxq.validate`.

Everything is a sum over batches, so no more than one batch of outputs is in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.calibration.collect import Progress, silent, unmasked
from onnxq.calibration.data import Data, mask_of
from onnxq.errors import DataError
from onnxq.graph import Graph, to_model, weight
from onnxq.numerics.affine import dequantize
from onnxq.numerics.metrics import sqnr_db
from onnxq.plan import Record
from onnxq.runtime import CPU, Feeds, Kernel, Session, interleave, loaded_memory

Array = np.ndarray[Any, Any]

VOCABULARY = 256
"""An output of more than two axes is taken for a classifier from this size of its last axis on."""

LAYER_BATCH = 4
"""Samples on which errors of inner tensors are measured."""

LAYER_GROUP = 16
"""Inner tensors that are held at a time."""

OUTPUT_PARAMETERS = {
    "QuantizeLinear": (1, 2),
    "QLinearConv": (6, 7),
    "QLinearMatMul": (6, 7),
    "QGemm": (7, 8),
    "QLinearAdd": (6, 7),
    "QLinearMul": (6, 7),
    "QLinearSigmoid": (3, 4),
    "QLinearLeakyRelu": (3, 4),
    "QLinearSoftmax": (3, 4),
    "QLinearGlobalAveragePool": (3, 4),
    "QLinearAveragePool": (3, 4),
    "QLinearConcat": (0, 1),
}
"""Where integer operators keep the scale and the zero point of their output."""

QUANTIZED_SUFFIXES = ("_quantized", "_QuantizeLinear_Output")
"""How this and other tools call the integer form of a tensor."""


class OutputProof(Record):
    """How one output of the quantized model compares with the float model.

    Attributes:
        cosine: mean over samples of the cosine between the two outputs.
        cosine_min: the worst sample.
        sqnr_db: 10 log10(sum of squares of the float output / sum of squares of the difference); None if equal.
        max_error: largest absolute difference.
        agreement: share of equal argmax over the last axis, where the output looks like a classifier's.
        top1_float: share of labels that the float model gets right, where there are labels.
        top1: the same for the quantized model.
        finite: whether the quantized output holds neither NaN nor infinity that the float output does not hold.
    """

    cosine: float
    cosine_min: float
    sqnr_db: float | None
    max_error: float
    agreement: float | None = None
    top1_float: float | None = None
    top1: float | None = None
    finite: bool = True


class LayerError(Record):
    """Error of one inner tensor, with all errors that came before it: 10 log10(signal / noise)."""

    tensor: str
    op: str
    sqnr_db: float | None


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
        kernels: how many of each operator really ran, after the runtime's own fusions.
        kernel_microseconds: time by operator in one run.
        float_nodes: operators that stayed in float, and why.
        size: bytes of the quantized model on disk, external data included.
        size_float: the same for the float model; 0 where it is not in a file.
        memory: bytes that the loaded model takes after one run; 0 where the system does not tell.
        memory_float: the same for the float model.
        milliseconds: median latency of one batch.
        milliseconds_float: the same for the float model.
        speedup: median of the ratios of interleaved runs, float / quantized.
        batch: samples in the batch that was timed.
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

    @property
    def cosine(self) -> float:
        """The worst mean cosine of all outputs."""
        return min((o.cosine for o in self.outputs.values()), default=1.0)

    @property
    def finite(self) -> bool:
        """Whether no output holds NaN or infinity of its own."""
        return all(output.finite for output in self.outputs.values())


@dataclass
class Difference:
    """Running sums over batches of one output."""

    signal: float = 0.0
    noise: float = 0.0
    largest: float = 0.0
    cosines: list[Array] = field(default_factory=list)
    same: int = 0
    rows: int = 0
    right: list[int] = field(default_factory=lambda: [0, 0])
    labelled: int = 0
    finite: bool = True

    def add(self, reference: Array, value: Array, labels: Array | None) -> None:
        """Take in one batch."""
        a, b = (np.atleast_1d(np.asarray(x, np.float64)) for x in (reference, value))
        usable = np.isfinite(a)
        self.finite &= bool(np.isfinite(b[usable]).all())
        a, b = np.where(usable, a, 0.0), np.where(usable & np.isfinite(b), b, 0.0)
        self.signal += float(np.sum(a * a))
        self.noise += float(np.sum((a - b) ** 2))
        self.largest = max(self.largest, float(np.abs(a - b).max(initial=0.0)))
        self.cosines.append(_cosines(a.reshape(len(a), -1), b.reshape(len(b), -1)))
        if looks_like_classes(a):
            best = a.argmax(-1), b.argmax(-1)
            self.same += int(np.count_nonzero(best[0] == best[1]))
            self.rows += best[0].size
            if labels is not None and best[0].shape == labels.shape:
                self.labelled += labels.size
                self.right = [n + int(np.count_nonzero(p == labels)) for n, p in zip(self.right, best, strict=True)]

    def proof(self) -> OutputProof:
        """The figures."""
        cosines = np.concatenate(self.cosines) if self.cosines else np.ones(1)
        share = [n / self.labelled for n in self.right] if self.labelled else [None, None]
        return OutputProof(
            cosine=float(cosines.mean()),
            cosine_min=float(cosines.min(initial=1.0)),
            sqnr_db=sqnr(self.signal, self.noise),
            max_error=self.largest,
            agreement=self.same / self.rows if self.rows else None,
            top1_float=share[0],
            top1=share[1],
            finite=self.finite,
        )


def _cosines(a: Array, b: Array) -> Array:
    """Cosine of each row; 1 where both rows are zero."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    equal = (a == b).all(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = np.where(equal, 1.0, np.nan_to_num(np.sum(a * b, axis=1) / lengths))
    return found


def sqnr(signal: float, noise: float) -> float | None:
    """Signal-to-quantization-noise ratio in decibels; None where there is no noise."""
    if noise == 0.0:
        return None
    return float(10 * np.log10(max(signal, 1e-300) / noise))


def looks_like_classes(output: Array) -> bool:
    """Whether the last axis is one score per class: [batch, classes], or [batch, ..., vocabulary]."""
    if output.ndim == 2:
        return bool(output.shape[1] >= 2)
    return bool(output.ndim > 2 and output.shape[-1] >= VOCABULARY)


def compare_outputs(
    reference: Session, candidate: Session, data: Data, progress: Progress = silent
) -> dict[str, OutputProof]:
    """Run both models on all of the data; padding does not count. Raises DataError where a shape changes."""
    found = {spec.name: Difference() for spec in reference.outputs}
    labels, seen = data.labels, 0
    for feeds in data.batches():
        count = batch_size(feeds)
        known = None if labels is None else np.asarray(labels[seen : seen + count])
        expected, got, mask = reference.run(feeds), candidate.run(feeds), mask_of(feeds)
        for name, difference in found.items():
            if expected[name].shape != got[name].shape:
                raise DataError(f"Output '{name}' has shape {got[name].shape} where float has {expected[name].shape}.")
            if np.issubdtype(expected[name].dtype, np.number) or expected[name].dtype == np.bool_:
                difference.add(unmasked(expected[name], mask), unmasked(got[name], mask), known)
        seen += count
        progress("validate", min(seen, len(data)), len(data))
    return {name: difference.proof() for name, difference in found.items()}


def batch_size(feeds: Feeds) -> int:
    """Samples in a batch: the first axis of its first array."""
    first = next(iter(feeds.values()), None)
    return int(first.shape[0]) if first is not None and first.ndim else 1


def integer_forms(graph: Graph) -> dict[str, tuple[str, Array, Array]]:
    """For float tensors that the graph holds as integers: {name in the float model: (tensor, scale, zero point)}."""
    forms: dict[str, tuple[str, Array, Array]] = {}
    for node in graph.nodes:
        if node.op not in OUTPUT_PARAMETERS:
            continue
        scale, zero_point = OUTPUT_PARAMETERS[node.op]
        name = node.outputs[0].name
        base = next((name.removesuffix(s) for s in QUANTIZED_SUFFIXES if name.endswith(s)), None)
        try:
            if base is not None:
                forms[base] = (name, weight(node.inputs[scale]), weight(node.inputs[zero_point]))
        except (TypeError, IndexError):  # not constant, or left out: nothing to compare with
            continue
    return forms


def layer_errors(reference: Graph, candidate: Graph, data: Data) -> list[LayerError]:
    """Error of every float tensor that both graphs hold, in floats or as integers; the worst first."""
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
    for start in range(0, len(names), LAYER_GROUP):
        part = names[start : start + LAYER_GROUP]
        expected = _inner(reference, part, feeds)
        got = _inner(candidate, [forms[n][0] if n in forms else n for n in part], feeds)
        for name in part:
            value = got[forms[name][0]] if name in forms else got[name]
            if name in forms:
                value = dequantize(value, forms[name][1].reshape(()), forms[name][2].reshape(()))
            if value.shape == expected[name].shape:
                errors.append(LayerError(tensor=name, op=makers[name].op, sqnr_db=_tensor_sqnr(expected[name], value)))
    return sorted(errors, key=lambda error: (error.sqnr_db is None, error.sqnr_db or 0.0))


def _tensor_sqnr(reference: Array, value: Array) -> float | None:
    usable = np.isfinite(reference) & (np.abs(reference) < 1e30)  # attention masks hold the lowest float
    found = sqnr_db(reference[usable], value[usable])
    return found if np.isfinite(found) else None


def _inner(graph: Graph, names: Sequence[str], feeds: Feeds) -> dict[str, Array]:
    model = to_model(graph, extra_outputs=names).SerializeToString()
    return Session(model, folder=graph.folder).run(feeds, list(names))


def profile(model: Path, provider: str, threads: int, feeds: Feeds) -> list[Kernel]:
    """The kernels that run, as the median over a few runs."""
    session = Session(model, provider=provider, threads=threads, profile=True)
    for _ in range(5):
        session.run(feeds)
    return session.kernels()


def by_operator(kernels: Sequence[Kernel]) -> tuple[dict[str, int], dict[str, float]]:
    """Number and time of kernels by operator, the slowest first."""
    counts, times = Counter(k.op for k in kernels), Counter[str]()
    for kernel in kernels:
        times[kernel.op] += kernel.microseconds  # type: ignore[assignment]
    order = sorted(counts, key=lambda op: (-times[op], op))
    return {op: counts[op] for op in order}, {op: round(float(times[op]), 1) for op in order}


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
        progress: told after each batch.

    Raises:
        UnsupportedModel: the runtime refuses one of the models.
        DataError: the data does not fit.
    """
    first = Session(reference[0], provider=provider, threads=threads)
    second = Session(candidate[0], provider=provider, threads=threads)
    outputs = compare_outputs(first, second, data, progress)
    feeds = next(data.batches(batch))
    before, after = interleave([first, second], feeds, seconds=seconds)
    counts, times = by_operator(profile(candidate[0], provider, threads, feeds))
    return Proof(
        data=data.description,
        samples=len(data),
        seen=seen,
        provider=provider,
        threads=threads,
        outputs=outputs,
        layers=layer_errors(reference[1], candidate[1], data) if layers else [],
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
    )
