"""Caches of a decoder: keys and values of the tokens that it has seen. A text starts with empty ones.

past_key_values.0.key: float32[batch, 8, past_length, 64]  ->  float32[1, 8, 0, 64]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.errors import DataError
from onnxq.interface import Dimension, TensorSpec

BRANCH = "use_cache_branch"
"""The input of a merged decoder that says whether its caches hold something."""

WORDS = ("past", "cache")
"""What the name of a cache says."""

LENGTHS = ("past", "cache", "seq", "len", "kv", "total")
"""What the name of the axis of the tokens says, the likeliest first."""

RANKS = (3, 4, 5)


@dataclass(frozen=True)
class Cache:
    """One input that holds a cache.

    Attributes:
        spec: the input.
        rows: the axis along which texts lie: 0, or 1 where keys and values are stacked in one tensor of rank 5.
        length: the axis along which tokens lie.
    """

    spec: TensorSpec
    rows: int
    length: int

    @property
    def length_name(self) -> Dimension:
        """The name of the axis of the tokens; None where it has none."""
        return None if self.spec.shape is None else self.spec.shape[self.length]

    def empty(self, rows: int) -> np.ndarray:
        """The cache of no tokens, for so many texts. Raises DataError where another axis has no size."""
        shape = self.shape(rows, 0)
        for axis, size in enumerate(shape):
            if size is None:
                named = (self.spec.shape or ())[axis]
                raise DataError(
                    f"Input '{self.spec.name}': axis {axis}{f' ({named})' if named else ''} of its cache has no fixed "
                    f"size, and cannot be empty. The model expects {self.spec}; export it with that size fixed."
                )
        return np.zeros([size or 0 for size in shape], self.spec.dtype)

    def shape(self, rows: int, length: int) -> list[int | None]:
        """The shape for so many texts and tokens; None for a size that only the model knows."""
        found: list[int | None] = [size if isinstance(size, int) else None for size in self.spec.shape or ()]
        found[self.length] = length
        if "head" not in str((self.spec.shape or ())[self.rows]):
            found[self.rows] = rows
        return found


def find_cache(spec: TensorSpec) -> Cache | None:
    """The input as a cache; None where it is none, or its length is fixed, so that it cannot be empty."""
    shape, named = spec.shape or (), any(word in spec.name.lower() for word in WORDS)
    if not named or not _is_float(spec.dtype) or len(shape) not in RANKS:
        return None
    rows = 1 if len(shape) == 5 and shape[0] == 2 else 0  # keys and values in one
    free = [axis for axis, size in enumerate(shape) if axis != rows and not isinstance(size, int)]
    return Cache(spec, rows, _length_axis(shape, free)) if free else None


def _is_float(dtype: np.dtype) -> bool:
    return dtype.kind == "f" or dtype.name.startswith("bfloat")


def _length_axis(shape: Sequence[Dimension], free: Sequence[int]) -> int:
    """The axis of the tokens among those of no fixed size: by its name, or where most models have it."""
    for word in LENGTHS:
        named = [axis for axis in free if word in str(shape[axis]).lower() and "head" not in str(shape[axis]).lower()]
        if len(named) == 1:
            return named[0]
    usual = len(shape) - 2
    return usual if usual in free else free[-1]


def find_caches(inputs: Sequence[TensorSpec]) -> tuple[Cache, ...]:
    """Every input that is a cache, in order."""
    return tuple(cache for cache in map(find_cache, inputs) if cache is not None)


def is_branch(spec: TensorSpec) -> bool:
    """Whether an input says that the caches are to be used: one bool for all texts."""
    return spec.name == BRANCH and spec.dtype.kind == "b" and len(spec.shape or ()) <= 1


def empty_caches(inputs: Sequence[TensorSpec], rows: int) -> dict[str, np.ndarray]:
    """What a decoder takes beside a text, before it has seen any: empty caches, and that they are not to be used.

    Raises:
        DataError: an axis of a cache has no size, and is not that of the tokens.
    """
    flags = {spec.name: switch(spec, False) for spec in inputs if is_branch(spec)}
    return flags | {cache.spec.name: cache.empty(rows) for cache in find_caches(inputs)}


def switch(spec: TensorSpec, used: bool) -> np.ndarray:
    """Whether the caches are to be used, as the model takes it."""
    return np.full((1,) * len(spec.shape or ()), used)


def fixed_rows(inputs: Sequence[TensorSpec]) -> int | None:
    """How many texts the caches hold, where the model fixes that."""
    sizes = [(cache.spec.shape or ())[cache.rows] for cache in find_caches(inputs)]
    return next((size for size in sizes if isinstance(size, int)), None)


def row_axes(inputs: Sequence[TensorSpec]) -> Mapping[str, int | None]:
    """For inputs whose rows do not lie along axis 0: the axis of the rows, or None where all rows share one value."""
    stacked = {cache.spec.name: cache.rows for cache in find_caches(inputs) if cache.rows}
    return stacked | {spec.name: None for spec in inputs if is_branch(spec)}
