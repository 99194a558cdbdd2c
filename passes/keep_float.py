"""A convolution that is to stay in float stays in float."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxq.graph import MICROSOFT, Graph, Node
from onnxq.layers import clip_limits, only_reader
from onnxq.pipeline import Close, Context, Promise
from onnxq.rewrite import Change
from onnxq.spec import Fact


@dataclass(frozen=True)
class KeepFloat:
    """Write a float convolution between integers as an operator that the runtime does not quantize on its own.

        Q(Clip(Conv(DQ(x), w))) => Q(FusedConv(DQ(x), w, activation: Clip))

    Between DequantizeLinear and QuantizeLinear the runtime rounds float weights to 8 bits when it loads the model, with
    one scale for all channels: weights of just the layers that were kept in float because they cannot bear it. The
    kernel of FusedConv is that of Conv. Leaves convolutions alone that have floats on one side.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.INTEGER})
    gives: ClassVar[frozenset[Fact]] = frozenset()
    promise: ClassVar[Promise] = Close(rtol=1e-5)

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each convolution."""
        for node in [n for n in graph.nodes if n.op == "Conv" and not n.domain]:
            maker = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
            if maker is None or maker.op != "DequantizeLinear" or node.inputs[0].dtype not in (None, np.float32):
                continue
            activation = _activation(graph, node)
            last = activation or node
            if not any(reader.op == "QuantizeLinear" for reader in last.outputs[0].outputs):
                continue
            inputs, output, name = list(node.inputs), last.outputs[0], node.name
            attributes = dict(node.attrs) | _attributes(activation)
            graph.remove(node, *([activation] if activation else []))
            graph.add("FusedConv", inputs, [output], name=name, domain=MICROSOFT, **attributes)
            yield Change(
                name, "Conv", "FusedConv", "Between integers, the runtime would quantize its weight once more."
            )


def _activation(graph: Graph, node: Node) -> Node | None:
    """The Relu or Clip behind a convolution, where nobody else reads what lies between."""
    reader = only_reader(graph, node.outputs[0])
    limits = None if reader is None else clip_limits(reader)
    return reader if limits is not None and np.isfinite(limits[0]) else None


def _attributes(activation: Node | None) -> dict[str, Any]:
    limits = None if activation is None else clip_limits(activation)
    if limits is None:
        return {}
    if limits == (0.0, np.inf):
        return {"activation": "Relu"}
    return {"activation": "Clip", "activation_params": [float(np.float32(min(end, 3.4e38))) for end in limits]}
