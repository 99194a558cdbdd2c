"""Data from Python: an iterable of feeds, or a function of the user named `python:module:function`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.calibration.arrays import from_arrays
from onnxq.calibration.feeds import LABELS, Source, blamed
from onnxq.errors import DataError
from onnxq.interface import TensorSpec


def from_values(values: Any, inputs: Sequence[TensorSpec], name: str) -> Source:
    """Feeds out of a mapping of arrays, a sequence of feeds, or an iterable of feeds, which is read to its end.

    Raises:
        DataError: `values` is none of these.
    """
    if isinstance(values, Mapping):
        return from_arrays(values, inputs, name)
    if isinstance(values, str | bytes | np.ndarray) or not _is_iterable(values):
        raise DataError(
            f"{name} is of type {type(values).__name__}. Give a mapping of arrays or an iterable of feeds, "
            "each a dictionary of arrays."
        )
    # A lazy sequence, such as a data set that reads files, stays lazy.
    feeds: Any = values if hasattr(values, "__getitem__") and hasattr(values, "__len__") else list(values)
    return _sequence(feeds, inputs, name)


def _is_iterable(values: Any) -> bool:
    return isinstance(values, Iterable) or hasattr(values, "__getitem__")


def _sequence(feeds: Sequence[Any], inputs: Sequence[TensorSpec], name: str) -> Source:
    def where(index: int) -> str:
        return f"{name}, feed {index}"

    def read(index: int) -> Any:
        with blamed(where(index)):
            return feeds[index]

    def labels(index: int) -> np.ndarray:
        feed = read(index)
        if LABELS not in feed:
            raise DataError(f"{where(index)}: labels are missing, but feed 0 has some. Label all feeds or none.")
        return np.atleast_1d(feed[LABELS])

    is_input = any(spec.name == LABELS for spec in inputs)
    has_labels = len(feeds) > 0 and not is_input and isinstance(read(0), Mapping) and LABELS in read(0)
    return Source(name, len(feeds), read, where, labels if has_labels else None)


def from_function(name: str, inputs: Sequence[TensorSpec]) -> Source:
    """What the function `module:function` returns, as `from_values` takes it.

    The function is given the specs of the inputs if it requires an argument. Modules of the current folder are
    found.

    Raises:
        DataError: there is no such function, it fails, or it returns something else.
    """
    title = f"python:{name}"
    with current_folder(), blamed(title):
        call = find_function(name, title, "python:MODULE:FUNCTION")
        return from_values(call(tuple(inputs)) if _requires_argument(call) else call(), inputs, title)


def find_function(name: str, title: str, form: str = "MODULE:FUNCTION") -> Callable[..., Any]:
    """The function `module:function`; `title` is what errors call it. Raises DataError, or what the import raises."""
    module, _, function = name.rpartition(":")
    if not module or not function:
        raise DataError(f"{title} names no function. Write {form}.")
    found: Callable[..., Any] | None = getattr(importlib.import_module(module), function, None)
    if found is None or not callable(found):
        raise DataError(f"{title}: module {module!r} has no function {function!r}. Write {form}.")
    return found


def _requires_argument(function: Any) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some built-in functions have none
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters)


@contextmanager
def current_folder() -> Iterator[None]:
    """Let modules of the current folder be imported, as `python -m` does and an installed command does not."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
