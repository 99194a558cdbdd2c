"""Whether a proof keeps to a contract, and the sentence for each limit that it breaks."""

from __future__ import annotations

import math
from typing import Any

import pytest

from onnxq.comparison import OutputProof
from onnxq.contract import Verdict, beside_limit, judge, keeps, sentence
from onnxq.errors import RecipeError
from onnxq.metric import Score
from onnxq.proof import Proof
from onnxq.recipe import MAX_DROPS, Contract, make_recipe


def score(metric: str, drop: float, before: float | None = None, after: float | None = None, **more: Any) -> Score:
    values: dict[str, Any] = {"output": "y", "samples": 200, "standard_error": None, **more}
    return Score(metric=metric, drop=drop, float_value=before, value=after, **values)


def proof(found: Score | None = None, *, speedup: float = 2.0, size: int = 300, size_float: int = 1000) -> Proof:
    return Proof(
        data="data.npz, 200 samples",
        samples=200,
        seen=False,
        provider="CPUExecutionProvider",
        threads=1,
        outputs={"y": OutputProof(cosine=1.0, cosine_min=1.0, sqnr_db=None, max_error=0.0)},
        layers=[],
        kernels={},
        kernel_microseconds={},
        float_nodes=[],
        size=size,
        size_float=size_float,
        memory=0,
        memory_float=0,
        milliseconds=1.0,
        milliseconds_float=speedup,
        speedup=speedup,
        batch=1,
        score=found,
    )


GOOD = score("top1", 0.0, 0.9, 0.9)


def reasons(contract: Contract, found: Proof) -> list[str]:
    verdict = judge(contract, found, random=False)
    assert verdict.holds == (not verdict.reasons)
    return verdict.reasons


def test_what_keeps_to_everything() -> None:
    contract = Contract(max_drop=0.01, min_speedup=2.0, max_size=300)
    assert judge(contract, proof(GOOD), random=False) == Verdict(holds=True)


def test_each_broken_limit_has_its_sentence() -> None:
    contract = Contract(max_drop=0.005, min_speedup=2.5, max_size=299)
    assert reasons(contract, proof(score("top1", 0.013, 0.931, 0.918))) == [
        "Top-1 accuracy of output 'y' drops by 1.3 points, from 93.1 % to 91.8 % (limit 0.5).",
        "2 times the float model's speed, below the 2.5 that --min-speedup asks for.",
        "The model takes 300 bytes, more than the 299 that --max-size allows.",
    ]


def test_a_verdict_tells_accuracy_from_speed_and_size() -> None:
    """What loses too much will not lose less where it is noisier; what is slow or large may be faster or smaller."""
    contract = Contract(max_drop=0.005, min_speedup=2.5, max_size=299)
    bad = score("top1", 0.013, 0.931, 0.918)
    for found, fast, accurate in ((GOOD, True, True), (GOOD, False, True), (bad, True, False), (bad, False, False)):
        size, speedup = (299, 3.0) if fast else (300, 2.0)
        verdict = judge(contract, proof(found, speedup=speedup, size=size), random=False)
        assert (verdict.accurate, verdict.holds) == (accurate, accurate and fast)
    assert judge(contract, proof(bad), random=True).accurate, "made-up data shows nothing about accuracy"
    assert judge(contract, proof(None), random=False).accurate


@pytest.mark.parametrize("metric", [*MAX_DROPS, "module:function"])
def test_without_a_limit_that_of_the_metric_holds(metric: str) -> None:
    most = {"agreement": 0.05, "kl": 0.05}.get(metric, 0.01)
    assert keeps(score(metric, most), Contract())
    assert not keeps(score(metric, most + 1e-6), Contract())
    assert keeps(score(metric, 0.3), Contract(max_drop=0.3))
    assert not keeps(score(metric, 0.003), Contract(max_drop=0.002))
    assert not keeps(score(metric, math.inf), Contract(max_drop=100.0))


def test_a_limit_is_not_broken_by_rounding() -> None:
    assert keeps(score("top1", 0.99 - 0.98), Contract(max_drop=0.01))
    assert keeps(score("cosine", 1 - (1 - 1e-16)), Contract(max_drop=0.0))


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            score("top1", -0.002, 0.931, 0.933),
            "Top-1 accuracy of output 'y' rises by 0.2 points, from 93.1 % to 93.3 %",
        ),
        (score("agreement", 0.062), "Output 'y' decides otherwise than the float model in 6.2 % of cases"),
        (score("cosine", 0.02), "The mean cosine of output 'y' to the float model's is 2 % below 1"),
        (score("cosine", 1e-16), "The mean cosine of output 'y' to the float model's is 0 % below 1"),
        (score("sqnr", 0.021), "The noise of output 'y' is 2.1 % of its signal"),
        (score("kl", 0.0712), "The probabilities of output 'y' diverge by 0.0712 nats"),
        (score("perplexity", 0.02, 12.0, 12.24), "The perplexity of output 'y' grows by 2 %, from 12 to 12.24"),
        (score("perplexity", -0.02, 12.0, 11.76), "The perplexity of output 'y' falls by 2 %, from 12 to 11.76"),
        (score("perplexity", math.inf, 12.0), "The perplexity of output 'y' grows by inf %, from 12 to no bound"),
        (score("m:f", 0.1, 0.5, 0.45, output=""), "'m:f' drops by 10 %, from 0.5 to 0.45"),
    ],
)
def test_what_is_lost_in_words(found: Score, words: str) -> None:
    assert sentence(found) == words


def test_a_limit_has_the_unit_of_its_drop() -> None:
    assert beside_limit(score("agreement", 0.062), Contract()).endswith("in 6.2 % of cases (limit 5)")
    assert beside_limit(score("kl", 0.062), Contract()).endswith("by 0.062 nats (limit 0.05)")


def test_made_up_data_says_nothing_about_accuracy() -> None:
    bad = score("agreement", 0.5)
    verdict = judge(Contract(min_speedup=3), proof(bad), random=True)
    assert verdict.reasons == ["2 times the float model's speed, below the 3 that --min-speedup asks for."]
    assert verdict.notes == ["The accuracy was not judged: the data is random. Give --data."]
    assert judge(Contract(), proof(), random=True).holds
    assert "no output holds numbers" in judge(Contract(), proof(), random=False).notes[0]


def test_too_few_samples_to_be_sure() -> None:
    near = score("top1", 0.008, 0.9, 0.892, standard_error=0.004)
    for contract, sure in ((Contract(), False), (Contract(max_drop=0.005), False), (Contract(max_drop=0.1), True)):
        verdict = judge(contract, proof(near), random=False)
        assert (verdict.notes == []) == sure
    two_errors = score("top1", 0.008, standard_error=0.0015)
    assert judge(Contract(), proof(two_errors), random=False).notes
    assert judge(Contract(), proof(near), random=False).notes == [
        "200 samples do not settle the accuracy: the standard error of the drop is 0.4 points, and the limit is near. "
        "Give more data."
    ]


@pytest.mark.parametrize(
    ("asked", "speedup", "broken"),
    [
        (1.0, 1.0, False),
        (1.0, 0.96, True),
        (1.5, 1.5, False),
        (1.5, 1.49, True),
        (0.0, 0.01, False),
    ],
)
def test_speed(asked: float, speedup: float, broken: bool) -> None:
    assert bool(reasons(Contract(min_speedup=asked), proof(GOOD, speedup=speedup))) == broken


@pytest.mark.parametrize(
    ("limit", "size", "broken"),
    [
        (None, 10**12, False),
        (300, 300, False),
        (300, 301, True),
        ("30%", 300, False),
        ("30%", 301, True),
        ("0.3KB", 301, True),
    ],
)
def test_size(limit: int | str | None, size: int, broken: bool) -> None:
    assert bool(reasons(Contract(max_size=limit), proof(GOOD, size=size))) == broken


def test_a_size_as_a_share_names_both() -> None:
    (reason,) = reasons(Contract(max_size="30%"), proof(GOOD, size=12345))
    assert reason == "The model takes 12,345 bytes, more than the 300 (30% of the float model) that --max-size allows."


# in a recipe


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, Contract()),
        ({"max_drop": "0.5%"}, Contract(max_drop=0.005)),
        ({"max_drop": "0.005"}, Contract(max_drop=0.005)),
        ({"max_drop": 0.02}, Contract(max_drop=0.02)),
        ({"max_drop": "250%"}, Contract(max_drop=2.5)),
        ({"max_size": "50MB"}, Contract(max_size=50_000_000)),
        ({"max_size": " 30 %"}, Contract(max_size="30%")),
        ({"max_size": "12.5%"}, Contract(max_size="12.5%")),
        ({"metric": "python:my.module:score"}, Contract(metric="my.module:score")),
    ],
)
def test_a_contract_is_read(values: dict[str, Any], expected: Contract) -> None:
    recipe = make_recipe({"contract": values})
    assert recipe.contract == expected
    assert type(recipe).model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"metric": "top5"},
            r"'contract\.metric' in the recipe is 'top5': there is no such metric\. Known are auto, top1, agreement, "
            r"cosine, sqnr, kl, perplexity and MODULE:FUNCTION\.$",
        ),
        ({"metric": "module:"}, "there is no such metric"),
        ({"metric": "python:module"}, "there is no such metric"),
        ({"max_drop": "lots"}, r"'contract\.max_drop' .*'lots' is no share\. Write it like 0\.5% or 0\.005\.$"),
        ({"max_drop": "1"}, "'1' may mean 1 % or 100 %"),
        ({"max_drop": -0.1}, "greater than or equal to 0"),
        ({"max_drop": math.nan}, r"contract\.max_drop"),
        ({"min_speedup": -1}, "greater than or equal to 0"),
        ({"max_size": "big"}, r"'contract\.max_size' .*'big' is no size"),
        ({"max_size": "0%"}, "is no size"),
        ({"max_size": 0}, "write bytes, a size like 50MB, or a share"),
        ({"max_size": 0.3}, "write bytes, a size like 50MB, or a share"),
        ({"max_size": True}, "write bytes, a size like 50MB, or a share"),
        ({"speed": 2}, r"Unknown key 'contract\.speed' in the recipe\. Known keys: metric, max_drop, min_speedup"),
    ],
)
def test_a_contract_that_makes_no_sense(values: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        make_recipe({"contract": values})


def test_speed_on_another_provider_is_not_judged() -> None:
    slow = proof(GOOD, speedup=0.5)
    assert judge(Contract(), slow, random=False, provider="CUDAExecutionProvider").holds
    assert not judge(Contract(), slow, random=False, provider="CPUExecutionProvider").holds
    assert not judge(Contract(max_size=10), slow, random=False, provider="CUDAExecutionProvider").holds
