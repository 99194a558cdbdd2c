"""Models that others exported, awkward ones included; they lie beside the project where it is developed."""

from __future__ import annotations

from pathlib import Path

import pytest

import onnxq
from onnxq.modelfile import load

ZOO = Path(__file__).resolve().parents[2] / "shared" / "zoo"
MODELS = sorted(ZOO.glob("models/*.onnx")) + sorted(ZOO.glob("torture/*.onnx"))
REFUSED = {"superres_customops_op18.onnx": "DecodeImage"}
"""What the runtime cannot load, and what the error must name."""

QUICK = onnxq.Options(seconds=0.0, samples=2)

pytestmark = pytest.mark.skipif(not MODELS, reason="no model zoo beside the project")


@pytest.mark.parametrize("mode", ["static-int8", "dynamic-int8", "weight-int8"])
@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.stem)
def test_optimized_or_left_alone_with_a_reason(model: Path, mode: str, tmp_path: Path) -> None:
    recipe = onnxq.Recipe.model_validate({"mode": mode, "least_sqnr": 0, "activation": {"range": "minmax"}})
    output = tmp_path / "out.onnx"
    data = "random?samples=3" if mode == "static-int8" else None
    if model.name in REFUSED:
        with pytest.raises(onnxq.OnnxqError, match=REFUSED[model.name]):
            onnxq.optimize(model, output, data=data, recipe=recipe, options=QUICK)
        assert not output.exists()
        return
    result = onnxq.optimize(model, output, data=data, recipe=recipe, options=QUICK)
    assert result.status == "optimized" or (result.status == "left alone" and result.reason)
    assert load(output).interface() == load(model).interface()


@pytest.mark.parametrize("name", ["torture/mobilenetv2_qdq_int8_op15", "models/cifar10_resnet20"])
def test_the_same_command_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    made = []
    for number in range(2):
        output = tmp_path / f"{number}.onnx"
        onnxq.optimize(ZOO / f"{name}.onnx", output, data="random?samples=4", options=QUICK)
        made.append(output.read_bytes())
    assert made[0] == made[1]
