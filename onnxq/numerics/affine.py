"""Scale and zero point, and the way from real numbers to integers and back.

    q = saturate(round_half_even(x / scale) + zero_point)        x ~ (q - zero_point) * scale

`quantize` and `dequantize` return exactly what ONNX Runtime's QuantizeLinear and DequantizeLinear return.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxq.numerics.formats import INT32, Format, IntegerArray

FloatArray = NDArray[np.float32]

SMALLEST_SCALE = np.finfo(np.float32).smallest_normal
"""A smaller scale is subnormal: it loses precision, and fast-math kernels flush it to zero."""

SHARES = np.linspace(1, 0.3, 36)
"""Of the range of a weight, those that are tried where there are few steps."""

LARGEST_END = np.finfo(np.float32).max / 2
"""Range ends are cut here, so that every representable value of an asymmetric grid is finite in float32."""


def parameters(
    low: ArrayLike, high: ArrayLike, format: Format, *, symmetric: bool = False
) -> tuple[FloatArray, IntegerArray]:
    """Scale and zero point of the grid that covers [low, high] and 0.

    Affine: scale = (high - low) / (qmax - qmin) and zero_point = round_half_even(qmin - low / scale), computed
    in float64 and the scale rounded once to float32. Rounding the zero point moves the grid by up to half a
    step, so one end may lie up to half a step outside the grid. It then saturates with an error no larger than
    that of any other value, so the scale is not enlarged for it (that would cost every value instead). For
    low >= 0 the zero point is qmin exactly and for high <= 0 qmax exactly, and both ends are on the grid.

    Symmetric: zero_point = `format.middle` and scale = max(-low, high) / (qmax - middle), which is amax / 127
    for both 8-bit formats, and both ends are on the grid.

    Where low = high = 0 the scale is 1, and the zero point that of low >= 0 (affine) or middle (symmetric).

    Args:
        low: smallest value, any shape. Values above 0 count as 0.
        high: largest value, same shape. Values below 0 count as 0.
        format: the integers to use.
        symmetric: put the zero point in the middle.

    Returns:
        scale, a normal float32 above 0, and zero_point, of `format.dtype`; both shaped like `low`.

    Raises:
        ValueError: an end is NaN or infinite, or low > high.
    """
    lows, highs = np.asarray(low, np.float64), np.asarray(high, np.float64)
    bad = ~(np.isfinite(lows) & np.isfinite(highs) & (lows <= highs))
    if bad.any():
        raise ValueError(f"[{lows[bad][0]}, {highs[bad][0]}] is no range: give finite ends with low <= high.")
    lows, highs = np.clip(lows, -LARGEST_END, 0.0), np.clip(highs, 0.0, LARGEST_END)
    if symmetric:
        span, steps = np.maximum(-lows, highs), format.qmax - format.middle
    else:
        span, steps = highs - lows, format.qmax - format.qmin
    scale = np.where(span > 0, np.maximum(span / steps, SMALLEST_SCALE), 1.0).astype(np.float32)
    below = format.middle - format.qmin if symmetric else np.rint(-lows / scale.astype(np.float64))
    zero_point = np.clip(format.qmin + below, format.qmin, format.qmax) + np.zeros(scale.shape)
    return scale, zero_point.astype(format.dtype)


def quantize(
    x: ArrayLike, scale: ArrayLike, zero_point: ArrayLike, format: Format, axis: int | None = None
) -> IntegerArray:
    """The integers nearest to x on the grid, as QuantizeLinear computes them in float32.

    Args:
        x: real numbers, any shape; computed with as float32. Infinities saturate; NaN becomes qmin, as in
            ONNX Runtime on x86.
        scale: a scalar, or one value per index of `axis`.
        zero_point: like `scale`.
        format: at most 16 bits; biases have `quantize_bias`.
        axis: the axis along which scale and zero_point lie; None for one grid per tensor.

    Returns:
        `format.dtype`, shaped like x.

    Raises:
        ValueError: scale does not fit the axis, or the format has more than 16 bits.
    """
    steps = _steps(x, scale, zero_point, format, axis)
    steps += _along(np.asarray(zero_point, np.float32), axis, steps)
    return steps.astype(format.dtype)


def _steps(x: ArrayLike, scale: ArrayLike, zero_point: ArrayLike, format: Format, axis: int | None) -> FloatArray:
    """The integers nearest to x on the grid, less the zero point; computed in place, for x may be large."""
    if format.bits > 16:
        raise ValueError(f"float32 cannot count to {format.qmax}. Use quantize_bias for {format.name}.")
    x = np.asarray(x, np.float32)
    zero = _along(np.asarray(zero_point, np.float32), axis, x)
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.asarray(x / _along(np.asarray(scale, np.float32), axis, x))
    np.rint(steps, out=steps)
    # fmax and fmin, unlike clip, replace NaN; the bounds are integers, so rounding first changes nothing
    np.fmax(steps, format.qmin - zero, out=steps)
    np.fmin(steps, format.qmax - zero, out=steps)
    return steps


def dequantize(q: IntegerArray, scale: ArrayLike, zero_point: ArrayLike, axis: int | None = None) -> FloatArray:
    """(q - zero_point) * scale in float32, as DequantizeLinear computes it. Shapes as for `quantize`."""
    q = np.asarray(q)
    steps = q.astype(np.int32) - _along(np.asarray(zero_point, np.int32), axis, q)
    with np.errstate(over="ignore"):
        return np.asarray(steps.astype(np.float32) * _along(np.asarray(scale, np.float32), axis, q))


def fake_quantize(
    x: ArrayLike, scale: ArrayLike, zero_point: ArrayLike, format: Format, axis: int | None = None
) -> FloatArray:
    """x moved onto the grid: `dequantize(quantize(x))`, without the integers in between."""
    steps = _steps(x, scale, zero_point, format, axis)
    with np.errstate(over="ignore"):
        steps *= _along(np.asarray(scale, np.float32), axis, steps)
    steps += 0.0  # -0.0 -> 0.0, as there is one integer 0
    return steps


def representable(scale: ArrayLike, zero_point: ArrayLike, format: Format) -> tuple[FloatArray, FloatArray]:
    """The smallest and the largest value on the grid, shaped like `scale`."""
    scale, zero = np.asarray(scale, np.float32), np.asarray(zero_point, np.int64)
    return (format.qmin - zero).astype(np.float32) * scale, (format.qmax - zero).astype(np.float32) * scale


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A quantized constant.

    Attributes:
        values: integers, shaped like the weight.
        scale: float32, a scalar or one per channel.
        zero_point: of the type of `values`, shaped like `scale`.
    """

    values: IntegerArray
    scale: FloatArray
    zero_point: IntegerArray


def quantize_weight(
    weight: ArrayLike, format: Format, *, axis: int | None = None, symmetric: bool = True, fit: bool = False
) -> QuantizedWeight:
    """Round a weight to nearest on the grid of its own minimum and maximum.

    Symmetric weights use `format.narrow`, -127..127 in int8.

    Args:
        weight: real numbers, any shape.
        format: the integers to use.
        axis: the channel axis, for one grid per channel; None for one per tensor.
        symmetric: put the zero point in the middle.
        fit: draw both ends in by the same share, for each grid that which leaves the least squared error: few steps
            are better spent on what is common.

    Raises:
        ValueError: the weight has a NaN or an infinity; the message names the first index.
    """
    weight = np.asarray(weight, np.float32)
    _refuse_non_finite(weight, "weight")
    others = None if axis is None else tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    low, high = weight.min(others, initial=0), weight.max(others, initial=0)
    integers = format.narrow if symmetric else format
    if fit:
        share = _best_share(weight, (low, high), integers, axis, symmetric)
        low, high = low * share, high * share
    scale, zero_point = parameters(low, high, format, symmetric=symmetric)
    return QuantizedWeight(quantize(weight, scale, zero_point, integers, axis), scale, zero_point)


def _best_share(
    weight: FloatArray, ends: tuple[ArrayLike, ArrayLike], format: Format, axis: int | None, symmetric: bool
) -> FloatArray:
    """The share of a range that leaves the least squared error, shaped like its ends; of equals the largest."""
    low, high = (np.asarray(end, np.float32) for end in ends)
    others = None if axis is None else tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    best, least = np.ones(low.shape, np.float32), np.full(low.shape, np.inf)
    for share in SHARES:
        scale, zero_point = parameters(low * share, high * share, format, symmetric=symmetric)
        error = np.square(fake_quantize(weight, scale, zero_point, format, axis) - weight).sum(others, np.float64)
        best, least = np.where(error < least, np.float32(share), best), np.minimum(error, least)
    return np.asarray(best, np.float32)


def quantize_bias(
    bias: ArrayLike, input_scale: ArrayLike, weight_scale: ArrayLike
) -> tuple[NDArray[np.int32], FloatArray]:
    """The bias in units of the integer accumulator, input_scale * weight_scale, and those units.

    Values outside int32 saturate: pass weight scales that went through `safe_weight_scale`.

    Args:
        bias: one value per output channel.
        input_scale: scalar.
        weight_scale: a scalar, or one value per output channel.

    Raises:
        ValueError: the bias is not finite, or the product of the scales is not a normal float32.
    """
    bias = np.asarray(bias, np.float64)
    _refuse_non_finite(bias, "bias")
    product = np.asarray(input_scale, np.float64) * np.asarray(weight_scale, np.float64)
    if not np.all((product >= SMALLEST_SCALE) & (product <= np.finfo(np.float32).max)):
        raise ValueError(
            f"a scale of {product.min()} is no normal float32: input scale times weight scale. "
            "Use the weight scale that safe_weight_scale returns."
        )
    scale = np.asarray(product, np.float32)
    values = np.clip(np.rint(bias / scale.astype(np.float64)), INT32.qmin, INT32.qmax)
    return values.astype(np.int32), scale


def safe_weight_scale(bias: ArrayLike, input_scale: ArrayLike, weight_scale: ArrayLike, depth: int) -> FloatArray:
    """The weight scales, raised just where the int32 accumulator could overflow.

    The accumulator holds the bias and `depth` products of a uint8 and an int8 in -127..127, so it needs

        |bias| / (input_scale * weight_scale) <= 2**31 - 1 - depth * 255 * 127

    A channel that breaks this gets the smallest weight scale that does not, with one part in 10000 to spare.
    The products are granted half of the accumulator at most: past depth 33155 their worst case alone nears the
    limit, and no weight scale could help. The product of the two scales is also kept a normal float32.

    Args:
        bias: one value per output channel.
        input_scale: scalar.
        weight_scale: a scalar, or one value per output channel.
        depth: products that are summed into one output value.

    Returns:
        float32, shaped like `weight_scale`; untouched channels keep their bits. Quantize the weight with it.

    Raises:
        ValueError: the bias is not finite.
    """
    bias, weight_scale = np.asarray(bias, np.float64), np.asarray(weight_scale, np.float32)
    _refuse_non_finite(bias, "bias")
    limit = INT32.qmax - min(depth * 255 * 127, 2**30)
    largest = np.abs(bias) if weight_scale.ndim else np.abs(bias).max(initial=0)
    needed = np.maximum(largest / limit, float(SMALLEST_SCALE)) * 1.0001 / np.asarray(input_scale, np.float64)
    return np.asarray(np.maximum(weight_scale, needed.astype(np.float32)))


def _along(parameter: NDArray[Any], axis: int | None, values: NDArray[Any]) -> NDArray[Any]:
    """The parameter, shaped to broadcast along `axis` of `values`."""
    if axis is None:
        if parameter.size != 1:
            raise ValueError(f"one grid per tensor needs one scale, not {parameter.size}. Give the axis.")
        return parameter.reshape(())
    if parameter.shape != (values.shape[axis],):
        raise ValueError(f"scale of shape {parameter.shape} does not fit axis {axis} of shape {values.shape}.")
    shape = [1] * values.ndim
    shape[axis] = -1
    return parameter.reshape(shape)


def _refuse_non_finite(values: NDArray[Any], name: str) -> None:
    if np.isfinite(values).all():
        return
    index = tuple(int(i) for i in np.unravel_index(int(np.isfinite(values).argmin()), values.shape))
    raise ValueError(f"{name}{list(index)} is {values[index]}. Repair the model: only finite values quantize.")
