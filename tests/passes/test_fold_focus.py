"""A picture that is taken apart before a convolution is read with strides instead."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.graph import Graph
from onnxq.passes.fold_focus import FoldFocus, spread_kernel
from tests.onnx_text import apply, assert_same, changes, floats, listing, normal, ops, read, refusal

W = {"w": floats(5, 12, 3, 3), "w1": floats(5, 12, 1, 1), "b": floats(5), "pairs": floats(4, 6, 3, 3)}
INDICES = {
    "begin": np.array([0]),
    "second": np.array([1]),
    "both": np.array([0, 1]),
    "end": np.array([2**63 - 1]),
    "ends": np.array([2**31 - 1, 2**63 - 1]),
    "short": np.array([6]),
    "rows": np.array([2]),
    "columns": np.array([3]),
    "axes": np.array([2, 3]),
    "two": np.array([2]),
    "twos": np.array([2, 2]),
    "three": np.array([3]),
}
CONV = "Conv<pads=[1,1,1,1]>(f, w, b)"


def corner(place: tuple[str, str], name: str, *, end: str = "end", step: str = "two") -> str:
    row, column = place
    return f"{name}0 = Slice(x, {row}, {end}, rows, {step}) {name} = Slice({name}0, {column}, end, columns, two) "


CORNERS = [(row, column) for row in ("begin", "second") for column in ("begin", "second")]
YOLOX = [CORNERS[i] for i in (0, 2, 1, 3)]


def model(conv: str = CONV, order: list[tuple[str, str]] = YOLOX, parts: str = "", outputs: str = "") -> Graph:
    cut = parts or "".join(corner(place, f"p{i}") for i, place in enumerate(order))
    body = f"{cut} [apart] f = Concat<axis=1>(p0, p1, p2, p3) [conv] y = {conv}"
    text = f"(float[n,3,8,10] x) => (float[n,a,b,c] y{outputs}) {{ {body} }}"
    return read(text, W | INDICES)


@pytest.mark.parametrize("order", [YOLOX, CORNERS], ids=["columns last", "rows last"])
@pytest.mark.parametrize("conv", [CONV, "Conv<pads=[0,1,2,0]>(f, w)", "Conv(f, w1)", 'Conv<auto_pad="VALID">(f, w)'])
def test_folds_slices(order: list[tuple[str, str]], conv: str) -> None:
    before = model(conv, order)
    after = apply(FoldFocus(), before)
    assert ops(after.graph) == ["Conv"]
    assert after.graph.nodes[0].attrs["strides"] == [2, 2]
    assert [(c.node, c.op, c.done) for c in changes(after)] == [("apart", "Concat", "Conv")]
    assert_same(before, after.graph, rtol=1e-6)


def test_folds_slices_of_two_axes_at_once() -> None:
    starts = {f"start{i}": np.array([row, column]) for i, (row, column) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1)))}
    cut = "".join(f"p{i} = Slice(x, start{i}, ends, axes, twos) " for i in range(4))
    body = f"{cut} f = Concat<axis=1>(p0, p1, p2, p3) y = {CONV}"
    before = read(f"(float[n,3,8,10] x) => (float[n,a,b,c] y) {{ {body} }}", W | INDICES | starts)
    after = apply(FoldFocus(), before)
    assert ops(after.graph) == ["Conv"]
    assert_same(before, after.graph, rtol=1e-6)


def test_rows_that_are_cut_before_stay_cut() -> None:
    parts = "".join(corner(place, f"p{i}") for i, place in enumerate(YOLOX)).replace("(x,", "(half,")
    before = model(parts=f"half = Slice(x, second, end, rows, two) {parts}")
    after = apply(FoldFocus(), before)
    assert ops(after.graph) == ["Slice", "Conv"]
    assert_same(before, after.graph, rtol=1e-6)


@pytest.mark.parametrize("size", [2, 3])
def test_folds_space_to_depth(size: int) -> None:
    weights = {"w": floats(5, 2 * size * size, 3, 3), "b": floats(5)}
    body = f"[apart] f = SpaceToDepth<blocksize={size}>(x) y = {CONV}"
    before = read(f"(float[n,2,12,18] x) => (float[n,a,b,c] y) {{ {body} }}", weights)
    after = apply(FoldFocus(), before)
    assert listing(after.graph).startswith("y = Conv<")
    assert after.graph.nodes[0].attrs["strides"] == [size, size]
    assert_same(before, after.graph, rtol=1e-6)


def test_each_weight_meets_its_pixel() -> None:
    kernel = np.arange(4.0).reshape(1, 4, 1, 1)
    np.testing.assert_array_equal(spread_kernel(kernel, [(0, 0), (1, 0), (0, 1), (1, 1)]), [[[[0, 2], [1, 3]]]])


REFUSED: dict[str, str] = {
    "strides": "Conv<strides=[2,2]>(f, w)",
    "dilations": "Conv<dilations=[2,1]>(f, w)",
    "groups": "Conv<group=2>(f, pairs)",
    "a padding rule": 'Conv<auto_pad="SAME_LOWER">(f, w)',
}


@pytest.mark.parametrize("conv", REFUSED.values(), ids=REFUSED)
def test_leaves_other_convolutions_alone(conv: str) -> None:
    before = model(conv)
    after = apply(FoldFocus(), before)
    assert refusal(after, "apart") == "'conv' has strides, dilations, groups or a padding rule of its own."
    assert listing(after.graph) == listing(before)


def test_leaves_parts_alone_that_others_read() -> None:
    after = apply(FoldFocus(), model(outputs=", float[n,d,e,g] f"))
    assert refusal(after, "apart") == "Its output is read elsewhere too."


def test_leaves_a_kernel_alone_that_is_fed() -> None:
    cut = "".join(corner(place, f"p{i}") for i, place in enumerate(YOLOX))
    body = f"{cut} [apart] f = Concat<axis=1>(p0, p1, p2, p3) [conv] y = Conv(f, v)"
    before = read(f"(float[n,3,8,10] x, float[5,12,3,3] v) => (float[n,a,b,c] y) {{ {body} }}", INDICES)
    assert refusal(apply(FoldFocus(), before), "apart") == "The weight of 'conv' is no constant of four axes."


NOTHING: dict[str, str] = {
    "a corner twice": "".join(corner(("begin", "begin"), f"p{i}") for i in range(4)),
    "other steps": "".join(corner(place, f"p{i}", step="three") for i, place in enumerate(YOLOX)),
    "cropped": "".join(corner(place, f"p{i}", end="short") for i, place in enumerate(YOLOX)),
    "whole rows": "".join(f"p{i} = Slice(x, {row}, end, columns, two) " for i, (row, _) in enumerate(YOLOX)),
}


@pytest.mark.parametrize("parts", NOTHING.values(), ids=NOTHING)
def test_leaves_other_parts_alone(parts: str) -> None:
    before = model("Conv(f, w)", parts=parts)
    after = apply(FoldFocus(), before)
    assert (listing(after.graph), changes(after)) == (listing(before), [])


def test_leaves_parts_of_two_pictures_alone() -> None:
    cut = "".join(corner(place, f"p{i}") for i, place in enumerate(YOLOX)).replace("p3 = Slice(p30", "p3 = Slice(z0")
    body = f"z0 = Slice(z, second, end, rows, two) {cut} f = Concat<axis=1>(p0, p1, p2, p3) y = {CONV}"
    before = read(f"(float[n,3,8,10] x, float[n,3,8,10] z) => (float[n,a,b,c] y) {{ {body} }}", W | INDICES)
    after = apply(FoldFocus(), before)
    assert changes(after) == []
    assert_same(before, after.graph, normal(before))
