"""Coordinate descent on the error at the output: one input at a time, to the best value given all the others."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from onnxq.numerics.formats import Format, IntegerArray
from onnxq.numerics.rounding.grid import Float64Array, Grid
from onnxq.numerics.rounding.output_error import matching, output_error
from onnxq.numerics.rounding.sweep import sweep


def descend(
    weight: ArrayLike,
    gram: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike,
    format: Format,
    start: IntegerArray | None = None,
    sweeps: int = 4,
    *,
    block_size: int | None = None,
) -> IntegerArray:
    """Improve a rounded weight until no single integer could do better, or the sweeps are over.

    No output's error, as `output_error` has it, is above that of the start, nor above that of the nearest integers.

    Args:
        weight: (outputs, inputs), finite.
        gram: (inputs, inputs), sum of x^T x over the rows x that the layer saw, or any multiple of it.
        scale: a scalar, (outputs,), or with `block_size` (outputs, blocks).
        zero_point: like `scale`.
        format: the integers to use; `format.narrow` for symmetric weights.
        start: integers shaped like the weight; None to start from the nearest.
        sweeps: over all inputs, at most.
        block_size: inputs that share a scale.

    Returns:
        `format.dtype`, shaped like the weight.

    Raises:
        ValueError: an argument does not fit the weight, or the gram is not finite.
    """
    exact, gram = matching(weight, gram)
    grid = Grid.of(exact.shape, scale, zero_point, format, block_size)
    first = grid.nearest(exact.T)
    if start is not None:
        first = _better(grid.steps(start), first, exact, gram, grid)
    settled = _settled(exact.T, first, _coupling(gram), grid, sweeps)
    # between equals, rounding errors may have led a little upwards
    return grid.integers(_better(first, settled, exact, gram, grid))


def _better(
    one: Float64Array, other: Float64Array, weight: Float64Array, gram: Float64Array, grid: Grid
) -> Float64Array:
    """For each output the steps with the smaller error, `one` if equal."""
    errors = [output_error((steps * grid.scale).T, weight, gram) for steps in (one, other)]
    return np.where(errors[1] < errors[0], other, one)


def _settled(
    weight: Float64Array, steps: Float64Array, coupling: Float64Array, grid: Grid, sweeps: int
) -> Float64Array:
    """The steps after so many sweeps, or after the first that changes nothing."""
    for _ in range(sweeps):
        before, steps = steps, sweep(weight, steps * grid.scale - weight, coupling, grid)
        if np.array_equal(before, steps):
            break
    return steps


def _coupling(gram: Float64Array) -> Float64Array:
    """gram / diag(gram) off the diagonal; inputs that were always 0 have no part in it."""
    diagonal = gram.diagonal()
    coupling = gram / np.where(diagonal > 0, diagonal, 1)
    np.fill_diagonal(coupling, 0)
    return np.asarray(coupling)
