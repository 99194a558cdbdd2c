"""Each switch does what quantization of its tensor does, alone and in any company, and costs what an error costs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pytest

from onnxq.calibration.data import Data, open_data
from onnxq.graph import Graph, weight
from onnxq.numerics.affine import fake_quantize, parameters, quantize_weight
from onnxq.numerics.formats import FORMATS, INT8, UINT8, Format
from onnxq.search.reference import Sums, error_power, remember, signal_power
from onnxq.search.switches import UNBOUNDED, Grid, Shares, Switch, SwitchBoard
from onnxq.search.wiring import wire
from tests.onnx_text import Array, execute, floats, read

TWO = """(float[n,6] x) => (float[n,4] y, float[n,5] z) {
    [one] a = MatMul(x, v) [add] b = Add(a, c) [act] r = Relu(b) [two] y = MatMul(r, w) [three] z = MatMul(r, u)
}"""


def two_heads(opset: int = 17) -> Graph:
    """One layer, and two that read it."""
    weights = {"v": floats(6, 8), "c": floats(8, seed=1), "w": floats(8, 4, seed=4), "u": floats(8, 5, seed=5)}
    return read(TWO, weights, opset)


def data(graph: Graph, count: int = 12, **more: Array) -> Data:
    x = floats(count, 6, seed=9)
    return open_data({"x": x, **more}, graph.interface().inputs)


def grid(low: float, high: float, form: Format = UINT8) -> Grid:
    return Grid(*parameters(low, high, form), form)


def board(graph: Graph, *switches: Switch, count: int = 12, samples: int = 12, **options: Any) -> SwitchBoard:
    return SwitchBoard(graph, switches, data(graph, count), samples, threads=1, **options)


def ratio(exact: Array, got: Array) -> float:
    return float(np.sum((got - exact) ** 2) / np.sum(exact**2))


def hidden(x: Array, graph: Graph) -> Array:
    """What the first layer of `two_heads` returns."""
    parts = {name: weight(tensor) for name, tensor in graph.tensors().items() if name in "vc"}
    return np.asarray(np.maximum(x @ parts["v"] + parts["c"], 0), np.float32)


X = floats(12, 6, seed=9)


def test_nothing_on_is_no_noise_at_all() -> None:
    graph = two_heads()
    found = board(graph, Switch("x", "x", grid=grid(-1, 1)), Switch("w", "w", values=np.zeros((8, 4))))
    assert found.outputs_noise([]) == {"y": 0.0, "z": 0.0}
    assert found.noise(()) == 0.0
    assert list(two_heads().tensors()) == list(graph.tensors()), "the graph that was given is not touched"


@pytest.mark.parametrize("form", [UINT8, INT8, FORMATS["uint16"], FORMATS["uint4"]], ids=lambda form: form.name)
def test_a_grid_rounds_as_numpy_does(form: Format) -> None:
    graph, chosen = two_heads(), grid(-1.7, 2.1, form)
    exact, got = (hidden(x, graph) for x in (X, chosen.rounded(X)))
    assert np.abs(got - exact).max() > 1e-6
    found = board(graph, Switch("x", "x", grid=chosen)).local(["x"], ["r"])
    assert found["r"] == pytest.approx(ratio(exact, got), rel=1e-4)


@pytest.mark.parametrize("opset", [17, 9])
def test_channels_of_a_picture(opset: int) -> None:
    text = "(float[n,3,4,4] x) => (float[n,3,4,4] y) { a = com.microsoft.Gelu(x) y = Mul(a, two) }"
    graph = read(text, {"two": np.float32(2)}, opset)
    x, scales = floats(2, 3, 4, 4), np.array([0.01, 0.1, 0.4], np.float32)
    chosen = Grid(scales, np.asarray(100, np.uint8), UINT8, 1)
    source = open_data({"x": x}, graph.interface().inputs)
    found = SwitchBoard(graph, [Switch("a", "a", grid=chosen)], source, 2).noise(["a"])
    exact = execute(graph, {"x": x})[0] / 2
    assert found == pytest.approx(ratio(exact, chosen.rounded(exact)), rel=1e-4)


@pytest.mark.parametrize("axis", [1, -1])
def test_a_grid_may_have_a_scale_for_each_channel(axis: int) -> None:
    graph, scales = two_heads(), np.linspace(0.01, 0.4, 6).astype(np.float32)
    chosen = Grid(scales, np.asarray(100, np.uint8), UINT8, axis)
    exact, got = (hidden(x, graph) for x in (X, fake_quantize(X, scales, np.full(6, 100), UINT8, 1)))
    found = board(graph, Switch("x", "x", grid=chosen)).local(["x"], ["r"])
    assert found["r"] == pytest.approx(ratio(exact, got), rel=1e-4)


def test_dynamic_takes_the_range_of_what_it_sees() -> None:
    graph = two_heads()
    exact, got = (hidden(x, graph) for x in (X[:8], grid(float(X[:8].min()), float(X[:8].max())).rounded(X[:8])))
    found = board(graph, Switch("x", "x", dynamic=True), samples=8).local(["x"], ["r"])
    assert found["r"] == pytest.approx(ratio(exact, got), rel=1e-3)


def in_blocks(x: Array, size: int) -> Array:
    """round(x / scale) * scale with scale = max |x| / 127 of each block of the last axis."""
    channels = x.shape[-1]
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -channels % size)]).reshape(-1, size)
    scale = np.abs(padded).max(1, keepdims=True) / np.float32(127)
    rounded = np.divide(padded, scale, out=np.zeros_like(padded), where=scale > 0).round() * scale
    return np.asarray(rounded.reshape(*x.shape[:-1], -1)[..., :channels])


def replaced(graph: Graph, switch: Switch, feeds: dict[str, Array]) -> Array:
    """The output with a switch that is on."""
    wiring, flags = wire(graph, [switch])
    return execute(wiring.graph, feeds | {flags[switch.name]: np.asarray(True)})[0]


SPREAD = np.logspace(-1, 1, 40, dtype=np.float32)
"""Channels of different magnitude, so that a block that is taken for another shows."""


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("shape", [(5, 40), (2, 3, 40), (2, 1, 3, 40), (40,), (3, 32)])
def test_blocks_take_the_reach_of_what_they_see(shape: tuple[int, ...], size: int) -> None:
    """Of any rank; the last block of a row is ragged but for 32 channels in blocks of 16 or 32."""
    axes = ",".join(map(str, shape))
    graph = read(f"(float[{axes}] x) => (float[{axes}] y) {{ y = Mul(x, one) }}", {"one": np.float32(1)})
    x = floats(*shape) * SPREAD[: shape[-1]]
    x.reshape(-1, shape[-1])[-1, :16] = 0  # a block of zeros
    got = replaced(graph, Switch("x", "x", blocks=(shape[-1], size)), {"x": x})
    np.testing.assert_allclose(got, in_blocks(x, size), rtol=1e-6)
    assert np.abs(got - x).max() > 1e-2


def test_blocks_know_the_rows_of_each_batch() -> None:
    """Where the number of rows is left open, and changes from batch to batch."""
    graph = read("(float[n,s,40] x) => (float[n,s,40] y) { y = Mul(x, one) }", {"one": np.float32(1)})
    for shape in ((2, 3, 40), (1, 7, 40)):
        x = floats(*shape) * SPREAD
        got = replaced(graph, Switch("x", "x", blocks=(40, 32)), {"x": x})
        np.testing.assert_allclose(got, in_blocks(x, 32), rtol=1e-6)


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_round_as_the_kernel_does(bits: int, rows: int, size: int) -> None:
    """Through a weight that hands each input on as it is: a diagonal of the largest integer, times its reciprocal."""
    largest, blocks = (1 << bits) - 1, -(-40 // size)
    zero_point, reach = 1 << bits - 1, largest - (1 << bits - 1)
    stored = np.full((40, blocks * size), zero_point, np.uint8)
    stored[np.arange(40), np.arange(40)] = largest
    packed = stored if bits == 8 else stored[:, ::2] | stored[:, 1::2] << 4
    weights = {"w": packed.reshape(40, blocks, -1), "scale": np.full(40 * blocks, 1 / reach, np.float32)}
    node = f"MatMulNBits<K=40, N=40, bits={bits}, block_size={size}, accuracy_level=4>(x, w, scale)"
    kernel = read(f"(float[{rows},40] x) => (float[{rows},40] y) {{ y = com.microsoft.{node} }}", weights)
    same = read(f"(float[{rows},40] x) => (float[{rows},40] y) {{ y = Mul(x, one) }}", {"one": np.float32(1)})
    x = floats(rows, 40) * SPREAD
    (expected,) = execute(kernel, {"x": x}, optimize=True)
    assert np.abs(expected - x).max() > 1e-2
    got = replaced(same, Switch("x", "x", blocks=(40, size)), {"x": x})
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("how", ["grid", "values"])
def test_a_weight_is_replaced(how: str) -> None:
    graph = two_heads()
    w = weight(graph.tensors()["w"])
    stored = quantize_weight(w, INT8, axis=1)
    chosen = Grid(stored.scale, np.asarray(0, np.int8), INT8, 1)
    switch = Switch("w", "w", grid=chosen) if how == "grid" else Switch("w", "w", values=chosen.rounded(w))
    found = board(graph, switch).outputs_noise(["w"])
    r = hidden(X, graph)
    assert found["y"] == pytest.approx(ratio(r @ w, r @ chosen.rounded(w)), rel=1e-3)
    assert found["y"] > 1e-6
    assert found["z"] == 0.0


def test_only_the_named_readers_see_the_replacement() -> None:
    graph = two_heads()
    found = board(graph, Switch("y", "r", ("two",), grid=grid(0, 1)), Switch("all", "r", grid=grid(0, 1)))
    own, everybody = found.outputs_noise(["y"]), found.outputs_noise(["all"])
    assert own["z"] == 0.0
    assert own["y"] > 1e-3
    assert everybody["y"] == pytest.approx(own["y"])
    assert everybody["z"] > 1e-3


def test_the_last_switch_that_is_on_counts() -> None:
    graph = two_heads()
    fine, coarse, some = (
        Switch("fine", "r", grid=grid(0, 20)),
        Switch("coarse", "r", grid=grid(0, 200)),
        Switch("some", "r", ("three",), grid=grid(0, 400)),
    )
    found = board(graph, fine, coarse, some)
    alone = {name: found.outputs_noise([name]) for name in ("fine", "coarse", "some")}
    assert alone["fine"]["y"] < alone["coarse"]["y"] / 10
    assert found.outputs_noise(["fine", "coarse"]) == alone["coarse"], "not rounded twice"
    assert found.outputs_noise(["fine", "coarse", "some"]) == {"y": alone["coarse"]["y"], "z": alone["some"]["z"]}


def test_an_output_and_an_inner_output_are_rounded_too() -> None:
    text = TWO.replace("float[n,5] z", "float[n,5] z, float[n,8] r")
    graph = read(text, {name: weight(t) for name, t in two_heads().tensors().items() if name in "vcwu"})
    found = board(graph, Switch("y", "y", grid=grid(-40, 40)), Switch("r", "r", grid=grid(0, 9)))
    y, r = found.outputs_noise(["y"]), found.outputs_noise(["r"])
    assert (y["y"] > 1e-6, y["z"], y["r"]) == (True, 0.0, 0.0)
    assert all(value > 1e-6 for value in r.values())
    assert found.local(["r"], ["r"]) == {"r": 0.0}, "as it is made, before its own switch"
    own = board(graph, Switch("r", "r", ("two",), grid=grid(0, 9))).outputs_noise(["r"])
    assert (own["y"], own["z"], own["r"]) == (r["y"], 0.0, 0.0)
    output = board(graph, Switch("r", "r", ("r",), grid=grid(0, 9))).outputs_noise(["r"])
    assert (output["y"], output["z"], output["r"]) == (0.0, 0.0, r["r"])


def test_local_and_accumulated_errors() -> None:
    graph = two_heads()
    found = board(
        graph, Switch("x", "x", grid=grid(-3, 3)), Switch("w", "w", grid=Grid(*parameters(-4, 4, INT8), INT8))
    )
    local = found.each_local({"r": ["x"], "y": ["w"], "b": ["x"]})
    together = found.local(["x", "w"], ["r", "y"])
    assert local["r"] == together["r"] == pytest.approx(found.local(["x"], ["r"])["r"])
    assert local["y"] == pytest.approx(found.outputs_noise(["w"])["y"])
    assert together["y"] > local["y"] > 0
    assert local.keys() == {"r", "y", "b"}


def test_more_inner_tensors_than_are_held_at_a_time() -> None:
    chain = "".join(f"t{i + 1} = Add(t{i}, one)\n" for i in range(20))
    graph = read(
        f"(float[n,6] x) => (float[n,6] y) {{ t0 = Mul(x, one)\n{chain} y = Mul(t20, one) }}", {"one": np.float32(1)}
    )
    found = board(graph, Switch("x", "x", grid=grid(-3, 3)))
    errors = found.local(["x"], [f"t{i}" for i in range(21)])
    assert len(errors) == 21
    assert errors["t0"] > errors["t5"] > errors["t20"] > 0, "the same noise below more and more signal"


def test_noise_adds_up_while_it_is_small() -> None:
    graph = two_heads()
    found = board(graph, Switch("x", "x", grid=grid(-3, 3)), Switch("r", "r", grid=grid(0, 10)), count=64, samples=64)
    shares = found.shares()
    assert list(shares.noise) == sorted(shares.alone, key=lambda name: -shares.noise[name])
    assert shares.additivity == pytest.approx(1, abs=0.2)
    assert shares.together == found.outputs_noise(["x", "r"])


def test_noise_without_bound_can_be_shared_out() -> None:
    """One layer rounds to 0 what is divided by, another does not."""
    graph = read("(float[n,6] x) => (float[n,6] y) { a = Mul(x, v) y = Div(v, a) }", {"v": np.full(6, 2, np.float32)})
    coarse, fine = Switch("coarse", "a", grid=grid(-400, 400)), Switch("fine", "v", ("mul",), values=np.full(6, 2.01))
    graph.nodes[0].name = "mul"
    found = board(graph, coarse, fine)
    assert found.outputs_noise(["coarse"]) == {"y": UNBOUNDED}
    assert (found.noise(["coarse"]), found.noise(["coarse", "fine"])) == (UNBOUNDED, UNBOUNDED)
    shares = found.shares()
    assert list(shares.noise) == ["coarse", "fine"]
    assert shares.additivity == pytest.approx(1, abs=1e-3)
    assert 1e-6 < shares.noise["fine"] < 1e-4


def test_groups_of_switches_and_progress() -> None:
    graph, told = two_heads(), list[tuple[str, int, int]]()
    found = board(graph, *(Switch(name, name, grid=grid(-3, 3)) for name in ("x", "b", "r")))
    shares = found.shares({"both": ("x", "b"), "last": ("r",)}, lambda *step: told.append(step))
    assert shares.alone["both"] == found.outputs_noise(["x", "b"])
    assert told == [("search", 1, 2), ("search", 2, 2)]


def test_additivity_is_taken_at_the_worst_output() -> None:
    alone = {"a": {"y": 1.0, "z": 2.0}, "b": {"y": 0.5}}
    assert Shares(alone, {"y": 3.0, "z": 0.1}).additivity == pytest.approx(0.5)
    assert Shares(alone, {"y": 0.0}).additivity == 1.0
    assert Shares({}, {}).additivity == 1.0
    assert Shares(alone, {}).noise == {"a": 2.0, "b": 0.5}


def test_an_old_opset_is_raised() -> None:
    graph = two_heads(opset=9)
    found = board(graph, Switch("x", "x", dynamic=True))
    assert graph.opset == 9
    assert 1e-7 < found.noise(["x"]) < 1e-2


def test_padding_does_not_count() -> None:
    graph = read(
        "(float[n,s] x, int64[n,s] attention_mask) => (float[n,s] y) { y = Mul(x, two) }", {"two": np.float32(2)}
    )
    x = np.array([[1.0, 500.0], [1.5, 2.0]], np.float32)
    feeds = {"x": x, "attention_mask": np.array([[1, 0], [1, 1]])}
    found = SwitchBoard(graph, [Switch("x", "x", grid=grid(0, 2))], open_data(feeds, graph.interface().inputs), 2)
    kept = np.array([1.0, 1.5, 2.0], np.float32)
    assert found.noise(["x"]) == pytest.approx(ratio(kept, grid(0, 2).rounded(kept)), rel=1e-4)


def test_weights_that_a_body_reads_too() -> None:
    body = "b = If(on) <then_branch = g () => (float[n,6] t) { t = Add(a, w) }, "
    body += "else_branch = h () => (float[n,6] e) { e = Identity(a) }>"
    text = f"(float[n,6] x, bool on) => (float[n,6] y) {{ a = Mul(x, w)\n {body}\n y = Add(b, a) }}"
    graph = read(text, {"w": floats(6)})
    source = open_data([{"x": X, "on": np.asarray(True)}], graph.interface().inputs)
    found = SwitchBoard(graph, [Switch("w", "w", values=np.zeros(6)), Switch("a", "a", grid=grid(-9, 9))], source, 1)
    assert found.noise(["w"]) > 0.1
    assert 1e-7 < found.noise(["a"]) < 1e-2


def test_stops_where_the_outputs_fill_the_memory() -> None:
    graph = two_heads()
    found = board(graph, Switch("x", "x", dynamic=True), count=24, samples=24, remembered=1)
    assert len(found.reference.batches) == 1
    assert len(board(graph, Switch("x", "x", dynamic=True), count=24, samples=24).reference.batches) == 3


@pytest.mark.parametrize("more", [{}, {"dynamic": True, "values": np.zeros(1)}, {"dynamic": True, "blocks": (8, 16)}])
def test_a_switch_replaces_in_one_way(more: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match="'x' needs one of"):
        Switch("x", "x", **more)


def test_what_bodies_read_is_known_to_the_graph() -> None:
    wiring, flags = wire(two_heads(), [Switch("w", "w", values=np.zeros((8, 4))), Switch("x", "x", dynamic=True)])
    assert wiring.graph.captured == {"w", "x"}
    assert set(wiring.graph.pinned) == {"w"}
    assert [tensor.name for tensor in wiring.graph.inputs] == ["x", *flags.values()]


def test_names_are_checked() -> None:
    with pytest.raises(AssertionError, match="names of their own"):
        board(two_heads(), Switch("x", "x", dynamic=True), Switch("x", "r", dynamic=True))
    with pytest.raises(AssertionError, match=r"no switches \['nope'\]"):
        board(two_heads(), Switch("x", "x", dynamic=True)).noise(["nope"])


def test_infinite_values_and_other_shapes() -> None:
    exact = np.array([1.0, -np.inf, np.nan, -3.4e38], np.float32)
    assert signal_power(exact) == 1.0
    assert error_power(exact, np.array([1.5, 0.0, 2.0, 0.0], np.float32)) == 0.25
    assert error_power(exact, np.array([np.nan, 0.0, 2.0, 0.0], np.float32)) == np.inf
    assert error_power(exact, exact[:2]) == np.inf
    sums = Sums()
    sums.add({"a": exact, "b": np.zeros(2)}, {"a": exact, "b": np.ones(2)}, {})
    assert sums.ratios() == {"a": 0.0}, "an output of zeros has no ratio"


def test_integer_outputs_are_left_out() -> None:
    def run(feeds: Any, outputs: Sequence[str]) -> dict[str, Array]:
        return {name: np.ones(2, np.int64 if name == "i" else np.float32) for name in outputs}

    def doubled(feeds: Any, outputs: Collection[str]) -> dict[str, Array]:
        return {name: np.full(2, 2, np.float32) for name in outputs}

    found = remember(run, ["i", "f"], data(two_heads()), 4)
    assert found.noise(doubled) == {"f": 1.0}
