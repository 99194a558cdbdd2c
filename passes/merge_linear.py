"""Linear layers that read the same tensor are one layer whose output is taken apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxq.graph import Array, Graph, Tensor, is_external, weight
from onnxq.layers import Layer, layer_of
from onnxq.pipeline import Context, Exact, Promise
from onnxq.rewrite import Change
from onnxq.spec import Fact

MIB = 1 << 20


@dataclass(frozen=True)
class MergeLinear:
    """Compute linear layers that read the same tensor at once.

        MatMul(x, a) + c, MatMul(x, b) + d  =>  Split(MatMul(x, [a b]) + [c d])

    Queries, keys and values come that way, and the two halves of a gated layer. A bias is 0 where a layer has none.
    Leaves alone a weight that is read elsewhere too, since it would be stored twice, and what is too large to be held
    in memory.

    Attributes:
        most: bytes of a merged weight.
        most_external: bytes of all merged weights that lie in files of their own.
    """

    most: int = 64 * MIB
    most_external: int = 512 * MIB
    needs: ClassVar[frozenset[Fact]] = frozenset()
    gives: ClassVar[frozenset[Fact]] = frozenset()
    promise: ClassVar[Promise] = Exact()

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each layer that was merged with others, or could not be."""
        groups = siblings(graph)
        external = sum(_bytes(layer) for group in groups for layer in group if is_external(layer.weight))
        for group in groups:
            obstacles = {layer.node.name: self._obstacle(graph, layer, group, external) for layer in group}
            alone = [layer for layer in group if obstacles[layer.node.name] is not None]
            merged = [layer for layer in group if obstacles[layer.node.name] is None]
            yield from (Change(n.name, n.op, "", obstacles[n.name] or "") for n in (layer.node for layer in alone))
            if len(merged) > 1:
                changes = _changes(merged)
                _merge(graph, merged)
                yield from changes

    def _obstacle(self, graph: Graph, layer: Layer, group: Sequence[Layer], external: int) -> str | None:
        if len(layer.weight.outputs) > 1 or graph.kept(layer.weight):
            return f"Its weight '{layer.weight.name}' is read elsewhere too, and would be stored twice."
        if layer.data.shape is None:
            return f"How many axes '{layer.data.name}' has is not known."
        together = sum(map(_bytes, group))
        if together > self.most:
            return f"The weights of all layers that read '{layer.data.name}' take {together / MIB:.3g} MiB."
        if is_external(layer.weight) and external > self.most_external:
            return f"Its weight lies in a file of its own; all that could be merged take {external / MIB:.3g} MiB."
        return None


def siblings(graph: Graph) -> list[list[Layer]]:
    """Linear layers of one operator that read one tensor, where there are several."""
    found: dict[tuple[str, str], list[Layer]] = {}
    for node in graph.nodes:
        layer = layer_of(graph, node, frozenset())
        if isinstance(layer, Layer) and layer.linear:
            found.setdefault((layer.data.name, node.op), []).append(layer)
    return [group for group in found.values() if len(group) > 1]


def _bytes(layer: Layer) -> int:
    return 4 * int(np.prod([int(size) for size in layer.weight.shape or ()]))  # type: ignore[arg-type]


def _changes(layers: Sequence[Layer]) -> list[Change]:
    first, *others = (layer.node for layer in layers)
    names = " and ".join(f"'{node.name}'" for node in others)
    return [
        Change(first.name, first.op, first.op, f"It computes {names} too, which read the same tensor."),
        *(Change(node.name, node.op, "Split", f"'{first.name}' computes it.") for node in others),
    ]


def _merge(graph: Graph, layers: Sequence[Layer]) -> None:
    """Let the first layer compute all of them."""
    first, outputs = layers[0], [layer.output for layer in layers]
    matrices = [_matrix(layer) for layer in layers]
    widths = [matrix.shape[1] for matrix in matrices]
    graph.remove(*(node for layer in layers for node in layer.tail), *(layer.node for layer in layers[1:]))
    first.node.inputs[1] = graph.constant(f"{first.weight.name}_merged", np.concatenate(matrices, axis=1))
    whole = _whole(graph, first, _bias(graph, layers, widths), sum(widths))
    _split(graph, first, whole, widths, outputs)


def _matrix(layer: Layer) -> Array:
    """The weight as [inputs, outputs]."""
    values = weight(layer.weight)
    return values.T if layer.node.op == "Gemm" and layer.node.attrs.get("transB", 0) else values


def _bias(graph: Graph, layers: Sequence[Layer], widths: Sequence[int]) -> Tensor | None:
    """The biases in a row; None where no layer has one."""
    known = [layer.bias for layer in layers if layer.bias is not None]
    if not known:
        return None
    rows = [
        np.zeros(width, np.float32) if layer.bias is None else weight(layer.bias).reshape(-1)
        for layer, width in zip(layers, widths, strict=True)
    ]
    return graph.constant(f"{known[0].name}_merged", np.concatenate(rows))


def _whole(graph: Graph, first: Layer, bias: Tensor | None, width: int) -> Tensor:
    """What the first layer returns, now that it has all weights."""
    node, shape = first.node, [*(first.data.shape or ())[:-1], width]
    product = graph.variable(f"{node.name}_merged", np.dtype(np.float32), shape)
    node.outputs[0] = product
    if node.op == "Gemm":
        while len(node.inputs) > 2:
            node.inputs.pop()
        for name in ("transB", "beta"):  # the weight was turned; beta may stand where there was no bias
            node.attrs.pop(name, None)
        node.inputs.extend([bias] if bias is not None else [])
    elif bias is not None:
        total = graph.variable(f"{node.name}_merged", np.dtype(np.float32), shape)
        graph.add("Add", [product, bias], [total], name=f"{node.name}_bias")
        return total
    return product


def _split(graph: Graph, first: Layer, whole: Tensor, widths: Sequence[int], outputs: Sequence[Tensor]) -> None:
    name, axis = f"{first.node.name}_split", len(first.data.shape or ()) - 1
    if graph.opset < 13:
        graph.add("Split", [whole], outputs, name=name, axis=axis, split=list(widths))
    else:
        sizes = graph.constant(f"{name}_sizes", np.asarray(widths, np.int64))
        graph.add("Split", [whole, sizes], outputs, name=name, axis=axis)
