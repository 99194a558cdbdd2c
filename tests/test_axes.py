"""Sizes combine as ONNX stretches, divides and declares them."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.axes import Shape, Size, Sizes, declared_sizes, own, quotient, stretch
from onnxq.graph import Constant, Variable


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([["n", 3], ["n", 3]], ["n", 3]),
        ([["n", 1], [3]], ["n", 3]),
        ([["n", "s", 4], ["s", 1]], ["n", "s", 4]),
        ([["n"], ["m"]], ["t:0"]),
        ([["n"], [1]], ["n"]),
        ([["n"], [5]], [5]),
        ([["n"], ["~cut:0"]], ["n"]),
        ([["~one:0"], ["~two:0"]], ["t:0"]),
        ([["~one:0"], [1]], ["~one:0"]),
        ([["n", "m"], ["~cut:0"], ["n", 1]], ["n", "m"]),
        ([[1], [1, 1]], [1, 1]),
    ],
)
def test_stretch(shapes: list[Shape], expected: Shape) -> None:
    assert stretch(shapes, "t") == expected
    assert stretch(shapes[::-1], "t") == expected


@pytest.mark.parametrize(
    ("whole", "part", "expected"),
    [
        (["n", 12, 4], ["n", 6], 8),
        (["n", "s", 12], ["n", 12], "s"),
        (["n", "s", 12], ["s", "n"], 12),
        (["n", "s"], ["n", "t"], None),
        (["n", "s"], [2], None),
        (["n", "n"], ["n"], "n"),
        (["n", "n"], [1], None),
        (["n", "s", 12], ["n", 4], None),
        ([12], [5], None),
        ([12], [0], None),
        ([], [], 1),
    ],
)
def test_quotient(whole: list[Size], part: list[Size], expected: Size | None) -> None:
    assert quotient(whole, part) == expected


def test_only_telling_names_are_believed() -> None:
    shape = ("batch", "None", "unk__3", "?", "side", "side", 4, None)
    assert declared_sizes(Variable("x", None, shape)) == ["batch", None, None, None, None, None, 4, None]
    assert declared_sizes(Variable("x")) is None


def test_numbers_win_over_names_and_names_over_nothing() -> None:
    sizes, tensor = Sizes(), Variable("x", None, ("batch", 7, None, "last"))
    sizes.settle(tensor, ["found", "seven", "other", 5])
    assert sizes.of(tensor) == ["found", 7, "other", 5]
    sizes.settle(tensor, None)
    assert sizes.of(tensor) == ["batch", 7, "x:2", "last"]
    sizes.settle(tensor, ["found"])
    assert sizes.of(tensor) == ["found"], "a rule knows the number of axes better than a stale declaration"
    unknown = Variable("y")
    sizes.settle(unknown, None)
    assert sizes.of(unknown) is None


def test_small_integers_may_be_sizes() -> None:
    sizes = Sizes()
    for name, values in {"a": [2, -1], "b": 7, "c": [0.5], "d": [[1, 2]], "e": list(range(17))}.items():
        sizes.settle_constant(Constant(name, np.asarray(values)))
    assert sizes.values == {"a": [2, -1], "b": [7]}
    assert sizes.shapes == {"a": [2], "b": [], "c": [1], "d": [1, 2], "e": [17]}


def test_names_of_cut_axes_are_told_apart() -> None:
    assert (own("x", 1), own("x", 1, cut=True)) == ("x:1", "~x:1")
