"""Made-up data, for when there is none: it shows that a model runs, not that it is accurate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.calibration.caches import find_cache, find_caches, is_branch, switch
from onnxq.calibration.feeds import Feed, Source
from onnxq.calibration.options import Options
from onnxq.errors import DataError
from onnxq.interface import Dimension, TensorSpec

_OWN = ("samples", "seed", "batch")
_SIZE = 16
_SMALL = 10


def from_noise(text: str, inputs: Sequence[TensorSpec]) -> Source:
    """`samples=8&seed=0&batch=1`, and `NAME=SIZE` for each symbolic dimension of the model.

    Floating point numbers follow N(0, 1), integers are uniform in [0, 10), or in the whole range of an 8-bit
    type, bools are fair coins. Masks are all ones and token types all zeros, since other values would hide most
    of the input or lie outside of a small embedding. A symbolic or unknown dimension has size `batch` on the
    first axis and else 16. Caches of a decoder are empty, unless NAME=SIZE gives them a length; the mask covers
    them and the new tokens.

    Raises:
        DataError: an option is unknown or wrong, or an input has strings or an unknown rank.
    """
    symbols = dict.fromkeys(d for spec in inputs for d in spec.shape or () if isinstance(d, str))
    options = Options.parse("random", text, [*_OWN, *(name for name in symbols if name not in _OWN)])
    others = {d for s in inputs if not find_cache(s) and "mask" not in s.name for d in s.shape or ()}
    lengths = {cache.length_name for cache in find_caches(inputs)} - others
    for spec in inputs:
        if spec.shape is None or spec.dtype.kind == "O":
            what = "its rank is unknown" if spec.shape is None else "it takes strings"
            raise DataError(f"Random data cannot fill input {spec.name!r}: {what}. Give real data for {spec}.")
    batch, seed = options.whole("batch", 1), options.whole("seed", 0, minimum=0)
    leading = {spec.shape[0] for spec in inputs if spec.shape}
    usual = {name: batch if name in leading else 0 if name in lengths else _SIZE for name in symbols}
    sizes = {name: options.whole(name, size, min(size, 1)) for name, size in usual.items()}
    asked = frozenset(options.values.keys() - lengths)
    noise = _Noise(tuple(inputs), seed, batch, sizes, asked)
    for spec in inputs:
        if math.prod(noise.shape(spec)) > LARGEST:
            raise DataError(f"Random data cannot fill input '{spec}': that is too much. Give real data.")
    return Source(
        description=f"random numbers (seed {seed})",
        count=options.whole("samples", 8),
        read=noise.feed,
        where=lambda index: f"random sample {index}",
        is_random=True,
    )


LARGEST = 2**28
"""Numbers of an input that is made up: each takes 8 bytes at first."""


@dataclass(frozen=True)
class _Noise:
    inputs: tuple[TensorSpec, ...]
    seed: int
    batch: int
    sizes: Mapping[str, int]
    asked: frozenset[str]
    """Names whose size was asked for."""

    def feed(self, index: int) -> Feed:
        generator = np.random.default_rng([self.seed, index])
        feed = {spec.name: _values(spec, self.shape(spec), generator) for spec in self.inputs}
        return feed | {spec.name: switch(spec, self._past() > 0) for spec in self.inputs if is_branch(spec)}

    def _past(self) -> int:
        """How many tokens the caches hold."""
        return max((self.shape(cache.spec)[cache.length] for cache in find_caches(self.inputs)), default=0)

    def shape(self, spec: TensorSpec) -> tuple[int, ...]:
        """What is made for an input."""
        cache = find_cache(spec)
        if cache is not None and cache.length_name is None:
            return tuple(0 if a == cache.length else self._size(d, a) for a, d in enumerate(spec.shape or ()))
        if "mask" in spec.name and (whole := self._whole(spec)):
            return self._size((spec.shape or ())[0], 0), whole
        return tuple(self._size(dimension, axis) for axis, dimension in enumerate(spec.shape or ()))

    def _whole(self, mask: TensorSpec) -> int:
        """How many tokens a decoder's mask covers, caches and new ones; 0 where its shape says that itself."""
        ids = next((spec.shape for spec in self.inputs if spec.name == "input_ids"), None)
        if ids is None or mask.shape is None or not len(ids) == 2 == len(mask.shape):
            return 0
        named = mask.shape[1]
        if not find_caches(self.inputs) or named == ids[1] or isinstance(named, int) or named in self.asked:
            return 0
        return self._past() + self._size(ids[1], 1)

    def _size(self, dimension: Dimension, axis: int) -> int:
        if isinstance(dimension, int):
            return dimension
        if dimension is None:
            return self.batch if axis == 0 else _SIZE
        return self.sizes[dimension]


def _values(spec: TensorSpec, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    if spec.dtype.kind in "biu" and "mask" in spec.name:
        return np.ones(shape, spec.dtype)
    if spec.dtype.kind in "iu" and "token_type" in spec.name:
        return np.zeros(shape, spec.dtype)
    if spec.dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(bool)
    if spec.dtype in (np.int8, np.uint8):
        limits = np.iinfo(spec.dtype)
        return generator.integers(limits.min, limits.max, shape, spec.dtype, endpoint=True)
    if spec.dtype.kind in "iu":
        return generator.integers(0, _SMALL, shape, spec.dtype)
    return np.asarray(generator.standard_normal(shape)).astype(spec.dtype)
