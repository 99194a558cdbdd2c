"""Data as a folder with one feed per file: .npz files, or ONNX test data sets (`test_data_set_0/input_0.pb`)."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onnxq.calibration.feeds import LABELS, Feed, Source
from onnxq.errors import DataError, ModelError
from onnxq.interface import TensorSpec, describe


def from_folder(folder: Path, inputs: Sequence[TensorSpec]) -> Source:
    """The feeds of a folder, sorted by name (numbers by value); their shapes may differ from file to file.

    Raises:
        DataError: the folder holds neither .npz files nor test data sets.
    """
    if files := sorted(folder.glob("*.npz"), key=_by_number):
        return _npz_files(folder, files, inputs)
    sets = sorted((path.parent for path in folder.glob("test_data_set_*/input_0.pb")), key=_by_number)
    if not sets and (folder / "input_0.pb").exists():
        sets = [folder]
    if sets:
        return _test_data_sets(folder, sets, inputs)
    raise DataError(
        f"{folder} holds no .npz files and no test_data_set_* folders. "
        f"For pictures write images:{folder}; the model expects {describe(inputs)}."
    )


def _by_number(path: Path) -> list[tuple[int, str]]:
    """So that set 2 comes before set 10."""
    return [(int(part or 0), text) for text, part in re.findall(r"(\D*)(\d*)", path.name)]


def _npz_files(folder: Path, files: Sequence[Path], inputs: Sequence[TensorSpec]) -> Source:
    is_input = any(spec.name == LABELS for spec in inputs)
    has_labels = not is_input and LABELS in _names(files[0])

    def labels(index: int) -> np.ndarray:
        if LABELS not in _names(files[index]):
            raise DataError(f"{files[index]}: labels are missing, but {files[0]} has some. Label all files or none.")
        return np.atleast_1d(_arrays(files[index], [LABELS])[LABELS])

    return Source(
        description=str(folder),
        count=len(files),
        read=lambda index: _arrays(files[index], _names(files[index])),
        where=lambda index: str(files[index]),
        labels=labels if has_labels else None,
    )


def _names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a readable .npz file ({error}). Write it with numpy.savez.") from error


def _arrays(path: Path, names: Sequence[str]) -> Feed:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: np.asarray(archive[name]) for name in names}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a readable .npz file ({error}). Write it with numpy.savez.") from error


def _test_data_sets(folder: Path, sets: Sequence[Path], inputs: Sequence[TensorSpec]) -> Source:
    def read(index: int) -> Feed:
        found = sorted(sets[index].glob("input_*.pb"), key=_by_number)
        wanted = [f"input_{number}.pb" for number in range(len(inputs))]
        if [path.name for path in found] != wanted:
            names = ", ".join(path.name for path in found)
            raise DataError(
                f"{sets[index]} holds {names}, but the model has {len(inputs)} inputs: {describe(inputs)}. "
                f"Give {', '.join(wanted)}."
            )
        return {spec.name: _tensor(path) for spec, path in zip(inputs, found, strict=True)}

    return Source(description=str(folder), count=len(sets), read=read, where=lambda index: str(sets[index]))


def _tensor(path: Path) -> np.ndarray:
    # Only this kind of data needs ONNX; graph.py is its one doorway.
    from onnxq.graph import read_tensor

    try:
        return read_tensor(path)
    except ModelError as error:
        raise DataError(str(error)) from error
