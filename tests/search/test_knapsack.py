"""What happens where a greedy choice is not the best, the solver stops early, or lets a limit slip by its tolerance."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.optimize import OptimizeResult, milp

from onnxq.search import knapsack
from onnxq.search.knapsack import Knapsack, greedy, in_parts_of_room, solve, without_solver_lines

TRAP = Knapsack(
    amounts=np.array([[2.0, 0.0, 4.0, 0.0, 5.0, 0.0], [0.0, 4.0, 0.0, 5.0, 0.0, 7.0]]),
    starts=np.array([0, 2, 4, 6]),
    pairs=np.zeros((2, 0), np.intp),
    costs=np.zeros((2, 0)),
)
"""Three groups, each of which may give up 2, 4 or 5 of the first quantity for 4, 5 or 7 of the second."""

Solver = Callable[..., OptimizeResult]


def under(limit: float) -> tuple[list[float], str]:
    """The least of the first quantity within a limit of the second, and the note."""
    picks, note = solve(TRAP, 0, np.array([np.inf, limit]), 3.0)
    assert picks is not None
    return TRAP.totals(picks).tolist(), note


def loosened(by: float, times: int) -> Solver:
    """A solver that lets limits slip in its first runs."""
    left = [times]

    def solver(*args: Any, constraints: Any, **options: Any) -> OptimizeResult:
        left[0] -= 1
        if left[0] >= 0:
            constraints[2].ub = constraints[2].ub + by
        return milp(*args, constraints=constraints, **options)

    return solver


def stopped(gap: float | None) -> Solver:
    """A solver that runs out of time, with a choice when there is a gap."""

    def solver(*args: Any, **options: Any) -> OptimizeResult:
        found = milp(*args, **options)
        found.update(status=1, x=None if gap is None else found.x, mip_gap=gap)
        return found

    return solver


def test_the_solver_beats_the_greedy_choice() -> None:
    quick = greedy(TRAP, 0, np.array([np.inf, 9.0]))
    assert quick is not None
    assert TRAP.totals(quick).tolist() == [6.0, 7.0]
    assert under(9.0) == ([5.0, 9.0], "")


@pytest.mark.parametrize("unit", [1.0, 1e-11])
def test_a_far_worse_option_does_not_hide_small_gains(unit: float) -> None:
    first = np.hstack([TRAP.amounts[0] * unit, [0.0, 1.0]])
    wide = Knapsack(np.vstack([first, [*TRAP.amounts[1], 0.5, 0.0]]), np.array([0, 2, 4, 6, 8]), TRAP.pairs, TRAP.costs)
    picks, _ = solve(wide, 0, np.array([np.inf, 9.5]), 3.0)
    assert picks is not None
    assert wide.totals(picks)[0] == 5.0 * unit


def test_gains_of_a_hundred_millionth_are_seen() -> None:
    """Things that are worth what they weigh, nearly: 2**14 ways to fill a knapsack, most of them about as good."""
    rng = np.random.default_rng(3)
    weights = rng.integers(1000, 2000, 14).astype(np.float64)
    worth, limit = weights * (1 + 1e-6 * rng.random(14)), weights.sum() * 0.4
    amounts = np.stack([[worth, 0 * worth], [0 * worth, weights]]).transpose(0, 2, 1).reshape(2, 28)
    picks, _ = solve(Knapsack(amounts, np.arange(0, 29, 2), TRAP.pairs, TRAP.costs), 0, np.array([np.inf, limit]), 60.0)
    ways = np.indices((2,) * 14).reshape(14, -1)
    left_out = np.where(weights @ ways <= limit, worth @ (1 - ways), np.inf)
    assert picks is not None
    assert amounts[0, picks].sum() == pytest.approx(left_out.min(), rel=1e-9)


def test_a_greedy_choice_takes_back_what_it_need_not_give() -> None:
    amounts = np.array([[0.0, 4.0, 0.0, 0.5], [4.0, 0.0, 1.0, 0.0]])
    two = Knapsack(amounts, np.array([0, 2, 4]), TRAP.pairs, TRAP.costs)
    picks = greedy(two, 0, np.array([np.inf, 1.0]))
    assert picks is not None
    assert picks.tolist() == [1, 2]


def test_an_option_that_fills_the_limit_exactly_is_not_ruled_out() -> None:
    rng = np.random.default_rng(2)
    for _ in range(100):
        one = Knapsack(rng.uniform(0.1, 1.0, (1, 12)), np.arange(0, 13, 2), TRAP.pairs, np.zeros((1, 0)))
        picks = np.arange(0, 12, 2) + np.argmin(one.amounts.reshape(6, 2), axis=1)
        picks[0] = 1 - picks[0]
        _, allowed = in_parts_of_room(one, one.totals(picks))
        assert allowed[picks].all()


def test_equal_options_are_put_in_order_after_the_solver() -> None:
    twins = Knapsack(np.hstack([TRAP.amounts, np.ones((2, 6))]), np.array([0, 2, 4, 6, 9, 12]), TRAP.pairs, TRAP.costs)
    picks, _ = solve(twins, 0, np.array([np.inf, 11.0]), 3.0)
    assert picks is not None
    assert picks.tolist() == [1, 3, 4, 6, 9]


def test_says_so_where_time_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knapsack, "milp", stopped(None))
    assert under(9.0) == ([6.0, 7.0], "The search for the best choice stopped after 3 s: this is a greedy one.")
    monkeypatch.setattr(knapsack, "milp", stopped(0.25))
    note = "The search for the best choice stopped after 3 s: this one is worse by 25.00% at most."
    assert under(9.0) == ([5.0, 9.0], note)


def test_a_limit_that_slipped_is_tightened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knapsack, "milp", loosened(by=0.2, times=1))
    assert under(9.5) == ([5.0, 9.0], "")
    monkeypatch.setattr(knapsack, "milp", loosened(by=5.0, times=99))
    assert under(9.5) == ([6.0, 7.0], "The solver's choices pass the limits by a rounding: this is a greedy one.")


def test_nothing_is_picked_where_nothing_meets_the_limit() -> None:
    assert solve(TRAP, 0, np.array([np.inf, -1.0]), 3.0) == (None, "")
    assert under(0.0) == ([11.0, 0.0], "")


def test_what_pairs_cost_counts_when_groups_move() -> None:
    paired = Knapsack(TRAP.amounts, TRAP.starts, np.array([[0, 1], [3, 2]]), np.array([[1.0, 3.0], [0.5, 0.0]]))
    picks = np.array([0, 2, 4])
    for option, change in enumerate(paired.moves(picks).T):
        after = picks.copy()
        after[paired.group[option]] = option
        np.testing.assert_allclose(paired.totals(after) - paired.totals(picks), change)
    assert paired.totals(np.array([0, 3, 4])).tolist() == [8.0, 5.5]


def test_only_the_lines_of_the_solver_leave_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    with without_solver_lines():
        os.write(1, b"HighsMipSolverData::transformNewIntegerFeasibleSolution tmpSolver.run();\n{}\n")
    os.write(1, b"after\n")
    assert capfd.readouterr().out == "{}\nafter\n"
