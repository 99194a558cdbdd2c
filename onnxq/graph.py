"""The one doorway to ONNX: a graph that passes edit, made from a model and turned into one again.

    model ── from_model ── Graph ── passes ── to_model ── model

What a graph is made of is in `tensors.py`, the way in from ONNX in `parse.py`, the way out in `emit.py`; passes reach
all of it through here.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxq.emit import branch, embed, evaluate, skeleton, to_model, with_inputs
from onnxq.errors import ModelError, UnsupportedModel
from onnxq.interface import Dimension, Interface, TensorSpec
from onnxq.parse import (
    body_names,
    check_names,
    check_sources,
    check_texts,
    make_node,
    node_names,
    produced_names,
    shell_of,
)
from onnxq.tensors import (
    INT4,
    UINT4,
    Array,
    Constant,
    Later,
    Node,
    Stored,
    Tensor,
    Variable,
    bodies,
    captures,
    declared,
    is_constant,
    is_external,
    read_tensor,
    reads,
    stored_value,
    weight,
)

MICROSOFT = "com.microsoft"

__all__ = [
    "INT4",
    "MICROSOFT",
    "UINT4",
    "Array",
    "Constant",
    "Graph",
    "Later",
    "Node",
    "Stored",
    "Tensor",
    "Variable",
    "alone",
    "bodies",
    "branch",
    "embed",
    "evaluate",
    "from_model",
    "is_constant",
    "is_external",
    "read_tensor",
    "reads",
    "skeleton",
    "stored_value",
    "to_model",
    "upgrade",
    "weight",
    "with_inputs",
]


@dataclass
class Graph:
    """A model that passes edit.

    Attributes:
        nodes: the operations, in an order in which they can run once `tidy` was called.
        inputs: what a user feeds, in order; initializers that the file also lists as inputs are not among them.
        outputs: what a user gets, in order.
        opsets: the version of each operator domain in use.
        shell: the model around it: metadata, functions, declared types of inputs and outputs.
        folder: where external data lies; None for a model that was never in a file.
        files: external data of the model's file; nobody may write over it.
        captured: names of tensors that bodies of If, Loop and Scan read; they are never renamed.
        pinned: the weights among them.
        names: every name in use, bodies included, and how often it was wished for.
    """

    nodes: list[Node]
    inputs: list[Variable]
    outputs: list[Tensor]
    opsets: dict[str, int]
    shell: onnx.ModelProto
    folder: Path | None = None
    files: frozenset[Path] = frozenset()
    captured: frozenset[str] = frozenset()
    pinned: dict[str, Constant] = field(default_factory=dict)
    names: Counter[str] = field(default_factory=Counter)

    @property
    def opset(self) -> int:
        """The version of the standard operators."""
        return self.opsets.get("", 1)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, in the order of the graph."""
        found: dict[str, Tensor] = {tensor.name: tensor for tensor in self.inputs}
        for node in self.nodes:
            found.update((t.name, t) for t in (*node.inputs, *node.outputs) if t.name)
        found.update((t.name, t) for t in self.outputs)
        return found

    def weights(self) -> list[Constant]:
        """Every weight that a node, a body or an output reads, each once."""
        found = [tensor for tensor in self.tensors().values() if isinstance(tensor, Constant)]
        known = {tensor.name for tensor in found}
        return found + [tensor for name, tensor in self.pinned.items() if name not in known]

    def fresh(self, wish: str) -> str:
        """A name that no node and no tensor has: the wish itself, or with a number behind it."""
        name = wish
        while self.names[name]:
            name = f"{wish}_{self.names[wish]}"
            self.names[wish] += 1
        self.names[name] += 1
        return name

    def constant(self, wish: str, values: Array) -> Constant:
        """A new weight with a fresh name."""
        return Constant(self.fresh(wish), np.ascontiguousarray(values) if np.ndim(values) else np.asarray(values))

    def variable(self, wish: str, dtype: np.dtype | None = None, shape: Sequence[Dimension] | None = None) -> Variable:
        """A new tensor with a fresh name."""
        return Variable(self.fresh(wish), dtype, shape)

    def add(
        self,
        op: str,
        inputs: Sequence[Tensor | None],
        outputs: Sequence[Tensor],
        *,
        name: str,
        domain: str = "",
        **attributes: Any,
    ) -> Node:
        """Append a node; None stands for an optional input left out. `tidy` puts it where it belongs."""
        filled = [Variable("") if tensor is None else tensor for tensor in inputs]
        node = Node(op, self.fresh(name), dict(attributes), filled, list(outputs), domain or None)
        self.nodes.append(node)
        if domain:
            self.opsets.setdefault(domain, 1)
        return node

    def remove(self, *nodes: Node) -> None:
        """Take nodes out of the graph, with all their links."""
        gone = set(nodes)
        for node in nodes:
            node.inputs.clear()
            node.outputs.clear()
        self.nodes = [node for node in self.nodes if node not in gone]

    def redirect(self, old: Tensor, new: Tensor, *, readers: Iterable[Node] | None = None) -> None:
        """Let the readers of `old` (all of them, or those given) read `new`. Outputs of the graph are not moved."""
        for node in dict.fromkeys(old.outputs if readers is None else readers):
            for index, tensor in enumerate(node.inputs):
                if tensor is old:
                    node.inputs[index] = new

    def kept(self, tensor: Tensor) -> bool:
        """Whether the name of this tensor is promised to somebody: a graph output, or a body that captures it."""
        return tensor.name in self.captured or any(tensor is output for output in self.outputs)

    def tidy(self) -> None:
        """Drop nodes that nobody reads, and order the others so that each runs after what it needs (stable)."""
        makers = {t.name: node for node in self.nodes for t in node.outputs if t.name}
        alive: set[Node] = set()
        stack = [makers[tensor.name] for tensor in self.outputs if tensor.name in makers]
        while stack:
            node = stack.pop()
            if node not in alive:
                alive.add(node)
                stack.extend(makers[name] for name in reads(node) if name in makers)
        self.remove(*(node for node in self.nodes if node not in alive))
        self.nodes = in_order(self.nodes)

    def interface(self) -> Interface:
        """Inputs and outputs as the file declares them."""
        by_name = {spec.name: spec for spec in self.shell.graph.input}
        return Interface(
            tuple(declared(by_name[tensor.name]) for tensor in self.inputs),
            tuple(declared(spec) for spec in self.shell.graph.output),
        )

    def annotate(self, specs: Iterable[TensorSpec]) -> None:
        """Fill in element types and shapes, as the runtime infers them, where the file does not say.

        The runtime says () of a number, and of what it does not even know the rank of: that is no shape.
        """
        tensors = self.tensors()
        for spec in specs:
            tensor = tensors.get(spec.name)
            if tensor is not None and not is_constant(tensor):
                tensor.dtype = tensor.dtype or spec.dtype
                tensor.shape = (spec.shape or None) if tensor.shape is None else tensor.shape

    def copy(self) -> Graph:
        """A copy with nodes and tensors of its own; weights are shared handles."""
        twins: dict[str, Tensor] = {}

        def twin(tensor: Tensor) -> Any:
            if not tensor.name:
                return Variable("")
            if tensor.name not in twins:
                twins[tensor.name] = (
                    Constant(tensor.name, tensor._values)
                    if isinstance(tensor, Constant)
                    else Variable(tensor.name, tensor.dtype, tensor.shape)
                )
            return twins[tensor.name]

        return replace(
            self,
            nodes=[_copy_node(n, [twin(t) for t in n.inputs], [twin(t) for t in n.outputs]) for n in self.nodes],
            inputs=[twin(tensor) for tensor in self.inputs],
            outputs=[twin(tensor) for tensor in self.outputs],
            opsets=dict(self.opsets),
            pinned={name: twin(tensor) for name, tensor in self.pinned.items()},
            names=Counter(self.names),
        )


def _copy_node(node: Node, inputs: list[Tensor], outputs: list[Tensor]) -> Node:
    attributes = {name: list(value) if isinstance(value, list) else value for name, value in node.attrs.items()}
    made = Node(node.op, node.name, attributes, inputs, outputs, node.domain)
    made.remarks = node.remarks
    return made


def in_order(nodes: Sequence[Node]) -> list[Node]:
    """Each node after what it needs; of those that are ready, the one that stood first comes first.

    A loop, since deep graphs would overflow Python's stack. Raises ModelError where nodes wait for each other.
    """
    makers = {t.name: node for node in nodes for t in node.outputs if t.name}
    needs = {node: {makers[name] for name in reads(node) if name in makers} for node in nodes}
    readers: dict[Node, list[Node]] = {node: [] for node in nodes}
    for node in nodes:
        for maker in needs[node]:
            readers[maker].append(node)
    rank = {node: index for index, node in enumerate(nodes)}
    heap = [rank[node] for node in nodes if not needs[node]]
    order: list[Node] = []
    while heap:
        node = nodes[heapq.heappop(heap)]
        order.append(node)
        for reader in readers[node]:
            needs[reader].discard(node)
            if not needs[reader]:
                heapq.heappush(heap, rank[reader])
    if len(order) < len(nodes):
        stuck = _in_cycle(needs, rank)
        raise ModelError(f"Node '{stuck.name}' ({stuck.op}) needs its own output. Export the model again.")
    return order


def _in_cycle(needs: Mapping[Node, set[Node]], rank: Mapping[Node, int]) -> Node:
    """A node of a cycle, found by walking from any waiting node to what it waits for, until one comes again."""
    node = next(node for node, makers in needs.items() if makers)
    seen: set[Node] = set()
    while node not in seen:
        seen.add(node)
        node = min(needs[node], key=lambda maker: rank[maker])
    return node


def from_model(model: onnx.ModelProto, folder: Path | None = None) -> Graph:
    """Make a graph of a model that was read. Raises ModelError where it breaks a rule of ONNX."""
    stored = model.graph
    check_names(stored)
    check_texts(model)
    tensors: dict[str, Any] = {}
    for item in stored.initializer:
        if item.name in tensors:
            raise ModelError(f"Initializer '{item.name}' is defined twice. Rename one of the two.")
        tensors[item.name] = Constant(item.name, Stored(item, folder))
    infos = {info.name: declared(info) for info in (*stored.value_info, *stored.output, *stored.input)}

    def tensor(name: str) -> Any:
        if not name:
            return Variable("")
        if name not in tensors:
            spec = infos.get(name)
            tensors[name] = Variable(name, spec.dtype if spec else None, spec.shape if spec else None)
        return tensors[name]

    inputs = [tensor(info.name) for info in stored.input if not isinstance(tensors.get(info.name), Constant)]
    weights = {name for name, value in tensors.items() if isinstance(value, Constant)}
    produced = produced_names(stored, [t.name for t in inputs], weights)
    nodes = [
        make_node(item, name, [tensor(n) for n in item.input], [tensor(n) for n in item.output])
        for item, name in zip(stored.node, node_names(stored.node), strict=True)
    ]
    outputs = [tensor(info.name) for info in stored.output]
    check_sources(nodes, outputs, produced)
    captured = frozenset(name for node in nodes for body in bodies(node) for name in captures(body))
    return Graph(
        in_order(nodes),
        inputs,
        outputs,
        {entry.domain if entry.domain != "ai.onnx" else "": entry.version for entry in model.opset_import},
        shell_of(model),
        folder,
        captured=captured,
        pinned={name: tensors[name] for name in sorted(captured & weights)},
        names=Counter(produced | {node.name for node in nodes} | body_names(nodes)),
    )


def upgrade(graph: Graph, version: int) -> Graph:
    """The same model in standard operators of a newer version, by onnx's converter. Raises UnsupportedModel."""
    try:
        if graph.shell.functions or graph.shell.graph.sparse_initializer:
            raise ValueError("onnx's converter drops functions and sparse weights")
        converted = onnx.version_converter.convert_version(to_model(graph), version)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedModel(
            f"The model's opset {graph.opset} cannot be raised to {version} ({reason[:160]}). "
            "Export it again with a newer opset."
        ) from error
    result = from_model(converted, graph.folder)
    result.shell.CopyFrom(graph.shell)
    result.files = graph.files
    remarks = {node.name: node.remarks for node in graph.nodes}
    for node in result.nodes:
        node.remarks = remarks.get(node.name)
    return result


def alone(graph: Graph, node: Node, operands: int) -> Graph:
    """One node as a graph of its own with its first output; its inputs are its first operands, weights too.

    Other operands are left out. The graph has types.
    """
    twins = [Variable(tensor.name, tensor.dtype) for tensor in node.inputs[:operands]]
    output = Variable(node.outputs[0].name)
    shell = type(graph.shell)()
    shell.graph.output.add(name=output.name)
    for twin in twins:
        assert twin.dtype is not None, f"Tensor '{twin.name}' has no type."
        info = shell.graph.input.add(name=twin.name)
        info.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(twin.dtype))
    made = _copy_node(node, list(twins), [output])
    return Graph([made], twins, [output], dict(graph.opsets), shell)
