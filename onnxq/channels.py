"""Which channels can be rescaled: a factor taken out where a tensor is made, and put back where it is read.

    Conv(w1) ─ x ─ Relu ─ Conv(w2)    =    Conv(w1 / s) ─ x / s ─ Relu ─ Conv(w2 * s)

Exact for everything between that is positively homogeneous, f(x / s) = f(x) / s. Tensors that an Add joins have one
factor for each channel together.

Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, arXiv:1906.04721, section 4.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.errors import RecipeError
from onnxq.graph import Array, Graph, Node, Tensor, is_constant, weight
from onnxq.layers import Layer, clip_limits, clips_at_zero, layer_of, weight_axis
from onnxq.plan import BalancePlan

POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool"})
"""Operators with f(x / s) = f(x) / s for each channel of a picture, whose channels lie along axis 1."""

HOMOGENEOUS = POOLS | {"Relu", "LeakyRelu"}
"""Operators with f(x / s) = f(x) / s for each channel, s > 0."""

BALANCED = "_balanced"
"""The end of the name of a weight that was rescaled."""

Factors = tuple[int, list[float]]
"""An axis, and what each channel along it is divided by."""


@dataclass(frozen=True)
class Space:
    """Tensors whose channels can only be rescaled together.

    Attributes:
        tensors: their names, in the order of the graph; the first one names the space.
        makers: layers that make one of them, and other nodes with a constant row for the channels.
        readers: layers that read one of them.
        axis: where the channels lie, in each of the tensors.
        channels: how many there are.
        limits: the upper end of each Clip between them, by the name of the tensor that it makes.
    """

    tensors: tuple[str, ...]
    makers: tuple[Layer | Node, ...]
    readers: tuple[Layer, ...]
    axis: int
    channels: int
    limits: Mapping[str, float]

    @property
    def name(self) -> str:
        """The name of its first tensor."""
        return self.tensors[0]

    @property
    def limit(self) -> float:
        """The lowest upper end of a Clip; inf where there is none."""
        return min(self.limits.values(), default=np.inf)


def layers_of(graph: Graph) -> list[Layer]:
    """Every layer of a graph with its bias, activations left out."""
    return [found for node in graph.nodes if isinstance(found := layer_of(graph, node, frozenset()), Layer)]


def spaces(graph: Graph) -> list[Space]:
    """Every space of a graph, in order: made by layers and constant rows alone, and read by layers alone."""
    roles = _Roles.of(graph)
    found = [roles.space(tensors) for tensors in _joined(graph, list(roles.links.values()))]
    return [space for space in found if space is not None]


@dataclass(frozen=True)
class _Roles:
    """What the nodes of a graph are to the tensors between them.

    Attributes:
        graph: the graph.
        made: layers by the name of what leaves them.
        read: layers by the id of their node.
        links: tensors that share their factors, by the id of the node between them.
    """

    graph: Graph
    made: Mapping[str, Layer]
    read: Mapping[int, Layer]
    links: Mapping[int, tuple[Tensor, ...]]

    @classmethod
    def of(cls, graph: Graph) -> _Roles:
        layers = layers_of(graph)
        inner = {id(node) for layer in layers for node in (layer.node, *layer.tail)}
        links = {id(node): linked for node in graph.nodes if id(node) not in inner and (linked := _linked(node))}
        made = {layer.output.name: layer for layer in layers}
        return cls(graph, made, {id(layer.node): layer for layer in layers}, links)

    def space(self, tensors: Sequence[Tensor]) -> Space | None:
        """The space of these tensors; None where somebody else makes or reads one, or channels are not the same."""
        makers = [maker for tensor in tensors if (maker := self.maker(tensor)) is not None]
        readers = [layer for tensor in tensors for layer in self.readers(tensor)]
        if not readers or len(makers) < len(tensors) or not all(self.closed(tensor) for tensor in tensors):
            return None
        rows = [maker for maker in makers if isinstance(maker, Layer) or _row(maker) is not None]
        between = [maker for maker in makers if isinstance(maker, Node) and id(maker) in self.links]
        axes = {_axis_made(maker) for maker in rows} | {_axis_read(layer) for layer in readers}
        axes |= {1 for node in between if node.op in POOLS or _flattens(node)}
        channels = {_channels_made(maker) for maker in rows} | {input_channels(layer) for layer in readers}
        if len(axes) > 1 or len(channels) > 1 or min(axes) < 1:
            return None
        limits = {n.outputs[0].name: ends[1] for n in between if n.op == "Clip" and (ends := clip_limits(n))}
        names = tuple(tensor.name for tensor in tensors)
        return Space(names, tuple(rows), tuple(readers), axes.pop(), channels.pop(), limits)

    def maker(self, tensor: Tensor) -> Layer | Node | None:
        """What makes a tensor, if it can take factors or pass them on."""
        if tensor.name in self.made:
            return self.made[tensor.name]
        node = tensor.inputs[0] if tensor.inputs and tensor.inputs[0].outputs[0] is tensor else None
        return node if node is not None and (id(node) in self.links or _row(node) is not None) else None

    def readers(self, tensor: Tensor) -> list[Layer]:
        """The layers whose data this is."""
        return [self.read[id(node)] for node in tensor.outputs if id(node) in self.read]

    def closed(self, tensor: Tensor) -> bool:
        """Whether only layers, and nodes between tensors of the same space, read this tensor."""
        layers = {id(layer.node) for layer in self.readers(tensor)}
        linked = {id(n) for n in tensor.outputs if any(t is tensor for t in self.links.get(id(n), ()))}
        return all(id(node) in layers | linked for node in tensor.outputs) and not self.graph.kept(tensor)


def _linked(node: Node) -> tuple[Tensor, ...]:
    """The tensors that share their factors because this node stands between them; empty where it shares nothing."""
    if node.domain or not node.outputs or len(node.outputs) > 1:
        return ()
    data = tuple(t for t in node.inputs if t.name and not is_constant(t))
    one = node.op in HOMOGENEOUS or (node.op == "Clip" and clips_at_zero(node)) or _flattens(node)
    one = one and not is_constant(node.inputs[0])
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


def _row(node: Node) -> Tensor | None:
    """The constant with the channels along its last axis that a Mul, an Add or a norm holds."""
    if node.domain:
        return None
    if node.op == "LayerNormalization":
        whole = node.attrs.get("axis", -1) == -1 and all(is_constant(t) for t in node.inputs[1:] if t.name)
        return node.inputs[1] if whole else None
    constants = [t for t in node.inputs if t.name and is_constant(t)]
    if node.op not in ("Mul", "Add", "Sum") or len(constants) != 1 or len(node.inputs) != 2:
        return None
    return constants[0] if constants[0].dtype == np.float32 else None


def _axis_made(maker: Layer | Node) -> int:
    """Where the channels lie in what a layer or a row makes; -1 where nobody knows how many axes that has."""
    output = maker.output if isinstance(maker, Layer) else maker.outputs[0]
    return 1 if isinstance(maker, Layer) and not maker.linear else len(output.shape or ()) - 1


def _axis_read(layer: Layer) -> int:
    return len(layer.data.shape or ()) - 1 if layer.linear else 1


def _channels_made(maker: Layer | Node) -> int:
    if isinstance(maker, Layer):
        return _size(maker.weight, weight_axis(maker.node))
    row = _row(maker)
    assert row is not None
    return _size(row, -1)


def _size(constant: Tensor, axis: int) -> int:
    return int((constant.shape or (1,))[axis])  # type: ignore[arg-type]


def _joined(graph: Graph, groups: Sequence[tuple[Tensor, ...]]) -> list[list[Tensor]]:
    """Tensors that groups join, directly or through others, in order; those that no group names stand alone."""
    of: dict[str, set[str]] = {}
    for group in groups:
        whole = set().union(*(of.get(t.name, {t.name}) for t in group))
        of.update(dict.fromkeys(whole, whole))
    found: dict[int, list[Tensor]] = {}
    for name, tensor in graph.tensors().items():
        if not is_constant(tensor):
            found.setdefault(id(of.get(name, tensor)), []).append(tensor)
    return list(found.values())


def check_balance(graph: Graph, balance: Mapping[str, BalancePlan]) -> None:
    """Raise RecipeError where factors of a plan do not fit the graph."""
    free = {space.name: space.channels for space in spaces(graph)}
    for name, choice in balance.items():
        read = {input_channels(layer) for layer in multiplied_readers(graph, name)}
        channels = read if choice.multiplies else {free[name]} if name in free else set()
        if channels != {len(choice.factors)}:
            held = f"has {max(channels)} channels" if channels else "has no channels that can be rescaled like that"
            raise RecipeError(
                f"The plan balances tensor '{name}' with {len(choice.factors)} factors, but in this model it {held}. "
                "Make the plan again."
            )


def multiplied_readers(graph: Graph, name: str) -> list[Layer]:
    """The layers that read a tensor through the Mul that balances it: linear ones, along the last axis."""
    return [layer for layer in layers_of(graph) if layer.linear and layer.data.name == name]


def divided(graph: Graph, balance: Mapping[str, BalancePlan]) -> dict[str, Factors]:
    """What every tensor of a graph will be divided by when its channels are balanced."""
    return {
        name: (space.axis, balance[space.name].factors)
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
    return graph.constant(f"{old.name}{BALANCED}", np.asarray(values, np.float32))


def _replace(node: Node, old: Tensor, new: Tensor) -> None:
    node.inputs[next(i for i, t in enumerate(node.inputs) if t is old)] = new
