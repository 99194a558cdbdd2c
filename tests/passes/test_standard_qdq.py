"""Q/DQ of ONNX Runtime's own domain, in 8 bits, is the standard one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.passes.standard_qdq import StandardQdq
from tests.onnx_text import apply, assert_same, changes, grid, lines, listing, read, refusal

ROUND = "q = com.microsoft.QuantizeLinear{a}(x, s, z) [dq] y = com.microsoft.DequantizeLinear{a}(q, s, z)"
X = {"s": grid("x", -3, 3)["x_scale"], "z": np.uint8(120)}
EACH = {"s": np.array([0.02, 0.03, 0.01], np.float32), "z": np.array([3, 128, 100], np.uint8)}


@pytest.mark.parametrize(("attributes", "weights"), [("", X), ("<axis=1>", EACH)])
def test_becomes_standard(attributes: str, weights: dict[str, Any]) -> None:
    before = read(f"(float[4,3] x) => (float[a,b] y) {{ {ROUND.format(a=attributes)} }}", weights)
    result = apply(StandardQdq(), before)
    assert listing(result.graph) == lines(
        f"q = QuantizeLinear{attributes}(x, s, z)\ny = DequantizeLinear{attributes}(q, s, z)"
    )
    assert_same(before, result.graph, rtol=0)
    assert changes(apply(StandardQdq(), result.graph)) == []


REFUSED: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "16 bits": ("", X | {"z": np.int16(5)}, 17, "It holds int16, for which there are no integer kernels here."),
    "channels before opset 13": ("<axis=1>", EACH, 12, "A scale for each channel takes an axis, and opset 13."),
}


@pytest.mark.parametrize("case", REFUSED)
def test_leaves_alone(case: str) -> None:
    attributes, weights, opset, reason = REFUSED[case]
    before = read(f"(float[4,3] x) => (float[a,b] y) {{ {ROUND.format(a=attributes)} }}", weights, opset)
    result = apply(StandardQdq(), before)
    assert refusal(result, "dq") == reason
    assert listing(result.graph) == listing(before)
