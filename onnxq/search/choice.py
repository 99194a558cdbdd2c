"""A form for every group of a model, all groups together: fastest within an error, or most accurate within a latency.

Noise of different groups adds up as long as it is small and independent, and latencies add up with what it costs where
unlike neighbours meet. So the outcome is an approximation, to be measured end to end; but of the sums, it is the best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxq.search.knapsack import Knapsack, solve

ERROR, MICROSECONDS, BYTES = range(3)
WORDS = ("an error of {:.4g}", "{:.6g} microseconds", "{:.0f} bytes")

SECONDS = 10.0
"""For one run of the solver; `knee` takes up to two of them, `frontier` one more than points."""

DEPTH = 1e4
"""How far below the error of the fastest choice a frontier is explored: 40 dB."""


@dataclass(frozen=True)
class Option:
    """One form of a group; `error` is the noise over signal that it alone brings to the outputs, 0 for float."""

    name: str
    error: float
    microseconds: float
    bytes: int


@dataclass(frozen=True)
class Group:
    """Nodes that take one form together. Of equally good options, the earlier is chosen."""

    name: str
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Edge:
    """What the options of two groups cost together, as Q/DQ at a boundary does; 0 for pairs that are absent.

    Attributes:
        first: name of a group.
        second: name of another one.
        pairs: extra microseconds by the options of the first and of the second.
        errors: extra error, likewise.
    """

    first: str
    second: str
    pairs: Mapping[tuple[str, str], float]
    errors: Mapping[tuple[str, str], float] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """The name of an option for every group, their sums, and a sentence where there may be a better choice."""

    options: Mapping[str, str]
    error: float
    microseconds: float
    bytes: int
    note: str = ""


def fastest(
    groups: Sequence[Group],
    edges: Sequence[Edge] = (),
    *,
    max_error: float | None = None,
    max_bytes: float | None = None,
    seconds: float = SECONDS,
) -> Choice | None:
    """The choice of least latency within the limits; None where there is none, and `why_not` says why."""
    return best(groups, edges, MICROSECONDS, (max_error, None, max_bytes), seconds)


def most_accurate(
    groups: Sequence[Group],
    edges: Sequence[Edge] = (),
    *,
    max_microseconds: float | None = None,
    max_bytes: float | None = None,
    seconds: float = SECONDS,
) -> Choice | None:
    """The choice of least error within the limits; None where there is none, and `why_not` says why."""
    return best(groups, edges, ERROR, (None, max_microseconds, max_bytes), seconds)


def knee(
    groups: Sequence[Group],
    edges: Sequence[Edge] = (),
    *,
    max_error: float | None = None,
    max_bytes: float | None = None,
    tolerance: float = 0.03,
    seconds: float = SECONDS,
) -> Choice | None:
    """The most accurate choice that is at most `tolerance` slower than the fastest within the limits."""
    fast = fastest(groups, edges, max_error=max_error, max_bytes=max_bytes, seconds=seconds)
    if fast is None:
        return None
    limit = fast.microseconds * (1 + tolerance)
    near = most_accurate(groups, edges, max_microseconds=limit, max_bytes=max_bytes, seconds=seconds) or fast
    return replace(min(fast, near, key=lambda choice: choice.error), note=fast.note or near.note)


def frontier(
    groups: Sequence[Group], edges: Sequence[Edge] = (), points: int = 5, *, seconds: float = SECONDS
) -> list[Choice]:
    """At most `points` choices from the fastest to the most accurate, each slower and more accurate than the last.

    In between, the error allowed falls by equal ratios (the epsilon-constraint method).
    """
    least, fast = most_accurate(groups, edges, seconds=seconds), fastest(groups, edges, seconds=seconds)
    assert least is not None, "Without limits there is a choice."
    assert fast is not None, "Without limits there is a choice."
    budgets = [least.error]  # of the most accurate choices, the fastest
    if fast.error > least.error:
        budgets += np.geomspace(fast.error, max(least.error, fast.error / DEPTH), points)[1:-1].tolist()
    found = [fastest(groups, edges, max_error=budget, seconds=seconds) for budget in budgets]
    ranked = sorted((c for c in (fast, least, *found) if c), key=lambda c: (c.microseconds, c.error))
    return [c for i, c in enumerate(ranked) if all(c.error < faster.error for faster in ranked[:i])]


def why_not(
    groups: Sequence[Group],
    edges: Sequence[Edge] = (),
    *,
    max_error: float | None = None,
    max_microseconds: float | None = None,
    max_bytes: float | None = None,
    seconds: float = SECONDS,
) -> str | None:
    """The sentence why no choice meets the limits, each alone and then together; None where one does."""
    limits = (max_error, max_microseconds, max_bytes)
    for together in (False, True):
        for objective, limit in enumerate(limits):
            if limit is None:
                continue
            others = [other if together and i < objective else None for i, other in enumerate(limits)]
            least = best(groups, edges, objective, others, seconds)
            if least is None:
                return f"The solver found no choice within {seconds:g} s. Allow it more time."
            found = (least.error, least.microseconds, least.bytes)[objective]
            if found > limit:
                given = " and ".join(words.format(x) for words, x in zip(WORDS, others, strict=True) if x is not None)
                words = f"needs less than {WORDS[objective].format(found)}; the limit is {limit:g}. Allow more."
                return f"No choice{given and ' within '}{given} {words}"
    return None


def best(
    groups: Sequence[Group],
    edges: Sequence[Edge],
    objective: int,
    limits: Sequence[float | None],
    seconds: float,
) -> Choice | None:
    """The choice of least error, microseconds or bytes within limits of all three."""
    names = [(group.name, option.name) for group in groups for option in group.options]
    ceilings = np.array([np.inf if limit is None else limit for limit in limits])
    knapsack = pack(groups, edges)
    picks, note = solve(knapsack, objective, ceilings, seconds)
    if picks is None:
        return None
    error, microseconds, size = knapsack.totals(picks).tolist()
    return Choice(dict(names[pick] for pick in picks), error, microseconds, int(size), note)


def pack(groups: Sequence[Group], edges: Sequence[Edge]) -> Knapsack:
    """Groups and edges as arrays.

    Raises:
        ValueError: names that are unknown or taken twice, amounts below 0 or not finite.
    """
    names = [(group.name, option.name) for group in groups for option in group.options]
    at = {name: position for position, name in enumerate(names)}
    if not groups or not all(group.options for group in groups):
        raise ValueError("There is no group, or one has no option. Give each group at least one.")
    if len(at) < len(names) or len({group.name for group in groups}) < len(groups):
        raise ValueError("Two groups, or two options of a group, have the same name. Name each differently.")
    known = [
        (((e.first, a), (e.second, b)), (e.errors.get((a, b), 0.0), e.pairs.get((a, b), 0.0)))
        for e in edges
        for a, b in dict.fromkeys([*e.pairs, *e.errors])
    ]
    links = [(ends, extra) for ends, extra in known if any(extra)]
    for (first, second), _ in links:
        if not {first, second} <= at.keys() or first[0] == second[0]:
            raise ValueError(f"An edge leads from {first} to {second}. Name options of two groups that exist.")
    amounts = np.array([(o.error, o.microseconds, o.bytes) for group in groups for o in group.options], np.float64).T
    pairs = np.array([(at[first], at[second]) for (first, second), _ in links], np.intp).reshape(-1, 2).T
    costs = np.zeros((3, len(links)))
    costs[[ERROR, MICROSECONDS]] = np.array([extra for _, extra in links]).reshape(-1, 2).T
    if not all(np.all(np.isfinite(values) & (values >= 0)) for values in (amounts, costs)):
        raise ValueError("An error, latency, size or cost is below 0 or not finite. Measure it again, or give 0.")
    return Knapsack(amounts, np.cumsum([0, *(len(group.options) for group in groups)]), pairs, costs)
