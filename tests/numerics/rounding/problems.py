"""Layers to round: a weight, the Gram matrix of correlated inputs, a grid; and the optimum of tiny ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxq.numerics.affine import quantize, quantize_weight
from onnxq.numerics.formats import INT4, INT8, UINT4, UINT8, Format
from onnxq.numerics.rounding.output_error import output_error

Array = NDArray[Any]

TERNARY = replace(INT4, qmin=-1, qmax=1)
"""Few enough values to try them all."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A layer and its grid; the format is the narrow one where the grid is symmetric."""

    weight: Array
    gram: Array
    scale: Array
    zero_point: Array
    format: Format

    @classmethod
    def of(cls, weight: Array, gram: Array, format: Format, *, symmetric: bool = True) -> Problem:
        rounded = quantize_weight(weight, format, axis=0, symmetric=symmetric)
        return cls(weight, gram, rounded.scale, rounded.zero_point, format.narrow if symmetric else format)

    @property
    def arguments(self) -> tuple[Array, Array, Array, Array, Format]:
        return self.weight, self.gram, self.scale, self.zero_point, self.format

    @property
    def nearest(self) -> Array:
        return quantize(self.weight, self.scale, self.zero_point, self.format, axis=0)

    def error(self, integers: Array) -> Array:
        """Of each output."""
        assert integers.dtype == self.format.dtype
        assert self.format.qmin <= integers.min() <= integers.max() <= self.format.qmax
        steps = integers.astype(np.float64) - self.zero_point[:, None]
        return output_error(steps * self.scale[:, None], self.weight, self.gram)

    def least_error(self) -> Array:
        """Of each output, over all integers."""
        outputs, inputs = self.weight.shape
        values = range(self.format.qmin, self.format.qmax + 1)
        trials = np.array(list(product(values, repeat=inputs)), self.format.dtype)
        return np.asarray(np.min([self.error(np.tile(trial, (outputs, 1))) for trial in trials], axis=0))


def correlated(outputs: int, inputs: int, seed: int, format: Format = INT8, *, symmetric: bool = True) -> Problem:
    """Inputs that are mixtures of one another, four rows for each."""
    random = np.random.default_rng(seed)
    rows = random.normal(size=(4 * inputs, inputs)) @ random.normal(size=(inputs, inputs))
    weight = random.normal(0.1, 1, size=(outputs, inputs)).astype(np.float32)
    return Problem.of(weight, rows.T @ rows, format, symmetric=symmetric)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Fewer rows than inputs, inputs that were always 0, and every format of a weight."""
    outputs, inputs, rows = draw(st.integers(1, 5)), draw(st.integers(1, 12)), draw(st.integers(0, 20))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    seen = random.normal(size=(rows, inputs)) * draw(st.sampled_from([1e-6, 1.0, 1e6]))
    seen[:, random.random(inputs) < draw(st.sampled_from([0, 0.3]))] = 0
    weight = random.standard_t(2, size=(outputs, inputs)).astype(np.float32)
    format, symmetric = draw(st.sampled_from([INT8, UINT8, INT4, UINT4])), draw(st.booleans())
    return Problem.of(weight, seen.T @ seen, format, symmetric=symmetric)
