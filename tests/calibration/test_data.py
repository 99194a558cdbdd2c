"""Data as a whole: batches, splits, labels, the words of the command line, and the padding mask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from onnxq.calibration.data import DEFAULT_BATCH_BYTES, Data, mask_of, open_data
from onnxq.errors import DataError
from onnxq.interface import TensorSpec

FLOAT = np.dtype(np.float32)
FREE = (TensorSpec("x", FLOAT, ("batch", 3)),)
FIXED = (TensorSpec("x", FLOAT, (4, 3)),)


def rows(count: int) -> np.ndarray:
    """float32[count, 3]; the row i holds only i."""
    return np.repeat(np.arange(count, dtype=np.float32)[:, np.newaxis], 3, axis=1)


def shapes(data: Data, size: int | None = None) -> list[tuple[int, ...]]:
    return [batch["x"].shape for batch in data.batches(size)]


def seen(data: Data) -> list[int]:
    """The numbers of the rows, in the order of the batches."""
    return [int(row[0]) for batch in data.batches(2) for row in batch["x"]]


def test_batches_hold_size_rows_and_a_rest() -> None:
    data = open_data({"x": rows(10)}, FREE)
    assert len(data) == 10
    assert shapes(data, 4) == [(4, 3), (4, 3), (2, 3)]
    assert seen(data) == list(range(10))


def test_batches_can_be_read_again() -> None:
    data = open_data(({"x": row[np.newaxis]} for row in rows(3)), FREE)
    assert seen(data) == seen(data) == [0, 1, 2]


def test_the_default_batch_is_eight_or_fits_32_mib() -> None:
    assert shapes(open_data({"x": rows(10)}, FREE)) == [(8, 3), (2, 3)]
    wide = (TensorSpec("x", FLOAT, ("batch", "n")),)
    row = np.zeros((1, DEFAULT_BATCH_BYTES // 4 // 3), np.float32)  # three of these fit
    assert [s[0] for s in shapes(open_data([{"x": row}] * 4, wide))] == [3, 1]


def test_a_sample_larger_than_the_limit_still_comes() -> None:
    wide = (TensorSpec("x", np.dtype(np.uint8), ("batch", "n")),)
    big = np.zeros((1, DEFAULT_BATCH_BYTES + 1), np.uint8)
    assert [s[0] for s in shapes(open_data([{"x": big}] * 2, wide))] == [1, 1]


def test_a_fixed_batch_overrules_the_size() -> None:
    assert shapes(open_data({"x": rows(8)}, FIXED), 1) == [(4, 3), (4, 3)]
    assert shapes(open_data({"x": rows(8)}, FIXED), 8) == [(4, 3), (4, 3)]


def test_ragged_samples_do_not_join() -> None:
    spec = (TensorSpec("x", FLOAT, ("batch", "n")),)
    feeds = [{"x": np.zeros((1, n), np.float32)} for n in (2, 2, 3, 2)]
    assert shapes(open_data(feeds, spec), 8) == [(2, 2), (1, 3), (1, 2)]


def test_samples_of_several_rows_stay_alone() -> None:
    feeds = [{"x": rows(2)}, {"x": rows(2)}, {"x": rows(1)}]
    assert shapes(open_data(feeds, FREE), 8) == [(2, 3), (2, 3), (1, 3)]


@pytest.mark.parametrize(
    "other",
    [
        TensorSpec("y", FLOAT, ("boxes", 3)),  # rows of another kind
        TensorSpec("y", FLOAT, (1, 3)),
    ],
)
def test_inputs_with_different_first_dimensions_do_not_join(other: TensorSpec) -> None:
    feed = {"x": rows(1), "y": rows(1)}
    assert shapes(open_data([feed, feed], (*FREE, other)), 8) == [(1, 3), (1, 3)]


def test_scalars_and_unknown_ranks_do_not_join() -> None:
    scalar = TensorSpec("y", FLOAT, ())
    assert shapes(open_data([{"x": rows(1), "y": 0.5}] * 2, (*FREE, scalar))) == [(1, 3), (1, 3)]
    assert shapes(open_data([{"x": rows(1)}] * 2, [TensorSpec("x", FLOAT, None)])) == [(1, 3), (1, 3)]


def test_an_unknown_first_dimension_joins_with_a_named_one() -> None:
    inputs = (*FREE, TensorSpec("y", FLOAT, (None, 3)))
    feed = {"x": rows(1), "y": rows(1)}
    assert shapes(open_data([feed, feed], inputs), 8) == [(2, 3)]


def test_only_the_samples_of_a_batch_are_read() -> None:
    read: list[int] = []

    class Lazy:
        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> dict[str, np.ndarray]:
            read.append(index)
            return {"x": rows(1)}

    batches = open_data(Lazy(), FREE).batches(2)  # type: ignore[arg-type]
    read.clear()
    next(batches)
    assert set(read) == {0, 1, 2}  # the third is looked at to see whether it joins


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_of_no_samples_is_refused(size: int) -> None:
    with pytest.raises(DataError, match=f"batch of {size} samples"):
        open_data({"x": rows(2)}, FREE).batches(size)


@pytest.mark.parametrize(("total", "calibration"), [(10, 3), (10, 8), (7, 7), (2, 1), (100, 50), (1, 1)])
def test_a_split_has_no_overlap_and_loses_nothing(total: int, calibration: int) -> None:
    first, second = open_data({"x": rows(total)}, FREE).split(calibration)
    assert len(first) == calibration
    assert sorted(seen(first) + seen(second)) == list(range(total))
    assert seen(first) == sorted(seen(first))


@pytest.mark.parametrize("calibration", [25, 50, 75])
@pytest.mark.parametrize("order", ["sorted", "in turns"])
def test_both_sides_of_a_split_see_every_class(calibration: int, order: str) -> None:
    data = open_data({"x": rows(100)}, FREE)
    for side in data.split(calibration):
        classes = {row // 10 if order == "sorted" else row % 5 for row in seen(side)}
        assert classes == set(range(10 if order == "sorted" else 5))


def test_a_split_is_always_the_same_and_can_be_split() -> None:
    data = open_data({"x": rows(20)}, FREE)
    assert seen(data.split(5)[0]) == seen(data.split(5)[0])
    first, second = data.split(10)[1].split(5)
    assert not set(seen(first)) & set(seen(second))
    assert set(seen(first)) | set(seen(second)) == set(seen(data.split(10)[1]))


@pytest.mark.parametrize("calibration", [0, -1, 4])
def test_a_split_of_too_many_or_none_is_refused(calibration: int) -> None:
    with pytest.raises(DataError, match=f"{calibration} cannot be calibrated with. Ask for 1 to 3"):
        open_data({"x": rows(3)}, FREE).split(calibration)


def test_take_is_a_slice() -> None:
    data = open_data({"x": rows(10)}, FREE).take(slice(2, 8, 2))
    assert seen(data) == [2, 4, 6]
    assert seen(data.take(slice(1, None))) == [4, 6]
    empty = data.take(slice(0))
    assert len(empty) == 0
    assert list(empty.batches()) == []
    assert empty.labels is None


def test_labels_follow_the_samples() -> None:
    data = open_data({"x": rows(10), "labels": np.arange(10) * 7}, FREE)
    assert data.labels is not None
    np.testing.assert_array_equal(data.labels, np.arange(10) * 7)
    for side in data.split(3):
        assert side.labels is not None
        assert side.labels.tolist() == [7 * row for row in seen(side)]


def test_descriptions_count_the_samples() -> None:
    data = open_data({"x": rows(10)}, FREE)
    assert data.description == "the mapping of arrays, 10 samples"
    assert data.take(slice(3)).description == "the mapping of arrays, 3 of 10 samples"
    assert open_data([{"x": rows(1)}], FREE).description == "the data, 1 sample"
    assert not data.is_random


def test_data_is_opened_again_for_another_model() -> None:
    data = open_data({"x": rows(3)}, FREE).take(slice(2))
    double = (TensorSpec("x", np.dtype(np.float64), ("n", 3)),)
    again = open_data(data, double)
    assert len(again) == 2
    assert next(again.batches())["x"].dtype == np.float64
    with pytest.raises(DataError, match=r"'x' is missing|input 'y' is missing"):
        open_data(data, [TensorSpec("y", FLOAT, ("n", 3))])


def test_a_model_without_inputs_takes_no_data() -> None:
    with pytest.raises(DataError, match="no inputs"):
        open_data({}, ())


def no_feeds() -> Iterator[dict[str, np.ndarray]]:
    yield from ()


@pytest.mark.parametrize("source", [[], no_feeds(), {"x": rows(0)}])
def test_no_samples_are_refused(source: list[dict[str, np.ndarray]]) -> None:
    with pytest.raises(DataError, match=r"holds no samples.*x: float32\[batch, 3\]"):
        open_data(source, FREE)


def test_fewer_samples_than_the_fixed_batch_are_refused() -> None:
    with pytest.raises(DataError, match=r"last 3 left out: the model takes batches of 4.*holds no samples"):
        open_data({"x": rows(3)}, FIXED)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("nowhere.npz", "'nowhere.npz' does not exist. Known are FILE.npz, FOLDER, images:FOLDER"),
        ("imagse:photos", "there is no kind 'imagse'. Known are"),
        ("C:nowhere.npz", "'C:nowhere.npz' does not exist"),
        ("notes.csv", "'notes.csv' is of no known kind"),
        ("val.npz?limit=2", "'val.npz\\?limit=2' does not exist"),
    ],
)
def test_unknown_sources_are_refused(words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.csv").write_text("1,2,3")
    np.savez("val.npz", x=rows(2))
    with pytest.raises(DataError, match=message):
        open_data(words, FREE)


def test_a_path_is_never_a_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="'random' does not exist"):
        open_data(Path("random"), FREE)


def test_a_file_with_a_colon_in_its_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("val:2.npz", x=rows(2))
    assert len(open_data("val:2.npz", FREE)) == 2


MASK = np.array([[1, 1, 0]])


@pytest.mark.parametrize(
    ("feed", "expected"),
    [
        ({"attention_mask": MASK}, True),
        ({"attention_mask": MASK.astype(bool)}, True),
        ({"attention_mask": MASK, "global_mask": 1 - MASK, "token_mask": 1 - MASK}, True),
        ({"input_mask": MASK}, True),
        ({"encoder_mask": MASK, "decoder_mask": MASK}, False),  # which one?
        ({"attention_mask": MASK.astype(np.float32)}, False),  # added to scores, 0 means "counts"
        ({"attention_mask": MASK[np.newaxis]}, False),
        ({"key_padding_mask": MASK}, False),
        ({"bool_masked_pos": MASK.astype(bool)}, False),
        ({"input_ids": MASK}, False),
    ],
)
def test_the_mask_of_a_feed(feed: dict[str, np.ndarray], expected: bool) -> None:
    mask = mask_of(feed)
    if expected:
        assert mask is not None
        assert mask.dtype == bool
        assert mask.tolist() == [[True, True, False]]
    else:
        assert mask is None
