"""What a person reads of a proof from another provider than the CPU's."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from onnxq.tables import proofs
from tests.test_contract import GOOD, proof


def shown(**changes: Any) -> str:
    """The table of a proof with these changes, with single spaces."""
    paper = io.StringIO()
    Console(file=paper, width=120).print(proofs(Path("a.onnx"), [proof(GOOD).model_copy(update=changes)], None, []))
    return re.sub(r"\s+", " ", paper.getvalue())


@pytest.mark.parametrize(
    ("taken", "copies", "words"),
    [
        ({"TopK": 2, "Range": 1}, 3, "On the CPU 2 TopK, 1 Range; 3 copies between it and the other device"),
        ({}, 1, "On the CPU no operator; 1 copy between it and the other device"),
    ],
)
def test_what_the_cpu_took_is_shown(taken: dict[str, int], copies: int, words: str) -> None:
    assert words in shown(provider="CUDAExecutionProvider", on_cpu=taken, copies=copies)


def test_nothing_is_said_of_the_cpu_alone() -> None:
    text = shown()
    assert "On the CPU" not in text
    assert "CPUExecutionProvider" in text
