"""Linear layers on integers whose input scale is found on each run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxq.graph import MICROSOFT, Array, Graph, Tensor, weight
from onnxq.layers import Layer, bias_row, layer_of
from onnxq.numerics.affine import quantize_weight
from onnxq.pipeline import Context, Lossy, Promise
from onnxq.plan import Plan, Treatment
from onnxq.rewrite import Change
from onnxq.spec import Fact


@dataclass(frozen=True)
class QuantizeDynamic:
    """Replace a linear layer by its dynamic integer form.

        Add(MatMul(x, w), b) => DynamicQuantizeMatMul(x, w', b)
        several layers that read x => DynamicQuantizeLinear(x) once, MatMulIntegerToFloat for each

    Leaves alone what the plan does not name.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NORMAL})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.INTEGER})
    promise: ClassVar[Promise] = Lossy()

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each layer."""
        plan = context.plan
        assert plan is not None
        nodes = [n for n in graph.nodes if plan.treatment(n.name) is Treatment.DYNAMIC]
        layers = [found for n in nodes if isinstance(found := layer_of(graph, n, frozenset()), Layer)]
        readers = Counter(layer.data.name for layer in layers)
        shared: dict[str, list[Tensor]] = {}
        weights: dict[tuple[str, int, bool], list[Tensor | None]] = {}
        for layer in layers:
            name, op, data = layer.node.name, layer.node.op, layer.data
            stored = _stored_weight(graph, layer, plan, weights)
            bias = bias_row(graph, layer)
            output = layer.output
            graph.remove(layer.node, *layer.tail)
            if readers[data.name] == 1:
                graph.add(
                    "DynamicQuantizeMatMul", [data, *stored, *bias], [output], name=name, domain=MICROSOFT
                )  # fmt: skip
                yield Change(name, op, "DynamicQuantizeMatMul", plan.nodes[name].reason)
                continue
            if data.name not in shared:
                shared[data.name] = _quantized_once(graph, data)
            x, x_scale, x_zero_point = shared[data.name]
            values, scale, zero_point = stored
            inputs = [x, values, x_scale, scale, x_zero_point, zero_point, *bias]
            graph.add("MatMulIntegerToFloat", inputs, [output], name=name, domain=MICROSOFT)
            yield Change(name, op, "MatMulIntegerToFloat", plan.nodes[name].reason)


def _quantized_once(graph: Graph, data: Tensor) -> list[Tensor]:
    outputs: list[Tensor] = [graph.variable(f"{data.name}_{part}") for part in ("quantized", "scale", "zero_point")]
    graph.add("DynamicQuantizeLinear", [data], outputs, name=f"{data.name}_quantize")
    return outputs


def _stored_weight(
    graph: Graph, layer: Layer, plan: Plan, known: dict[tuple[str, int, bool], list[Tensor | None]]
) -> list[Tensor | None]:
    """Values [inputs, outputs], scale and zero point (None where it is zero) of a layer's weight."""
    transposed = int(layer.node.attrs.get("transB", 0)) if layer.node.op == "Gemm" else 0
    per_channel = plan.nodes[layer.node.name].per_channel
    key = (layer.weight.name, transposed, per_channel)
    if key not in known:
        settings, name = plan.recipe.weight, layer.weight.name
        values: Array = weight(layer.weight)
        if transposed:
            values = np.ascontiguousarray(values.T)
        axis = 1 if per_channel else None
        found = quantize_weight(values, settings.grid, axis=axis, symmetric=settings.centred)
        zero_point = graph.constant(f"{name}_zero_point", found.zero_point) if found.zero_point.any() else None
        known[key] = [
            graph.constant(f"{name}_quantized", found.values),
            graph.constant(f"{name}_scale", found.scale),
            zero_point,
        ]
    return known[key]
