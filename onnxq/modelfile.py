"""Model files: read with every check that a user may need, written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from onnxq.errors import ModelError, OutputError
from onnxq.graph import Constant, Graph, Stored, embed, from_model, to_model, weight

EMBEDDED_LIMIT = 1_900_000_000
"""Bytes of weights up to which one file holds everything: protobuf ends at 2 GiB."""

ALIGNMENT = 4096
"""External tensors start at a page, so that they can be memory-mapped."""

Source = Path | str | onnx.ModelProto | bytes


def load(source: Source) -> Graph:
    """Read a model from a file, from bytes, or take a `ModelProto`.

    Raises:
        ModelError: the file is missing, empty, truncated, not ONNX, its external data is missing or lies
            outside the model's folder, or the graph breaks a rule of ONNX.
    """
    if isinstance(source, onnx.ModelProto):
        return from_model(source)
    if isinstance(source, bytes):
        return from_model(_parse(source, "the given bytes"))
    path = Path(source)
    if path.is_dir():
        raise ModelError(f"'{path}' is a folder. Name the .onnx file in it.")
    if not path.exists():
        raise ModelError(f"'{path}' does not exist. Check the path.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"'{path}' cannot be read ({error.strerror}). Check its permissions.") from error
    model = _parse(content, f"'{path}'")
    del content
    try:
        _check_external(model, path)
        return from_model(model, path.parent)
    except ModelError as error:
        raise type(error)(f"{path.name}: {error}") from None


def _parse(content: bytes, where: str) -> onnx.ModelProto:
    if not content:
        raise ModelError(f"{where} is empty. Export the model again.")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise ModelError(
            f"{where} is not an ONNX model, or was cut off ({error}). Export or download it again."
        ) from None
    if not model.HasField("graph") or not model.opset_import:
        raise ModelError(
            f"{where} is not an ONNX model: it holds no graph or no opset. Export it with torch.onnx or tf2onnx."
        )
    if not model.graph.output:
        raise ModelError(f"{where} has no outputs, so there is nothing to keep. Export the model again.")
    return model


def _all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                graphs.extend([attribute.g] if attribute.HasField("g") else [])
                graphs.extend(attribute.graphs)


def _check_external(model: onnx.ModelProto, path: Path) -> None:
    """Every external tensor must lie in a regular file inside the model's folder, and be long enough."""
    home = path.resolve().parent
    for tensor in _all_tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            if tensor.data_type != onnx.TensorProto.STRING:
                _check_embedded(tensor)
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        location = place.get("location", "")
        target = (home / location).resolve()
        if not location or Path(location).is_absolute() or not target.is_relative_to(home):
            raise ModelError(
                f"Tensor '{tensor.name}' keeps its data in '{location}', outside the model's folder. "
                "Move the data beside the model and save it again."
            )
        if not target.is_file():
            raise ModelError(
                f"The data of tensor '{tensor.name}' is missing: there is no '{location}' beside the model."
            )
        try:
            offset, length = int(place.get("offset", 0)), Stored(tensor, home).nbytes
        except ValueError:
            raise ModelError(f"Tensor '{tensor.name}' has no readable offset: {place.get('offset')!r}.") from None
        if offset < 0 or offset + length > target.stat().st_size:
            raise ModelError(
                f"The data of tensor '{tensor.name}' needs {offset + length} bytes of '{location}', which has "
                f"{target.stat().st_size}. Copy the file again: it was cut off."
            )


def _check_embedded(tensor: onnx.TensorProto) -> None:
    if any(size < 0 for size in tensor.dims):
        raise ModelError(f"Tensor '{tensor.name}' has a negative size: {list(tensor.dims)}. Export the model again.")
    if not tensor.HasField("raw_data"):
        return
    expected = Stored(tensor, None).nbytes
    if tensor.data_type != onnx.TensorProto.UNDEFINED and len(tensor.raw_data) != expected:
        raise ModelError(
            f"Tensor '{tensor.name}' holds {len(tensor.raw_data)} bytes where its shape {list(tensor.dims)} needs "
            f"{expected}. Export the model again."
        )


def check_output(source: Source, output: Path) -> None:
    """Refuse an output that is the input, a folder, or lies in a folder that does not exist. Raises OutputError."""
    if (
        isinstance(source, (str, Path))
        and output.exists()
        and Path(source).exists()
        and os.path.samefile(source, output)
    ):
        raise OutputError(f"The output '{output}' is the input model. Name another file with --output.")
    if output.is_dir():
        raise OutputError(f"The output '{output}' is a folder. Name a file in it with --output.")
    if not output.parent.is_dir():
        raise OutputError(f"The folder '{output.parent}' does not exist. Create it, or name another output.")


@contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """A path to write to; it becomes `output` in one step when the block ends well, and vanishes when it does not.

    Raises:
        OutputError: the disk is full or the folder refuses.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise OutputError(
            f"'{output.parent}' cannot be written to ({error.strerror}). Choose another folder."
        ) from error
    try:
        yield folder / output.name
        for made in sorted(folder.iterdir(), key=lambda made: made.name == output.name):  # the model itself last
            os.replace(made, output.parent / made.name)
    except OSError as error:
        raise OutputError(
            f"'{output}' cannot be written ({error.strerror or error}). Free some space or choose another folder."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def save(graph: Graph, path: Path) -> None:
    """Write a model to `path` (inside `replacing`); weights go beside it where the source has them so.

    One tensor is in memory at a time. The same graph gives the same bytes.
    """
    weights = [t for n in graph.nodes for t in n.inputs if isinstance(t, Constant)]
    sizes = {t.name: _bytes(t) for t in weights}
    outside = any(isinstance(t._values, Stored) and t._values.external for t in weights)
    if not outside and sum(sizes.values()) <= EMBEDDED_LIMIT:
        path.write_bytes(to_model(graph).SerializeToString(deterministic=True))
        return
    with open(path.with_name(path.name + ".data"), "wb") as data:
        path.write_bytes(
            to_model(graph, _outside(data.name, data.tell, data.write)).SerializeToString(deterministic=True)
        )


def _bytes(constant: Constant) -> int:
    return int(constant._values.nbytes)


def _outside(
    file: str, tell: Callable[[], int], write: Callable[[bytes], int]
) -> Callable[[Constant], onnx.TensorProto]:
    """Writes large weights to the data file and returns references to them."""

    def keep(constant: Constant) -> onnx.TensorProto:
        if _bytes(constant) < 1024:
            return (
                embed(constant)
                if not isinstance(constant._values, Stored)
                else onnx.numpy_helper.from_array(weight(constant), constant.name)
            )
        source = embed(constant)
        reference = onnx.TensorProto(name=constant.name, data_type=source.data_type, dims=source.dims)
        write(b"\0" * (-tell() % ALIGNMENT))
        start = tell()
        stored = isinstance(constant._values, Stored)
        array = weight(constant)
        content = array.tobytes() if stored and array.dtype.isbuiltin == 1 else source.raw_data
        write(content)
        reference.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", Path(file).name), ("offset", start), ("length", tell() - start)):
            reference.external_data.add(key=key, value=str(value))
        return reference

    return keep
