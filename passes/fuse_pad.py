"""A convolution pads for free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from onnxq.graph import Graph, Node, is_constant, weight
from onnxq.layers import only_reader
from onnxq.pipeline import Context, Exact, Promise
from onnxq.rewrite import Change
from onnxq.spec import Fact


@dataclass(frozen=True)
class FusePad:
    """Let the convolution pad.

        Conv(Pad(x, p)) => Conv(x), pads + p

    Leaves it alone where it pads with anything but zeros, pads batch or channels, crops, is read elsewhere too, or
    where the convolution chooses its own padding.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset()
    gives: ClassVar[frozenset[Fact]] = frozenset()
    promise: ClassVar[Promise] = Exact()

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each Pad before a convolution."""
        for pad in [n for n in graph.nodes if n.op == "Pad" and not n.domain]:
            conv = only_reader(graph, pad.outputs[0])
            if conv is None or conv.op != "Conv" or conv.inputs[0] is not pad.outputs[0]:
                continue
            pads = zero_pads(pad)
            if pads is None or conv.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
                yield Change(pad.name, "Pad", "", "It pads with something else than zeros around the picture.")
                continue
            half = len(pads) // 2
            added = [*pads[2:half], *pads[half + 2 :]]
            own = list(conv.attrs.get("pads", [0] * len(added)))
            conv.attrs.pop("auto_pad", None)
            conv.attrs["pads"] = [a + b for a, b in zip(own, added, strict=True)]
            conv.inputs[0] = pad.inputs[0]
            yield Change(pad.name, "Pad", "Conv", f"'{conv.name}' pads itself.")


def zero_pads(node: Node) -> list[int] | None:
    """Begin and end padding of every axis where only the picture is padded, with zeros; None otherwise."""
    if node.attrs.get("mode", "constant") != "constant" or (len(node.inputs) > 3 and node.inputs[3].name):
        return None
    value: float = float(node.attrs.get("value", 0.0))
    if len(node.inputs) > 2 and node.inputs[2].name:
        if not is_constant(node.inputs[2]):
            return None
        value = float(weight(node.inputs[2]).reshape(-1)[0])
    if len(node.inputs) > 1 and not is_constant(node.inputs[1]):
        return None
    pads = [int(p) for p in (node.attrs["pads"] if "pads" in node.attrs else weight(node.inputs[1]))]
    half = len(pads) // 2
    outer = [*pads[:2], *pads[half : half + 2]]
    return pads if value == 0.0 and not any(outer) and min(pads) >= 0 and half > 2 else None
