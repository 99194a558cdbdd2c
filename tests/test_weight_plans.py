"""Which layers take 8 bits instead of 4, and which channels are scaled up before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxq
from onnxq.errors import DataError, RecipeError
from onnxq.graph import to_model
from onnxq.recipe import make_recipe
from tests.onnx_text import floats, read

TEXT = """
(float[n,64] x) => (float[n,48] y) {
  [first] a = MatMul(x, u)
  [act] r = Tanh(a)
  [second] b = MatMul(r, v)
  [act2] s = Tanh(b)
  [third] y = MatMul(s, w)
}
"""
WEIGHTS = {"u": floats(64, 96) / 8, "v": floats(96, 96, seed=2) / 10, "w": floats(96, 48, seed=3) / 10}
DATA = {"x": floats(256, 64, seed=4)}
OPTIONS = onnxq.Options(seconds=0.0)


def built(tmp_path: Path, data: Any = None, name: str = "q.onnx", **wishes: Any) -> tuple[onnxq.Result, int]:
    model = to_model(read(TEXT, WEIGHTS)).SerializeToString()
    recipe = make_recipe({"mode": "weight-int4", **wishes})
    result = onnxq.optimize(model, tmp_path / name, data=data, recipe=recipe, options=OPTIONS)
    return result, (tmp_path / name).stat().st_size if result.output else 0


def bits(result: onnxq.Result) -> dict[str, int]:
    assert result.plan is not None
    return {name: node.bits for name, node in result.plan.nodes.items() if node.treatment == "weight"}


@pytest.mark.parametrize("data", [None, DATA])
def test_bits_on_average(tmp_path: Path, data: Any) -> None:
    sizes = []
    for asked in (4, 5, 6.5, 8):
        result, size = built(tmp_path, data, weight={"bits": asked})
        found, numbers = bits(result), {"first": 64 * 96, "second": 96 * 96, "third": 96 * 48}
        average = sum(found[name] * numbers[name] for name in found) / sum(numbers.values())
        assert average <= asked + 0.1
        sizes.append(size)
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_the_layer_that_loses_most_for_its_bytes_gets_8_bits(tmp_path: Path) -> None:
    """Weights of one size each, but in the third a few large ones leave coarse steps for all others of their block."""
    spiky = dict(WEIGHTS)
    spiky["w"] = spiky["w"].copy()
    spiky["w"][::16] *= 30
    model = to_model(read(TEXT, spiky)).SerializeToString()
    recipe = make_recipe({"mode": "weight-int4", "weight": {"bits": 5.2, "method": "rtn"}})
    result = onnxq.optimize(model, tmp_path / "q.onnx", data=DATA, recipe=recipe, options=OPTIONS)
    assert bits(result) == {"first": 4, "second": 4, "third": 8}
    assert result.plan is not None
    assert "lose most" in result.plan.nodes["third"].reason


def test_a_size_is_filled_with_bits(tmp_path: Path) -> None:
    _, least = built(tmp_path, DATA)
    _, largest = built(tmp_path, DATA, weight={"bits": 8})
    room = (least + largest) // 2
    result, size = built(tmp_path, DATA, contract={"max_size": room, "metric": "cosine"})
    assert least < size <= room
    assert set(bits(result).values()) == {4, 8}


def test_no_more_bits_than_the_accuracy_takes(tmp_path: Path) -> None:
    loose, small = built(tmp_path, DATA, contract={"metric": "sqnr", "max_drop": 0.5})
    strict, large = built(tmp_path, DATA, contract={"metric": "sqnr", "max_drop": 0.002})
    assert set(bits(loose).values()) == {4}
    assert 8 in bits(strict).values()
    assert small < large
    assert strict.status == "optimized"


def test_a_demand_for_accuracy_is_none_for_speed(tmp_path: Path) -> None:
    """Weights alone are for size: only who asks for speed is told that there is none."""
    result, _ = built(tmp_path, DATA, contract={"metric": "sqnr", "max_drop": 0.5})
    assert result.status == "optimized"
    result, _ = built(tmp_path, DATA, contract={"metric": "sqnr", "max_drop": 0.5, "min_speedup": 1000.0})
    assert result.status == "rejected"


def test_what_is_lost_beyond_the_usual_limit_is_said(tmp_path: Path) -> None:
    result, _ = built(tmp_path, DATA, weight={"block_size": "channel", "method": "rtn", "fit": False})
    assert result.status == "optimized"
    assert result.proof is not None
    assert result.proof.score is not None
    over = result.proof.score.drop - 2 * (result.proof.score.standard_error or 0) > 0.05
    assert over == any("(limit 5)" in words for words in result.warnings)
    assert over, "in 4 bits with one scale for each output one decision in twenty is another"


def test_awq_scales_channels_that_matter(tmp_path: Path) -> None:
    text = """
    (float[n,6,64] x) => (float[n,6,48] y) {
      n = LayerNormalization<axis=-1>(x, gain, shift)
      [layer] y = MatMul(n, w)
    }
    """
    gain = np.ones(64, np.float32)
    gain[:4] = 30
    weights = {"gain": gain, "shift": np.zeros(64, np.float32), "w": floats(64, 48) / 8}
    model = to_model(read(text, weights, opset=17)).SerializeToString()
    data, errors = {"x": floats(64, 6, 64)}, {}
    for method in ("rtn", "awq"):
        recipe = make_recipe({"mode": "weight-int4", "weight": {"method": method, "fit": False}})
        result = onnxq.optimize(model, tmp_path / "q.onnx", data=data, recipe=recipe, options=OPTIONS)
        assert result.proof is not None
        errors[method] = result.proof.outputs["y"].sqnr_db or 0.0
        assert result.plan is not None
        assert bool(result.plan.balance) == (method == "awq")
    assert errors["awq"] > errors["rtn"] + 1


def test_awq_needs_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="AWQ"):
        built(tmp_path, weight={"method": "awq"})


def test_8_bits_are_8_bits(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"weight-int8 has 8 bits, and not 4\.5"):
        built(tmp_path, mode="weight-int8", weight={"bits": 4.5})
