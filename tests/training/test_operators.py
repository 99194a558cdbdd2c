"""Each operator against ONNX Runtime on a model of one node, and its gradient against differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxq.errors import UnsupportedModel
from onnxq.graph import Graph, from_model, to_model
from onnxq.runtime import Session
from tests.training.operator_cases import CASES, CHANNELS, PICTURE, Array, Case, X, case, f, i, layer, s, u

torch = pytest.importorskip("torch", reason="training needs PyTorch")

from onnxq.training.fidelity import difference  # noqa: E402
from onnxq.training.interpreter import Interpreter  # noqa: E402
from onnxq.training.operators import OPERATORS, Call  # noqa: E402

UNKNOWN_HERE = {"Swish": "ONNX Runtime has no kernel for it"}


def graph_of(item: Case) -> tuple[Graph, dict[str, Array]]:
    """The model of one node, and what it is fed."""
    op, opset, inputs, attributes, outputs = item
    feeds = {f"x{place}": np.array(value) for place, value in enumerate(inputs) if value is not None}
    names = ["" if value is None else f"x{place}" for place, value in enumerate(inputs)]
    node = helper.make_node(op, names, [f"y{place}" for place in range(outputs)], "node", **attributes)
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in feeds.items()
    ]
    made = helper.make_graph([node], "one", infos, [onnx.ValueInfoProto(name=name) for name in node.output])
    return from_model(helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)), feeds


def title(item: Case) -> str:
    return "-".join([item[0], str(item[1]), *(f"{name}={value}" for name, value in item[3].items() if name != "value")])


@pytest.mark.parametrize("item", CASES, ids=title)
def test_an_operator_computes_what_the_runtime_computes(item: Case) -> None:
    graph, feeds = graph_of(item)
    expected = Session(to_model(graph).SerializeToString(), optimize=False, threads=1).run(feeds)
    found = Interpreter(graph)({name: torch.from_numpy(value) for name, value in feeds.items()})
    for name, value in expected.items():
        own = found[name].numpy()
        assert (own.dtype, own.shape) == (value.dtype, value.shape)
        assert difference(value, own) < 2e-5


def test_every_operator_has_a_case() -> None:
    assert {item[0] for item in CASES} | {*UNKNOWN_HERE} == {*OPERATORS}


SMOOTH = [
    *(case(op, 17, u(2, 3)) for op in ("Erf", "Sigmoid", "Softplus", "HardSwish", "Reciprocal")),
    case("Conv", 11, f(1, 2, 5, 4), f(3, 2, 3, 2), f(3), pads=[1, 0, 0, 1], strides=[2, 1]),
    case("ConvTranspose", 11, f(1, 2, 3, 3), f(2, 2, 3, 3), strides=[2, 2], pads=[1, 1, 0, 0], output_padding=[1, 0]),
    case("AveragePool", 12, f(1, 2, 5, 5), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1),
    case("BatchNormalization", 9, f(2, 3, 2, 2), f(3), f(3), f(3), u(3)),
    case("LayerNormalization", 17, f(2, 4), f(4), f(4)),
    case("RMSNormalization", 23, f(2, 4), f(4)),
    case("Gemm", 13, f(3, 2), f(4, 2), f(4), transB=1, alpha=0.5),
    case("Softmax", 11, f(2, 2, 2)),
    case("Attention", 23, f(1, 2, 2, 3), f(1, 1, 2, 3), f(1, 1, 2, 3), is_causal=1),
    case("GRU", 14, f(2, 1, 2), f(1, 6, 2), f(1, 6, 2), f(1, 12), hidden_size=2),
    case("LSTM", 14, f(2, 1, 2), f(1, 8, 2), f(1, 8, 2), f(1, 16), hidden_size=2),
    case("ReduceL2", 11, f(2, 3), axes=[1]),
]


@pytest.mark.parametrize("item", SMOOTH, ids=title)
def test_a_gradient_is_that_of_differences(item: Case) -> None:
    op, opset, inputs, attributes, outputs = item
    given = [torch.from_numpy(np.array(value)).double() for value in inputs]
    for tensor in given[:3] if op == "BatchNormalization" else given:  # its statistics are not trained
        tensor.requires_grad_()

    def run(*tensors: Any) -> Any:
        result = OPERATORS[op](Call(tensors, attributes, opset, outputs))
        return result[0] if isinstance(result, tuple) else result

    assert torch.autograd.gradcheck(run, given)


def test_swish_is_x_times_its_sigmoid() -> None:
    x = torch.from_numpy(f(5))
    result = OPERATORS["Swish"](Call((x,), {"alpha": 2.0}, 24, 1))
    assert torch.allclose(result, x * torch.sigmoid(2 * x))


def test_bounds_of_clip_can_be_trained() -> None:
    x = torch.from_numpy(f(40))
    low, high = (torch.tensor(value, requires_grad=True) for value in (-0.5, 0.7))
    result = OPERATORS["Clip"](Call((x, low, high), {}, 13, 1))
    assert isinstance(result, torch.Tensor)
    result.sum().backward()
    assert (low.grad, high.grad) == ((x < -0.5).sum(), (x > 0.7).sum())


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_a_batch_that_comes_first_is_the_same_layer(op: str) -> None:
    """ONNX Runtime has no such kernel."""
    gates, names = {"LSTM": (4, 2), "GRU": (3, 1), "RNN": (1, 1)}[op]
    x, w, r = (torch.from_numpy(f(*shape)) for shape in ((5, 3, 2), (2, 4 * gates, 2), (2, 4 * gates, 4)))
    states = [torch.from_numpy(f(2, 3, 4)) for _ in range(names)]
    attributes = {"hidden_size": 4, "direction": "bidirectional"}
    y, *last = OPERATORS[op](Call((x, w, r, None, None, *states), attributes, 14, 1 + names))
    turned = (x.transpose(0, 1), w, r, None, None, *(state.transpose(0, 1) for state in states))
    y_turned, *last_turned = OPERATORS[op](Call(turned, {**attributes, "layout": 1}, 14, 1 + names))
    assert torch.equal(y.permute(2, 0, 1, 3), y_turned)
    assert all(torch.equal(one.transpose(0, 1), other) for one, other in zip(last, last_turned, strict=True))


REFUSED = [
    (case("Attention", 24, PICTURE, PICTURE, PICTURE, None, None, None, i(7, 7)), "lengths of padded caches"),
    (case("Resize", 18, PICTURE, None, s([1, 1, 0.5, 0.5]), mode="linear", antialias=1), "antialias"),
    (
        case("Resize", 11, PICTURE, f(8), s([1, 1, 2, 2]), coordinate_transformation_mode="tf_crop_and_resize"),
        "tf_crop",
    ),
    (case("BatchNormalization", 15, PICTURE, *CHANNELS, f(4), u(4), training_mode=1), "its own statistics"),
    (case("MaxPool", 12, PICTURE, kernel_shape=[2, 2], storage_order=1, outputs=2), "by columns"),
    (layer("RNN", 14, 1, 1, activations=["Affine"], activation_alpha=[1.0]), "activations Affine"),
    (case("Conv", 11, f(1, 1, 2, 2, 2, 2), f(1, 1, 1, 1, 1, 1)), "over 4 axes"),
    (case("Cast", 13, X, to=TensorProto.STRING), "number 8"),
]


@pytest.mark.parametrize(("item", "words"), REFUSED, ids=[title(item) for item, _ in REFUSED])
def test_a_form_that_is_not_written_is_refused(item: Case, words: str) -> None:
    graph, feeds = graph_of(item)
    with pytest.raises(UnsupportedModel, match=words):
        Interpreter(graph)({name: torch.from_numpy(value) for name, value in feeds.items()})


def test_shapes_stay_on_the_cpu_and_operands_go_to_the_device() -> None:
    x = torch.zeros(2, 3, device="meta")
    shape = OPERATORS["Shape"](Call((x,), {}, 17, 1))
    assert isinstance(shape, torch.Tensor)
    assert (shape.device.type, shape.tolist()) == ("cpu", [2, 3])
    for op, other in (("Add", torch.ones(3)), ("Concat", torch.ones(2, 3)), ("Gather", torch.tensor([0, 1]))):
        result = OPERATORS[op](Call((x, other), {"axis": 0}, 17, 1))
        assert isinstance(result, torch.Tensor)
        assert result.device.type == "meta"
