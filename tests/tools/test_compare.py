"""Peers as they are written on the command line, and what their processes leave behind."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import compare
import numpy as np
import ort_quantizer
import pytest
import zoo
from comparison_report import ToolRun

RUN = ToolRun(1.0, 1.0, 1.0, error="the last line")


def words(peer: str) -> list[str]:
    return compare.Peer.parse(peer).command(Path("in"), Path("data"), Path("out"), 2)


def test_auto_is_onnxq_with_no_recipe() -> None:
    command = ["-m", "onnxq", "optimize", "in", "-o", "out", "--data", "data", "--threads", "2", "--json", "--quiet"]
    assert words("onnxq:auto")[1:] == command


def test_a_recipe_and_options_reach_onnxq() -> None:
    command = words("onnxq:static-int8+--range=mse")
    assert command[command.index("--recipe") + 1] == "static-int8"
    assert command[-1] == "--range=mse"
    assert "--data" not in words("onnxq:dynamic-int8")


@pytest.mark.parametrize("text", ["ort:median", "ort:minmax+--range=mse", "onnxq:", "minmax", "torch:minmax"])
def test_no_such_peer(text: str) -> None:
    with pytest.raises(compare.PeerError, match="No peer"):
        compare.Peer.parse(text)


def test_a_variant_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_quantizer, "find_spec", lambda module: None)
    with pytest.raises(compare.PeerError, match="pip install sympy onnx-ir"):
        compare.Peer.parse("ort:nbits4")
    with pytest.raises(compare.PeerError, match=r"pip install sympy\."):
        compare.Peer.parse("ort:minmax")


def test_rejected_is_an_error_left_alone_a_note() -> None:
    rejected = compare._decision(RUN, '{"status": "rejected", "reason": "Too slow."}')
    assert rejected == replace(RUN, error="rejected: Too slow.")
    alone = compare._decision(replace(RUN, error=""), '{"status": "left alone", "reason": "No layers."}')
    assert alone == replace(RUN, error="", note="left alone: No layers.")


@pytest.mark.parametrize("printed", ["", "Traceback", '{"error": {"message": "no"}}', '{"status": "optimized"}'])
def test_anything_else_stays_as_it_was(printed: str) -> None:
    assert compare._decision(RUN, printed) == RUN


def test_each_run_has_a_cache_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXQ_CACHE", "known")
    code = "import os; print(os.environ['ONNXQ_CACHE'], os.getcwd())"
    caches = []
    for _ in range(2):
        run, printed = compare._measure([sys.executable, "-c", code])
        cache, folder = map(Path, printed.split())
        assert not run.error
        assert cache.parent == folder
        caches.append(cache)
    assert caches[0] != caches[1]


def test_a_crash_is_its_last_line() -> None:
    run, printed = compare._measure([sys.executable, "-c", "print('so far'); raise ValueError('no\\n')"])
    assert (run.error, printed) == ("ValueError: no", "so far\n")


def test_the_standard_error_is_that_of_the_change() -> None:
    """3 of 4 unchanged, one right before and wrong now: changes 0, 0, 0, -100; mean -25, deviation 50, root of 4: 2."""
    reference = np.eye(4)
    output = reference[[0, 1, 2, 0]]
    scores = zoo.judge_classes(reference, output, zoo.Items({}, {"labels": np.arange(4)}))
    assert {name: scores[name] for name in ("top-1 %", "delta pp", "std. error pp")} == pytest.approx(
        {"top-1 %": 75, "delta pp": -25, "std. error pp": 25}
    )
