"""Write the plan into the graph as QuantizeLinear and DequantizeLinear pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, ClassVar

import numpy as np

from onnxq.graph import Array, Graph, Node, Tensor, weight
from onnxq.layers import Layer, layer_of, weight_axis
from onnxq.numerics.affine import QuantizedWeight, quantize_bias, safe_weight_scale
from onnxq.numerics.formats import FORMATS, INT32, Format
from onnxq.pipeline import Context, Lossy, Promise
from onnxq.plan import Plan, TensorPlan, Treatment
from onnxq.rewrite import Change
from onnxq.spec import Fact
from onnxq.weights import corrected_bias, raised_weight, rounded_weight


@dataclass(frozen=True)
class InsertQdq:
    """Put Q/DQ around everything that the plan runs on static integers.

        Conv(x, w, b) => DQ(Q(Conv(DQ(Q(x)), DQ(w'), DQ(b'))))

    A tensor that an integer operator makes is read through its Q/DQ by everybody, under its old name; one that a float
    operator makes is read through Q/DQ by integer operators only. Biases become int32 where the operator returns
    integers (scale = input scale * weight scale) and stay float where it returns floats. Activations of few
    bits are 8-bit ones that are cut off, DQ(Clip(Q(x))): no kernel is faster with them.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NORMAL})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})
    promise: ClassVar[Promise] = Lossy()

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each operator that becomes integer."""
        plan = context.plan
        assert plan is not None, "InsertQdq runs on a plan"
        work = Insertion(graph, plan)
        nodes = [n for n in graph.nodes if plan.treatment(n.name) is Treatment.STATIC and not _wrapped(n)]
        layers = {
            n.name: found for n in nodes if isinstance(found := layer_of(graph, n, context.target.absorbed), Layer)
        }
        integer = {id(n) for n in nodes}
        makers = {id(t) for n in nodes if n.name not in layers for t in n.outputs}
        for layer in layers.values():
            returns_integers = _returns_integers(graph, plan, layer, integer)
            makers.update({id(layer.output)} if returns_integers else ())
            work.quantize_layer(layer, returns_integers)
            yield Change(layer.node.name, layer.node.op, "Q/DQ", plan.nodes[layer.node.name].reason)
        for tensor in [t for name, t in graph.tensors().items() if name in plan.tensors]:
            work.quantize_tensor(tensor, id(tensor) in makers, integer)
        for node in nodes:
            if node.name not in layers:
                yield Change(node.name, node.op, "Q/DQ", plan.nodes[node.name].reason)


def _wrapped(node: Node) -> bool:
    """Whether an earlier run of this pass was here."""
    makers, readers = [t.inputs for t in node.inputs], [t.outputs for t in node.outputs]
    return any(n.op in ("QuantizeLinear", "DequantizeLinear") for near in (*makers, *readers) for n in near)


def _returns_integers(graph: Graph, plan: Plan, layer: Layer, integer: set[int]) -> bool:
    """A convolution always does; a linear layer, which returns floats for free, where nobody wants these."""
    output = layer.output
    wanted = all(id(reader) in integer for reader in output.outputs) and not graph.kept(output)
    return output.name in plan.tensors and (not layer.linear or wanted)


@dataclass
class Insertion:
    """The edits of one run, and the constants that they share."""

    graph: Graph
    plan: Plan
    scales: dict[tuple[float, int, str], tuple[Tensor, Tensor]] = field(default_factory=dict)
    weights: dict[tuple[str, int | None, bytes, bytes], Tensor] = field(default_factory=dict)
    ends: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

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
        readers = [node for node in tensor.outputs if id(node) in integer]
        scale, zero_point = self.parameters(name, self.plan.tensors[name])
        if made_integer:
            before = graph.variable(f"{name}_unquantized", tensor.dtype, tensor.shape)
            maker = tensor.inputs[0]
            maker.outputs[next(i for i, t in enumerate(maker.outputs) if t is tensor)] = before
            quantized = self.rounded(before, name, (scale, zero_point))
            graph.add("DequantizeLinear", [quantized, scale, zero_point], [tensor], name=f"{name}_dequantize")
            return
        after = graph.variable(f"{name}_dequantized", tensor.dtype, tensor.shape)
        graph.redirect(tensor, after, readers=readers)
        quantized = self.rounded(tensor, name, (scale, zero_point))
        graph.add("DequantizeLinear", [quantized, scale, zero_point], [after], name=f"{name}_dequantize")

    def rounded(self, tensor: Tensor, name: str, grid: tuple[Tensor, Tensor]) -> Tensor:
        """The integers of an activation; those of few bits are 8-bit ones that are cut off."""
        graph, form = self.graph, FORMATS[self.plan.tensors[name].format]
        quantized = graph.variable(f"{name}_quantized")
        if form.bits == 8:
            graph.add("QuantizeLinear", [tensor, *grid], [quantized], name=f"{name}_quantize")
            return quantized
        wide = graph.variable(f"{name}_quantized_wide")
        graph.add("QuantizeLinear", [tensor, *grid], [wide], name=f"{name}_quantize")
        graph.add("Clip", [wide, *self.limits(form)], [quantized], name=f"{name}_cut")
        return quantized

    def limits(self, form: Format) -> tuple[Tensor, Tensor]:
        """The ends of a format as constants, which all tensors share."""
        if form.name not in self.ends:
            low, high = (np.asarray(end, form.dtype) for end in (form.qmin, form.qmax))
            self.ends[form.name] = (
                self.graph.constant(f"{form.name}_lowest", low),
                self.graph.constant(f"{form.name}_highest", high),
            )
        return self.ends[form.name]

    def quantize_layer(self, layer: Layer, returns_integers: bool) -> None:
        """Put DQ behind the weight and, where integers come out, behind the bias."""
        node, plan = layer.node, self.plan
        decision, settings, values = plan.nodes[node.name], plan.recipe.weight, weight(layer.weight)
        axis = weight_axis(node) if decision.per_channel else None
        found = rounded_weight(layer, settings, decision.per_channel, decision.rounding)
        bias = corrected_bias(layer, found, plan.tensors[layer.data.name].means)
        input_scale = np.float32(plan.tensors[layer.data.name].scale)
        # the runtime folds Q/DQ around a Gemm only with an integer bias; our own folding takes either
        integer = returns_integers or (node.op == "Gemm" and plan.recipe.format == "qdq")
        if bias is not None and integer and node.op != "MatMul":
            safe = safe_weight_scale(bias, input_scale, found.scale, values.size // max(found.scale.size, 1))
            if not np.array_equal(safe, found.scale):
                found = raised_weight(layer, settings, found, safe)
            self.set_bias(layer, self.dequantized_bias(layer, bias, input_scale, found.scale))
        elif bias is not None and (layer.bias is None or not np.array_equal(bias, weight(layer.bias).reshape(-1))):
            self.set_bias(layer, self.graph.constant(f"{node.name}_bias_corrected", bias))
        node.inputs[1] = self.stored_weight(layer.weight, axis, found)

    def set_bias(self, layer: Layer, bias: Tensor) -> None:
        """Let the layer add this bias: its own input, or that of the Add behind a MatMul."""
        node = layer.node
        if node.op == "MatMul":
            add = layer.tail[0]
            add.inputs[next(i for i, t in enumerate(add.inputs) if t is layer.bias)] = bias
        elif len(node.inputs) > 2:
            node.inputs[2] = bias
        else:
            node.inputs.append(bias)

    def stored_weight(self, tensor: Tensor, axis: int | None, found: QuantizedWeight) -> Tensor:
        """The weight behind a DQ; one that several layers share in the same integers is stored once."""
        key = (tensor.name, axis, found.scale.tobytes(), sha256(found.values.tobytes()).digest())
        if key not in self.weights:
            graph, name = self.graph, tensor.name
            inputs = [
                graph.constant(f"{name}_quantized", found.values),
                graph.constant(f"{name}_scale", found.scale),
                graph.constant(f"{name}_zero_point", found.zero_point),
            ]
            output = graph.variable(f"{name}_dequantized", np.dtype(np.float32), tensor.shape)
            attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
            graph.add("DequantizeLinear", inputs, [output], name=f"{name}_dequantize", **attributes)
            self.weights[key] = output
        return self.weights[key]

    def dequantized_bias(self, layer: Layer, bias: Array, input_scale: np.float32, weight_scale: Array) -> Tensor:
        """The bias as int32 behind a DQ; one for each layer, since its scale depends on the layer's input."""
        values, scale = quantize_bias(bias, input_scale, weight_scale)
        graph, name = self.graph, layer.bias.name if layer.bias is not None else f"{layer.node.name}_bias"
        inputs = [
            graph.constant(f"{name}_quantized", values),
            graph.constant(f"{name}_scale", scale),
            graph.constant(f"{name}_zero_point", np.zeros(np.shape(scale), INT32.dtype)),
        ]
        output = graph.variable(f"{name}_dequantized", np.dtype(np.float32))
        attributes: dict[str, Any] = {"axis": 0} if np.ndim(scale) else {}
        graph.add("DequantizeLinear", inputs, [output], name=f"{name}_dequantize", **attributes)
        return output
