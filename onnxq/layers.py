"""What a layer is: an operator with a weight, the bias Add behind it, and the activation that saturation can replace.

MatMul -> Add -> Relu      one linear layer
Conv -> Clip(0, 6)         one convolution
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxq.graph import Graph, Node, Tensor, is_constant, weight

LAYERS = frozenset({"Conv", "MatMul", "Gemm"})
"""Operators that are a layer where their weight is a constant."""


Types = tuple[type[np.floating[Any]], ...]
SINGLE: Types = (np.float32,)
"""The type of weights that become integers together with what they are multiplied with."""
WIDE: Types = (np.float32, np.float16)
"""The types of weights that are stored in integers alone."""


@dataclass(frozen=True)
class Layer:
    """A layer and the nodes that belong to it.

    Attributes:
        node: the operator with the weight.
        data: what it reads.
        weight: its weight, a constant.
        bias: the bias, a constant; None where there is none.
        tail: bias Add and absorbed activation, in order.
    """

    node: Node
    data: Tensor
    weight: Tensor
    bias: Tensor | None
    tail: tuple[Node, ...]

    @property
    def output(self) -> Tensor:
        """What leaves the layer."""
        return (self.tail[-1] if self.tail else self.node).outputs[0]

    @property
    def linear(self) -> bool:
        """A matrix product, no convolution."""
        return self.node.op != "Conv"


def bias_row(graph: Graph, layer: Layer) -> list[Tensor]:
    """The bias as a constant of one axis; an empty list where the layer has none."""
    if layer.bias is None or len(layer.bias.shape or ()) == 1:
        return [layer.bias] if layer.bias is not None else []
    return [graph.constant(f"{layer.bias.name}_flat", weight(layer.bias).reshape(-1))]


def weight_axis(node: Node) -> int:
    """Where the output channels of a layer's weight lie."""
    if node.op == "Gemm":
        return 0 if node.attrs.get("transB", 0) else 1
    return 0 if node.op == "Conv" else len(node.inputs[1].shape or ()) - 1


def is_masking(node: Node) -> bool:
    """Whether this adds a mask to attention scores: an Add that only Softmax reads."""
    readers = node.outputs[0].outputs
    return node.op == "Add" and bool(readers) and all(reader.op == "Softmax" for reader in readers)


def pads_with_zeros(node: Node) -> bool:
    """Whether a Pad fills with zeros, so that the zero point of a quantized tensor can stand for them."""
    if node.attrs.get("mode", "constant") != "constant":
        return True
    value = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    constant = value is None or (is_constant(value) and not weight(value).any())
    return constant and not node.attrs.get("value", 0.0)


def only_reader(graph: Graph, tensor: Tensor) -> Node | None:
    """The one node that reads a tensor; None where there are several, or where its name is promised."""
    return tensor.outputs[0] if len(tensor.outputs) == 1 and not graph.kept(tensor) else None


def weight_obstacle(node: Node, types: Types = SINGLE) -> str | None:
    """Why this operator is no layer with a weight of these types that can be quantized; None where it is one."""
    if node.op not in LAYERS or (node.domain or ""):
        return f"{node.op} is no layer with a weight."
    data, kernel = node.inputs[0], node.inputs[1]
    if is_constant(data) and not is_constant(kernel):
        return "Its weight is the first operand; integer kernels want it second."
    if not is_constant(kernel) and kernel.inputs and all(map(is_constant, kernel.inputs[0].inputs)):
        return f"Its weight is not stored, but made by {kernel.inputs[0].op} on each run."
    if not is_constant(kernel):
        return "It multiplies two activations; in integers that saves no time and adds noise."
    if is_constant(data):
        return "Both operands are constants."
    if kernel.dtype not in types:
        return f"Its weight is {kernel.dtype}, not {' or '.join(str(np.dtype(kind)) for kind in types)}."
    rank = len(kernel.shape or ())
    if node.op != "Conv" and rank != 2:
        return f"Its weight has {rank} axes; integer kernels want 2."
    if 0 in (kernel.shape or ()):
        return "Its weight is empty."
    return _gemm_obstacle(node) if node.op == "Gemm" else None


def _gemm_obstacle(node: Node) -> str | None:
    if node.attrs.get("transA", 0) or node.attrs.get("alpha", 1.0) != 1.0:
        return "A Gemm with transA or alpha has no integer kernel."
    if len(node.inputs) > 2 and node.inputs[2].name:
        bias = node.inputs[2]
        if node.attrs.get("beta", 1.0) != 1.0 or not _is_bias(bias, node, 2):
            return "Its bias is no constant row."
    return None


def _columns(node: Node) -> int:
    shape = node.inputs[1].shape or (0, 0)
    return int(shape[0] if node.attrs.get("transB", 0) else shape[1])  # type: ignore[arg-type]


def _is_bias(tensor: Tensor, node: Node, rank: int) -> bool:
    """Whether this is one number for each column, of the operands' type, with no more axes than what it is added to."""
    shape = tuple(tensor.shape or ())
    row = shape[-1:] == (_columns(node),) and set(shape[:-1]) <= {1} and len(shape) <= max(rank, 1)
    # a weight on its way into integers may be wider than what it is multiplied with, and its bias
    return is_constant(tensor) and tensor.dtype in (node.inputs[1].dtype, node.inputs[0].dtype) and row


def layer_of(graph: Graph, node: Node, absorbed: frozenset[str], types: Types = SINGLE) -> Layer | str:
    """The layer around an operator, with a weight of one of these types, or the sentence why it is none."""
    obstacle = weight_obstacle(node, types)
    if obstacle is not None:
        return obstacle
    bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    if node.op == "Conv" and bias is not None and not is_constant(bias):
        return "Its bias is no constant."
    tail: list[Node] = []
    reader = only_reader(graph, node.outputs[0])
    if node.op == "MatMul" and reader is not None and reader.op == "Add":
        other = reader.inputs[1] if reader.inputs[0] is node.outputs[0] else reader.inputs[0]
        if _is_bias(other, node, len(node.inputs[0].shape or ())):
            bias = other
            tail.append(reader)
            reader = only_reader(graph, reader.outputs[0])
    if reader is not None and reader.op in absorbed and clips_at_zero(reader):
        tail.append(reader)
    return Layer(node, node.inputs[0], node.inputs[1], bias, tuple(tail))


def clip_limits(node: Node) -> tuple[float, float] | None:
    """The interval that an activation cuts to: Relu, and Clip with constant ends; None for anything else."""
    if node.op == "Relu":
        return 0.0, np.inf
    if node.op != "Clip":
        return None
    ends = [-np.inf, np.inf]
    if "min" in node.attrs or "max" in node.attrs:  # before opset 11
        return float(node.attrs.get("min", ends[0])), float(node.attrs.get("max", ends[1]))
    for index, tensor in enumerate(node.inputs[1:3]):
        if tensor.name and not is_constant(tensor):
            return None
        if tensor.name:
            ends[index] = float(weight(tensor).item())
    return ends[0], ends[1]


def clips_at_zero(node: Node) -> bool:
    """Whether a range of quantized values that starts at 0 can do what this activation does."""
    limits = clip_limits(node)
    return limits is not None and limits[0] == 0.0 and limits[1] > 0.0
