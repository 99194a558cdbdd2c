"""Rounded weights are kept until they are written, and longer where a run was interrupted."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxq.errors import OutputError
from onnxq.numerics.rounding.blocks import Blocked, block_round
from onnxq.shelf import Shelf, shelf_beside
from tests.onnx_text import floats


def blocked(seed: int = 0, *, bits: int = 4, symmetric: bool = False) -> Blocked:
    return block_round(floats(40, 6, seed=seed), bits=bits, block=16, symmetric=symmetric)


def assert_same(one: Blocked | None, other: Blocked) -> None:
    assert one is not None
    for name in ("values", "scale", "zero_point"):
        found, wanted = getattr(one, name), getattr(other, name)
        np.testing.assert_array_equal(found, wanted)
        assert (found is None) == (wanted is None)
        assert found is None or found.dtype == wanted.dtype
    assert (one.bits, one.inputs) == (other.bits, other.inputs)


@pytest.fixture(params=["memory", "folder"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "shelf") if request.param == "folder" else Shelf()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_what_was_put_comes_back(shelf: Shelf, bits: int, symmetric: bool) -> None:
    made, other = blocked(bits=bits, symmetric=symmetric), blocked(1)
    assert "w" not in shelf
    assert shelf.get("w") is None
    shelf.put("w", made)
    shelf.put("v|rows|4", other)
    assert "w" in shelf
    assert_same(shelf.get("w"), made)
    assert_same(shelf.get("v|rows|4"), other)
    assert shelf.get("W") is None


def test_the_last_of_a_name_wins(shelf: Shelf) -> None:
    shelf.put("w", blocked())
    shelf.put("w", blocked(1))
    shelf.put("v", blocked())
    assert_same(shelf.get("w"), blocked(1))


def test_parts_have_names_of_their_own(shelf: Shelf) -> None:
    one, other = shelf.under("one "), shelf.under("other ")
    one.put("w", blocked())
    other.put("w", blocked(1))
    assert "w" not in shelf
    assert shelf.get("w") is None
    assert shelf.under("third ").get("w") is None
    assert_same(shelf.under("one ").get("w"), blocked())
    assert_same(shelf.under("other ").get("w"), blocked(1))


def test_computes_what_was_not_put_and_keeps_the_latest_alone(shelf: Shelf) -> None:
    made: list[int] = []

    def compute(seed: int) -> Blocked:
        made.append(seed)
        return blocked(seed)

    shelf.put("put", blocked(9))
    assert_same(shelf.of("put", lambda: compute(9)), blocked(9))
    for seed in (1, 1, 2, 1):  # the parts of a weight are asked for one after the other
        assert_same(shelf.of(f"w{seed}", lambda seed=seed: compute(seed)), blocked(seed))  # type: ignore[misc]
    assert made == [1, 2, 1]
    assert "w1" not in shelf


def test_a_file_is_read_once_for_all_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Shelf(tmp_path).put("w", blocked())
    shelf, read, load = Shelf(tmp_path), list[Any](), np.load

    def counted(file: Any) -> Any:
        read.append(file)
        return load(file)

    monkeypatch.setattr("numpy.load", counted)
    for _ in range(3):
        assert_same(shelf.get("w"), blocked())
    assert len(read) == 1


def test_a_folder_outlives_the_process(tmp_path: Path) -> None:
    Shelf(tmp_path / "shelf").under("plan").put("w", blocked())
    files = sorted(file.suffix for file in (tmp_path / "shelf").iterdir())
    assert files == [".npz"], "nothing unfinished"
    assert_same(Shelf(tmp_path / "shelf", prefix="plan").get("w"), blocked())
    assert Shelf(tmp_path / "shelf").get("w") is None


@pytest.mark.parametrize("left", [0, 1, 100, -40])
def test_a_file_that_was_cut_off_counts_as_absent(left: int, tmp_path: Path) -> None:
    Shelf(tmp_path).put("w", blocked())
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:left])
    shelf = Shelf(tmp_path)
    assert shelf.get("w") is None
    assert_same(shelf.of("w", blocked), blocked())


def test_a_file_that_holds_something_else_counts_as_absent(tmp_path: Path) -> None:
    Shelf(tmp_path).put("w", blocked())
    (file,) = tmp_path.iterdir()
    np.savez(file, other=np.zeros(3))
    assert Shelf(tmp_path).get("w") is None
    file.write_bytes(b"no archive at all")
    assert Shelf(tmp_path).get("w") is None


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numpy.savez", full_disk)
    with pytest.raises(OutputError, match=r"No space left on device.*Free some space"):
        Shelf(tmp_path).put("w", blocked())


def beside(output: Path) -> Path:
    """Where the shelf of an output stands."""
    return output.with_name(f".{output.name}.rounded")


def test_without_an_output_it_is_in_memory() -> None:
    with shelf_beside(None, "key") as shelf:
        assert shelf.folder is None
        shelf.put("w", blocked())
        assert "w" in shelf


def test_a_folder_goes_when_all_is_well(tmp_path: Path) -> None:
    with shelf_beside(tmp_path / "model.onnx", "key") as shelf:
        shelf.put("w", blocked())
        assert list(tmp_path.iterdir()) == [beside(tmp_path / "model.onnx")]
    assert list(tmp_path.iterdir()) == []


def interrupt(output: Path, key: str, *names: str, error: type[BaseException] = KeyboardInterrupt) -> None:
    with shelf_beside(output, key) as shelf:
        for name in names:
            shelf.put(name, blocked())
        raise error


def test_an_interrupted_run_goes_on_with_what_it_had(tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    for names in (["one"], ["two"]):
        with pytest.raises(KeyboardInterrupt):
            interrupt(output, "key", *names)
    assert beside(output).is_dir()
    with shelf_beside(output, "key") as shelf:
        assert_same(shelf.get("one"), blocked())
        assert "two" in shelf
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("broken", [False, True])
def test_what_was_for_other_wishes_is_thrown_away(tmp_path: Path, broken: bool) -> None:
    output = tmp_path / "model.onnx"
    with pytest.raises(KeyboardInterrupt):
        interrupt(output, "key", "one")
    if broken:
        (beside(output) / "key").unlink()
    with shelf_beside(output, "key" if broken else "other") as shelf:
        assert "one" not in shelf


def test_a_run_that_ends_before_it_rounded_anything_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupt(tmp_path / "model.onnx", "key")
    assert list(tmp_path.iterdir()) == []


def test_outputs_in_one_folder_have_shelves_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupt(tmp_path / "model.onnx", "key", "one")
    with shelf_beside(tmp_path / "other.onnx", "key") as shelf:
        assert "one" not in shelf
    assert list(tmp_path.iterdir()) == [beside(tmp_path / "model.onnx")]


def test_a_full_disk_keeps_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        interrupt(tmp_path / "model.onnx", "key", "one", error=OutputError)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_names_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathlib.Path.write_text", full_disk)
    with (
        pytest.raises(OutputError, match=r"model\.onnx' cannot be written \(No space left"),
        shelf_beside(tmp_path / "model.onnx", "key"),
    ):
        raise AssertionError("It must not be reached.")
    assert list(tmp_path.iterdir()) == []
