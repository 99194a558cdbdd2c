"""GPTQ: each input takes over, before it is rounded, the errors of the inputs before it.

Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers,
arXiv:2210.17323. It multiplies errors by the Cholesky factor of the inverse Gram matrix. Here is the same
computation without the inverse: with gram = R R^T and R upper triangular the error at the output is

    |(rounded - weight) R|^2 = sum over j of (e[j] R[j, j] + sum over i < j of e[i] R[i, j])^2

and each term in turn is made as small as the grid allows: Babai's nearest plane (Chen et al., arXiv:2507.18553).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from onnxq.numerics.formats import Format, IntegerArray
from onnxq.numerics.rounding.grid import Float64Array, Grid
from onnxq.numerics.rounding.output_error import matching
from onnxq.numerics.rounding.sweep import sweep


@dataclass(frozen=True, eq=False)
class Ahead:
    """How inputs make up for each other, worked out once for all layers that read them.

    Attributes:
        order: in which they are rounded.
        coupling: in that order, how much of the error of an input each later one takes over.
    """

    order: NDArray[np.intp]
    coupling: Float64Array

    @classmethod
    def of(cls, gram: ArrayLike, *, damping: float = 0.01, act_order: bool = False) -> Ahead:
        """From the Gram matrix; the arguments are those of `gptq`."""
        if not damping > 0:
            raise ValueError(f"a damping of {damping} gives inputs that were always 0 no factor. Use one above 0.")
        gram = np.asarray(gram, np.float64)
        order = np.argsort(-gram.diagonal(), kind="stable") if act_order else np.arange(len(gram))
        return cls(order, _coupling(gram[np.ix_(order, order)], damping))


def gptq(
    weight: ArrayLike,
    gram: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike,
    format: Format,
    *,
    damping: float = 0.01,
    block_size: int | None = None,
    act_order: bool = False,
    ahead: Ahead | None = None,
) -> IntegerArray:
    """Round a weight so that the errors of its inputs cancel at the output, in one sweep.

    Single outputs may come out worse than by rounding to nearest, mostly where inputs are few: go on with
    `descend`, which sees to that. Inputs that were always 0 are rounded to nearest.

    Args:
        weight: (outputs, inputs), finite.
        gram: (inputs, inputs), sum of x^T x over the rows x that the layer saw, or any multiple of it.
        scale: fixed beforehand: a scalar, (outputs,), or with `block_size` (outputs, blocks).
        zero_point: like `scale`.
        format: the integers to use; `format.narrow` for symmetric weights.
        damping: above 0, share of the mean of the diagonal that is added to the diagonal. Ten times as much,
            as often as needed, where the matrix has no Cholesky factor.
        block_size: inputs that share a scale.
        act_order: round the inputs with the largest mean square first, while most others can still make up.
        ahead: what follows from the gram, damping and act_order, where it is known.

    Returns:
        `format.dtype`, shaped like the weight.

    Raises:
        ValueError: an argument does not fit the weight, damping is not above 0, or the gram is not finite.
    """
    exact, gram = matching(weight, gram)
    ahead = ahead or Ahead.of(gram, damping=damping, act_order=act_order)
    order = ahead.order
    grid = Grid.of(exact.shape, scale, zero_point, format, block_size)
    ordered = Grid(grid.scale[order], grid.zero_point[order], format)
    steps = np.empty(grid.scale.shape)
    steps[order] = sweep(exact.T[order], np.zeros(steps.shape), ahead.coupling, ordered)
    return grid.integers(steps)


def _coupling(gram: Float64Array, damping: float) -> Float64Array:
    """R / diag(R) above the diagonal, where R is upper triangular and R R^T is the damped gram."""
    # a factorization that starts at the last input is the usual one of the matrix turned around
    factor = _cholesky(gram[::-1, ::-1], damping)[::-1, ::-1]
    return np.asarray(factor / factor.diagonal() - np.eye(len(gram)))


def _cholesky(gram: Float64Array, damping: float) -> Float64Array:
    """The lower factor, of the least damped matrix that has one."""
    # inputs that were always 0 get a small diagonal, and no part in anything else
    ridge = damping * gram.trace() / max(len(gram), 1) or 1.0
    while True:
        try:
            return np.asarray(scipy.linalg.cholesky(gram + ridge * np.eye(len(gram)), lower=True))
        except scipy.linalg.LinAlgError:
            ridge *= 10
