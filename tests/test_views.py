"""Weights in files seen another way, without reading them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxq.graph import Constant, Graph, Later, Node, Stored, is_constant, to_model, weight
from onnxq.modelfile import load
from onnxq.passes.fold_constants import FoldConstants
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.plan import NodePlan, Plan, Treatment
from onnxq.recipe import Recipe
from onnxq.views import view
from tests.onnx_text import Array, apply, floats, ops, read

HALF = floats(64, 48).astype(np.float16)
AXES = {"first": np.array([0]), "shape": np.array([64, -1]), "kept": np.array([0, 48])}
WAYS: dict[str, tuple[str, Array]] = {
    "Transpose": ("w = Transpose<perm=[1,0]>(s)", np.ascontiguousarray(HALF.astype(np.float32).T)),
    "Cast": ("w = Cast<to=1>(s)", HALF),
    "Transpose and Cast": ("t = Transpose(s) w = Cast<to=1>(t)", np.ascontiguousarray(HALF.T)),
    "Reshape": ("w = Reshape(s, shape)", HALF.astype(np.float32).reshape(4, 16, 48)),
    "Reshape with 0": ("w = Reshape(s, kept)", HALF.astype(np.float32)),
    "Squeeze": ("w = Squeeze(s, first)", HALF.astype(np.float32)[None]),
    "Unsqueeze and Squeeze": ("u = Unsqueeze(s, first) w = Squeeze(u)", HALF.astype(np.float32)),
    "Identity": ("w = Identity(s)", HALF.astype(np.float32)),
}


def outside(graph: Graph, folder: Path) -> Graph:
    """The same model with its weights in a file of their own."""
    path = folder / "model.onnx"
    onnx.save_model(to_model(graph), path, save_as_external_data=True, location="model.data", size_threshold=1024)
    return load(path)


def model(body: str, stored: Array) -> Graph:
    return read(f"(float[3,64] x) => (float[a,b] y) {{ {body} [fc] y = MatMul(x, w) }}", {"s": stored, **AXES})


def rounded(graph: Graph) -> list[Array]:
    plan = Plan(
        recipe=Recipe(), nodes={"fc": NodePlan(op="MatMul", treatment=Treatment.WEIGHT, reason="A layer.", bits=4)}
    )
    (node,) = apply(QuantizeWeights(), graph, plan).graph.nodes
    return [weight(tensor) for tensor in node.inputs[1:]]


@pytest.mark.parametrize("way", WAYS)
def test_is_folded_without_being_read(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body, stored = WAYS[way]
    before = outside(model(body, stored), tmp_path)
    load_small = Stored.load

    def small(self: Stored) -> Array:
        assert not self.external, "A weight was read."
        return load_small(self)

    with monkeypatch.context() as patch:
        patch.setattr(Stored, "load", small)
        after = apply(FoldConstants(), before).graph
    assert ops(after) == ["MatMul"]
    assert isinstance(after.nodes[0].inputs[1]._values, (Stored, Later))  # type: ignore[attr-defined]
    plain = read("(float[3,64] x) => (float[a,b] y) { [fc] y = MatMul(x, w) }", {"w": HALF.astype(np.float32)})
    for want, have in zip(rounded(plain), rounded(after), strict=True):
        assert have.dtype == want.dtype
        np.testing.assert_array_equal(have, want)


@pytest.mark.parametrize("way", WAYS)
def test_has_the_values_that_were_evaluated(way: str, tmp_path: Path) -> None:
    """A weight inside of the model is computed at once, by onnx's reference implementation."""
    inside = model(*WAYS[way])
    here, there = (apply(FoldConstants(), graph).graph for graph in (inside, outside(inside, tmp_path)))
    want, have = (weight(graph.nodes[0].inputs[1]) for graph in (here, there))
    assert (have.dtype, have.shape) == (want.dtype, want.shape)
    np.testing.assert_array_equal(have, want)


def test_a_moved_weight_costs_no_copy(tmp_path: Path) -> None:
    after = apply(FoldConstants(), outside(model(*WAYS["Transpose"]), tmp_path)).graph
    assert weight(after.nodes[0].inputs[1]).base is not None


def test_small_weights_and_other_operators_are_computed(tmp_path: Path) -> None:
    body = "n = Neg(s) w = Transpose(n)"
    after = apply(FoldConstants(), outside(model(body, WAYS["Transpose"][1]), tmp_path)).graph
    assert ops(after) == ["MatMul"]
    assert isinstance(after.nodes[0].inputs[1]._values, np.ndarray)  # type: ignore[attr-defined]
    kept = apply(FoldConstants(small=1 << 20), outside(model(*WAYS["Transpose"]), tmp_path)).graph
    assert isinstance(kept.nodes[0].inputs[1]._values, np.ndarray)  # type: ignore[attr-defined]


def test_a_saturated_cast_is_silent() -> None:
    large = Node("Cast", "n", {"to": 10}, [Constant("w", np.array([1e6, 1.0], np.float32))], [])
    found = view(large)
    assert found is not None
    np.testing.assert_array_equal(found.load(), np.array([np.inf, 1], np.float16))


REFUSED: dict[str, tuple[str, dict[str, Any], Array]] = {
    "to integers": ("Cast", {"to": 7}, floats(2)),
    "from integers": ("Cast", {"to": 1}, np.arange(3)),
    "another operator": ("Neg", {}, floats(2)),
    "a shape in an attribute": ("Reshape", {"shape": [2]}, floats(2)),
    "axes that are missing": ("Unsqueeze", {}, floats(2)),
    "axes that do not fit": ("Squeeze", {"axes": [0]}, floats(2)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_leaves_alone(case: str) -> None:
    op, attributes, values = REFUSED[case]
    assert view(Node(op, "n", attributes, [Constant("w", values)], [])) is None


def test_leaves_a_variable_alone() -> None:
    graph = read("(float[2,3] x) => (float[3,2] y) { y = Transpose(x) }")
    assert view(graph.nodes[0]) is None
    assert not is_constant(graph.nodes[0].inputs[0])
