"""A graph runs in PyTorch: the sample models reproduce, nodes can be replaced, inner tensors wanted or fed."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxq.calibration.data import open_data
from onnxq.errors import DataError, UnsupportedModel
from onnxq.graph import Graph, from_model, is_external, to_model
from onnxq.modelfile import load
from onnxq.runtime import Session
from tests.onnx_text import read

torch = pytest.importorskip("torch", reason="training needs PyTorch")

from onnxq.training.fidelity import check_fidelity, difference  # noqa: E402
from onnxq.training.interpreter import Interpreter, as_tensor  # noqa: E402

MODELS = Path(__file__).parents[2] / "models"
RANDOM = np.random.default_rng(3)
W = RANDOM.standard_normal((3, 4)).astype(np.float32)
B = RANDOM.standard_normal(4).astype(np.float32)
X = RANDOM.standard_normal((2, 3)).astype(np.float32)

TWO = """(float[2,3] x) => (float[2,4] y, float[2,4] z) {
    [product] p = MatMul(x, w)
    [sum] s = Add(p, b)
    [first] y = Relu(s)
    [second] z = Neg(s)
}"""


def two() -> Graph:
    return read(TWO, {"w": W, "b": B})


def given(values: NDArray[Any] = X) -> dict[str, Any]:
    return {"x": torch.from_numpy(values)}


def test_outputs_by_name() -> None:
    found = Interpreter(two())(given())
    assert list(found) == ["y", "z"]
    np.testing.assert_allclose(found["y"].numpy(), np.maximum(X @ W + B, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["z"].numpy(), -(X @ W + B), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["digits", "decoder", "decoder_cache", "docstrings"])
def test_a_sample_model_reproduces(name: str) -> None:
    graph = load(MODELS / f"{name}.onnx")
    feeds = open_data("random", graph.interface().inputs).sample(0)
    assert any(map(is_external, graph.weights())) == name.startswith("decoder")
    assert check_fidelity(graph, Interpreter(graph), feeds, threads=1) < 5e-6


def test_a_replacement_is_called_with_the_inputs_of_its_node() -> None:
    seen = []

    def halved(*inputs: Any) -> Any:
        seen.append(inputs)
        return inputs[0] / 2

    found = Interpreter(two(), {"first": halved})(given())
    ((p,),) = seen
    np.testing.assert_allclose(found["y"].numpy(), p.numpy() / 2)


def test_a_replacement_sees_inputs_left_out_and_may_give_several_outputs() -> None:
    text = (
        '(float[2,3] x) => (float[1,3] y, float[1,3] z) { [cut] a = Clip(x, "", high) [parts] y, z = Split(a, sizes) }'
    )
    graph = read(text, {"high": np.float32(0.5), "sizes": np.array([1, 1])})
    seen: list[tuple[Any, ...]] = []

    def cut(*inputs: Any) -> Any:
        seen.append(inputs)
        return inputs[0]

    found = Interpreter(graph, {"cut": cut, "parts": lambda x, sizes: (x + 1, x + 2)})(given())
    assert seen[0][1] is None
    np.testing.assert_array_equal(found["z"].numpy(), X + 2)


def test_modules_among_the_replacements_are_submodules() -> None:
    module = torch.nn.PReLU()
    interpreter = Interpreter(two(), {"first": module, "second": module})
    assert [*interpreter.parameters()] == [*module.parameters()]
    interpreter.eval()
    assert not module.training


def test_an_inner_tensor_needs_only_what_stands_before_it() -> None:
    def never(*inputs: Any) -> Any:
        raise AssertionError("nobody needs this node")

    found = Interpreter(two(), {"first": never, "second": never})(given(), ["s", "x", "b"])
    assert list(found) == ["s", "x", "b"]
    np.testing.assert_allclose(found["s"].numpy(), X @ W + B, rtol=1e-5, atol=1e-6)


def test_an_inner_tensor_can_be_fed() -> None:
    module = Interpreter(two(), {"product": lambda *inputs: pytest.fail("p was fed")})
    found = module({"p": torch.zeros(2, 4)}, ["s"])
    np.testing.assert_array_equal(found["s"].numpy(), np.tile(B, (2, 1)))


def test_a_tensor_is_dropped_after_its_last_reader() -> None:
    held: list[Any] = []

    def made(x: Any, w: Any) -> Any:
        result = x @ w
        held.append(weakref.ref(result))
        return result

    def later(s: Any) -> Any:
        gc.collect()
        assert held[0]() is None
        return s

    with torch.no_grad():
        Interpreter(two(), {"product": made, "first": later})(given())
    assert len(held) == 1


def test_a_constant_can_become_a_parameter() -> None:
    module = Interpreter(two())
    weight = module.constants["w"] = torch.nn.Parameter(module.constants["w"])
    module(given())["z"].sum().backward()
    np.testing.assert_allclose(weight.grad.numpy(), -np.tile(X.sum(0)[:, None], (1, 4)), rtol=1e-5)
    module.double()
    assert module.constants["w"] is weight
    assert weight.dtype == module.constants["b"].dtype == torch.float64


def test_floats_follow_the_module_and_integers_stay() -> None:
    graph = read(
        "(float[2,3] x) => (float[3,2] y) { a = Mul(x, factor) b = Add(a, row) y = Reshape(b, shape) }",
        {"factor": np.float32(2), "row": B[:3], "shape": np.array([3, 2])},
    )
    module = Interpreter(graph).to("meta")
    assert {name: t.device.type for name, t in module.constants.items()} == {
        "factor": "cpu",
        "row": "meta",
        "shape": "cpu",
    }
    assert module({"x": torch.zeros(2, 3, device="meta")})["y"].shape == (3, 2)


def test_constants_in_nodes_and_of_many_types() -> None:
    nodes = [
        helper.make_node("Constant", [], ["c"], "c", value=numpy_helper.from_array(B)),
        helper.make_node("Constant", [], ["d"], "d", value_floats=[1.0, 2.0, 3.0, 4.0]),
        helper.make_node("Add", ["c", "d"], ["y"], "add"),
    ]
    info = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    graph = from_model(helper.make_model(helper.make_graph(nodes, "g", [], [info])))
    np.testing.assert_allclose(Interpreter(graph)({})["y"].numpy(), B + np.arange(1, 5), rtol=1e-6)
    for kind, expected in (("INT4", torch.int8), ("UINT4", torch.uint8), ("BFLOAT16", torch.bfloat16)):
        stored = helper.make_tensor("t", getattr(TensorProto, kind), [3], [1, 2, 3])
        tensor = as_tensor(numpy_helper.to_array(stored))
        assert (tensor.dtype, tensor.tolist()) == (expected, [1, 2, 3])


def test_half_precision_runs() -> None:
    graph = read(
        "(float16[2,3] x) => (float16[2,4] y) { p = MatMul(x, w) y = Softmax(p) }", {"w": W.astype(np.float16)}
    )
    feeds = {"x": X.astype(np.float16)}
    expected = Session(to_model(graph).SerializeToString(), threads=1).run(feeds)["y"]
    found = Interpreter(graph)({"x": torch.from_numpy(feeds["x"])})["y"].numpy()
    assert found.dtype == np.float16
    assert difference(expected, found) < 5e-3


def test_a_constant_of_text_is_missing() -> None:
    node = helper.make_node("Constant", [], ["c"], "text", value_string="a")
    info = helper.make_tensor_value_info("c", TensorProto.STRING, [])
    graph = from_model(helper.make_model(helper.make_graph([node], "g", [], [info])))
    with pytest.raises(UnsupportedModel, match=r"missing there: Constant \(node 'text'\)"):
        Interpreter(graph)


MISSING = """(float[2,3] x) => (float[2,3] y) {
    [noise] a = RandomNormalLike(x)
    [more] b = RandomNormalLike(a)
    [odd] c = com.microsoft.QuickGelu(b)
    [fine] y = Relu(c)
}"""


def test_every_missing_operator_is_named_with_a_node() -> None:
    with pytest.raises(UnsupportedModel) as caught:
        Interpreter(read(MISSING))
    text = str(caught.value)
    assert "RandomNormalLike (node 'noise'), com.microsoft.QuickGelu (node 'odd')" in text
    assert "more" not in text.replace("model", "")


def test_what_is_replaced_is_not_missing() -> None:
    same = {name: lambda x: x for name in ("noise", "more", "odd")}
    found = Interpreter(read(MISSING), same)(given())
    np.testing.assert_array_equal(found["y"].numpy(), np.maximum(X, 0))


def test_an_old_opset_is_refused() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    made = helper.make_graph([node], "g", infos[:1], infos[1:])
    graph = from_model(helper.make_model(made, opset_imports=[helper.make_opsetid("", 6)]))
    with pytest.raises(UnsupportedModel, match="opset is 6; training needs 7"):
        Interpreter(graph)


def test_texts_are_no_tensors() -> None:
    with pytest.raises(UnsupportedModel, match="no element type object"):
        as_tensor(np.array(["a"], object))


@pytest.mark.parametrize(("feeds", "wanted", "name"), [({}, None, "x"), (given(), ["nothing"], "nothing")])
def test_what_nobody_makes_is_named(feeds: dict[str, Any], wanted: list[str] | None, name: str) -> None:
    with pytest.raises(DataError, match=f"Tensor '{name}' is needed"):
        Interpreter(two())(feeds, wanted)
