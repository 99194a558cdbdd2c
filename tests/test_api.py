"""The API: what `optimize` and the others do and return, on two small layers and on the two trained models."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import onnxq
from onnxq import Options, Recipe, Result, api
from onnxq.errors import DataError, ModelError, OutputError, ProviderError, RecipeError
from onnxq.modelfile import load
from onnxq.recipe import Activation, Mode, Override
from onnxq.runtime import Session

if TYPE_CHECKING:
    from tests.conftest import Clock

MODELS = Path(__file__).parent.parent / "models"
QUICK = Options(seconds=0)
UNPROVEN = Options(check=False)
STATIC = Recipe(mode="static-int8")
MSE = Recipe(mode="static-int8", activation=Activation(range="mse"))
"""A rule that needs no search."""


def operators(model: Path) -> set[str]:
    return {node.op_type for node in onnx.load(model).graph.node}


def rows(path: Path, count: int) -> dict[str, np.ndarray]:
    """The first rows of each array of an .npz."""
    with np.load(path) as file:
        return {name: file[name][:count] for name in file.files}


def test_every_public_name_is_there() -> None:
    functions = ("optimize", "calibrate", "validate", "bench", "inspect", "describe_passes")
    assert set(functions) < set(onnxq.__all__)
    for name in functions:
        assert getattr(onnxq, name) is getattr(api, name)
    assert all(getattr(onnxq, name) is not None for name in onnxq.__all__)
    assert set(onnxq.__all__) <= set(dir(onnxq))
    with pytest.raises(AttributeError, match="no attribute 'optimise'"):
        onnxq.optimise  # noqa: B018


# optimize


def test_the_result_tells_it_all(model: Path, data: Path) -> None:
    result = onnxq.optimize(model, data=data, recipe=STATIC, options=QUICK)
    assert (result.status, result.reason, result.mode) == ("optimized", "", "static-int8")
    assert result.output == str(model.with_name("model.int8.onnx"))
    assert (result.calibrated, result.random) == (18, False)
    assert result.plan is not None
    assert result.plan.nodes["one"].reason
    assert result.changes["InsertQdq"]
    assert result.proof is not None
    assert (result.proof.samples, result.proof.seen, result.proof.threads, result.proof.batch) == (6, False, 1, 1)
    assert result.proof.cosine > 0.99
    assert result.proof.size == Path(result.output).stat().st_size < result.proof.size_float == model.stat().st_size
    assert {"calibrate", "quantize", "write", "validate"} <= result.seconds.keys()
    assert Result.model_validate_json(result.model_dump_json()) == result


@pytest.mark.parametrize("kind", ["path", "words", "bytes", "proto"])
def test_a_model_may_be_a_path_bytes_or_a_proto(model: Path, data: Path, tmp_path: Path, kind: str) -> None:
    sources: dict[str, Any] = {
        "path": model,
        "words": str(model),
        "bytes": model.read_bytes(),
        "proto": onnx.load(model),
    }
    before = model.read_bytes()
    first = onnxq.optimize(model, tmp_path / "a.onnx", data=data, recipe=STATIC, options=UNPROVEN)
    assert first.status == "optimized"
    result = onnxq.optimize(sources[kind], tmp_path / "b.onnx", data=data, recipe=STATIC, options=QUICK)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert result.proof is not None
    assert model.read_bytes() == before
    if kind == "proto":
        assert sources[kind] == onnx.load(model)


def test_a_model_in_memory_is_written_only_where_that_is_asked_for(model: Path, data: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    result = onnxq.optimize(model.read_bytes(), data=data, recipe=STATIC, options=QUICK)
    assert (result.status, result.output) == ("optimized", None)
    assert result.proof is not None
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("kind", ["mapping", "feeds", "generator"])
def test_data_from_python(model: Path, data: Path, tmp_path: Path, kind: str) -> None:
    x = np.load(data)["x"]
    sources: dict[str, Any] = {
        "mapping": {"x": x},
        "feeds": [{"x": row[np.newaxis]} for row in x],
        "generator": ({"x": row[np.newaxis]} for row in x),
    }
    onnxq.optimize(model, tmp_path / "a.onnx", data=data, recipe=STATIC, options=UNPROVEN)
    onnxq.optimize(model, tmp_path / "b.onnx", data=sources[kind], recipe=STATIC, options=UNPROVEN)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(mode="static-int8"),
        Recipe(mode="static-int8", format="qdq"),
        Recipe(mode="static-int8", activation=Activation(format="int8", symmetric=True)),
        Recipe(mode="dynamic-int8"),
        Recipe(mode="weight-int8"),
    ],
)
def test_the_interface_stays_and_the_outputs_are_close(model: Path, data: Path, tmp_path: Path, recipe: Recipe) -> None:
    output = tmp_path / "q.onnx"
    onnxq.optimize(model, output, data=data, recipe=recipe, options=UNPROVEN)
    before, after = Session(model, threads=1), Session(output, threads=1)
    assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
    assert onnx.load(output).graph.input == onnx.load(model).graph.input
    feeds = {"x": np.load(data)["x"]}
    expected, got = before.run(feeds)["y"], after.run(feeds)["y"]
    assert np.abs(got - expected).max() < 0.1 * np.abs(expected).max()
    assert not np.array_equal(got, expected)


def test_a_recipe_may_be_a_name_or_a_file(model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('mode = "static-int8"')
    (tmp_path / "wrong.toml").write_text('moed = "static-int8"')
    for recipe in ("static-int8", tmp_path / "own.toml", str(tmp_path / "own.toml"), Recipe(mode="static-int8")):
        assert onnxq.optimize(model, data=data, recipe=recipe, options=Options(check=False)).mode == "static-int8"
    with pytest.raises(RecipeError, match=r"There is no recipe 'int4'\. Known are auto, mixed-int8"):
        onnxq.optimize(model, data=data, recipe="int4")
    with pytest.raises(RecipeError, match=r"wrong\.toml': Unknown key 'moed' in the recipe"):
        onnxq.optimize(model, data=data, recipe=tmp_path / "wrong.toml")


@pytest.mark.parametrize(("version", "said"), [(3, False), (8, True)])
def test_weights_that_may_be_fed_are_told(version: int, said: bool, model: Path, data: Path, tmp_path: Path) -> None:
    """The runtime folds nothing into them, so that the float model is slow; in old files every weight is listed so."""
    stored = onnx.load(model)
    stored.ir_version = version
    plain = onnxq.optimize(stored, data=data, recipe="static-int8", options=Options(check=False))
    assert not any("may be fed" in warning for warning in plain.warnings)
    for tensor in stored.graph.initializer:
        stored.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    found = onnxq.optimize(stored, data=data, recipe="static-int8", options=Options(check=False))
    assert (
        any(f"{len(stored.graph.initializer)} weights of the float model may be fed" in w for w in found.warnings)
        is said
    )


@pytest.mark.parametrize("what", [3, None, ["model.onnx"], np.zeros(3)])
def test_what_is_no_model_is_named(what: Any) -> None:
    for call in (onnxq.inspect, onnxq.lint, lambda each: onnxq.diff(each, each)):
        with pytest.raises(ModelError, match=rf"{type(what).__name__} is no model\. Give a path, the bytes of a model"):
            call(what)


def test_weights_outside_stay_outside(tmp_path: Path) -> None:
    source, output = tmp_path / "in" / "external.onnx", tmp_path / "out" / "q.onnx"
    source.parent.mkdir()
    output.parent.mkdir()
    onnx.save(onnx.load(MODELS / "digits.onnx"), source, save_as_external_data=True, location="weights.bin")
    keep = MSE.model_copy(update={"nodes": {"Gemm": Override(quantize=False)}})
    data = rows(MODELS / "digits_calibration.npz", 16)
    result = onnxq.optimize(source, output, data=data, recipe=keep, options=QUICK)
    assert result.proof is not None
    assert result.proof.outputs["logits"].cosine > 0.99
    assert [file.name for file in sorted(output.parent.iterdir())] == ["q.onnx", "q.onnx.data"]
    assert result.proof.size == sum(file.stat().st_size for file in output.parent.iterdir())
    assert Session(output, threads=1).outputs == Session(source, threads=1).outputs


def test_all_of_data_calibrates_where_validation_is_given(model: Path, data: Path) -> None:
    some = {"x": np.load(data)["x"][:5]}
    result = onnxq.optimize(model, data=data, validation=some, recipe=STATIC, options=QUICK)
    assert result.proof is not None
    assert (result.calibrated, result.proof.samples) == (24, 5)
    seven = Options(check=False, samples=7)
    few = onnxq.optimize(model, data=data, validation=data, recipe=STATIC, options=seven)
    assert few.calibrated == 7


def test_one_sample_validates_on_what_calibration_saw(model: Path, data: Path) -> None:
    result = onnxq.optimize(model, data={"x": np.load(data)["x"][:1]}, recipe=STATIC, options=QUICK)
    assert result.proof is not None
    assert result.proof.seen
    assert "One sample only" in result.warnings[0]


def test_random_data_proves_nothing(model: Path, clock: Clock) -> None:
    result = onnxq.optimize(model)
    assert (result.mode, result.random, result.calibrated) == ("dynamic-int8", True, 0)
    assert any("random" in warning for warning in result.warnings)


def test_progress_is_told(model: Path, data: Path) -> None:
    told: dict[str, list[tuple[int, int]]] = {}
    options = Options(seconds=0, progress=lambda task, done, total: told.setdefault(task, []).append((done, total)))
    onnxq.optimize(model, data=data, options=options)
    assert {"calibrate", "validate"} <= told.keys()
    for steps in told.values():  # a task may come again, once it is done
        assert steps[-1][0] == steps[-1][1]
        assert all(one < other or one[0] == one[1] for one, other in pairwise(steps))


@pytest.mark.parametrize(
    ("recipe", "with_data"),
    [(Recipe(), True), (Recipe(format="qdq"), True), (Recipe(), False), (STATIC, True)],
    ids=["mixed", "qdq", "dynamic", "static"],
)
def test_a_plan_needs_no_data(
    model: Path, data: Path, tmp_path: Path, clock: Clock, recipe: Recipe, with_data: bool
) -> None:
    given = data if with_data else None
    unproven = Options(check=False)
    first = onnxq.optimize(model, tmp_path / "a.onnx", data=given, recipe=recipe, options=unproven)
    assert first.status == "optimized"
    again = onnxq.optimize(model, tmp_path / "b.onnx", plan=first.plan, options=unproven)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert again.plan == first.plan


# left alone, rejected


def test_integer_operators_are_left_as_they_are(model: Path, data: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "once.onnx", tmp_path / "twice.onnx"
    onnxq.optimize(model, once, data=data, recipe=STATIC, options=UNPROVEN)
    result = onnxq.optimize(once, twice, data=data)
    assert (result.status, result.proof) == ("left alone", None)
    assert "already holds integer operators" in result.reason
    assert once.read_bytes() == twice.read_bytes()


def test_nothing_to_quantize(data: Path, tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 16]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    source = tmp_path / "relu.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), source)
    result = onnxq.optimize(source, data=data)
    assert (result.status, result.output) == ("left alone", str(tmp_path / "relu.int8.onnx"))
    assert "no layer" in result.reason
    with pytest.raises(ModelError, match="nothing to calibrate"):
        onnxq.calibrate(source, tmp_path / "s.npz", data=data)


def test_qdq_is_folded_with_its_own_scales(model: Path, data: Path, tmp_path: Path) -> None:
    qdq, folded, direct = (tmp_path / f"{name}.onnx" for name in ("qdq", "folded", "direct"))
    onnxq.optimize(model, qdq, data=data, recipe=Recipe(format="qdq"), options=UNPROVEN)
    result = onnxq.optimize(qdq, folded, data=data, recipe=STATIC, options=QUICK)
    assert (result.status, result.calibrated) == ("optimized", 0)
    assert "MatMulIntegerToFloat" in operators(folded)
    onnxq.optimize(model, direct, data=data, recipe=STATIC, options=UNPROVEN)
    feeds = {"x": np.load(data)["x"]}
    one, other = (Session(path, threads=1).run(feeds)["y"] for path in (folded, direct))
    np.testing.assert_allclose(one, other, rtol=0, atol=0.05)
    kept = onnxq.optimize(qdq, tmp_path / "kept.onnx", recipe=Recipe(format="qdq"))
    assert (kept.status, (tmp_path / "kept.onnx").read_bytes()) == ("left alone", qdq.read_bytes())


def broken(model: Path, data: Path) -> onnxq.Plan:
    """A plan whose ranges are so wide that everything becomes 0."""
    plan = onnxq.optimize(model.read_bytes(), data=data, recipe=STATIC, options=UNPROVEN).plan
    assert plan is not None
    tensors = {name: t.model_copy(update={"scale": 1000 * t.scale}) for name, t in plan.tensors.items()}
    return plan.model_copy(update={"tensors": tensors})


def test_a_broken_model_is_rejected(model: Path, data: Path) -> None:
    output = model.with_name("model.int8.onnx")
    output.write_bytes(b"older")
    result = onnxq.optimize(model, data=data, plan=broken(model, data), options=QUICK)
    assert (result.status, result.output) == ("rejected", None)
    assert "Output 'y' has a mean cosine of" in result.reason
    assert result.proof is not None
    assert result.proof.cosine < 0.9
    assert output.read_bytes() == b"older"
    forced = onnxq.optimize(model, data=data, plan=broken(model, data), options=Options(seconds=0, force=True))
    assert (forced.status, forced.output) == ("optimized", str(output))


# the others


def test_statistics_of_several_runs_are_joined(model: Path, data: Path, tmp_path: Path) -> None:
    x = np.load(data)["x"]
    whole = onnxq.calibrate(model, tmp_path / "whole.npz", data=data)
    assert whole == {"output": str(tmp_path / "whole.npz"), "samples": 24, "tensors": 2, "non_finite": {}}
    for name, part in (("a", x[:10]), ("b", x[10:])):
        onnxq.calibrate(model, tmp_path / f"{name}.npz", data={"x": part})
    plans = [
        onnxq.optimize(model.read_bytes(), statistics=files, recipe=MSE, options=UNPROVEN).plan
        for files in ([tmp_path / "whole.npz"], [tmp_path / "a.npz", tmp_path / "b.npz"])
    ]
    assert plans[0] is not None
    assert plans[0] == plans[1]


def test_calibrate_takes_so_many_samples_at_most(model: Path, data: Path, tmp_path: Path) -> None:
    assert onnxq.calibrate(model, tmp_path / "s.npz", data=data, options=Options(samples=5))["samples"] == 5


def test_validate_compares_any_two_models(model: Path, data: Path, tmp_path: Path) -> None:
    onnxq.optimize(model, tmp_path / "q.onnx", data=data, recipe=STATIC, options=UNPROVEN)
    (same,) = api.validate(model, model, data=data, options=QUICK)
    assert (same.outputs["y"].cosine, same.outputs["y"].sqnr_db, same.outputs["y"].agreement) == (1.0, None, 1.0)
    (proof,) = api.validate(model, onnx.load(tmp_path / "q.onnx"), data=data, options=QUICK)
    assert 20 < (proof.outputs["y"].sqnr_db or 0) < 60
    assert "MatMulIntegerToFloat" in proof.kernels
    assert proof.layers[0].tensor in ("c", "y")


def test_validate_counts_labels(model: Path, data: Path) -> None:
    x = np.load(data)["x"]
    right = Session(model, threads=1).run({"x": x})["y"].argmax(-1)
    labels = np.where(np.arange(24) < 6, (right + 1) % 4, right)
    (proof,) = api.validate(model, model, data={"x": x, "labels": labels}, options=QUICK)
    assert (proof.outputs["y"].top1_float, proof.outputs["y"].top1) == (0.75, 0.75)


def test_bench_measures_against_the_first(model: Path, data: Path, tmp_path: Path) -> None:
    onnxq.optimize(model, tmp_path / "q.onnx", data=data, recipe=STATIC, options=UNPROVEN)
    first, second = onnxq.bench([model, tmp_path / "q.onnx"], data=data, options=Options(batch=3), seconds=0)
    assert (first["speedup"], first["batch"], first["threads"]) == (1.0, 3, 1)
    assert first["milliseconds"] > 0
    assert second["kernels"]["MatMulIntegerToFloat"] == 1


def test_inspect(model: Path, data: Path, tmp_path: Path) -> None:
    before = onnxq.inspect(onnx.load(model))
    assert (before.quantized, before.integer_layers, before.parameters) == ("float", 0, 16 * 32 + 32 + 32 * 4)
    assert before.inputs == ["x: float32[batch, 16]"]
    onnxq.optimize(model, tmp_path / "q.onnx", data=data, recipe=STATIC, options=UNPROVEN)
    after = onnxq.inspect(tmp_path / "q.onnx")
    assert (after.quantized, after.integer_layers) == ("integer operators", 2)
    assert {(layer.type, layer.scales) for layer in after.layers} == {("int8", 32), ("int8", 4)}


def test_passes_are_described() -> None:
    found = onnxq.describe_passes()
    order = ("normalize", "faster", "balance", "quantize", "find", "settle", "fold")
    assert [p["stage"] for p in found] == sorted((p["stage"] for p in found), key=order.index)
    assert all(step["does"].endswith(".") and step["promise"].endswith(")") for step in found)


def test_errors_have_their_classes(model: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        onnxq.optimize(tmp_path / "absent.onnx")
    with pytest.raises(ModelError):
        onnxq.optimize(b"not a model")
    with pytest.raises(DataError):
        onnxq.optimize(model, data={"z": np.zeros((1, 16))})
    with pytest.raises(DataError):
        onnxq.optimize(model, recipe=Recipe(mode="static-int8"))
    with pytest.raises(DataError):
        onnxq.bench([])
    with pytest.raises(RecipeError):
        onnxq.optimize(model, recipe=Recipe(mode="dynamic-int8", format="qdq"))
    with pytest.raises(ProviderError, match="CPUExecutionProvider"):
        onnxq.optimize(model, options=Options(providers=("NoSuchProvider",)))
    with pytest.raises(OutputError):
        onnxq.optimize(model, model, data=data)


# the trained models


def test_digits(tmp_path: Path) -> None:
    result = onnxq.optimize(
        MODELS / "digits.onnx",
        tmp_path / "q.onnx",
        data=MODELS / "digits_calibration.npz",
        validation=MODELS / "digits_test.npz",
        recipe=STATIC,
        options=QUICK,
    )
    assert (result.status, result.mode, result.warnings) == ("optimized", "static-int8", [])
    proof = result.proof
    assert proof is not None
    logits = proof.outputs["logits"]
    assert logits.top1_float is not None
    assert logits.top1 is not None
    assert logits.agreement is not None
    assert logits.top1 >= logits.top1_float - 0.01
    assert logits.agreement >= 0.99
    assert logits.cosine >= 0.999
    assert proof.size <= 0.3 * proof.size_float
    assert proof.kernels["QLinearConv"] >= 7
    assert {"QLinearAdd", "QLinearGlobalAveragePool", "MatMulIntegerToFloat"} <= proof.kernels.keys()


@pytest.mark.parametrize(
    ("mode", "kernels"),
    [("static-int8", {"MatMulIntegerToFloat"}), ("dynamic-int8", {"MatMulIntegerToFloat", "DynamicQuantizeMatMul"})],
)
def test_docstrings(tmp_path: Path, mode: Any, kernels: set[str]) -> None:
    result = onnxq.optimize(
        MODELS / "docstrings.onnx",
        tmp_path / "q.onnx",
        data=rows(MODELS / "docstrings_calibration.npz", 32),
        validation=rows(MODELS / "docstrings_test.npz", 100),
        recipe=Recipe(mode=mode),
        options=QUICK,
    )
    proof = result.proof
    assert proof is not None
    logits = proof.outputs["logits"]
    assert logits.top1_float is not None
    assert logits.top1 is not None
    assert logits.agreement is not None
    assert logits.top1 >= logits.top1_float - 0.01
    assert logits.agreement >= 0.98
    assert proof.size <= 0.35 * proof.size_float
    assert kernels <= proof.kernels.keys()


def test_docstrings_from_text(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="onnxq[text] is not installed.")
    tokenizer, texts = MODELS / "docstrings_tokenizer.json", MODELS / "docstrings_calibration.txt"
    words = f"text:{texts}?tokenizer={tokenizer}&length=64"
    few = Options(seconds=0, samples=16)
    test = rows(MODELS / "docstrings_test.npz", 16)
    result = onnxq.optimize(
        MODELS / "docstrings.onnx", tmp_path / "q.onnx", data=words, validation=test, recipe=MSE, options=few
    )
    assert result.proof is not None
    assert result.proof.cosine >= 0.999
    assert result.calibrated == 16


NOTHING_GOES_IN = """
<ir_version: 8, opset_import: ["" : 17]>
g () => (float[2] y) { y = Constant<value_floats=[1.0, 2.0]>() }
"""
A_SEQUENCE_GOES_IN = """
<ir_version: 8, opset_import: ["" : 17]>
g (seq(float[2, 3]) x) => (seq(float[2, 3]) y) { y = Identity(x) }
"""


@pytest.mark.parametrize("mode", ["auto", "static-int8", "weight-int8", "fp16"])
@pytest.mark.parametrize(("text", "words"), [(NOTHING_GOES_IN, "no inputs"), (A_SEQUENCE_GOES_IN, "'x'.*sequence")])
def test_a_model_that_cannot_be_fed_is_left_alone(text: str, words: str, mode: Mode, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(text)
    output = tmp_path / "out.onnx"
    result = onnxq.optimize(model, output, recipe=onnxq.Recipe(mode=mode))
    assert result.status == "left alone"
    assert re.search(words, result.reason)
    assert load(output).interface() == load(model).interface()


def test_data_of_the_model_that_was_there_before_is_named(tmp_path: Path) -> None:
    source, output = tmp_path / "in.onnx", tmp_path / "out.onnx"
    small = onnx.load(MODELS / "digits.onnx")
    onnx.save(onnx.load(MODELS / "digits.onnx"), source, save_as_external_data=True, location="w", size_threshold=256)
    kept = Recipe.model_validate({"mode": "dynamic-int8", "nodes": {"*": {"quantize": False}}})
    first = onnxq.optimize(source, output, recipe=kept, options=UNPROVEN)
    assert output.with_name("out.onnx.data").exists()
    assert not any("left of the model" in said for said in first.warnings)
    second = onnxq.optimize(small, output, recipe=kept, options=UNPROVEN)
    (said,) = (said for said in second.warnings if "left of the model" in said)
    assert "out.onnx.data' (0.9 MB)" in said
    assert output.with_name("out.onnx.data").exists(), "another model may read it"
