"""Values that are computed when they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxq import modelfile
from onnxq.graph import Constant, Graph, Later, is_constant, to_model, weight
from onnxq.modelfile import load, save
from onnxq.runtime import Session
from onnxq.tensors import is_external
from tests.onnx_text import floats, read

Array = np.ndarray[Any, Any]

TEXT = "(float[n,64] x) => (float[n,64] y) { a = MatMul(x, w) y = MatMul(a, v) }"
W = {"w": floats(64, 64), "v": floats(64, 64, seed=4)}


class Counted:
    """Makes an array, and says how often."""

    def __init__(self, values: Array) -> None:
        self.values, self.times = values, 0

    def __call__(self) -> Array:
        self.times += 1
        return self.values


def handle(values: Array) -> tuple[Later, Counted]:
    make = Counted(values)
    return Later(values.shape, values.dtype, make), make


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8, np.int8, np.int64])
@pytest.mark.parametrize("shape", [(3, 5), (0, 5), ()])
def test_tells_its_type_before_it_is_read(shape: tuple[int, ...], dtype: Any) -> None:
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    later, make = handle(values)
    tensor = Constant("w", later)
    assert (later.shape, later.dtype, later.nbytes) == (shape, values.dtype, values.nbytes)
    assert later.kind == onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
    assert is_constant(tensor)
    assert not is_external(tensor)
    assert (tuple(tensor.shape or ()), tensor.dtype) == (shape, values.dtype)
    assert make.times == 0
    np.testing.assert_array_equal(weight(tensor), values)
    assert bytes(later.raw()) == values.tobytes()


def test_is_computed_on_each_reading_and_not_kept() -> None:
    later, make = handle(floats(3, 5))
    tensor = Constant("w", later)
    for times in (1, 2):
        np.testing.assert_array_equal(weight(tensor), floats(3, 5))
        assert make.times == times
    assert tensor._values is later


def test_bytes_are_in_the_order_of_rows() -> None:
    turned = floats(5, 3).T
    assert bytes(handle(turned)[0].raw()) == np.ascontiguousarray(turned).tobytes()


@pytest.mark.parametrize("values", [floats(5, 3), floats(3, 5).astype(np.float64)])
def test_a_broken_promise_is_a_defect(values: Array) -> None:
    later = Later((3, 5), np.dtype(np.float32), lambda: values)
    with pytest.raises(AssertionError, match="promised something else"):
        later.load()


def lazy() -> tuple[Graph, list[Counted]]:
    """A graph all of whose weights are computed."""
    graph, makers = read(TEXT, W), []
    for tensor in graph.weights():
        assert isinstance(tensor, Constant)
        tensor._values, make = handle(W[tensor.name])
        makers.append(make)
    return graph, makers


def test_copies_share_it_and_read_nothing() -> None:
    graph, makers = lazy()
    copy = graph.copy()
    assert [make.times for make in makers] == [0, 0]
    assert to_model(copy).SerializeToString(deterministic=True) == to_model(read(TEXT, W)).SerializeToString(
        deterministic=True
    )
    assert [make.times for make in makers] == [1, 1]


@pytest.mark.parametrize("external", [False, True])
def test_is_written_like_any_other_weight(external: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelfile, "EMBEDDED_LIMIT", 0 if external else 1 << 30)
    graph, makers = lazy()
    for name, made in (("lazy", graph), ("plain", read(TEXT, W))):
        (tmp_path / name).mkdir()
        save(made, tmp_path / name / "model.onnx")
    assert [make.times for make in makers] == [1, 1], "one at a time, once"
    files = [sorted((tmp_path / name).iterdir()) for name in ("lazy", "plain")]
    assert [file.name for file in files[0]] == ["model.onnx", "model.onnx.data"][: 1 + external]
    for one, other in zip(*files, strict=True):
        assert one.read_bytes() == other.read_bytes()
    again = load(files[0][0])
    assert all(is_external(tensor) == external for tensor in again.weights())
    x = floats(2, 64)
    (y,) = Session(files[0][0]).run({"x": x}).values()
    np.testing.assert_allclose(y, x @ W["w"] @ W["v"], rtol=1e-4, atol=1e-3)
