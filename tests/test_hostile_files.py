"""Damaged and hostile files: one clear line each, exit code 2, nothing written, little memory; odd ones work.

`python tools/hostile_files.py` lists them with what each of them is told: models that are no models or are cut off;
weights outside the folder, behind links and devices, too short, too long; sizes that no memory holds; graphs that are
deep, circular or doubled; names that a terminal would obey; pickles, bombs and locks as data; plans and recipes of
wrong types, huge numbers and deep nesting.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("Windows has no links, pipes and limits like these.", allow_module_level=True)

sys.path.append(str(Path(__file__).parents[1] / "tools"))

from hostile_files import ALL, LIMITS, Met, meet
from hostile_models import Hostile
from limited import Limited


@pytest.fixture(scope="module")
def process() -> Iterator[Limited[Met]]:
    """A process that meets them; a new one takes its place where it dies."""
    with Limited(meet, LIMITS) as process:
        yield process


@pytest.mark.parametrize("number", range(len(ALL)), ids=[hostile.name for hostile in ALL])
def test_is_met(process: Limited[Met], number: int) -> None:
    assert list(process(number).problems(ALL[number])) == []


def test_there_are_many() -> None:
    assert len({hostile.name for hostile in ALL}) == len(ALL)
    assert sum(hostile.says is not None for hostile in ALL) >= 60


@pytest.mark.parametrize(
    ("met", "words"),
    [
        (Met(0, "", "", 0.0, 0.0, ()), "exit code 0"),
        (Met(2, "", "onnxq: error: Else.\n", 0.0, 0.0, ()), "does not say"),
        (Met(2, "", "onnxq: error: That.\nTraceback\n", 0.0, 0.0, ()), "traceback"),
        (Met(2, "", "onnxq: error: That.\x1b\n", 0.0, 0.0, ()), "control characters"),
        (Met(2, "", "onnxq: error: That.\n", 0.0, 9e9, ()), "MiB"),
        (Met(2, "", "onnxq: error: That.\n", 0.0, 0.0, ("half",)), "left behind: half"),
    ],
)
def test_what_is_wrong_is_seen(met: Met, words: str) -> None:
    hostile = Hostile("it", lambda _: [], "That")
    assert words in " ".join(met.problems(hostile))
    assert not list(Met(2, "", "onnxq: error: That.\n", 0.0, 0.0, ()).problems(hostile))
