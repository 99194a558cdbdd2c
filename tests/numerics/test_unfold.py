"""Unfolded inputs times an unfolded weight, against ONNX Runtime's Conv."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxq.numerics.unfold import unfold

Array = NDArray[Any]


def convolution(x: Array, weight: Array, **options: Any) -> Array:
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], **options)],
        "convolution",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in (("x", x), ("w", weight))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x, "w": weight})[0])


@st.composite
def options(draw: st.DrawFn) -> dict[str, list[int]]:
    axes = draw(st.integers(1, 3))

    def numbers(low: int, high: int, count: int = axes) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    return {
        "kernel": numbers(1, 3),
        "strides": numbers(1, 3),
        "pads": numbers(0, 2, 2 * axes),
        "dilations": numbers(1, 2),
    }


@settings(deadline=None, max_examples=50)
@given(options=options(), seed=st.integers(0, 99))
def test_a_convolution_is_a_product_of_its_rows(options: dict[str, list[int]], seed: int) -> None:
    random = np.random.default_rng(seed)
    kernel = options["kernel"]
    # whole numbers: both sides are exact
    x = random.integers(-9, 9, (2, 3, *random.integers(5, 8, len(kernel)))).astype(np.float32)
    weight = random.integers(-9, 9, (4, 3, *kernel)).astype(np.float32)
    rows = unfold(x, **options)
    rest = {name: value for name, value in options.items() if name != "kernel"}
    expected = convolution(x, weight, **rest)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows @ weight.reshape(4, -1).T, np.moveaxis(expected, 1, -1).reshape(-1, 4))


def test_without_options_every_place_counts() -> None:
    x = np.arange(12, dtype=np.uint8).reshape(1, 1, 3, 4)
    rows = unfold(x, (2, 2))
    assert rows.dtype == np.uint8
    assert rows.shape == (6, 4)
    np.testing.assert_array_equal(rows[0], [0, 1, 4, 5])
    np.testing.assert_array_equal(rows[-1], [6, 7, 10, 11])


def test_a_group_has_its_own_channels() -> None:
    random = np.random.default_rng(0)
    x, weight = random.integers(-9, 9, (2, 4, 5)).astype(np.float32), random.integers(-9, 9, (6, 2, 3))
    weight = weight.astype(np.float32)
    groups = [unfold(x[:, 2 * g : 2 * g + 2], [3]) @ weight[3 * g : 3 * g + 3].reshape(3, -1).T for g in range(2)]
    expected = convolution(x, weight, group=2)
    np.testing.assert_array_equal(np.concatenate(groups, axis=1), np.moveaxis(expected, 1, -1).reshape(-1, 6))


@pytest.mark.parametrize(
    "wrong",
    [{"kernel": [3]}, {"strides": [1]}, {"pads": [1, 1]}, {"dilations": [1, 1, 1]}],
    ids=lambda w: next(iter(w)),
)
def test_refuses_options_of_other_axes(wrong: dict[str, list[int]]) -> None:
    with pytest.raises(ValueError, match="Give one number for each spatial axis"):
        unfold(np.zeros((1, 1, 4, 4)), **{"kernel": [2, 2], **wrong})


def test_refuses_a_window_larger_than_the_input() -> None:
    with pytest.raises(ValueError, match=r"a window of \[5, 3\] does not fit into \[4, 4\]"):
        unfold(np.zeros((1, 1, 4, 4)), [3, 3], dilations=[2, 1])
