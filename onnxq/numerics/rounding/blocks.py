"""Weights in blocks: a scale, and perhaps a zero point, for every few inputs of each output.

    weight ~ (integer - zero_point) * scale        one scale and zero point for `block` inputs of an output

Everything works on tiles (blocks, block, outputs) of a weight: a tile fits into the cache, and what is summed over a
block lies in rows, one output beside the other. A weight is never held in floats as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxq.numerics.formats import IntegerArray

FloatArray = NDArray[np.float32]
Method = Literal["rtn", "mse", "hqq"]

TILE = 1 << 16
"""Numbers of a tile: 256 KiB in float32."""

COLUMNS = 512
"""Outputs of a tile, at most."""

SHRINKS = np.linspace(1.0, 0.6, 17)
"""Shares of its range that the grid of a block may cover; what lies beyond saturates."""

NORM = 0.7
"""HQQ minimizes the sum of the errors to this power, so that a few large ones may stay."""

FAINTEST = 1e-3
"""Share of the mean importance that every input has at least: samples may miss what others bring."""

SMALLEST = np.finfo(np.float32).smallest_normal


@dataclass(frozen=True, eq=False)
class Blocked:
    """A weight as `MatMulNBits` stores it.

    Attributes:
        values: (outputs, blocks, bytes) uint8; of two 4-bit integers in a byte the first is the lower half.
        scale: (outputs, blocks) float32; it may be negative.
        zero_point: (outputs, blocks) uint8, one integer each; None for the middle of the format.
        bits: 4 or 8.
        inputs: of the weight; the last block may be filled up.
    """

    values: NDArray[np.uint8]
    scale: FloatArray
    zero_point: NDArray[np.uint8] | None
    bits: int
    inputs: int

    @property
    def block(self) -> int:
        """Inputs that share a scale."""
        return int(self.values.shape[2]) * 8 // self.bits

    @property
    def middle(self) -> int:
        """The zero point of a symmetric weight."""
        return 1 << (self.bits - 1)

    def integers(self) -> NDArray[np.uint8]:
        """(outputs, inputs), one integer each."""
        flat = self.values.reshape(len(self.values), -1)
        if self.bits == 8:
            return flat[:, : self.inputs]
        parts = np.stack([flat & 15, flat >> 4], axis=-1)
        return parts.reshape(len(flat), -1)[:, : self.inputs]

    def seen(self) -> FloatArray:
        """(outputs, inputs): the weight as a layer sees it."""
        zero = self.middle if self.zero_point is None else self._wide(self.zero_point)
        steps = self.integers().astype(np.float32) - zero
        return np.asarray(steps * self._wide(self.scale), np.float32)

    def _wide(self, values: NDArray[Any]) -> NDArray[Any]:
        return np.repeat(values, self.block, axis=1)[:, : self.inputs].astype(np.float32)

    def packed_zero_point(self) -> NDArray[np.uint8] | None:
        """(outputs, bytes) as `MatMulNBits` stores zero points; None for a symmetric weight."""
        return None if self.zero_point is None else pack(self.zero_point, self.bits)


def pack(values: IntegerArray, bits: int) -> NDArray[np.uint8]:
    """Integers of a few bits along the last axis, two 4-bit ones to a byte, the first in the lower half."""
    if bits == 8:
        return np.asarray(values, np.uint8)
    even = np.concatenate([values, np.zeros((*values.shape[:-1], values.shape[-1] % 2), values.dtype)], axis=-1)
    return np.asarray(even[..., ::2] | even[..., 1::2] << 4, np.uint8)


def with_integers(found: Blocked, integers: IntegerArray) -> Blocked:
    """The same grids with other integers, (outputs, inputs)."""
    outputs, blocks, _ = found.values.shape
    filled = np.pad(integers, ((0, 0), (0, blocks * found.block - found.inputs)))
    values = pack(filled.reshape(outputs, blocks, found.block).astype(np.uint8), found.bits)
    return Blocked(values, found.scale, found.zero_point, found.bits, found.inputs)


def block_round(
    weight: NDArray[Any],
    *,
    bits: int,
    block: int,
    symmetric: bool,
    method: Method = "mse",
    importance: NDArray[Any] | None = None,
    half: bool = False,
) -> Blocked:
    """Round a weight to nearest on grids that fit its blocks.

    Args:
        weight: (inputs, outputs), any floating type, finite; it may be a view of a file.
        bits: 4 or 8.
        block: inputs that share a scale, an even number.
        symmetric: whether the zero point is the middle of the format.
        method: how a grid is chosen: `rtn` covers the whole range, `mse` leaves the least squared error, `hqq` the
            least sum of the errors to the power 0.7 (Half-Quadratic Quantization, Badri and Shaji, 2023; its zero
            points are rounded here, and the scale is fitted to them).
        importance: (inputs,), the mean square of each input; None for 1.
        half: whether scales will be stored in float16: then they are such numbers.

    Raises:
        ValueError: the weight is not finite.
    """
    inputs, outputs = weight.shape
    blocks = -(-inputs // block)
    values = np.empty((outputs, blocks, block * bits // 8), np.uint8)
    scale, zero = np.empty((outputs, blocks), np.float32), np.empty((outputs, blocks), np.uint8)
    factors = None if importance is None else _factors(importance, block)
    for rows, columns in _tiles(blocks, block, outputs):
        x = _tile(weight, rows, columns, block)
        steps, origin = _GRIDS[method](x, bits, symmetric, None if factors is None else factors[rows])
        if half:
            steps = _halved(steps)
        integers = _nearest(x, steps, origin, bits)
        packed = integers if bits == 8 else integers[:, ::2] | integers[:, 1::2] << 4
        values[columns, rows] = packed.transpose(2, 0, 1)
        scale[columns, rows], zero[columns, rows] = steps[:, 0].T, origin[:, 0].T
    return Blocked(values, scale, None if symmetric else zero, bits, inputs)


def _halved(scale: FloatArray) -> FloatArray:
    """As numbers that float16 holds, none of them 0."""
    smallest = np.finfo(np.float16).smallest_subnormal
    near = scale.astype(np.float16)
    return np.where(near == 0, smallest, near).astype(np.float32)


def _tiles(blocks: int, block: int, outputs: int) -> Iterator[tuple[slice, slice]]:
    """Blocks and outputs of each tile."""
    width = min(COLUMNS, outputs)
    height = max(1, TILE // (width * block))
    for row in range(0, blocks, height):
        for column in range(0, outputs, width):
            yield slice(row, min(row + height, blocks)), slice(column, min(column + width, outputs))


def _tile(weight: NDArray[Any], rows: slice, columns: slice, block: int) -> FloatArray:
    part = np.asarray(weight[rows.start * block : rows.stop * block, columns], np.float32)
    missing = (rows.stop - rows.start) * block - len(part)
    filled = np.pad(part, ((0, missing), (0, 0))) if missing else part
    with np.errstate(invalid="ignore"):
        suspect = not np.isfinite(filled.sum(dtype=np.float64))
    if suspect and not np.isfinite(filled).all():
        raise ValueError("it holds NaN or infinity. Repair the model: only finite values quantize.")
    return filled.reshape(-1, block, filled.shape[1])


def _factors(importance: NDArray[Any], block: int) -> FloatArray:
    """By blocks; only their ratios count."""
    shares = np.maximum(importance / (importance.mean() or 1.0), FAINTEST).astype(np.float32)
    return np.pad(shares, (0, -len(shares) % block)).reshape(-1, block, 1)


def _range(x: FloatArray, bits: int, symmetric: bool) -> tuple[FloatArray, FloatArray]:
    """Scale and zero point, (blocks, 1, outputs), of the grid that covers a block and 0.

    A symmetric grid reaches one step further on one side: there lies the value that is furthest from 0, so that no
    integer is lost, and the scale takes its sign.
    """
    low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
    if symmetric:
        middle = 1 << (bits - 1)
        scale = _normal(np.where(high > -low, high, low) / np.float32(-middle))
        return scale, np.full_like(scale, middle)
    np.minimum(low, 0, out=low)
    np.maximum(high, 0, out=high)
    scale = _normal((high - low) / np.float32((1 << bits) - 1))
    return scale, np.asarray(np.rint(-low / scale), np.float32)


def _steps(x: FloatArray, scale: FloatArray, zero: FloatArray, bits: int) -> FloatArray:
    """The nearest integers less the zero point."""
    steps = np.asarray(x * (1 / scale), np.float32)
    np.rint(steps, out=steps)
    np.maximum(steps, -zero, out=steps)
    np.minimum(steps, (1 << bits) - 1 - zero, out=steps)
    return steps


def _nearest(x: FloatArray, scale: FloatArray, zero: FloatArray, bits: int) -> NDArray[np.uint8]:
    steps = _steps(x, scale, zero, bits)
    steps += zero
    return steps.astype(np.uint8)


def _plain(x: FloatArray, bits: int, symmetric: bool, factors: FloatArray | None) -> tuple[FloatArray, FloatArray]:
    return _range(x, bits, symmetric)


def _least_squares(
    x: FloatArray, bits: int, symmetric: bool, factors: FloatArray | None
) -> tuple[FloatArray, FloatArray]:
    """The grid with the least squared error of those that cover a part of the range.

    With the integers q of a grid given, <x, q> / <q, q> is the best scale: it leaves |x|^2 - <x, q>^2 / <q, q>. The
    root of what it takes away is compared, which overflows later.
    """
    scale, zero = _range(x, bits, symmetric)
    weighted = x if factors is None else x * factors
    best, most = scale, np.full_like(scale, -1)
    for share in SHRINKS:
        for sign in (1, -1) if symmetric else (1,):
            steps = _steps(x, scale * np.float32(sign * share), zero, bits)
            fit, gain = _fitted(weighted, steps, factors)
            better = gain > most
            best, most = np.where(better, fit, best), np.where(better, gain, most)
    return best, zero


def _fitted(weighted: FloatArray, steps: FloatArray, factors: FloatArray | None) -> tuple[FloatArray, FloatArray]:
    """The best scale for these steps, and the root of how much of the square of the weight it explains."""
    along = np.einsum("bio,bio->bo", weighted, steps)[:, None]
    size = np.einsum("bio,bio->bo", steps, steps if factors is None else steps * factors)[:, None]
    size = np.where(size > 0, size, 1)
    return _normal(along / size), np.abs(along) / np.sqrt(size)


def _normal(scale: FloatArray) -> FloatArray:
    """Without those that are too small to divide by."""
    return np.where(np.abs(scale) < SMALLEST, SMALLEST, scale).astype(np.float32, copy=False)


def _half_quadratic(
    x: FloatArray, bits: int, symmetric: bool, factors: FloatArray | None
) -> tuple[FloatArray, FloatArray]:
    """HQQ: split off the errors that are large, and move the zero point to where the others vanish.

    Every rounded zero point on the way is tried with its own scale and with the one that fits its integers best.
    """
    scale, zero = _least_squares(x, bits, symmetric, factors)
    best, origin, least = scale, zero, _power(x, scale, zero, bits, factors)
    if symmetric:
        return best, origin
    moving, strength = zero, np.float32(10.0)
    for _ in range(20):
        steps = _steps(x, scale, moving, bits)
        error = x - steps * scale
        size = np.abs(error)
        with np.errstate(divide="ignore"):
            kept = np.sign(error) * np.maximum(size - size ** np.float32(NORM - 1) / strength, 0)
        moving = np.mean(steps + moving - (x - kept) / scale, axis=1, keepdims=True)
        strength *= np.float32(1.01)
        trial = np.clip(np.rint(moving), 0, (1 << bits) - 1)
        fit, _ = _fitted(x if factors is None else x * factors, _steps(x, scale, trial, bits), factors)
        for candidate in (scale, fit):
            found = _power(x, candidate, trial, bits, factors)
            better = found < least
            best, origin = np.where(better, candidate, best), np.where(better, trial, origin)
            least = np.where(better, found, least)
    return best, origin


def _power(x: FloatArray, scale: FloatArray, zero: FloatArray, bits: int, factors: FloatArray | None) -> FloatArray:
    """Sum of |error|^p over each block."""
    error = np.abs(_steps(x, scale, zero, bits) * scale - x)
    error **= np.float32(NORM)
    if factors is not None:
        error *= factors ** np.float32(NORM / 2)
    return np.asarray(error.sum(axis=1, keepdims=True))


Chooser = Callable[[FloatArray, int, bool, "FloatArray | None"], tuple[FloatArray, FloatArray]]
_GRIDS: dict[str, Chooser] = {"rtn": _plain, "mse": _least_squares, "hqq": _half_quadratic}
