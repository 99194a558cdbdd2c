"""A feed is what one run of the model takes; a source reads feeds one at a time, and every feed is checked here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from onnxq.errors import DataError
from onnxq.interface import TensorSpec, describe

Feed = dict[str, np.ndarray]
"""One array per input of the model."""

Axes = Mapping[str, int | None]
"""For inputs whose rows do not lie along axis 0: along which they do, or None where all rows share one value."""

LABELS = "labels"
"""The one extra array that data may carry beside the inputs."""


@dataclass(frozen=True)
class Source:
    """Feeds that can be read in any order, each only when it is asked for.

    Attributes:
        description: where the feeds come from, for the result.
        count: how many there are.
        read: the feed at an index below `count`, not yet checked.
        where: the name of that feed in an error message.
        labels: the labels of that feed, first axis = its rows; None where the source has no labels.
        padding: for inputs whose axis 1 may differ between feeds of one batch, the value that fills it up.
        tokenizer: what made tokens of texts, a `tokenizers.Tokenizer`; None where nothing did.
        is_random: the values are made up, so they show nothing about accuracy.
    """

    description: str
    count: int
    read: Callable[[int], Mapping[str, Any]]
    where: Callable[[int], str]
    labels: Callable[[int], np.ndarray] | None = None
    padding: Mapping[str, int] = field(default_factory=dict)
    tokenizer: Any = None
    is_random: bool = False


def grouped(source: Source, size: int, axes: Axes = MappingProxyType({})) -> Source:
    """The single rows of `source` joined to feeds of exactly `size` rows, for a model with a fixed batch."""
    if size == 1:
        return source

    def where(index: int) -> str:
        return f"{source.where(index * size)} and the {size - 1} after it"

    def read(index: int) -> Feed:
        rows = [dict(source.read(row)) for row in range(index * size, (index + 1) * size)]
        shapes = {tuple(a.shape for name, a in row.items() if name not in source.padding) for row in rows}
        if len(shapes) > 1:
            raise DataError(
                f"{where(index)} differ in shape, and the model takes batches of {size}. Bring them to one shape."
            )
        return join(rows, source.padding, axes)

    description = source.description + left_out(source.count % size, size)
    return Source(description, source.count // size, read, where, tokenizer=source.tokenizer)


def left_out(remainder: int, size: int) -> str:
    """What the description says of samples at the end that do not fill a batch of `size`."""
    return f" (the last {remainder} left out: the model takes batches of {size})" if remainder else ""


def join(feeds: Sequence[Feed], padding: Mapping[str, int], axes: Axes = MappingProxyType({})) -> Feed:
    """The feeds as one, along axis 0 or that of `axes`, which says None for what all feeds share.

    Inputs named in `padding` are first filled up to the longest axis 1.
    """
    if len(feeds) == 1:
        return feeds[0]
    joined: Feed = {}
    for name, first in feeds[0].items():
        axis = axes.get(name, 0)
        arrays = _even([feed[name] for feed in feeds], padding.get(name))
        joined[name] = first if axis is None else np.concatenate(arrays, axis)
    return joined


def _even(arrays: list[np.ndarray], value: int | None) -> list[np.ndarray]:
    if value is None:
        return arrays
    longest = max(array.shape[1] for array in arrays)
    return [np.pad(a, ((0, 0), (0, longest - a.shape[1])), constant_values=value) for a in arrays]


def check_names(names: Collection[str], inputs: Sequence[TensorSpec], where: str) -> None:
    """Raise DataError unless `names` are the inputs of the model, `labels` aside."""
    wanted = [spec.name for spec in inputs]
    if missing := [name for name in wanted if name not in names]:
        verb = "are" if len(missing) > 1 else "is"
        raise DataError(f"{where}: {_listed(missing)} {verb} missing. The model expects {describe(inputs)}.")
    if unknown := [name for name in names if name not in wanted and name != LABELS]:
        raise DataError(f"{where}: the model has no {_listed(unknown)}. It expects {describe(inputs)}.")


def _listed(names: list[str]) -> str:
    return f"input{'s' if len(names) > 1 else ''} {', '.join(map(repr, names))}"


def checked(feed: object, inputs: Sequence[TensorSpec], where: str) -> Feed:
    """The feed as contiguous arrays of the types that the model takes, in the order of its inputs.

    Numbers are converted where no value is lost (int32 to int64, uint8 to float32, 0 and 1 to bool) and
    between floating point types, where rounding is accepted and overflow is not. Labels are dropped.

    Raises:
        DataError: a name is missing or unknown, a rank, fixed dimension or type does not fit, or a value is NaN.
    """
    if not isinstance(feed, Mapping):
        raise DataError(
            f"{where}: a {type(feed).__name__}, not a dictionary of arrays. The model expects {describe(inputs)}."
        )
    check_names(feed, inputs, where)
    return {spec.name: _fitted(feed[spec.name], spec, where) for spec in inputs}


def as_array(value: ArrayLike, name: str, where: str) -> np.ndarray:
    """The value as an array, or a DataError for lists of lists that are not rectangular."""
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        raise DataError(f"{where}: {name!r} is no array ({error}). Give each input one array.") from error


def _fitted(value: ArrayLike, spec: TensorSpec, where: str) -> np.ndarray:
    array = as_array(value, spec.name, where)
    _check_shape(array, spec, where)
    if _is_float(array.dtype) and (count := int(np.isnan(array).sum())):
        raise DataError(
            f"{where}: input {spec.name!r} holds NaN in {count} of {array.size} values. Repair or drop the sample."
        )
    converted = _converted(array, spec.dtype)
    if converted is None:
        raise DataError(
            f"{where}: input {spec.name!r} is {array.dtype} and would lose values as {spec.dtype}. "
            f"The model expects {spec}; convert the data to {spec.dtype}."
        )
    return np.require(converted, requirements=["C", "A", "E"])


def _check_shape(array: np.ndarray, spec: TensorSpec, where: str) -> None:
    if spec.shape is None:
        return
    fits = array.ndim == len(spec.shape) and all(
        not isinstance(wanted, int) or wanted == size for wanted, size in zip(spec.shape, array.shape, strict=True)
    )
    if not fits:
        raise DataError(
            f"{where}: input {spec.name!r} has shape {list(array.shape)}. The model expects {spec}; "
            "reshape, resize or crop the data."
        )


def _is_float(dtype: np.dtype) -> bool:
    # The small types of ml_dtypes (bfloat16, float8) have kind V.
    return dtype.kind == "f" or dtype.name.startswith(("bfloat", "float"))


def _is_whole(dtype: np.dtype) -> bool:
    return dtype.kind in "biu" or dtype.name.startswith(("int", "uint"))


def _converted(array: np.ndarray, dtype: np.dtype) -> np.ndarray | None:
    """The array as `dtype`, or None where that would lose more than the rounding of a floating point number."""
    if array.dtype == dtype:
        return array
    if dtype.kind == "O":
        return array.astype(dtype) if array.dtype.kind == "U" else None
    with np.errstate(over="ignore", invalid="ignore"):
        if _is_float(array.dtype) and _is_float(dtype):
            result = array.astype(dtype)
            return result if np.array_equal(np.isfinite(array), np.isfinite(result)) else None
        if _is_whole(array.dtype) and (_is_whole(dtype) or _is_float(dtype)):
            result = array.astype(dtype)
            return result if np.array_equal(result.astype(array.dtype), array) else None
    return None


@contextmanager
def blamed(name: str) -> Iterator[None]:
    """Turn any exception of foreign code inside into a DataError that starts with `name`."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{name} failed with {type(error).__name__}: {error}. Mend it there.") from error
