"""One option for each group, so that one sum is least and others stay within limits: a knapsack with costs for pairs.

    least  Σ amount[o] x[o] + Σ cost[a, b] y[a, b]      where one x of each group is 1,  y[a, b] >= x[a] + x[b] - 1,
                                                        and such sums of other quantities stay within their limits

Amounts are counted from the least of their group, in parts of the room that is left under the limit, so the solver sees
numbers between 0 and 1 whatever the units. It works to tolerances: sums and limits are checked anew on what it picked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import fsum
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

ROUNDING = 1e-12
"""What a sum may be off, relative to its limit, before an option is ruled out."""

SLIPS = (0.0, 1e-6, 1e-5, 1e-4, 1e-2, 1.0)
"""Parts of the room that are taken away, run after run, while the solver's tolerance lets a limit slip."""

PRECISION = 1e3
"""How large the room of the objective looks to the solver, which stops within 1e-6 of the least."""

FINISHED = (0, 2)
"""What `milp` returns for an optimum, and where nothing meets the limits."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Knapsack:
    """All options in a row, group after group. What is picked is one position for each group.

    amounts: (quantities, options), none below 0.  starts: (groups + 1,), where each group begins, and the end.
    pairs: (2, pairs), two options that cost extra together.  costs: (quantities, pairs), none below 0.
    """

    amounts: Array
    starts: Array
    pairs: Array
    costs: Array

    @property
    def group(self) -> Array:
        """(options,): the group of every option."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    def totals(self, picks: Array) -> Array:
        """(quantities,): the sum of every quantity, rounded once."""
        together = self.costs[:, self.picked(picks)[self.pairs].all(axis=0)]
        return np.array([fsum(row) for row in np.hstack([self.amounts[:, picks], together]).tolist()])

    def picked(self, picks: Array) -> Array:
        """(options,): which of them are picked."""
        flags = np.zeros(self.amounts.shape[1], np.bool_)
        flags[picks] = True
        return flags

    def moves(self, picks: Array) -> Array:
        """(quantities, options): what changes when one group moves to an option and the others stay."""
        amounts, picked = self.amounts.copy(), self.picked(picks)
        for here, there in (self.pairs, self.pairs[::-1]):
            np.add.at(amounts.T, here, (self.costs * picked[there]).T)
        return amounts - amounts[:, picks[self.group]]

    def rank(self, picks: Array, objective: int) -> tuple[float, ...]:
        """The lower, the better: the objective, the other quantities, how late the options stand in their groups."""
        totals = self.totals(picks).tolist()
        return (totals[objective], *totals, *picks.tolist())


def solve(knapsack: Knapsack, objective: int, limits: Array, seconds: float) -> tuple[Array | None, str]:
    """What to pick, None where nothing is found within the limits; and a sentence where better may exist.

    As good as any choice that leaves a hundred-thousandth of each limit free; one that fills a limit to the last digit
    may be missed. The same input gives the same result, unless time runs out.
    """
    quick = greedy(knapsack, objective, limits)
    exact, note = program(knapsack, objective, limits, quick, seconds)
    found = [picks for picks in (exact, quick) if picks is not None]
    return min(found, key=lambda picks: knapsack.rank(picks, objective), default=None), note


def greedy(knapsack: Knapsack, objective: int, limits: Array) -> Array | None:
    """From the best option of each group, again and again the move that loses least for what it brings back in limits.

    Returns None where no single move helps and a limit is still passed.
    """
    amounts, scale = knapsack.amounts[objective], np.where(limits > 0, limits, 1.0)[:, None]
    picks = np.array([start + np.argmin(amounts[start:end]) for start, end in pairwise(knapsack.starts)], np.intp)
    for _ in amounts:  # an end, where rounding would let it go round in circles
        totals = knapsack.totals(picks)
        if np.all(totals <= limits):
            return polish(knapsack, picks, objective, limits)
        moves, over = knapsack.moves(picks), (totals - limits)[:, None]
        relief = ((np.maximum(over, 0) - np.maximum(over + moves, 0)) / scale).sum(axis=0)
        if not (helps := relief > 0).any():
            break
        move = np.argmin(np.where(helps, moves[objective] / np.where(helps, relief, 1.0), np.inf))
        picks[knapsack.group[move]] = move
    return None


def polish(knapsack: Knapsack, picks: Array, objective: int, limits: Array) -> Array:
    """Move the group that gains most, within the limits, until no single move ranks better."""
    while (better := next(improvements(knapsack, picks, objective, limits), None)) is not None:
        picks = better
    return picks


def improvements(knapsack: Knapsack, picks: Array, objective: int, limits: Array) -> Iterator[Array]:
    """Picks that differ in one group, stay within the limits and rank better, the greatest gain first."""
    totals, moves = knapsack.totals(picks)[:, None], knapsack.moves(picks)
    within = (totals + moves <= limits[:, None] * (1 + ROUNDING)).all(axis=0)
    promising = np.flatnonzero(within & (moves[objective] <= ROUNDING * totals[objective]))
    for option in promising[np.argsort(moves[objective, promising], kind="stable")]:
        trial = picks.copy()
        trial[knapsack.group[option]] = option
        better = knapsack.rank(trial, objective) < knapsack.rank(picks, objective)
        if better and np.all(knapsack.totals(trial) <= limits):
            yield trial


def program(
    knapsack: Knapsack, objective: int, limits: Array, quick: Array | None, seconds: float
) -> tuple[Array | None, str]:
    """The integer program, without options that alone pass a limit or are worse than all of the quick choice."""
    known = limits.copy()
    if quick is not None:
        known[objective] = knapsack.totals(quick)[objective]
    scaled, allowed = in_parts_of_room(knapsack, known)
    ceilings, over = np.full(len(limits), np.inf), np.isfinite(limits)
    for slip in SLIPS:
        ceilings[over] = 1 - slip
        with without_solver_lines():
            result = milp(
                PRECISION * scaled[objective],
                integrality=np.arange(len(allowed)) < knapsack.amounts.shape[1],
                bounds=Bounds(0, allowed.astype(np.float64)),
                constraints=constraints(knapsack, scaled, ceilings),
                options={"time_limit": seconds, "mip_rel_gap": 0.0},
            )
        stopped = "" if result.status in FINISHED else f"The search for the best choice stopped after {seconds:g} s: "
        if result.x is None:
            return None, stopped and f"{stopped}this is a greedy one."
        spans = pairwise(knapsack.starts)
        picks = np.array([start + np.argmax(result.x[start:end]) for start, end in spans], np.intp)
        over = knapsack.totals(picks) > limits
        if not over.any():
            note = stopped and f"{stopped}this one is worse by {result.mip_gap:.2%} at most."
            return polish(knapsack, picks, objective, limits), note
    return None, "The solver's choices pass the limits by a rounding: this is a greedy one."


def in_parts_of_room(knapsack: Knapsack, limits: Array) -> tuple[Array, Array]:
    """What options and pairs take beyond the least of their group, 1 being all that a limit leaves; and which may be.

    Shapes (quantities, options + pairs) and (options + pairs,). Without a limit, 1 is everything together.
    """
    least = np.minimum.reduceat(knapsack.amounts, knapsack.starts[:-1], axis=1)
    excess = np.hstack([knapsack.amounts - least[:, knapsack.group], knapsack.costs])
    room = np.where(np.isfinite(limits), limits * (1 + ROUNDING) - least.sum(axis=1), excess.sum(axis=1))
    allowed = (excess <= room[:, None]).all(axis=0)
    return np.where(allowed, excess, 0.0) / np.where(room > 0, room, 1.0)[:, None], allowed


def constraints(knapsack: Knapsack, scaled: Array, ceilings: Array) -> list[LinearConstraint]:
    """One option for each group, a pair where both of its options are, every quantity up to its ceiling."""
    options, pairs = knapsack.amounts.shape[1], knapsack.pairs.shape[1]
    one = (np.ones(options), (knapsack.group, np.arange(options)))
    rows, columns = np.tile(np.arange(pairs), 3), np.hstack([*knapsack.pairs, options + np.arange(pairs)])
    both = (np.repeat([1.0, 1.0, -1.0], pairs), (rows, columns))
    return [
        LinearConstraint(sparse.csr_array(one, shape=(len(knapsack.starts) - 1, options + pairs)), 1, 1),
        LinearConstraint(sparse.csr_array(both, shape=(pairs, options + pairs)), -np.inf, 1),
        LinearConstraint(scaled, -np.inf, ceilings),
    ]


@contextmanager
def without_solver_lines() -> Iterator[None]:
    """Takes lines out of stdout that HiGHS prints for its developers (seen with SciPy 1.17): they would spoil JSON."""
    kept = os.dup(1)
    with TemporaryFile() as caught:
        os.dup2(caught.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)
            caught.seek(0)
            for line in caught:
                if not line.startswith(b"Highs"):
                    os.write(1, line)
