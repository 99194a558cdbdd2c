"""Weights rounded layer after layer: what that gains on data nobody has seen, and what it costs to go on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pytest

from onnxq import blockwise, weights
from onnxq.blockwise import ROWS, View, Work, activation_noise, believed, cancelling
from onnxq.calibration.collect import Progress, silent
from onnxq.calibration.data import open_data
from onnxq.channels import layers_of
from onnxq.errors import DataError
from onnxq.graph import Graph, to_model
from onnxq.numerics.rounding.blocks import Blocked, block_round
from onnxq.passes import QUANTIZE
from onnxq.pipeline import Context, run
from onnxq.placement import place_linear
from onnxq.plan import Plan, Treatment
from onnxq.recipe import make_recipe
from onnxq.runtime import Session
from onnxq.search.region import successors
from onnxq.shelf import Shelf
from onnxq.targets import CPU
from onnxq.weights import blocked_weight, shelf_name
from tests.onnx_text import EVERYTHING, execute, floats, read

Array = np.ndarray[Any, Any]

TWO = """(float[n,40] x) => (float[n,12] y) {
    [one] a = MatMul(x, v) [add] b = Add(a, k) [act] r = Relu(b) [two] y = Gemm<transB=1>(r, w) }"""
WEIGHTS = {"v": floats(40, 48) / 6, "k": floats(48), "w": floats(12, 48, seed=4) / 6}


def correlated(rows: int, seed: int) -> Array:
    """Inputs of a few causes, and a little of their own."""
    random, causes = np.random.default_rng(seed), floats(6, 40, seed=9)
    return (random.standard_normal((rows, 6)) @ causes + 0.1 * random.standard_normal((rows, 40))).astype(np.float32)


def work(
    graph: Graph,
    data: Any = None,
    *,
    bits: Literal[4, 8] = 4,
    shelf: Shelf | None = None,
    progress: Progress = silent,
    **wish: Any,
) -> Work:
    recipe, shelf = make_recipe({"mode": "weight-int4", "weight": wish}), shelf or Shelf()
    plan = Plan(recipe=recipe, nodes=place_linear(graph, recipe, Treatment.WEIGHT, bits).nodes)
    rounded = run(QUANTIZE, graph, Context(CPU, plan, shelf), EVERYTHING).graph
    feeds = None if data is None else open_data(data, graph.interface().inputs)
    return Work(graph, rounded, plan, shelf, feeds, threads=1, progress=progress)


def noise(made: Work, feeds: Mapping[str, Array]) -> float:
    """Noise over signal at the output of the rounded model."""
    want, have = (execute(graph, feeds, optimize=True)[0].astype(np.float64) for graph in (made.graph, made.rounded))
    return float(((want - have) ** 2).sum() / (want**2).sum())


def lost(method: str, data: bool = True, **wish: Any) -> float:
    """Noise on rows that calibration has not seen."""
    made = work(read(TWO, WEIGHTS), {"x": correlated(256, 1)} if data else None, method=method, **wish)
    assert made.run() == {}
    return noise(made, {"x": correlated(500, 2)})


@pytest.mark.parametrize("wish", [{}, {"symmetric": True}, {"block_size": "channel"}])
def test_errors_that_cancel_are_better_than_nearest_on_other_data(wish: dict[str, Any]) -> None:
    nearest, cancelled = lost("rtn", **wish), lost("gptq", **wish)
    assert cancelled < 0.4 * nearest
    assert lost("auto", **wish) == cancelled, "which is what `auto` means where there is data"


def test_8_bits_gain_too() -> None:
    graph, x = read(TWO, WEIGHTS), {"x": correlated(256, 1)}
    made = [work(graph, x, bits=8, method=method) for method in ("rtn", "gptq")]
    for one in made:
        assert one.run() == {}
        for node in one.rounded.nodes:
            node.attrs |= {"accuracy_level": 0} if node.op == "MatMulNBits" else {}
    nearest, cancelled = (noise(one, {"x": correlated(500, 2)}) for one in made)
    assert cancelled < 0.5 * nearest < 1e-4


def test_nearest_with_data_knows_which_inputs_matter() -> None:
    """Inputs of different sizes; data that has none would round all of them alike."""
    sizes = np.where(np.arange(40) % 8 == 0, 8, 0.2).astype(np.float32)
    x, other = (floats(256, 40, seed=seed) * sizes for seed in (1, 2))
    made = [work(read(TWO, WEIGHTS), feeds, method="rtn") for feeds in ({"x": x}, None)]
    for one in made:
        one.run()
        for node in one.rounded.nodes:
            node.attrs |= {"accuracy_level": 0} if node.op == "MatMulNBits" else {}
    knowing, blind = (noise(one, {"x": other}) for one in made)
    assert knowing < 0.9 * blind


def test_without_data_each_weight_is_rounded_for_itself() -> None:
    told: list[tuple[str, int, int]] = []
    graph = read(TWO, WEIGHTS)
    made = work(graph, progress=lambda *words: told.append(words))
    assert made.run() == {}
    for layer in layers_of(graph):
        expected, found = blocked_weight(layer, made.settings, 4), made.shelf.get(shelf_name(layer, 4))
        assert found is not None
        np.testing.assert_array_equal(found.seen(), expected.seen())
    first, second = 4 * 40 * 48, 4 * 12 * 48
    assert told == [("bytes", first, first + second), ("bytes", first + second, first + second)]


def test_progress_with_data_is_told_by_layers() -> None:
    told: list[tuple[str, int, int]] = []
    work(read(TWO, WEIGHTS), {"x": correlated(64, 1)}, progress=lambda *words: told.append(words)).run()
    assert told == [("round", 1, 2), ("round", 2, 2)]


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the weights that are rounded."""
    shapes: list[tuple[int, ...]] = []

    def counted(weight: Array, **wish: Any) -> Blocked:
        shapes.append(weight.shape)
        return block_round(weight, **wish)

    monkeypatch.setattr(weights, "block_round", counted)
    return shapes


@pytest.mark.parametrize("data", [{"x": correlated(64, 1)}, None])
def test_nothing_is_rounded_twice(data: Any, rounds: list[tuple[int, ...]]) -> None:
    """Neither when the model is written nor in a run that goes on."""
    made = work(read(TWO, WEIGHTS), data)
    made.run()
    first = execute(made.rounded, {"x": correlated(5, 3)})[0]
    assert rounds == [(40, 48), (48, 12)]
    again = work(read(TWO, WEIGHTS), data, shelf=made.shelf)
    again.run()
    np.testing.assert_array_equal(execute(again.rounded, {"x": correlated(5, 3)})[0], first)
    assert len(rounds) == 2


@pytest.mark.parametrize("data", [{"x": correlated(64, 1)}, None])
def test_a_run_that_was_interrupted_comes_to_the_same_end(data: Any, rounds: list[tuple[int, ...]]) -> None:
    whole = work(read(TWO, WEIGHTS), data)
    whole.run()
    shelf = Shelf()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(read(TWO, WEIGHTS), data, shelf=shelf, progress=stop).run()
    assert len(shelf.held) == 1
    del rounds[:]
    work(read(TWO, WEIGHTS), data, shelf=shelf).run()
    assert rounds == [(48, 12)]
    assert shelf.held.keys() == whole.shelf.held.keys()
    for name, found in shelf.held.items():
        np.testing.assert_array_equal(found.seen(), whole.shelf.held[name].seen())


@pytest.fixture
def views(monkeypatch: pytest.MonkeyPatch) -> list[View]:
    """What each layer sees when its weight is rounded."""
    found: list[View] = []

    def watched(exact: Array, rounded: Blocked, view: View) -> Blocked:
        found.append(view)
        return cancelling(exact, rounded, view)

    monkeypatch.setattr(blockwise, "cancelling", watched)
    return found


def inner(graph: Graph, name: str, feeds: Mapping[str, Array]) -> Array:
    model = to_model(graph, extra_outputs=[name]).SerializeToString()
    return Session(model, threads=1).run(feeds, [name])[name].astype(np.float64)


def test_a_layer_is_rounded_for_what_the_rounded_layers_before_it_hand_on(views: list[View]) -> None:
    feeds = {"x": correlated(64, 1)}
    made = work(read(TWO, WEIGHTS), feeds)
    made.run()
    first, second = views
    x = feeds["x"].astype(np.float64)
    believed_of(first.gram, x.T @ x)
    assert not first.moved.any()
    x, y = (inner(graph, "r", feeds) for graph in (made.graph, made.rounded))
    assert np.abs(x - y).max() > 0.01
    believed_of(second.gram, y.T @ y)
    np.testing.assert_allclose(second.moved, y.T @ (x - y), rtol=1e-3, atol=1e-3)


def believed_of(gram: Array, whole: Array) -> None:
    """A Gram matrix is that of all rows, with all correlations made smaller by one small share."""
    np.testing.assert_allclose(gram.diagonal(), whole.diagonal(), rtol=1e-4)
    off = ~np.eye(len(whole), dtype=bool)
    kept = float(np.vdot(gram[off], whole[off]) / np.vdot(whole[off], whole[off]))
    assert 0.9 < kept <= 1
    np.testing.assert_allclose(gram[off], kept * whole[off], rtol=1e-3, atol=1e-3)


def test_correlations_that_are_chance_are_not_believed() -> None:
    halves = [x.T @ x for x in (floats(30, 40).astype(np.float64), floats(30, 40, seed=5).astype(np.float64))]
    gram = halves[0] + halves[1]
    found = believed(halves, gram)
    off = ~np.eye(40, dtype=bool)
    np.testing.assert_array_equal(found.diagonal(), gram.diagonal())
    assert np.abs(found[off]).max() < 0.3 * np.abs(gram[off]).max()
    assert believed([gram, np.zeros(())], gram) is gram, "one batch says nothing about another"


def test_rows_are_spread_over_all_samples(views: list[View]) -> None:
    """Whatever the batches; never more than so many."""
    x = np.arange(3 * ROWS, dtype=np.float32)[:, None] * np.ones((1, 40), np.float32)
    work(read(TWO, WEIGHTS), {"x": x}).run()
    rows = views[0].rows[:, 0]
    assert ROWS / 2 <= len(rows) <= ROWS
    assert rows.min() < 0.1 * x.max()
    assert rows.max() > 0.9 * x.max()


def test_padding_and_rows_without_numbers_are_left_out(views: list[View]) -> None:
    text = """(float[n,t,40] x, int64[n,t] attention_mask) => (float[n,t,48] y, int64[n,t] z) {
        [one] y = MatMul(x, v) z = Identity(attention_mask) }"""
    x, mask = floats(2, 4, 40), np.array([[1, 1, 1, 0], [1, 1, 0, 0]])
    x[mask == 0], kept = 1000, x[mask == 1].astype(np.float64)
    work(read(text, WEIGHTS), {"x": x, "attention_mask": mask}).run()
    np.testing.assert_allclose(views[0].gram, kept.T @ kept, rtol=1e-6)
    plain = floats(6, 40)
    plain[2, 3], finite = np.inf, np.delete(plain, 2, axis=0).astype(np.float64)
    work(read(TWO, WEIGHTS), {"x": plain}).run()
    np.testing.assert_allclose(views[1].gram, finite.T @ finite, rtol=1e-6)


def test_data_without_one_finite_row() -> None:
    text = "(float[n,40] x) => (float[n,48] y) { r = Log(x) [one] y = MatMul(r, v) }"
    with pytest.raises(DataError, match=r"Tensor 'r' is NaN or infinite for all of the data\. Check the prep"):
        work(read(text, WEIGHTS), {"x": np.full((8, 40), -1, np.float32)}).run()


def test_layers_that_share_a_weight_are_rounded_once(rounds: list[tuple[int, ...]]) -> None:
    text = """(float[n,40] x) => (float[n,40] y) {
        [one] a = MatMul(x, w) [act] r = Tanh(a) [two] b = MatMul(r, w) [three] c = MatMul(x, w)
        [sum] y = Sum(a, b, c) }"""
    made = work(read(text, {"w": floats(40, 40) / 6}), {"x": correlated(64, 1)})
    made.run()
    assert rounds == [(40, 40)]


OUTLIERS = """(float[n,64] x) => (float[n,12] y) {
    [loud] a = MatMul(x, v) [act] r = Tanh(a) [quiet] y = MatMul(r, w) }"""


def outliers(rows: int, seed: int) -> Array:
    """One input is a thousand times as large as all others, which its block loses when it is rounded to 8 bits."""
    x = floats(rows, 64, seed=seed)
    x[:, 5] *= 1000
    return x


def loud(bits: Literal[4, 8] = 4) -> Work:
    v = floats(64, 48) / 8
    v[5] /= 1000
    return work(read(OUTLIERS, {"v": v, "w": floats(48, 12) / 6}), {"x": outliers(200, 1)}, bits=bits)


def test_a_layer_with_enormous_inputs_rounds_none_of_them() -> None:
    made = loud()
    assert made.run() == {"loud": 0}
    nodes = successors(made.graph, made.rounded)
    assert [nodes[name].attrs["accuracy_level"] for name in ("loud", "quiet")] == [0, 4]
    assert made.plan.nodes["loud"].accuracy_level == 4, "plans are not touched"
    feeds = {"x": outliers(300, 2)}
    after = noise(made, feeds)
    nodes["loud"].attrs["accuracy_level"] = 4
    assert after < 0.5 * noise(made, feeds)


def test_a_run_that_goes_on_decides_alike() -> None:
    made = loud()
    found = made.run()
    again = Work(made.graph, made.rounded.copy(), made.plan, made.shelf, made.data, threads=1)
    assert again.run() == found == {"loud": 0}


def test_8_bits_keep_the_usual_kernel() -> None:
    """Whose weights are so quiet that rounded inputs are always louder."""
    made = loud(bits=8)
    assert made.run() == {}


@pytest.mark.parametrize("width", [32, 40, 7])
def test_noise_of_rounded_inputs_is_that_of_the_formula(width: int) -> None:
    """Over the last block, which is filled up, too."""
    rows, exact = floats(9, width), floats(5, width, seed=4)
    found = block_round(exact.T, bits=4, block=16, symmetric=False)
    rounded = rows.copy()
    for start in range(0, width, 16):
        for row in rounded[:, start : start + 16]:
            step = np.abs(row).max() / 127
            row[:] = np.rint(row / step) * step
    own = np.square((rounded - rows) @ found.seen().T).sum()
    other = np.square(rows @ (found.seen() - exact).T).sum()
    assert activation_noise(found, exact, seen(rows, enough=True)) == pytest.approx(own / other, rel=1e-3)
    assert 1e-4 < own / other < 1


def test_with_few_rows_a_weight_counts_as_rounded_to_nearest() -> None:
    """Whatever its integers are: that they cancel on these rows is chance."""
    rows, exact = floats(9, 40), floats(5, 40, seed=4)
    found = block_round(exact.T, bits=4, block=16, symmetric=False)
    wide = np.repeat(found.scale, 16, axis=1)[:, :40]
    other = np.square(rows) @ np.square(wide).T / 12
    own = activation_noise(found, exact, seen(rows, enough=True)) * np.square(rows @ (found.seen() - exact).T).sum()
    assert activation_noise(found, exact, seen(rows, enough=False)) == pytest.approx(own / other.sum(), rel=1e-3)


def seen(rows: np.ndarray, *, enough: bool) -> View:
    width = rows.shape[1]
    return View(np.eye(width), np.zeros((width, width)), rows, 2 * width if enough else 2 * width - 1)


def test_noise_where_there_is_none() -> None:
    found = block_round(floats(32, 5), bits=4, block=16, symmetric=False)
    known = seen(floats(9, 32), enough=True)
    assert activation_noise(found, found.seen(), known) == 0.0, "of a weight that is rounded to itself"
    for enough in (True, False):
        assert activation_noise(found, floats(5, 32), seen(np.zeros((9, 32), np.float32), enough=enough)) == 0.0


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_errors_cancel_at_the_output(bits: int, symmetric: bool) -> None:
    """With grids that stay as they are; however few outputs are rounded at a time."""
    x, exact = correlated(200, 1).astype(np.float64), floats(9, 40, seed=4)
    view = View(x.T @ x, np.zeros((len(x.T),) * 2), x[:8].astype(np.float32), 200)
    found = block_round(exact.T, bits=bits, block=16, symmetric=symmetric)
    other = cancelling(exact, found, view)
    np.testing.assert_array_equal(other.scale, found.scale)
    assert (other.zero_point is None) == symmetric
    before, after = (np.square(x @ (one.seen() - exact).T).sum() for one in (found, other))
    assert after < 0.3 * before


def test_parts_of_a_weight_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    x, exact = correlated(200, 1).astype(np.float64), floats(9, 40, seed=4)
    view = View(x.T @ x, x.T @ (floats(200, 40) / 9), x[:8].astype(np.float32), 200)
    found = block_round(exact.T, bits=4, block=16, symmetric=False)
    whole = cancelling(exact, found, view).integers()
    monkeypatch.setattr(blockwise, "PART", 90)
    np.testing.assert_array_equal(cancelling(exact, found, view).integers(), whole)


def test_a_layer_makes_up_for_half_of_the_errors_before_it() -> None:
    """y is what became of x; the weight that makes of y what w made of x is w times the way back from y to x."""
    x, exact = floats(400, 24).astype(np.float64), floats(9, 24, seed=4)
    turned = np.eye(24) + 0.05 * floats(24, 24, seed=5).astype(np.float64)
    y = x @ turned
    view = View(y.T @ y, y.T @ (x - y), y[:8].astype(np.float32), 200)
    found = block_round(2 * exact.T, bits=8, block=32, symmetric=False)  # grids that have room to move
    seen = cancelling(exact, found, view).seen()
    goal = (exact + exact @ np.linalg.inv(turned).T) / 2
    wanted, moved = (np.square(y @ (target - exact).T).sum() for target in (goal, seen))
    missed = np.square(y @ (seen - goal).T).sum()
    assert missed < 0.05 * wanted
    assert moved > 0.5 * wanted
