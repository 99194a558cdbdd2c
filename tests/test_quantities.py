"""Sizes and shares as people write them. (Sizes are tested with `--memory`, too.)"""

from __future__ import annotations

import pytest

from onnxq.quantities import bytes_of, plural, share_of


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("0.5%", 0.005),
        (" 0.5 % ", 0.005),
        ("0.005", 0.005),
        (".5%", 0.005),
        ("1e-3", 0.001),
        ("0", 0.0),
        ("0%", 0.0),
        ("100%", 1.0),
        ("250%", 2.5),
    ],
)
def test_shares(text: str, share: float) -> None:
    assert share_of(text) == share


@pytest.mark.parametrize("text", ["", "%", "lots", "-1%", "nan", "inf", "inf%", "1%%", "1/2", "0,5%"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no share\. Write it like 0\.5% or 0\.005\."):
        share_of(text)


def test_a_number_that_may_mean_a_percentage_or_a_share() -> None:
    with pytest.raises(ValueError, match=r"'1' may mean 1 % or 100 %"):
        share_of("1")
    with pytest.raises(ValueError, match=r"'5\.0' may mean 5 % or 500 %"):
        share_of("5.0")


@pytest.mark.parametrize("text", ["", "0", "MB", "-1MB", "5 %", "1e6", "5XB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        bytes_of(text)


@pytest.mark.parametrize(("count", "words"), [(0, "0 nodes"), (1, "1 node"), (2, "2 nodes"), (12345, "12,345 nodes")])
def test_one_is_no_plural(count: int, words: str) -> None:
    assert plural(count, "node") == words
