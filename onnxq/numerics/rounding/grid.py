"""The values that each weight of a layer may take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxq.numerics.formats import Format, IntegerArray

Float64Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Grid:
    """steps * scale for whole steps from lowest to highest, where steps = integer - zero_point.

    One input a row and one output a column, unlike the weight: rounding walks over the inputs, and the values
    of one input for all outputs then lie side by side.

    Attributes:
        scale: (inputs, outputs).
        zero_point: likewise.
        format: the integers to use.
    """

    scale: Float64Array
    zero_point: Float64Array
    format: Format

    @classmethod
    def of(
        cls, shape: tuple[int, ...], scale: ArrayLike, zero_point: ArrayLike, format: Format, block_size: int | None
    ) -> Grid:
        """Stretch scale and zero point over a weight of shape (outputs, inputs).

        Args:
            shape: of the weight.
            scale: a scalar, (outputs,), or with `block_size` (outputs, blocks).
            zero_point: like `scale`.
            format: the integers to use.
            block_size: inputs that share a scale, the last block may have fewer; None for all inputs.

        Raises:
            ValueError: scale or zero point does not fit the weight.
        """
        return cls(_stretched(scale, shape, block_size), _stretched(zero_point, shape, block_size), format)

    def nearest(self, values: Float64Array, row: int | slice = slice(None)) -> Float64Array:
        """The steps closest to the values of one input, or of all."""
        zero = self.zero_point[row]
        return np.clip(np.rint(values / self.scale[row]), self.format.qmin - zero, self.format.qmax - zero)

    def steps(self, integers: IntegerArray) -> Float64Array:
        """Undo `integers`.

        Raises:
            ValueError: the integers do not have the shape of the weight, or are none of the format.
        """
        if integers.T.shape != self.scale.shape:
            raise ValueError(f"integers of shape {integers.shape} are not those of a weight {self.scale.T.shape}.")
        if integers.size and not self.format.qmin <= integers.min() <= integers.max() <= self.format.qmax:
            raise ValueError(
                f"integers {integers.min()}..{integers.max()} are not all in {self.format.qmin}..{self.format.qmax}. "
                f"Round with the same format: {self.format.name}, narrow for symmetric weights."
            )
        return np.asarray(integers.T - self.zero_point)

    def integers(self, steps: Float64Array) -> IntegerArray:
        """What goes into the file, in the orientation of the weight: (outputs, inputs)."""
        return np.ascontiguousarray((steps + self.zero_point).T.astype(self.format.dtype))


def _stretched(parameter: ArrayLike, shape: tuple[int, ...], block_size: int | None) -> Float64Array:
    """Scale or zero point of every weight, (inputs, outputs)."""
    values, (outputs, inputs) = np.asarray(parameter, np.float64), shape
    if block_size is None and values.shape in ((), (1,), (outputs,)):
        return np.broadcast_to(values, (inputs, outputs))
    if block_size is not None and values.shape == (outputs, -(-inputs // block_size)):
        return np.repeat(values.T, block_size, axis=0)[:inputs]
    raise ValueError(
        f"scale or zero point of shape {values.shape} does not fit a weight of shape {shape} and block size "
        f"{block_size}. Give one value, one for each output, or with a block size one for each output and block."
    )
