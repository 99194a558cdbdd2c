"""Folders with one feed per file: .npz files and ONNX test data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxq.calibration.data import open_data
from onnxq.errors import DataError
from onnxq.interface import TensorSpec

X = TensorSpec("x", np.dtype(np.float32), ("batch", "n"))
Y = TensorSpec("y", np.dtype(np.int64), (1,))


def row(value: float, width: int = 2) -> np.ndarray:
    return np.full((1, width), value, np.float32)


def save_set(folder: Path, *arrays: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, array in enumerate(arrays):
        onnx.save_tensor(onnx.numpy_helper.from_array(array), folder / f"input_{number}.pb")


def test_npz_files_are_sorted_by_number_and_join_where_they_can(tmp_path: Path) -> None:
    for number, width in ((10, 3), (2, 2), (1, 2)):
        np.savez(tmp_path / f"feed{number}.npz", x=row(number, width))
    (tmp_path / "notes.txt").write_text("not data")
    data = open_data(tmp_path, [X])
    assert len(data) == 3
    assert [b["x"].tolist() for b in data.batches()] == [[[1, 1], [2, 2]], [[10, 10, 10]]]


def test_npz_files_are_read_when_they_are_needed(tmp_path: Path) -> None:
    for number in range(2):
        np.savez(tmp_path / f"{number}.npz", x=row(number))
    batches = open_data(tmp_path, [X]).batches(1)
    np.savez(tmp_path / "0.npz", x=row(5))
    assert next(batches)["x"][0, 0] == 5


def test_npz_files_may_hold_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "0.npz", x=np.zeros((2, 2), np.float32), labels=np.array([7, 8]))
    np.savez(tmp_path / "1.npz", x=row(0), labels=9)
    data = open_data(tmp_path, [X])
    assert data.labels is not None
    assert data.labels.tolist() == [7, 8, 9]
    np.savez(tmp_path / "1.npz", x=row(0))
    with pytest.raises(DataError, match=r"1\.npz: labels are missing, but .*0\.npz has some"):
        _ = data.labels


def test_an_input_called_labels_is_no_label(tmp_path: Path) -> None:
    np.savez(tmp_path / "0.npz", labels=row(3))
    data = open_data(tmp_path, [TensorSpec("labels", X.dtype, X.shape)])
    assert data.labels is None
    assert next(data.batches())["labels"].tolist() == [[3, 3]]


def test_errors_name_the_npz_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "0.npz", x=row(0))
    np.savez(tmp_path / "1.npz", z=row(0))
    (tmp_path / "2.npz").write_bytes(b"broken")
    data = open_data(tmp_path, [X])
    with pytest.raises(DataError, match=r"1\.npz: input 'x' is missing"):
        data.sample(1)
    with pytest.raises(DataError, match=r"2\.npz is not a readable \.npz file"):
        data.sample(2)


def test_an_npz_file_cut_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "0.npz"
    np.savez(path, x=row(0))
    content = bytearray(path.read_bytes())
    content[-150] ^= 0xFF  # a byte of the array, so its checksum is wrong
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"0\.npz is not a readable \.npz file"):
        open_data(tmp_path, [X])


def test_test_data_sets_go_by_the_order_of_the_inputs(tmp_path: Path) -> None:
    for number in (10, 2):
        save_set(tmp_path / f"test_data_set_{number}", row(number), np.array([number]))
    data = open_data(str(tmp_path), [X, Y])
    assert [(b["x"].tolist(), b["y"].tolist()) for b in data.batches()] == [([[2, 2]], [2]), ([[10, 10]], [10])]


def test_a_folder_may_be_a_test_data_set_itself(tmp_path: Path) -> None:
    save_set(tmp_path, row(4))
    data = open_data(tmp_path, [X])
    assert len(data) == 1
    assert data.sample(0)["x"].tolist() == [[4, 4]]


def test_eleven_inputs_are_in_numeric_order(tmp_path: Path) -> None:
    inputs = [TensorSpec(f"i{number}", np.dtype(np.int64), (1,)) for number in range(11)]
    save_set(tmp_path, *(np.array([number]) for number in range(11)))
    assert [int(array[0]) for array in open_data(tmp_path, inputs).sample(0).values()] == list(range(11))


@pytest.mark.parametrize("count", [1, 3])
def test_test_data_sets_with_too_few_or_many_inputs_are_refused(tmp_path: Path, count: int) -> None:
    save_set(tmp_path / "test_data_set_0", *[np.zeros(1, np.float32)] * count)
    with pytest.raises(
        DataError, match=r"test_data_set_0 holds input_0\.pb.*the model has 2 inputs.*Give input_0\.pb, "
    ):
        open_data(tmp_path, [X, Y])


def test_a_broken_tensor_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "input_0.pb").write_bytes(b"\xff\xff\xff")
    with pytest.raises(DataError, match=r"input_0\.pb"):
        open_data(tmp_path, [X])


def test_errors_name_the_test_data_set(tmp_path: Path) -> None:
    save_set(tmp_path / "test_data_set_0", row(np.nan))
    with pytest.raises(DataError, match="test_data_set_0: input 'x' holds NaN"):
        open_data(tmp_path, [X])


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \.npz files and no test_data_set_\* folders.*write images:"):
        open_data(tmp_path, [X])
