"""The error of a rounded weight where it counts: at the output of its layer."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64Array = NDArray[np.float64]


def output_error(rounded: ArrayLike, weight: ArrayLike, gram: ArrayLike) -> Float64Array:
    """diag((rounded - weight) gram (rounded - weight)^T): the squared error of each output, summed over the rows.

    Args:
        rounded: (outputs, inputs), the weight as it will be dequantized.
        weight: the float weight, of the same shape.
        gram: (inputs, inputs), sum of x^T x over the rows x that the layer saw.

    Returns:
        (outputs,), in the square of the unit of the output.

    Raises:
        ValueError: the shapes do not fit, or weight or gram is not finite.
    """
    weight, gram = matching(weight, gram)
    error = np.asarray(rounded, np.float64) - weight
    return np.asarray(np.einsum("oi,oi->o", error @ gram, error))


def matching(weight: ArrayLike, gram: ArrayLike) -> tuple[Float64Array, Float64Array]:
    """Both in float64.

    Raises:
        ValueError: the weight is not (outputs, inputs), the gram not (inputs, inputs), or one is not finite.
    """
    weight, gram = np.asarray(weight, np.float64), np.asarray(gram, np.float64)
    if weight.ndim != 2 or gram.shape != (weight.shape[1],) * 2:
        raise ValueError(
            f"a gram of shape {gram.shape} does not fit a weight of shape {weight.shape}. "
            "Give a weight (outputs, inputs) and a gram (inputs, inputs)."
        )
    if not (np.isfinite(weight).all() and np.isfinite(gram).all()):
        raise ValueError("weight or gram is not finite. Repair the model, or leave out the rows that are not finite.")
    return weight, gram
