"""A module that computes something else is refused, and its wrong node is named."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from onnxq.errors import UnsupportedModel
from onnxq.graph import Graph
from tests.onnx_text import read

torch = pytest.importorskip("torch", reason="training needs PyTorch")

from onnxq.training import fidelity  # noqa: E402
from onnxq.training.fidelity import check_fidelity, difference, own_differences, tolerance  # noqa: E402
from onnxq.training.interpreter import Interpreter  # noqa: E402

RANDOM = np.random.default_rng(5)
FEEDS = {"x": RANDOM.standard_normal((2, 3, 8, 8)).astype(np.float32)}


def network() -> Graph:
    """Conv, Relu, Conv, GlobalAveragePool."""
    text = """(float[2,3,8,8] x) => (float[2,5,1,1] y) {
        [one] a = Conv(x, w) [relu] b = Relu(a) [two] c = Conv(b, v) [pool] y = GlobalAveragePool(c)
    }"""
    shapes = {"w": (4, 3, 3, 3), "v": (5, 4, 3, 3)}
    return read(text, {name: RANDOM.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()})


def test_a_right_module_differs_by_rounding_alone() -> None:
    graph = network()
    assert check_fidelity(graph, Interpreter(graph), FEEDS, threads=1) < 1e-5


WRONG: dict[str, Any] = {
    "one": lambda x, w: torch.nn.functional.conv2d(x, w) * 1.01,
    "relu": lambda x: torch.nn.functional.leaky_relu(x, 0.05),
    "two": lambda x, w: torch.nn.functional.conv2d(x, w, padding=1),
    "pool": lambda x: x.amax((2, 3), keepdim=True),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_wrong_node_is_named(name: str) -> None:
    graph = network()
    node = next(node for node in graph.nodes if node.name == name)
    with pytest.raises(UnsupportedModel, match=re.escape(f"Node '{name}' ({node.op}) computes something else")):
        check_fidelity(graph, Interpreter(graph, {name: WRONG[name]}), FEEDS, threads=1)


def test_of_two_wrong_nodes_the_first_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "AT_A_TIME", 1)
    graph = network()
    with pytest.raises(UnsupportedModel, match="Node 'relu'"):
        check_fidelity(graph, Interpreter(graph, {name: WRONG[name] for name in ("pool", "relu")}), FEEDS, threads=1)


def test_each_node_is_judged_on_its_own() -> None:
    graph = network()
    module = Interpreter(graph, {"one": WRONG["one"]})
    found = {step.name: (off, share) for step, off, share in own_differences(graph, module, FEEDS, 1)}
    assert list(found) == ["one", "relu", "two", "pool"]
    assert found["one"][0] == pytest.approx(0.01, rel=1e-3)
    assert found["one"][1] == pytest.approx(10, rel=1e-3)
    assert max(found[name][0] for name in ("relu", "two", "pool")) < 1e-5


@pytest.mark.parametrize(("factor", "passes"), [(1 + 5e-4, True), (1 + 5e-3, True), (1.05, False)])
def test_rounding_errors_may_add_up_to_a_limit(factor: float, passes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No node is off on its own, as where many are off by little."""
    monkeypatch.setattr(fidelity, "own_differences", lambda *_: iter(()))
    graph = network()
    module = Interpreter(graph, {"pool": lambda x: x.mean((2, 3), keepdim=True) * factor})
    if passes:
        assert check_fidelity(graph, module, FEEDS, threads=1) == pytest.approx(factor - 1, rel=0.01)
    else:
        with pytest.raises(UnsupportedModel, match="though no operator is on its own"):
            check_fidelity(graph, module, FEEDS, threads=1)


@pytest.mark.parametrize(
    ("expected", "found", "result"),
    [
        ([1.0, -2.0], [1.0, -2.0], 0.0),
        ([1.0, -2.0], [1.1, -2.0], 0.05),
        ([0.0], [0.0], 0.0),
        ([0.0], [0.1], np.inf),
        ([np.nan, 1.0], [np.nan, 1.0], 0.0),
        ([np.inf, 1.0], [1.0, 1.0], np.inf),
        ([1.0], [1.0, 1.0], np.inf),
        ([], [], 0.0),
    ],
)
def test_a_difference_is_a_share_of_the_largest_element(
    expected: list[float], found: list[float], result: float
) -> None:
    assert difference(np.array(expected), np.array(found)) == pytest.approx(result)


def test_half_precision_may_be_further_off() -> None:
    assert tolerance(np.zeros(1, np.float16)) > tolerance(np.zeros(1, np.float32)) == tolerance(np.zeros(1, np.int16))
