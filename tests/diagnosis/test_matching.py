"""Names as tools write them, and layers whose names say nothing."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.diagnosis.constants import Numbers
from onnxq.diagnosis.matching import bare, float_layers, pair_up, plain_weight
from onnxq.diagnosis.stored import StoredLayer
from onnxq.graph import Node
from tests.onnx_text import Array, floats, read

KNOWN = {"/a/Conv_output_0", "w", "b_1", "x", "y", "conv"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("w", "w"),
        ("/a/Conv_output_0_quantized", "/a/Conv_output_0"),
        ("/a/Conv_output_0_QuantizeLinear_Output", "/a/Conv_output_0"),
        ("y_QuantizeLinear_Input", "y"),
        ("w_DequantizeLinear_Output", "w"),
        ("w_dequantized", "w"),
        ("x_unquantized", "x"),
        ("w_balanced_quantized_transposed", "w"),
        ("w_balanced_quantized_padded", "w"),
        ("conv_quant", "conv"),
        ("conv_1", "conv"),
        ("/a/Conv_output_0_output_quantized", "/a/Conv_output_0"),
        ("/a/Conv_output_0quant_scaled_output", "/a/Conv_output_0"),
        ("q_output_x", "x"),
        ("dq_output_x_1", "x"),
        ("b_1_quantized", "b_1"),
        ("other", None),
        ("other_quantized", None),
        ("wx_quantized", None),
    ],
)
def test_the_float_name_inside(name: str, expected: str | None) -> None:
    assert bare(name, KNOWN) == expected


def stored(weight: Array, *names: str, op: str = "MatMul") -> StoredLayer:
    return StoredLayer(Node(op, "n"), names, Numbers(weight), None, None)


LAYERS = "(float[n,16] x) => (float[n,16] y) { [a] p = MatMul(x, u) [b] q = MatMul(p, v) [c] y = Gemm<transB=1>(q, w) }"
WEIGHTS = {"u": floats(16, 16, seed=1), "v": floats(16, 16, seed=2), "w": floats(16, 16, seed=3)}


def test_by_name_then_by_place() -> None:
    graph = read(LAYERS, WEIGHTS)
    third, first, second = (
        stored(WEIGHTS["w"].T, "zzz", "w_quantized"),
        stored(WEIGHTS["u"] * 1.01, "nothing"),
        stored(WEIGHTS["v"], "nothing", "else"),
    )
    pairs, lost = pair_up(graph, [third, first, second])
    assert [(pair.layer.node.name, pair.stored) for pair in pairs] == [("a", first), ("b", second), ("c", third)]
    assert lost == []
    np.testing.assert_array_equal(pairs[2].exact, WEIGHTS["w"].T)


def test_weights_that_are_nothing_alike_are_lost() -> None:
    graph = read(LAYERS, WEIGHTS)
    strange, convolution = stored(floats(16, 16, seed=9), "nothing"), stored(floats(4, 4, 3, 3), "v", op="Conv")
    pairs, lost = pair_up(graph, [strange, convolution])
    assert pairs == []
    assert lost == [strange, convolution]


def test_shared_names_say_nothing() -> None:
    graph = read(
        "(float[n,16] x) => (float[n,16] y) { [a] p = MatMul(x, u) [b] y = MatMul(p, u) }", {"u": WEIGHTS["u"]}
    )
    second, first = stored(WEIGHTS["u"], "b", "u_quantized"), stored(WEIGHTS["u"] * 2, "u_quantized")
    pairs, lost = pair_up(graph, [second, first])
    assert [pair.stored for pair in pairs] == [first, second]
    for name in "ab":
        pairs, lost = pair_up(graph, [stored(WEIGHTS["u"], "u_quantized", name)])
        assert [pair.layer.node.name for pair in pairs] == [name]
        assert lost == []


def test_three_of_a_kind_take_three_places() -> None:
    graph = read(LAYERS.replace("Gemm<transB=1>", "MatMul"), dict.fromkeys("uvw", WEIGHTS["u"]))
    three = [stored(WEIGHTS["u"], "nothing") for _ in range(4)]
    pairs, lost = pair_up(graph, three)
    assert [pair.stored for pair in pairs] == three[:3]
    assert lost == three[3:]


def test_a_kernel_is_no_matrix() -> None:
    graph = read("(float[n,3,4,4] x) => (float[n,2,4,4] y) { [a] y = Conv(x, k) }", {"k": floats(2, 3, 1, 1)})
    pairs, lost = pair_up(graph, [stored(floats(2, 3, 1, 1), "a")])
    assert (pairs, len(lost)) == ([], 1)


def test_no_layer_is_taken_twice() -> None:
    graph = read(LAYERS, WEIGHTS)
    one, other = stored(WEIGHTS["u"], "a"), stored(WEIGHTS["u"], "a")
    pairs, lost = pair_up(graph, [one, other])
    assert [pair.stored for pair in pairs] == [one]
    assert lost == [other]
    assert [plain_weight(layer).shape for layer in float_layers(graph)] == [(16, 16)] * 3
