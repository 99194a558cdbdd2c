"""Rounding the inputs of a layer one after the other, each making up for the errors of the others.

The squared error at the output of a layer, (rounded - weight) gram (rounded - weight)^T, couples its inputs:
with the errors e of the others given, the best value of input j is

    weight[j] - sum over i of coupling[i, j] * e[i]

and the best on the grid is the nearest to it. GPTQ and coordinate descent differ in the coupling alone.
"""

from __future__ import annotations

import numpy as np

from onnxq.numerics.rounding.grid import Float64Array, Grid

BLOCK = 128
"""Inputs between two large matrix products. Within a block every input needs a product of its own."""


def sweep(weight: Float64Array, error: Float64Array, coupling: Float64Array, grid: Grid) -> Float64Array:
    """Round every input once, first to last.

    Args:
        weight: (inputs, outputs), the exact values.
        error: likewise, rounded - weight before the sweep.
        coupling: (inputs, inputs), with a diagonal of zeros.
        grid: the values to choose from.

    Returns:
        (inputs, outputs), in steps of the grid.
    """
    weight, error = np.ascontiguousarray(weight), error.copy(order="C")
    steps = np.empty_like(weight)
    for start in range(0, len(weight), BLOCK):
        here = slice(start, start + BLOCK)
        goal = weight[here] - coupling[:, here].T @ error
        near = np.ascontiguousarray(coupling[here, here].T)
        # how far the errors of this block have moved since `goal` was taken
        moved = np.empty_like(goal)
        for j in range(len(goal)):
            row = start + j
            steps[row] = grid.nearest(goal[j] - near[j, :j] @ moved[:j], row)
            after = steps[row] * grid.scale[row] - weight[row]
            moved[j] = after - error[row]
            error[row] = after
    return steps
