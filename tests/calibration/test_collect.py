"""Statistics through a session: grouping, splitting, padding and odd values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnxq.calibration.collect import (
    Seen,
    Statistics,
    collect,
    digest,
    load_statistics,
    non_finite,
    save_statistics,
    unmasked,
)
from onnxq.calibration.data import open_data
from onnxq.errors import DataError
from onnxq.graph import Graph
from onnxq.runtime import Session
from tests.onnx_text import Array, read

NAMES = ["x", "a", "b", "c"]


def model() -> Graph:
    return read(
        "(float[n,s,4] x) => (float[n,s,4] y) { a = Mul(x, w) b = Relu(a) c = Sub(b, b) y = Add(c, x) }", {"w": W}
    )


W = np.array([1.0, -2.0, 0.5, 3.0], np.float32)
X = np.random.default_rng(0).normal(size=(12, 5, 4)).astype(np.float32)


def seen(feeds: object, *, memory: int | None = None, graph: Graph | None = None) -> Statistics:
    graph = graph or model()
    return collect(graph, NAMES, open_data(feeds, graph.interface().inputs), memory=memory)  # type: ignore[arg-type]


def same(one: Statistics, other: Statistics, parts: tuple[str, ...] = ("histogram", "channels", "sums")) -> bool:
    pairs = [(getattr(one[n], p).to_arrays(), getattr(other[n], p).to_arrays()) for n in NAMES for p in parts]
    return one.keys() == other.keys() and all(
        a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a) for a, b in pairs
    )


def test_extremes_are_those_of_the_tensors() -> None:
    found = seen({"x": X})
    assert (found["x"].histogram.low, found["x"].histogram.high) == (X.min(), X.max())
    assert (found["a"].histogram.low, found["a"].histogram.high) == ((X * W).min(), (X * W).max())
    assert found["b"].histogram.low == 0.0
    np.testing.assert_array_equal(found["a"].channels.high, (X * W).max(axis=(0, 1)))


def test_any_order_and_any_split_give_the_same_bits() -> None:
    whole = seen({"x": X})
    assert same(whole, seen([{"x": part} for part in np.array_split(X, 5)]))
    assert same(whole, seen({"x": X[::-1]}))


def test_groups_under_a_memory_limit_give_the_same_bits() -> None:
    assert same(seen({"x": X}), seen({"x": X}, memory=1), ("histogram", "channels", "sums", "average"))


def test_a_memory_limit_holds_few_tensors_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[int] = []

    class Watched(Session):
        def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
            fetched.append(len(outputs or ()))
            return super().run(feeds, outputs)

    seen({"x": X}, memory=1)
    monkeypatch.setattr("onnxq.calibration.collect.Session", Watched)
    monkeypatch.setattr("onnxq.calibration.collect._sizes", lambda graph, names, feeds: dict.fromkeys(names, 10))
    seen({"x": X}, memory=20)
    assert sorted(set(fetched)) == [1, 2], "three inner tensors of 10 bytes: two, then one"


def test_ragged_batches_are_fine() -> None:
    found = seen([{"x": X[:4, :2]}, {"x": X[4:9]}, {"x": X[:1, :1]}])
    assert found["x"].histogram.count == 4 * 2 * 4 + 5 * 5 * 4 + 4


def test_a_tensor_that_never_varies() -> None:
    found = seen({"x": X})["c"].histogram
    assert (found.low, found.high, found.zeros) == (0.0, 0.0, X.size)


def test_saved_parts_join_to_the_whole(tmp_path: Path) -> None:
    for name, part in (("one", X[:7]), ("two", X[7:])):
        save_statistics(seen({"x": part}), tmp_path / f"{name}.npz")
    joined = load_statistics([tmp_path / "two.npz", tmp_path / "one.npz"])
    assert same(seen({"x": X}), joined)


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_statistics(seen({"x": X}), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off", None])
def test_statistics_that_are_none(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "s.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"s\.npz.*onnxq calibrate"):
        load_statistics([path])


def test_what_is_not_finite_is_named_by_its_tensor() -> None:
    graph = read("(float[n] x) => (float[n] y) { a = Log(x) b = Relu(x) c = Abs(x) y = Add(a, b) }")
    found = seen([{"x": np.array([-1.0, 0.0, 1.0], np.float32)}], graph=graph)
    assert non_finite(found) == {"a": 2}
    assert non_finite(found, without={"a"}) == {}
    with pytest.raises(DataError, match="Tensor 'a' is NaN or infinite for all of the data"):
        seen([{"x": np.array([-1.0, -2.0], np.float32)}], graph=graph)


def test_equal_statistics_have_one_digest(tmp_path: Path) -> None:
    found = seen({"x": X})
    assert digest(found) == digest(seen({"x": X})) == digest(dict(reversed(found.items())))
    save_statistics(found, tmp_path / "s.npz")
    assert digest(load_statistics([tmp_path / "s.npz"])) == digest(found)


def test_anything_else_has_another_digest() -> None:
    found = seen({"x": X})
    one = X.copy()
    one[3, 2, 1] = np.nextafter(one[3, 2, 1], np.float32(9))
    twice = {name: own + own for name, own in found.items()}
    others = [seen({"x": one}), seen({"x": X[:-1]}), twice, {name: found[name] for name in NAMES[1:]}, {}]
    others.append({**found, "x": found["a"], "a": found["x"]})
    assert len({digest(other) for other in (found, *others)}) == 1 + len(others)


def test_every_part_of_a_statistic_is_in_the_digest() -> None:
    """Each one as if another batch had been seen there alone."""
    plain, more = Seen.of(X), Seen.of(X) + Seen.of(2 * X)
    parts = ("histogram", "average", "channels", "sums")
    changed = [replace(plain, **{part: getattr(more, part)}) for part in parts]
    assert len({digest({"x": own}) for own in (plain, *changed)}) == 1 + len(parts)
    assert digest({"x": plain}) != digest({"z": plain})


MASK = np.array([[1, 1, 0], [1, 0, 0]])


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (np.arange(24.0).reshape(2, 3, 4), 3 * 4),
        (np.arange(60.0).reshape(2, 5, 3, 2), 3 * 5 * 2),
        (np.arange(12.0).reshape(6, 2), 3 * 2),
        (np.arange(14.0).reshape(2, 7), 14),
    ],
)
def test_padding_does_not_count_where_its_axes_are_found(value: Array, kept: int) -> None:
    assert unmasked(value, MASK).size == kept
    assert unmasked(value, None) is value
    assert unmasked(value, np.ones_like(MASK)) is value


def test_heads_are_masked_along_the_sequence() -> None:
    value = np.arange(60.0).reshape(2, 5, 3, 2)
    expected = [value[0, :, 0], value[0, :, 1], value[1, :, 0]]
    np.testing.assert_array_equal(unmasked(value, MASK), expected)
