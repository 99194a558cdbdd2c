"""What a graph is made of: nodes and tensors of onnx-graphsurgeon, around handles to the weights.

Why the import and export of onnx-graphsurgeon are not used, and its nodes and tensors are: its importer skips
attribute types that it does not know, keeps every weight that is looked at, and loses what it has no field for
(metadata, the exact declaration of inputs and outputs). Here a node keeps attributes that no pass reads as they were
stored, bodies of If, Loop and Scan above all.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, TensorProto
from onnx_graphsurgeon.ir.tensor import LazyValues

from onnxq.errors import ModelError
from onnxq.interface import Dimension, TensorSpec

logging.getLogger("onnx_graphsurgeon").setLevel(logging.ERROR)
gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.ERROR

Array = np.ndarray[Any, Any]
Body = onnx.GraphProto | onnx.FunctionProto

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
        """One operation. Assigning to an element of `inputs` or `outputs` keeps the tensors' lists in step.

        `remarks` holds what the file says about the node beyond its operation: documentation, metadata, overload.
        """

        op: str
        name: str
        attrs: dict[str, Any]
        inputs: list[Tensor]
        outputs: list[Tensor]
        domain: str | None
        remarks: onnx.NodeProto | None

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
    Tensor = gs.Tensor

    class Variable(gs.Variable):
        """As above."""

        __eq__, __hash__ = object.__eq__, object.__hash__  # the inherited one takes equal names for the same tensor

    class Constant(gs.Constant):
        """As above."""

        __eq__, __hash__ = object.__eq__, object.__hash__

    class Node(gs.Node):
        """As above."""

        __eq__, __hash__ = object.__eq__, object.__hash__  # the inherited one compares all neighbours
        remarks = None


ODD_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}
PACKED = {code: ODD_BITS[name] for name, code in TensorProto.DataType.items() if name in ODD_BITS}
"""Bits of the element types that share bytes; which of them exist depends on the version of onnx."""


class Stored(LazyValues):  # type: ignore[misc]
    """A handle to a weight as the file holds it: embedded, or in external data that is memory-mapped when read."""

    def __init__(self, tensor: TensorProto, folder: Path | None) -> None:
        self.tensor, self.folder = tensor, folder
        self.shape, self.kind = tuple(tensor.dims), tensor.data_type
        self.dtype = element_type(tensor.data_type)

    @property
    def external(self) -> bool:
        """Whether the values lie in a file of their own."""
        return bool(self.tensor.data_location == TensorProto.EXTERNAL)

    @property
    def nbytes(self) -> int:
        """Bytes of the values as they are stored."""
        if self.tensor.data_type == TensorProto.STRING:
            return sum(len(text) for text in self.tensor.string_data)
        bits = PACKED.get(self.tensor.data_type, 8 * self.dtype.itemsize)
        return int(-(-math.prod(self.shape) * bits // 8))

    def raw(self) -> bytes | memoryview:
        """The bytes of the values, as ONNX packs them; those of external data are a read-only map of the file."""
        if self.external:
            place = {entry.key: entry.value for entry in self.tensor.external_data}
            assert self.folder is not None
            file, offset = self.folder / place["location"], int(place.get("offset", 0))
            return np.memmap(file, np.uint8, "r", offset, (self.nbytes,)).data if self.nbytes else b""
        if self.tensor.HasField("raw_data"):
            return self.tensor.raw_data
        return onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(self.tensor)).raw_data

    def load(self) -> Array:
        """The values; external ones are a read-only map of the file."""
        if not self.external:
            return onnx.numpy_helper.to_array(self.tensor)
        if self.dtype.isbuiltin == 1:
            return np.frombuffer(self.raw(), self.dtype).reshape(self.shape)
        content = bytes(self.raw())
        embedded = TensorProto(data_type=self.tensor.data_type, dims=self.tensor.dims, raw_data=content)
        return onnx.numpy_helper.to_array(embedded)


class Later(LazyValues):  # type: ignore[misc]
    """A handle to values that are computed when they are read, and not kept."""

    def __init__(self, shape: Sequence[int], dtype: np.dtype, make: Callable[[], Array]) -> None:
        self.shape, self.dtype, self._make = tuple(shape), np.dtype(dtype), make
        self.kind = onnx.helper.np_dtype_to_tensor_dtype(self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the values as they are stored."""
        return -(-math.prod(self.shape) * PACKED.get(self.kind, 8 * self.dtype.itemsize) // 8)

    def raw(self) -> bytes | memoryview:
        """The bytes of the values, as ONNX packs them."""
        if self.kind in PACKED:
            return bytes(onnx.numpy_helper.from_array(self.load()).raw_data)
        return np.ascontiguousarray(self.load()).reshape(-1).view(np.uint8).data

    def load(self) -> Array:
        """The values."""
        values = self._make()
        assert (values.shape, values.dtype) == (self.shape, self.dtype), "A handle promised something else."
        return values


def element_type(code: int) -> np.dtype:
    """The NumPy type of an ONNX element type; `object` for strings and for types that NumPy lacks."""
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code))
    except (KeyError, TypeError):
        return np.dtype(object)


INT4, UINT4 = element_type(TensorProto.INT4), element_type(TensorProto.UINT4)
"""Integers of 4 bits."""


def weight(tensor: Tensor) -> Array:
    """The values of a constant, read for this call alone. Raises TypeError for a variable."""
    if not isinstance(tensor, Constant):
        raise TypeError(f"Tensor '{tensor.name}' is no constant.")
    values = tensor._values
    return values.load() if isinstance(values, (Stored, Later)) else np.asarray(values)


def is_constant(tensor: Tensor) -> bool:
    """Whether the tensor is a weight that is stored in the model."""
    return isinstance(tensor, Constant)


def is_external(tensor: Tensor) -> bool:
    """Whether a weight lies in a file of its own."""
    return isinstance(tensor, Constant) and isinstance(tensor._values, Stored) and tensor._values.external


def read_tensor(path: Path) -> Array:
    """One array from a TensorProto file, as ONNX test data sets store it. Raises ModelError."""
    tensor = TensorProto()
    try:
        tensor.ParseFromString(path.read_bytes())
        return onnx.numpy_helper.to_array(tensor)
    except Exception as error:
        raise ModelError(f"'{path}' holds no readable tensor ({error}). Write it with onnx.save_tensor.") from error


def declared(value: onnx.ValueInfoProto) -> TensorSpec:
    """What a model declares about a tensor."""
    tensor = value.type.tensor_type  # empty for sequences and maps, which are objects of no known shape then
    shape: tuple[Dimension, ...] | None = None
    if tensor.HasField("shape"):
        shape = tuple(map(_dimension, tensor.shape.dim))
    return TensorSpec(value.name, element_type(tensor.elem_type), shape)


def _dimension(declared: onnx.TensorShapeProto.Dimension) -> Dimension:
    """A size, a name, or None; some exporters write -1 for what they do not know."""
    if declared.HasField("dim_value"):
        return declared.dim_value if declared.dim_value >= 0 else None
    return declared.dim_param if declared.HasField("dim_param") else None


def stored_value(node: Node) -> Any:
    """What a Constant node holds: a handle to its tensor, or an array; None for kinds that no pass touches."""
    stored = node.attrs.get("value")
    if isinstance(stored, AttributeProto) and stored.HasField("t"):
        return Stored(stored.t, None)
    numbers: tuple[tuple[str, type, type], ...] = (("value_float", float, np.float32), ("value_int", int, np.int64))
    for name, kind, dtype in numbers:
        if isinstance(node.attrs.get(name), kind):
            return np.asarray(node.attrs[name], dtype)
    for name, dtype in (("value_floats", np.float32), ("value_ints", np.int64)):
        if isinstance(node.attrs.get(name), list):
            return np.asarray(node.attrs[name], dtype)
    return None


def bodies(node: Node) -> Iterator[onnx.GraphProto]:
    """The bodies of a control-flow node, as they are stored."""
    for value in node.attrs.values():
        if isinstance(value, AttributeProto):
            yield from _graphs(value)


def _graphs(stored: AttributeProto) -> Iterator[onnx.GraphProto]:
    if stored.HasField("g"):
        yield stored.g
    yield from stored.graphs


def nested(graphs: Iterable[Body]) -> Iterator[Body]:
    """Graphs and functions, the bodies in them, and the bodies in those."""
    waiting: list[Body] = list(graphs)
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting.extend(body for node in graph.node for stored in node.attribute for body in _graphs(stored))


def captures(body: onnx.GraphProto) -> set[str]:
    """Names that a body reads from the graph around it, through any depth of nesting."""
    own = {t.name for t in body.input} | {t.name for t in body.initializer} | {o for n in body.node for o in n.output}
    own |= {stored.values.name for stored in body.sparse_initializer}
    read = {name for node in body.node for name in node.input}
    for inner in (inner for node in body.node for stored in node.attribute for inner in _graphs(stored)):
        read |= captures(inner)
    return {name for name in read - own if name}


def reads(node: Node) -> set[str]:
    """Names of all tensors that a node needs, those that its bodies capture included."""
    names = {tensor.name for tensor in node.inputs if tensor.name}
    for body in bodies(node):
        names |= captures(body)
    return names
