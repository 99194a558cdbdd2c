"""Which channels can be rescaled: a factor taken out where a tensor is made, and put back where it is read.

    Conv(w1) ─ x ─ Relu ─ Conv(w2)    =    Conv(w1 / s) ─ x / s ─ Relu ─ Conv(w2 * s)

Exact for everything between that is positively homogeneous, f(x / s) = f(x) / s. Tensors that an Add joins have one
factor for each channel together.

Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, arXiv:1906.04721, section 4.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from onnxq.graph import Array, Graph, Node, Tensor, is_constant, weight
from onnxq.layers import Layer, clip_limits, layer_of
from onnxq.plan import BalancePlan

HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool"})
"""Operators with f(x / s) = f(x) / s for each channel, s > 0."""


@dataclass(frozen=True)
class Space:
    """Tensors whose channels can only be rescaled together.

    Attributes:
        tensors: their names, in the order of the graph; the first one names the space.
        makers: layers that make one of them, and other nodes with a constant row for the channels.
        readers: layers that read one of them.
        limit: the lowest upper end of a Clip between them; inf where there is none.
    """

    tensors: tuple[str, ...]
    makers: tuple[Layer | Node, ...]
    readers: tuple[Layer, ...]
    limit: float

    @property
    def name(self) -> str:
        """The name of its first tensor."""
        return self.tensors[0]


def layers_of(graph: Graph) -> list[Layer]:
    """Every layer of a graph with its bias, activations left out."""
    return [found for node in graph.nodes if isinstance(found := layer_of(graph, node, frozenset()), Layer)]


def spaces(graph: Graph) -> list[Space]:
    """Every space of a graph, in order: made by layers and constant rows alone, and read by layers alone."""
    layers = layers_of(graph)
    made = {layer.output.name: layer for layer in layers}
    read = {id(layer.node): layer for layer in layers}
    inner = {id(node) for layer in layers for node in (layer.node, *layer.tail)}
    links = {id(node): linked for node in graph.nodes if id(node) not in inner and (linked := _linked(node))}
    found = []
    for names in _joined(graph, list(links.values())):
        tensors = [tensor for name, tensor in graph.tensors().items() if name in names]
        makers = [_maker(tensor, made, links) for tensor in tensors]
        readers = [read[id(n)] for t in tensors for n in t.outputs if id(n) in read and read[id(n)].data is t]
        closed = all(_closed(graph, tensor, read, links) for tensor in tensors)
        if readers and closed and all(maker is not None for maker in makers):
            rows = [m for m in makers if isinstance(m, Layer) or (m is not None and _row(m) is not None)]
            between = [node for tensor in tensors for node in tensor.outputs if id(node) in links]
            limits = [limit[1] for node in between if (limit := clip_limits(node)) is not None]
            space = Space(tuple(t.name for t in tensors), tuple(rows), tuple(readers), min(limits, default=np.inf))
            found.append(space)
    return found


def _linked(node: Node) -> tuple[Tensor, ...]:
    """The tensors that share their factors because this node stands between them; empty where it shares nothing."""
    if node.domain or not node.outputs or len(node.outputs) > 1:
        return ()
    data = tuple(t for t in node.inputs if t.name and not is_constant(t))
    limits = clip_limits(node) if node.op == "Clip" else None
    one = node.op in HOMOGENEOUS or (limits is not None and limits[0] == 0.0) or _flattens(node)
    if one or (node.op in ("Add", "Sum") and len(data) == 1 and _row(node) is not None):
        return (node.inputs[0] if one else data[0], node.outputs[0])
    same = node.op in ("Add", "Sum") and len(data) == len(node.inputs) and len({_shape(t) for t in data}) == 1
    return (*data, node.outputs[0]) if same and _shape(data[0]) else ()


def _shape(tensor: Tensor) -> tuple[object, ...]:
    return tuple(tensor.shape or ())


def _flattens(node: Node) -> bool:
    """Whether this drops the two axes of size 1 that global pooling leaves."""
    source = node.inputs[0].inputs[0] if node.inputs and node.inputs[0].inputs else None
    rank = len(node.outputs[0].shape or ())
    return node.op in ("Flatten", "Reshape") and source is not None and source.op == "GlobalAveragePool" and rank == 2


def _row(node: Node | Layer | None) -> Tensor | None:
    """The constant with one number for each channel of the last axis that a Mul, an Add or a norm holds."""
    if not isinstance(node, Node) or node.domain:
        return None
    if node.op == "LayerNormalization":
        whole = node.attrs.get("axis", -1) == -1 and all(is_constant(t) for t in node.inputs[1:] if t.name)
        return node.inputs[1] if whole else None
    constants = [t for t in node.inputs if t.name and is_constant(t)]
    if node.op not in ("Mul", "Add", "Sum") or len(constants) != 1 or len(node.inputs) != 2:
        return None
    shape = tuple(constants[0].shape or ())
    width = _shape(node.outputs[0])[-1:]
    flat = len(shape) > 0 and shape[-1:] == width and set(shape[:-1]) <= {1} and constants[0].dtype == np.float32
    return constants[0] if flat else None


def _maker(tensor: Tensor, made: dict[str, Layer], links: dict[int, tuple[Tensor, ...]]) -> Layer | Node | None:
    if tensor.name in made:
        return made[tensor.name]
    node = tensor.inputs[0] if tensor.inputs and tensor.inputs[0].outputs[0] is tensor else None
    return node if node is not None and (id(node) in links or _row(node) is not None) else None


def _closed(graph: Graph, tensor: Tensor, read: dict[int, Layer], links: dict[int, tuple[Tensor, ...]]) -> bool:
    """Whether only layers, and nodes between tensors of the same space, read this tensor."""
    known = all(
        (id(node) in read and read[id(node)].data is tensor and sum(t is tensor for t in node.inputs) == 1)
        or (id(node) in links and any(t is tensor for t in links[id(node)]))
        for node in tensor.outputs
    )
    return known and not graph.kept(tensor)


def _joined(graph: Graph, groups: list[tuple[Tensor, ...]]) -> Iterator[set[str]]:
    """Names of tensors that groups join, directly or through others; tensors that no group names stand alone."""
    of: dict[str, set[str]] = {}
    for group in groups:
        whole = set().union(*(of.get(t.name, {t.name}) for t in group))
        of.update(dict.fromkeys(whole, whole))
    seen: set[str] = set()
    for name, tensor in graph.tensors().items():
        if name not in seen and not is_constant(tensor):
            names = of.get(name, {name})
            seen |= names
            yield names


def divided(graph: Graph, balance: Mapping[str, BalancePlan]) -> dict[str, list[float]]:
    """What every tensor of a graph will be divided by when its channels are balanced."""
    return {
        name: balance[space.name].factors
        for space in spaces(graph)
        if space.name in balance and not balance[space.name].multiplies
        for name in space.tensors
    }


def divide(graph: Graph, maker: Layer | Node, factors: Array) -> None:
    """Divide what a node makes, channel by channel: its weight and bias, or its constant rows."""
    if isinstance(maker, Layer):
        node = maker.node
        rows = node.op == "Conv" or bool(node.attrs.get("transB", 0))
        values = weight(node.inputs[1])
        node.inputs[1] = _balanced(graph, node.inputs[1], values / _along(factors, values.ndim, 0 if rows else -1))
        if maker.bias is not None:
            holder = maker.tail[0] if node.op == "MatMul" else node
            _replace(holder, maker.bias, _balanced(graph, maker.bias, weight(maker.bias) / factors))
        return
    for constant in [t for t in maker.inputs if t.name and is_constant(t)]:
        _replace(maker, constant, _balanced(graph, constant, weight(constant) / factors))


def multiply(graph: Graph, reader: Layer, factors: Array) -> None:
    """Multiply the weight of a layer, input channel by input channel."""
    reader.node.inputs[1] = _balanced(graph, reader.node.inputs[1], scaled_inputs(reader, factors))


def scaled_inputs(reader: Layer, factors: Array) -> Array:
    """The weight of a layer, times a factor for each of its input channels."""
    node, values = reader.node, weight(reader.node.inputs[1])
    if node.op != "Conv":
        return np.asarray(values * _along(factors, 2, 1 if node.attrs.get("transB", 0) else 0), np.float32)
    groups = int(node.attrs.get("group", 1))
    outputs, inputs = values.shape[:2]
    split = values.reshape(groups, outputs // groups, inputs, -1) * factors.reshape(groups, 1, inputs, 1)
    return np.asarray(split.reshape(values.shape), np.float32)


def input_channels(layer: Layer) -> int:
    """How many channels a layer reads."""
    shape = [int(size) for size in layer.weight.shape or ()]  # type: ignore[arg-type]
    if layer.node.op == "Conv":
        return shape[1] * int(layer.node.attrs.get("group", 1))
    return shape[1] if layer.node.attrs.get("transB", 0) else shape[0]


def _along(factors: Array, rank: int, axis: int) -> Array:
    shape = [1] * rank
    shape[axis] = -1
    return factors.reshape(shape)


def _balanced(graph: Graph, old: Tensor, values: Array) -> Tensor:
    return graph.constant(f"{old.name}_balanced", np.asarray(values, np.float32))


def _replace(node: Node, old: Tensor, new: Tensor) -> None:
    node.inputs[next(i for i, t in enumerate(node.inputs) if t is old)] = new
