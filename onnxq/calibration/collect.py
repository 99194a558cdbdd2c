"""Batches through a session: {tensor: statistic}, with one batch of some tensors in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

import numpy as np

from onnxq.calibration.data import Data, mask_of
from onnxq.calibration.statistics import ChannelSum, Histogram, MinMax, MovingAverage, channel_axis
from onnxq.errors import DataError
from onnxq.graph import Graph, to_model
from onnxq.runtime import Session

Array = np.ndarray[Any, Any]
Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


def silent(task: str, done: int, total: int) -> None:
    """No progress."""


@dataclass(frozen=True)
class Seen:
    """All that is remembered of one tensor.

    Attributes:
        histogram: of all its values; min-max, percentile, entropy and MSE ranges are functions of it.
        average: moving average of the extremes of the batches.
        channels: extremes of each entry of axis 1 (images) or of the last axis (everything else); of the whole tensor
            where the number of entries varied.
        sums: their sums, likewise.
    """

    histogram: Histogram = field(default_factory=Histogram)
    average: MovingAverage = field(default_factory=MovingAverage)
    channels: MinMax = field(default_factory=MinMax)
    sums: ChannelSum = field(default_factory=ChannelSum)

    def __add__(self, later: Seen) -> Seen:
        """This run, then the later one."""
        channels = _same_channels(self.channels, later.channels) + _same_channels(later.channels, self.channels)
        return Seen(self.histogram + later.histogram, self.average + later.average, channels, self.sums + later.sums)

    @classmethod
    def of(cls, x: Array) -> Seen:
        """From one batch of a tensor."""
        axis = channel_axis(x.ndim)
        sums = ChannelSum() if axis is None else ChannelSum.of(x, axis)
        return cls(Histogram.of(x), MovingAverage.of(x), MinMax.of(x, axis=axis), sums)


def _same_channels(one: MinMax, other: MinMax) -> MinMax:
    """`one`, for the whole tensor where `other` has seen another number of channels."""
    if one.low.shape == other.low.shape or np.all(other.low > other.high) or np.all(one.low > one.high):
        return one
    return MinMax(np.asarray(one.low.min()), np.asarray(one.high.max()), one.non_finite)


Statistics = dict[str, Seen]


def collect(
    graph: Graph,
    tensors: Sequence[str],
    data: Data,
    *,
    threads: int = 0,
    memory: int | None = None,
    progress: Progress = silent,
) -> Statistics:
    """Run the model on every batch and remember the named tensors.

    Args:
        graph: the float model.
        tensors: names of its inputs and inner tensors; others are refused with KeyError by the runtime.
        data: the batches.
        threads: threads of the runtime; 0 lets it choose.
        memory: bytes that the activations of one batch may take; tensors are split into groups, each of which costs
            one more pass over the data. None collects all at once.
        progress: told after each batch.

    Raises:
        DataError: the data is empty or does not fit, or an activation is NaN or infinite everywhere.
    """
    statistics: Statistics = {name: Seen() for name in tensors}
    inputs = {tensor.name for tensor in graph.inputs}
    inner = [name for name in tensors if name not in inputs]
    groups = _groups(graph, inner, data, memory) or [[]]
    total, done = len(groups) * len(data), 0
    for number, group in enumerate(groups):
        session = Session(
            to_model(graph, extra_outputs=group).SerializeToString(), folder=graph.folder, threads=threads
        ) if group else None  # fmt: skip
        wanted = [name for name in tensors if name in inputs] if number == 0 else []
        for feeds in data.batches():
            _remember(statistics, {name: feeds[name] for name in wanted}, feeds)
            if session is not None:
                _remember(statistics, session.run(feeds, group), feeds)
            done += len(next(iter(feeds.values()))) if feeds and next(iter(feeds.values())).ndim else 1
            progress("calibrate", min(done, total), total)
    _check(statistics)
    return statistics


def _remember(statistics: Statistics, values: Mapping[str, Array], feeds: Mapping[str, Array]) -> None:
    mask = mask_of(feeds)
    for name, value in values.items():
        if value.dtype.kind == "f":
            statistics[name] = statistics[name] + Seen.of(unmasked(value, mask))


def unmasked(value: Array, mask: Array | None) -> Array:
    """The positions of a tensor that the padding mask keeps: rows of [batch, sequence, ...], heads of [b, h, s, ...].

    A tensor in which the mask's axes cannot be found is returned whole.
    """
    if mask is None or mask.all():
        return value
    keep = mask.astype(bool)
    if value.shape[:2] == mask.shape:
        kept: Array = value[keep]
    elif value.ndim == 4 and (value.shape[0], value.shape[2]) == mask.shape:
        kept = np.moveaxis(value, 1, 2)[keep]
    elif value.ndim == 2 and value.shape[0] == mask.size:
        kept = value[keep.reshape(-1)]
    else:
        kept = value
    return kept


def _groups(graph: Graph, names: Sequence[str], data: Data, memory: int | None) -> list[list[str]]:
    """Groups of tensors whose activations for the first batch fit into the memory, found by one run per tensor size."""
    if not names or memory is None:
        return [list(names)] if names else []
    sizes = _sizes(graph, names, next(iter(data.batches())))
    groups: list[list[str]] = [[]]
    used = 0
    for name in names:
        if groups[-1] and used + sizes[name] > memory:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += sizes[name]
    return groups


def _sizes(graph: Graph, names: Sequence[str], feeds: Mapping[str, Array]) -> dict[str, int]:
    """Bytes of each tensor for these feeds; eight tensors are held at a time."""
    sizes: dict[str, int] = {}
    for start in range(0, len(names), 8):
        part = list(names[start : start + 8])
        session = Session(to_model(graph, extra_outputs=part).SerializeToString(), folder=graph.folder)
        sizes.update({name: int(value.nbytes) for name, value in session.run(feeds, part).items()})
    return sizes


def _check(statistics: Statistics) -> None:
    for name, seen in statistics.items():
        histogram = seen.histogram
        if histogram.count == 0 and histogram.non_finite:
            raise DataError(
                f"Tensor '{name}' is NaN or infinite for all of the data. Check the preprocessing, or the float model."
            )


def non_finite(statistics: Statistics, without: Container[str] = ()) -> dict[str, int]:
    """How many values were NaN or infinite, for each tensor that had any, but for those where that is no surprise."""
    return {n: s.histogram.non_finite for n, s in statistics.items() if s.histogram.non_finite and n not in without}


def save_statistics(statistics: Statistics, path: Path) -> None:
    """Write statistics as .npz; the same statistics give the same bytes."""
    with open(path, "wb") as file:
        np.savez_compressed(file, **_arrays(statistics))  # type: ignore[arg-type]


def digest(statistics: Statistics) -> str:
    """Tells statistics apart, and with them the data that they are of."""
    held = sha256()
    for name, array in sorted(_arrays(statistics).items()):
        held.update(f"{name}{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return held.hexdigest()


def _arrays(statistics: Statistics) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for name, seen in statistics.items():
        parts = {
            "histogram": seen.histogram.to_arrays(),
            "average": seen.average.to_arrays(),
            "channels": seen.channels.to_arrays(),
            "sums": seen.sums.to_arrays(),
        }
        for part, fields in parts.items():
            arrays.update({f"{name}|{part}|{item}": array for item, array in fields.items()})
    return arrays


def load_statistics(paths: Sequence[Path]) -> Statistics:
    """Read one or several files and join them, in the order given. Raises DataError."""
    joined: Statistics = {}
    for path in paths:
        for name, seen in _read(path):
            joined[name] = joined[name] + seen if name in joined else seen
    return joined


def _read(path: Path) -> Iterator[tuple[str, Seen]]:
    try:
        if not is_zipfile(path):
            raise ValueError("it is no .npz")
        with np.load(path) as file:
            arrays = {key: file[key] for key in file.files}
        parts: dict[str, dict[str, dict[str, Array]]] = {}
        for key, array in arrays.items():
            name, part, item = key.rsplit("|", 2)
            parts.setdefault(name, {}).setdefault(part, {})[item] = array
        for name, found in parts.items():
            yield (
                name,
                Seen(
                    Histogram.from_arrays(found["histogram"]),
                    MovingAverage.from_arrays(found["average"]),
                    MinMax.from_arrays(found["channels"]),
                    ChannelSum.from_arrays(found["sums"]),
                ),
            )
    except FileNotFoundError:
        raise DataError(f"Statistics '{path}' do not exist. Make them with: onnxq calibrate.") from None
    except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
        raise DataError(f"'{path}' holds no statistics of onnxq. Make them with: onnxq calibrate.") from error
