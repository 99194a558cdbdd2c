"""Plans in half precision: what is found on data, and what comes of a request for either target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxq import api
from onnxq.build import Build, prepare
from onnxq.calibration.data import open_data
from onnxq.errors import DataError, RecipeError
from onnxq.graph import Graph, to_model
from onnxq.half_planning import MOST, place_halves, reach
from onnxq.mode_choice import choose_mode
from onnxq.options import Options, on_target
from onnxq.placement import Placement
from onnxq.plan import Plan, Treatment, read_plan
from onnxq.recipe import Recipe, make_recipe
from onnxq.runtime import CPU
from tests.conftest import Clock, Command
from tests.onnx_text import floats, ops, read

CUDA = "CUDAExecutionProvider"
W = floats(16, 16) / 4


def model(body: str, **weights: Any) -> Graph:
    return read(f"(float[n,16] x) => (float[n,16] y) {{ {body} }}", {"w": W, **weights})


def build(graph: Graph, **wish: Any) -> Build:
    return Build(graph, make_recipe({"mode": "fp16", "target": "cuda", **wish}), "fp16")


def placed(made: Build, scale: float | None = 1.0) -> tuple[Placement, list[str], int]:
    """With data whose numbers are this large; None for no data."""
    before = prepare(made)
    data = None if scale is None else open_data({"x": scale * floats(8, 16)}, made.graph.interface().inputs)
    return place_halves(made, before, data, Options(threads=1))


def test_what_makes_or_reads_a_large_tensor_stays_in_float32() -> None:
    body = "[one] a = MatMul(x, w) [two] b = Tanh(a) [three] y = MatMul(b, w)"
    found = placed(build(model(body)), MOST)[0].nodes
    assert found["one"].treatment is found["two"].treatment is Treatment.FLOAT
    assert found["three"].treatment is Treatment.HALF
    assert found["two"].reason.startswith("'a' reaches ")
    for scale in (1.0, None):
        nodes = placed(build(model(body)), scale)[0].nodes
        assert {plan.treatment for plan in nodes.values()} == {Treatment.HALF}


def test_masks_are_not_large() -> None:
    weights = {"far": np.float32(-1e9), "zero": np.float32(0), "q": np.arange(16) > 7}
    graph = read(
        "(float[n,16] x) => (float[n,16] y) { m = Where(q, far, zero) a = Add(x, m) b = Mul(x, far) y = Neg(a) }",
        weights,
    )
    data = open_data({"x": floats(8, 16)}, graph.interface().inputs)
    found = reach(graph, ["a", "b", "m", "y"], data, Options(threads=1))
    assert found["m"] == 0.0
    assert found["b"] > 1e9
    assert found["y"] == 1e9


def test_reach_is_the_largest_of_all_batches() -> None:
    graph = model("a = Neg(x) y = Relu(a)")
    values = floats(40, 16)
    values[33, 3], values[2, 2] = 77.0, np.inf
    found = reach(graph, ["a", "y"], open_data({"x": values}, graph.interface().inputs), Options(threads=1))
    assert found["a"] == 77.0
    assert found["y"] == pytest.approx(float(-values.min()))


def test_norms_become_one_operator_whose_sums_are_float32() -> None:
    body = """
        [mu] m = ReduceMean<axes=[-1]>(x) [d] d = Sub(x, m) [dd] e = Mul(d, d) [var] v = ReduceMean<axes=[-1]>(e)
        [sum] s = Add(v, eps) [root] r = Sqrt(s) [inverse] i = Reciprocal(r) [unit] u = Mul(d, i) [gain] h = Mul(u, g)
        [last] y = Add(h, g)
    """
    graph = model(body, eps=np.float32(1e-12), g=floats(16))
    made = build(graph)
    placement, rewrites, opset = placed(made, 300.0)
    assert (rewrites, opset, ops(made.graph)) == (["FuseNorms"], 17, ["LayerNormalization"])
    assert placement.nodes[made.graph.nodes[0].name].treatment is Treatment.HALF
    spelled = build(graph, nodes={"root": {"quantize": False}})
    assert placed(spelled)[1] == []


@pytest.mark.parametrize(
    ("wish", "mode"),
    [
        ({}, "fp16"),
        ({"mode": "fp16"}, "fp16"),
        ({"mode": "weight-int8"}, "weight-int8"),
        ({"mode": "weight-int4"}, "weight-int4"),
        ({"mode": "static-int8", "format": "qdq", "activation": {"format": "int8", "symmetric": True}}, "static-int8"),
    ],
)
@pytest.mark.parametrize("data", [True, False])
def test_modes_on_cuda(wish: dict[str, Any], mode: str, data: bool) -> None:
    recipe = make_recipe({"target": "cuda", **wish})
    if mode == "static-int8" and not data:
        with pytest.raises(DataError, match="needs data"):
            choose_mode(recipe, data, known=False)
    else:
        assert choose_mode(recipe, data, known=False) == mode


@pytest.mark.parametrize("mode", ["static-int8", "dynamic-int8", "mixed-int8"])
def test_integer_recipes_are_refused_on_cuda(mode: str) -> None:
    recipe = make_recipe({"target": "cuda", "mode": mode})
    with pytest.raises(RecipeError, match=f"{mode} is not for --target cuda, .* fp16, weight-int8 or weight-int4"):
        choose_mode(recipe, data=True, known=False)


@pytest.mark.parametrize("activation", [{}, {"format": "int8"}, {"symmetric": True}])
def test_tensorrt_takes_symmetric_int8_alone(activation: dict[str, Any]) -> None:
    wish = {"target": "cuda", "mode": "static-int8", "format": "qdq", "activation": activation}
    with pytest.raises(RecipeError, match="--activations int8 --symmetric"):
        choose_mode(make_recipe(wish), data=True, known=False)


def test_the_provider_of_the_target_is_taken_where_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_target(Options(), CPU).providers == (CPU,)
    assert on_target(Options(), CUDA).providers == (CPU,)
    monkeypatch.setattr("onnxq.runtime.starts", lambda _: True)
    assert on_target(Options(), CUDA).providers == (CUDA,)
    assert on_target(Options(providers=("Other",)), CUDA).providers == ("Other",)


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A model with weights that are worth it, a table and a layer."""
    text = "(int64[n,4] ids) => (float[n,4,64] y) { [emb] a = Gather(t, ids) [fc] b = MatMul(a, w) [act] y = Tanh(b) }"
    path = tmp_path / "wide.onnx"
    onnx.save(to_model(read(text, {"t": floats(300, 64), "w": floats(64, 64) / 8})), path)
    return path


@pytest.mark.parametrize(
    ("flags", "name", "kinds"),
    [
        (["--recipe", "fp16"], "wide.fp16.onnx", {"half"}),
        (["--target", "cuda"], "wide.fp16.onnx", {"half"}),
        (["--target", "cuda", "--recipe", "weight-int4"], "wide.int4.onnx", {"half", "weight"}),
    ],
)
def test_commands(
    flags: list[str], name: str, kinds: set[str], wide: Path, tmp_path: Path, clock: Clock, onnxq: Command
) -> None:
    done = onnxq("optimize", wide, *flags, "--save-plan", tmp_path / "plan.json", "--json", "--seconds", 0)
    assert done.code == 0, done.err
    result = done.json
    assert result["status"] == "optimized"
    assert Path(result["output"]).name == name
    assert {node["treatment"] for node in result["plan"]["nodes"].values()} == kinds
    assert result["proof"]["size"] < 0.6 * result["proof"]["size_float"]
    assert result["proof"]["outputs"]["y"]["cosine"] > 0.95
    elsewhere = [w for w in result["warnings"] if "since CUDAExecutionProvider does not run here" in w]
    assert len(elsewhere) == ("cuda" in flags)
    again = tmp_path / "again.onnx"
    assert onnxq("optimize", wide, "-o", again, "--plan", tmp_path / "plan.json", "--seconds", 0).code == 0
    assert again.read_bytes() == Path(result["output"]).read_bytes()
    assert read_plan(tmp_path / "plan.json").recipe.target == ("cuda" if "cuda" in flags else "cpu")


def test_a_slow_cpu_does_not_condemn_a_model_for_a_gpu(wide: Path, clock: Clock, onnxq: Command) -> None:
    clock.speedups = [0.2]
    data = {"ids": np.random.default_rng(0).integers(0, 300, (16, 4))}
    found = api.optimize(wide, data=data, recipe=Recipe(target="cuda"), options=Options(threads=1, seconds=0))
    assert found.status == "optimized", found.reason
    assert not [warning for warning in found.warnings if "Slower" in warning]


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_model_in_half_precision_is_left_alone(target: str, wide: Path, tmp_path: Path, onnxq: Command) -> None:
    half = tmp_path / "half.onnx"
    assert onnxq("optimize", wide, "-o", half, "--recipe", "fp16", "--no-validate").code == 0
    done = onnxq("optimize", half, "-o", tmp_path / "b.onnx", "--recipe", "fp16", "--target", target, "--json")
    assert (done.json["status"], done.code) == ("left alone", 0)
    assert done.json["reason"] == "The weights of the model are in half precision already."
    shown = onnxq("inspect", half, "--json").json
    assert (shown["quantized"], shown["layers"][0]["type"]) == ("half precision", "float16")


def test_nothing_to_halve_is_said(model: Path, tmp_path: Path, onnxq: Command) -> None:
    done = onnxq("optimize", model, "-o", tmp_path / "b.onnx", "--recipe", "fp16", "--keep-float", "*", "--json")
    assert done.json["status"] == "left alone"
    assert json.dumps(done.json["reason"]).startswith('"Nothing can go into half precision: the recipe keeps it')


def test_qdq_is_not_folded_for_cuda(wide: Path, tmp_path: Path, onnxq: Command) -> None:
    qdq = tmp_path / "qdq.onnx"
    flags = ["--recipe", "static-int8", "--format", "qdq", "--data", "random"]
    assert onnxq("optimize", wide, "-o", qdq, *flags, "--no-validate").code == 0
    done = onnxq("optimize", qdq, "-o", tmp_path / "b.onnx", "--target", "cuda", "--json")
    assert done.json["status"] == "left alone"
    assert "no integer kernels" in done.json["reason"]


def test_plans_say_half() -> None:
    plan = Plan.model_validate({"recipe": {}, "nodes": {"a": {"op": "MatMul", "treatment": "half", "reason": ""}}})
    assert plan.treatment("a") is Treatment.HALF
    assert not plan.does_nothing
