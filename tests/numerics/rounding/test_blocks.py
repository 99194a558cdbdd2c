"""Blocks of 4-bit and 8-bit integers, against a slow reference, against each other, and against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxq.numerics.rounding import blocks
from onnxq.numerics.rounding.blocks import NORM, Blocked, Method, block_round, pack, with_integers
from tests.onnx_text import execute, floats, read

Array = NDArray[Any]

METHODS: tuple[Method, ...] = ("rtn", "mse", "hqq")
SIZES = [(64, 5, 16), (40, 3, 16), (7, 4, 32), (1, 1, 16), (130, 2, 128)]
"""Inputs, outputs, block: whole blocks, a part of one, one that is larger than the inputs, and a single number."""


def drawn(inputs: int, outputs: int, seed: int = 0) -> Array:
    """A weight whose columns have different means and spreads, so that no grid suits two of them."""
    random = np.random.default_rng(seed)
    means, spreads = random.normal(0, 0.5, outputs), random.uniform(0.1, 2, outputs)
    return (random.standard_t(4, (inputs, outputs)) * spreads + means).astype(np.float32)


def one_by_one(weight: Array, bits: int, block: int, symmetric: bool) -> tuple[list[list[int]], Array, Array]:
    """Integers, scales and zero points, (outputs, ...), by the formulas and by scalars alone."""
    inputs, outputs = weight.shape
    integers: list[list[int]] = [[] for _ in range(outputs)]
    scales, zeros = (np.zeros((outputs, -(-inputs // block))) for _ in range(2))
    for output in range(outputs):
        for place, start in enumerate(range(0, inputs, block)):
            values = [float(value) for value in weight[start : start + block, output]]
            filled = [*values, *[0.0] * (block - len(values))]
            low, high, top = min(0.0, *filled), max(0.0, *filled), 2**bits - 1
            scale, zero = (high - low) / top, 0
            if symmetric:
                zero = 2 ** (bits - 1)
                scale = (high if high > -low else low) / -zero
            scale = np.float32(scale)
            zero = zero if symmetric else round(np.float32(-low) / scale)
            integers[output] += [min(max(round(value / float(scale)) + zero, 0), top) for value in values]
            scales[output, place], zeros[output, place] = scale, zero
    return integers, scales, zeros


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("inputs", "outputs", "block"), SIZES)
def test_nearest_on_the_whole_range(inputs: int, outputs: int, block: int, bits: int, symmetric: bool) -> None:
    weight = drawn(inputs, outputs)
    found = block_round(weight, bits=bits, block=block, symmetric=symmetric, method="rtn")
    integers, scales, zeros = one_by_one(weight, bits, block, symmetric)
    np.testing.assert_allclose(found.scale, scales, rtol=1e-6)
    np.testing.assert_array_equal(found.integers(), integers)
    assert (found.zero_point is None) == symmetric
    if found.zero_point is not None:
        np.testing.assert_array_equal(found.zero_point, zeros)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("inputs", "outputs", "block"), SIZES)
def test_every_integer_is_the_nearest_of_its_grid(
    inputs: int, outputs: int, block: int, bits: int, symmetric: bool, method: Method
) -> None:
    weight = drawn(inputs, outputs)
    found = block_round(weight, bits=bits, block=block, symmetric=symmetric, method=method)
    assert (found.block, found.bits, found.inputs) == (block, bits, inputs)
    assert found.values.shape == (outputs, -(-inputs // block), block * bits // 8)
    assert [str(part.dtype) for part in (found.values, found.scale, found.seen())] == ["uint8", "float32", "float32"]
    zero = np.full(found.scale.shape, found.middle) if found.zero_point is None else found.zero_point
    scale, zero = (np.repeat(part.astype(np.float64), block, axis=1)[:, :inputs] for part in (found.scale, zero))
    grid = (np.arange(2**bits) - zero[..., None]) * scale[..., None]
    least = np.abs(grid - weight.T[..., None]).min(axis=2)
    np.testing.assert_allclose(np.abs(found.seen() - weight.T), least, atol=1e-5 * float(np.abs(weight).max()))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("width", [1, 2, 7, 8])
def test_integers_come_out_as_they_were_packed(width: int, bits: int) -> None:
    values = np.random.default_rng(0).integers(0, 2**bits, (3, 2, width)).astype(np.uint8)
    packed = pack(values, bits)
    if bits == 8:
        np.testing.assert_array_equal(packed, values)
        return
    assert packed.shape == (3, 2, -(-width // 2))
    parts = np.stack([packed & 15, packed >> 4], axis=-1).reshape(3, 2, -1)
    np.testing.assert_array_equal(parts[..., :width], values)
    assert not parts[..., width:].any(), "what fills up the last byte is 0"
    assert pack(np.array([[1, 2, 3]], np.uint8), 4).tolist() == [[0x21, 0x03]]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("inputs", "outputs", "block"), SIZES)
def test_other_integers_on_the_same_grids(inputs: int, outputs: int, block: int, bits: int, symmetric: bool) -> None:
    found = block_round(drawn(inputs, outputs), bits=bits, block=block, symmetric=symmetric)
    chosen = np.random.default_rng(1).integers(0, 2**bits, (outputs, inputs))
    other = with_integers(found, chosen)
    np.testing.assert_array_equal(other.integers(), chosen)
    assert other.values.dtype == np.uint8
    assert other.values.shape == found.values.shape
    np.testing.assert_array_equal(other.scale, found.scale)
    np.testing.assert_array_equal(with_integers(other, found.integers()).seen(), found.seen())


def test_zero_points_of_an_odd_number_of_blocks() -> None:
    found = block_round(drawn(40, 3), bits=4, block=16, symmetric=False)
    packed = found.packed_zero_point()
    assert packed is not None
    assert packed.shape == (3, 2)
    np.testing.assert_array_equal(np.stack([packed & 15, packed >> 4], axis=-1).reshape(3, 4)[:, :3], found.zero_point)
    assert block_round(drawn(40, 3), bits=4, block=16, symmetric=True).packed_zero_point() is None


def error(found: Blocked, weight: Array, power: float, importance: Array | None = None) -> Array:
    """Sum of the errors to a power over each block, (outputs, blocks)."""
    lost = np.abs(found.seen().astype(np.float64) - weight.T) ** power * (1 if importance is None else importance)
    filled = np.pad(lost, ((0, 0), (0, -weight.shape[0] % found.block)))
    return np.asarray(filled.reshape(len(filled), -1, found.block).sum(axis=2))


weights = st.builds(
    lambda inputs, outputs, seed, size, offset: drawn(inputs, outputs, seed) * np.float32(size) + np.float32(offset),
    st.integers(1, 70),
    st.integers(1, 5),
    st.integers(0, 1 << 20),
    st.sampled_from([1e-6, 1.0, 1e6]),
    st.sampled_from([0.0, 0.0, 3.0, -3.0]),
)


@settings(max_examples=60, deadline=None)
@given(weights, st.sampled_from([4, 8]), st.sampled_from([16, 32]), st.booleans())
def test_each_method_is_the_best_by_its_own_measure(weight: Array, bits: int, block: int, symmetric: bool) -> None:
    """In every block: mse has the range of rtn among its choices, and hqq what mse chooses."""
    rtn, mse, hqq = (block_round(weight, bits=bits, block=block, symmetric=symmetric, method=m) for m in METHODS)
    slack = 1e-9 * float(np.abs(weight).max()) ** 2
    assert (error(mse, weight, 2) <= error(rtn, weight, 2) * 1.001 + slack).all()
    slack = 1e-4 * float(np.abs(weight).max()) ** NORM
    assert (error(hqq, weight, NORM) <= error(mse, weight, NORM) * 1.001 + slack).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_fitting_pays(bits: int) -> None:
    """Not in every block, but in all of them together; and hqq differs from mse where the zero point may move."""
    weight = drawn(256, 20)
    rtn, mse, hqq = (block_round(weight, bits=bits, block=32, symmetric=False, method=m) for m in METHODS)
    assert error(mse, weight, 2).sum() < 0.98 * error(rtn, weight, 2).sum()
    assert error(hqq, weight, NORM).sum() < 0.999 * error(mse, weight, NORM).sum()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", [4, 8])
def test_symmetric_grids_keep_all_their_integers(bits: int, method: Method) -> None:
    """The value that is furthest from 0 lies where there is one integer more; scales take the sign for that."""
    weight = drawn(256, 20)
    found = block_round(weight, bits=bits, block=256, symmetric=True, method=method)
    assert found.zero_point is None
    assert (found.scale < 0).any()
    assert (found.scale > 0).any()
    if method == "rtn":
        assert (found.integers().min(axis=1) == 0).all()
        furthest = np.take_along_axis(weight, np.abs(weight).argmax(0)[None], 0)[0]
        np.testing.assert_allclose(np.abs(found.seen()).max(axis=1), np.abs(furthest), rtol=1e-6)
        assert (np.sign(found.scale[:, 0]) == -np.sign(furthest)).all()
    if bits == 4:
        assert len(np.unique(found.integers())) == 16


@pytest.mark.parametrize("symmetric", [False, True])
def test_inputs_that_matter_are_rounded_better(symmetric: bool) -> None:
    weight, importance = drawn(256, 20), np.where(np.arange(256) % 8 == 0, 50.0, 0.1)
    plain, weighed = (
        block_round(weight, bits=4, block=32, symmetric=symmetric, importance=known) for known in (None, importance)
    )
    assert error(weighed, weight, 2, importance).sum() < 0.8 * error(plain, weight, 2, importance).sum()
    assert error(weighed, weight, 2).sum() > error(plain, weight, 2).sum()


@pytest.mark.parametrize("method", ["mse", "hqq"])
def test_only_the_ratios_of_importance_count(method: Method) -> None:
    weight, importance = drawn(70, 4), np.random.default_rng(0).uniform(0.5, 2, 70)
    one, other = (
        block_round(weight, bits=4, block=32, symmetric=False, method=method, importance=known).seen()
        for known in (importance, 1024 * importance)
    )
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_inputs_that_no_sample_brought_are_rounded_like_others(symmetric: bool, method: Method) -> None:
    """A block of them, or all: other data may bring them."""
    weight = drawn(96, 4)
    silent, none = np.where(np.arange(96) // 32 == 1, 0.0, 1.0), np.zeros(96)
    plain, some, nothing = (
        block_round(weight, bits=4, block=32, symmetric=symmetric, method=method, importance=known)
        for known in (None, silent, none)
    )
    for found in (some, nothing):
        np.testing.assert_allclose(found.scale, plain.scale, rtol=1e-5)
        assert (found.integers() != plain.integers()).mean() < 0.01


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_views_and_other_types_are_rounded_like_copies(symmetric: bool, method: Method) -> None:
    plain = drawn(70, 6).astype(np.float16)
    expected = block_round(plain.astype(np.float32), bits=4, block=32, symmetric=symmetric, method=method)
    turned = np.ascontiguousarray(plain.T).T
    frozen = np.frombuffer(plain.tobytes(), np.float16).reshape(plain.shape)
    strided = np.repeat(plain, 2, axis=0)[::2]
    for view in (plain, turned, frozen, strided, plain.astype(np.float64)):
        found = block_round(view, bits=4, block=32, symmetric=symmetric, method=method)
        np.testing.assert_array_equal(found.values, expected.values)
        np.testing.assert_array_equal(found.scale, expected.scale)


@pytest.mark.parametrize("method", METHODS)
def test_tiles_do_not_show(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small they are; importance goes along with its rows."""
    weight, importance = drawn(150, 9), np.random.default_rng(0).uniform(0.5, 2, 150)
    whole = block_round(weight, bits=4, block=16, symmetric=False, method=method, importance=importance)
    monkeypatch.setattr(blocks, "TILE", 64)
    monkeypatch.setattr(blocks, "COLUMNS", 2)
    parts = block_round(weight, bits=4, block=16, symmetric=False, method=method, importance=importance)
    np.testing.assert_allclose(parts.scale, whole.scale, rtol=1e-5)
    assert (parts.integers() != whole.integers()).mean() < 0.01


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (69, 5)])
def test_what_is_not_finite_is_refused(place: tuple[int, int], value: float) -> None:
    weight = drawn(70, 6)
    weight[place] = value
    with pytest.raises(ValueError, match=r"NaN or infinity\. Repair the model"):
        block_round(weight, bits=4, block=32, symmetric=False)


def test_infinities_that_cancel_are_refused() -> None:
    weight = drawn(70, 6)
    weight[0, 0], weight[1, 0] = np.inf, -np.inf
    with pytest.raises(ValueError, match="NaN or infinity"):
        block_round(weight, bits=4, block=32, symmetric=False)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-38, 1e-30, 1e-12, 1e12, 1e30, 1e33])
def test_tiny_and_huge_weights(size: float, symmetric: bool, method: Method) -> None:
    """No warning, finite scales, and errors that are no larger than elsewhere."""
    weight = (np.random.default_rng(0).uniform(-1, 1, (64, 3)) * size).astype(np.float32)
    found = block_round(weight, bits=8, block=32, symmetric=symmetric, method=method)
    assert np.isfinite(found.scale).all()
    assert (np.abs(found.scale) >= np.finfo(np.float32).smallest_normal).all()
    lost = np.abs(found.seen().T.astype(np.float64) - weight).max()
    assert lost < 1.01 / 127 * size if size > 1e-35 else lost <= max(size, np.finfo(np.float32).smallest_normal / 2)


RUNS = [(bits, block, symmetric) for bits in (4, 8) for block in (16, 32, 128) for symmetric in (False, True)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("bits", "block", "symmetric"), RUNS)
def test_the_runtime_sees_the_same_weight(bits: int, block: int, symmetric: bool, method: Method) -> None:
    """72 inputs: blocks of 16 and 32 leave a part of the last one, one of 128 is larger than all of them."""
    inputs, outputs = 72, 9
    found = block_round(drawn(inputs, outputs), bits=bits, block=block, symmetric=symmetric, method=method)
    zeros = found.packed_zero_point()
    parts = {"q": found.values, "s": found.scale} | ({} if zeros is None else {"z": zeros})
    described = f"K={inputs}, N={outputs}, bits={bits}, block_size={block}, accuracy_level=0"
    text = f"y = com.microsoft.MatMulNBits<{described}>(x, {', '.join(parts)})"
    graph = read(f"(float[n,{inputs}] x) => (float[n,{outputs}] y) {{ {text} }}", parts)
    (seen,) = execute(graph, {"x": np.eye(inputs, dtype=np.float32)}, optimize=True)
    np.testing.assert_allclose(seen, found.seen().T, rtol=1e-6, atol=1e-7)
    x = floats(5, inputs)
    (have,) = execute(graph, {"x": x}, optimize=True)
    np.testing.assert_allclose(have, x @ found.seen().T, rtol=0, atol=1e-4)
