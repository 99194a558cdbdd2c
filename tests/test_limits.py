"""A contract limit by limit: what was measured beside what is allowed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq import Contract, Recipe, optimize
from onnxq.contract import limits
from onnxq.metric import Score
from onnxq.options import Options
from onnxq.proof import Proof
from onnxq.result import Result
from tests.conftest import two_layers

DATA: Any = {"x": np.random.default_rng(1).standard_normal((24, 16)).astype(np.float32)}


@pytest.fixture(scope="module")
def found() -> Result:
    contract = Contract(metric="cosine", max_drop=0.5, min_speedup=1e-9, max_size="90%")
    recipe = Recipe(mode="static-int8", contract=contract)
    return optimize(two_layers(), data=DATA, recipe=recipe, options=Options(seconds=0))


def proof_of(found: Result, **changed: object) -> Proof:
    assert found.proof is not None
    return found.proof.model_copy(update=changed)


def test_a_result_tells_every_limit(found: Result) -> None:
    assert [limit.of for limit in found.limits] == ["accuracy", "speed", "size"]
    assert found.proof is not None
    assert found.proof.score is not None
    accuracy, speed, size = found.limits
    assert (accuracy.metric, accuracy.measured, accuracy.allowed) == ("cosine", found.proof.score.drop, 0.5)
    assert (speed.measured, speed.allowed) == (found.proof.speedup, 1e-9)
    assert (size.measured, size.allowed) == (found.proof.size, int(0.9 * found.proof.size_float))
    assert all(limit.holds for limit in found.limits)


def test_a_broken_limit_says_so(found: Result) -> None:
    contract = Contract(max_drop=0, min_speedup=1e9, max_size=1)
    broken = limits(contract, proof_of(found), random=False)
    assert [(limit.of, limit.holds) for limit in broken] == [("accuracy", False), ("speed", False), ("size", False)]
    assert "--min-speedup asks for" in broken[1].sentence
    assert "--max-size allows" in broken[2].sentence


def test_what_says_nothing_is_no_limit(found: Result) -> None:
    contract = Contract(max_drop=0, min_speedup=2)
    assert [limit.of for limit in limits(contract, proof_of(found), random=True)] == ["speed"]
    assert [limit.of for limit in limits(contract, proof_of(found, score=None), random=False)] == ["speed"]
    assert limits(contract, proof_of(found), random=True, timed=False) == []
    assert limits(contract, proof_of(found), random=True, provider="CUDAExecutionProvider") == []
    assert limits(Contract(min_speedup=0), proof_of(found), random=True) == []


def test_a_limit_that_is_kept_by_doubt_says_so(found: Result) -> None:
    score = Score(
        metric="agreement", output="y", drop=0.08, float_value=1.0, value=0.92, samples=24, standard_error=0.05
    )
    (limit, *_) = limits(Contract(), proof_of(found, score=score), random=False)
    assert limit.holds
    assert limit.measured > limit.allowed
    assert "so few samples" in limit.sentence


def test_speed_is_a_limit_where_the_mode_or_the_user_asks_for_it() -> None:
    plain = optimize(two_layers(), data=DATA, recipe=Recipe(mode="static-int8"), options=Options(seconds=0))
    assert [limit.of for limit in plain.limits] == ["accuracy"]
