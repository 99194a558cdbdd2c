"""Model files: read with every check that a user may need, written whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from onnxq.abandoned import LOCK, clear_abandoned, held
from onnxq.errors import ModelError, OutputError
from onnxq.graph import Constant, Graph, Later, Stored, embed, from_model, is_external, to_model
from onnxq.signatures import check_nodes
from onnxq.wellformed import check_tensors, resolve_external

EMBEDDED_LIMIT = 1_900_000_000
"""Bytes of weights up to which one file holds everything: protobuf ends at 2 GiB."""

LARGEST = (1 << 31) - 1
"""Bytes of the largest file that protobuf reads."""

OUTSIDE_LIMIT = 1024
"""Bytes from which on a weight goes into the data file, where there is one."""

BESIDE = 160
"""Bytes that a weight takes in a model beside its values: its name and its sizes, at most as usual."""

ALIGNMENT = 4096
"""External tensors start at a page, so that they can be memory-mapped."""

Source = Path | str | onnx.ModelProto | bytes


def load(source: Source) -> Graph:
    """Read a model from a file, from bytes, or take a `ModelProto`.

    Raises:
        ModelError: the file is missing, empty, truncated, not ONNX, its external data is missing or lies
            outside the model's folder, or the graph breaks a rule of ONNX.
    """
    if not isinstance(source, (str, Path, bytes, onnx.ModelProto)):
        raise ModelError(f"{type(source).__name__} is no model. Give a path, the bytes of a model, or a ModelProto.")
    if not isinstance(source, (str, Path)):
        model = _checked(source, "The given model")
        check_tensors(model)
        graph = from_model(model)
        check_nodes(model)
        return graph
    path = Path(source)
    model = _checked(_content(path), f"'{path}'")
    try:
        folder, files = resolve_external(model, path)
        graph = from_model(model, folder)
        check_nodes(model)
    except ModelError as error:
        raise type(error)(f"{path.name}: {error}") from None
    graph.files = files
    return graph


def _content(path: Path) -> bytes:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):  # a pipe or a device may never end
            raise ModelError(f"'{path}' is no plain file. Write the model to one.")
        if found.st_size > LARGEST:
            raise ModelError(
                f"'{path}' has {found.st_size} bytes, and no ONNX file has more than 2 GiB. Save it with external data."
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"'{path}' does not exist. Check the path.") from None
    except IsADirectoryError:
        raise ModelError(f"'{path}' is a folder. Name the .onnx file in it.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"'{path}' cannot be read ({reason}). Check its name and permissions.") from error


def _checked(source: onnx.ModelProto | bytes, where: str) -> onnx.ModelProto:
    """The model, where it holds what every model must."""
    model = _parse(source, where) if isinstance(source, bytes) else source
    if not model.HasField("graph") or not model.opset_import:
        raise ModelError(
            f"{where} is not an ONNX model: it holds no graph or no opset. Export it with torch.onnx or tf2onnx."
        )
    for entry in model.opset_import:
        if not 0 < entry.version < 2**31:
            raise ModelError(f"{where} asks for version {entry.version} of '{entry.domain}'. Export the model again.")
    if not model.graph.output:
        raise ModelError(f"{where} has no outputs, so there is nothing to keep. Export the model again.")
    return model


def _parse(content: bytes, where: str) -> onnx.ModelProto:
    if not content:
        raise ModelError(f"{where} is empty. Export the model again.")
    if content.startswith(b"version https://git-lfs"):
        raise ModelError(f"{where} is a Git LFS pointer, not the model itself. Fetch the model with: git lfs pull.")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise ModelError(
            f"{where} is not an ONNX model, or was cut off ({error}). Export or download it again."
        ) from None
    return model


def check_output(source: Source, output: Path, flag: str = "--output") -> None:
    """Refuse an output that is the input, is no plain file, or lies in no folder. Raises OutputError.

    Args:
        source: the input.
        output: what is to be written.
        flag: what names it on the command line.
    """
    if (
        isinstance(source, (str, Path))
        and output.exists()
        and Path(source).exists()
        and os.path.samefile(source, output)
    ):
        raise OutputError(f"The output '{output}' is the input model. Name another file with {flag}.")
    if output.is_dir():
        raise OutputError(f"The output '{output}' is a folder. Name a file in it with {flag}.")
    if output.is_symlink() or (output.exists() and not output.is_file()):
        raise OutputError(f"The output '{output}' is a link or a device, which would be replaced. Name a plain file.")
    if output.parent.exists() and not output.parent.is_dir():
        raise OutputError(f"'{output.parent}' is no folder. Name another file with {flag}.")
    if not output.parent.is_dir():
        raise OutputError(f"The folder '{output.parent}' does not exist. Create it, or name another file with {flag}.")


@contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """A path to write to; it becomes `output` in one step when the block ends well, and vanishes when it does not.

    Whoever is killed meanwhile leaves the old files, the new ones, or no model; and a hidden folder beside the output,
    which goes at the next run.

    Raises:
        OutputError: the disk is full or the folder refuses.
    """
    clear_abandoned(output)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise OutputError(
            f"'{output.parent}' cannot be written to ({error.strerror}). Choose another folder."
        ) from error
    try:
        with held(folder):
            yield folder / output.name
            _move(folder, output)
    except OSError as error:
        raise OutputError(
            f"'{output}' cannot be written ({error.strerror or error}). Free some space or choose another folder."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move(folder: Path, output: Path) -> None:
    """Move what was made beside the output, the model itself last.

    An old model whose data is replaced goes first: it must not be found with the data of another one.
    """
    made = [path for path in sorted(folder.iterdir()) if path.name not in (output.name, LOCK)]
    kept = folder / f"{output.name}.old"
    if output.exists() and any((output.parent / path.name).exists() for path in made):
        os.replace(output, kept)
    try:
        for path in (*made, folder / output.name):
            os.replace(path, output.parent / path.name)
    except OSError:
        if kept.exists() and all(path.exists() for path in made):  # the old data is still there
            os.replace(kept, output)
        raise


def orphans(output: Path, source: Graph) -> list[Path]:
    """Data files that an earlier model of this name left there: neither the one of now nor the input reads them."""
    pattern = re.compile(rf"{re.escape(output.name)}(\.\d+)?\.data")
    found = sorted(path for path in output.parent.iterdir() if pattern.fullmatch(path.name) and path.is_file())
    needed = source.files | (load(output).files if found else frozenset())
    return [path for path in found if path.resolve() not in needed]


def save(graph: Graph, path: Path) -> None:
    """Write a model to `path` (inside `replacing`); weights go beside it where the source has them so.

    One tensor is in memory at a time. The same graph gives the same bytes.

    Raises:
        OutputError: the output would replace a data file of the input.
    """
    if _holds_input(graph, path):
        raise OutputError(
            f"The output '{path.name}' holds weights of the input model. Name another file with --output."
        )
    weights = graph.weights()
    if _is_embedded(weights):
        path.write_bytes(to_model(graph).SerializeToString(deterministic=True))
        return
    with open(_data_path(graph, path), "wb") as data:
        path.write_bytes(to_model(graph, DataFile(data)).SerializeToString(deterministic=True))


def expected_size(graph: Graph) -> int:
    """Bytes that `save` will write, a little more rather than less; no weight is read."""
    weights = graph.weights()
    sizes = [_bytes(tensor) for tensor in weights]
    if _is_embedded(weights):
        values = sum(sizes)
    else:
        values = sum(-(-size // ALIGNMENT) * ALIGNMENT if size >= OUTSIDE_LIMIT else size for size in sizes)
    return int(to_model(graph, weights=[]).ByteSize()) + values + BESIDE * len(weights)


def _is_embedded(weights: Sequence[Constant]) -> bool:
    """Whether one file holds everything."""
    return sum(map(_bytes, weights)) <= EMBEDDED_LIMIT and not any(map(is_external, weights))


def _holds_input(graph: Graph, path: Path) -> bool:
    """Whether this path is a data file of the input, here or in the folder that `replacing` moves it to."""
    return any(place.resolve() in graph.files for place in (path, path.parent.parent / path.name))


def _data_path(graph: Graph, path: Path) -> Path:
    """A data file beside the model, under a name that no data file of the input has."""
    chosen, number = path.with_name(f"{path.name}.data"), 0
    while _holds_input(graph, chosen):
        number += 1
        chosen = path.with_name(f"{path.name}.{number}.data")
    return chosen


def _bytes(constant: Constant) -> int:
    return int(constant._values.nbytes)


@dataclass(frozen=True)
class DataFile:
    """Writes large weights to a file, each from a page of its own, and returns references to them."""

    file: BinaryIO

    def __call__(self, constant: Constant) -> TensorProto:
        """The TensorProto that stands for the weight in the model."""
        values = constant._values
        stored = values if isinstance(values, (Stored, Later)) else Stored(embed(constant), None)
        made = TensorProto(name=constant.name, data_type=stored.kind, dims=stored.shape)
        if stored.kind == TensorProto.STRING:  # ONNX keeps strings in the model
            return embed(constant)
        if stored.nbytes < OUTSIDE_LIMIT:
            made.raw_data = bytes(stored.raw())
            return made
        self.file.write(b"\0" * (-self.file.tell() % ALIGNMENT))
        start = self.file.tell()
        self.file.write(stored.raw())
        made.data_location = TensorProto.EXTERNAL
        for key, value in (("location", Path(self.file.name).name), ("offset", start), ("length", stored.nbytes)):
            made.external_data.add(key=key, value=str(value))
        return made
