"""Small models from ONNX text, with weights of no meaning: what probes of the runtime are made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxq.graph import MICROSOFT, Array

OPSET = 17
MIDDLE = {"uint8": 128, "int8": 0, "int32": 0}
"""The zero point that stands for as many numbers above as below."""


def parsed(inputs: str, weights: str, body: str, outputs: Sequence[str], opset: int = OPSET) -> onnx.ModelProto:
    """A model from ONNX text. Weights without values get random ones, scales 0.02, zero points the middle."""
    returned = ", ".join(f"float {name}" for name in outputs)
    versions = f'["" : {opset}, "{MICROSOFT}" : 1]'
    text = f"<ir_version: 8, opset_import: {versions}> probe ({inputs}) => ({returned}) <{weights}> {{ {body} }}"
    model = onnx.parser.parse_model(text.replace("MS.", f"{MICROSOFT}."))
    for info in model.graph.value_info:
        model.graph.initializer.append(numpy_helper.from_array(_filled(info), info.name))
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.ClearField("type")  # the runtime infers it
    return model


def _filled(info: onnx.ValueInfoProto) -> Array:
    dtype = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
    shape = [dimension.dim_value for dimension in info.type.tensor_type.shape.dim]
    if info.name.endswith("_scale"):
        return np.full(shape, 0.02, dtype)
    if info.name.endswith("_zero"):
        return np.full(shape, MIDDLE[dtype.name], dtype)
    return random_array(dtype, shape)


def random_array(dtype: np.dtype, shape: Sequence[int]) -> Array:
    """Values that neither overflow nor vanish."""
    generator = np.random.default_rng(0)
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    return generator.integers(0, 2 if dtype.kind == "b" else 100, shape).astype(dtype)
