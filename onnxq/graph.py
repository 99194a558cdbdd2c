"""The one doorway to ONNX: a graph of onnx-graphsurgeon nodes and tensors around handles to the weights.

Why the import and export are ours, and onnx-graphsurgeon gives the nodes and tensors alone: its importer skips
attribute types that it does not know, keeps every weight that is looked at, and loses what it has no field for
(metadata, the exact declaration of inputs and outputs). Here a node keeps attributes that no pass reads as they were
stored, bodies of If, Loop and Scan above all.
"""

from __future__ import annotations

import heapq
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx.reference import ReferenceEvaluator
from onnx_graphsurgeon.ir.tensor import LazyValues

from onnxq.errors import ModelError, UnsupportedModel
from onnxq.interface import Dimension, Interface, TensorSpec

logging.getLogger("onnx_graphsurgeon").setLevel(logging.ERROR)
gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.ERROR

MICROSOFT = "com.microsoft"
Array = np.ndarray[Any, Any]

if TYPE_CHECKING:

    class Tensor:
        """A value in the graph: who makes it (`inputs`, at most one node) and who reads it (`outputs`)."""

        name: str
        inputs: list[Node]
        outputs: list[Node]
        shape: Sequence[Dimension] | None
        dtype: np.dtype | None

    class Variable(Tensor):
        """A tensor that is known at inference time; an empty name is an optional input left out."""

        def __init__(
            self, name: str, dtype: np.dtype | None = None, shape: Sequence[Dimension] | None = None
        ) -> None: ...

    class Constant(Tensor):
        """A weight. Read it with `weight`, which does not keep it in memory."""

        _values: Any

        def __init__(self, name: str, values: Any) -> None: ...

    class Node:
        """One operation. Assigning to an element of `inputs` or `outputs` keeps the tensors' lists in step."""

        op: str
        name: str
        attrs: dict[str, Any]
        inputs: list[Tensor]
        outputs: list[Tensor]
        domain: str | None

        def __init__(
            self,
            op: str,
            name: str | None = None,
            attrs: Mapping[str, Any] | None = None,
            inputs: Sequence[Tensor] | None = None,
            outputs: Sequence[Tensor] | None = None,
            domain: str | None = None,
        ) -> None: ...
else:
    Tensor, Variable, Constant, Node = gs.Tensor, gs.Variable, gs.Constant, gs.Node


class Stored(LazyValues):  # type: ignore[misc]
    """A handle to a weight as the file holds it: embedded, or in external data that is memory-mapped when read."""

    def __init__(self, tensor: onnx.TensorProto, folder: Path | None) -> None:
        self.tensor, self.folder = tensor, folder
        self.shape = tuple(tensor.dims)
        self.dtype = element_type(tensor.data_type)

    @property
    def external(self) -> bool:
        """Whether the values lie in a file of their own."""
        return bool(self.tensor.data_location == onnx.TensorProto.EXTERNAL)

    @property
    def nbytes(self) -> int:
        """Bytes of the values as they are stored."""
        bits = 4 if self.tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4) else 0
        count = int(np.prod(self.shape, dtype=np.int64))
        return -(-count * bits // 8) if bits else count * self.dtype.itemsize

    def load(self) -> Array:
        """The values; external ones are a read-only map of the file."""
        if not self.external:
            return onnx.numpy_helper.to_array(self.tensor)
        place = {entry.key: entry.value for entry in self.tensor.external_data}
        assert self.folder is not None
        raw = np.memmap(
            self.folder / place["location"],
            dtype=np.uint8,
            mode="r",
            offset=int(place.get("offset", 0)),
            shape=(self.nbytes,),
        ) if self.nbytes else np.empty(0, np.uint8)  # fmt: skip
        if self.dtype.isbuiltin == 1 and self.tensor.data_type not in (
            onnx.TensorProto.INT4,
            onnx.TensorProto.UINT4,
        ):
            return raw.view(self.dtype).reshape(self.shape)
        embedded = onnx.TensorProto(data_type=self.tensor.data_type, dims=self.tensor.dims, raw_data=raw.tobytes())
        return onnx.numpy_helper.to_array(embedded)


def element_type(code: int) -> np.dtype:
    """The NumPy type of an ONNX element type; `object` for strings and for types that NumPy lacks."""
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code))
    except (KeyError, TypeError):
        return np.dtype(object)


def weight(tensor: Tensor) -> Array:
    """The values of a constant, read for this call alone. Raises TypeError for a variable."""
    if not isinstance(tensor, Constant):
        raise TypeError(f"Tensor '{tensor.name}' is no constant.")
    values = tensor._values
    return values.load() if isinstance(values, Stored) else np.asarray(values)


def is_constant(tensor: Tensor) -> bool:
    """Whether the tensor is a weight that is stored in the model."""
    return isinstance(tensor, Constant)


def is_external(tensor: Tensor) -> bool:
    """Whether a weight lies in a file of its own."""
    return isinstance(tensor, Constant) and isinstance(tensor._values, Stored) and tensor._values.external


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
        captured: names of tensors that bodies of If, Loop and Scan read; they are never renamed or dropped.
        pinned: the weights among them.
        names: every name in use.
    """

    nodes: list[Node]
    inputs: list[Variable]
    outputs: list[Tensor]
    opsets: dict[str, int]
    shell: onnx.ModelProto
    folder: Path | None = None
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
        """Every weight that a node reads, each once."""
        return [tensor for tensor in self.tensors().values() if isinstance(tensor, Constant)]

    def fresh(self, wish: str) -> str:
        """A name that no node and no tensor has: the wish itself, or with a number behind it."""
        name, number = wish, 0
        while self.names[name]:
            number += 1
            name = f"{wish}_{number}"
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
        gone = {id(node) for node in nodes}
        for node in nodes:
            node.inputs.clear()
            node.outputs.clear()
        self.nodes = [node for node in self.nodes if id(node) not in gone]

    def redirect(self, old: Tensor, new: Tensor, *, readers: Iterable[Node] | None = None) -> None:
        """Let the readers of `old` (all of them, or those given) read `new`. Outputs of the graph are not moved."""
        for node in {id(n): n for n in (old.outputs if readers is None else readers)}.values():
            for index, tensor in enumerate(node.inputs):
                if tensor is old:
                    node.inputs[index] = new

    def kept(self, tensor: Tensor) -> bool:
        """Whether the name of this tensor is promised to somebody: a graph output, or a body that captures it."""
        return tensor.name in self.captured or any(tensor is output for output in self.outputs)

    def tidy(self) -> None:
        """Drop nodes that nobody reads, and order the others so that each runs after what it needs (stable)."""
        self._drop_unused()
        makers = {t.name: node for node in self.nodes for t in node.outputs if t.name}
        waiting: dict[int, int] = {}
        readers: dict[int, list[Node]] = {id(node): [] for node in self.nodes}
        for node in self.nodes:
            needs = {id(m): m for name in reads(node) if (m := makers.get(name)) is not None}
            waiting[id(node)] = len(needs)
            for maker in needs.values():
                readers[id(maker)].append(node)
        order = _stable_order(self.nodes, waiting, readers)
        if len(order) != len(self.nodes):
            stuck = next(node for node in self.nodes if waiting[id(node)] > 0)
            raise ModelError(f"Node '{stuck.name}' is part of a cycle. Export the model again.")
        self.nodes = order

    def _drop_unused(self) -> None:
        needed = {t.name for t in self.outputs} | self.captured
        makers = {t.name: node for node in self.nodes for t in node.outputs if t.name}
        alive: dict[int, Node] = {}
        stack = [makers[name] for name in needed if name in makers]
        while stack:
            node = stack.pop()
            if id(node) in alive:
                continue
            alive[id(node)] = node
            stack.extend(makers[name] for name in reads(node) if name in makers)
        self.remove(*(node for node in self.nodes if id(node) not in alive))

    def interface(self) -> Interface:
        """Inputs and outputs as the file declares them."""
        by_name = {spec.name: spec for spec in self.shell.graph.input}
        return Interface(
            tuple(_spec(by_name[tensor.name]) for tensor in self.inputs),
            tuple(_spec(spec) for spec in self.shell.graph.output),
        )

    def annotate(self, specs: Iterable[TensorSpec]) -> None:
        """Fill in element types and shapes, as the runtime infers them, where the file does not say."""
        tensors = self.tensors()
        for spec in specs:
            tensor = tensors.get(spec.name)
            if tensor is not None and not is_constant(tensor):
                tensor.dtype = tensor.dtype or spec.dtype
                tensor.shape = spec.shape if tensor.shape is None else tensor.shape

    def copy(self) -> Graph:
        """A copy with nodes and tensors of its own; weights are shared handles."""
        twins: dict[str, Tensor] = {}

        def twin(tensor: Tensor) -> Tensor:
            if not tensor.name:
                return Variable("")
            if tensor.name not in twins:
                twins[tensor.name] = (
                    Constant(tensor.name, tensor._values)
                    if isinstance(tensor, Constant)
                    else Variable(tensor.name, tensor.dtype, tensor.shape)
                )
            return twins[tensor.name]

        inputs = [twin(tensor) for tensor in self.inputs]
        nodes = [
            Node(
                n.op,
                n.name,
                dict(n.attrs),
                [twin(t) for t in n.inputs],
                [twin(t) for t in n.outputs],
                n.domain,
            )
            for n in self.nodes
        ]
        return Graph(
            nodes,
            inputs,  # type: ignore[arg-type]
            [twin(tensor) for tensor in self.outputs],
            dict(self.opsets),
            self.shell,
            self.folder,
            self.captured,
            dict(self.pinned),
            Counter(self.names),
        )


def _stable_order(nodes: Sequence[Node], waiting: dict[int, int], readers: Mapping[int, list[Node]]) -> list[Node]:
    """Whichever node is ready and stood first comes first; a loop, since deep graphs would overflow Python's stack."""
    rank = {id(node): index for index, node in enumerate(nodes)}
    heap = [rank[id(node)] for node in nodes if waiting[id(node)] == 0]
    order: list[Node] = []
    while heap:
        node = nodes[heapq.heappop(heap)]
        order.append(node)
        for reader in readers[id(node)]:
            waiting[id(reader)] -= 1
            if waiting[id(reader)] == 0:
                heapq.heappush(heap, rank[id(reader)])
    return order


def bodies(node: Node) -> Iterator[onnx.GraphProto]:
    """The bodies of a control-flow node, as they are stored."""
    for value in node.attrs.values():
        if isinstance(value, onnx.AttributeProto):
            if value.type == onnx.AttributeProto.GRAPH:
                yield value.g
            yield from value.graphs


def captures(body: onnx.GraphProto) -> set[str]:
    """Names that a body reads from the graph around it, through any depth of nesting."""
    own = {t.name for t in body.input} | {t.name for t in body.initializer} | {o for n in body.node for o in n.output}
    read = {name for node in body.node for name in node.input} | {t.name for t in body.output}
    for node in body.node:
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                read |= captures(inner)
    return {name for name in read - own if name}


def reads(node: Node) -> set[str]:
    """Names of all tensors that a node needs, those that its bodies capture included."""
    names = {tensor.name for tensor in node.inputs if tensor.name}
    for body in bodies(node):
        names |= captures(body)
    return names


PLAIN = {
    onnx.AttributeProto.FLOAT,
    onnx.AttributeProto.INT,
    onnx.AttributeProto.STRING,
    onnx.AttributeProto.FLOATS,
    onnx.AttributeProto.INTS,
    onnx.AttributeProto.STRINGS,
}
"""Attribute types that are plain Python values; all others stay as they are stored."""


def _attribute(stored: onnx.AttributeProto) -> Any:
    if stored.type not in PLAIN or stored.ref_attr_name:
        return stored
    value = onnx.helper.get_attribute_value(stored)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return stored
    if stored.type == onnx.AttributeProto.STRINGS or not len(list(value) if hasattr(value, "__len__") else [0]):
        return stored
    return list(value) if hasattr(value, "__len__") else value


def stored_value(node: Node) -> Any:
    """What a Constant node holds: a handle to its tensor, or an array; None for kinds that no pass touches."""
    stored = node.attrs.get("value")
    if isinstance(stored, onnx.AttributeProto) and stored.HasField("t"):
        return Stored(stored.t, None)
    for name, dtype in (("value_float", np.float32), ("value_int", np.int64)):
        if name in node.attrs:
            return np.asarray(node.attrs[name], dtype)
    for name, dtype in (("value_floats", np.float32), ("value_ints", np.int64)):
        if isinstance(node.attrs.get(name), list):
            return np.asarray(node.attrs[name], dtype)
    return None


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    if not value.type.HasField("tensor_type"):
        return TensorSpec(value.name, np.dtype(object), None)
    tensor = value.type.tensor_type
    shape: tuple[Dimension, ...] | None = None
    if tensor.HasField("shape"):
        shape = tuple(
            d.dim_value if d.HasField("dim_value") else d.dim_param if d.HasField("dim_param") else None
            for d in tensor.shape.dim
        )
    return TensorSpec(value.name, element_type(tensor.elem_type), shape)


def from_model(model: onnx.ModelProto, folder: Path | None = None) -> Graph:
    """Make a graph of a model that was read. Raises ModelError where it breaks a rule of ONNX."""
    graph = model.graph
    tensors: dict[str, Tensor] = {}
    for stored in graph.initializer:
        if stored.name in tensors:
            raise ModelError(f"Initializer '{stored.name}' is defined twice. Rename one of the two.")
        tensors[stored.name] = Constant(stored.name, Stored(stored, folder))
    infos = {info.name: _spec(info) for info in (*graph.value_info, *graph.output, *graph.input)}
    sparse = {stored.values.name for stored in graph.sparse_initializer}

    def tensor(name: str) -> Tensor:
        if not name:
            return Variable("")
        if name not in tensors:
            spec = infos.get(name)
            tensors[name] = Variable(name, spec.dtype if spec else None, spec.shape if spec else None)
        return tensors[name]

    inputs = [
        tensor(info.name) for info in graph.input if info.name not in tensors or not is_constant(tensors[info.name])
    ]
    produced = {t.name for t in inputs} | {n for n, t in tensors.items() if is_constant(t)} | sparse
    taken = {node.name for node in graph.node} | {name for node in graph.node for name in node.output}
    seen: set[str] = set()
    nodes = []
    for index, stored_node in enumerate(graph.node):
        for name in filter(None, stored_node.output):
            if name in produced:
                raise ModelError(
                    f"Tensor '{name}' is made twice, the second time by node "
                    f"'{stored_node.name or index}' ({stored_node.op_type}). Every tensor needs a name of its own."
                )
            produced.add(name)
        nodes.append(
            Node(
                stored_node.op_type,
                _node_name(stored_node, index, taken, seen),
                {a.name: _attribute(a) for a in stored_node.attribute},
                [tensor(name) for name in stored_node.input],
                [tensor(name) for name in stored_node.output],
                stored_node.domain or None,
            )
        )
    captured = frozenset(name for node in nodes for body in bodies(node) for name in captures(body))
    result = Graph(
        nodes,
        inputs,  # type: ignore[arg-type]
        [tensor(info.name) for info in graph.output],
        {entry.domain if entry.domain != "ai.onnx" else "": entry.version for entry in model.opset_import},
        _shell(model),
        folder,
        captured,
        {name: t for name in sorted(captured) if isinstance(t := tensors.get(name), Constant)},
    )
    _check_sources(result, produced)
    result.names = Counter({name: 1 for name in (*produced, *(node.name for node in nodes)) if name})
    return result


def _node_name(stored: onnx.NodeProto, index: int, taken: set[str], seen: set[str]) -> str:
    """The node's own name, or one made of its operator and place where it has none or shares it."""
    name = stored.name
    while not name or name in seen or (name != stored.name and name in taken):
        name = f"{stored.name or stored.op_type}_{index}" if name in ("", stored.name) else f"{name}_"
    seen.add(name)
    return name


def _check_sources(graph: Graph, produced: set[str]) -> None:
    for node in graph.nodes:
        for name in sorted(reads(node)):
            if name not in produced:
                raise ModelError(
                    f"Node '{node.name}' ({node.op}) reads tensor '{name}', which no input, initializer or node "
                    "makes. Export the model again."
                )
    for output in graph.outputs:
        if output.name not in produced:
            raise ModelError(f"Output '{output.name}' is made by no node. Export the model again.")


def _shell(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without nodes and weights."""
    shell = onnx.ModelProto()
    _fill(shell, model, {"graph"})
    _fill(shell.graph, model.graph, {"node", "initializer"})
    return shell


def _fill(target: Any, source: Any, without: set[str]) -> None:
    """Copy all fields but some; copying the whole message would copy every weight."""
    for descriptor, value in source.ListFields():
        name = descriptor.name
        if name in without:
            continue
        if hasattr(value, "extend"):
            getattr(target, name).extend(value)
        elif hasattr(value, "CopyFrom"):
            getattr(target, name).CopyFrom(value)
        else:
            setattr(target, name, value)


Keep = Callable[[Constant], onnx.TensorProto]
"""How a weight is written: returns the TensorProto that stands for it."""


def embed(constant: Constant) -> onnx.TensorProto:
    """The weight inside the model; what is stored outside stays a reference."""
    values = constant._values
    if isinstance(values, Stored):
        if values.tensor.name == constant.name:
            return values.tensor
        renamed = onnx.TensorProto()
        renamed.CopyFrom(values.tensor)
        renamed.name = constant.name
        return renamed
    return onnx.numpy_helper.from_array(np.asarray(values), constant.name)


def to_model(graph: Graph, keep: Keep = embed, extra_outputs: Iterable[str] = ()) -> onnx.ModelProto:
    """The graph as a model. `extra_outputs` makes inner tensors visible, for calibration and for validation."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.shell)
    weights = {t.name: t for n in graph.nodes for t in n.inputs if isinstance(t, Constant)}
    weights.update((t.name, t) for t in graph.outputs if isinstance(t, Constant))
    weights.update(graph.pinned)
    model.graph.node.extend(_node(node) for node in graph.nodes)
    model.graph.initializer.extend(keep(weights[name]) for name in sorted(weights))
    del model.graph.input[:]
    wanted = {tensor.name for tensor in graph.inputs}
    model.graph.input.extend(info for info in graph.shell.graph.input if info.name in wanted)
    del model.graph.value_info[:]
    same = _unchanged_types(graph)
    model.graph.value_info.extend(info for info in graph.shell.graph.value_info if info.name in same)
    declared = {info.name for info in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra_outputs if name not in declared)
    _stamp(model, graph)
    return model


def _unchanged_types(graph: Graph) -> set[str]:
    declared = {info.name: _spec(info).dtype for info in graph.shell.graph.value_info}
    return {n for n, t in graph.tensors().items() if n in declared and t.dtype == declared[n] and not is_constant(t)}


def _node(node: Node) -> onnx.NodeProto:
    made = onnx.NodeProto(op_type=node.op, name=node.name, domain=node.domain or "")
    made.input.extend(tensor.name for tensor in node.inputs)
    made.output.extend(tensor.name for tensor in node.outputs)
    for name, value in node.attrs.items():
        made.attribute.append(
            value if isinstance(value, onnx.AttributeProto) else onnx.helper.make_attribute(name, value)
        )
    return made


def _stamp(model: onnx.ModelProto, graph: Graph) -> None:
    """Opsets in use, and the lowest IR version that they and the runtime agree on."""
    used = {node.domain or "" for node in graph.nodes} | {""}
    used |= {entry.domain for function in graph.shell.functions for entry in function.opset_import}
    used |= {d for n in graph.nodes for body in bodies(n) for d in _domains(body)}
    del model.opset_import[:]
    entries = [onnx.helper.make_opsetid(d, v) for d, v in sorted(graph.opsets.items()) if d in used]
    model.opset_import.extend(entries)
    standard = [onnx.helper.make_opsetid("", graph.opset)]
    lowest = onnx.helper.find_min_ir_version_for(standard, ignore_unknown=True)
    # IR 3 lists every weight as an input; since 4 a weight need not be one
    model.ir_version = max(lowest, 4, 8 if graph.shell.functions else 0)


def _domains(body: onnx.GraphProto) -> set[str]:
    found = {node.domain for node in body.node}
    for node in body.node:
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                found |= _domains(inner)
    return found


def evaluate(graph: Graph, node: Node) -> list[Array] | None:
    """What a node that reads only constants returns, by onnx's reference implementation; None where that fails."""
    inputs = {t.name: weight(t) for t in node.inputs if t.name}
    infos = [onnx.ValueInfoProto(name=name) for name in inputs]
    outputs = [onnx.ValueInfoProto(name=t.name) for t in node.outputs if t.name]
    body = onnx.helper.make_graph([_node(node)], "one_node", infos, outputs)
    opsets = [onnx.helper.make_opsetid(domain, number) for domain, number in graph.opsets.items()]
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = ReferenceEvaluator(onnx.helper.make_model(body, opset_imports=opsets))
            return [np.asarray(value) for value in evaluator.run(None, inputs)]
    except Exception:  # the reference implementation has gaps, and raises whatever it likes there
        return None


def read_tensor(path: Path) -> Array:
    """One array from a TensorProto file, as ONNX test data sets store it. Raises ModelError."""
    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(path.read_bytes())
        return onnx.numpy_helper.to_array(tensor)
    except Exception as error:
        raise ModelError(f"'{path}' holds no readable tensor ({error}). Write it with onnx.save_tensor.") from error


def upgrade(graph: Graph, version: int) -> Graph:
    """The same model in standard operators of a newer version, by onnx's converter. Raises UnsupportedModel."""
    try:
        converted = onnx.version_converter.convert_version(to_model(graph), version)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise UnsupportedModel(
            f"The model's opset {graph.opset} cannot be raised to {version} ({reason[:160]}). "
            "Export it again with a newer opset."
        ) from error
    result = from_model(converted, graph.folder)
    result.shell.graph.ClearField("input")
    result.shell.graph.ClearField("output")
    result.shell.graph.input.extend(graph.shell.graph.input)
    result.shell.graph.output.extend(graph.shell.graph.output)
    return result
