"""Build switches into a float graph: each lets some readers of a tensor read something else in its place.

    x -> If(on) { DQ(Q(x)) } else { x } -> reader        w -> If(on) { rounded w } else { w } -> reader

Only one side runs, so what is off costs a copy; Where would compute both, and takes half as long as the layers itself.
Rounding is written in float operators (Div, Round, Max, Min, Mul), which return what QuantizeLinear and
DequantizeLinear return: so any number of bits and a scale for each channel need no newer opset, and the runtime has
nothing to fold.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxq.graph import Constant, Graph, Node, Tensor, Variable, branch, is_constant, weight, with_inputs
from onnxq.interface import TensorSpec
from onnxq.numerics.affine import fake_quantize
from onnxq.numerics.formats import INT8, Format

OPSET = 11
"""The first opset with Round and DynamicQuantizeLinear."""

SMALLEST_REACH = 1e-30
"""Where a block of zeros would be divided by zero."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Grid:
    """The values that a quantized tensor can take: `(q - zero_point) * scale`.

    Attributes:
        scale: one number, or one for each index of `axis`.
        zero_point: likewise; may be one number beside several scales.
        format: the integers in use, 16 bits at most.
        axis: where channels lie; None for one grid per tensor.
    """

    scale: Array
    zero_point: Array
    format: Format
    axis: int | None = None

    def rounded(self, values: Array) -> Array:
        """The values moved onto the grid."""
        zero_point = np.broadcast_to(self.zero_point, np.shape(self.scale))
        return fake_quantize(values, self.scale, zero_point, self.format, self.axis)


@dataclass(frozen=True, eq=False)
class Switch:
    """One tensor that can be switched between its float values and what takes their place.

    Exactly one of `grid`, `dynamic`, `blocks` and `values` says what that is. Of several switches that are on for the
    same tensor and reader, the last one counts.

    Attributes:
        name: a name of its own.
        tensor: the tensor of the float graph that is replaced: an activation or a constant.
        readers: names of the nodes that read the replacement, and the name of the tensor itself for what reads it by
            that name: the output of the model, or the body of a control flow node; empty for all of them.
        grid: round to this grid.
        dynamic: round to the uint8 grid of the range at run time, as DynamicQuantizeLinear does.
        blocks: numbers along the last axis, and how many of them share a grid of int8 that is found at run time, as
            `MatMulNBits` does inside.
        values: a constant of the same shape: a rounded weight, or a corrected bias.
    """

    name: str
    tensor: str
    readers: tuple[str, ...] = ()
    grid: Grid | None = None
    dynamic: bool = False
    blocks: tuple[int, int] | None = None
    values: Array | None = None

    def __post_init__(self) -> None:
        given = (self.grid is not None) + self.dynamic + (self.blocks is not None) + (self.values is not None)
        assert given == 1, f"Switch '{self.name}' needs one of grid, dynamic, blocks and values."


@dataclass
class Wiring:
    """A graph into which switches are built.

    Attributes:
        graph: the graph, edited.
        originals: its tensors before that, as they are made, by name.
        readers: who read them.
        kept: the nodes that hand tensors on under names that are promised to somebody, by that name.
        read: what a node reads by now in place of a tensor: {(tensor, node): tensor}.
    """

    graph: Graph
    originals: dict[str, Tensor]
    readers: dict[str, list[Node]]
    kept: dict[str, Node]
    read: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph, tensors: Collection[str]) -> Wiring:
        """Make names that are promised to somebody the last readers of their tensors."""
        originals, kept = graph.tensors(), dict[str, Node]()
        for name in dict.fromkeys(tensors):
            tensor = originals[name]
            if graph.kept(tensor) and tensor.inputs:
                originals[name], kept[name] = _behind(graph, tensor)
        return cls(graph, originals, {name: list(tensor.outputs) for name, tensor in originals.items()}, kept)

    def insert(self, switch: Switch) -> Variable:
        """Build one switch in; returns its flag."""
        name = switch.tensor
        flag = self.graph.variable(f"{switch.name}_on", np.dtype(np.bool_), ())
        by_source: dict[str, tuple[Tensor, list[Node]]] = {}
        for node in dict.fromkeys(self.readers[name]):
            own = name if node is self.kept.get(name) else node.name
            if not switch.readers or own in switch.readers:
                source = self.read.get((name, node.name), self.originals[name])
                by_source.setdefault(source.name, (source, []))[1].append(node)
        for source, nodes in by_source.values():
            chosen = self.choice(flag, self.replacement(switch), source)
            self.graph.redirect(source, chosen, readers=nodes)
            self.read.update({(name, node.name): chosen for node in nodes})
        return flag

    def choice(self, flag: Variable, replacement: list[Node], source: Tensor) -> Variable:
        """If(on) { replacement } else { source }."""
        graph = self.graph
        chosen = graph.variable(f"{source.name}_switched", source.dtype, source.shape)
        untouched = self.node("Identity", source)
        branches = {
            name: branch(name, nodes, TensorSpec(nodes[-1].outputs[0].name, np.dtype(np.float32), None))
            for name, nodes in (("then_branch", replacement), ("else_branch", [untouched]))
        }
        graph.add("If", [flag], [chosen], name=f"{chosen.name}_switch", **branches)
        graph.captured |= {source.name}
        if isinstance(source, Constant):
            graph.pinned[source.name] = source
        return chosen

    def replacement(self, switch: Switch) -> list[Node]:
        """The nodes that make what takes the place of the tensor; the last one returns it."""
        tensor = self.originals[switch.tensor]
        if switch.values is not None:
            return [self.node("Identity", self.constant(switch.values))]
        if switch.grid is None:
            return self.blocks(tensor, *switch.blocks) if switch.blocks else self.dynamic(tensor)
        if is_constant(tensor):
            return [self.node("Identity", self.constant(switch.grid.rounded(weight(tensor))))]
        return self.rounded(tensor, switch.grid)

    def rounded(self, tensor: Tensor, grid: Grid) -> list[Node]:
        """clip(round(x / scale), qmin - zero_point, qmax - zero_point) * scale, the same bits as DQ(Q(x))."""
        zero, rank = np.asarray(grid.zero_point, np.float32), len(tensor.shape or ())
        scale = self.constant(_along(grid, np.asarray(grid.scale), rank))
        low, high = (self.constant(_along(grid, end - zero, rank)) for end in (grid.format.qmin, grid.format.qmax))
        nodes = [self.node("Div", tensor, scale)]
        for op, other in (("Round", None), ("Max", low), ("Min", high), ("Mul", scale)):
            nodes.append(self.node(op, nodes[-1].outputs[0], *([other] if other else [])))
        return nodes

    def dynamic(self, tensor: Tensor) -> list[Node]:
        """DequantizeLinear(DynamicQuantizeLinear(x))."""
        quantize = self.node("DynamicQuantizeLinear", tensor)
        quantize.outputs.extend(self.graph.variable(f"{quantize.name}_{part}") for part in ("scale", "zero_point"))
        return [quantize, self.node("DequantizeLinear", *quantize.outputs)]

    def blocks(self, tensor: Tensor, channels: int, size: int) -> list[Node]:
        """round(x / scale) * scale with scale = max |x| / 127 of each block of the last axis, filled up with zeros."""
        missing = -channels % size
        nodes = [self.node("Shape", tensor), self.node("Reshape", tensor, self.shape(1, -1, channels))]

        def then(op: str, *others: Tensor, of: Node | None = None) -> Node:
            nodes.append(self.node(op, (of or nodes[-1]).outputs[0], *others))
            return nodes[-1]

        if missing:
            then("Pad", self.shape(0, 0, 0, 0, 0, missing))
        whole, length = nodes[-1], channels + missing
        then("Abs")
        then("MaxPool").attrs.update(kernel_shape=[size], strides=[size])
        then("Reshape", self.shape(-1, 1))
        then("Max", self.constant(np.float32(SMALLEST_REACH)))
        scale = then("Div", self.constant(np.float32(INT8.qmax))).outputs[0]
        then("Reshape", self.shape(-1, size), of=whole)
        then("Div", scale)
        then("Round")
        then("Mul", scale)
        then("Reshape", self.shape(1, -1, length))
        if missing:
            then("Slice", self.shape(0), self.shape(channels), self.shape(2))
        then("Reshape", nodes[0].outputs[0])
        return nodes

    def node(self, op: str, *inputs: Tensor) -> Node:
        """A node of a body, with an output of its own. It reads by name: tensors around it do not know of it."""
        read = [t if is_constant(t) and t.name not in self.originals else Variable(t.name) for t in inputs]
        name = self.graph.fresh(f"{inputs[0].name}_{op.lower()}")
        return Node(op, name, {}, read, [self.graph.variable(f"{name}_output")])

    def constant(self, values: Array | np.floating[Any]) -> Constant:
        """A constant of a body."""
        return self.graph.constant("switch_value", np.asarray(values).astype(np.float32))

    def shape(self, *sizes: int) -> Constant:
        """A constant of a body that says a shape, or places."""
        return self.graph.constant("switch_shape", np.asarray(sizes, np.int64))


def _along(grid: Grid, values: Array, rank: int) -> Array:
    """One number, or one for each channel in a shape that lies along the grid's axis of a tensor of this rank."""
    if values.size == 1:
        return values.reshape(())
    assert grid.axis is not None, "A grid with several scales needs an axis."
    behind = -grid.axis - 1 if grid.axis < 0 else rank - grid.axis - 1
    return values.reshape(-1, *[1] * behind)


def _behind(graph: Graph, tensor: Tensor) -> tuple[Variable, Node]:
    """Let a tensor be made under another name, and its own name be one of the readers."""
    inner, maker = graph.variable(f"{tensor.name}_made", tensor.dtype, tensor.shape), tensor.inputs[0]
    maker.outputs[next(place for place, made in enumerate(maker.outputs) if made is tensor)] = inner
    graph.redirect(tensor, inner)
    return inner, graph.add("Identity", [inner], [tensor], name=f"{tensor.name}_kept")


def wire(graph: Graph, switches: Sequence[Switch], watched: Collection[str] = ()) -> tuple[Wiring, dict[str, str]]:
    """A copy of the graph with all switches in it, and the input that turns each of them on, by its name."""
    wiring = Wiring.of(graph.copy(), [*(switch.tensor for switch in switches), *watched])
    flags = {switch.name: wiring.insert(switch) for switch in switches}
    assert len(flags) == len(switches), "Switches need names of their own."
    made = wiring.graph
    made.inputs.extend(flags.values())
    made.shell = with_inputs(made.shell, [TensorSpec(f.name, np.dtype(np.bool_), ()) for f in flags.values()])
    made.tidy()
    return wiring, {name: flag.name for name, flag in flags.items()}
