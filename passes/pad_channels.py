"""An integer convolution wants its channels in fours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxq.graph import Graph, Node, is_constant, weight
from onnxq.pipeline import Context, Exact, Promise
from onnxq.rewrite import Change
from onnxq.spec import Fact

FOUR = 4
"""Numbers that one integer instruction multiplies and adds."""

LEAST_OUTPUTS = 16
"""Output channels from which on the fast kernel is chosen."""


@dataclass(frozen=True)
class PadChannels:
    """Give an integer convolution over 3 channels a fourth one, whose weights are zeros.

        QLinearConv(x, w) => QLinearConv(Pad(x), w'),  w' = 0 for the new channels

    The runtime's fast kernel reads channels in fours, and the general one takes up to twice as long. Leaves alone
    grouped convolutions, and those whose outputs are no multiple of 4 or fewer than 16, for which there is no fast
    kernel either.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.INTEGER})
    gives: ClassVar[frozenset[Fact]] = frozenset()
    promise: ClassVar[Promise] = Exact()

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each convolution whose channels do not come in fours."""
        for node in [n for n in graph.nodes if n.op == "QLinearConv" and not n.domain]:
            missing = _missing(node)
            if not missing:
                continue
            obstacle = _obstacle(graph, node)
            if obstacle is None:
                _pad(graph, node, missing)
                yield Change(
                    node.name, node.op, "Pad", f"Reads {missing} more channels, with weights of 0: fours are faster."
                )
            else:
                yield Change(node.name, node.op, "", obstacle)


def _missing(node: Node) -> int:
    """How many channels a convolution lacks to read them in fours; 0 for one that is grouped."""
    shape = node.inputs[3].shape or ()
    if len(shape) != 4 or node.attrs.get("group", 1) != 1 or not isinstance(shape[1], int):
        return 0
    return -shape[1] % FOUR


def _obstacle(graph: Graph, node: Node) -> str | None:
    outputs = int((node.inputs[3].shape or (0,))[0])  # type: ignore[arg-type]
    if outputs % FOUR or outputs < LEAST_OUTPUTS:
        return f"With {outputs} output channels there is no fast kernel for it."
    if not is_constant(node.inputs[3]) or not is_constant(node.inputs[5]):
        return "Its weight or its zero point is no constant."
    if np.unique(weight(node.inputs[5])).size != 1:
        return "The zero points of its weight differ from channel to channel."
    return None if graph.opset >= 11 else f"Before opset 11, Pad takes no integers; the model has {graph.opset}."


def _pad(graph: Graph, node: Node, missing: int) -> None:
    data, kernel = node.inputs[0], node.inputs[3]
    values = weight(kernel)
    zeros = np.full((values.shape[0], missing, *values.shape[2:]), weight(node.inputs[5]).reshape(-1)[0], values.dtype)
    pads = graph.constant(f"{node.name}_pads", np.asarray([0, 0, 0, 0, 0, missing, 0, 0]))
    padded = graph.variable(f"{data.name}_padded", data.dtype)
    graph.add("Pad", [data, pads], [padded], name=f"{node.name}_pad")  # with anything: the weights there are zeros
    node.inputs[0] = padded
    node.inputs[3] = graph.constant(f"{kernel.name}_padded", np.concatenate([values, zeros], axis=1))
