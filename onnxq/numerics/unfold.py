"""A convolution as a matrix product: every place its window stops at becomes a row."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray


def unfold(
    x: NDArray[Any],
    kernel: Sequence[int],
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
) -> NDArray[Any]:
    """The rows r with r @ weight.reshape(outputs, -1).T = Conv(x, weight), without bias.

    A grouped convolution is one such product per group: give the channels of one group.

    Args:
        x: (batch, channels, ...), with one to three spatial axes.
        kernel: size of the window along each spatial axis.
        strides: None for 1.
        pads: zeros before each spatial axis, then after each, as in ONNX; None for 0.
        dilations: None for 1.

    Returns:
        (batch * places, channels * prod(kernel)), of the type of x: places in the order of the output, columns
        in the order of the weight.

    Raises:
        ValueError: the options do not fit the axes, or the window is larger than the padded input.
    """
    axes = len(kernel)
    strides, pads, dilations = strides or [1] * axes, pads or [0] * 2 * axes, dilations or [1] * axes
    if (x.ndim - 2, len(strides), len(pads), len(dilations)) != (axes, axes, 2 * axes, axes):
        raise ValueError(
            f"kernel {kernel}, strides {strides}, pads {pads} and dilations {dilations} do not fit an input of "
            f"shape {x.shape}. Give one number for each spatial axis, and two pads."
        )
    padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:axes], pads[axes:], strict=True)])
    window = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    if any(size > room for size, room in zip(window, padded.shape[2:], strict=True)):
        raise ValueError(f"a window of {window} does not fit into {list(padded.shape[2:])}. Pad more, or shrink it.")
    # (batch, channels, *starts, *window) -> (batch, channels, *places, *kernel)
    windows = sliding_window_view(padded, window, axis=tuple(range(2, 2 + axes)))
    windows = windows[:, :, *(slice(None, None, step) for step in (*strides, *dilations))]
    return np.moveaxis(windows, 1, 1 + axes).reshape(-1, x.shape[1] * prod(kernel))
