"""Where channels can be rescaled, and where something stands in the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxq.channels import Space, check_balance, divided, input_channels, layers_of, scaled_inputs, spaces
from onnxq.errors import RecipeError
from onnxq.graph import Graph, Node
from onnxq.layers import Layer
from onnxq.plan import BalancePlan
from tests.onnx_text import Array, execute, floats, read

PICTURE, ROWS = "n,4,6,6", "n,5,4"
CONVS = {"w1": floats(8, 4, 3, 3), "b1": floats(8), "w2": floats(6, 8, 1, 1, seed=1)}
MATRICES = {"w1": floats(4, 8), "b1": floats(8), "w2": floats(8, 6, seed=1)}


def pictures(body: str, outputs: str = "float[n,c,h,w] y", weights: dict[str, Any] | None = None) -> Graph:
    return read(f"(float[{PICTURE}] x) => ({outputs}) {{ {body} }}", CONVS | (weights or {}))


def rows(body: str, outputs: str = "float[n,t,c] y", weights: dict[str, Any] | None = None) -> Graph:
    return read(f"(float[{ROWS}] x) => ({outputs}) {{ {body} }}", MATRICES | (weights or {}))


def names(found: tuple[Layer | Node, ...]) -> list[str]:
    """Nodes by name; those of layers are the ones with the weight."""
    return [found.node.name if isinstance(found, Layer) else found.name for found in found]


def the_only(graph: Graph) -> Space:
    (found,) = spaces(graph)
    return found


FOUND: dict[str, Callable[[], Graph]] = {
    "Conv, Conv": lambda: pictures("[one] c = Conv(x, w1) [two] y = Conv(c, w2)"),
    "Relu between": lambda: pictures("[one] c = Conv(x, w1, b1) [r] r = Relu(c) [two] y = Conv(r, w2)"),
    "LeakyRelu and a pool": lambda: pictures(
        "[one] c = Conv(x, w1) [l] l = LeakyRelu<alpha=0.2>(c)"
        " [p] p = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(l) [two] y = Conv(p, w2)"
    ),
    "MatMul with a bias": lambda: rows("[one] m = MatMul(x, w1) [add] a = Add(m, b1) [two] y = MatMul(a, w2)"),
    "Relu behind a MatMul": lambda: rows("[one] m = MatMul(x, w1) [r] r = Relu(m) [two] y = MatMul(r, w2)"),
}


@pytest.mark.parametrize("case", FOUND)
def test_between_two_layers(case: str) -> None:
    found = the_only(FOUND[case]())
    assert (names(found.makers), names(found.readers)) == (["one"], ["two"])
    assert (found.axis, found.channels) == (1 if found.readers[0].node.op == "Conv" else 2, 8)
    assert found.limits == {}
    assert found.limit == np.inf


def test_all_tensors_between_belong_to_it() -> None:
    found = the_only(FOUND["LeakyRelu and a pool"]())
    assert found.tensors == ("c", "l", "p")
    assert found.name == "c"


TAIL = "[two] y = Conv(c, w2)"
REFUSED: dict[str, Callable[[], Graph]] = {
    "the tensor is an output": lambda: pictures(f"c = Conv(x, w1) {TAIL}", "float[n,c,h,w] y, float[n,8,h,w] c"),
    "somebody else reads it": lambda: pictures(
        f"c = Conv(x, w1) {TAIL} z = Sigmoid(c)", "float[n,c,h,w] y, float[n,8,h,w] z"
    ),
    "somebody else reads it behind a Relu": lambda: pictures(
        "c = Conv(x, w1) r = Relu(c) y = Conv(r, w2) z = Sigmoid(r)", "float[n,c,h,w] y, float[n,8,h,w] z"
    ),
    "the graph is fed with it": lambda: pictures("y = Conv(x, w1)"),
    "the graph is fed with one side of a sum": lambda: read(
        f"(float[{PICTURE}] x, float[n,8,4,4] z) => (float[n,c,h,w] y)"
        " { c = Conv(x, w1) a = Add(c, z) y = Conv(a, w2) }",
        CONVS,
    ),
    "what lies between is no homogeneous operator": lambda: pictures("c = Conv(x, w1) s = Sigmoid(c) y = Conv(s, w2)"),
    "the Clip does not start at 0": lambda: pictures(
        "c = Conv(x, w1) k = Clip(c, low, six) y = Conv(k, w2)", weights={"low": np.float32(-1), "six": np.float32(6)}
    ),
    "the Clip lets nothing through": lambda: pictures(
        "c = Conv(x, w1) k = Clip(c, zero, zero) y = Conv(k, w2)", weights={"zero": np.float32(0)}
    ),
    "MaxPool says where, too": lambda: pictures(
        "c = Conv(x, w1) p, i = MaxPool<kernel_shape=[2,2]>(c) y = Conv(p, w2)", "float[n,c,h,w] y, int64[a,b,c,d] i"
    ),
    "a sum of unequal shapes": lambda: pictures(
        "c = Conv(x, w1) g = GlobalAveragePool(c) a = Add(c, g) y = Conv(a, w2)"
    ),
    "two activations are multiplied": lambda: pictures("c = Conv(x, w1) m = Mul(c, c) y = Conv(m, w2)"),
    "the second input of the layer": lambda: read(
        "(float[n,4] x) => (float[n,n] y) { [one] a = Gemm(x, w1) [turn] t = Transpose(a) y = MatMul(a, t) }",
        MATRICES,
    ),
    "nobody reads it with a weight": lambda: pictures("c = Conv(x, w1) y = Relu(c)"),
    "one number for all channels": lambda: rows(
        "m = MatMul(x, w1) a = Add(m, half) y = MatMul(a, w2)", weights={"half": np.float32(0.5)}
    ),
    "a row along the width of a picture": lambda: read(
        "(float[n,4,8,8] x) => (float[n,c,h,w] y) { c = Conv(x, p) a = Add(c, b1) y = Conv(a, w2) }",
        CONVS | {"p": floats(8, 4, 1, 1)},
    ),
    "a norm along the width of a picture": lambda: read(
        "(float[n,8,8,8] x) => (float[n,c,h,w] y) { l = LayerNormalization(x, b1, b1) y = Conv(l, w2) }", CONVS
    ),
    "channels along two axes": lambda: rows(
        "m = MatMul(x, w1) r = Relu(m) y = Conv(r, k)", weights={"w1": floats(4, 5), "k": floats(3, 5, 1)}
    ),
    "a pool along the rows": lambda: rows(
        "m = MatMul(x, w1) p = MaxPool<kernel_shape=[3], pads=[1,1]>(m) y = MatMul(p, w2)"
    ),
    "a norm of two axes": lambda: rows(
        "l = LayerNormalization<axis=1>(x, g) y = MatMul(l, w1)", weights={"g": floats(5, 4)}
    ),
    "pooled pictures of several batches in one row": lambda: read(
        "(float[2,4,6,6] x) => (float[a,b] y) { c = Conv(x, w1) g = GlobalAveragePool(c) f = Flatten<axis=0>(g)"
        " y = Gemm(f, w2) }",
        CONVS | {"w2": floats(16, 3)},
    ),
    "a constant that a Relu reads": lambda: read(
        "(float[1,4,6,6] x) => (float[n,c,h,w] y) { c = Conv(x, w1) k = Relu(full) a = Add(c, k) y = Conv(a, w2) }",
        CONVS | {"full": floats(1, 8, 4, 4)},
    ),
    "pooled pictures that are shuffled": lambda: read(
        "(float[4,4,6,6] x) => (float[n,c,h,w] y)"
        " { c = Conv(x, w1) g = GlobalAveragePool(c) f = Reshape(g, shape) y = Conv(f, w2) }",
        CONVS | {"shape": np.array([1, 8, 2, 2])},
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_leaves_alone(case: str) -> None:
    assert spaces(REFUSED[case]()) == []


def test_a_tensor_that_a_body_captures_keeps_its_values() -> None:
    then, other = "() => (float[a,b,c,d] t) { t = Relu(c) }", "() => (float[a,b,c,d] u) { u = Neg(x) }"
    body = f"c = Conv(x, w1) y = Conv(c, w2) z = If(q)<then_branch = a {then}, else_branch = b {other}>"
    head = f"(float[{PICTURE}] x, bool q) => (float[n,c,h,w] y, float[a,b,c,d] z)"
    assert spaces(read(f"{head} {{ {body} }}", CONVS)) == []


def test_a_residual_trunk_is_one_space() -> None:
    body = """
        [stem] a = Conv(x, stem) [r] r = Relu(a)
        [up1] b = Conv(r, up) [r1] c = Relu(b) [down1] d = Conv(c, down) [add1] e = Add(r, d)
        [up2] f = Conv(e, up) [r2] g = Relu(f) [down2] h = Conv(g, down) [add2] i = Sum(h, e)
        [end] y = Conv(i, w2)
    """
    weights = {"stem": floats(8, 4, 1, 1), "up": floats(16, 8, 1, 1), "down": floats(8, 16, 1, 1)}
    trunk, *inner = spaces(pictures(body, weights=weights))
    assert trunk.tensors == ("a", "r", "d", "e", "h", "i")
    assert (names(trunk.makers), names(trunk.readers)) == (["stem", "down1", "down2"], ["up1", "up2", "end"])
    assert [(space.tensors, space.channels) for space in inner] == [(("b", "c"), 16), (("f", "g"), 16)]


def test_a_tensor_added_to_itself() -> None:
    found = the_only(pictures("[one] c = Conv(x, w1) [twice] a = Add(c, c) [two] y = Conv(a, w2)"))
    assert (found.tensors, names(found.makers), names(found.readers)) == (("c", "a"), ["one"], ["two"])


def test_a_depthwise_chain_with_clips() -> None:
    body = """
        [up] a = Conv(x, w1) [k1] b = Clip(a, zero, six) [deep] c = Conv<group=8, pads=[1,1,1,1]>(b, wd)
        [k2] d = Clip(c, zero, four) [down] y = Conv(d, w2)
    """
    ends = {"zero": np.float32(0), "six": np.float32(6), "four": np.float32(4)}
    first, second = spaces(pictures(body, weights={"wd": floats(8, 1, 3, 3)} | ends))
    assert (first.tensors, first.limits, first.limit) == (("a", "b"), {"b": 6.0}, 6.0)
    assert (second.tensors, second.limits) == (("c", "d"), {"d": 4.0})
    assert names(first.readers) == names(second.makers) == ["deep"]


@pytest.mark.parametrize("opset", [6, 13])
def test_limits_of_a_clip_in_every_opset(opset: int) -> None:
    clip = "Clip<min=0.0, max=6.0>(c)" if opset < 11 else 'Clip(c, "", six)'
    text = f"(float[{PICTURE}] x) => (float[n,c,h,w] y) {{ c = Conv(x, w1) k = {clip} r = Relu(k) y = Conv(r, w2) }}"
    found = spaces(read(text, CONVS | ({} if opset < 11 else {"six": np.float32(6)}), opset))
    # a Clip without a lower end lets negative values through, whatever the Relu behind it does
    assert [space.limits for space in found] == ([{"k": 6.0}] if opset < 11 else [])


QUERY = "[q] q = MatMul(n, w1) [k] k = MatMul(n, wk) [v] v = MatMul(n, wk) t = Add(q, k) y = Mul(t, v)"
NORMS = {
    "LayerNormalization": "[norm] n = LayerNormalization(x, g, s)",
    "LayerNormalization without a bias": "[norm] n = LayerNormalization(x, g)",
    "LayerNormalization that tells the mean": "[norm] n, mean = LayerNormalization(x, g, s)",
    "RMSNorm": "z = Mul(x, x) [norm] n = Mul(z, g)",
    "another number for each place": "z = Mul(x, x) [norm] n = Mul(places, z)",
    "a row that is added": "z = Mul(x, x) [m] m = Mul(z, g) [norm] n = Add(s, m)",
}


@pytest.mark.parametrize("case", NORMS)
def test_a_row_before_query_key_and_value(case: str) -> None:
    graph = rows(
        f"{NORMS[case]} {QUERY}", weights={"wk": floats(4, 8), "g": floats(4), "s": floats(4), "places": floats(5, 4)}
    )
    found = the_only(graph)
    assert names(found.readers) == ["q", "k", "v"]
    assert names(found.makers)[-1] == "norm"
    assert (found.axis, found.channels) == (2, 4)


def test_a_row_takes_part_beside_layers() -> None:
    body = (
        "[one] m = MatMul(x, w1) [add] a = Add(m, b1) [r] r = Relu(m) [two] y = MatMul(a, w2) [three] z = MatMul(r, w2)"
    )
    found = the_only(rows(body, "float[n,t,6] y, float[n,t,6] z"))
    assert names(found.makers) == ["one", "add"], "the Add is no bias: somebody else reads the product"
    assert names(found.readers) == ["two", "three"]


@pytest.mark.parametrize("flat", ["Flatten(g)", "Reshape(g, shape)"])
def test_pictures_pooled_into_rows(flat: str) -> None:
    body = f"[one] c = Conv(x, w1) [p] g = GlobalAveragePool(c) [f] f = {flat} [fc] y = Gemm<transB=1>(f, wt)"
    weights = {"wt": floats(3, 8), "shape": np.array([0, -1])}
    found = the_only(pictures(body, "float[n,3] y", weights))
    assert (found.tensors, found.axis, found.channels) == (("c", "g", "f"), 1, 8)
    assert (names(found.makers), names(found.readers)) == (["one"], ["fc"])


LAYERS: dict[str, tuple[str, Array, int]] = {
    "MatMul": ("MatMul(x, w)", floats(4, 6), 4),
    "Gemm": ("Gemm(x, w)", floats(4, 6), 4),
    "Gemm, transposed": ("Gemm<transB=1>(x, w)", floats(6, 4), 4),
    "Gemm, square and transposed": ("Gemm<transB=1>(x, w)", floats(4, 4), 4),
    "Conv": ("Conv(x, w)", floats(6, 4, 3, 3), 4),
    "Conv 1d": ("Conv(x, w)", floats(6, 4, 3), 4),
    "Conv 3d": ("Conv(x, w)", floats(6, 4, 2, 2, 2), 4),
    "grouped Conv": ("Conv<group=2>(x, w)", floats(6, 2, 3, 3), 4),
    "depthwise Conv": ("Conv<group=4>(x, w)", floats(8, 1, 3, 3), 4),
}
SHAPES = {2: (3, 4), 3: (3, 4, 9), 4: (3, 4, 6, 6), 5: (3, 4, 5, 5, 5)}


@pytest.mark.parametrize("case", LAYERS)
def test_the_inputs_of_a_weight(case: str) -> None:
    text, values, channels = LAYERS[case]
    shape = SHAPES[values.ndim]
    graph = read(f"(float[{','.join(map(str, shape))}] x) => (float y) {{ y = {text} }}", {"w": values})
    (layer,) = layers_of(graph)
    assert input_channels(layer) == channels
    factors, x = np.array([1, 2, 4, 8], np.float32), floats(*shape)
    scaled = scaled_inputs(layer, factors)
    assert (scaled.shape, scaled.dtype) == (values.shape, np.float32)
    other = read(f"(float[{','.join(map(str, shape))}] x) => (float y) {{ y = {text} }}", {"w": scaled})
    divided_input = x / factors.reshape(-1, *[1] * (x.ndim - 2))
    np.testing.assert_allclose(run(other, divided_input), run(graph, x), rtol=1e-4, atol=1e-4)


def run(graph: Graph, x: Array) -> Array:
    """The output for an input."""
    (y,) = execute(graph, {"x": x})
    return y


def plan(*factors: float, multiplies: bool = False) -> BalancePlan:
    return BalancePlan(factors=list(factors), multiplies=multiplies, reason="")


def test_what_tensors_are_divided_by() -> None:
    graph = FOUND["LeakyRelu and a pool"]()
    eight = [float(n) for n in range(1, 9)]
    assert divided(graph, {"c": plan(*eight)}) == dict.fromkeys(("c", "l", "p"), (1, eight))
    assert divided(FOUND["Relu behind a MatMul"](), {"m": plan(*eight)})["r"] == (2, eight)
    assert divided(graph, {}) == {}
    assert divided(graph, {"l": plan(*eight)}) == {}, "spaces go by the name of their first tensor"
    assert divided(graph, {"c": plan(*eight, multiplies=True)}) == {}, "a Mul leaves the tensor as it was"


FOUR, EIGHT = [1.0, 2.0, 3.0, 4.0], [1.0] * 8
UNFIT = {
    "of another number": ({"m": plan(*FOUR)}, "tensor 'm' with 4 factors, but in this model it has 8 channels"),
    "of no space": ({"x": plan(*FOUR)}, "tensor 'x' with 4 factors, but in this model it has no channels"),
    "of an inner tensor of a space": ({"r": plan(*EIGHT)}, "tensor 'r' with 8 factors, but in this model it has no"),
    "of a Mul": (
        {"x": plan(*EIGHT, multiplies=True)},
        "tensor 'x' with 8 factors, but in this model it has 4 channels",
    ),
    "of no layer": ({"y": plan(*FOUR, multiplies=True)}, "tensor 'y' with 4 factors, but in this model it has no"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_factors_that_do_not_fit_are_named(case: str) -> None:
    balance, words = UNFIT[case]
    graph = FOUND["Relu behind a MatMul"]()
    check_balance(graph, {"m": plan(*EIGHT), "x": plan(*FOUR, multiplies=True)})
    with pytest.raises(RecipeError, match=words):
        check_balance(graph, balance)
