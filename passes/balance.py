"""Let every channel of a tensor use the whole range that its tensor is quantized with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxq.channels import BALANCED, divide, multiplied_readers, multiply, spaces
from onnxq.graph import Graph
from onnxq.pipeline import Close, Context, Promise
from onnxq.rewrite import Change
from onnxq.spec import Fact


@dataclass(frozen=True)
class Balance:
    """Move the differences between channels from activations, which share a scale, to weights, which need not.

        Conv(Relu(Conv(x, w1)), w2) => Conv(Relu(Conv(x, w1 / s)), w2 * s)       cross-layer equalization
        MatMul(LayerNorm(x, g, b), w) => MatMul(LayerNorm(x, g / s, b / s), w * s)       SmoothQuant
        MatMul(x, w) => MatMul(x * (1 / s), w * s)       where nothing before x can take the factors

    The plan names the tensors, the factors, and whether they cost a Mul. A Clip keeps its limit: factors
    are chosen so that no value of the calibration data passes it. Leaves tensors alone that the
    plan does not name, and layers that were balanced before.

    Xiao et al., SmoothQuant, arXiv:2211.10438; Nagel et al., Data-Free Quantization, arXiv:1906.04721, section 4.1.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NORMAL})
    gives: ClassVar[frozenset[Fact]] = frozenset()
    promise: ClassVar[Promise] = Close(rtol=1e-4)

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each tensor."""
        plan = context.plan
        assert plan is not None
        fresh = not any(tensor.name.endswith(BALANCED) for tensor in graph.weights())
        for space in spaces(graph) if fresh else ():
            choice = plan.balance.get(space.name)
            if choice is None or choice.multiplies:
                continue
            factors = np.asarray(choice.factors, np.float32)
            for maker in space.makers:
                divide(graph, maker, factors)
            for reader in space.readers:
                multiply(graph, reader, factors)
            names = ", ".join(f"'{reader.node.name}'" for reader in space.readers)
            yield Change(space.name, "tensor", "balanced", f"Its channels fill one range; the weight of {names} pays.")
        yield from self._multiply(graph, context) if fresh else ()

    def _multiply(self, graph: Graph, context: Context) -> Iterator[Change]:
        assert context.plan is not None
        tensors = graph.tensors()
        for name, choice in context.plan.balance.items():
            readers = multiplied_readers(graph, name)
            if not choice.multiplies or not readers:
                continue
            factors, tensor = np.asarray(choice.factors, np.float32), tensors[name]
            scaled = graph.variable(f"{name}{BALANCED}", tensor.dtype, tensor.shape)
            reciprocal = graph.constant(f"{name}_reciprocal{BALANCED}", 1 / factors)
            graph.add("Mul", [tensor, reciprocal], [scaled], name=f"{name}_balance")
            for reader in readers:
                multiply(graph, reader, factors)
                reader.node.inputs[0] = scaled
            yield Change(name, "tensor", "Mul", "Its channels fill one range, at the cost of a Mul.")
