"""One array per input, from a mapping or an .npz file: how the first axis becomes samples."""

from __future__ import annotations

import mmap
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from onnxq.calibration.arrays import from_npz
from onnxq.calibration.data import open_data
from onnxq.errors import DataError
from onnxq.interface import Dimension, TensorSpec


def spec(name: str, *shape: Dimension) -> TensorSpec:
    return TensorSpec(name, np.dtype(np.float32), shape)


def ramp(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def test_equal_rank_and_a_free_batch_gives_rows() -> None:
    data = open_data({"x": ramp(5, 2)}, [spec("x", "batch", 2)])
    assert [b["x"].tolist() for b in data.batches(2)] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9]]]


def test_equal_rank_and_a_batch_of_one_gives_single_samples() -> None:
    data = open_data({"x": ramp(3, 2)}, [spec("x", 1, 2)])
    assert [b["x"].tolist() for b in data.batches()] == [[[0, 1]], [[2, 3]], [[4, 5]]]
    assert "left out" not in data.description


def test_a_fixed_batch_gives_chunks_and_says_what_is_left_out() -> None:
    data = open_data({"x": ramp(7, 2), "labels": np.arange(7)}, [spec("x", 3, 2)])
    assert [b["x"].shape for b in data.batches()] == [(3, 2), (3, 2)]
    assert "the last 1 left out: the model takes batches of 3" in data.description
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2, 3, 4, 5]


def test_one_more_dimension_counts_whole_feeds() -> None:
    data = open_data({"x": ramp(4, 3, 2), "labels": np.arange(4)}, [spec("x", 3, 2)])
    assert len(data) == 4
    np.testing.assert_array_equal(next(data.batches())["x"], ramp(3, 2))
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2, 3]


def test_whole_feeds_of_one_row_join() -> None:
    data = open_data({"x": ramp(4, 1, 2)}, [spec("x", "batch", 2)])
    assert [b["x"].shape for b in data.batches(3)] == [(3, 2), (1, 2)]


def test_scalars_are_one_per_feed_or_the_same_for_all() -> None:
    inputs = [spec("x", "batch", 2), spec("s")]
    one_each = open_data({"x": ramp(2, 2), "s": np.array([5.0, 6.0])}, inputs)
    assert [(b["x"].tolist(), float(b["s"])) for b in one_each.batches()] == [([[0, 1]], 5), ([[2, 3]], 6)]
    same = open_data({"x": ramp(2, 2), "s": 5.0}, inputs)
    assert [float(b["s"]) for b in same.batches()] == [5, 5]


def test_only_scalars_are_one_feed() -> None:
    assert len(open_data({"s": 1.0}, [spec("s")])) == 1


def test_a_free_input_beside_a_fixed_one_is_cut_alike() -> None:
    inputs = [spec("x", 4, 2), spec("y", "batch", 3)]
    data = open_data({"x": ramp(9, 2), "y": ramp(9, 3)}, inputs)
    assert [(b["x"].shape, b["y"].shape) for b in data.batches()] == [((4, 2), (4, 3))] * 2


def test_rows_beside_whole_feeds_give_one_row_to_each() -> None:
    inputs = [spec("x", "batch", 2), spec("s", 1)]
    data = open_data({"x": ramp(3, 2), "s": ramp(3, 1)}, inputs)
    assert [(b["x"].shape, b["s"].tolist()) for b in data.batches()] == [((1, 2), [n]) for n in range(3)]


def test_different_fixed_batches_count_feeds() -> None:
    data = open_data({"x": ramp(2, 2), "y": ramp(4, 2)}, [spec("x", 1, 2), spec("y", 2, 2)])
    assert [(b["x"].shape, b["y"].shape) for b in data.batches()] == [((1, 2), (2, 2))] * 2


@pytest.mark.parametrize(
    ("shapes", "inputs"),
    [
        (((3, 2), (4, 2)), (spec("x", "batch", 2), spec("y", "batch", 2))),
        (((3, 2), (4, 2)), (spec("x", 1, 2), spec("y", "batch", 2))),
        (((4, 2), (4, 2)), (spec("x", 1, 2), spec("y", 2, 2))),
        (((3, 1, 2), (6, 2)), (spec("x", 1, 2), spec("y", "batch", 2))),
        (((3, 2), (4,)), (spec("x", "batch", 2), spec("y"))),
    ],
)
def test_arrays_that_disagree_are_refused(shapes: tuple[tuple[int, ...], ...], inputs: tuple[TensorSpec, ...]) -> None:
    arrays = {name: ramp(*shape) for name, shape in zip("xy", shapes, strict=True)}
    with pytest.raises(DataError) as caught:
        open_data(arrays, inputs)
    assert f"different numbers of samples: x {list(shapes[0])}, y {list(shapes[1])}" in str(caught.value)


@pytest.mark.parametrize("shape", [(3,), (1, 1, 3, 2)])
def test_wrong_ranks_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError) as caught:
        open_data({"x": ramp(*shape)}, [spec("x", "batch", 2)])
    assert f"array 'x' has shape {list(shape)}" in str(caught.value)
    assert "x: float32[batch, 2]" in str(caught.value)


@pytest.mark.parametrize("labels", [np.arange(2), np.array(1)])
def test_labels_that_do_not_match_are_refused(labels: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"labels have shape .* there are 3 samples"):
        open_data({"x": ramp(3, 2), "labels": labels}, [spec("x", "batch", 2)])


def test_an_unknown_rank_is_cut_into_rows() -> None:
    data = open_data({"x": ramp(3, 2)}, [TensorSpec("x", np.dtype(np.float32), None)])
    assert [b["x"].shape for b in data.batches()] == [(1, 2)] * 3


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_files_of_both_kinds(tmp_path: Path, save: object) -> None:
    assert callable(save)
    fortran = np.asfortranarray(ramp(4, 3, 2))
    save(tmp_path / "val.npz", x=fortran, y=np.array(2.0), labels=np.array(list("abcd")))
    data = open_data(str(tmp_path / "val.npz"), [spec("x", "batch", 3, 2), spec("y")])
    assert str(tmp_path / "val.npz") in data.description
    np.testing.assert_array_equal(np.concatenate([b["x"] for b in data.batches()]), fortran)
    assert data.labels is not None
    assert data.labels.tolist() == ["a", "b", "c", "d"]


def test_a_stored_npz_file_is_mapped_and_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "val.npz"
    np.savez(path, x=ramp(4, 2))
    row = from_npz(path, [spec("x", "batch", 2)]).read(2)["x"]
    owner: object = row
    while isinstance(owner, np.ndarray):
        owner = owner.base
    assert isinstance(owner, mmap.mmap)
    assert row.tolist() == [[4, 5]]


def test_an_extra_field_in_the_zip_header_moves_the_array(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", ramp(4, 2))
    info = zipfile.ZipInfo("x.npy")
    info.extra = struct.pack("<HH3s", 0xCAFE, 3, b"pad")
    with zipfile.ZipFile(tmp_path / "val.npz", "w") as archive:
        archive.writestr(info, (tmp_path / "x.npy").read_bytes())
    data = open_data(tmp_path / "val.npz", [spec("x", "batch", 2)])
    np.testing.assert_array_equal(next(data.batches())["x"], ramp(4, 2))


def test_an_empty_npz_array_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "val.npz", x=np.zeros((0, 2), np.float32))
    with pytest.raises(DataError, match="holds no samples"):
        open_data(tmp_path / "val.npz", [spec("x", "batch", 2)])


def test_npz_names_are_checked(tmp_path: Path) -> None:
    np.savez(tmp_path / "val.npz", arr_0=ramp(4, 2))
    with pytest.raises(DataError, match=r"val.npz: input 'x' is missing. The model expects x: float32\[batch, 2\]"):
        open_data(tmp_path / "val.npz", [spec("x", "batch", 2)])


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "val.npz", x=np.array([None, 1], object))
    with pytest.raises(DataError, match=r"val\.npz is not a readable \.npz file"):
        open_data(tmp_path / "val.npz", [spec("x", "batch")])


def test_a_broken_npz_file_is_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.npz"
    np.savez(whole, x=ramp(4, 2))
    for content in (b"no zip", b"", whole.read_bytes()[:100]):
        (tmp_path / "val.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"val\.npz is not a readable \.npz file"):
            open_data(tmp_path / "val.npz", [spec("x", "batch", 2)])
