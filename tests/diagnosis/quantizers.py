"""Small models with a planted fault, and every tool that quantizes them here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from onnxq import Options, Recipe, optimize

Array = NDArray[Any]
QUICK = Options(seconds=0.0, check=False)


def pictures(*, loud: float = 1.0) -> Array:
    """Twelve of eight channels, the sixth of which may be louder than the others."""
    x = np.random.default_rng(4).normal(size=(12, 8, 12, 12))
    x[:, 5] *= loud
    return x.astype(np.float32)


def rows(count: int = 24) -> Array:
    return np.random.default_rng(4).normal(size=(count, 16)).astype(np.float32)


def save(
    path: Path, nodes: list[onnx.NodeProto], weights: Mapping[str, Array], shapes: Mapping[str, list[Any]]
) -> Path:
    """A model from x to y."""
    infos = [helper.make_tensor_value_info(name, 1, ["batch", *shapes[name]]) for name in ("x", "y")]
    stored = [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()]
    graph = helper.make_graph(nodes, "model", infos[:1], infos[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def chain(path: Path, weights: list[Array], *, named: bool = True, pooled: str = "") -> Path:
    """Convolutions with Relu, one after the other; the tensor `pooled` goes through MaxPool."""
    nodes, last = [], "x"
    for index in range(len(weights)):
        output = "y" if index == len(weights) - 1 else f"r{index}"
        names = (f"conv{index}", f"relu{index}") if named else ("", "")
        nodes.append(helper.make_node("Conv", [last, f"w{index}", f"b{index}"], [f"c{index}"], names[0], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [output], names[1]))
        last = output
        if output == pooled:
            last = f"{output}_max"
            nodes.append(helper.make_node("MaxPool", [output], [last], "pool", kernel_shape=[1, 1]))
    stored = {f"w{index}": values for index, values in enumerate(weights)}
    biases = {f"b{i}": np.random.default_rng(i).normal(0, 0.1, len(values)) for i, values in enumerate(weights)}
    return save(path, nodes, stored | biases, {"x": [8, 12, 12], "y": [8, 12, 12]})


def healthy() -> list[Array]:
    """Four 3x3 kernels between eight channels."""
    rng = np.random.default_rng(3)
    return [rng.normal(0, 0.25, (8, 8, 3, 3)) for _ in range(4)]


def planted(path: Path, **options: Any) -> Path:
    """One channel of the second convolution's output is enormous; the third, `conv2`, hardly weighs it."""
    weights = healthy()
    weights[1][0] *= 500
    weights[2][:, 0] /= 500
    return chain(path, weights, **options)


def loud_input(path: Path, **options: Any) -> Path:
    """The first convolution hardly weighs the channel that is 500 times as loud as the others."""
    weights = healthy()
    weights[0][:, 5] /= 500
    return chain(path, weights, **options)


def wide_weight(path: Path) -> Path:
    """One channel of the second convolution's weight is enormous, and always below zero, so that Relu hides it."""
    weights = healthy()
    weights[1][0] = -300 * np.abs(weights[1][0])
    return chain(path, weights)


def two_branches(path: Path) -> Path:
    """A residual block with an average at its end, then a product with a bias."""
    rng = np.random.default_rng(8)
    weights = {
        "w0": rng.normal(0, 0.25, (8, 8, 3, 3)),
        "b0": rng.normal(0, 0.1, 8),
        "w1": rng.normal(0, 0.25, (8, 8, 3, 3)),
        "b1": rng.normal(0, 0.1, 8),
        "v": rng.normal(0, 0.5, (8, 6)),
        "c": rng.normal(0, 0.2, 6),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["p"], "first", pads=[1] * 4),
        helper.make_node("Clip", ["p", "low", "high"], ["q"], "clip"),
        helper.make_node("Conv", ["q", "w1", "b1"], ["r"], "second", pads=[1] * 4),
        helper.make_node("Add", ["q", "r"], ["s"], "join"),
        helper.make_node("GlobalAveragePool", ["s"], ["t"], "pool"),
        helper.make_node("Flatten", ["t"], ["u"], "flat"),
        helper.make_node("Gemm", ["u", "v", "c"], ["y"], "head"),
    ]
    limits = {"low": np.float32(0), "high": np.float32(6)}
    return save(path, nodes, weights | {n: np.asarray(v) for n, v in limits.items()}, {"x": [8, 12, 12], "y": [6]})


def perceptron(path: Path) -> Path:
    """Two layers that read one normalized tensor, joined, and one behind them."""
    rng = np.random.default_rng(6)
    weights = {
        "g": 1 + rng.normal(0, 0.2, 16),
        "h": rng.normal(0, 0.2, 16),
        "wa": rng.normal(0, 0.3, (16, 32)),
        "ba": rng.normal(0, 0.3, 32),
        "wb": rng.normal(0, 0.3, (16, 32)),
        "wc": rng.normal(0, 0.2, (32, 5)),
        "bc": rng.normal(0, 0.2, 5),
    }
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g", "h"], ["n"], "norm"),
        helper.make_node("MatMul", ["n", "wa"], ["a"], "left"),
        helper.make_node("Add", ["a", "ba"], ["d"], "left_bias"),
        helper.make_node("MatMul", ["n", "wb"], ["e"], "right"),
        helper.make_node("Mul", ["d", "e"], ["f"], "gate"),
        helper.make_node("MatMul", ["f", "wc"], ["z"], "last"),
        helper.make_node("Add", ["z", "bc"], ["y"], "last_bias"),
    ]
    return save(path, nodes, weights, {"x": [16], "y": [5]})


class Feeds(CalibrationDataReader):  # type: ignore[misc]
    """One sample after the other, as ONNX Runtime wants them."""

    def __init__(self, x: Array) -> None:
        self.left: Iterator[Array] = iter(x[:, None])

    def get_next(self) -> dict[str, Array] | None:
        x = next(self.left, None)
        return None if x is None else {"x": x}


def by_runtime(model: Path, x: Array, *, integer: bool, per_channel: bool = False, signed: bool = False) -> Path:
    """ONNX Runtime's static quantizer: Q/DQ pairs, or integer operators."""
    target, logged = model.with_suffix(f".{integer}.{per_channel}.onnx"), logging.root.level
    logging.root.setLevel(logging.ERROR)  # it recommends a step of preprocessing for every model
    quantize_static(
        model,
        target,
        Feeds(x),
        quant_format=QuantFormat.QOperator if integer else QuantFormat.QDQ,
        per_channel=per_channel,
        activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
    )
    logging.root.setLevel(logged)
    return target


def by_runtime_dynamic(model: Path) -> Path:
    """ONNX Runtime's dynamic quantizer."""
    target, logged = model.with_suffix(".dynamic.onnx"), logging.root.level
    logging.root.setLevel(logging.ERROR)
    quantize_dynamic(model, target)
    logging.root.setLevel(logged)
    return target


def by_onnxq(model: Path, x: Array, **wishes: Any) -> Path:
    """This quantizer, with nothing in it that would heal a fault."""
    target = model.with_name(f"{model.stem}.{'.'.join(map(str, wishes.values()))}.ours.onnx")
    plain = {"mode": "static-int8", "least_sqnr": 0, "balance": False, "activation": {"range": "minmax"}}
    recipe = Recipe.model_validate(plain | wishes)
    optimize(model, target, data={"x": x}, recipe=recipe, options=QUICK)
    assert target.exists()
    return target


Tool = Callable[[Path, Array], Path]

TOOLS: Mapping[str, Tool] = {
    "onnxq, integer": by_onnxq,
    "onnxq, qdq": lambda model, x: by_onnxq(model, x, format="qdq"),
    "onnxruntime, qdq": lambda model, x: by_runtime(model, x, integer=False),
    "onnxruntime, qdq signed per channel": lambda m, x: by_runtime(m, x, integer=False, per_channel=True, signed=True),
    "onnxruntime, integer": lambda model, x: by_runtime(model, x, integer=True),
    "onnxruntime, integer per channel": lambda model, x: by_runtime(model, x, integer=True, per_channel=True),
    "onnxruntime, dynamic": lambda model, x: by_runtime_dynamic(model),
}
"""Static forms first."""
