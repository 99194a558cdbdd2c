"""Sentences, the order of cures, and what a histogram says about a range."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.calibration.collect import Seen
from onnxq.diagnosis.cures import Trial
from onnxq.diagnosis.examination import best_float, by_preference, cure
from onnxq.diagnosis.facts import clipped, outlier
from onnxq.diagnosis.findings import Cure, Finding, Outlier, decibels, sentence
from onnxq.numerics.formats import INT8, UINT8
from onnxq.search.switches import Grid

PLAIN: dict[str, Any] = {"node": "fc", "op": "MatMul", "treatment": "static", "input": "x"}


def finding(**more: Any) -> Finding:
    figures = {"noise": 0.01, "sqnr_db": 20.0, "share": 0.25, "weight_noise": 0.001, "activation_noise": 0.009}
    return Finding.model_validate(PLAIN | figures | more)


def remedy(kind: str, gain: float, *nodes: str) -> Cure:
    return Cure.model_validate(
        {"kind": kind, "gain_db": gain, "sqnr_db": 30.0, "nodes": list(nodes), "sentence": f"Do {kind}."}
    )


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "MatMul 'fc' causes 25 % of the noise (20.0 dB alone), 90 % of it by its input."),
        ({"share": 0.0123}, "causes 1.2 % of the noise"),
        ({"weight_noise": 0.008, "activation_noise": 0.002}, "80 % of it by its weight."),
        ({"weight_noise": None, "activation_noise": None}, "(20.0 dB alone)."),
        ({"noise": 0.0, "sqnr_db": None, "weight_noise": 0.0, "activation_noise": 0.0}, "(no noise alone)."),
        ({"treatment": "between", "weight_noise": 0.0}, "(20.0 dB alone), by what it hands on."),
        (
            {"input_outlier": Outlier(channel=3, times=41.4)},
            "Channel 3 of 'x' reaches 41 times as far as the median one.",
        ),
        ({"input_outlier": Outlier(channel=3, times=np.inf)}, "Channel 3 of 'x' reaches far, most others nowhere."),
        ({"input_range": (-3.4e38, 9.0)}, "'x' reaches to -3.4e+38, a mask: its grid has room for little else."),
        ({"clipped": 0.02}, "2 % of the values of 'x' lie beyond the range."),
        ({"int16_overflow": 0.005}, "Without VNNI, 0.5 % of its outputs overflow 16 bits."),
        ({"rescaled": True}, "Its channels were rescaled"),
        ({"cures": [remedy("range", 3.25)]}, "Do range. That should gain 3.2 dB."),
        ({"cures": [remedy("keep float", np.inf)]}, "Do keep float. That should leave no noise."),
    ],
)
def test_sentences(more: dict[str, Any], words: str) -> None:
    assert words in sentence(finding(**more))


def test_what_is_infinite_comes_back_from_json() -> None:
    most = finding(cures=[remedy("keep float", np.inf)], input_outlier=Outlier(channel=3, times=np.inf))
    assert '"gain_db":null' in most.model_dump_json()
    assert Finding.model_validate_json(most.model_dump_json()) == most


def test_reasons_are_given_for_the_side_that_is_to_blame() -> None:
    channels = {"input_outlier": Outlier(channel=3, times=50), "weight_outlier": Outlier(channel=4, times=60)}
    by_weight = {"weight_noise": 0.009, "activation_noise": 0.001}
    assert "Channel 3" in sentence(finding(**channels))
    assert "Channel 4" not in sentence(finding(**channels))
    assert "Channel 4 of its weight reaches 60 times" in sentence(finding(**channels, **by_weight))
    assert "Channel 3" not in sentence(finding(**channels, **by_weight))
    assert "Channel" not in sentence(finding(**channels, **by_weight, per_channel=True))
    mild = {"input_outlier": Outlier(channel=3, times=3.9), "clipped": 1e-4, "int16_overflow": 1e-5}
    assert sentence(finding(**mild)) == sentence(finding())


def test_the_cheapest_of_the_cures_that_help_most_comes_first() -> None:
    floats, pair = remedy("keep float", 9.0, "a"), remedy("keep float", 10.0, "a", "b")
    wide, ranged, useless = remedy("16 bits", 9.5), remedy("range", 7.5), remedy("balance", 0.01)
    found = by_preference([floats, pair, wide, ranged, useless])
    assert found == [ranged, pair, wide, floats]
    assert by_preference([floats, pair, remedy("range", 6.0)])[0] == floats, "too little, and fewer nodes"
    assert by_preference([useless]) == []
    assert best_float(found) == ["a", "b"]
    assert best_float([ranged]) == []


def test_gains() -> None:
    trial = Trial("range", "Do it.", rule="mse")
    assert cure(trial, 0.1, 0.01).gain_db == pytest.approx(10)
    assert cure(trial, 0.1, 0.01).sqnr_db == pytest.approx(20)
    assert cure(trial, 0.1, 0.0).gain_db == np.inf
    assert cure(trial, 0.0, 0.0).gain_db == 0.0
    assert decibels(0.0) is None


def test_clipped_values_are_counted() -> None:
    seen = Seen.of(np.arange(-100, 100, dtype=np.float32).reshape(2, 100) + np.float32(0.3))
    half = Grid(np.asarray(0.5, np.float32), np.asarray(0, np.uint8), UINT8)
    assert clipped(seen, half) == pytest.approx(0.5, abs=0.01), "below zero"
    whole = Grid(np.asarray(1, np.float32), np.asarray(0, np.int8), INT8)
    assert clipped(seen, whole) == 0.0
    narrow = Grid(np.asarray(0.5, np.float32), np.asarray(0, np.int8), INT8)
    assert clipped(seen, narrow) == pytest.approx(0.36, abs=0.01)
    assert clipped(Seen(), whole) == 0.0


def test_the_channel_that_reaches_farthest() -> None:
    assert outlier(np.array([1.0, 2.0, 30.0, 3.0, 2.0])) == Outlier(channel=2, times=15.0)
    assert outlier(np.array([0.0, 0.0, 1.0])) == Outlier(channel=2, times=np.inf)
    assert outlier(np.asarray(3.0)) is None
    assert outlier(np.array([1.0])) is None
    assert outlier(np.array([1.0, -np.inf])) is None
