"""Q/DQ taken apart, trained and put together: nothing moves by itself, and what was trained is what runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxq.build import GIVEN
from onnxq.errors import ModelError
from onnxq.graph import Constant, Graph, Node, is_constant, weight
from onnxq.numerics.formats import FORMATS
from onnxq.passes import FOLD
from onnxq.pipeline import Context
from onnxq.recipe import Recipe
from onnxq.targets import CPU as TARGET
from tests.onnx_text import Array, floats, grid, integers, into, normal, out_of, read, serialize, stored

torch = pytest.importorskip("torch", reason="training needs PyTorch")

from onnxq.pipeline import run  # noqa: E402
from onnxq.spec import Fact  # noqa: E402
from onnxq.training.batches import batches  # noqa: E402
from onnxq.training.fake_quant import Grid  # noqa: E402
from onnxq.training.qdq import take_apart  # noqa: E402
from onnxq.training.simulation import Simulation, Weight  # noqa: E402
from onnxq.training.sites import find_sites  # noqa: E402
from onnxq.training.trainer import groups  # noqa: E402
from onnxq.training.written import put_together  # noqa: E402
from tests.training.classroom import (  # noqa: E402
    CPU,
    MODELS,
    exam_of,
    executed,
    jolt,
    planned,
    simulated,
    static,
    with_qdq,
)

W = {"w": floats(8, 4, 3, 3), "b": floats(8), "v": floats(8, 8, 1, 1, seed=9), "m": floats(8, 6), "k": floats(6)}
W |= {"n": floats(5, 6, seed=4), "c": floats(5, seed=5), "shape": np.array([0, -1]), "n2": floats(4, 6, seed=8)}

MODELS_BY_HAND = {
    "conv": ("(float[batch,4,6,6] x) => (float[batch,8,6,6] y) { [conv] y = Conv<pads=[1,1,1,1]>(x, w, b) }", "x y"),
    "conv relu": (
        "(float[batch,4,6,6] x) => (float[batch,8,6,6] y) {"
        "[conv] p = Conv<pads=[1,1,1,1]>(x, w, b) [relu] r = Relu(p) [two] y = Conv(r, v) }",
        "x r y",
    ),
    "linear": (
        "(float[batch,8] x) => (float[batch,5] y) {"
        "[fc] p = MatMul(x, m) s = Add(p, k) r = Relu(s) [head] y = Gemm<transB=1>(r, n, c) }",
        "x r y",
    ),
    "residual": (
        "(float[batch,4,6,6] x) => (float[batch,8,6,6] y) {"
        "[conv] a = Conv<pads=[1,1,1,1]>(x, w, b) [two] t = Conv(a, v) [sum] y = Add(a, t) }",
        "x a t y",
    ),
    "concat and movers": (
        "(float[batch,4,6,6] x) => (float[batch,16,3,3] y) {"
        "[conv] a = Conv<pads=[1,1,1,1]>(x, w, b) [two] t = Conv(a, v) [join] j = Concat<axis=1>(a, t)"
        "[pool] y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(j) }",
        "x a t j y",
    ),
}
SHARED = {"concat and movers": {"a": "j", "t": "j", "y": "j"}}


def model_by_hand(name: str) -> Graph:
    return read(MODELS_BY_HAND[name][0], {key: value for key, value in W.items() if f" {key}" in text_of(name)})


def text_of(name: str) -> str:
    return MODELS_BY_HAND[name][0].replace("(", " ").replace(",", " ,").replace(")", " )")


def quantized(name: str, recipe: Recipe) -> tuple[Graph, Graph]:
    """A model by hand with Q/DQ, and without."""
    before = model_by_hand(name)
    nodes = " ".join(node.name for node in before.nodes if node.name and node.op != "Relu")
    return with_qdq(before, nodes, MODELS_BY_HAND[name][1], recipe, **SHARED.get(name, {})), before


def last_step(graph: Graph) -> tuple[str, float]:
    """The tensor that is rounded last, and the width of a step there."""
    node = [node for node in graph.nodes if node.op == "QuantizeLinear"][-1]
    return node.inputs[0].name, float(weight(node.inputs[1]).max())


def assert_agrees(student: Simulation, graph: Graph, feeds: dict[str, Array]) -> None:
    """The Q/DQ model and the folded one return what the simulation does, within a step of the last rounded tensor."""
    name, step = last_step(graph)
    folded = run(FOLD, graph, Context(TARGET), GIVEN | {Fact.QDQ}).graph
    for output in student.graph.outputs:
        expected = simulated(student, feeds, [output.name])[output.name]
        assert np.unique(expected).size > 4, "an output that hardly varies proves nothing"
        for built in (graph, folded):
            found = executed(built, feeds, [])[output.name]
            assert np.abs(found - expected).max() <= 1.001 * step
            assert np.mean(np.abs(found - expected) > 0.01 * step) < 0.02, "such a step is rare"
    rounded = executed(graph, feeds, [name])[name]
    assert np.abs(rounded - simulated(student, feeds, [name])[name]).max() <= 1.001 * step


def constants(graph: Graph) -> dict[tuple[str, int], Array]:
    """Every constant, by the node that reads it and the place."""
    return {
        (node.name, place): weight(tensor)
        for node in graph.nodes
        for place, tensor in enumerate(node.inputs)
        if tensor.name and is_constant(tensor)
    }


def assert_same_constants(one: dict[tuple[str, int], Array], other: dict[tuple[str, int], Array]) -> None:
    assert one.keys() == other.keys()
    for key, values in one.items():
        assert values.dtype == other[key].dtype, key
        np.testing.assert_array_equal(values, other[key], strict=True, err_msg=str(key))


def names(graph: Graph) -> list[tuple[str, str, list[str], list[str]]]:
    """Every node with everything that is no constant."""
    inputs = [[tensor.name for tensor in node.inputs if not is_constant(tensor)] for node in graph.nodes]
    return [
        (node.name, node.op, read, [tensor.name for tensor in node.outputs])
        for node, read in zip(graph.nodes, inputs, strict=True)
    ]


# made by InsertQdq

RECIPES = {
    "8 bits": static(8),
    "8 bits per tensor": static(8, per_channel=False),
    "4 bits": static(4),
    "3 bits, activations of 5": static(3, 5),
    "2 bits": static(2, 4),
    "asymmetric": static(8, format="uint8", symmetric=False),
}


@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize("model", MODELS_BY_HAND)
def test_untouched_constants_keep_their_bits(model: str, kind: str) -> None:
    graph, exact = quantized(model, RECIPES[kind])
    before, called = constants(graph), names(graph)
    student, parts = take_apart(graph, exact)
    assert parts.weights, "there is a weight to round"
    put_together(parts, student)
    assert_same_constants(constants(graph), before)
    assert names(graph) == called


@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize("model", MODELS_BY_HAND)
def test_what_was_trained_is_what_runs(model: str, kind: str) -> None:
    graph, exact = quantized(model, RECIPES[kind])
    called, before = names(graph), constants(graph)
    student, parts = take_apart(graph, exact)
    jolt(student, 0.05)
    put_together(parts, student)
    assert names(graph) == called
    moved = [key for key, values in constants(graph).items() if not np.array_equal(values, before[key])]
    assert len(moved) >= len(parts.sites) + len(parts.weights)
    assert_agrees(student, graph, normal(exact, 5))


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_trained_digits_run_as_they_were_simulated(bits: int) -> None:
    build, exact, data = planned("digits", static(bits), str(MODELS / "digits_calibration.npz"))
    student, parts = take_apart(build.graph, exact)
    before = [module.quantizer.integers(module.values) for _, module in parts.weights]
    exam, optimizer = exam_of(student, exact, data), torch.optim.Adam(groups(student, 0.1))
    for batch in batches(data.take(slice(0, 96)), 16, CPU):
        optimizer.zero_grad()
        exam.lost(batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    put_together(parts, student)
    moved = [np.any(weight(node.inputs[0]) != one) for (node, _), one in zip(parts.weights, before, strict=True)]
    assert np.mean(moved) > 0.5
    name, step = last_step(build.graph)
    pixels = {"pixels": np.load(MODELS / "digits_test.npz")["pixels"][:64]}
    expected = simulated(student, pixels, [name, "logits"])
    rounded = executed(build.graph, pixels, [name])
    off = np.abs(rounded[name] - expected[name])
    assert off.max() <= 1.001 * step
    assert np.mean(off > 0.01 * step) < 0.05, "such a step is rare"
    folded = run(FOLD, build.graph, build.context, GIVEN | {Fact.QDQ}).graph
    head = np.abs(weight(parts.weights[-1][0].inputs[0]) * weight(parts.weights[-1][0].inputs[1])[:, None])
    assert parts.weights[-1][0].outputs[0].outputs[0].op == "Gemm"
    for built in (build.graph, folded):
        off = np.abs(executed(built, pixels)["logits"] - expected["logits"])
        assert (off <= 1e-4 + step * head.sum(1)).all(), "what the head reads is off by one step at most"


def test_weights_begin_at_their_floats_or_at_what_they_are() -> None:
    graph, exact = quantized("linear", static(4))
    given, (node, module) = take_apart(graph, exact)[1].weights[-1], take_apart(graph)[1].weights[-1]
    np.testing.assert_array_equal(given[1].values.detach().numpy(), W["n"])
    stored_as = (weight(node.inputs[0]) * weight(node.inputs[1])[:, None]).astype(np.float32)
    np.testing.assert_array_equal(module.values.detach().numpy(), stored_as)
    assert not np.array_equal(stored_as, W["n"])


def test_tensors_that_share_a_grid_still_share_it() -> None:
    graph, exact = quantized("concat and movers", static(4))
    student, parts = take_apart(graph, exact)
    shared = next(site for site, _ in parts.sites if {"a", "t", "j", "y"} & site.tensors)
    assert len(parts.sites) == 2
    assert len(shared.quantizes) == 4
    jolt(student)
    put_together(parts, student)
    grids = {
        (weight(node.inputs[1]).tobytes(), weight(node.inputs[2]).tobytes())
        for node in graph.nodes
        if node in shared.quantizes or (node in shared.others and node.op == "DequantizeLinear")
    }
    assert len(grids) == 1
    folded = run(FOLD, graph, Context(TARGET), GIVEN | {Fact.QDQ}).graph
    assert {"Concat", "MaxPool"} <= {node.op for node in folded.nodes}
    assert sum(node.op == "QuantizeLinear" for node in folded.nodes) == 1, "integers are joined and moved as they are"


def test_scales_that_are_equal_by_coincidence_are_learned_apart() -> None:
    before = model_by_hand("conv relu")
    graph = with_qdq(before, "conv two", "x r y", static(8), r="x", y="x")
    student, parts = take_apart(graph, before)
    assert len({id(quantizer) for _, quantizer in parts.sites}) == 3
    with torch.no_grad():
        for place, (_, quantizer) in enumerate(parts.sites):
            quantizer.log_scale.add_(place)
    put_together(parts, student)
    scales = [float(weight(node.inputs[1])) for node in graph.nodes if node.op == "QuantizeLinear"]
    assert sorted(round(np.log(scale / min(scales)), 3) for scale in scales) == [0, 1, 2]


def test_a_weight_of_two_layers_stays_one() -> None:
    text = (
        "(float[batch,5,6] x) => (float[batch,5,6] y) { [one] a = MatMul(x, q) [r] r = Relu(a) [two] y = MatMul(r, q) }"
    )
    before = read(text, {"q": floats(6, 6)})
    graph = with_qdq(before, "one two", "x r", static(8))
    student, parts = take_apart(graph, before)
    assert len(parts.weights) == 1
    jolt(student, 0.05)
    put_together(parts, student)
    assert_agrees_within(student, graph, normal(before, 5), 1e-4)


def assert_agrees_within(student: Simulation, graph: Graph, feeds: dict[str, Array], share: float) -> None:
    """As `assert_agrees`, where the last layer returns floats."""
    name, step = last_step(graph)
    expected = simulated(student, feeds, [name, "y"])
    found = executed(graph, feeds, [name])
    assert np.abs(found[name] - expected[name]).max() <= 1.001 * step
    assert np.mean(np.abs(found["y"] - expected["y"]) > share * np.abs(expected["y"]).max()) < 0.02


def test_weight_scales_are_raised_where_the_accumulator_could_overflow() -> None:
    """A narrow weight with a large bias: what comes back can hold it, and the integers are rounded anew."""
    before = read(
        "(float[batch,4,6,6] x) => (float[batch,8,4,4] y) { [conv] y = Conv(x, w, b) }",
        {"w": W["w"] * 1e-7, "b": W["b"] * 30},
    )
    graph = with_qdq(before, "conv", "x y", static(8))
    student, parts = take_apart(graph, before)
    ((node, module),) = parts.weights
    with torch.no_grad():
        module.quantizer.log_scale.sub_(5)
    learned = module.quantizer.learned().scale
    put_together(parts, student)
    scale = weight(node.inputs[1])
    assert (scale > 10 * learned).all()
    bias = next(n for n in graph.nodes if n.op == "DequantizeLinear" and weight_kind(n) == np.int32)
    values = weight(bias.inputs[0]).astype(np.float64)
    assert np.abs(values).max() <= 2**31 - 1 - 36 * 255 * 127
    np.testing.assert_allclose(values * weight(bias.inputs[1]), weight(before.tensors()["b"]), rtol=1e-4)
    expected = np.clip(np.rint(W["w"] * np.float32(1e-7) / scale.reshape(-1, 1, 1, 1)), -127, 127)
    np.testing.assert_array_equal(weight(node.inputs[0]), expected)
    assert_agrees(student, graph, normal(before, 5))


def weight_kind(node: Node) -> Any:
    return weight(node.inputs[0]).dtype if is_constant(node.inputs[0]) else None


# made by others

IMAGE = "(float[batch,4,6,6] x) => (float[batch,8,4,4] y)"


def others(body: str, weights: dict[str, Any], opset: int = 17, shape: str = IMAGE) -> Graph:
    """A Q/DQ graph as somebody else might write it; its nodes get names."""
    graph = read(f"{shape} {{ {body} }}", weights, opset)
    for place, node in enumerate(graph.nodes):
        node.name = node.name or f"{node.op}_{place}"
    return graph


def assert_goes_round(graph: Graph, size: float = 0.05) -> tuple[Simulation, Any]:
    """Untouched, it stays as it is; trained, it runs as it was simulated."""
    before, called, feeds = constants(graph), names(graph), normal(graph, 5)
    student, parts = take_apart(graph)
    np.testing.assert_allclose(simulated(student, feeds)["y"], executed(graph, feeds)["y"], rtol=1e-5, atol=1e-5)
    put_together(parts, student)
    assert_same_constants(constants(graph), before)
    student, parts = take_apart(graph)
    jolt(student, size)
    put_together(parts, student)
    assert names(graph) == called
    assert any(not np.array_equal(values, before[key]) for key, values in constants(graph).items())
    assert_agrees(student, graph, feeds)
    return student, parts


SIGNED = grid("x", -4, 4, format="int8", symmetric=True) | grid("y", -30, 30, format="int8", symmetric=True)
KERNEL = integers("w", (8, 4, 3, 3), axis=0)


def test_signed_activations_and_a_weight_per_tensor() -> None:
    graph = others(
        into("x") + stored("w") + "p = Conv(x_f, w_f, b)\n" + out_of("p"),
        SIGNED | integers("w", (8, 4, 3, 3)) | {"b": floats(8)},
    )
    _, parts = assert_goes_round(graph)
    assert [quantizer.steady for _, quantizer in parts.sites] == [True, True]
    assert list(parts.biases) == ["b"]


def test_no_zero_points() -> None:
    text = """
        q = QuantizeLinear(x, x_scale)
        f = DequantizeLinear(q, x_scale)
        v = DequantizeLinear<axis=0>(w, w_scale)
        y = Conv(f, v)
    """
    weights = {key: value for key, value in KERNEL.items() if key != "w_zero"} | {"x_scale": np.float32(0.02)}
    graph = others(text, weights)
    _, parts = take_apart(graph)
    assert parts.sites[0][0].form == FORMATS["uint8"]
    round_trip(graph)
    assert_runs_alike(graph)


def round_trip(graph: Graph) -> None:
    """Untouched, it stays as it is."""
    before = constants(graph)
    student, parts = take_apart(graph)
    put_together(parts, student)
    assert_same_constants(constants(graph), before)


def assert_runs_alike(graph: Graph) -> None:
    """Trained, the Q/DQ model returns what the simulation does; floats, but for their last bits."""
    student, parts = take_apart(graph)
    jolt(student, 0.05)
    put_together(parts, student)
    feeds = normal(graph, 5)
    expected, found = simulated(student, feeds)["y"], executed(graph, feeds)["y"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("without", ["QuantizeLinear", "DequantizeLinear"])
def test_a_zero_point_that_only_one_of_a_pair_writes_down(without: str) -> None:
    """0 is what it is if it is left out."""
    graph = others(
        into("x") + stored("w", 0) + "y = Conv(x_f, w_f)\n",
        KERNEL | {"x_scale": np.float32(0.02), "x_zero": np.uint8(0)},
    )
    for node in graph.nodes:
        if node.op == without and node.outputs[0].name in ("x_q", "x_f"):
            node.inputs.pop()
    round_trip(graph)
    assert_runs_alike(graph)


def test_signed_integers_that_an_attribute_asks_for() -> None:
    """Opset 21: `output_dtype` in place of a zero point."""
    text = """
        q = QuantizeLinear<output_dtype=3>(x, x_scale)
        f = DequantizeLinear(q, x_scale)
        v = DequantizeLinear<axis=0>(w, w_scale, w_zero)
        y = Conv(f, v)
    """
    graph = others(text, KERNEL | {"x_scale": np.float32(0.02)}, 21)
    student, parts = take_apart(graph)
    assert parts.sites[0][0].form == FORMATS["int8"]
    feeds = normal(graph, 5)
    np.testing.assert_allclose(simulated(student, feeds)["y"], executed(graph, feeds)["y"], rtol=1e-5, atol=1e-5)


def test_a_dequantize_that_two_layers_read() -> None:
    body = into("x") + stored("w", 0) + stored("v", 0) + "p = Conv(x_f, w_f)\nq = Conv(x_f, v_f)\ns = Add(p, q)\n"
    graph = others(body + out_of("s"), SIGNED | KERNEL | integers("v", (8, 4, 3, 3), axis=0, seed=3))
    _, parts = assert_goes_round(graph)
    assert len(parts.sites) == 2
    assert len(parts.weights) == 2


def test_integer_biases_of_others() -> None:
    """In units of the two scales for each channel, whichever way they were written; even with one scale for all."""
    unit = SIGNED["x_scale"] * KERNEL["w_scale"]
    bias = np.rint(floats(8) / unit).astype(np.int32)
    for scale, along in ((unit.astype(np.float32), "<axis=0>"), (unit.max().astype(np.float32), "")):
        graph = others(
            into("x") + stored("w", 0) + f"b_f = DequantizeLinear{along}(b, b_scale)\n"
            "p = Conv(x_f, w_f, b_f)\n" + out_of("p"),
            SIGNED | KERNEL | {"b": bias, "b_scale": scale},
        )
        student, parts = take_apart(graph)
        assert list(parts.biases) == ["b_f"]
        jolt(student, 0.05)
        put_together(parts, student)
        assert_agrees(student, graph, normal(graph, 5))


@pytest.mark.parametrize(
    "mover",
    ["Identity(x_q)", "MaxPool<kernel_shape=[1,1]>(x_q)", "Transpose<perm=[0,1,3,2]>(x_q)", "Clip(x_q, low, high)"],
)
def test_operators_that_stand_on_integers(mover: str) -> None:
    body = "x_q = QuantizeLinear(x, x_scale, x_zero)\n" + f"t = {mover}\nx_f = DequantizeLinear(t, x_scale, x_zero)\n"
    more = {"low": np.int8(-3), "high": np.int8(3)} if "Clip" in mover else {}
    graph = others(body + stored("w", 0) + "p = Conv(x_f, w_f)\n" + out_of("p"), SIGNED | KERNEL | more)
    student, parts = take_apart(graph)
    feeds = normal(graph, 5)
    np.testing.assert_allclose(simulated(student, feeds)["y"], executed(graph, feeds)["y"], rtol=1e-5, atol=1e-5)
    if more:
        assert parts.sites[0][0].form.bits == 3
    jolt(student, 0.05)
    put_together(parts, student)
    assert_agrees(student, graph, feeds)


def test_padding_of_integers_is_refused() -> None:
    """What is padded with is an integer, and means another number on each grid."""
    weights = grid("x", -1, 4) | KERNEL | {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    body = "x_q = QuantizeLinear(x, x_scale, x_zero)\n[pad] t = Pad(x_q, pads, x_zero)\n"
    graph = others(
        body + "x_f = DequantizeLinear(t, x_scale, x_zero)\n" + stored("w", 0) + "y = Conv(x_f, w_f)\n",
        weights,
        shape="(float[batch,4,6,6] x) => (float[batch,8,6,6] y)",
    )
    with pytest.raises(ModelError, match=r"'pad' \(Pad\) reads integers, and has no gradient\."):
        take_apart(graph)


def test_what_has_no_gradient_is_refused() -> None:
    weights = grid("x", -4, 4, format="int8", symmetric=True) | KERNEL
    body = "x_q = QuantizeLinear(x, x_scale, x_zero)\n"
    graph = others(body + "[conv] i = ConvInteger(x_q, w, x_zero)\ny = Cast<to=1>(i)\n", weights)
    with pytest.raises(
        ModelError, match=r"'conv' \(ConvInteger\) reads integers, and has no gradient\. Train the Q/DQ"
    ):
        take_apart(graph)


def test_scales_that_are_no_constants_are_refused() -> None:
    graph = others(
        "[q] x_q = QuantizeLinear(x, s)\nx_f = DequantizeLinear(x_q, s)\n" + stored("w", 0) + "y = Conv(x_f, w_f)\n",
        KERNEL,
        shape="(float[batch,4,6,6] x, float s) => (float[batch,8,4,4] y)",
    )
    with pytest.raises(ModelError, match=r"'q' \(QuantizeLinear\): its scale or zero point is no constant"):
        take_apart(graph)


def test_activations_of_more_bits_run_too() -> None:
    body = into("x") + stored("w", 0) + "y = Conv(x_f, w_f)\n"
    graph = others(body, grid("x", -4, 4, format="uint16") | KERNEL, 21)
    round_trip(graph)
    assert_runs_alike(graph)


def test_a_second_clip_leaves_fewer_bits() -> None:
    body = "x_q = QuantizeLinear(x, x_scale, x_zero)\nt = Clip(x_q, a, b)\nu = Clip(t, c, d)\n"
    limits = {"a": np.int8(-7), "b": np.int8(7), "c": np.int8(-1), "d": np.int8(1)}
    rest = "x_f = DequantizeLinear(u, x_scale, x_zero)\n" + stored("w", 0) + "p = Conv(x_f, w_f)\n" + out_of("p")
    graph = others(body + rest, SIGNED | KERNEL | limits)
    form = find_sites(graph)[0].form
    assert (form.bits, form.qmin, form.qmax) == (2, -1, 1)


def test_limits_that_are_no_format_are_refused() -> None:
    body = "x_q = QuantizeLinear(x, x_scale, x_zero)\n[cut] t = Clip(x_q, low)\n"
    rest = "x_f = DequantizeLinear(t, x_scale, x_zero)\n" + stored("w", 0) + "y = Conv(x_f, w_f)\n"
    graph = others(body + rest, SIGNED | KERNEL | {"low": np.int8(-7)})
    with pytest.raises(ModelError, match=r"'cut' \(Clip\): its limits \[-7\] fit no format of 2 to 8 bits"):
        find_sites(graph)


def test_grids_in_front_of_a_concat_are_one_only_where_they_were() -> None:
    shape = "(float[batch,3] x, float[batch,3] z) => (float[batch,6] y)"
    body = into("x", "z") + "p = Concat<axis=1>(x_f, z_f)\n" + out_of("p")
    same = grid("x", -4, 4)["x_scale"], grid("x", -4, 4)["x_zero"]
    weights = {f"{name}_{part}": value for name in "xzy" for part, value in zip(("scale", "zero"), same, strict=True)}
    assert len(find_sites(others(body, weights, shape=shape))) == 1
    assert len(find_sites(others(body, weights | grid("z", -1, 4), shape=shape))) == 2
    assert len(find_sites(others(body, weights | grid("y", -1, 4), shape=shape))) == 3


def test_the_graph_is_written_as_onnx() -> None:
    """Constants of 4 bits too."""
    graph, exact = quantized("linear", static(4))
    student, parts = take_apart(graph, exact)
    jolt(student)
    put_together(parts, student)
    onnx.checker.check_model(onnx.load_from_string(serialize(graph)), full_check=True)


def test_weights_begin_where_they_round_to_the_integers_that_were_found() -> None:
    graph, exact = quantized("conv", static(8))
    (node,) = [n for n in graph.nodes if n.op == "DequantizeLinear" and is_constant(n.inputs[0]) and n.name[0] == "w"]
    integers = weight(node.inputs[0]).copy()
    integers[0, 0] = np.clip(integers[0, 0] + 1, -127, 127)  # somebody rounded these otherwise
    node.inputs[0] = Constant("moved", integers)
    (kept,), (free,) = (take_apart(graph, exact, keep)[0].weights.values() for keep in (True, False))
    np.testing.assert_array_equal(kept.quantizer.integers(kept.values), integers)
    exactly = weight(exact.tensors()["w"])
    np.testing.assert_array_equal(free.values.detach().numpy(), exactly)
    np.testing.assert_array_equal(kept.values.detach().numpy()[1:], exactly[1:])


def test_every_constant_keeps_its_name() -> None:
    graph, exact = quantized("conv relu", static(8))
    names = {tensor.name for tensor in graph.weights()}
    student, parts = take_apart(graph, exact)
    jolt(student, 0.05)
    put_together(parts, student)
    assert {tensor.name for tensor in graph.weights()} == names


def test_a_free_weight_goes_back_to_its_floats_before_it_is_trained() -> None:
    """Until then it rounds to the integers that were found, which is what training is held against."""
    form = FORMATS["int8"]
    steps = Grid(form, np.asarray(0.5, np.float32), np.asarray(0, form.dtype))
    values, integers = np.array([0.6, -0.2, 1.4], np.float32), np.array([2, 0, 3], np.int8)
    for free in (True, False):
        module = Weight(values, steps, integers, free=free)
        assert module.quantizer.integers(module.values).tolist() == [2, 0, 3]
        begun = module.values.detach().numpy().copy()
        module.let_go()
        assert module.values.detach().numpy().tolist() == (values if free else begun).tolist()
    assert begun[0] > values[0]
