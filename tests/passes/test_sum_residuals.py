"""The sum before a LayerNormalization is no Add any more, so that the runtime leaves it alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.graph import Graph
from onnxq.passes.sum_residuals import SumResiduals
from onnxq.runtime import Session
from tests.onnx_text import apply, assert_same, changes, floats, listing, normal, ops, read, refusal, serialize

WEIGHTS: dict[str, Any] = {
    "g": floats(16),
    "s": floats(16),
    "two": np.float32(2),
    "eps": np.float32(1e-5),
    "row": floats(16),
}
SPELLED = """
    m = ReduceMean<axes=[-1]>(a) d = Sub(a, m) p = Pow(d, two) v = ReduceMean<axes=[-1]>(p) e = Add(v, eps)
    r = Sqrt(e) q = Div(d, r) h = Mul(q, g) y = Add(h, s)
"""


def model(body: str, opset: int = 17) -> Graph:
    return read(f"(float[2,3,16] x, float[2,3,16] z) => (float[2,3,16] y) {{ {body} }}", WEIGHTS, opset)


def kernels(graph: Graph) -> list[str]:
    """What the runtime makes of a graph."""
    session = Session(serialize(graph), threads=1, profile=True)
    session.run(normal(graph))
    return [kernel.op for kernel in session.kernels()]


@pytest.mark.parametrize(("norm", "opset"), [("y = LayerNormalization(a, g, s)", 17), (SPELLED, 17), (SPELLED, 11)])
def test_writes_a_sum_that_the_runtime_does_not_fuse(norm: str, opset: int) -> None:
    before = model(f"u = Relu(x) w = Relu(z) [add] a = Add(u, w) {norm}", opset)
    after = apply(SumResiduals(), before)
    assert [(c.node, c.op, c.done) for c in changes(after)] == [("add", "Add", "Sum")]
    assert listing(after.graph) == listing(before).replace("a = Add(", "a = Sum(")
    assert_same(before, after.graph)
    assert "SkipLayerNormalization" in kernels(before), "if not, the runtime has learned, and the pass can go"
    assert "SkipLayerNormalization" not in kernels(after.graph)


def test_leaves_a_sum_alone_that_others_read_too() -> None:
    before = model("[add] a = Add(x, z) n = LayerNormalization(a, g, s) y = Add(a, n)")
    after = apply(SumResiduals(), before)
    assert (listing(after.graph), changes(after)) == (listing(before), [])


def test_leaves_a_sum_alone_without_a_norm() -> None:
    before = model("[add] a = Add(x, z) n = Relu(a) y = Mul(n, g)")
    assert changes(apply(SumResiduals(), before)) == []


def test_leaves_a_constant_alone() -> None:
    before = model("[add] a = Add(x, row) y = LayerNormalization(a, g, z1)".replace("z1", "s"))
    assert refusal(apply(SumResiduals(), before), "add") == "It adds a constant."


def test_leaves_old_opsets_alone() -> None:
    before = model(f"[add] a = Add(x, z) {SPELLED}", 7)
    after = apply(SumResiduals(), before)
    assert refusal(after, "add").startswith("Before opset 8, Sum wants operands of one shape")
    assert "Sum" not in ops(after.graph)


def test_leaves_doubles_alone() -> None:
    weights = {name: values.astype(np.float64) for name, values in WEIGHTS.items()}
    text = (
        "(double[2,16] x, double[2,16] z) => (double[2,16] y) { [add] a = Add(x, z) y = LayerNormalization(a, g, s) }"
    )
    assert refusal(apply(SumResiduals(), read(text, weights)), "add") == "It adds float64; only float32 is fused."
