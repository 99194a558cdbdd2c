"""Samples on their way into training: in an order of chance that comes again, blended, with labels and masks."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest

from onnxq.calibration.data import Data, open_data
from onnxq.interface import TensorSpec

torch = pytest.importorskip("torch", reason="training needs PyTorch")

from onnxq.training.batches import (  # noqa: E402
    Batch,
    batches,
    blended,
    channels_last,
    endless,
    may_blend,
    on_device,
    shuffled,
)

CPU = torch.device("cpu")
PICTURES = (TensorSpec("x", np.dtype(np.float32), ("batch", 2)),)
TOKENS = tuple(TensorSpec(name, np.dtype(np.int64), ("batch", "length")) for name in ("input_ids", "attention_mask"))


def rows(count: int = 10, **more: Any) -> Data:
    """Sample i holds i and 10 i."""
    x = np.arange(count, dtype=np.float32)[:, None] * np.array([1, 10], np.float32)
    return open_data({"x": x, **more}, PICTURES)


def generator(seed: int = 0) -> Any:
    return torch.Generator().manual_seed(seed)


def seen(found: list[Batch]) -> list[int]:
    return [int(value) for batch in found for value in batch.feeds["x"][:, 0]]


def test_all_samples_in_their_order() -> None:
    found = list(batches(rows(), 4, CPU))
    assert [len(batch.feeds["x"]) for batch in found] == [4, 4, 2]
    assert seen(found) == list(range(10))
    assert all(batch.labels is None and batch.mask is None for batch in found)


def test_labels_go_with_their_samples() -> None:
    data = shuffled(rows(labels=np.arange(10) * 7), generator())
    found = list(batches(data, 4, CPU))
    labels = [int(label) for batch in found if batch.labels is not None for label in batch.labels]
    assert labels == [7 * number for number in seen(found)]
    assert labels != sorted(labels)


def test_a_mask_tells_what_counts() -> None:
    feeds = [
        {"input_ids": np.ones((1, n), np.int64), "attention_mask": np.array([[1] * (n - 1) + [0]])} for n in (3, 3)
    ]
    (batch,) = batches(open_data(feeds, TOKENS), 2, CPU)
    assert batch.mask is not None
    assert batch.mask.dtype == torch.bool
    np.testing.assert_array_equal(batch.mask.numpy(), [[True, True, False]] * 2)


def test_the_order_of_chance_comes_again() -> None:
    one, two, other = (seen(list(batches(shuffled(rows(), generator(seed)), 3, CPU))) for seed in (5, 5, 6))
    assert one == two
    assert one != other
    assert sorted(one) == sorted(other) == list(range(10))
    assert one != list(range(10))


def test_every_sample_is_seen_before_one_comes_again() -> None:
    found = seen(list(islice(endless(rows(), 4, CPU, generator()), 9)))
    rounds = [found[start : start + 10] for start in (0, 10, 20)]
    assert all(sorted(part) == list(range(10)) for part in rounds)
    assert rounds[0] != rounds[1] != rounds[2]


def test_blended_samples_lie_between_two() -> None:
    (batch,) = batches(rows(6), 6, CPU)
    made = blended(batch, generator(3)).feeds["x"].numpy()
    np.testing.assert_allclose(made[:, 1], 10 * made[:, 0], rtol=1e-5)
    assert (made[:, 0] >= 0).all()
    assert (made[:, 0] <= 5).all()
    assert np.abs(made[:, 0] - np.rint(made[:, 0])).max() > 0.1
    np.testing.assert_array_equal(made, blended(batch, generator(3)).feeds["x"].numpy())
    assert not np.array_equal(made, blended(batch, generator(4)).feeds["x"].numpy())


def test_shares_of_two_samples_add_up() -> None:
    alike = Batch({"x": torch.full((6, 2), 3.0)}, None, None)
    np.testing.assert_allclose(blended(alike, generator(2)).feeds["x"].numpy(), 3, rtol=1e-6)


def test_all_inputs_of_a_sample_are_blended_alike() -> None:
    (batch,) = batches(rows(6), 6, CPU)
    twice = Batch({"x": batch.feeds["x"], "z": batch.feeds["x"][:, None, :] * 2}, None, None)
    made = blended(twice, generator(1)).feeds
    np.testing.assert_allclose(made["z"][:, 0], 2 * made["x"], rtol=1e-5)


def test_what_may_be_blended() -> None:
    assert may_blend(rows())
    assert not may_blend(rows(labels=np.arange(10)))
    tokens = {spec.name: np.ones((4, 3), np.int64) for spec in TOKENS}
    assert not may_blend(open_data(tokens, TOKENS))


def test_pictures_lie_with_their_channels_last() -> None:
    picture, row = np.ones((2, 3, 4, 5), np.float32), np.ones((2, 3, 4), np.float32)
    assert on_device(picture, CPU).is_contiguous(memory_format=torch.channels_last)
    assert on_device(row, CPU).is_contiguous()
    whole = torch.ones(2, 3, 4, 5, dtype=torch.int64)
    assert channels_last(whole) is whole


def test_a_tensor_is_a_copy() -> None:
    """Feeds may be memory that must not be written to."""
    array = np.ones(3, np.float32)
    array.flags.writeable = False
    on_device(array, CPU).add_(1)
    assert array.tolist() == [1, 1, 1]
