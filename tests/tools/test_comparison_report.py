"""Who is ahead, and what a comparison says about rows without figures."""

from __future__ import annotations

import json
import math

import pytest
from comparison_report import Row, Table, ToolRun, document, markdown, verdicts


def row(peer: str, milliseconds: float, sqnr: float, main: float) -> Row:
    scores, times = {"main": main, "SQNR dB": sqnr}, {"b1": milliseconds}
    return Row(peer, ToolRun(1.0, 1.0, 1.0), "", scores, times, {"b1": 10 / milliseconds}, 0.25)


def failed(peer: str) -> Row:
    return Row(peer, ToolRun(1.0, 1.0, 1.0, error="Boom"), "Boom")


FLOAT = row("float", 10.0, math.inf, 80.0)
OWN = row("onnxq:auto", 4.0, 30.0, 75.0)


def table(*rows: Row, main: str = "main") -> Table:
    return Table("model", [FLOAT, *rows], main, (2, 3))


@pytest.mark.parametrize(
    ("sqnr", "main", "by_sqnr", "by_main"),
    [(31.0, 70.0, True, False), (29.0, 76.0, False, True), (30.0, 75.0, True, True), (29.0, 74.0, False, False)],
)
def test_ahead_is_at_least_as_accurate_and_faster(sqnr: float, main: float, by_sqnr: bool, by_main: bool) -> None:
    said = verdicts(table(OWN, row("ort:minmax", 3.0, sqnr, main)))
    assert [("ort:minmax" in sentence, "1.33x" in sentence) for sentence in said] == [(by_sqnr,) * 2, (by_main,) * 2]


@pytest.mark.parametrize("milliseconds", [4.0, 5.0])
def test_not_ahead_where_it_is_no_faster(milliseconds: float) -> None:
    assert not any(
        "ort:minmax" in sentence for sentence in verdicts(table(OWN, row("ort:minmax", milliseconds, 40, 80)))
    )


def test_only_variants_of_ort_count() -> None:
    rival = row("onnxq:static-int8", 3.0, 40.0, 80.0)
    said = verdicts(table(OWN, rival, row("ort:minmax", 9.0, 40.0, 80.0)))
    assert len(said) == 4
    assert all(sentence.startswith("By ") and "no variant of ort" in sentence for sentence in said)
    assert verdicts(table(OWN, rival)) == []


def test_less_perplexity_is_better() -> None:
    def by_perplexity(value: float) -> str:
        rows = [row(peer, ms, 30.0, 0.0) for peer, ms in (("onnxq:auto", 4.0), ("ort:minmax", 3.0))]
        rows = [Row(r.peer, r.run, "", {"perplexity": p, "SQNR dB": 0.0}, r.milliseconds, r.speedup, r.size)
                for r, p in zip(rows, (5.0, value), strict=True)]  # fmt: skip
        return verdicts(table(*rows, main="perplexity"))[1]

    assert "ort:minmax (4.90 against 5.00, 1.33x as fast)" in by_perplexity(4.9)
    assert "ort:minmax" not in by_perplexity(5.1)


def test_nan_is_worse_than_any_figure() -> None:
    broken = row("ort:minmax", 3.0, math.nan, math.nan)
    assert not any("ort:minmax" in sentence for sentence in verdicts(table(OWN, broken)))
    worse = row("onnxq:auto", 4.0, math.nan, math.nan)
    assert all("ort:minmax" in sentence for sentence in verdicts(table(worse, row("ort:minmax", 3.0, 1.0, 1.0))))


def test_a_failure_has_no_figures_and_is_nobody_s_rival() -> None:
    assert verdicts(table(failed("onnxq:auto"), OWN, failed("ort:minmax"))) == []
    said = verdicts(table(failed("onnxq:auto"), row("ort:minmax", 3.0, 40.0, 80.0)))
    assert said == ["onnxq:auto has no figures to compare."]


def test_markdown_says_who_is_ahead_what_was_decided_and_what_failed() -> None:
    alone = Row(
        "onnxq:auto", ToolRun(1, 1, 1, note="left alone: No gain."), "", FLOAT.scores, FLOAT.milliseconds, FLOAT.speedup
    )
    text = markdown(table(alone, row("ort:minmax", 3.0, 30.0, 75.0), failed("ort:entropy")))
    assert text.startswith("### model: 2 items for the calibration, 3 others for the test\n")
    assert "| ort:minmax | 75.00 | 30.00 | 3.00 **3.33x** | 1.0 | 1.0 | 1 | 0.250 |" in text
    assert "| ort:entropy | failed | failed |  | 1.0 | 1.0 | 1 |  |" in text
    assert "- By SQNR dB at b1, no variant of ort is at least as accurate as onnxq:auto and faster." in text
    assert "- onnxq:auto: left alone: No gain." in text
    assert "- ort:entropy: `Boom`" in text


def test_json_holds_no_infinity() -> None:
    found = document([table(OWN, row("ort:minmax", 3.0, 31.0, 70.0))])
    written = json.loads(json.dumps(found, allow_nan=False))
    assert written["models"]["model"][0]["scores"] == {"main": 80.0, "SQNR dB": None}
    assert written["items"] == {"model": {"calibration": 2, "test": 3}}
    assert len(written["verdicts"]["model"]) == 2
