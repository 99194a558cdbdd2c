"""A model in half precision, with the inputs and outputs that it had."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from onnxq.graph import Constant, Graph, Later, Node, Tensor, weight
from onnxq.half_nodes import floats, from_integers, halves, takes_any
from onnxq.half_weights import LEAST, size
from onnxq.numerics.halves import HIDDEN, HIGHEST, half_constant
from onnxq.pipeline import Context, Lossy, Promise
from onnxq.plan import Plan, Treatment
from onnxq.rewrite import Change
from onnxq.spec import Fact

FLOAT, FLOAT16 = 1, 10
"""Element types in ONNX."""

ENDS_AS_INPUTS = 11
"""The version of the standard operators since which Clip takes its ends as inputs."""

SINGLE, HALF = np.dtype(np.float32), np.dtype(np.float16)

IN_HALF = frozenset({Treatment.HALF, Treatment.WEIGHT})
"""What runs in half precision; a weight in integers is multiplied with activations in it."""


@dataclass(frozen=True)
class HalfPrecision:
    """Let operators compute in float16, for targets that do; inputs and outputs of the model keep their types.

        y = MatMul(x, w) => y = Cast(MatMul(Cast(x), w'))

    Constants are rounded when they are written. An operator that the plan keeps in float32 gets Casts around it. Leaves
    models alone whose plan has nothing in half precision, and the bodies of If, Loop and Scan.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NORMAL})
    gives: ClassVar[frozenset[Fact]] = frozenset()
    promise: ClassVar[Promise] = Lossy()

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each node that runs in half precision, and for each that stays in float32."""
        plan = context.plan
        assert plan is not None
        treatments = {node.treatment for node in plan.nodes.values()}
        if not context.target.half or Treatment.HALF not in treatments:
            return
        widths = Widths(graph, plan, from_integers(graph))
        nodes = [node for node in graph.nodes if floats(node.inputs) or floats(node.outputs)]
        reads = {id(node): widths.reads_half(node) for node in nodes}
        made = {id(node) for node in nodes if widths.in_half(node) and widths.make_half(node)}
        for node in nodes:
            widths.read(node, reads[id(node)])
        widths.finish()
        for node in nodes:
            decision = plan.nodes.get(node.name)
            if decision is not None and decision.treatment is Treatment.FLOAT:
                yield Change(node.name, node.op, "", decision.reason)
            elif decision is not None and (reads[id(node)] or id(node) in made):
                yield Change(node.name, node.op, f"half {node.op}", decision.reason)


@dataclass
class Widths:
    """Every float32 tensor of a graph in the widths in which it is there, made when somebody asks.

    Attributes:
        graph: what is edited.
        plan: which nodes run in half precision.
        integers: names of tensors that are computed from integers; what is too large in them stands for infinity.
        half: the half of each tensor, by name of the float32 one.
        single: the float32 form of each tensor that is made in half precision.
    """

    graph: Graph
    plan: Plan
    integers: frozenset[str]
    half: dict[str, Tensor] = field(default_factory=dict)
    single: dict[str, Tensor] = field(default_factory=dict)

    def in_half(self, node: Node) -> bool:
        """Whether a node runs in half precision."""
        return self.plan.treatment(node.name) in IN_HALF

    def reads_half(self, node: Node) -> set[int]:
        """Places of the inputs that a node reads in half precision; a Cast takes whichever width is there."""
        if not self.in_half(node) or node.op == "Cast":
            return set()
        chosen = {id(tensor) for tensor in halves(node)}
        weights = self.plan.treatment(node.name) is Treatment.WEIGHT and node.op != "Gather"
        return {place for place, t in enumerate(node.inputs) if id(t) in chosen and not (weights and place == 1)}

    def make_half(self, node: Node) -> bool:
        """Let the float32 outputs of a node be halves; those that are promised are widened under their old names.

        Returns whether there were any.
        """
        found = floats(node.outputs)
        if node.op == "Cast" and found:
            node.attrs["to"] = FLOAT16
        for tensor in found:
            half = tensor
            if self.graph.kept(tensor):
                half = self.graph.variable(f"{tensor.name}_half", HALF, tensor.shape)
                node.outputs[next(place for place, t in enumerate(node.outputs) if t is tensor)] = half
                self._cast(half, tensor, "widen")
                self.single[tensor.name] = tensor
            half.dtype = HALF
            self.half[tensor.name] = half
        return bool(found)

    def read(self, node: Node, places: set[int]) -> None:
        """Let a node read its inputs in the width that it wants."""
        if takes_any(node) or node.op == "Cast":
            return
        for place, tensor in enumerate(list(node.inputs)):
            if place in places:
                node.inputs[place] = self._halved(tensor)
            elif self.half.get(tensor.name) is tensor:
                node.inputs[place] = self._widened(tensor)

    def _halved(self, tensor: Tensor) -> Tensor:
        if tensor.name not in self.half:
            name = f"{tensor.name}_half"
            if isinstance(tensor, Constant):
                self.half[tensor.name] = Constant(self.graph.fresh(name), _rounded(tensor))
            else:
                half = self.half[tensor.name] = self.graph.variable(name, HALF, tensor.shape)
                self._cast(self._ended(tensor), half, "narrow")
        return self.half[tensor.name]

    def _widened(self, tensor: Tensor) -> Tensor:
        if tensor.name not in self.single:
            single = self.single[tensor.name] = self.graph.variable(f"{tensor.name}_float", SINGLE, tensor.shape)
            self._cast(tensor, single, "widen")
        return self.single[tensor.name]

    def _cast(self, source: Tensor, output: Tensor, way: str) -> None:
        to = FLOAT16 if way == "narrow" else FLOAT
        self.graph.add("Cast", [source], [output], name=f"{source.name}_{way}", to=to)

    def _ended(self, tensor: Tensor) -> Tensor:
        """What is computed from integers, such as a mask of -3e38, ends where half precision does."""
        if tensor.name not in self.integers:
            return tensor
        ended = self.graph.variable(f"{tensor.name}_ended", SINGLE, tensor.shape)
        name, ends = f"{tensor.name}_end", (HIDDEN, HIGHEST)
        if self.graph.opset >= ENDS_AS_INPUTS:
            limits = [self.graph.constant(f"{name}_at", np.asarray(end, SINGLE)) for end in ends]
            self.graph.add("Clip", [tensor, *limits], [ended], name=name)
        else:
            self.graph.add("Clip", [tensor], [ended], name=name, min=ends[0], max=ends[1])
        return ended

    def finish(self) -> None:
        """Drop Casts from half to half, and give halves the names of constants that nobody reads any more."""
        for node in [n for n in self.graph.nodes if n.op == "Cast" and n.attrs["to"] == FLOAT16]:
            output, source = node.outputs[0], node.inputs[0]
            awaited = any(self.plan.treatment(reader.name) is Treatment.WEIGHT for reader in output.outputs)
            if source.dtype == HALF and not self.graph.kept(output) and not awaited:
                self.graph.redirect(output, source)
        read = {tensor.name for node in self.graph.nodes for tensor in node.inputs} | set(self.graph.pinned)
        read |= {tensor.name for tensor in self.graph.outputs}
        for name, half in self.half.items():
            if isinstance(half, Constant) and name not in read:
                half.name = name


def _rounded(tensor: Constant) -> Later:
    """A large weight may lose what is tiny in it, and an epsilon may not."""
    small = size(tensor) < LEAST
    return Later(tensor._values.shape, HALF, lambda: half_constant(weight(tensor), exact_zeros=small))
