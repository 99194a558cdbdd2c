"""Whether the tensors of a stored model hold what they say: type, size, and external data where it may lie."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import GraphProto, TensorProto

from onnxq.errors import ModelError
from onnxq.tensors import PACKED, Stored, nested

KNOWN_TYPES = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}
DIGITS = 20
"""More than this no offset and no length has: they are numbers of 64 bits."""

COMPLEX = (TensorProto.COMPLEX64, TensorProto.COMPLEX128)


@dataclass(frozen=True)
class Found:
    """A tensor of a model, what errors call it, and whether it is a weight of the graph itself."""

    tensor: TensorProto
    title: str
    weight: bool = False

    @property
    def external(self) -> bool:
        """Whether its values lie in a file of their own."""
        return bool(self.tensor.data_location == TensorProto.EXTERNAL)

    @property
    def place(self) -> dict[str, str]:
        """Where: location, offset and length."""
        return {entry.key: entry.value for entry in self.tensor.external_data}


def check_tensors(model: onnx.ModelProto) -> None:
    """Check a model that is not in a file. Raises ModelError where a tensor is broken or lies in a file."""
    for found in _tensors(model):
        _check(found)
        if found.external:
            raise ModelError(
                f"{found.title} keeps its data in '{found.place.get('location', '')}', which cannot be found from the "
                "content of the model alone. Give the path of the model."
            )


def resolve_external(model: onnx.ModelProto, path: Path) -> tuple[Path, frozenset[Path]]:
    """Check a model that was read from a file, and prepare its external data.

    References become relative to the returned folder, with symbolic links followed. Tensors in attributes, bodies and
    functions are read into the model, so that only weights of the graph itself stay outside.

    Returns:
        The folder, and the data files.

    Raises:
        ModelError: a tensor is broken, or its data is missing, cut off, or outside the model's folder.
    """
    homes = path.parent.resolve(), path.resolve().parent  # a cache may link the model and its data to a store
    folder = Path(os.path.commonpath(homes))
    files: set[Path] = set()
    for found in _tensors(model):
        _check(found)
        if not found.external:
            continue
        files.add(file := _data_file(found, homes))
        place = {**found.place, "location": file.relative_to(folder).as_posix()}
        del found.tensor.external_data[:]
        for key, value in place.items():
            found.tensor.external_data.add(key=key, value=value)
        if not found.weight:
            found.tensor.raw_data = bytes(Stored(found.tensor, folder).raw())
            found.tensor.ClearField("external_data")
            found.tensor.ClearField("data_location")
    return folder, frozenset(files)


def _tensors(model: onnx.ModelProto) -> Iterator[Found]:
    """Every tensor: weights, and those in attributes, bodies and functions."""
    graph = model.graph
    for part in nested([graph, *model.functions]):
        if isinstance(part, GraphProto):
            yield from (Found(t, f"Tensor '{t.name}'", part is graph) for t in part.initializer)
            for sparse in part.sparse_initializer:
                title = f"Sparse tensor '{sparse.values.name}'"
                yield from (Found(sparse.values, title), Found(sparse.indices, title))
        for node in part.node:
            for stored in node.attribute:
                title = f"Attribute '{stored.name}' of node '{node.name or node.op_type}'"
                yield from (Found(t, title) for t in ([stored.t] if stored.HasField("t") else []))
                yield from (Found(t, title) for t in stored.tensors)


def _check(found: Found) -> None:
    """The element type exists, no size is negative, and what is embedded is as long as the shape says."""
    tensor, title, sizes = found.tensor, found.title, list(found.tensor.dims)
    if tensor.data_type not in KNOWN_TYPES:
        raise ModelError(f"{title} has element type {tensor.data_type}, which ONNX does not know. Export it again.")
    if tensor.HasField("segment"):
        raise ModelError(f"{title} is stored in segments, which nothing reads. Export the model again.")
    if any(size < 0 for size in sizes):
        raise ModelError(f"{title} has a negative size: {sizes}. Export the model again.")
    if found.external:
        return
    if tensor.HasField("raw_data") and tensor.data_type != TensorProto.STRING:
        unit, held, needed = "bytes", len(tensor.raw_data), Stored(tensor, None).nbytes
    else:
        unit, held, needed = "values", len(getattr(tensor, _field(tensor))), _entries(tensor)
    if held != needed:
        raise ModelError(f"{title} holds {held} {unit} where its shape {sizes} needs {needed}. Export the model again.")


def _field(tensor: TensorProto) -> str:
    return str(onnx.helper.tensor_dtype_to_field(tensor.data_type))


def _entries(tensor: TensorProto) -> int:
    """How many entries the typed field of a tensor needs; 4-bit and 2-bit values share one, 6-bit ones do not."""
    count = int(math.prod(tensor.dims))
    if tensor.data_type in COMPLEX:
        return 2 * count
    bits = PACKED.get(tensor.data_type, 8)
    return -(-count * bits // 8) if bits < 6 else count


def _data_file(found: Found, homes: tuple[Path, Path]) -> Path:
    """The file that holds an external tensor; it lies below one of the homes, and is long enough."""
    location = found.place.get("location", "")
    try:
        file = (homes[0] / location).resolve()
        is_file = file.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, with NUL in it, a link to itself
        raise ModelError(f"{found.title} has no readable location: '{location[:80]}' ({_why(error)}).") from None
    if not location or Path(location).is_absolute() or not any(file.is_relative_to(home) for home in homes):
        raise ModelError(
            f"{found.title} keeps its data in '{location}', outside the model's folder. "
            "Move the data beside the model and save it again."
        )
    if not is_file:
        raise ModelError(
            f"The data of {_lower(found.title)} is missing: there is no '{location}' beside the model. "
            "Copy it there, or export the model again."
        )
    needed, size = Stored(found.tensor, None).nbytes, file.stat().st_size
    offset, length = _number(found, "offset", 0), _number(found, "length", needed)
    if length != needed:
        raise ModelError(
            f"{found.title} has {length} bytes in '{location}' where its shape {list(found.tensor.dims)} needs "
            f"{needed}. Export the model again."
        )
    if offset + needed > size:
        raise ModelError(
            f"The data of {_lower(found.title)} needs {offset + needed} bytes of '{location}', which has {size}. "
            "Copy the file again: it was cut off."
        )
    return file


def _number(found: Found, key: str, default: int) -> int:
    text = found.place.get(key, str(default))
    if not text.isdecimal() or len(text) > DIGITS:
        raise ModelError(f"{found.title} has no readable {key}: '{text[:80]}'. Export the model again.")
    return int(text)


def _why(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)[:80]


def _lower(title: str) -> str:
    return title[0].lower() + title[1:]
