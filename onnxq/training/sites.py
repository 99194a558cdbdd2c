"""Where a Q/DQ graph rounds activations: one grid for each tensor, or for several that have to share it.

Q ── DQ ── MaxPool ── Q ── DQ          one grid: what only moves values cannot change their scale
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxq.errors import ModelError
from onnxq.graph import Array, Graph, Node, is_constant, weight
from onnxq.numerics.formats import FORMATS, Format

MOVERS = frozenset(
    {
        "MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand",
        "DepthToSpace", "Split", "Identity", "Resize",
    }
)  # fmt: skip
"""Operators that may stand on integers, because they compute nothing."""

JOINS = frozenset({"Concat", "Pad", *MOVERS})
"""Operators whose input and output may have to share a scale. Pad on integers fills with what the grid tells."""


@dataclass
class Site:
    """Nodes that share the grid of an activation.

    Attributes:
        name: of the first tensor that is rounded.
        form: the integers that it may hold.
        quantizes: QuantizeLinear nodes.
        others: what stands behind them, up to each DequantizeLinear.
    """

    name: str
    form: Format
    quantizes: list[Node] = field(default_factory=list)
    others: list[Node] = field(default_factory=list)

    @property
    def tensors(self) -> set[str]:
        """Everything that is called by the name of a tensor on this grid: what is rounded, and what comes of it."""
        behind = (tensor.name for node in self.others if node.op == "DequantizeLinear" for tensor in node.outputs)
        return {node.inputs[0].name for node in self.quantizes} | set(behind)

    @property
    def parameters(self) -> tuple[Array, Array]:
        """Scale and zero point as the graph holds them."""
        return constants_of(self.quantizes[0])


def constants_of(node: Node) -> tuple[Array, Array]:
    """Scale and zero point of a QuantizeLinear or DequantizeLinear. Raises ModelError."""
    if not all(is_constant(tensor) for tensor in node.inputs[1:] if tensor.name):
        raise ModelError(f"'{node.name}' ({node.op}): its scale or zero point is no constant, and cannot be trained.")
    scale = weight(node.inputs[1])
    if len(node.inputs) > 2 and node.inputs[2].name:
        return scale, weight(node.inputs[2])
    integers = node.outputs[0] if node.op == "QuantizeLinear" else node.inputs[0]
    return scale, np.zeros(scale.shape, integers.dtype or np.uint8)


def find_sites(graph: Graph) -> list[Site]:
    """The grids of activations: one for each tensor that is rounded, joined where operators between want one scale.

    Raises:
        ModelError: integers are read by something that has no gradient.
    """
    found: dict[str, Site] = {}
    for node in graph.nodes:
        if node.op != "QuantizeLinear" or node.domain or is_constant(node.inputs[0]):
            continue
        site = found[node.outputs[0].name] = _site(node)
        for other in list(_before(node, found)):
            if other is not site and _same_grid(site, other):
                other.quantizes += site.quantizes
                other.others += site.others
                found.update({name: other for name, known in found.items() if known is site})
                site = other
    return list({id(site): site for site in found.values()}.values())


def _site(node: Node) -> Site:
    """A QuantizeLinear with everything that reads its integers."""
    form = FORMATS[constants_of(node)[1].dtype.name]
    waiting, others = list(node.outputs[0].outputs), []
    while waiting:
        reader = waiting.pop()
        if reader in others:
            continue
        others.append(reader)
        if reader.op == "Clip":
            form = _cut(form, reader)
        if reader.op in MOVERS or reader.op == "Clip":
            waiting += [other for tensor in reader.outputs for other in tensor.outputs]
        elif reader.op != "DequantizeLinear":
            raise ModelError(
                f"'{reader.name}' ({reader.op}) reads integers, and has no gradient. Train the Q/DQ model."
            )
    return Site(node.inputs[0].name, form, [node], others)


def _cut(form: Format, clip: Node) -> Format:
    """The format of few bits that a Clip on integers leaves. Raises ModelError where there is none."""
    ends = [int(weight(tensor)) for tensor in clip.inputs[1:3] if tensor.name and is_constant(tensor)]
    for bits in range(2, 9):
        narrow = FORMATS[f"{form.name.rstrip('0123456789')}{bits}"]
        if len(ends) == 2 and narrow.qmin <= ends[0] and ends[1] <= narrow.qmax:
            return Format(narrow.name, bits, ends[0], ends[1], form.dtype, form.signed)
    raise ModelError(f"'{clip.name}' (Clip): its limits {ends} fit no format of 2 to 8 bits.")


def _before(node: Node, found: Mapping[str, Site]) -> Iterator[Site]:
    """The sites of what a QuantizeLinear's operand was moved or joined from."""
    waiting = list(node.inputs[0].inputs)
    while waiting:
        maker = waiting.pop()
        if maker.op == "DequantizeLinear" and maker.inputs[0].inputs:
            waiting.append(maker.inputs[0].inputs[0])
        elif maker.op == "QuantizeLinear" and maker.outputs[0].name in found:
            yield found[maker.outputs[0].name]
        elif maker.op in JOINS or maker.op == "Clip":
            waiting += [other for tensor in maker.inputs for other in tensor.inputs]


def _same_grid(one: Site, other: Site) -> bool:
    pairs = zip(one.parameters, other.parameters, strict=True)
    return one.form == other.form and all(np.array_equal(a, b) for a, b in pairs)
