"""A planted fault is found in what any tool made, and the cure that is named helps as much as it promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxq import Diagnosis, explain
from onnxq.diagnosis.findings import Cure, Finding
from onnxq.errors import DataError, ModelError
from tests.diagnosis.quantizers import (
    TOOLS,
    Array,
    by_onnxq,
    by_runtime,
    by_runtime_dynamic,
    chain,
    healthy,
    loud_input,
    perceptron,
    pictures,
    planted,
    rows,
    two_branches,
    wide_weight,
)

STATIC = [name for name in TOOLS if "dynamic" not in name]


def look(model: Path, quantized: Path, x: Array, **options: Any) -> Diagnosis:
    return explain(model, quantized, data={"x": x}, **options)


def kinds(finding: Finding) -> list[str]:
    return [cure.kind for cure in finding.cures]


def the(kind: str, finding: Finding) -> Cure:
    return next(cure for cure in finding.cures if cure.kind == kind)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_loud_channel_of_an_activation_is_found(tool: str, tmp_path: Path) -> None:
    model, x = loud_input(tmp_path / "model.onnx"), pictures(loud=500.0)
    found = look(model, TOOLS[tool](model, x), x, top=1)
    worst = found.findings[0]
    assert (worst.node, worst.input) == ("conv0", "x")
    assert worst.share > 0.9
    assert worst.activation_noise is not None
    assert worst.weight_noise is not None
    assert worst.activation_noise > worst.weight_noise > 0
    assert worst.input_outlier is not None
    assert worst.input_outlier.channel == 5
    assert worst.input_outlier.times > 100
    assert "Channel 5 of 'x' reaches" in worst.sentence
    assert "of it by its input" in worst.sentence
    assert "balance" not in kinds(worst), "nothing before it can take the factors"
    if worst.treatment == "static":
        assert 3 < the("16 bits", worst).gain_db < 60
    assert the("keep float", worst).nodes == ["conv0"]
    assert the("keep float", worst).gain_db > 20
    assert not any(finding.rescaled for finding in found.findings)


@pytest.mark.parametrize("tool", [name for name in TOOLS if "onnxq" in name or "per channel" in name])
def test_a_loud_channel_between_two_layers_is_found(tool: str, tmp_path: Path) -> None:
    model = planted(tmp_path / "model.onnx")
    found = look(model, TOOLS[tool](model, pictures()), pictures(), top=1)
    worst = found.findings[0]
    assert (worst.node, worst.input, worst.share > 0.9) == ("conv2", "r1", True)
    assert worst.input_outlier is not None
    assert worst.input_outlier.channel == 0
    assert the("balance", worst).gain_db > 20
    assert {tuple(c.nodes) for c in worst.cures if c.kind == "keep float"} >= {("conv1", "conv2")}
    assert found.additivity == pytest.approx(1, abs=0.1), "nothing is counted twice"


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("net", [two_branches, perceptron])
def test_the_simulation_comes_close_to_the_model(net: Any, tool: str, tmp_path: Path) -> None:
    model = net(tmp_path / "model.onnx")
    x = pictures() if net is two_branches else rows()
    found = look(model, TOOLS[tool](model, x), x, top=0)
    assert found.measured_db is not None
    assert found.simulated_db == pytest.approx(found.measured_db, abs=1.0)
    assert 15 < found.measured_db < 60
    assert found.notes == []
    assert found.layers == 3
    assert 0.5 < found.additivity < 2


@pytest.mark.parametrize("tool", ["onnxq", "onnxruntime, qdq", "onnxruntime, integer"])
def test_a_wide_channel_of_a_weight_is_found(tool: str, tmp_path: Path) -> None:
    model, x = wide_weight(tmp_path / "model.onnx"), pictures()
    quantized = by_onnxq(model, x, weight={"per_channel": False}) if tool == "onnxq" else TOOLS[tool](model, x)
    worst = look(model, quantized, x, top=1).findings[0]
    assert worst.node == "conv1"
    assert worst.weight_noise is not None
    assert worst.weight_noise > 0.9 * worst.noise
    assert worst.weight_outlier is not None
    assert worst.weight_outlier.channel == 0
    assert not worst.per_channel
    assert "and all channels share one scale" in worst.sentence
    assert worst.cures[0].kind == "per channel"
    assert worst.cures[0].gain_db > 10


@pytest.mark.parametrize("kind", ["per channel", "keep float"])
def test_the_cure_of_a_wide_channel_of_a_weight_restores_the_accuracy(kind: str, tmp_path: Path) -> None:
    """One planted layer is found first, and what is said to cure it does so when it is asked for in the recipe."""
    model, x = wide_weight(tmp_path / "model.onnx"), pictures()
    before = look(model, by_onnxq(model, x, weight={"per_channel": False}), x, top=4)
    worst, named = before.findings[0], the(kind, before.findings[0])
    assert (worst.node, worst.share > 0.9) == ("conv1", True)
    wish = {worst.node: {"per_channel": True}}
    if kind == "keep float":
        wish = {name: {"quantize": False} for name in named.nodes}
    after = look(model, by_onnxq(model, x, weight={"per_channel": False}, nodes=wish), x, top=0)
    assert before.measured_db is not None
    assert after.measured_db is not None
    assert before.measured_db < 10 < 25 < after.measured_db
    assert after.measured_db == pytest.approx(before.measured_db + named.gain_db, abs=1.5)
    assert after.findings[0].share < 0.9, "no layer stands out any more"
    if kind == "per channel":
        cured = next(finding for finding in after.findings if finding.node == worst.node)
        assert (cured.per_channel, cured.noise < 0.02 * worst.noise) == (True, True)
    for other in before.findings[1:]:
        nothing = look(model, by_onnxq(model, x, weight={"per_channel": False}, nodes=spared(other)), x, top=0)
        assert nothing.measured_db is not None
        assert nothing.measured_db < before.measured_db + 1, "the others are not to blame"


def spared(finding: Finding) -> dict[str, Any]:
    return {finding.node: {"quantize": False}}


def test_keeping_float_what_is_named_restores_the_accuracy(tmp_path: Path) -> None:
    model, x = planted(tmp_path / "model.onnx"), pictures()
    before = look(model, by_onnxq(model, x), x, top=1)
    cure = max((c for c in before.findings[0].cures if c.kind == "keep float"), key=lambda cure: cure.gain_db)
    assert cure.nodes == ["conv1", "conv2"], "the tensor is rounded as long as one of its two sides is quantized"
    assert before.all_float is not None
    assert (before.all_float.nodes, before.all_float.gain_db) == (cure.nodes, cure.gain_db)
    nodes = {name: {"quantize": False} for name in cure.nodes}
    after = look(model, by_onnxq(model, x, nodes=nodes), x, top=0)
    assert cure.gain_db > 5
    assert before.measured_db is not None
    assert after.measured_db == pytest.approx(before.measured_db + cure.gain_db, abs=1.0)
    assert after.measured_db == pytest.approx(cure.sqnr_db, abs=1.0)
    assert "conv2" not in {finding.node for finding in after.findings}


def test_one_side_alone_does_not_help(tmp_path: Path) -> None:
    model, x = planted(tmp_path / "model.onnx"), pictures()
    before = look(model, by_onnxq(model, x), x, top=1)
    alone = [c.gain_db for c in before.findings[0].cures if c.nodes == ["conv2"]]
    after = look(model, by_onnxq(model, x, nodes={"conv2": {"quantize": False}}), x, top=0)
    assert before.measured_db is not None
    assert after.measured_db == pytest.approx(before.measured_db + sum(alone), abs=1.0)


def test_balancing_helps_as_much_as_it_promises(tmp_path: Path) -> None:
    model, x = planted(tmp_path / "model.onnx"), pictures()
    before = look(model, by_onnxq(model, x), x, top=1)
    after = look(model, by_onnxq(model, x, balance=True), x, top=0)
    assert before.measured_db is not None
    assert after.measured_db is not None
    assert after.measured_db > before.measured_db + the("balance", before.findings[0]).gain_db - 6
    assert {finding.node for finding in after.findings if finding.rescaled} >= {"conv1", "conv2"}
    assert after.simulated_db == pytest.approx(after.measured_db, abs=1.0)
    assert "Its channels were rescaled" in next(f for f in after.findings if f.node == "conv2").sentence


@pytest.mark.parametrize("tool", ["onnxruntime, qdq", "onnxruntime, integer"])
@pytest.mark.parametrize("pooled", ["", "r1"])
def test_channels_that_were_equalized_before(pooled: str, tool: str, tmp_path: Path) -> None:
    weights, factors = healthy(), 20 * np.exp(np.random.default_rng(1).normal(0, 1, 8))
    model = chain(tmp_path / "model.onnx", weights, pooled=pooled)
    weights[1], weights[2] = weights[1] * factors.reshape(-1, 1, 1, 1), weights[2] / factors.reshape(1, -1, 1, 1)
    equalized = chain(tmp_path / "equalized.onnx", weights, pooled=pooled)
    scaled_bias(equalized, "b1", factors)
    found = look(model, TOOLS[tool](equalized, pictures()), pictures(), top=1)
    assert {finding.node for finding in found.findings if finding.rescaled} == {"conv1", "conv2"}
    assert found.measured_db is not None
    assert found.simulated_db == pytest.approx(found.measured_db, abs=1.0)


def equalized(source: Path, target: Path, factors: dict[str, Array]) -> Path:
    """The same function, with what the second and the third convolution make multiplied channel by channel."""
    stored = onnx.load(source)
    weights = {tensor.name: tensor for tensor in stored.graph.initializer}
    for name, values in factors.items():
        shape = (-1, 1, 1, 1) if name.startswith("w") else (-1,) if name.startswith("b") else (1, -1, 1, 1)
        own = weights[name.removeprefix("/")]
        changed = numpy_helper.to_array(own) * values.reshape(shape) ** (-1 if name.startswith("/") else 1)
        own.CopyFrom(numpy_helper.from_array(changed.astype(np.float32), own.name))
    onnx.save(stored, target)
    return target


def some_factors(seed: int) -> Array:
    return np.asarray(20 * np.exp(np.random.default_rng(seed).normal(0, 1, 8)))


def test_a_float_layer_that_was_rescaled_tells_of_those_behind_it(tmp_path: Path) -> None:
    """Else a layer that was rescaled on both sides has one factor too many to be found: outputs * c, inputs / c."""
    model, f, g = chain(tmp_path / "model.onnx", healthy()), some_factors(1), some_factors(2)
    factors = {"w1": f, "b1": f, "/w2": f, "w2": g, "b2": g, "/w3": g}
    changed = equalized(model, tmp_path / "equalized.onnx", factors)
    for kept in (["conv1"], ["conv0", "conv1"]):
        quantized = by_onnxq(changed, pictures(), nodes={name: {"quantize": False} for name in kept})
        found = look(model, quantized, pictures(), top=0)
        assert {finding.node for finding in found.findings if finding.rescaled} == {"conv2", "conv3"}
        assert found.measured_db is not None
        assert found.simulated_db == pytest.approx(found.measured_db, abs=1.0)
        assert found.notes == []


def test_a_sum_of_rescaled_tensors_is_rescaled_too(tmp_path: Path) -> None:
    model, f = two_sums(tmp_path / "model.onnx"), some_factors(1)
    changed = equalized(model, tmp_path / "equalized.onnx", {"w0": f, "b0": f, "w1": f, "b1": f, "/w2": f})
    found = look(model, by_runtime(changed, pictures(), integer=True, per_channel=True), pictures(), top=1)
    assert {finding.node for finding in found.findings if finding.rescaled} == {"conv0", "conv1", "conv2"}
    assert "Add" in {finding.op for finding in found.findings}
    assert found.measured_db is not None
    assert found.simulated_db == pytest.approx(found.measured_db, abs=1.0)


def two_sums(path: Path) -> Path:
    """Two convolutions of one picture, their sum twice over, and one convolution of that."""
    chain(path, healthy()[:3])
    stored = onnx.load(path)
    nodes = [
        onnx.helper.make_node("Conv", ["x", f"w{i}", f"b{i}"], [f"c{i}"], f"conv{i}", pads=[1] * 4) for i in (0, 1)
    ]
    nodes.append(onnx.helper.make_node("Add", ["c0", "c1"], ["s"], "sum"))
    nodes.append(onnx.helper.make_node("MaxPool", ["s"], ["m"], "max", kernel_shape=[1, 1]))
    nodes.append(onnx.helper.make_node("Add", ["m", "s"], ["t"], "twice"))
    nodes.append(onnx.helper.make_node("Conv", ["t", "w2", "b2"], ["y"], "conv2", pads=[1] * 4))
    del stored.graph.node[:]
    stored.graph.node.extend(nodes)
    onnx.save(stored, path)
    return path


def scaled_bias(model: Path, name: str, factors: Array) -> None:
    stored = onnx.load(model)
    bias = next(tensor for tensor in stored.graph.initializer if tensor.name == name)
    bias.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(bias) * factors).astype(np.float32), name))
    onnx.save(stored, model)


@pytest.mark.parametrize("tool", STATIC)
def test_layers_without_names_are_told_by_place(tool: str, tmp_path: Path) -> None:
    model, x = loud_input(tmp_path / "model.onnx", named=False), pictures(loud=500.0)
    bare = tmp_path / "bare.onnx"
    without_names(TOOLS[tool](model, x), bare)
    found = look(model, bare, x, top=0)
    assert found.layers == 4
    assert (found.findings[0].op, found.findings[0].input) == ("Conv", "x")


def without_names(source: Path, target: Path) -> None:
    """The same model, in which every inner name says nothing."""
    model = onnx.load(source)
    graph = model.graph
    kept = {value.name for value in (*graph.input, *graph.output)} | {""}
    names: dict[str, str] = {}
    for node in graph.node:
        node.name = ""
        for tensors in (node.input, node.output):
            tensors[:] = [n if n in kept else names.setdefault(n, f"tensor{len(names)}") for n in tensors]
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    del graph.value_info[:]
    onnx.save(model, target)


def test_what_is_dynamic_or_stored_in_blocks(tmp_path: Path) -> None:
    model, x = perceptron(tmp_path / "model.onnx"), rows()
    dynamic = look(model, by_onnxq(model, x, mode="dynamic-int8"), x, top=1)
    assert {f.treatment for f in dynamic.findings} == {"dynamic"}
    assert dynamic.simulated_db == pytest.approx(dynamic.measured_db, abs=0.5)
    blocks = look(model, by_onnxq(model, x, mode="weight-int8"), x, top=1)
    assert {f.treatment for f in blocks.findings} == {"weight"}
    assert all((f.weight_noise, f.activation_noise) == (f.noise, 0.0) for f in blocks.findings)
    assert blocks.simulated_db is not None
    assert blocks.simulated_db > 40
    assert all("MatMulNBits rounds activations" in note for note in blocks.notes)
    treatments = {f.treatment for f in look(model, by_runtime_dynamic(model), x, top=0).findings}
    assert treatments == {"dynamic"}


def test_a_range_that_cuts_values_off(tmp_path: Path) -> None:
    model, x = chain(tmp_path / "model.onnx", healthy()), pictures()
    narrow = by_runtime(model, x / 4, integer=True)
    first = next(f for f in look(model, narrow, x, top=4).findings if f.node == "conv0")
    assert first.clipped == pytest.approx(0.33, abs=0.1)
    assert "of the values of 'x' lie beyond the range" in first.sentence
    assert (first.cures[0].kind, first.cures[0].rule) == ("range", "minmax")
    assert first.cures[0].gain_db > 0.3


def test_local_and_accumulated_errors(tmp_path: Path) -> None:
    model, x = chain(tmp_path / "model.onnx", healthy()), pictures()
    findings = {f.node: f for f in look(model, by_onnxq(model, x), x, top=5).findings}
    last = findings["conv3"]
    assert last.local_db is not None
    assert last.accumulated_db is not None
    assert last.local_db > last.accumulated_db + 1
    assert findings["conv0"].local_db == pytest.approx(findings["conv0"].accumulated_db)
    assert sum(f.share for f in findings.values()) == pytest.approx(1)


def test_a_model_that_is_not_what_it_says(tmp_path: Path) -> None:
    model, x = chain(tmp_path / "model.onnx", healthy()), pictures()
    quantized = by_runtime(model, x, integer=False)
    stored = onnx.load(quantized)
    last = stored.graph.node[-1]
    name = last.output[0]
    last.output[0] = "before"
    stored.graph.node.append(onnx.helper.make_node("Add", ["before", "before"], [name], "doubled"))
    onnx.save(stored, quantized)
    found = look(model, quantized, x, top=0)
    (note,) = found.notes
    assert note.startswith("The runtime computes something else than the graph says: 0.0 dB")


def test_the_worst_output_counts(tmp_path: Path) -> None:
    model, x = chain(tmp_path / "model.onnx", healthy()), pictures()
    stored = onnx.load(model)
    stored.graph.output.append(onnx.helper.make_tensor_value_info("r0", 1, ["batch", 8, 12, 12]))
    onnx.save(stored, model)
    found = look(model, by_runtime(model, x, integer=False), x, top=0)
    assert found.output == "y"
    assert found.simulated_db == pytest.approx(found.measured_db, abs=0.5)


def test_made_up_data_is_said(tmp_path: Path) -> None:
    model = chain(tmp_path / "model.onnx", healthy())
    found = explain(model, by_onnxq(model, pictures()), data="random", top=0, samples=2)
    assert found.samples == 2
    assert any("random numbers" in note for note in found.notes)


def test_what_cannot_be_explained(tmp_path: Path) -> None:
    model, other = chain(tmp_path / "model.onnx", healthy()), perceptron(tmp_path / "other.onnx")
    quantized = by_onnxq(model, pictures())
    with pytest.raises(ModelError, match="quantized already"):
        look(quantized, model, pictures())
    with pytest.raises(ModelError, match="holds no quantized weight"):
        look(model, model, pictures())
    renamed = tmp_path / "renamed.onnx"
    rename_input(quantized, renamed)
    with pytest.raises(ModelError, match="inputs of the two models differ"):
        look(model, renamed, pictures())
    with pytest.raises(DataError):
        look(model, quantized, rows())
    with pytest.raises(DataError):
        look(other, by_onnxq(other, rows()), pictures())


def rename_input(source: Path, target: Path) -> None:
    model = onnx.load(source)
    for node in model.graph.node:
        node.input[:] = ["z" if name == "x" else name for name in node.input]
    model.graph.input[0].name = "z"
    onnx.save(model, target)
