"""Number formats and the packing of 4-bit values."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxq.numerics.formats import FORMATS, INT4, INT8, UINT4, UINT8, Format, pack_4bit, unpack_4bit


@pytest.mark.parametrize("name", ["uint8", "int8", "uint16", "int16", "int32"])
def test_a_format_of_whole_bytes_has_the_range_of_its_numpy_type(name: str) -> None:
    limits = np.iinfo(name)
    assert (FORMATS[name].qmin, FORMATS[name].qmax) == (limits.min, limits.max)
    assert FORMATS[name].levels == 2**limits.bits
    assert FORMATS[name].dtype == np.dtype(name)


def test_four_bit_formats() -> None:
    assert (INT4.qmin, INT4.qmax, INT4.dtype.name) == (-8, 7, "int8")
    assert (UINT4.qmin, UINT4.qmax, UINT4.dtype.name) == (0, 15, "uint8")


@pytest.mark.parametrize("format", FORMATS.values(), ids=str)
def test_a_narrow_format_has_as_many_steps_below_the_middle_as_above(format: Format) -> None:
    narrow = format.narrow
    assert narrow.middle - narrow.qmin == narrow.qmax - narrow.middle
    assert narrow.levels == format.levels - 1


def test_narrow_int8_and_uint8() -> None:
    assert (INT8.narrow.qmin, INT8.narrow.qmax) == (-127, 127)
    assert (UINT8.narrow.qmin, UINT8.narrow.qmax) == (1, 255)


@pytest.mark.parametrize("format", [INT4, UINT4], ids=str)
@given(data=st.data())
def test_packing_round_trips(format: Format, data: st.DataObject) -> None:
    integers = data.draw(st.lists(st.integers(format.qmin, format.qmax), max_size=20))
    values = np.array(integers, format.dtype)
    packed = pack_4bit(values)
    assert packed.size == (values.size + 1) // 2
    unpacked = unpack_4bit(packed, values.size, format)
    assert unpacked.dtype == format.dtype
    np.testing.assert_array_equal(unpacked, values)


@pytest.mark.parametrize(
    ("format", "kind"), [(INT4, onnx.TensorProto.INT4), (UINT4, onnx.TensorProto.UINT4)], ids=["int4", "uint4"]
)
def test_packed_bytes_are_the_raw_data_of_onnx(format: Format, kind: int) -> None:
    values = np.arange(format.qmin, format.qmax, dtype=format.dtype)
    raw = pack_4bit(values).tobytes()
    tensor = onnx.TensorProto(data_type=kind, dims=[values.size], raw_data=raw)
    np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(np.int32), values)


def test_the_first_value_is_in_the_low_nibble() -> None:
    assert pack_4bit(np.array([1, 2, 3], np.uint8)).tolist() == [0x21, 0x03]


@pytest.mark.parametrize("values", [[-9], [16], [-1, 8]])
def test_values_past_four_bits_are_refused(values: list[int]) -> None:
    with pytest.raises(ValueError, match="do not fit in 4 bits"):
        pack_4bit(np.array(values, np.int8))


def test_unpacking_refuses_other_formats_and_counts() -> None:
    packed = np.zeros(2, np.uint8)
    with pytest.raises(ValueError, match="int8 is not a 4-bit format"):
        unpack_4bit(packed, 4, INT8)
    with pytest.raises(ValueError, match="2 bytes cannot hold 5 values"):
        unpack_4bit(packed, 5, INT4)
