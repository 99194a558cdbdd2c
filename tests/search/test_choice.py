"""Choices are the best there are: compared with trying all of them, on small instances of every scale."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import count, pairwise, product
from math import fsum, inf
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import milp

from onnxq.search.choice import Choice, Edge, Group, Option, fastest, frontier, knee, most_accurate, why_not

Instance = tuple[list[Group], list[Edge]]
Limits = Sequence[float]

FLOAT, INT8, INT4 = Option("float", 0.0, 9.0, 40), Option("int8", 0.01, 4.0, 10), Option("int4", 0.2, 3.0, 5)
TWO = [Group("a", (FLOAT, INT8, INT4)), Group("b", (FLOAT, INT8, INT4))]
BOUNDARY = [Edge("a", "b", {("float", "int8"): 3.0, ("int8", "float"): 3.0})]


FREE = 1e-5
"""The part of a limit in which the solver, which works to tolerances, may miss a choice."""


def everything(groups: Sequence[Group], edges: Sequence[Edge]) -> list[Choice]:
    """Every choice there is."""
    found = []
    for options in product(*(group.options for group in groups)):
        names = {group.name: option.name for group, option in zip(groups, options, strict=True)}
        ends = [(edge, (names[edge.first], names[edge.second])) for edge in edges]
        error = fsum([*(o.error for o in options), *(edge.errors.get(pair, 0.0) for edge, pair in ends)])
        time = fsum([*(o.microseconds for o in options), *(edge.pairs.get(pair, 0.0) for edge, pair in ends)])
        found.append(Choice(names, error, time, sum(o.bytes for o in options)))
    return found


def within(instance: Instance, limits: Limits, free: float = 0.0) -> list[Choice]:
    """Every choice that leaves a part of each limit, of error, microseconds and bytes, free."""
    error, time, size = (limit * (1 - free) for limit in limits)
    return [c for c in everything(*instance) if c.error <= error and c.microseconds <= time and c.bytes <= size]


def amounts(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers of every size, and a few that come again and again, so that there are ties."""
    sizes = st.floats(np.log10(low), np.log10(high)).map(lambda exponent: float(10.0**exponent))
    return st.one_of(sizes, st.sampled_from([low, high / 10, high / 5, high / 2]))


@st.composite
def instances(draw: st.DrawFn) -> Instance:
    """Up to five groups of up to three options, and edges between any two that cost time, error, or both."""
    errors, times, sizes = st.just(0.0) | amounts(1e-9, 1.0), amounts(1.0, 1e6), st.integers(0, 100)
    groups = []
    for index in range(draw(st.integers(1, 5))):
        values = draw(st.lists(st.tuples(errors, times, sizes), min_size=1, max_size=3))
        groups.append(Group(f"g{index}", tuple(Option(f"o{i}", *value) for i, value in enumerate(values))))
    edges = []
    for first, second in draw(st.lists(st.permutations(groups).map(lambda g: g[:2]), max_size=6 * (len(groups) > 1))):
        ends = list(product((o.name for o in first.options), (o.name for o in second.options)))
        extra = []
        for amount in (times, errors):
            extra.append({pair: draw(st.just(0.0) | amount) for pair in ends if draw(st.booleans())})
        edges.append(Edge(first.name, second.name, *extra))
    return groups, edges


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_nothing_better_is_within_the_limits(data: st.DataObject) -> None:
    instance = data.draw(instances())
    some = data.draw(st.sampled_from(everything(*instance)))
    parts = data.draw(st.tuples(*[st.sampled_from([1.0, 0.999, 1.3])] * 3))  # met exactly, just missed, met with room
    error, time, size = (p * v for p, v in zip(parts, (some.error, some.microseconds, some.bytes), strict=True))
    fast = fastest(*instance, max_error=error, max_bytes=size)
    check(fast, instance, (error, inf, size), lambda choice: choice.microseconds)
    accurate = most_accurate(*instance, max_microseconds=time, max_bytes=size)
    check(accurate, instance, (inf, time, size), lambda choice: choice.error)


def check(got: Choice | None, instance: Instance, limits: Limits, objective: Callable[[Choice], float]) -> None:
    """What was chosen is within the limits, and nothing well within them is better."""
    others = within(instance, limits, FREE)
    if got is None:
        assert not others
    else:
        assert got in within(instance, limits)
        assert objective(got) <= min(map(objective, others), default=inf) * (1 + 1e-9)


@settings(max_examples=30, deadline=None)
@given(instances())
def test_the_frontier_descends_and_nothing_lies_below_it(instance: Instance) -> None:
    points, choices = frontier(*instance), everything(*instance)
    assert 1 <= len(points) <= 5
    assert points[0].microseconds == pytest.approx(min(c.microseconds for c in choices), rel=1e-9)
    assert points[-1].error == pytest.approx(min(c.error for c in choices), rel=1e-9, abs=0)
    for before, after in pairwise(points):
        assert before.microseconds < after.microseconds
        assert before.error > after.error
    for point in points:
        below = within(instance, (point.error, point.microseconds, inf), FREE)
        assert all(c.error == point.error for c in below)


@settings(max_examples=30, deadline=None)
@given(instances(), st.sampled_from([0.03, 0.5]))
def test_the_knee_spends_the_tolerance_on_accuracy(instance: Instance, tolerance: float) -> None:
    error = 1.1 * np.median([c.error for c in everything(*instance)])
    got = knee(*instance, max_error=error, tolerance=tolerance)
    least = min(c.microseconds for c in within(instance, (error, inf, inf), FREE))
    assert got is not None
    assert got.microseconds <= least * (1 + tolerance)
    fastest_of_all = min(c.microseconds for c in within(instance, (error, inf, inf)))
    near = within(instance, (inf, fastest_of_all * (1 + tolerance), inf), FREE)
    assert got.error <= min(c.error for c in near) * (1 + 1e-9)


@settings(max_examples=30, deadline=None)
@given(instances(), st.tuples(*[st.sampled_from([None, 0.5, 1.0, 1.2])] * 3))
def test_a_sentence_comes_exactly_where_no_choice_does(instance: Instance, parts: tuple[float | None, ...]) -> None:
    choices = everything(*instance)
    middle = choices[len(choices) // 2]
    amounts = (middle.error, middle.microseconds, middle.bytes)
    error, time, size = (None if part is None else part * value for part, value in zip(parts, amounts, strict=True))
    limits = tuple(inf if limit is None else limit for limit in (error, time, size))
    said = why_not(*instance, max_error=error, max_microseconds=time, max_bytes=size)
    assert said is not None or within(instance, limits)
    assert said is None or not within(instance, limits, FREE)


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"max_error": 0.0}, None),
        ({"max_microseconds": 5.0}, "No choice needs less than 6 microseconds; the limit is 5. Allow more."),
        ({"max_error": 0.02, "max_bytes": 9}, "No choice needs less than 10 bytes; the limit is 9. Allow more."),
        (
            {"max_error": 0.02, "max_microseconds": 8.0, "max_bytes": 19},
            "No choice within an error of 0.02 and 8 microseconds needs less than 20 bytes;"
            " the limit is 19. Allow more.",
        ),
    ],
)
def test_says_which_limit_is_in_the_way(limits: dict[str, Any], sentence: str | None) -> None:
    assert why_not(TWO, BOUNDARY, **limits) == sentence


def test_what_a_boundary_costs_keeps_neighbours_alike() -> None:
    wide = [Group("a", (FLOAT, INT8)), Group("b", (FLOAT, Option("int8", 0.01, 7.0, 10)))]
    assert fastest(wide, max_error=0.01) == Choice({"a": "int8", "b": "float"}, 0.01, 13.0, 50)
    assert fastest(wide, BOUNDARY, max_error=0.01) == Choice({"a": "int8", "b": "float"}, 0.01, 16.0, 50)
    dear = [Edge("b", "a", {("float", "int8"): 6.0})]
    assert fastest(wide, dear, max_error=0.01) == Choice({"a": "float", "b": "int8"}, 0.01, 16.0, 50)
    assert fastest(wide, [*dear, *BOUNDARY], max_error=0.01) == Choice({"a": "float", "b": "float"}, 0.0, 18.0, 80)


def test_an_error_on_a_boundary_counts_like_any_other() -> None:
    """A tensor that is rounded for its reader alone, beside one that is rounded where it is made."""
    rounded = [Edge("a", "b", {}, {("float", "int8"): 0.5, ("int4", "int8"): 0.005})]
    pair = [Group("a", (FLOAT, INT8, INT4)), Group("b", (FLOAT, INT8))]
    assert fastest(pair, rounded, max_error=0.1) == Choice({"a": "int8", "b": "int8"}, 0.02, 8.0, 20)
    assert fastest(pair, rounded) == Choice({"a": "int4", "b": "int8"}, fsum([0.2, 0.01, 0.005]), 7.0, 15)
    assert most_accurate(pair, rounded, max_bytes=50) == Choice({"a": "int8", "b": "float"}, 0.01, 13.0, 50)
    both = [Edge("a", "b", {("int8", "int8"): 6.0}, {("int8", "float"): 0.05})]
    assert most_accurate(pair, both, max_microseconds=13.5) == Choice({"a": "float", "b": "int8"}, 0.01, 13.0, 50)
    unlike = [Edge("a", "b", {}, {("int8", "float"): 0.2, ("float", "int8"): 0.2})]
    words = "No choice within an error of 0.01 needs less than 18 microseconds; the limit is 13.5. Allow more."
    assert why_not(pair, max_error=0.01, max_microseconds=13.5) is None
    assert why_not(pair, unlike, max_error=0.01, max_microseconds=13.5) == words


def test_where_two_options_are_as_good_the_earlier_is_chosen() -> None:
    twins = tuple(Option(name, 0.1, 5.0, 7) for name in ("z", "y", "x"))
    groups = [Group(f"g{i}", (Option("slow", 0.1, 6.0, 7), *twins)) for i in range(4)]
    for got in (fastest(groups), most_accurate(groups, max_microseconds=20.0), knee(groups, max_error=0.5)):
        assert got is not None
        assert set(got.options.values()) == {"z"}


def test_as_fast_with_less_error_is_better_than_earlier() -> None:
    group = Group("g", (Option("noisy", 0.2, 5.0, 1), Option("clean", 0.1, 5.0, 9)))
    assert fastest([group]) == Choice({"g": "clean"}, 0.1, 5.0, 9)
    assert frontier([group]) == [Choice({"g": "clean"}, 0.1, 5.0, 9)]


def test_a_frontier_halves_the_decibels_between_its_ends() -> None:
    steps = [Option(f"o{i}", 10.0**-i, 1.0 + i, 1) for i in range(9)]
    assert [c.error for c in frontier([Group("g", (*steps, FLOAT))], points=3)] == [1.0, 1e-2, 0.0]
    assert [c.error for c in frontier([Group("g", (*steps, FLOAT))])] == [1.0, 1e-1, 1e-2, 1e-3, 0.0]
    fine = [Option(f"o{i}", 10.0 ** (-i / 4), 1.0 + i, 1) for i in range(9)]
    assert [c.options["g"] for c in frontier([Group("g", tuple(fine))])] == ["o0", "o2", "o4", "o6", "o8"]


def test_a_frontier_ends_with_the_fastest_of_the_most_accurate() -> None:
    rng = np.random.default_rng(0)
    exact = [[Option(f"o{i}", 0.0, time, 1) for i, time in enumerate(times)] for times in rng.uniform(5, 9, (6, 3))]
    groups = [Group(f"g{i}", (*options, Option("quick", 0.1, 1.0, 1))) for i, options in enumerate(exact)]
    pairs = [(a.name, b.name) for a, b in product(groups[0].options, repeat=2)]
    extra = [dict(zip(pairs, costs.tolist(), strict=True)) for costs in rng.uniform(0, 9, (5, 16))]
    edges = [Edge(f"g{i}", f"g{i + 1}", costs) for i, costs in enumerate(extra)]
    last, any_exact = frontier(groups, edges, points=2)[-1], most_accurate(groups, edges)
    assert any_exact is not None
    assert last.error == any_exact.error == 0.0
    assert last.microseconds == min(c.microseconds for c in everything(groups, edges) if c.error == 0.0)
    assert last.microseconds < any_exact.microseconds, "else this tests nothing"


def test_a_choice_that_passes_a_limit_by_the_last_digit_is_none() -> None:
    group = Group("g", (Option("fast", 0.3, 1.0, 1), FLOAT))
    assert fastest([group], max_error=0.3) == Choice({"g": "fast"}, 0.3, 1.0, 1)
    assert fastest([group], max_error=float(np.nextafter(0.3, 0))) == Choice({"g": "float"}, 0.0, 9.0, 40)


@pytest.mark.parametrize("early", [0, 1])
def test_the_knee_says_so_where_either_search_stopped(monkeypatch: pytest.MonkeyPatch, early: int) -> None:
    runs = count()

    def solver(*args: Any, **options: Any) -> Any:
        found = milp(*args, **options)
        found.update(status=int(next(runs) == early), mip_gap=0.5)
        return found

    monkeypatch.setattr("onnxq.search.knapsack.milp", solver)
    got = knee(TWO, BOUNDARY)
    assert got is not None
    assert "stopped after 10 s" in got.note


def test_the_knee_keeps_to_its_bytes() -> None:
    group = Group("g", (Option("fast", 0.1, 1.0, 100), Option("small", 0.2, 5.0, 1)))
    assert knee([group], max_bytes=1) == Choice({"g": "small"}, 0.2, 5.0, 1)


def twelve(values: Any) -> list[Group]:
    """Groups with the given errors and times: (groups, options, 2)."""
    options = [tuple(Option(f"o{i}", e, t, 1) for i, (e, t) in enumerate(group)) for group in values.tolist()]
    return [Group(f"g{i}", each) for i, each in enumerate(options)]


@pytest.mark.parametrize(("error", "time"), [(1e-9, 1e6), (1e-9, 1.0), (1.0, 1e6)])
def test_units_do_not_matter(error: float, time: float) -> None:
    values = np.random.default_rng(5).uniform(0.1, 1.0, (12, 3, 2))
    plain, scaled = twelve(values), twelve(values * (error, time))
    fast = [fastest(groups, max_error=5.0 * unit) for groups, unit in ((plain, 1.0), (scaled, error))]
    near = [most_accurate(groups, max_microseconds=6.0 * unit) for groups, unit in ((plain, 1.0), (scaled, time))]
    for before, after in (fast, near):
        assert before is not None
        assert after is not None
        assert before.options == after.options


def large(groups: int, links: int) -> Instance:
    """A chain of groups with a few links across, whose forms differ as float, int8 and int4 do."""
    rng = np.random.default_rng(11)
    time = 10 ** rng.uniform(1, 4, groups)
    faster = -np.sort(-rng.uniform(0.25, 1.0, (groups, 4)), axis=1)
    noisier = np.hstack([np.zeros((groups, 1)), np.sort(10 ** rng.uniform(-6, -1, (groups, 3)), axis=1)])
    made = [
        Group(f"g{g}", tuple(Option(f"o{o}", noisier[g, o], time[g] * faster[g, o], 40 + 20 * o) for o in range(4)))
        for g in range(groups)
    ]
    ends = [(g, g + 1) for g in range(groups - 1)] + [(3 * g, 3 * g + 7) for g in range(links - groups + 1)]
    pairs = [(f"o{a}", f"o{b}") for a in range(4) for b in range(4) if a != b]
    dear = [(min(time[a], time[b]) * rng.uniform(0, 0.3, len(pairs))).tolist() for a, b in ends]
    extra = [dict(zip(pairs, costs, strict=True)) for costs in dear]
    return made, [Edge(f"g{a}", f"g{b}", costs) for (a, b), costs in zip(ends, extra, strict=True)]


def test_a_large_model_gets_a_choice_within_its_limits() -> None:
    groups, edges = large(200, 250)
    found = [fastest(groups, edges, max_error=0.1)]
    assert [(c.error <= 0.1, len(c.options)) for c in found if c] == [(True, 200)]


@pytest.mark.parametrize("limit", [1700, 2200, 2900])
def test_a_chain_is_solved_as_well_as_by_dynamic_programming(limit: int) -> None:
    groups, edges = large(40, 39)
    least = {(option.name, option.bytes): option.microseconds for option in groups[0].options}
    for group, edge in zip(groups[1:], edges, strict=True):
        longer: dict[tuple[str, int], float] = {}
        for ((name, size), time), option in product(least.items(), group.options):
            key = (option.name, size + option.bytes)
            total = time + edge.pairs.get((name, option.name), 0.0) + option.microseconds
            longer[key] = min(longer.get(key, inf), total)
        least = longer
    got = fastest(groups, edges, max_bytes=limit)
    assert got is not None
    assert got.microseconds == pytest.approx(min(t for (_, size), t in least.items() if size <= limit), rel=1e-9)


def test_the_same_groups_get_the_same_choices() -> None:
    first = frontier(*large(20, 22))
    assert (first, len(first)) == (frontier(*large(20, 22)), 5)


@pytest.mark.parametrize(
    ("groups", "edges", "words"),
    [
        ([], [], "There is no group"),
        ([Group("a", ())], [], "has no option"),
        ([TWO[0], TWO[0]], [], "have the same name"),
        ([TWO[0], Group("a", (Option("other", 0, 1, 1),))], [], "have the same name"),
        ([Group("a", (FLOAT, FLOAT))], [], "have the same name"),
        (TWO, [Edge("a", "c", {("float", "int8"): 1.0})], "from ('a', 'float') to ('c', 'int8')"),
        (TWO, [Edge("a", "b", {("float", "int9"): 1.0})], "to ('b', 'int9')"),
        (TWO, [Edge("a", "a", {("float", "int8"): 1.0})], "two groups that exist"),
        (TWO, [Edge("a", "b", {("float", "int8"): -1.0})], "below 0"),
        (TWO, [Edge("a", "b", {}, {("float", "int8"): -1.0})], "below 0"),
        (TWO, [Edge("a", "b", {}, {("float", "int8"): inf})], "not finite"),
        (TWO, [Edge("a", "b", {}, {("int9", "int8"): 1.0})], "from ('a', 'int9')"),
        ([Group("a", (Option("float", inf, 1.0, 1),))], [], "not finite"),
    ],
)
def test_what_makes_no_sense_is_refused(groups: list[Group], edges: list[Edge], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        fastest(groups, edges)
