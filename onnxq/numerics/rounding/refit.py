"""The scale with the smallest squared error, which is seldom the one that covers the whole range.

    sum of importance * (weight - dequantize(quantize(weight, scale)))**2, for each channel

Both searches keep the zero point: a range that shrinks on both sides by the same factor has the same one.
Block-wise scales are those of the weight reshaped to (outputs * blocks, block size), along axis 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxq.numerics.affine import SMALLEST_SCALE, FloatArray, fake_quantize, quantize
from onnxq.numerics.formats import Format, IntegerArray

Float64Array = NDArray[np.float64]

SMALLEST_SHRINK = 0.5
"""Below half of the range, what is cut off outweighs the finer grid."""


def search_scale(
    weight: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike,
    format: Format,
    axis: int | None,
    importance: ArrayLike | None = None,
    steps: int = 50,
) -> FloatArray:
    """The best of scale * t for t = 1, ..., 1/2: cut off the largest weights where that pays for the others.

    Args:
        weight: real numbers, any shape.
        scale: of the whole range, as `parameters` returns it: a scalar, or one value per index of `axis`.
        zero_point: like `scale`.
        format: the integers to use; `format.narrow` for symmetric weights.
        axis: the channel axis; None for one grid per tensor.
        importance: 0 or more, broadcast to the weight: the mean square of the input that meets it. None for 1.
        steps: how many t below 1 are tried.

    Returns:
        float32, shaped like `scale`; no channel's error is above that of `scale`.

    Raises:
        ValueError: scale or importance does not fit the weight.
    """
    channels = _Channels.of(weight, zero_point, format, axis, importance)
    largest = np.asarray(scale, np.float32)
    trials = (_normal(largest * t) for t in np.linspace(1, SMALLEST_SHRINK, steps + 1))
    return channels.best(largest, trials)


def refit_scale(
    weight: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike,
    format: Format,
    axis: int | None,
    importance: ArrayLike | None = None,
    rounds: int = 3,
) -> FloatArray:
    """The scale that fits the integers best, in turn with the integers that fit the scale best.

        q = quantize(w, s) - z        s = <w, q> / <q, q>

    Arguments, result and errors are those of `search_scale`; start from its result. A channel whose integers
    are all at the zero point keeps its scale.
    """
    channels = _Channels.of(weight, zero_point, format, axis, importance)
    first = np.asarray(scale, np.float32)
    return channels.best(first, channels.refits(first, rounds))


@dataclass(frozen=True, eq=False)
class _Channels:
    """What is to be rounded, one channel a row: all but the scale.

    Attributes:
        weight: (channels, values).
        importance: of each value of the weight.
        zero_point: (channels,).
        format: the integers to use.
    """

    weight: FloatArray
    importance: Float64Array
    zero_point: IntegerArray
    format: Format

    @classmethod
    def of(
        cls, weight: ArrayLike, zero_point: ArrayLike, format: Format, axis: int | None, importance: ArrayLike | None
    ) -> _Channels:
        """From what the caller gave."""
        weight = np.asarray(weight, np.float32)
        factor = np.asarray(1.0 if importance is None else importance, np.float64)
        try:
            factor = np.broadcast_to(factor, weight.shape)
        except ValueError as error:
            raise ValueError(
                f"importance of shape {factor.shape} does not fit a weight of shape {weight.shape}. "
                "Give it the shape of the weight, or 1 for an axis where it is the same."
            ) from error
        return cls(_rows(weight, axis), _rows(factor, axis), np.asarray(zero_point).reshape(-1), format)

    def best(self, first: FloatArray, trials: Iterable[FloatArray]) -> FloatArray:
        """For each channel the scale with the smallest error, the earliest of equals."""
        best, least = first, self.error(first)
        for trial in trials:
            error = self.error(trial)
            best = np.where((error < least).reshape(first.shape), trial, best)
            least = np.minimum(error, least)
        return best

    def error(self, scale: FloatArray) -> Float64Array:
        """The squared error of each channel."""
        rounded = fake_quantize(self.weight, scale.reshape(-1), self.zero_point, self.format, axis=0)
        error = rounded.astype(np.float64) - self.weight
        return _dot(self.importance, error, error)

    def refits(self, scale: FloatArray, rounds: int) -> Iterator[FloatArray]:
        """The scale after each round."""
        weight, zero_point = self.weight.astype(np.float64), self.zero_point.astype(np.float64)[:, None]
        for _ in range(rounds):
            steps = quantize(self.weight, scale.reshape(-1), self.zero_point, self.format, axis=0) - zero_point
            size = _dot(self.importance, steps, steps)
            fitted = _dot(self.importance, weight, steps) / np.where(size > 0, size, 1)
            scale = np.where((size > 0).reshape(scale.shape), _normal(fitted.reshape(scale.shape)), scale)
            yield scale


def _rows(values: NDArray[Any], axis: int | None) -> NDArray[Any]:
    """One channel a row; a single row without an axis."""
    return values.reshape(1, -1) if axis is None else np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


def _dot(importance: Float64Array, a: Float64Array, b: Float64Array) -> Float64Array:
    """Weighted inner product, row by row."""
    return np.asarray(np.einsum("ci,ci,ci->c", importance, a, b))


def _normal(scale: NDArray[np.floating[Any]]) -> FloatArray:
    """As a float32 that is not subnormal."""
    return np.asarray(np.maximum(scale, SMALLEST_SCALE), np.float32)
