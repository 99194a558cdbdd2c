"""What each cure switches, before anything is simulated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxq.calibration.collect import Seen, Statistics
from onnxq.diagnosis.constants import dequantized
from onnxq.diagnosis.cures import Clinic, Trial, balanced_weight, balancing_factors, divided_weight, round_like
from onnxq.diagnosis.examination import normal
from onnxq.diagnosis.matching import Pair, float_layers
from onnxq.diagnosis.stored import StoredLayer
from onnxq.diagnosis.suspects import Case, open_case
from onnxq.graph import weight
from onnxq.modelfile import load
from onnxq.numerics.affine import dequantize, quantize_weight
from onnxq.numerics.formats import INT8
from onnxq.numerics.rescaling import Factors
from tests.diagnosis.quantizers import by_runtime, pictures, two_branches
from tests.onnx_text import Array, floats, grid, integers, read

V, W = floats(6, 8), floats(8, 4, seed=4)
FLOAT = """(float[n,6] x) => (float[n,8] y, float[n,4] z, float[n,8] r) {
    [one] a = MatMul(x, v) [act] r = LeakyRelu(a) [two] z = MatMul(r, w) [side] y = LeakyRelu(r)
}"""


def rounded(values: Array, axis: int | None) -> dict[str, Array]:
    found = quantize_weight(values, INT8, axis=axis)
    return {"": found.values, "_scale": found.scale, "_zero": found.zero_point}


def case(axis: int | None = None, *, dynamic: bool = False) -> Case:
    """Everything rounded; the tensor r is an output too, and is made by an operator on integers."""
    parts = {f"v_quantized{k}": v for k, v in rounded(V, axis).items()}
    parts |= {f"w_quantized{k}": v for k, v in rounded(W, axis).items()}
    parts |= grid("x", -3, 3) | grid("a", -9, 9) | grid("r", -5, 9)
    along = "" if axis is None else f"<axis={axis}>"
    head = "x_q = QuantizeLinear(x, x_scale, x_zero) x_f = DequantizeLinear(x_q, x_scale, x_zero)"
    if dynamic:
        head = "x_q, xs, xz = DynamicQuantizeLinear(x) x_f = DequantizeLinear(x_q, xs, xz)"
        parts = {name: values for name, values in parts.items() if not name.startswith("x_")}
    text = f"""(float[n,6] x) => (float[n,8] y, float[n,4] z, float[n,8] r) {{ {head}
        v_f = DequantizeLinear{along}(v_quantized, v_quantized_scale, v_quantized_zero)
        w_f = DequantizeLinear{along}(w_quantized, w_quantized_scale, w_quantized_zero)
        [one] a = MatMul(x_f, v_f) a_q = QuantizeLinear(a, a_scale, a_zero) a_f = DequantizeLinear(a_q, a_scale, a_zero)
        [act] s = LeakyRelu(a_f) r_quantized = QuantizeLinear(s, r_scale, r_zero)
        r = DequantizeLinear(r_quantized, r_scale, r_zero)
        [two] z = MatMul(r, w_f) [side] y = LeakyRelu(r)
    }}"""
    return open_case(read(FLOAT, {"v": V, "w": W}), read(text, parts))


def statistics(**more: Array) -> Statistics:
    found = {"x": floats(20, 6, seed=8), "a": floats(20, 8, seed=9), "r": floats(20, 8, seed=7)} | more
    return {name: Seen.of(values) for name, values in found.items()}


def trials(found: Case, name: str) -> dict[str, list[Trial]]:
    made: dict[str, list[Trial]] = {}
    for trial in Clinic.of(found, statistics()).trials(found.suspects[name]):
        made.setdefault(trial.kind, []).append(trial)
    return made


def test_the_case_itself() -> None:
    found = case()
    assert {name: suspect.activation for name, suspect in found.suspects.items()} == {
        "one": ["one: input", "a: between"],
        "act": ["r: between"],
        "two": ["two: input"],
    }


def test_another_range_is_for_all_readers() -> None:
    found = trials(case(), "two")["range"]
    assert [trial.rule for trial in found] == ["minmax", "percentile", "entropy", "mse"]
    more = found[0].more
    assert {switch.readers for switch in more} == {("two",), ("side", "r")}
    low, high = float(floats(20, 8, seed=7).min()), float(floats(20, 8, seed=7).max())
    (scale,) = {float(switch.grid.scale) for switch in more if switch.grid}
    assert scale == pytest.approx((high - low) / 255)
    assert f"[{low:.4g}, {high:.4g}]" in found[0].sentence


def test_16_bits() -> None:
    (trial,) = trials(case(), "two")["16 bits"]
    assert {switch.grid.format.name for switch in trial.more if switch.grid} == {"uint16"}


def test_what_has_no_fixed_grid_gets_no_other() -> None:
    found = trials(case(dynamic=True), "one")
    assert {switch.tensor for trial in found["range"] for switch in trial.more} == {"a"}, "the other one is found anew"


@pytest.mark.parametrize("axis", [1, None])
def test_a_scale_for_each_channel_where_there_is_one(axis: int | None) -> None:
    found = trials(case(axis), "two").get("per channel", [])
    assert len(found) == (axis is None)
    for trial in found:
        (switch,) = trial.more
        best = quantize_weight(W, INT8, axis=1)
        np.testing.assert_array_equal(switch.values, dequantize(best.values, best.scale, best.zero_point, 1))
        assert (switch.tensor, switch.readers, trial.off) == ("w", ("two",), frozenset({"two: bias"}))


def test_balance_stretches_the_grid_and_the_weight() -> None:
    (trial,) = trials(case(1), "one")["balance"]
    assert trial.sentence.endswith("at the cost of a Mul."), "nothing before the input can take the factors"
    data, values = trial.more
    assert data.grid is not None
    assert values.values is not None
    assert (data.tensor, data.grid.scale.shape, data.grid.axis) == ("x", (6,), -1)
    reach = np.abs(floats(20, 6, seed=8)).max(axis=0)
    expected = np.sqrt(reach / np.abs(V).max(axis=1))
    ratio = data.grid.scale / expected
    np.testing.assert_allclose(ratio, np.full(6, ratio[0]), rtol=1e-5)
    assert 0 < np.sum((values.values - V) ** 2) < 1e-3 * np.sum(V**2)


def test_no_factors_for_a_layer_that_makes_what_it_reads(tmp_path: Path) -> None:
    model = two_branches(tmp_path / "model.onnx")
    found = open_case(normal(load(model)), normal(load(by_runtime(model, pictures(), integer=False))))
    seen = {"q": Seen.of(np.abs(pictures())), "x": Seen.of(pictures())}
    clinic = Clinic.of(found, seen)
    assert clinic.spaces["q"] is clinic.spaces["r"], "joined by an Add"
    kinds = [trial.kind for trial in clinic.trials(found.suspects["second"])]
    assert "range" in kinds
    assert "balance" not in kinds


def test_no_factors_on_top_of_others() -> None:
    found = case()
    found.suspects["one"].factors = Factors(np.ones(8), np.full(6, 2.0))
    assert trials(found, "one").keys() == {"range", "16 bits", "keep float"}


def pair(op: str, values: Array, axis: int | None) -> Pair:
    shape = f"n,{values.shape[1]},2,2" if op == "Conv" else f"n,{values.shape[0]}"
    (layer,) = float_layers(read(f"(float[{shape}] x) => (y) {{ [l] y = {op}(x, w) }}", {"w": values}))
    found = quantize_weight(values, INT8, axis=axis)
    numbers = dequantized(found.values, found.scale, found.zero_point, axis or 0)
    return Pair(layer, StoredLayer(layer.node, (), numbers, None, None))


@pytest.mark.parametrize("axis", [1, None])
def test_rounds_with_as_many_scales_as_before(axis: int | None) -> None:
    values = W * np.array([1, 10, 100, 1000], np.float32)
    found = round_like(pair("MatMul", W, axis), values)
    best = quantize_weight(values, INT8, axis=axis)
    np.testing.assert_array_equal(found, dequantize(best.values, best.scale, best.zero_point, axis))


def test_weights_of_both_sides() -> None:
    product = pair("MatMul", W, None)
    inputs, outputs = np.linspace(1, 3, 8).astype(np.float32), np.linspace(1, 3, 4).astype(np.float32)
    read_side, made_side = balanced_weight(product, inputs, "b"), divided_weight(product, outputs, "b")
    assert read_side.values is not None
    assert made_side.values is not None
    np.testing.assert_allclose(read_side.values, round_like(product, W * inputs[:, None]) / inputs[:, None], rtol=1e-5)
    np.testing.assert_allclose(made_side.values, round_like(product, W / outputs) * outputs, rtol=1e-5)


def test_factors() -> None:
    product = pair("MatMul", W, None)
    reach, weights = np.linspace(1, 8, 8), np.abs(W).max(axis=1)
    free = balancing_factors(reach, [product.layer], np.inf)
    assert np.log(free).mean() == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(free**2 / free[0] ** 2, reach / weights * weights[0] / reach[0], rtol=1e-5)
    bound = balancing_factors(reach, [product.layer], 6.0)
    assert np.all(reach / bound <= 6.0 + 1e-5), "nothing passes the limit of the Clip"
    assert bound.max() == pytest.approx(8 / 6)
    kernel = pair("Conv", floats(3, 2, 1, 1), 0)
    own = balancing_factors(np.ones(2), [kernel.layer], np.inf)
    expected = 1 / np.sqrt(np.abs(weight(kernel.layer.weight)).max(axis=(0, 2, 3)))
    np.testing.assert_allclose(own / own[0], expected / expected[0], rtol=1e-5)


def kept(found: Case, *names: str) -> set[str]:
    """What is switched off while these operators are float."""
    return set(Clinic.of(found, statistics()).in_float(set(names)).off)


def test_what_goes_when_operators_stay_float() -> None:
    found = case()
    assert kept(found, "two") == {"two: weight"}, "r is made in integers, and rounded whoever reads it"
    assert kept(found, "one") == {"one: weight", "one: input"}, "a is read in integers"
    assert kept(found, "two", "side") == {"two: weight"}
    assert kept(found, "act", "two", "side") == {"two: weight", "two: input", "r: between"}
    assert kept(found, "one", "act") == {"one: weight", "one: input", "a: between"}
    assert [trial.nodes for trial in trials(found, "two")["keep float"]] == [("two",), ("act", "two")]
    assert [trial.nodes for trial in trials(found, "one")["keep float"]] == [("one",), ("one", "act")]
    assert [trial.nodes for trial in trials(found, "act")["keep float"]] == [("act",), ("act", "side")]


def test_an_output_that_nobody_reads() -> None:
    parts = integers("v_quantized", (6, 8)) | grid("x", -3, 3) | grid("y", -9, 9)
    text = """(float[n,6] x) => (float[n,8] y) {
        x_q = QuantizeLinear(x, x_scale, x_zero) x_f = DequantizeLinear(x_q, x_scale, x_zero)
        v_f = DequantizeLinear(v_quantized, v_quantized_scale, v_quantized_zero) [one] a = MatMul(x_f, v_f)
        y_quantized = QuantizeLinear(a, y_scale, y_zero) y = DequantizeLinear(y_quantized, y_scale, y_zero)
    }"""
    found = open_case(read("(float[n,6] x) => (float[n,8] y) { [one] y = MatMul(x, v) }", {"v": V}), read(text, parts))
    assert found.switches["y: between"].readers == ("y",)
    assert kept(found, "one") == {"one: weight", "one: input", "y: between"}
