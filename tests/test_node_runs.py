"""What runs, on which grid, and for how long."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.graph import Graph
from onnxq.node_runs import float_name, node_runs
from onnxq.runtime import CPU, Kernel
from tests.onnx_text import read

QDQ = """
(float[n,4] x) => (float[n,4] y) {
  [quantize] x_quantized = QuantizeLinear(x, s, z)
  [dequantize] d = DequantizeLinear(x_quantized, s, z)
  [layer] m = MatMul(d, w)
  [relu] y = Relu(m)
}
"""
WEIGHTS = {"s": np.float32(0.5), "z": np.uint8(3), "w": np.eye(4, dtype=np.float32)}


def graph(text: str = QDQ, **weights: object) -> Graph:
    return read(text, {**WEIGHTS, **weights})


def kernel(name: str, microseconds: float = 5.0) -> Kernel:
    return Kernel(name, "Op", CPU, microseconds)


def test_a_node_has_the_grid_of_what_it_makes_or_reads() -> None:
    runs = {run.node: run for run in node_runs(graph(), [])}
    assert set(runs) == {"quantize", "dequantize", "layer"}  # relu neither ran nor holds integers
    made, read = runs["quantize"], runs["dequantize"]
    assert (made.makes, made.tensor, made.format, made.scale, made.zero_point) == ("x", "x", "uint8", 0.5, 3)
    assert (read.makes, read.tensor, read.scale) == ("d", "x", 0.5)
    assert (runs["layer"].weight, runs["layer"].scales, runs["layer"].format) == ("float32", 0, "")


@pytest.mark.parametrize("name", ["layer", "layer_token_12", "m", "m_nchwc", "layer_nchwc_token_3"])
def test_a_kernel_is_found_by_the_names_that_the_runtime_gives(name: str) -> None:
    runs = {run.node: run for run in node_runs(graph(), [kernel(name), kernel("ReorderOutput")])}
    assert runs["layer"].microseconds == 5.0
    assert runs["quantize"].microseconds is None


def test_kernels_of_one_node_add_up() -> None:
    runs = {run.node: run for run in node_runs(graph(), [kernel("relu", 2), kernel("y", 3.25)])}
    assert runs["relu"].microseconds == 5.2


def test_names_of_integer_forms_lead_back() -> None:
    assert float_name("a_quantized") == "a"
    assert float_name("a_QuantizeLinear_Output") == "a"
    assert float_name("a") == "a"


def test_what_only_moves_numbers_keeps_their_grid() -> None:
    moved = QDQ.replace(
        "[dequantize] d = DequantizeLinear(x_quantized, s, z)",
        "[flat] f_quantized = Flatten(x_quantized)\n  [dequantize] d = DequantizeLinear(f_quantized, s, z)",
    )
    runs = {run.node: run for run in node_runs(graph(moved), [])}
    assert (runs["flat"].makes, runs["flat"].scale) == ("f", 0.5)
    assert (runs["dequantize"].tensor, runs["dequantize"].zero_point) == ("f", 3)


def test_a_grid_for_each_channel_has_no_single_scale() -> None:
    run = node_runs(graph(s=np.arange(1, 5, dtype=np.float32), z=np.zeros(4, np.uint8)), [])[0]
    assert (run.format, run.scale, run.zero_point) == ("uint8", None, None)
