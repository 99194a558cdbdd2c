"""Where calibration and validation data comes from: `open_data` makes a `Data` out of whatever the user has."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from onnxq.calibration.arrays import from_npz
from onnxq.calibration.caches import row_axes
from onnxq.calibration.feeds import Axes, Feed, Source, blamed, checked, join
from onnxq.calibration.folders import from_folder
from onnxq.calibration.functions import from_function, from_values
from onnxq.calibration.images import from_images
from onnxq.calibration.noise import from_noise
from onnxq.calibration.spread import spread
from onnxq.calibration.text import from_text
from onnxq.errors import DataError
from onnxq.interface import TensorSpec, describe

KINDS = ("FILE.npz", "FOLDER", "images:FOLDER", "text:FILE", "python:MODULE:FUNCTION", "random")
"""How a source is written on the command line."""

DEFAULT_BATCH = 8
DEFAULT_BATCH_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Data:
    """Feeds for a model, read when they are needed, as often as wanted, always in the same order.

    A sample is the smallest piece that the model takes: one row of an array, a picture, a text; B of them where
    the model fixes its batch to B; or one feed as the source gives it (a file of a folder, an item of a list).
    """

    source: Source
    inputs: tuple[TensorSpec, ...]
    indices: Sequence[int]

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.indices)

    @property
    def description(self) -> str:
        """Where the samples come from and how many there are, for the result."""
        total = "" if len(self) == self.source.count else f" of {self.source.count}"
        return f"{self.source.description}, {len(self)}{total} sample{'' if self.source.count == 1 else 's'}"

    @property
    def is_random(self) -> bool:
        """Whether the values are made up, so that nothing about accuracy follows from them."""
        return self.source.is_random

    @property
    def labels(self) -> np.ndarray | None:
        """The labels in the order of the rows of all batches, first axis = rows; None without labels."""
        if self.source.labels is None or not self.indices:
            return None
        with blamed(f"{self.source.description}: joining the labels"):
            return np.concatenate([self.source.labels(index) for index in self.indices])

    def batches(self, size: int | None = None) -> Iterator[Feed]:
        """The samples in order, in batches of at most `size`, with one batch in memory at a time.

        Consecutive samples of one row each and of equal shapes are joined along axis 0 (texts of different
        lengths are filled up first). A sample of several rows and one of another shape go alone, and so does
        every sample of a model that fixes its batch. Without `size`: 8, or fewer that fit 32 MiB.

        Raises:
            DataError: `size` is below 1, or a sample cannot be read or does not fit the model.
        """
        if size is not None and size < 1:
            raise DataError(f"A batch of {size} samples makes no sense. Give at least 1.")
        if not self.indices:
            return iter(())
        if not _batch_is_free(self.inputs):
            size = 1
        return self._joined(size or self._default_size())

    def take(self, selection: slice) -> Data:
        """The samples of a slice."""
        return replace(self, indices=self.indices[selection])

    def split(self, calibration: int) -> tuple[Data, Data]:
        """`calibration` samples to calibrate with, and the others to validate with.

        The smaller part is spread evenly over the whole data by `spread`, so both parts see all of it even where
        it is sorted. The same data is always split in the same way.

        Raises:
            DataError: `calibration` is not between 1 and the number of samples.
        """
        total = len(self)
        if not 1 <= calibration <= total:
            raise DataError(f"{self.description}: {calibration} cannot be calibrated with. Ask for 1 to {total}.")
        is_smaller = calibration <= total - calibration
        chosen = set(spread(min(calibration, total - calibration), total))
        first, second = (
            replace(self, indices=tuple(i for place, i in enumerate(self.indices) if (place in chosen) == side))
            for side in (is_smaller, not is_smaller)
        )
        return first, second

    def sample(self, place: int) -> Feed:
        """The sample at a place below `len(self)`, checked against the inputs of the model."""
        index = self.indices[place]
        return checked(self.source.read(index), self.inputs, self.source.where(index))

    def _default_size(self) -> int:
        nbytes = sum(array.nbytes for array in self.sample(0).values())
        return max(1, min(DEFAULT_BATCH, DEFAULT_BATCH_BYTES // max(nbytes, 1)))

    def _joined(self, size: int) -> Iterator[Feed]:
        axes = row_axes(self.inputs)
        pending: list[Feed] = []
        for place in range(len(self)):
            feed = self.sample(place)
            if pending and not (len(pending) < size and self._may_join(pending[-1], feed, axes)):
                yield join(pending, self.source.padding, axes)
                pending = []
            pending.append(feed)
        yield join(pending, self.source.padding, axes)

    def _may_join(self, one: Feed, other: Feed, axes: Axes) -> bool:
        for name, array in other.items():
            axis, before = axes.get(name, 0), one[name]
            if axis is None:
                fits = np.array_equal(before, array)
            else:
                even = before.shape == array.shape or name in self.source.padding
                fits = even and before.shape[axis] == 1 == array.shape[axis]
            if not fits:
                return False
        return True


DataSource: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Iterable[Mapping[str, Any]] | Data
"""Words as on the command line, a path, one array per input, feeds one by one, or a `Data`.

An array may be anything that NumPy can turn into one.
"""


def _batch_is_free(inputs: Sequence[TensorSpec]) -> bool:
    """Whether all inputs share a first dimension of any size, so that rows can be joined to batches."""
    axes = row_axes(inputs)
    places = [(spec.shape, axis) for spec in inputs if (axis := axes.get(spec.name, 0)) is not None]
    if any(not shape or isinstance(shape[axis], int) for shape, axis in places):
        return False
    return len({shape[axis] for shape, axis in places if shape} - {None}) <= 1


def open_data(source: DataSource, inputs: Sequence[TensorSpec]) -> Data:
    """Open a source for a model with these inputs, and check its first sample.

    Sources: an .npz file, a folder of .npz files or of ONNX test data sets, `images:FOLDER`, `text:FILE`,
    `python:MODULE:FUNCTION`, `random` (each with its module in this package), a mapping of one array per input,
    an iterable of feeds, or a `Data`. An iterable that is no sequence is read to its end.

    Raises:
        DataError: the source is missing, unknown, empty or unreadable, or does not fit the inputs.
    """
    specs = tuple(inputs)
    if not specs:
        raise DataError("The model has no inputs, so no data can be fed to it. Check the model.")
    if isinstance(source, Data):
        data = replace(source, inputs=specs)
    else:
        opened = _opened(source, specs)
        data = Data(opened, specs, range(opened.count))
    if len(data) == 0:
        raise DataError(f"{data.source.description} holds no samples. The model expects {describe(specs)}.")
    data.sample(0)
    return data


def _opened(source: DataSource, inputs: Sequence[TensorSpec]) -> Source:
    if isinstance(source, str):
        return _from_words(source, inputs)
    if isinstance(source, os.PathLike):
        return _from_path(Path(source), inputs)
    return from_values(source, inputs, "the mapping of arrays" if isinstance(source, Mapping) else "the data")


def _from_words(words: str, inputs: Sequence[TensorSpec]) -> Source:
    kind, colon, rest = words.partition(":")
    if words == "random" or words.startswith("random?"):
        return from_noise(words.removeprefix("random").removeprefix("?"), inputs)
    if colon and kind == "python":
        return from_function(rest, inputs)
    if colon and kind in ("images", "text"):
        place, _, options = rest.partition("?")
        return (from_images if kind == "images" else from_text)(Path(place), options, inputs)
    # A single letter before the colon is a drive of Windows.
    if colon and kind.isalpha() and len(kind) > 1 and not Path(words).exists():
        raise DataError(f"Data {words!r}: there is no kind {kind!r}. Known are {', '.join(KINDS)}.")
    return _from_path(Path(words), inputs)


def _from_path(path: Path, inputs: Sequence[TensorSpec]) -> Source:
    if path.is_dir():
        return from_folder(path, inputs)
    if not path.exists():
        raise DataError(f"Data {str(path)!r} does not exist. Known are {', '.join(KINDS)}.")
    if path.suffix.lower() != ".npz":
        raise DataError(f"Data {str(path)!r} is of no known kind. Known are {', '.join(KINDS)}.")
    return from_npz(path, inputs)


_OTHER_MASKS = ("padding", "masked", "causal", "global", "head")
"""Masks in which 1 does not mean "this position counts": its opposite, or something else."""


def mask_of(feed: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Which positions count: bool[batch, length], True for a real one; None where the feed does not say.

    That is the integer or bool input of rank 2 called attention_mask, or else the only such input with "mask" in
    its name. Names by which other things are meant, such as key_padding_mask (True = padding), are left alone.
    """
    masks = {
        name: array for name, array in feed.items() if "mask" in name and array.ndim == 2 and array.dtype.kind in "biu"
    }
    if "attention_mask" in masks:
        return masks["attention_mask"].astype(bool)
    likely = [array for name, array in masks.items() if not any(word in name for word in _OTHER_MASKS)]
    return likely[0].astype(bool) if len(likely) == 1 else None
