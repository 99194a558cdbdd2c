"""What counts as a layer, what belongs to it, and the sentence why something is none."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import parser

from onnxq.graph import Graph, from_model
from onnxq.layers import (
    LAYERS,
    WIDE,
    Layer,
    clip_limits,
    clips_at_zero,
    is_masking,
    layer_of,
    only_reader,
    pads_with_zeros,
    weight_obstacle,
)

ABSORBED = frozenset({"Relu", "Clip"})
WEIGHTS = (
    "float[2, 3] w = {1, 2, 3, 4, 5, 6}, float[3] b = {1, 2, 3}, float[1, 3] row = {1, 2, 3},"
    "float[1, 1, 3] deep = {1, 2, 3}, float[3, 1] column = {1, 2, 3}, float[2, 1, 1, 1] k = {1, 2},"
    "float[2] kb = {1, 2}, float16[2, 3] half = {1, 2, 3, 4, 5, 6}, float[2, 0] empty = {},"
    "double[2, 3] wide = {1, 2, 3, 4, 5, 6}, float[1, 2, 3] cube = {1, 2, 3, 4, 5, 6}, float16[3] hb = {1, 2, 3},"
    "float[3, 3] square = {1, 2, 3, 4, 5, 6, 7, 8, 9},"
    "float zero = {0}, float[1] six = {6}, float one = {1}, float minus = {-1}"
)


def graph_of(body: str, inputs: str = "float[N, 2] x", outputs: str = "float[N, 3] y") -> Graph:
    header = '<ir_version: 8, opset_import: ["" : 13, "com.microsoft" : 1]>'
    graph = from_model(parser.parse_model(f"{header} g ({inputs}) => ({outputs}) <{WEIGHTS}> {{ {body} }}"))
    for node in graph.nodes:
        node.name = node.outputs[0].name
    return graph


def layer(
    body: str, inputs: str = "float[N, 2] x", outputs: str = "float[N, 3] y"
) -> tuple[str, str | None, list[str]] | str:
    """Weight, bias and tail of the layer at the first node, or the sentence why it is none."""
    graph = graph_of(body, inputs, outputs)
    found = layer_of(graph, graph.nodes[0], ABSORBED)
    if not isinstance(found, Layer):
        return found
    assert found.data.name == "x"
    assert found.output is (found.tail[-1] if found.tail else found.node).outputs[0]
    return found.weight.name, found.bias.name if found.bias else None, [node.op for node in found.tail]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = MatMul(x, w)", ("w", None, [])),
        ("t = MatMul(x, w) y = Add(t, b)", ("w", "b", ["Add"])),
        ("t = MatMul(x, w) y = Add(b, t)", ("w", "b", ["Add"])),
        ("t = MatMul(x, w) y = Add(t, row)", ("w", "row", ["Add"])),
        ("t = MatMul(x, w) u = Add(t, b) y = Relu(u)", ("w", "b", ["Add", "Relu"])),
        ("t = MatMul(x, w) y = Relu(t)", ("w", None, ["Relu"])),
        ("t = MatMul(x, w) y = Clip(t, zero, six)", ("w", None, ["Clip"])),
        ("y = Gemm(x, w)", ("w", None, [])),
        ("y = Gemm(x, w, b)", ("w", "b", [])),
        ("t = Gemm(x, w, row) y = Relu(t)", ("w", "row", ["Relu"])),
        # not part of the layer
        ("t = MatMul(x, w) y = Add(t, t)", ("w", None, [])),
        ("t = MatMul(x, w) y = Sub(t, b)", ("w", None, [])),
        ("t = MatMul(x, w) y = Add(t, one)", ("w", None, [])),
        ("t = MatMul(x, w) y = Add(t, deep)", ("w", None, [])),  # adds an axis
        ("t = MatMul(x, w) y = Add(t, column)", ("w", None, [])),  # one number for each row
        ("t = MatMul(x, w) y = Add(t, square)", ("w", None, [])),
        ("t = MatMul(x, w) y = Clip(t, minus, six)", ("w", None, [])),
        ("t = MatMul(x, w) y = Sigmoid(t)", ("w", None, [])),
        ("t = Gemm(x, w) y = Add(t, b)", ("w", None, [])),
    ],
)
def test_linear_layers(body: str, expected: tuple[str, str | None, list[str]]) -> None:
    assert layer(body) == expected


def test_a_bias_with_as_many_axes_as_the_output_belongs_to_the_layer() -> None:
    body, wide = "t = MatMul(x, w) y = Add(t, deep)", "float[N, M, 3] y"
    assert layer(body, "float[N, M, 2] x", wide) == ("w", "deep", ["Add"])
    assert layer(body, "float x", wide) == ("w", None, [])  # nothing is known of its shape


@pytest.mark.parametrize(
    ("outputs", "tail"),
    [
        ("float[N, 3] y, float[N, 3] t", []),
        ("float[N, 3] y, float[N, 3] u", ["Add"]),
        ("float[N, 3] y", ["Add", "Relu"]),
    ],
)
def test_tensors_that_leave_the_model_end_the_layer(outputs: str, tail: list[str]) -> None:
    assert layer("t = MatMul(x, w) u = Add(t, b) y = Relu(u)", outputs=outputs) == ("w", "b" if tail else None, tail)


def test_tensors_that_somebody_else_reads_end_the_layer() -> None:
    body = "t = MatMul(x, w) y = Relu(t) z = Abs(t)"
    assert layer(body, outputs="float[N, 3] y, float[N, 3] z") == ("w", None, [])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = Conv(x, k)", ("k", None, [])),
        ("t = Conv(x, k, kb) y = Relu(t)", ("k", "kb", ["Relu"])),
        ("t = Conv(x, k) y = Add(t, one)", ("k", None, [])),
    ],
)
def test_convolutions(body: str, expected: tuple[str, str | None, list[str]]) -> None:
    assert layer(body, "float[1, 1, 4, 4] x", "float[1, 2, 4, 4] y") == expected


def test_what_absorbs_depends_on_the_target() -> None:
    graph = graph_of("t = MatMul(x, w) y = Relu(t)")
    found = layer_of(graph, graph.nodes[0], frozenset())
    assert isinstance(found, Layer)
    assert found.tail == ()


@pytest.mark.parametrize(
    ("body", "inputs", "sentence"),
    [
        ("y = Relu(x)", "float[N, 2] x", "Relu is no layer with a weight."),
        ("y = com.microsoft.MatMul(x, w)", "float[N, 2] x", "MatMul is no layer with a weight."),
        ("y = MatMul(w, x)", "float[3, 2] x", "Its weight is the first operand; integer kernels want it second."),
        (
            "y = MatMul(x, x)",
            "float[2, 2] x",
            "It multiplies two activations; in integers that saves no time and adds noise.",
        ),
        ("y = MatMul(w, w)", "float[2, 2] x", "Both operands are constants."),
        ("y = MatMul(x, half)", "float16[N, 2] x", "Its weight is float16, not float32."),
        ("y = MatMul(x, cube)", "float[N, 2] x", "Its weight has 3 axes; integer kernels want 2."),
        ("y = MatMul(x, b)", "float[N, 3] x", "Its weight has 1 axes; integer kernels want 2."),
        ("y = MatMul(x, empty)", "float[N, 2] x", "Its weight is empty."),
        ("y = Gemm(x, empty)", "float[N, 2] x", "Its weight is empty."),
        ("y = Gemm <transA = 1> (x, w)", "float[2, N] x", "A Gemm with transA or alpha has no integer kernel."),
        ("y = Gemm <alpha = 0.5> (x, w)", "float[N, 2] x", "A Gemm with transA or alpha has no integer kernel."),
        ("y = Gemm <beta = 0.5> (x, w, b)", "float[N, 2] x", "Its bias is no constant row."),
        ("y = Gemm(x, w, column)", "float[3, 2] x", "Its bias is no constant row."),
        ("y = Gemm(x, w, z)", "float[N, 2] x, float[3] z", "Its bias is no constant row."),
        ("y = Gemm(x, w, hb)", "float[N, 2] x", "Its bias is no constant row."),
        ("y = Conv(x, k, z)", "float[1, 1, 4, 4] x, float[2] z", "Its bias is no constant."),
    ],
)
def test_what_is_no_layer_says_why(body: str, inputs: str, sentence: str) -> None:
    assert layer(body, inputs) == sentence


def test_a_weight_that_is_made_on_each_run_is_none() -> None:
    graph = graph_of("made = Transpose(w) y = MatMul(x, made)")
    said = weight_obstacle(graph.nodes[1])
    assert said == "Its weight is not stored, but made by Transpose on each run."


WIDE_CASES: dict[str, tuple[str, str, str, list[str] | str]] = {
    "MatMul": ("y = MatMul(x, half)", "float16[N, 2] x", "float16[N, 3] y", ["half", "", ""]),
    "MatMul with bias": (
        "t = MatMul(x, half) y = Add(t, hb)",
        "float16[N, 2] x",
        "float16[N, 3] y",
        ["half", "hb", "Add"],
    ),
    "Gemm": ("y = Gemm(x, half, hb)", "float16[N, 2] x", "float16[N, 3] y", ["half", "hb", ""]),
    "float32": ("y = Gemm(x, w, b)", "float[N, 2] x", "float[N, 3] y", ["w", "b", ""]),
    "types that differ": ("y = Gemm(x, w, hb)", "float[N, 2] x", "float[N, 3] y", "Its bias is no constant row."),
    "wider still": (
        "t = Cast<to=11>(x) y = MatMul(t, wide)",
        "float[N, 2] x",
        "double[N, 3] y",
        "Its weight is float64, not float32 or float16.",
    ),
}


@pytest.mark.parametrize("case", WIDE_CASES)
def test_weights_alone_in_integers_may_be_in_half_precision(case: str) -> None:
    """Weight, bias and tail; where activations become integers too, only float32 will do."""
    body, inputs, outputs, expected = WIDE_CASES[case]
    graph = graph_of(body, inputs, outputs)
    node = next(node for node in graph.nodes if node.op in LAYERS)
    found = layer_of(graph, node, ABSORBED, WIDE)
    if not isinstance(found, Layer):
        assert found == expected
        return
    names = [found.weight.name, found.bias.name if found.bias else "", "".join(node.op for node in found.tail)]
    assert names == expected
    narrow = layer_of(graph, node, ABSORBED)
    assert isinstance(narrow, Layer) if case == "float32" else narrow == "Its weight is float16, not float32."


def test_a_transposed_weight_has_its_columns_first() -> None:
    # w is [2, 3]: transposed it has 2 columns, which a bias of 3 does not fit
    assert layer("y = Gemm <transB = 1> (x, w, b)", "float[N, 3] x") == "Its bias is no constant row."
    assert layer("y = Gemm <transB = 1> (x, w, kb)", "float[N, 3] x") == ("w", "kb", [])


def test_a_layer_knows_whether_it_is_linear() -> None:
    for body, inputs, linear in (
        ("y = Conv(x, k)", "float[1, 1, 4, 4] x", False),
        ("y = Gemm(x, w)", "float[N, 2] x", True),
    ):
        graph = graph_of(body, inputs)
        found = layer_of(graph, graph.nodes[0], ABSORBED)
        assert isinstance(found, Layer)
        assert found.linear is linear
        assert weight_obstacle(graph.nodes[0]) is None


def test_the_only_reader() -> None:
    graph = graph_of("t = Relu(x) u = Abs(t) y = Add(u, u) z = Neg(x)", outputs="float[N, 3] y, float[N, 3] z")
    tensors = graph.tensors()
    reader = only_reader(graph, tensors["t"])
    assert reader is not None
    assert reader.op == "Abs"
    assert only_reader(graph, tensors["x"]) is None  # two readers
    assert only_reader(graph, tensors["u"]) is None  # one that reads it twice
    assert only_reader(graph, tensors["z"]) is None  # leaves the model


@pytest.mark.parametrize(
    ("body", "limits", "absorbed"),
    [
        ("y = Relu(x)", (0, np.inf), True),
        ("y = Clip(x)", (-np.inf, np.inf), False),
        ("y = Clip(x, zero, six)", (0, 6), True),
        ("y = Clip(x, , six)", (-np.inf, 6), False),
        ("y = Clip(x, zero)", (0, np.inf), True),
        ("y = Clip(x, zero, zero)", (0, 0), False),
        ("y = Clip(x, minus, one)", (-1, 1), False),
        ("y = Clip <min = 0.0, max = 6.0> (x)", (0, 6), True),
        ("y = Clip <max = 6.0> (x)", (-np.inf, 6), False),
        ("y = Clip(x, z)", None, False),
        ("y = Sigmoid(x)", None, False),
    ],
)
def test_limits_of_activations(body: str, limits: tuple[float, float] | None, absorbed: bool) -> None:
    node = graph_of(body, "float[N, 2] x, float z").nodes[0]
    assert clip_limits(node) == limits
    assert clips_at_zero(node) is absorbed


@pytest.mark.parametrize(
    ("body", "masking"),
    [
        ("t = Add(x, x) y = Softmax(t)", True),
        ("t = Add(x, x) y = Relu(t)", False),
        ("t = Sub(x, x) y = Softmax(t)", False),
        ("t = Add(x, x) u = Softmax(t) y = Add(t, u)", False),
        ("y = Add(x, x)", False),
    ],
)
def test_masks_are_added_before_softmax_alone(body: str, masking: bool) -> None:
    assert is_masking(graph_of(body).nodes[0]) is masking


@pytest.mark.parametrize(
    ("body", "zeros"),
    [
        ("y = Pad(x, p)", True),
        ("y = Pad(x, p, zero)", True),
        ("y = Pad(x, p, six)", False),
        ("y = Pad(x, p, z)", False),
        ('y = Pad <mode = "reflect"> (x, p, six)', True),  # no number of its own
        ("y = Pad <pads = [0, 1, 0, 1]> (x)", True),
        ("y = Pad <pads = [0, 1, 0, 1], value = 6.0> (x)", False),
    ],
)
def test_pads_that_fill_with_zeros(body: str, zeros: bool) -> None:
    assert pads_with_zeros(graph_of(body, "float[N, 2] x, float z, int64[4] p").nodes[0]) is zeros
