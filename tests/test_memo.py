"""What was put is found again by what it depends on, in later runs too, and nothing can break that."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from onnxq.memo import JSON, Memo, canonical, default_folder

KEY: dict[str, JSON] = {"shape": [1, 2], "machine": "a"}
KEYLESS, VALUELESS = '{"value": 1}', '{"key": {"shape": [1, 2], "machine": "a"}}'
BROKEN = ["", "no json", "[]", "5", KEYLESS, VALUELESS, "\udcff", "[" * 100_000]


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


@pytest.mark.parametrize("value", [1.5, "text", [1, [2.5, None]], {"a": {"b": True}}, 0, [], False])
def test_a_value_comes_back(tmp_path: Path, value: JSON) -> None:
    for memo in (Memo(tmp_path), Memo(None)):
        memo.put("cost", KEY, value)
        assert memo.get("cost", KEY) == value
    assert Memo(tmp_path).get("cost", KEY) == value


def test_what_is_unknown_is_none(tmp_path: Path) -> None:
    memo = Memo(tmp_path / "not yet")
    memo.put("cost", KEY, 1)
    assert memo.get("cost", {**KEY, "machine": "b"}) is None
    assert memo.get("noise", KEY) is None
    assert Memo(None).get("cost", KEY) is None


def test_the_order_of_a_key_does_not_matter(tmp_path: Path) -> None:
    Memo(tmp_path).put("cost", {"a": 1, "b": {"c": 2, "d": 3}}, "found")
    assert Memo(tmp_path).get("cost", {"b": {"d": 3, "c": 2}, "a": 1}) == "found"


def test_what_was_remembered_first_counts_for_all(tmp_path: Path) -> None:
    """Two processes that measure the same at once go on with the same value."""
    one, other = Memo(tmp_path), Memo(tmp_path)
    assert one.get("cost", KEY) is other.get("cost", KEY) is None
    assert one.put("cost", KEY, 1) == 1
    assert other.put("cost", KEY, 2) == 1
    assert one.get("cost", KEY) == other.get("cost", KEY) == Memo(tmp_path).get("cost", KEY) == 1
    assert len(list(tmp_path.iterdir())) == 1, "nothing unfinished is left behind"


def test_a_value_that_its_owner_changes_later_stays(tmp_path: Path) -> None:
    memo = Memo(None)
    value: list[JSON] = [1]
    memo.put("cost", KEY, value)
    value.append(2)
    found = memo.get("cost", KEY)
    assert isinstance(found, list)
    found.append(3)
    assert memo.get("cost", KEY) == [1]


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_file_is_absent_and_replaced(tmp_path: Path, content: str) -> None:
    Memo(tmp_path).put("cost", KEY, 1)
    only_file(tmp_path).write_bytes(content.encode(errors="surrogateescape"))
    memo = Memo(tmp_path)
    assert memo.get("cost", KEY) is None
    memo.put("cost", KEY, 2)
    assert Memo(tmp_path).get("cost", KEY) == 2


def test_a_file_under_the_name_of_another_key_is_absent(tmp_path: Path) -> None:
    Memo(tmp_path).put("cost", KEY, 1)
    first = only_file(tmp_path)
    content = first.read_text()
    first.unlink()
    Memo(tmp_path).put("cost", {**KEY, "machine": "b"}, 2)
    only_file(tmp_path).write_text(content)
    assert Memo(tmp_path).get("cost", {**KEY, "machine": "b"}) is None


def test_a_person_can_read_the_file(tmp_path: Path) -> None:
    Memo(tmp_path).put("cost", KEY, 1)
    path = only_file(tmp_path)
    assert path.name.startswith("cost-")
    assert path.suffix == ".json"
    assert json.loads(path.read_text()) == {"key": KEY, "value": 1}


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    memo = Memo(tmp_path / "file" / "cache")
    memo.put("cost", KEY, 1)
    assert memo.get("cost", KEY) == 1


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memo = Memo(tmp_path)

    def interrupted(source: str, target: object) -> None:
        assert json.loads(Path(source).read_text())["value"] == 1, "all of it is written before it gets its name"
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        memo.put("cost", KEY, 1)
    assert Memo(tmp_path).get("cost", KEY) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"ONNXQ_CACHE": "/own", "XDG_CACHE_HOME": "/xdg", "HOME": "/home/me"}, "/own"),
        ({"ONNXQ_CACHE": "", "XDG_CACHE_HOME": "/xdg", "HOME": "/home/me"}, "/xdg/onnxq"),
        ({"HOME": "/home/me"}, "/home/me/.cache/onnxq"),
    ],
)
def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str) -> None:
    for name in ("ONNXQ_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert default_folder() == Path(expected)


def test_without_a_home_there_is_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("ONNXQ_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert default_folder() is None


def test_equal_content_is_equal_text() -> None:
    assert canonical({"b": [1, 2], "a": None}) == '{"a":null,"b":[1,2]}'
