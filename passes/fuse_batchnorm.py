"""Batch normalization is a scale and a shift: fold it into the layer before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxq.graph import Array, Graph, Node, is_constant, weight
from onnxq.layers import only_reader
from onnxq.pipeline import Close, Context, Promise
from onnxq.rewrite import Change
from onnxq.spec import Fact

CHANNEL_AXIS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1}
"""Where the output channels lie in the weight (Gemm without transB)."""


@dataclass(frozen=True)
class FuseBatchnorm:
    """Fold batch normalization into the weight and the bias of the layer before it.

        BatchNormalization(Conv(x, w, b)) => Conv(x, w * s, (b - mean) * s + shift),  s = scale / sqrt(variance + eps)

    Leaves it alone behind anything but Conv, ConvTranspose (one group) and Gemm with constant weights, where the
    layer's output is read elsewhere too, and in training mode.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset()
    gives: ClassVar[frozenset[Fact]] = frozenset()
    promise: ClassVar[Promise] = Close(rtol=1e-4)

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each normalization, folded or not."""
        for node in [n for n in graph.nodes if n.op == "BatchNormalization" and not n.domain]:
            obstacle = _obstacle(graph, node)
            name = node.name
            if obstacle is None:
                layer = node.inputs[0].inputs[0]
                _fuse(graph, layer, node)
                output = node.outputs[0]  # keeps its name: the layer now makes what the normalization made
                graph.remove(node)
                layer.outputs[0] = output
                yield Change(name, "BatchNormalization", layer.op, f"Folded into '{layer.name}'.")
            else:
                yield Change(name, "BatchNormalization", "", obstacle)


def _obstacle(graph: Graph, node: Node) -> str | None:
    if node.attrs.get("training_mode", 0) or any(t.name and t.outputs for t in node.outputs[1:]):
        return "It is in training mode."
    layer = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
    if layer is None or layer.domain or layer.op not in CHANNEL_AXIS:
        return "No layer with a weight stands before it."
    if only_reader(graph, layer.outputs[0]) is not node:
        return f"The output of '{layer.name}' is read elsewhere too."
    if not all(is_constant(t) for t in (*layer.inputs[1:], *node.inputs[1:5]) if t.name):
        return "A weight is no constant."
    if layer.op == "ConvTranspose" and layer.attrs.get("group", 1) != 1:
        return "A grouped ConvTranspose mixes its channel axes."
    if layer.op == "Gemm" and (layer.attrs.get("beta", 1.0) != 1.0 or layer.attrs.get("alpha", 1.0) != 1.0):
        return "The Gemm before it scales its operands."
    bias = layer.inputs[2].shape or () if layer.op == "Gemm" and len(layer.inputs) > 2 else ()
    if any(size != 1 for size in bias[:-1]):
        return f"The bias of '{layer.name}' is no row."
    return None


def _fuse(graph: Graph, layer: Node, node: Node) -> None:
    gamma, beta, mean, variance = (weight(t).astype(np.float64) for t in node.inputs[1:5])
    scale = gamma / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
    kernel = layer.inputs[1]
    axis = 0 if layer.op == "Gemm" and layer.attrs.get("transB", 0) else CHANNEL_AXIS[layer.op]
    old_bias = layer.inputs[2] if len(layer.inputs) > 2 and layer.inputs[2].name else None
    bias: Array = weight(old_bias).astype(np.float64).reshape(-1) if old_bias else np.zeros_like(scale)
    values = weight(kernel)
    shape = [1] * values.ndim
    shape[axis] = -1
    layer.inputs[1] = graph.constant(f"{kernel.name}_folded", (values * scale.reshape(shape)).astype(values.dtype))
    folded = graph.constant(f"{layer.name}_bias_folded", ((bias - mean) * scale + beta).astype(values.dtype))
    if len(layer.inputs) > 2:
        layer.inputs[2] = folded
    else:
        layer.inputs.append(folded)
