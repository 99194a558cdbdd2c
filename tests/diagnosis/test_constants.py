"""What integers stand for, in every form in which they are stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.diagnosis.constants import Constants, dequantized, unpack_blocks
from onnxq.numerics.formats import INT8, pack_4bit
from tests.onnx_text import Array, execute, floats, read


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_scale_for_each_channel(axis: int) -> None:
    values = np.arange(-3, 3, dtype=np.int8).reshape(2, 3)
    scale = np.array([0.5, 2.0, 4.0][: values.shape[axis]], np.float32)
    zero = np.array([1, 0, -1][: values.shape[axis]], np.int8)
    found = dequantized(values, scale, zero, axis)
    shape = (-1, 1) if axis == 0 else (1, -1)
    np.testing.assert_array_equal(found.values, (values - zero.reshape(shape)) * scale.reshape(shape))
    assert found.values.dtype == np.float32
    assert (found.scales, found.axis, found.format) == (scale.size, axis % 2, INT8)
    np.testing.assert_array_equal(found.turned().values, found.values.T)
    assert found.turned().axis == 1 - axis % 2


def test_one_scale_and_one_for_each_block() -> None:
    values = np.arange(12, dtype=np.uint8).reshape(2, 6)
    one = dequantized(values, np.array([0.5], np.float32), None, 1)
    np.testing.assert_array_equal(one.values, values * 0.5)
    assert (one.scales, one.axis) == (1, None)
    blocks = dequantized(values, np.array([[1, 2], [3, 4]], np.float32), np.full((2, 2), 1, np.uint8), 1, 4)
    np.testing.assert_array_equal(blocks.values[0], [-1, 0, 1, 2, 6, 8])
    np.testing.assert_array_equal(blocks.values[1], [15, 18, 21, 24, 36, 40])
    assert (blocks.scales, blocks.axis) == (4, None)
    assert dequantized(values.astype(np.int32), np.ones(1), None, 0).format is None


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zero_points", [False, True])
def test_blocks_as_the_runtime_reads_them(bits: int, zero_points: bool) -> None:
    random = np.random.default_rng(bits)
    outputs, inputs, block = 3, 40, 16
    stored = random.integers(0, 1 << bits, (outputs, 3 * block)).astype(np.uint8)
    packed = stored.reshape(outputs, 3, block) if bits == 8 else pack_4bit(stored).reshape(outputs, 3, block // 2)
    scales = random.uniform(0.1, 1.0, outputs * 3).astype(np.float32)
    zero = random.integers(0, 1 << bits, (outputs, 4 if bits == 4 else 3)).astype(np.uint8) if zero_points else None
    if zero is not None and bits == 4:
        zero = pack_4bit(zero).reshape(outputs, 2)
    weights: dict[str, Any] = {"w": packed, "s": scales} | ({} if zero is None else {"z": zero.reshape(-1)})
    node = (
        f"com.microsoft.MatMulNBits<K={inputs}, N={outputs}, bits={bits}, block_size={block}>(x, {', '.join(weights)})"
    )
    graph = read(f"(float[n,{inputs}] x) => (float[n,{outputs}] y) {{ y = {node} }}", weights)
    (expected,) = execute(graph, {"x": np.eye(inputs, dtype=np.float32)})
    found = unpack_blocks(packed, scales, None if zero is None else zero, outputs, inputs, bits, block)
    assert found.shape == (outputs, inputs)
    np.testing.assert_allclose(found.T, expected, rtol=1e-5, atol=1e-5)


def value(text: str, weights: dict[str, Array], name: str) -> Array | None:
    graph = read(text, weights)
    return Constants(graph).value(graph.tensors()[name])


def test_through_nodes_that_read_only_constants() -> None:
    text = """(float[n,3] x) => (float[n,2] y, float[n,3] z) {
        d = DequantizeLinear(w, s) t = Transpose(d) two = Constant<value_float=2.0>() v = Mul(t, two)
        y = MatMul(x, v) z = Mul(x, two)
    }"""
    weights: dict[str, Array] = {"w": np.arange(6, dtype=np.int8).reshape(2, 3), "s": np.asarray(0.5, np.float32)}
    np.testing.assert_array_equal(value(text, weights, "v"), weights["w"].T)
    np.testing.assert_array_equal(value(text, weights, "t"), weights["w"].T / 2)
    assert value(text, weights, "y") is None
    assert value(text, weights, "x") is None


def test_numbers_keep_their_integers() -> None:
    text = "(float[n,3] x) => (float[n,2] y) { d = DequantizeLinear<axis=0>(w, s) t = Transpose(d) y = MatMul(x, t) }"
    weights: dict[str, Array] = {"w": np.arange(6, dtype=np.int8).reshape(2, 3), "s": np.array([1, 2], np.float32)}
    graph = read(text, weights)
    found = Constants(graph).numbers(graph.tensors()["t"])
    assert found is not None
    np.testing.assert_array_equal(found.integers, weights["w"].T)
    assert (found.axis, found.scales) == (1, 2)
    plain = read("(float[n,3] x) => (float[n,2] y) { y = MatMul(x, w) }", {"w": floats(3, 2)})
    assert Constants(plain).numbers(plain.tensors()["w"]).scales == 0  # type: ignore[union-attr]
    assert Constants(plain).numbers(plain.tensors()["x"]) is None
