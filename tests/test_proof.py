"""Errors of inner tensors, beside a graph whose channels were balanced."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from onnxq import proof
from onnxq.calibration.data import Data, open_data
from onnxq.channels import divided, spaces
from onnxq.graph import Graph
from onnxq.kernels import elsewhere
from onnxq.passes import BALANCE
from onnxq.pipeline import Context, run
from onnxq.plan import BalancePlan, Plan
from onnxq.proof import layer_errors
from onnxq.recipe import Recipe
from onnxq.runtime import CPU as CPU_PROVIDER
from onnxq.runtime import Feeds, Kernel
from onnxq.targets import CPU
from tests.onnx_text import EVERYTHING, floats, read

FACTORS = [0.1, 10.0, 3.0, 0.5]
PICTURE = "(float[n,4,5,5] x) => (float[n,3,5,5] y) { a = Conv(x, w1) r = Relu(a) y = Conv(r, w2) }"
POOLED = (
    "(float[n,4,5,5] x) => (float[n,3] y) { a = Conv(x, w1) g = GlobalAveragePool(a) f = Flatten(g) y = Gemm(f, v) }"
)
ROWS = "(float[n,4,4] x) => (float[n,4,3] y) { a = MatMul(x, w1) r = Relu(a) y = MatMul(r, v) }"
CONVS = {"w1": floats(4, 4, 1, 1), "w2": floats(3, 4, 1, 1), "v": floats(4, 3)}
CASES = {
    "pictures": (PICTURE, CONVS),
    "pooled pictures": (POOLED, CONVS),
    "as many rows as channels": (ROWS, {"w1": floats(4, 4), "v": floats(4, 3)}),
}


def data(graph: Graph) -> Data:
    (tensor,) = graph.inputs
    shape = [size if isinstance(size, int) else 4 for size in tensor.shape or ()]
    return open_data({tensor.name: floats(*shape)}, graph.interface().inputs)


@pytest.mark.parametrize("case", CASES)
def test_factors_are_taken_out_before_tensors_are_compared(case: str) -> None:
    graph = read(*CASES[case])
    (space,) = spaces(graph)
    balance = {space.name: BalancePlan(factors=FACTORS, multiplies=False, reason="")}
    context = Context(CPU, Plan(recipe=Recipe(), nodes={}, balance=balance))
    candidate = run(BALANCE, graph, context, EVERYTHING).graph
    inner = set(space.tensors)
    raw = {error.tensor: error.sqnr_db for error in layer_errors(graph, candidate, data(graph), {})}
    found = {
        error.tensor: error.sqnr_db for error in layer_errors(graph, candidate, data(graph), divided(graph, balance))
    }
    assert found.keys() == raw.keys() == inner | {"y"}
    assert all((raw[name] or 0) < 20 for name in inner)
    assert all(db is None or db > 100 for db in found.values()), "None: not a bit of difference"
    unknown = {error.tensor: error for error in layer_errors(graph, candidate, data(graph), None)}
    assert {name for name, error in unknown.items() if error.rescaled} == inner
    assert all(error.sqnr_db is None or error.sqnr_db > 100 for error in unknown.values())


def test_an_error_that_factors_do_not_explain_stays() -> None:
    graph = read(ROWS, {"w1": floats(4, 4), "v": floats(4, 3)})
    candidate = read(ROWS, {"w1": np.round(3 * floats(4, 4)) / 3, "v": floats(4, 3)})
    known = layer_errors(graph, candidate, data(graph), {})
    assert layer_errors(graph, candidate, data(graph)) == known
    assert not any(error.rescaled for error in known)


@pytest.mark.parametrize(("most", "groups"), [(1, [2, 2, 2]), (1 << 20, [2, 4])])
def test_inner_tensors_are_held_as_many_as_there_is_room_for(
    most: int, groups: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = ["a = Relu(x)", "b = Neg(a)", "c = Exp(b)", "d = Abs(c)", "e = Neg(d)", "y = Abs(e)"]
    graph = read(f"(float[n,4] x) => (float[n,4] y) {{ {' '.join(steps)} }}", {})
    held: list[int] = []
    inner = proof._inner

    def counted(graph: Graph, names: Sequence[str], feeds: Feeds) -> dict[str, np.ndarray]:
        held.append(len(names))
        return inner(graph, names, feeds)

    monkeypatch.setattr(proof, "LAYER_GROUP", 2)
    monkeypatch.setattr(proof, "LAYER_BYTES", most)
    monkeypatch.setattr(proof, "_inner", counted)
    found = layer_errors(graph, graph, data(graph))
    assert {error.tensor for error in found} == set("abcdey")
    assert held[::2] == groups


def test_what_the_cpu_took_from_another_provider() -> None:
    ran = [("MatMul", "CUDA"), ("Range", CPU_PROVIDER), ("TopK", CPU_PROVIDER), ("TopK", CPU_PROVIDER)]
    ran += [("MemcpyToHost", "CUDA"), ("MemcpyFromHost", "CUDA")]
    kernels = [Kernel(str(place), op, provider, 1.0) for place, (op, provider) in enumerate(ran)]
    assert elsewhere(kernels, "CUDA") == ({"TopK": 2, "Range": 1}, 2)
    assert elsewhere(kernels, CPU_PROVIDER)[0] == {}
