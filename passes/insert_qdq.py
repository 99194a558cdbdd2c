"""Write the plan into the graph as QuantizeLinear and DequantizeLinear pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from onnxq.graph import Array, Graph, Node, Tensor, weight
from onnxq.layers import Layer, layer_of
from onnxq.numerics.affine import quantize, quantize_bias, quantize_weight, safe_weight_scale
from onnxq.numerics.formats import FORMATS, INT32
from onnxq.pipeline import Context, Lossy, Promise
from onnxq.plan import Plan, TensorPlan, Treatment
from onnxq.rewrite import Change
from onnxq.spec import Fact


@dataclass(frozen=True)
class InsertQdq:
    """Put Q/DQ around everything that the plan runs on static integers.

        Conv(x, w, b) => DQ(Q(Conv(DQ(Q(x)), DQ(w'), DQ(b'))))

    A tensor that an integer operator makes is read through its Q/DQ by everybody, under its old name; one that a float
    operator makes is read through Q/DQ by integer operators only. Biases become int32 where the operator returns
    integers (scale = input scale * weight scale) and stay float where it returns floats.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NORMAL})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})
    promise: ClassVar[Promise] = Lossy()

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each operator that becomes integer."""
        plan = context.plan
        assert plan is not None, "InsertQdq runs on a plan"
        work = Insertion(graph, plan)
        nodes = [n for n in graph.nodes if plan.treatment(n.name) is Treatment.STATIC]
        layers = {
            n.name: found for n in nodes if isinstance(found := layer_of(graph, n, context.target.absorbed), Layer)
        }
        integer = {id(n) for n in nodes}
        makers = {id(layers[n.name].output if n.name in layers else n.outputs[0]) for n in nodes}
        makers |= {id(t) for n in nodes if n.name not in layers for t in n.outputs}
        for layer in layers.values():
            work.quantize_layer(layer)
            yield Change(layer.node.name, layer.node.op, "Q/DQ", plan.nodes[layer.node.name].reason)
        for tensor in [t for name, t in graph.tensors().items() if name in plan.tensors]:
            work.quantize_tensor(tensor, id(tensor) in makers, integer)
        for node in nodes:
            if node.name not in layers:
                yield Change(node.name, node.op, "Q/DQ", plan.nodes[node.name].reason)


@dataclass
class Insertion:
    """The edits of one run, and the constants that they share."""

    graph: Graph
    plan: Plan
    scales: dict[tuple[float, int, str], tuple[Tensor, Tensor]] = field(default_factory=dict)
    weights: dict[tuple[str, int | None], tuple[Tensor, Array]] = field(default_factory=dict)

    def parameters(self, name: str, plan: TensorPlan) -> tuple[Tensor, Tensor]:
        """Scale and zero point as constants; equal ones are shared."""
        key = (plan.scale, plan.zero_point, plan.format)
        if key not in self.scales:
            dtype = FORMATS[plan.format].dtype
            self.scales[key] = (
                self.graph.constant(f"{name}_scale", np.asarray(plan.scale, np.float32)),
                self.graph.constant(f"{name}_zero_point", np.asarray(plan.zero_point, dtype)),
            )
        return self.scales[key]

    def quantize_tensor(self, tensor: Tensor, made_integer: bool, integer: set[int]) -> None:
        """Put Q/DQ behind one activation."""
        graph, name = self.graph, tensor.name
        scale, zero_point = self.parameters(name, self.plan.tensors[name])
        quantized = graph.variable(f"{name}_quantized")
        if made_integer:
            before = graph.variable(f"{name}_unquantized", tensor.dtype, tensor.shape)
            maker = tensor.inputs[0]
            maker.outputs[next(i for i, t in enumerate(maker.outputs) if t is tensor)] = before
            graph.add("QuantizeLinear", [before, scale, zero_point], [quantized], name=f"{name}_quantize")
            graph.add("DequantizeLinear", [quantized, scale, zero_point], [tensor], name=f"{name}_dequantize")
            return
        readers = [node for node in tensor.outputs if id(node) in integer]
        after = graph.variable(f"{name}_dequantized", tensor.dtype, tensor.shape)
        graph.redirect(tensor, after, readers=readers)
        graph.add("QuantizeLinear", [tensor, scale, zero_point], [quantized], name=f"{name}_quantize")
        graph.add("DequantizeLinear", [quantized, scale, zero_point], [after], name=f"{name}_dequantize")

    def quantize_layer(self, layer: Layer) -> None:
        """Put DQ behind the weight and, where integers come out, behind the bias."""
        node, plan = layer.node, self.plan
        axis = weight_axis(node) if plan.nodes[node.name].per_channel else None
        returns_integers = layer.output.name in plan.tensors
        input_scale = np.float32(plan.tensors[layer.data.name].scale)
        bias = weight(layer.bias).reshape(-1) if layer.bias is not None and returns_integers else None
        node.inputs[1], scale = self.dequantized_weight(layer.weight, axis, bias, input_scale)
        if bias is not None and len(node.inputs) > 2:
            node.inputs[2] = self.dequantized_bias(layer, bias, input_scale, scale)

    def dequantized_weight(
        self, tensor: Tensor, axis: int | None, bias: Array | None, input_scale: np.float32
    ) -> tuple[Tensor, Array]:
        """The weight behind a DQ, and its scale. A weight that several layers share is stored once."""
        settings = self.plan.recipe.weight
        form = FORMATS[settings.format]
        values = weight(tensor)
        found = quantize_weight(values, form, axis=axis, symmetric=settings.symmetric)
        scale = found.scale
        if bias is not None:
            depth = values.size // max(scale.size, 1)
            safe = safe_weight_scale(bias, input_scale, scale, depth)
            if not np.array_equal(safe, scale):
                raised = quantize(values, safe, found.zero_point, form, axis)
                return self._store(tensor, axis, raised, safe, found.zero_point)
        key = (tensor.name, axis)
        if key not in self.weights:
            self.weights[key] = self._store(tensor, axis, found.values, scale, found.zero_point)
        return self.weights[key]

    def _store(
        self, tensor: Tensor, axis: int | None, values: Array, scale: Array, zero_point: Array
    ) -> tuple[Tensor, Array]:
        graph, name = self.graph, tensor.name
        inputs = [
            graph.constant(f"{name}_quantized", values),
            graph.constant(f"{name}_scale", scale),
            graph.constant(f"{name}_zero_point", zero_point),
        ]
        output = graph.variable(f"{name}_dequantized", np.dtype(np.float32), tensor.shape)
        attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
        graph.add("DequantizeLinear", inputs, [output], name=f"{name}_dequantize", **attributes)
        return output, scale

    def dequantized_bias(self, layer: Layer, bias: Array, input_scale: np.float32, weight_scale: Array) -> Tensor:
        """The bias as int32 behind a DQ; one for each layer, since its scale depends on the layer's input."""
        assert layer.bias is not None
        values, scale = quantize_bias(bias, input_scale, weight_scale)
        graph, name = self.graph, layer.bias.name
        inputs = [
            graph.constant(f"{name}_quantized", values),
            graph.constant(f"{name}_scale", scale),
            graph.constant(f"{name}_zero_point", np.zeros(np.shape(scale), INT32.dtype)),
        ]
        output = graph.variable(f"{name}_dequantized", np.dtype(np.float32))
        attributes: dict[str, Any] = {"axis": 0} if np.ndim(scale) else {}
        graph.add("DequantizeLinear", inputs, [output], name=f"{name}_dequantize", **attributes)
        return output


def weight_axis(node: Node) -> int:
    """Where the output channels of a layer's weight lie."""
    if node.op == "Gemm":
        return 0 if node.attrs.get("transB", 0) else 1
    return 0 if node.op == "Conv" else len(node.inputs[1].shape or ()) - 1
