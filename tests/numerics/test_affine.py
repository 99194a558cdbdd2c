"""Scale and zero point; quantize and dequantize against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxq.numerics.affine import (
    dequantize,
    fake_quantize,
    parameters,
    quantize,
    quantize_bias,
    quantize_weight,
    representable,
    safe_weight_scale,
)
from onnxq.numerics.formats import FORMATS, INT4, INT8, INT16, INT32, NARROWER, UINT4, UINT8, UINT16, Format

GRIDS = [UINT8, INT8, UINT16, INT16, UINT4, INT4]
TINY = np.finfo(np.float32).smallest_normal
Array = NDArray[Any]

by_format = pytest.mark.parametrize("format", GRIDS, ids=[format.name for format in GRIDS])
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
scales = st.floats(float(TINY), 2.0**127, width=32) | st.sampled_from([0.1, 0.25, 1.0, 1 / 3]).map(np.float32)


def onnxruntime_round_trip(x: Array, scale: Array, zero: Array, format: Format, axis: int) -> list[Array]:
    """QuantizeLinear, and DequantizeLinear of its result. The integers are cast to int32 to leave the graph."""
    kind = getattr(TensorProto, format.name.upper())
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], axis=axis),
        helper.make_node("Cast", ["q"], ["integers"], to=TensorProto.INT32),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], axis=axis),
    ]
    graph = helper.make_graph(
        nodes,
        "round_trip",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [
            helper.make_tensor_value_info("integers", TensorProto.INT32, x.shape),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, x.shape),
        ],
        [
            helper.make_tensor("scale", TensorProto.FLOAT, scale.shape, scale.ravel().tolist()),
            helper.make_tensor("zero", kind, zero.shape, zero.ravel().tolist()),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs: list[Array] = session.run(None, {"x": x})
    return outputs


def assert_same_as_onnxruntime(x: Array, scale: Array, zero: Array, format: Format, axis: int | None = None) -> None:
    integers, y = onnxruntime_round_trip(x, scale, zero, format, axis or 0)
    q = quantize(x, scale, zero, format, axis)
    assert q.dtype == format.dtype
    np.testing.assert_array_equal(q.astype(np.int32), integers)
    ours = dequantize(q, scale, zero, axis)
    assert ours.dtype == np.float32
    assert ours.tobytes() == y.tobytes()


@by_format
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_quantize_and_dequantize_equal_onnxruntime(format: Format, data: st.DataObject) -> None:
    scale = np.float32(data.draw(scales))
    zero = np.array(data.draw(st.integers(format.qmin, format.qmax)), format.dtype)
    anything = st.floats(allow_nan=False, width=32)
    ties = st.integers(-600, 600).map(lambda n: float(np.float32(np.clip(n / 2 * float(scale), -3e38, 3e38))))
    x = data.draw(arrays(np.float32, st.integers(0, 40), elements=anything | ties))
    assert_same_as_onnxruntime(x, np.asarray(scale), zero, format)


@by_format
def test_halves_infinities_and_signed_zeros_equal_onnxruntime(format: Format) -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -0.0, 0.0, 3e38, -3e38, np.inf, -np.inf, 1e-45], np.float32)
    zero = np.array((format.qmin + format.qmax) // 2, format.dtype)
    for scale in (1.0, 1e-30, float(TINY), 1e30):
        assert_same_as_onnxruntime(x, np.asarray(scale, np.float32), zero, format)


@by_format
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_one_grid_per_channel_equals_onnxruntime(format: Format, axis: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 5, 4)).astype(np.float32)
    channels = (x.shape[axis],)
    scale = rng.uniform(0.001, 0.5, channels).astype(np.float32)
    zero = rng.integers(format.qmin, format.qmax + 1, channels).astype(format.dtype)
    assert_same_as_onnxruntime(x, scale, zero, format, axis)


def test_nan_becomes_qmin() -> None:
    # ONNX Runtime does the same on x86, but does not promise it
    assert quantize([np.nan], 1.0, 3, INT8).tolist() == [-128]


def test_quantize_refuses_scales_that_do_not_fit() -> None:
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="needs one scale, not 3"):
        quantize(x, np.ones(3), np.zeros(3), INT8)
    with pytest.raises(ValueError, match=r"shape \(3,\) does not fit axis 0"):
        quantize(x, np.ones(3), np.zeros(3), INT8, axis=0)
    with pytest.raises(ValueError, match="quantize_bias for int32"):
        quantize(x, 1.0, 0, INT32)


@by_format
@pytest.mark.parametrize("symmetric", [False, True])
@given(low=finite, high=finite)
def test_a_grid_holds_zero_and_both_ends(format: Format, symmetric: bool, low: float, high: float) -> None:
    low, high = sorted((low, high))
    scale, zero = parameters(low, high, format, symmetric=symmetric)
    assert scale.dtype == np.float32
    assert zero.dtype == format.dtype
    assert scale.shape == zero.shape == ()
    assert np.isfinite(scale)
    assert scale >= TINY
    assert dequantize(zero, scale, zero) == 0
    bottom, top = representable(scale, zero, format)
    assert np.isfinite([bottom, top]).all()
    # to half a step and the rounding of the scale; ends past half of the largest float are cut
    slack = float(scale) * (0.5 + 1e-6 * format.levels)
    assert float(bottom) - slack <= max(min(low, 0), -1.7e38)
    assert float(top) + slack >= min(max(high, 0), 1.7e38)


@by_format
@given(low=finite, high=finite)
def test_one_sided_ranges_put_zero_at_the_end(format: Format, low: float, high: float) -> None:
    low, high = sorted((abs(low), abs(high)))
    assert parameters(low, high, format)[1] == format.qmin
    if high >= 1e-30:
        assert parameters(-high, -low, format)[1] == format.qmax


@by_format
@given(data=st.data(), low=st.floats(-1e6, 0, width=32), high=st.floats(0, 1e6, width=32))
def test_values_in_range_move_by_half_a_step_at_most(
    format: Format, data: st.DataObject, low: float, high: float
) -> None:
    x = np.float32(data.draw(st.floats(low, high, width=32)))
    scale, zero = parameters(low, high, format)
    error = abs(float(fake_quantize(x, scale, zero, format)) - float(x))
    assert error <= float(scale) * (0.5 + 1e-6 * format.levels)


def pair(grid: tuple[Array, Array]) -> tuple[np.float32, int]:
    return np.float32(grid[0]), int(grid[1])


def test_affine_parameters_of_known_ranges() -> None:
    assert pair(parameters(0.0, 6.0, UINT8)) == (np.float32(6 / 255), 0)
    assert pair(parameters(0.0, 6.0, INT8)) == (np.float32(6 / 255), -128)
    assert pair(parameters(-1.0, 3.0, UINT8)) == (np.float32(4 / 255), 64)
    assert pair(parameters(2.0, 4.0, UINT8)) == (np.float32(4 / 255), 0)


@pytest.mark.parametrize(("format", "zero"), [(INT8, 0), (UINT8, 128)], ids=["int8", "uint8"])
def test_symmetric_parameters(format: Format, zero: int) -> None:
    scale, zero_point = parameters(-1.0, 3.0, format, symmetric=True)
    assert pair((scale, zero_point)) == (np.float32(3 / 127), zero)


@by_format
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_tensor_of_zeros_has_scale_one_and_represents_zero(format: Format, symmetric: bool) -> None:
    scale, zero = parameters(0.0, 0.0, format, symmetric=symmetric)
    assert pair((scale, zero)) == (np.float32(1), format.middle if symmetric else format.qmin)
    assert fake_quantize(0.0, scale, zero, format) == 0


def test_parameters_of_many_ranges_at_once() -> None:
    scale, zero = parameters([[0.0, -1.0]], [[255.0, 0.0]], UINT8)
    np.testing.assert_array_equal(scale, np.array([[1, 1 / 255]], np.float32))
    np.testing.assert_array_equal(zero, [[0, 255]])


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (np.nan, 1.0), (0.0, np.nan), (-np.inf, 0.0), (0.0, np.inf)])
def test_what_is_no_range_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="is no range"):
        parameters([0.0, low], [1.0, high], UINT8)


def test_a_weight_has_the_grid_of_each_channel() -> None:
    weight = np.array([[1.0, -2.0], [0.5, 0.25], [0.0, 0.0]], np.float32)
    quantized = quantize_weight(weight, INT8, axis=0)
    np.testing.assert_array_equal(quantized.scale, np.array([2 / 127, 0.5 / 127, 1], np.float32))
    np.testing.assert_array_equal(quantized.zero_point, [0, 0, 0])
    np.testing.assert_array_equal(quantized.values, [[64, -127], [127, 64], [0, 0]])


def test_an_asymmetric_weight_uses_all_levels() -> None:
    quantized = quantize_weight(np.linspace(-1, 14, 16), UINT4, symmetric=False)
    assert quantized.scale == 1
    np.testing.assert_array_equal(quantized.values, np.arange(16))


@by_format
@given(weight=arrays(np.float32, (3, 4), elements=finite))
def test_symmetric_weights_avoid_the_lowest_integer(format: Format, weight: Array) -> None:
    for axis in (None, 0, -1):
        assert np.all(quantize_weight(weight, format, axis=axis).values >= format.narrow.qmin)


def test_an_empty_weight_is_fine() -> None:
    quantized = quantize_weight(np.zeros((2, 0), np.float32), INT8, axis=0)
    assert quantized.values.shape == (2, 0)
    np.testing.assert_array_equal(quantized.scale, [1, 1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused_by_index(bad: float) -> None:
    weight = np.zeros((2, 3), np.float32)
    weight[1, 0] = weight[1, 2] = bad
    with pytest.raises(ValueError, match=rf"weight\[1, 0\] is {bad}"):
        quantize_weight(weight, INT8, axis=0)


def test_a_bias_is_counted_in_units_of_the_accumulator() -> None:
    values, scale = quantize_bias([1.0, -0.5], 0.5, [0.25, 0.125])
    np.testing.assert_array_equal(scale, np.array([0.125, 0.0625], np.float32))
    np.testing.assert_array_equal(values, np.array([8, -8], np.int32))
    assert values.dtype == np.int32


def test_a_bias_that_cannot_be_counted_is_refused() -> None:
    with pytest.raises(ValueError, match=r"bias\[1\] is nan"):
        quantize_bias([0.0, np.nan], 1.0, 1.0)
    with pytest.raises(ValueError, match="no normal float32"):
        quantize_bias([0.0], 1e-30, 1e-30)


def test_a_bias_past_int32_saturates() -> None:
    assert quantize_bias([1e20, -1e20], 1.0, 1.0)[0].tolist() == [2**31 - 1, -(2**31)]


@given(
    bias=arrays(np.float32, 4, elements=st.floats(-1e9, 1e9, width=32)),
    weight_scale=arrays(np.float32, 4, elements=st.floats(float(TINY), 1e3, width=32)),
    input_scale=st.floats(2.0**-100, 1e3, width=32),
    depth=st.integers(1, 33000),
)
def test_a_safe_scale_leaves_room_for_the_products(
    bias: Array, weight_scale: Array, input_scale: float, depth: int
) -> None:
    safe = safe_weight_scale(bias, input_scale, weight_scale, depth)
    values, _ = quantize_bias(bias, input_scale, safe)
    assert np.all(np.abs(values.astype(np.int64)) + depth * 255 * 127 <= 2**31 - 1)
    assert np.all(safe >= weight_scale)


def test_only_the_channel_that_overflows_is_raised() -> None:
    weight_scale = np.array([1e-3, 1e-9, 1e-3], np.float32)
    safe = safe_weight_scale([5.0, 5.0, 0.0], 1e-3, weight_scale, depth=64)
    np.testing.assert_array_equal(safe[[0, 2]], weight_scale[[0, 2]])
    values, _ = quantize_bias([5.0, 5.0, 0.0], 1e-3, safe)
    assert 0.999 * (2**31 - 1 - 64 * 255 * 127) < values[1] <= 2**31 - 1 - 64 * 255 * 127


def test_a_scale_per_tensor_is_safe_for_the_largest_bias() -> None:
    safe = safe_weight_scale([1.0, -50.0], 1e-3, 1e-9, depth=64)
    assert safe.shape == ()
    assert np.abs(quantize_bias([1.0, -50.0], 1e-3, safe)[0]).max() <= 2**31 - 1 - 64 * 255 * 127


def test_past_the_largest_depth_half_of_the_accumulator_is_left_for_the_bias() -> None:
    safe = safe_weight_scale([1.0], 1.0, [1e-12], depth=10**6)
    assert 0.999 * 2**30 < quantize_bias([1.0], 1.0, safe)[0][0] < 2**30


def test_formats_are_complete() -> None:
    assert set(FORMATS.values()) == {*GRIDS, INT32, *NARROWER}
