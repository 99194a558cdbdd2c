"""Pairs of products that do not fit into 16 bits, by hand and against a plain loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxq.numerics.saturation import saturated, saturated_share


@pytest.mark.parametrize(
    ("x", "weight", "overflows"),
    [
        ([255, 255], [64, 64], False),  # 32640
        ([255, 255], [64, 65], True),  # 32895
        ([255, 255], [127, 1], False),  # 32640
        ([255, 128], [127, 3], True),  # 32769
        ([255, 127], [127, 3], False),  # 32766
        ([255, 255], [-128, -1], True),  # -32895
        ([255, 255], [-127, -1], False),  # -32640
        ([255, 128], [-128, -1], False),  # -32768 still fits
        ([255, 129], [-128, -1], True),  # -32769
        ([255, 255], [127, -127], False),  # 0
        ([0, 255, 255, 0], [127, 127, 127, 127], False),  # 0 and 1 are a pair, 2 and 3 are; 1 and 2 are not
        ([0, 0, 255, 255], [127, 127, 127, 127], True),
        ([0, 0, 255], [127, 127, 127], False),  # the last of three has no neighbour
        ([200, 200], [100, 100], True),  # 40000
        ([100, 100], [127, 127], False),  # 25400
    ],
)
def test_by_hand(x: list[int], weight: list[int], overflows: bool) -> None:
    found = saturated(np.array([x], np.uint8), np.array(weight, np.int8)[:, None])
    assert found.tolist() == [[overflows]]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 7), st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_as_a_loop_counts(rows: int, depth: int, outputs: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    x = random.integers(0, 256, (rows, depth), np.uint8)
    weight = random.integers(-128, 128, (depth, outputs)).astype(np.int8)
    assert saturated(x, weight).tolist() == [[slow(row, column) for column in weight.T] for row in x]


def slow(x: NDArray[Any], weight: NDArray[Any]) -> bool:
    products = [int(a) * int(w) for a, w in zip(x, weight, strict=True)] + [0]
    sums = [products[place] + products[place + 1] for place in range(0, len(products) - 1, 2)]
    return any(not -32768 <= total <= 32767 for total in sums)


def test_seven_bits_never_overflow() -> None:
    x = np.full((3, 8), 255, np.uint8)
    assert saturated_share(x, np.full((8, 2), 64, np.int8)) == 0.0
    assert saturated_share(x, np.full((8, 2), -64, np.int8)) == 0.0


def test_the_share_counts_outputs() -> None:
    x = np.array([[255, 255], [1, 1]], np.uint8)
    assert saturated_share(x, np.array([[127, 1], [127, 1]], np.int8)) == 0.25
    assert saturated_share(x[:0], np.ones((2, 1), np.int8)) == 0.0


def test_depths_must_fit() -> None:
    with pytest.raises(ValueError, match="rows of 2 numbers do not fit a weight of depth 3"):
        saturated(np.zeros((1, 2), np.uint8), np.zeros((3, 1), np.int8))
