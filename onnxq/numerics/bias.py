"""What rounding a weight does to the mean of a layer's output.

Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, arXiv:1906.04721, section 4.2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def mean_error(rounded: NDArray[Any], exact: NDArray[Any], means: NDArray[Any], groups: int = 1) -> NDArray[np.float64]:
    """E[(rounded - exact) x] for each output channel, from the mean of each input channel.

    Exact for linear layers, and for convolutions away from the padded border.

    Args:
        rounded: (outputs, inputs / groups, ...), the weight as it will be dequantized.
        exact: the float weight, of the same shape.
        means: (inputs,), mean of each input channel.
        groups: of a grouped convolution.

    Returns:
        (outputs,), what to take away from the bias.

    Raises:
        ValueError: the means do not fit the weight.
    """
    outputs, inputs = exact.shape[:2]
    if means.shape != (inputs * groups,):
        raise ValueError(f"{means.size} means do not fit {inputs * groups} input channels.")
    error = (rounded.astype(np.float64) - exact).reshape(groups, outputs // groups, inputs, -1).sum(axis=3)
    return np.asarray(np.einsum("goi,gi->go", error, means.reshape(groups, inputs)).reshape(-1))
