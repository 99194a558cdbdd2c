"""Rounding that is trained through: the values of ONNX Runtime, the gradients of LSQ+, and grids that stay sane."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxq.numerics import affine
from onnxq.numerics.affine import SMALLEST_SCALE, fake_quantize, parameters
from onnxq.numerics.formats import FORMATS, Format

torch = pytest.importorskip("torch", reason="training needs PyTorch")

from onnxq.training.fake_quant import FakeQuantize, Grid, Quantizer  # noqa: E402

Array = NDArray[Any]
rounded: Any = FakeQuantize.apply
NARROW = [form for form in FORMATS.values() if form.bits <= 8]
RANDOM = np.random.default_rng(11)
X = np.concatenate([RANDOM.normal(0, 3, 400), [0, -0.0, 0.5, 1.5, 2.5, 1e30, -1e30]]).astype(np.float32)


def quantizer(form: Format, scale: Any, zero: Any, axis: int | None = None, block: int = 0) -> Any:
    return Quantizer(Grid(form, np.asarray(scale, np.float32), np.asarray(zero, form.dtype), axis, block))


def on(module: Any, x: Array) -> Array:
    found: Array = module(torch.from_numpy(x)).detach().numpy()
    return found


def middle_of(form: Format) -> int:
    """A zero point that is neither an end nor the middle."""
    return form.qmin + max(1, form.levels // 3)


# values


@pytest.mark.parametrize("form", NARROW, ids=lambda form: form.name)
def test_the_values_of_quantize_and_dequantize(form: Format) -> None:
    for zero in (form.qmin, middle_of(form), form.middle, form.qmax):
        expected = fake_quantize(X, np.float32(0.37), np.array(zero, form.dtype), form)
        found = rounded(torch.from_numpy(X), torch.tensor(0.37), torch.tensor(float(zero)), *ends(form))
        np.testing.assert_array_equal(found.numpy(), expected)


def ends(form: Format) -> tuple[int, int]:
    return form.qmin, form.qmax


@given(
    seed=st.integers(0, 2**32 - 1),
    low=st.floats(-100, 0, width=32),
    high=st.floats(0, 100, width=32),
    name=st.sampled_from([form.name for form in NARROW]),
)
@settings(max_examples=80, deadline=None)
def test_an_untrained_grid_is_that_of_the_graph_to_the_bit(seed: int, low: float, high: float, name: str) -> None:
    form = FORMATS[name]
    scale, zero = parameters(low, high, form)
    x = np.random.default_rng(seed).uniform(2 * low - 1, 2 * high + 1, 64).astype(np.float32)
    module = quantizer(form, scale, zero)
    learned = module.learned()
    np.testing.assert_array_equal(learned.scale, scale)
    np.testing.assert_array_equal(learned.zero_point, zero)
    np.testing.assert_array_equal(on(module, x), fake_quantize(x, scale, zero, form))
    np.testing.assert_array_equal(module.integers(torch.from_numpy(x)), affine.quantize(x, scale, zero, form))


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("form", NARROW, ids=lambda form: form.name)
def test_a_grid_for_each_channel(form: Format, axis: int) -> None:
    x = RANDOM.normal(0, 2, (4, 3, 5)).astype(np.float32)
    count = x.shape[axis]
    scale = np.geomspace(0.01, 1, count).astype(np.float32)
    zero = np.linspace(form.qmin, form.qmax, count).astype(form.dtype)
    module = quantizer(form, scale, zero, axis)
    np.testing.assert_array_equal(on(module, x), fake_quantize(x, scale, zero, form, axis))
    np.testing.assert_array_equal(module.integers(torch.from_numpy(x)), affine.quantize(x, scale, zero, form, axis))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", ["uint4", "uint8", "int3"])
def test_a_grid_for_each_block_with_scales_of_either_sign(name: str, axis: int) -> None:
    """The last block is shorter than the others."""
    form, block = FORMATS[name], 4
    x = RANDOM.normal(0, 1, (10, 6) if axis == 0 else (6, 10)).astype(np.float32)
    shape = (3, 6) if axis == 0 else (6, 3)
    scale = (RANDOM.uniform(0.05, 0.4, shape) * RANDOM.choice([-1, 1], shape)).astype(np.float32)
    zero = RANDOM.integers(form.qmin, form.qmax + 1, shape).astype(form.dtype)
    module = quantizer(form, scale, zero, axis, block)
    for part in range(3):
        place = (slice(part * block, (part + 1) * block), slice(None))[:: 1 if axis == 0 else -1]
        for other in range(6):
            line = (slice(None), other) if axis == 0 else (other, slice(None))
            one = (part, other) if axis == 0 else (other, part)
            expected = fake_quantize(x[place][line], scale[one], zero[one], form)
            np.testing.assert_array_equal(on(module, x)[place][line], expected)
            whole = module.integers(torch.from_numpy(x))[place][line]
            np.testing.assert_array_equal(whole, affine.quantize(x[place][line], scale[one], zero[one], form))


def test_halves_are_rounded_before_the_zero_point_is_added() -> None:
    """To even numbers of steps, whether the zero point is even or odd."""
    form, x = FORMATS["uint8"], np.array([-1.5, -0.5, 0.5, 1.5, 2.5], np.float32)
    for zero in (100, 101):
        expected = np.array([-2, 0, 0, 2, 2]) + zero
        np.testing.assert_array_equal(quantizer(form, 1, zero).integers(torch.from_numpy(x)), expected)
        np.testing.assert_array_equal(on(quantizer(form, 1, zero), x), expected - zero)


def test_integers_on_other_scales() -> None:
    """Those that keep an accumulator from overflowing, above all."""
    form, x = FORMATS["int8"], X[:100].reshape(4, 25)
    module = quantizer(form, np.full(4, 0.1), np.zeros(4), 0)
    other = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    expected = affine.quantize(x, other, np.zeros(4, np.int8), form, 0)
    np.testing.assert_array_equal(module.integers(torch.from_numpy(x), other), expected)
    assert module.integers(torch.from_numpy(x)).dtype == np.int8


# gradients


class Leaf:
    """x, scale and zero point that gradients are taken of."""

    def __init__(self, x: Array, scale: Any, zero: Any) -> None:
        self.parts = [torch.tensor(np.asarray(part, np.float32), requires_grad=True) for part in (x, scale, zero)]

    def gradients(self, y: Any, weights: Array) -> list[Array]:
        (y * torch.from_numpy(weights)).sum().backward()
        return [part.grad.numpy() for part in self.parts]


def composed(parts: Any, ends: tuple[int, int]) -> Any:
    """s * (clip(round(x / s) + z) - z), rounding made straight by `detach`: the gradients come from autograd."""
    x, scale, zero = parts
    exact = x / scale
    steps = exact + (torch.round(exact) - exact).detach() + zero
    inside = (steps >= ends[0]) & (steps <= ends[1])
    cut = torch.where(inside, steps, steps.clamp(*ends).detach())
    return scale * (cut - zero)


@pytest.mark.parametrize("name", ["uint8", "int8", "int4", "uint3", "int2"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_gradients_are_those_of_a_composition(name: str, per_channel: bool) -> None:
    form = FORMATS[name]
    x, weights = (RANDOM.normal(0, 1, (3, 50)).astype(np.float32) for _ in range(2))
    shape = (3, 1) if per_channel else ()
    scale = np.broadcast_to(np.float32(4 / form.levels), shape) * np.ones(shape)
    zero = np.full(shape, middle_of(form))
    ours, theirs = Leaf(x, scale, zero), Leaf(x, scale, zero)
    found = ours.gradients(rounded(*ours.parts, *ends(form)), weights)
    expected = theirs.gradients(composed(theirs.parts, ends(form)), weights)
    outside = np.mean(expected[0] == 0)
    assert 0.05 < outside < 0.95, "both sides of the ends are wanted"
    for have, want in zip(found, expected, strict=True):
        assert have.shape == want.shape
        np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("x", "for_x", "for_scale", "for_zero"),
    [
        (0.3, 1.0, 1 - 0.6, 0.0),  # round(x/s) - x/s inside
        (-0.3, 1.0, -1 + 0.6, 0.0),
        (50.0, 0.0, 15 - 5, -0.5),  # qmax - z above, and -s for the zero point
        (-50.0, 0.0, 0 - 5, -0.5),  # qmin - z below
    ],
)
def test_gradients_by_hand(x: float, for_x: float, for_scale: float, for_zero: float) -> None:
    """Step 0.5, zero point 5, 4 bits."""
    leaf = Leaf(np.asarray(x), 0.5, 5)
    y = rounded(*leaf.parts, 0, 15)
    np.testing.assert_allclose(leaf.gradients(y, np.ones((), np.float32)), [for_x, for_scale, for_zero], rtol=1e-6)


def test_what_is_infinite_on_its_grid_gives_a_finite_gradient() -> None:
    """Masks of attention hold -inf, or what is beyond all floats once it is divided by the scale."""
    leaf = Leaf(np.array([-np.inf, np.inf, -3e38, 0.3], np.float32), 1e-3, 5)
    for_x, for_scale, for_zero = leaf.gradients(rounded(*leaf.parts, 0, 15), np.ones(4, np.float32))
    np.testing.assert_array_equal(for_x, [0, 0, 0, 0])
    assert for_scale == -5 + 10 - 5 + 10
    np.testing.assert_allclose(for_zero, -4e-3, rtol=1e-6)


def test_the_gradient_of_a_scale_is_divided_by_how_many_numbers_share_it() -> None:
    """LSQ: 1 / sqrt(n * qmax); the scale itself is a logarithm, whose gradient is that of the scale times it."""
    form, scale, x = FORMATS["int8"], np.float32(0.01), RANDOM.normal(0, 1, 64).astype(np.float32)
    module, leaf = quantizer(form, scale, 0), Leaf(x, scale, 0)
    module(torch.from_numpy(x)).sum().backward()
    _, plain, _ = leaf.gradients(rounded(*leaf.parts, *ends(form)), np.ones(64, np.float32))
    assert abs(plain) > 1
    np.testing.assert_allclose(module.log_scale.grad.numpy(), plain * scale / np.sqrt(64 * 127), rtol=1e-4)


# what is learned


@pytest.mark.parametrize("form", NARROW, ids=lambda form: form.name)
def test_zero_points_at_an_end_or_in_the_middle_stay(form: Format) -> None:
    for zero in (form.qmin, form.middle, form.qmax):
        assert quantizer(form, 0.1, zero).steady
        assert not quantizer(form, 0.1, zero).zero_point.requires_grad
    if form.levels > 4:
        assert not quantizer(form, 0.1, middle_of(form)).steady
        mixed = quantizer(form, [0.1, 0.1], [form.qmin, middle_of(form)], 0)
        assert mixed.zero_point.requires_grad


def test_a_zero_point_learns_and_stays_a_whole_number_of_its_format() -> None:
    form = FORMATS["uint8"]
    module = quantizer(form, 0.02, 100)
    assert module.zero_point.requires_grad
    wanted = torch.linspace(-0.5, 4.5, 50)  # on [-2, 3.1] at first: the zero point has to fall to 25
    optimizer = torch.optim.Adam([module.zero_point], lr=1.0, betas=(0.9, 0.99))
    for _ in range(400):
        optimizer.zero_grad()
        (module(wanted) - wanted).square().sum().backward()
        optimizer.step()
    learned = module.learned().zero_point
    assert learned.dtype == np.uint8
    assert 20 <= int(learned) <= 35
    with torch.no_grad():
        module.zero_point.fill_(-7.4)
    assert int(module.learned().zero_point) == 0


@given(
    kicks=st.lists(st.floats(-(2.0**100), 2.0**100), min_size=1, max_size=6),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]),
)
@settings(max_examples=40, deadline=None)
def test_scales_stay_positive_and_finite_under_wild_gradients(kicks: list[float], scale: float) -> None:
    module = quantizer(FORMATS["uint8"], scale, 128)
    optimizer = torch.optim.SGD([module.log_scale], lr=1.0)
    for kick in kicks:
        module.log_scale.grad = torch.full_like(module.log_scale, kick)
        optimizer.step()
        learned = module.learned().scale
        assert SMALLEST_SCALE <= learned < np.inf
        assert np.isfinite(on(module, X)).all()


def test_a_scale_of_zero_or_below_what_floats_hold_begins_at_the_smallest() -> None:
    for scale in (0.0, 1e-42):
        assert quantizer(FORMATS["uint8"], scale, 0).learned().scale == SMALLEST_SCALE


def test_scales_that_are_negative_stay_so() -> None:
    module = quantizer(FORMATS["uint4"], [[-0.5, 0.5]], [[8, 8]], 1, 4)
    with torch.no_grad():
        module.log_scale += 1
    np.testing.assert_allclose(module.learned().scale, [[-0.5 * np.e, 0.5 * np.e]], rtol=1e-6)


def test_a_learned_scale_minimizes_the_error() -> None:
    form, x = FORMATS["int4"], torch.from_numpy(X[:400])
    module = quantizer(form, 3.0, 0)
    optimizer = torch.optim.Adam([module.log_scale], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        (module(x) - x).square().mean().backward()
        optimizer.step()
    tried = {s: float(np.square(fake_quantize(X[:400], s, 0, form) - X[:400]).mean()) for s in np.linspace(0.3, 3, 80)}
    assert np.square(on(module, X[:400]) - X[:400]).mean() < 1.1 * min(tried.values())


# what passes as it is


def test_some_values_pass_as_they_are_in_training_alone() -> None:
    module, x = quantizer(FORMATS["int8"], 0.3, 0), torch.from_numpy(X[:400])
    expected = on(module, X[:400])
    module.drop = 0.5
    torch.manual_seed(0)
    found = module(x).detach().numpy()
    passed = found == X[:400]
    assert np.all(passed | (found == expected))
    assert 0.4 < passed.mean() < 0.6
    module.eval()
    np.testing.assert_array_equal(on(module, X[:400]), expected)
