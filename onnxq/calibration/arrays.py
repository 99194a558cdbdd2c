"""Data as one array per input: an .npz file or a mapping of arrays."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from onnxq.calibration.feeds import LABELS, Feed, Source, as_array, check_names, left_out
from onnxq.errors import DataError
from onnxq.interface import TensorSpec, describe
from onnxq.runtime import free_memory


@dataclass(frozen=True)
class _Column:
    """The array of one input, and how its first axis is to be read.

    Equal rank: the first axis is samples and batch at once, and a feed takes some rows of it. One dimension
    more: the first axis counts whole feeds. A scalar: the same in each feed.
    """

    spec: TensorSpec
    array: np.ndarray

    @property
    def is_whole(self) -> bool:
        return self.spec.shape is not None and self.array.ndim == len(self.spec.shape) + 1

    @property
    def has_rows(self) -> bool:
        return self.array.ndim > 0 and not self.is_whole

    @property
    def batch(self) -> int | None:
        """The rows of one feed, where the model fixes them."""
        first = self.spec.shape[0] if self.spec.shape else None
        return first if self.has_rows and isinstance(first, int) else None

    @property
    def feeds(self) -> int | None:
        """How many feeds the array holds, or None where the other arrays decide."""
        if self.is_whole:
            return len(self.array)
        return len(self.array) // self.batch if self.batch else None

    def of_feed(self, index: int, rows: Mapping[int, int]) -> np.ndarray:
        if self.is_whole:
            return np.asarray(self.array[index])
        if not self.has_rows:
            return self.array
        step = self.batch or rows[len(self.array)]
        return self.array[index * step : (index + 1) * step]


def from_arrays(arrays: Mapping[str, Any], inputs: Sequence[TensorSpec], name: str) -> Source:
    """Feeds out of one array per input, cut along the first axis; `name` is what errors call the data.

    Where the model fixes its batch to B, each feed takes B rows and a remainder is left out.

    Raises:
        DataError: a name or rank does not fit the model, or the arrays disagree on the number of samples.
    """
    check_names(arrays, inputs, name)
    columns = [_column(as_array(arrays[spec.name], spec.name, name), spec, inputs, name) for spec in inputs]
    count, rows = _cut(columns, name)

    def read(index: int) -> Feed:
        return {column.spec.name: column.of_feed(index, rows) for column in columns}

    left = max(((len(c.array) % c.batch, c.batch) for c in columns if c.batch), default=(0, 1))
    return Source(
        description=name + left_out(*left),
        count=count,
        read=read,
        where=lambda index: f"{name}, sample {index}",
        labels=_labels(arrays, columns, rows, name),
    )


def _column(array: np.ndarray, spec: TensorSpec, inputs: Sequence[TensorSpec], name: str) -> _Column:
    if spec.shape is not None and array.ndim not in (len(spec.shape), len(spec.shape) + 1):
        raise DataError(
            f"{name}: array {spec.name!r} has shape {list(array.shape)}; its first axis should count samples. "
            f"The model expects {describe(inputs)}."
        )
    return _Column(spec, array)


def _cut(columns: Sequence[_Column], name: str) -> tuple[int, Mapping[int, int]]:
    """The number of feeds, and how many rows of a first axis go to each, by the length of that axis."""
    lengths = {len(column.array) for column in columns if column.has_rows}
    stated = {column.feeds for column in columns if column.feeds is not None}
    counts = stated or lengths or {1}
    count = min(counts)
    rows = {len(column.array): column.batch for column in columns if column.batch} | {count: 1}
    if len(counts) > 1 or not lengths <= rows.keys():
        shapes = ", ".join(f"{column.spec.name} {list(column.array.shape)}" for column in columns)
        raise DataError(f"{name}: the arrays hold different numbers of samples: {shapes}. Give each input as many.")
    return count, rows


def _labels(
    arrays: Mapping[str, Any], columns: Sequence[_Column], rows: Mapping[int, int], name: str
) -> Callable[[int], np.ndarray] | None:
    """Labels count rows or feeds, as the inputs do; None where there are none, or where they are an input."""
    if LABELS not in arrays or any(column.spec.name == LABELS for column in columns):
        return None
    labels = as_array(arrays[LABELS], LABELS, name)
    step = rows.get(len(labels)) if labels.ndim else None
    if step is None:
        raise DataError(
            f"{name}: labels have shape {list(labels.shape)}, but there are {max(rows)} samples. Give one for each."
        )
    return lambda index: labels[index * step : (index + 1) * step]


def from_npz(path: Path, inputs: Sequence[TensorSpec]) -> Source:
    """Feeds out of an .npz file with one array per input and perhaps `labels`.

    Arrays written by `np.savez` are mapped, so only the samples in use are in memory; those written by
    `np.savez_compressed` are unpacked as a whole.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            check_names(members, inputs, str(path))
            return from_arrays({n: _member(path, archive, info) for n, info in members.items()}, inputs, str(path))
    except (OSError, ValueError, EOFError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a readable .npz file ({error}). Write it with numpy.savez.") from error


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as stream:
        version = npy.read_magic(stream)
        if version in ((1, 0), (2, 0)):
            read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read_header(stream)
            is_plain = not dtype.hasobject and 0 not in shape
            if is_plain:
                _check_size(info, stream.tell(), shape, dtype)
            if is_plain and info.compress_type == zipfile.ZIP_STORED:
                offset = _start(path, info) + stream.tell()
                return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")
    with archive.open(info) as stream:
        return np.asarray(npy.read_array(stream, allow_pickle=False))


def _check_size(info: zipfile.ZipInfo, start: int, shape: Sequence[int], dtype: np.dtype) -> None:
    """Raise ValueError where a member is not as long as it says, or is unpacked to more than there is memory."""
    needed, held = math.prod(shape) * dtype.itemsize, info.file_size - start
    if min(shape, default=1) < 0 or held != needed:
        raise ValueError(f"'{info.filename}' holds {held} bytes where its shape {list(shape)} needs {needed}")
    free = free_memory()
    if info.compress_type != zipfile.ZIP_STORED and free is not None and needed > free:
        raise ValueError(
            f"'{info.filename}' unpacks to {needed / 1e9:.0f} GB, and {free / 1e9:.0f} GB of memory are free"
        )


def _start(path: Path, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored member begin: after its local header (PKWARE APPNOTE 4.3.7)."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        name_length, extra_length = struct.unpack("<26x2H", file.read(30))
    return info.header_offset + 30 + int(name_length) + int(extra_length)
