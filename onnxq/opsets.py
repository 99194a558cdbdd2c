"""What the operator sets say: the names of operands, and the values of attributes that are left out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import onnx

MICROSOFT: Mapping[str, tuple[str, ...]] = {
    "QLinearAdd": ("A", "A_scale", "A_zero_point", "B", "B_scale", "B_zero_point", "C_scale", "C_zero_point"),
    "QLinearMul": ("A", "A_scale", "A_zero_point", "B", "B_scale", "B_zero_point", "C_scale", "C_zero_point"),
    "QLinearSigmoid": ("X", "X_scale", "X_zero_point", "Y_scale", "Y_zero_point"),
    "QLinearLeakyRelu": ("X", "X_scale", "X_zero_point", "Y_scale", "Y_zero_point"),
    "QLinearSoftmax": ("X", "X_scale", "X_zero_point", "Y_scale", "Y_zero_point"),
    "QLinearAveragePool": ("X", "X_scale", "X_zero_point", "Y_scale", "Y_zero_point"),
    "QLinearGlobalAveragePool": ("X", "X_scale", "X_zero_point", "Y_scale", "Y_zero_point"),
    "QLinearReduceMean": ("data", "data_scale", "data_zero_point", "reduced_scale", "reduced_zero_point"),
    "QLinearConv": ("x", "x_scale", "x_zero_point", "w", "w_scale", "w_zero_point", "y_scale", "y_zero_point", "B"),
    "QGemm": ("A", "A_scale", "A_zero_point", "B", "B_scale", "B_zero_point", "C", "Y_scale", "Y_zero_point"),
    "MatMulIntegerToFloat": ("A", "B", "A_scale", "B_scale", "A_zero_point", "B_zero_point", "bias"),
    "DynamicQuantizeMatMul": ("A", "B", "B_scale", "B_zero_point", "bias"),
    "MatMulNBits": ("A", "B", "B_scale", "B_zero_point", "g_idx", "bias"),
    "GatherBlockQuantized": ("data", "indices", "data_scale", "data_zero_point"),
    "QuantizeLinear": ("x", "x_scale", "x_zero_point"),
    "DequantizeLinear": ("x", "x_scale", "x_zero_point"),
}
"""Operands of ONNX Runtime's own operators, as its ContribOperators.md lists them; a scale is called after what it
scales."""

LEAST: Mapping[str, int] = {
    "QLinearAdd": 7,
    "QLinearMul": 7,
    "QLinearConcat": 5,
    "QLinearSigmoid": 4,
    "QLinearLeakyRelu": 4,
    "QLinearSoftmax": 5,
    "QLinearAveragePool": 4,
    "QLinearGlobalAveragePool": 5,
    "QLinearReduceMean": 4,
    "QLinearConv": 8,
    "QGemm": 6,
    "MatMulIntegerToFloat": 4,
    "DynamicQuantizeMatMul": 3,
    "MatMulNBits": 3,
    "GatherBlockQuantized": 3,
    "QuantizeLinear": 2,
    "DequantizeLinear": 2,
}
"""How many operands ONNX Runtime's own operators need."""

STANDARD: Mapping[str, tuple[str, ...]] = {
    "QuantizeLinear": ("x", "x_scale", "x_zero_point"),
    "DequantizeLinear": ("x", "x_scale", "x_zero_point"),
}
"""Where the specification calls a scale in another manner."""


@lru_cache(maxsize=1024)
def operand_names(op: str, domain: str, version: int) -> tuple[str, ...]:
    """The names of the inputs of an operator, in order; the last one of a list of any length is repeated by none."""
    known = (MICROSOFT if domain == "com.microsoft" else {} if domain else STANDARD).get(op)
    if known is not None:
        return known
    schema = schema_of(op, domain, version)
    return () if schema is None else tuple(item.name for item in schema.inputs)


@lru_cache(maxsize=1024)
def default_attributes(op: str, domain: str, version: int) -> Mapping[str, Any]:
    """What attributes are worth that a node leaves out; those without a default are missing."""
    schema = schema_of(op, domain, version)
    if schema is None:
        return {}
    found = {name: item.default_value for name, item in schema.attributes.items() if item.default_value.type}
    return {name: _plain(onnx.helper.get_attribute_value(value)) for name, value in found.items()}


def _plain(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


@lru_cache(maxsize=4096)
def schema_of(op: str, domain: str, version: int) -> onnx.defs.OpSchema | None:
    """What the specification says of an operator; None where it does not know it."""
    try:
        return onnx.defs.get_schema(op, max_inclusive_version=version, domain=domain)
    except onnx.defs.SchemaError:
        return None
