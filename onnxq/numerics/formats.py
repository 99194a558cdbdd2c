"""The number formats of a quantized tensor: which integers it may hold, and how 4-bit values are packed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntegerArray = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Format:
    """The integers qmin..qmax that a tensor may hold, and the NumPy type that contains them.

    Attributes:
        name: the ONNX element type in lower case; of widths that ONNX has no type for, what it would be called.
        bits: width of one value.
        qmin: smallest integer used.
        qmax: largest integer used.
        dtype: NumPy type of an unpacked array; formats of less than 8 bits live in 8-bit arrays.
        signed: whether the element type is signed.
    """

    name: str
    bits: int
    qmin: int
    qmax: int
    dtype: np.dtype[np.integer[Any]]
    signed: bool

    @property
    def levels(self) -> int:
        """How many integers there are from qmin to qmax."""
        return self.qmax - self.qmin + 1

    @property
    def middle(self) -> int:
        """The zero point of a symmetric tensor: 0 when signed, half the range when unsigned."""
        return 0 if self.signed else 1 << (self.bits - 1)

    @property
    def narrow(self) -> Format:
        """The same format without its lowest integer, so that it has as many steps below `middle` as above.

        int8 becomes -127..127 and uint8 1..255. Symmetric tensors use it: -128 would have no positive twin.
        """
        return replace(self, qmin=2 * self.middle - self.qmax)


def _format(name: str, bits: int, container: type[np.integer[Any]], *, signed: bool) -> Format:
    low = -(1 << (bits - 1)) if signed else 0
    return Format(name, bits, low, low + (1 << bits) - 1, np.dtype(container), signed)


UINT8 = _format("uint8", 8, np.uint8, signed=False)
INT8 = _format("int8", 8, np.int8, signed=True)
INT16 = _format("int16", 16, np.int16, signed=True)
UINT16 = _format("uint16", 16, np.uint16, signed=False)
INT4 = _format("int4", 4, np.int8, signed=True)
UINT4 = _format("uint4", 4, np.uint8, signed=False)
INT32 = _format("int32", 32, np.int32, signed=True)

NARROWER = tuple(
    _format(f"{kind.name.rstrip('8')}{bits}", bits, kind.dtype.type, signed=kind.signed)
    for kind in (INT8, UINT8)
    for bits in (2, 3, 5, 6, 7)
)
"""Formats of a few bits that ONNX has no element type for, or only of late."""

FORMATS: Mapping[str, Format] = MappingProxyType(
    {format.name: format for format in (UINT8, INT8, INT16, UINT16, INT4, UINT4, INT32, *NARROWER)}
)


def pack_4bit(values: IntegerArray) -> NDArray[np.uint8]:
    """Pack 4-bit integers two to a byte, in the order of ONNX `raw_data`.

        [a, b, c]  =>  [a | b << 4, c]

    Args:
        values: any shape, read in C order; -8..7 or 0..15. An odd count is padded with a zero nibble.

    Returns:
        (count + 1) // 2 bytes.

    Raises:
        ValueError: a value does not fit in four bits.

    Source: ONNX, "Int stored in 4 bits" (the first value is in the low nibble).
    """
    flat = values.ravel()
    if flat.size and (flat.min() < -8 or flat.max() > 15 or (flat.min() < 0 and flat.max() > 7)):
        raise ValueError(f"values {flat.min()}..{flat.max()} do not fit in 4 bits. Use -8..7 or 0..15.")
    nibbles = np.zeros(flat.size + flat.size % 2, np.uint8)
    nibbles[: flat.size] = flat.astype(np.uint8) & 0xF
    return np.bitwise_or(nibbles[0::2], np.left_shift(nibbles[1::2], 4))


def unpack_4bit(packed: NDArray[np.uint8], count: int, format: Format) -> IntegerArray:
    """Undo `pack_4bit`: the first `count` values as a flat array of `format.dtype`.

    Raises:
        ValueError: `format` is not a 4-bit format, or `packed` does not have (count + 1) // 2 bytes.
    """
    if format.bits != 4:
        raise ValueError(f"{format.name} is not a 4-bit format. Use INT4 or UINT4.")
    if packed.size != (count + 1) // 2:
        raise ValueError(f"{packed.size} bytes cannot hold {count} values of 4 bits: need {(count + 1) // 2}.")
    nibbles = np.stack((packed.ravel() & 0xF, packed.ravel() >> 4), axis=1).ravel()[:count].astype(np.int8)
    # 8..15 stand for -8..-1 in two's complement
    return (nibbles - 16 * (nibbles > 7) if format.signed else nibbles).astype(format.dtype)
