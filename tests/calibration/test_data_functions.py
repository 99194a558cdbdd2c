"""Feeds from Python: iterables, and functions named on the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxq.calibration.data import Data, open_data
from onnxq.errors import DataError
from onnxq.interface import TensorSpec

INPUTS = (TensorSpec("x", np.dtype(np.float32), ("batch", 2)),)

MODULE = """
import numpy as np
from onnxq.errors import DataError

def mapping():
    return {"x": np.zeros((3, 2), np.float32), "labels": [1, 2, 3]}

def feeds(inputs):
    for spec in inputs:
        yield {spec.name: np.ones((1, 2), np.float32)}

def defaults(count=2):
    return [{"x": np.zeros((1, 2))}] * count

def fails():
    raise KeyError("no disk")

def fails_later():
    yield {"x": np.zeros((1, 2))}
    raise KeyError("no disk")

def own_error():
    raise DataError("exactly this")

class Lazy:
    def __len__(self):
        return 2

    def __getitem__(self, index):
        if index == 1:
            raise OSError("bad sector")
        return {"x": np.zeros((1, 2), np.float32)}

def nothing():
    return None

ITEM = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module that lies in the current folder, which is not on the path."""
    (tmp_path / "own_data.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield "own_data"
    sys.modules.pop("own_data", None)


def opened(name: str) -> Data:
    return open_data(name, INPUTS)


def test_a_function_may_return_a_mapping(module: str) -> None:
    data = opened(f"python:{module}:mapping")
    assert len(data) == 3
    assert data.labels is not None
    assert data.labels.tolist() == [1, 2, 3]
    assert data.description == "python:own_data:mapping, 3 samples"


def test_a_function_that_requires_an_argument_gets_the_inputs(module: str) -> None:
    assert opened(f"python:{module}:feeds").sample(0)["x"].tolist() == [[1, 1]]


def test_an_argument_with_a_default_is_left_alone(module: str) -> None:
    assert len(opened(f"python:{module}:defaults")) == 2


def test_a_class_may_be_the_function(module: str) -> None:
    assert len(opened(f"python:{module}:Lazy")) == 2


def test_a_function_without_a_signature_is_called_without_arguments() -> None:
    with pytest.raises(DataError, match="python:builtins:dict: input 'x' is missing"):
        opened("python:builtins:dict")


def test_the_path_is_left_as_it_was(module: str) -> None:
    before = list(sys.path)
    opened(f"python:{module}:mapping")
    assert sys.path == before


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("fails", "python:own_data:fails failed with KeyError: 'no disk'"),
        ("fails_later", "python:own_data:fails_later failed with KeyError: 'no disk'"),
        ("own_error", "^exactly this$"),
        ("nothing", "python:own_data:nothing is of type NoneType. Give a mapping"),
        ("absent", "module 'own_data' has no function 'absent'"),
        ("ITEM", "module 'own_data' has no function 'ITEM'"),
    ],
)
def test_functions_that_fail(module: str, function: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(f"python:{module}:{function}")


def test_a_sequence_that_fails_names_the_feed(module: str) -> None:
    data = opened(f"python:{module}:Lazy")
    with pytest.raises(DataError, match="python:own_data:Lazy, feed 1 failed with OSError: bad sector"):
        list(data.batches())


def test_a_missing_module_is_named() -> None:
    with pytest.raises(DataError, match="python:no_such_module:f failed with ModuleNotFoundError"):
        opened("python:no_such_module:f")


@pytest.mark.parametrize("name", ["python:", "python:module", "python::f", "python:module:"])
def test_half_a_name_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="names no function"):
        opened(name)


def test_feeds_may_carry_labels() -> None:
    feeds = [{"x": np.zeros((1, 2)), "labels": 4}, {"x": np.zeros((2, 2)), "labels": [5, 6]}]
    data = open_data(feeds, INPUTS)
    assert data.labels is not None
    assert data.labels.tolist() == [4, 5, 6]
    half = open_data([feeds[0], {"x": np.zeros((1, 2))}], INPUTS)
    with pytest.raises(DataError, match="the data, feed 1: labels are missing"):
        _ = half.labels


def test_labels_that_cannot_be_joined_are_refused() -> None:
    feeds = [{"x": np.zeros((1, 2)), "labels": [[1, 2]]}, {"x": np.zeros((1, 2)), "labels": [3]}]
    with pytest.raises(DataError, match="the data: joining the labels failed with ValueError"):
        _ = open_data(feeds, INPUTS).labels


@pytest.mark.parametrize("source", [3, np.zeros((2, 2)), b"bytes"])
def test_other_types_are_refused(source: Any) -> None:
    with pytest.raises(DataError, match=f"the data is of type {type(source).__name__}. Give a mapping"):
        open_data(source, INPUTS)


def test_a_list_of_arrays_is_refused() -> None:
    with pytest.raises(DataError, match="the data, feed 0: a ndarray, not a dictionary of arrays"):
        open_data([np.zeros((1, 2))], INPUTS)  # type: ignore[list-item]
