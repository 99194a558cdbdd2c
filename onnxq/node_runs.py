"""What each node of a quantized model runs as: on which grid its numbers lie, and how long it takes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxq.graph import Graph, Node, weight
from onnxq.inspection import LayerSummary, summarize
from onnxq.plan import Record
from onnxq.runtime import Kernel

Array = np.ndarray[Any, Any]

OUTPUT_PARAMETERS = {
    "QuantizeLinear": (1, 2),
    "QLinearConv": (6, 7),
    "QLinearMatMul": (6, 7),
    "QGemm": (7, 8),
    "QLinearAdd": (6, 7),
    "QLinearMul": (6, 7),
    "QLinearSigmoid": (3, 4),
    "QLinearLeakyRelu": (3, 4),
    "QLinearSoftmax": (3, 4),
    "QLinearGlobalAveragePool": (3, 4),
    "QLinearAveragePool": (3, 4),
    "QLinearConcat": (0, 1),
}
"""Where integer operators keep the scale and the zero point of their output."""

QUANTIZED_SUFFIXES = ("_quantized", "_QuantizeLinear_Output")
"""How this and other tools call the integer form of a tensor."""

BY_RUNTIME = re.compile(r"(_token_\d+|_nchwc)+$")
"""What the runtime appends to the name of a node that it replaced."""

CARRIERS = frozenset(
    {"Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "MaxPool", "Identity"}
)
"""Operators whose output has the grid of what they read."""

Forms = Mapping[str, tuple[str, Array, Array]]
"""For tensors of the float model that are held as integers: the name of those, their scale and zero point."""


class NodeRun(Record):
    """A node of the quantized model that was seen to run, or holds integers.

    Attributes:
        node: its name.
        op: its operator.
        makes: its first output, by the name that this has in the float model.
        tensor: the tensor whose grid follows: what it makes, or else what it reads; empty where both are floats.
        format: the type of its integers.
        scale: the width of one step.
        zero_point: the integer that stands for 0.
        weight: the type of its weight; empty where it has none.
        scales: how many scales the weight has: 1 is per tensor, 0 is float.
        microseconds: time of one run; None where the runtime made it part of something else.
    """

    node: str
    op: str
    makes: str
    tensor: str = ""
    format: str = ""
    scale: float | None = None
    zero_point: int | None = None
    weight: str = ""
    scales: int = 0
    microseconds: float | None = None


def integer_forms(graph: Graph) -> dict[str, tuple[str, Array, Array]]:
    """For float tensors that the graph holds as integers: {name in the float model: (tensor, scale, zero point)}."""
    forms: dict[str, tuple[str, Array, Array]] = {}
    for node in graph.nodes:
        maker = node.inputs[0].inputs[0] if node.op == "Clip" and node.inputs[0].inputs else node  # of few bits
        if maker.op not in OUTPUT_PARAMETERS:
            continue
        scale, zero_point = OUTPUT_PARAMETERS[maker.op]
        name = node.outputs[0].name
        base = float_name(name)
        try:
            if base != name:
                forms[base] = (name, weight(maker.inputs[scale]), weight(maker.inputs[zero_point]))
        except (TypeError, IndexError):  # not constant, or left out: nothing to compare with
            continue
    return forms


def float_name(tensor: str) -> str:
    """How a tensor is called in the float model."""
    return next((tensor.removesuffix(s) for s in QUANTIZED_SUFFIXES if tensor.endswith(s)), tensor)


def node_runs(graph: Graph, kernels: Sequence[Kernel]) -> list[NodeRun]:
    """Every node of the quantized graph that ran, or holds integers, in its order; sums up kernels of one node."""
    forms, layers = _carried(graph), {layer.node: layer for layer in summarize(graph).layers}
    times = _times(graph, kernels)
    runs = [_run(node, forms, layers.get(node.name), times.get(node.name)) for node in graph.nodes]
    return [run for run in runs if run.format or run.weight or run.microseconds is not None]


def _carried(graph: Graph) -> Forms:
    """The integer forms, and what becomes of them in operators that only move numbers."""
    forms = integer_forms(graph)
    for node in graph.nodes:
        if len(node.inputs) and len(node.outputs) and node.op in CARRIERS:
            source, made = node.inputs[0].name, node.outputs[0].name
            if float_name(source) in forms and made != float_name(made):
                forms.setdefault(float_name(made), (made, *forms[float_name(source)][1:]))
    return forms


def _run(node: Node, forms: Forms, layer: LayerSummary | None, time: float | None) -> NodeRun:
    makes = [float_name(tensor.name) for tensor in node.outputs]
    held = [name for name in (*makes, *(float_name(tensor.name) for tensor in node.inputs)) if name in forms]
    grid = _grid(held[0], forms) if held else {}
    stored: dict[str, Any] = {} if layer is None else {"weight": layer.type, "scales": layer.scales}
    return NodeRun(node=node.name, op=node.op, makes=makes[0] if makes else "", microseconds=time, **grid, **stored)


def _grid(name: str, forms: Forms) -> dict[str, Any]:
    """The grid of a tensor, as fields of a record; only its name where it has a grid for each channel."""
    _, scale, zero_point = forms[name]
    known: dict[str, Any] = {"tensor": name, "format": str(zero_point.dtype)}
    if scale.size == zero_point.size == 1:
        known |= {"scale": float(scale.reshape(())), "zero_point": int(zero_point.reshape(()))}
    return known


def _times(graph: Graph, kernels: Sequence[Kernel]) -> dict[str, float]:
    """Microseconds by node; kernels are named for the node that they replace, or for what it makes."""
    names = {tensor.name: node.name for node in graph.nodes for tensor in node.outputs}
    names |= {node.name: node.name for node in graph.nodes}
    times: dict[str, float] = {}
    for kernel in kernels:
        name = names.get(kernel.node) or names.get(BY_RUNTIME.sub("", kernel.node))
        if name is not None:
            times[name] = round(times.get(name, 0.0) + kernel.microseconds, 1)
    return times
