"""Which samples are used when not all are: the laws of `spread`."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from onnxq.calibration.spread import spread


@given(st.data(), st.integers(1, 500))
def test_indices_differ_ascend_and_come_one_from_each_stretch(data: st.DataObject, total: int) -> None:
    count = data.draw(st.integers(0, total))
    indices = spread(count, total)
    assert len(indices) == count
    assert all(
        stretch * total // count <= index < (stretch + 1) * total // count for stretch, index in enumerate(indices)
    )


def test_all_of_them_are_all_of_them() -> None:
    assert spread(5, 5) == [0, 1, 2, 3, 4]
    assert spread(0, 5) == []


def test_no_period_is_followed() -> None:
    """Every tenth of a hundred samples in which ten classes take turns would be of one class."""
    assert len({index % 10 for index in spread(10, 100)}) >= 5
