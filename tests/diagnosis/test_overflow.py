"""Pairs along the axis that the runtime reduces: channels of one place of a convolution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.diagnosis.constants import dequantized
from onnxq.diagnosis.matching import Pair, float_layers
from onnxq.diagnosis.overflow import can_overflow, overflow_share
from onnxq.diagnosis.stored import StoredLayer
from onnxq.numerics.formats import INT8, UINT8
from onnxq.search.switches import Grid
from tests.onnx_text import Array, read

UNIT = Grid(np.asarray(1, np.float32), np.asarray(0, np.uint8), UINT8)


def convolution(weight: Array, attributes: str = "", data: Any = UNIT) -> Pair:
    channels = weight.shape[1] * (2 if "group=2" in attributes else 1)
    kernel = ",".join(map(str, weight.shape[2:]))
    node = f"Conv<kernel_shape=[{kernel}] {attributes}>(x, w)"
    graph = read(f"(float[n,{channels},4,4] x) => (y) {{ y = {node} }}", {"w": weight.astype(np.float32)})
    (layer,) = float_layers(graph)
    numbers = dequantized(weight.astype(np.int8), np.ones(1, np.float32), None, 0)
    return Pair(layer, StoredLayer(layer.node, (), numbers, None, data))


def test_neighbours_are_channels_and_not_places() -> None:
    x = np.full((1, 2, 4, 4), 255, np.float32)
    across = np.zeros((1, 2, 2, 2))
    across[0, :, 0, 0] = 100  # both channels of one place
    assert overflow_share(convolution(across), x) == 1.0
    along = np.zeros((1, 2, 2, 2))
    along[0, 0, 0, :] = 100  # one channel of two places
    assert overflow_share(convolution(along), x) == 0.0


def test_padding_dilation_strides_and_groups() -> None:
    x = np.zeros((1, 4, 4, 4), np.float32)
    x[0, 2:, 1, 1] = 255
    weight = np.full((2, 2, 1, 1), 100)
    assert overflow_share(convolution(weight, ", group=2"), x) == pytest.approx(1 / 32)
    assert overflow_share(convolution(weight, ", group=2, strides=[2,2]"), x) == 0.0
    assert overflow_share(convolution(weight, ", group=2, pads=[1,1,0,0], strides=[2,2]"), x) == pytest.approx(1 / 18)
    assert overflow_share(convolution(weight, ', group=2, auto_pad="SAME_UPPER"'), x) is None


def test_each_group_reads_its_own_channels() -> None:
    x = np.zeros((1, 4, 4, 4), np.float32)
    x[:, :2] = 255
    weight = np.zeros((2, 2, 1, 1))
    weight[0] = 100
    assert overflow_share(convolution(weight, ", group=2"), x) == 0.5
    assert overflow_share(convolution(weight[::-1], ", group=2"), x) == 0.0


def test_channels_of_one_place_and_then_of_the_next() -> None:
    x = np.zeros((1, 2, 4, 4), np.float32)
    x[0, 0], x[0, 1] = 255, 0
    weight = np.zeros((1, 2, 1, 2))
    weight[0, 0] = 100  # the loud channel alone, at two places: neighbours if places came first
    assert overflow_share(convolution(weight), x) == 0.0
    weight[0, :, 0] = [[100, 0], [100, 0]]  # both channels at one place, of which one is silent
    assert overflow_share(convolution(weight), x) == 0.0
    x[0, 1] = 255
    assert overflow_share(convolution(weight), x) == 1.0


def test_products_and_grids() -> None:
    weight = np.array([[100, 1], [100, 1], [0, 1]])
    graph = read("(float[n,3] x) => (float[n,2] y) { y = MatMul(x, w) }", {"w": weight.astype(np.float32)})
    (layer,) = float_layers(graph)
    numbers = dequantized(weight.astype(np.int8), np.ones(1, np.float32), None, 0)
    x = np.array([[255, 255, 0], [0, 0, 255]], np.float32)
    assert overflow_share(Pair(layer, StoredLayer(layer.node, (), numbers, None, UNIT)), x) == 0.25
    assert overflow_share(Pair(layer, StoredLayer(layer.node, (), numbers, None, "dynamic")), x / 3) == 0.25
    coarse = Grid(np.asarray(4, np.float32), np.asarray(0, np.uint8), UINT8)
    assert overflow_share(Pair(layer, StoredLayer(layer.node, (), numbers, None, coarse)), x) == 0.0


def test_what_cannot_overflow() -> None:
    weight = np.ones((2, 2, 1, 1))
    assert can_overflow(convolution(weight))
    assert can_overflow(convolution(weight, data="dynamic"))
    assert not can_overflow(convolution(weight, data=None))
    assert not can_overflow(convolution(weight, data=Grid(UNIT.scale, np.asarray(0, np.int8), INT8)))
    assert not can_overflow(convolution(np.ones((2, 1, 1, 1)), ", group=2")), "depthwise kernels add one by one"
