"""What will not run as integers is named with the reason; what does is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxq.api import optimize
from onnxq.errors import RecipeError
from onnxq.graph import to_model
from onnxq.linting import Lint, lint
from onnxq.options import Options
from onnxq.recipe import make_recipe
from tests.conftest import Command
from tests.onnx_text import read

MODELS = Path(__file__).parents[1] / "models"
RANDOM = np.random.default_rng(3)
SCALE, ZERO = np.float32(0.1), np.uint8(3)


def floats(*shape: int) -> np.ndarray[Any, Any]:
    return RANDOM.standard_normal(shape).astype(np.float32)


def found(text: str, weights: dict[str, Any], opset: int = 17) -> Lint:
    return lint(to_model(read(text, weights, opset)))


def test_a_float_model_without_obstacles_is_clean() -> None:
    seen = found("(float[N,8] x) => (float[N,4] y) { [fc] y = MatMul(x, w) }", {"w": floats(8, 4)})
    assert (seen.kind, seen.layers, seen.integer, seen.clean, seen.complaints) == ("float", 1, 1, True, [])


def test_a_layer_without_a_kernel_is_named_with_the_reason() -> None:
    text = """(float[N,8,6,6] x) => (float[N,4,7,7] y) {
        [conv] a = Conv<pads = [1, 1, 1, 1]>(x, w) [up] y = ConvTranspose<kernel_shape = [2, 2]>(a, v) }"""
    seen = found(text, {"w": floats(8, 8, 3, 3), "v": floats(8, 4, 2, 2)})
    (complaint,) = [each for each in seen.complaints if each.layer]
    assert (complaint.node, complaint.op) == ("up", "ConvTranspose")
    assert "no integer ConvTranspose" in complaint.reason
    assert (seen.layers, seen.integer, seen.clean) == (2, 1, False)


def test_an_operator_without_a_weight_is_mentioned_and_leaves_a_model_clean() -> None:
    seen = found("(float[N,8] x) => (float[N,4] y) { a = MatMul(x, w) [bend] y = Erf(a) }", {"w": floats(8, 4)})
    assert [(each.node, each.layer) for each in seen.complaints] == [("bend", False)]
    assert seen.clean


QDQ = """(float[N,8] x) => (float[N,4] y) {
    q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) v = DequantizeLinear(w, s, k) [fc] y = MatMul(d, v) }"""


def test_q_dq_that_folds_is_clean() -> None:
    weights = {"s": SCALE, "z": ZERO, "k": np.int8(0), "w": RANDOM.integers(-9, 9, (8, 4)).astype(np.int8)}
    seen = found(QDQ, weights)
    assert (seen.kind, seen.layers, seen.integer, seen.complaints) == ("Q/DQ", 1, 1, [])


def test_q_dq_of_16_bits_does_not_fold() -> None:
    weights = {"s": SCALE, "z": np.uint16(3), "k": np.int8(0), "w": RANDOM.integers(-9, 9, (8, 4)).astype(np.int8)}
    seen = found(QDQ, weights, opset=21)
    assert [(each.node, each.layer) for each in seen.complaints] == [("fc", True)]
    assert not seen.clean


def test_a_layer_that_has_no_q_dq_in_front_is_named() -> None:
    weights = {"s": SCALE, "k": np.int8(0), "w": RANDOM.integers(-9, 9, (4, 8, 3, 3)).astype(np.int8)}
    text = "(float[N,8,6,6] x) => (float[N,4,4,4] y) { v = DequantizeLinear(w, s, k) [conv] y = Conv(x, v) }"
    seen = found(text, weights)
    (complaint,) = seen.complaints
    assert (complaint.node, complaint.layer) == ("conv", True)
    assert "no Q/DQ in front" in complaint.reason or "float" in complaint.reason


INTEGER = """(float[N,8] x) => (float[N,4] y) {
    q = QuantizeLinear(x, s, z) p = QLinearMatMul(q, s, z, w, s, k, s, z) y = DequantizeLinear(p, s, z) }"""


@pytest.mark.parametrize(("zero", "clean"), [(np.uint8(3), True), (np.int8(0), False)])
def test_signed_activations_are_slow(zero: Any, clean: bool) -> None:
    weights = {"s": SCALE, "z": zero, "k": np.int8(0), "w": RANDOM.integers(-9, 9, (8, 4)).astype(np.int8)}
    seen = found(INTEGER, weights)
    assert (seen.kind, seen.layers, seen.clean) == ("integer operators", 1, clean)
    assert all("signed" in each.reason for each in seen.complaints)


def test_an_accumulator_that_is_returned_is_slow() -> None:
    text = """(float[N,8] x) => (float[N,4] y) {
        q, s, z = DynamicQuantizeLinear(x) [sum] a = MatMulInteger(q, w, z) f = Cast<to = 1>(a) y = Mul(f, s) }"""
    seen = found(text, {"w": RANDOM.integers(-9, 9, (8, 4)).astype(np.int8)})
    assert [each.node for each in seen.complaints if each.layer] == ["sum"]


def test_what_onnxq_makes_has_nothing_but_what_it_left_in_float(tmp_path: Path) -> None:
    recipe = make_recipe({"mode": "static-int8"})
    made = tmp_path / "digits.onnx"
    data = MODELS / "digits_calibration.npz"
    optimize(MODELS / "digits.onnx", made, data=data, recipe=recipe, options=Options(seconds=0.05))
    before, after = lint(MODELS / "digits.onnx"), lint(made)
    assert (before.layers, before.integer) == (9, 9)
    assert (after.kind, after.layers, after.integer) == ("integer operators", 9, 8)
    assert "integers could run here" in after.complaints[0].reason


def test_an_integer_model_is_asked_what_is_still_in_float() -> None:
    text = """(float[N,8] x) => (float[N,4] y) {
        q = QuantizeLinear(x, s, z) p = QLinearMatMul(q, s, z, w, s, k, s, z) d = DequantizeLinear(p, s, z)
        [bend] e = Erf(d) [late] f = MatMul(e, v) y = Softmax(f) }"""
    ints = RANDOM.integers(-9, 9, (8, 4)).astype(np.int8)
    seen = found(text, {"s": SCALE, "z": np.uint8(3), "k": np.int8(0), "w": ints, "v": floats(4, 4)})
    assert (seen.kind, seen.layers, seen.integer, seen.clean) == ("integer operators", 2, 1, False)
    said = {each.node: each for each in seen.complaints}
    assert said["late"].layer
    assert "quantize the float model again" in said["late"].reason
    assert not said["bend"].layer
    assert "no integer kernel for Erf" in said["bend"].reason
    assert not {each.op for each in seen.complaints} & {"QuantizeLinear", "DequantizeLinear", "QLinearMatMul"}


def test_a_target_without_integer_kernels_is_refused() -> None:
    with pytest.raises(RecipeError, match="'cuda' has no integer kernels"):
        lint(MODELS / "digits.onnx", target="cuda")


def test_the_command_exits_with_1_where_a_layer_stays_in_float(onnxq: Command, tmp_path: Path) -> None:
    text = "(float[N,8,6,6] x) => (float[N,4,7,7] y) { [up] y = ConvTranspose<kernel_shape = [2, 2]>(x, v) }"
    onnx.save(to_model(read(text, {"v": floats(8, 4, 2, 2)})), tmp_path / "up.onnx")
    done = onnxq("lint", tmp_path / "up.onnx", "--json")
    assert done.code == 1
    assert (done.json["layers"], done.json["integer"]) == (1, 0)
    assert "ConvTranspose (layer)" in onnxq("lint", tmp_path / "up.onnx").out
    assert "9 of 9 layers can run in integers" in onnxq("lint", MODELS / "digits.onnx").out
    assert onnxq("lint", MODELS / "docstrings.onnx", "--quiet").code == 0
    gone = onnxq("lint", "gone.onnx")
    assert (gone.code, gone.err.count("\n")) == (2, 1)
