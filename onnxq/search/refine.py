"""Ranges of the tensors that hurt most, chosen again by what they do to the outputs of the whole model.

A range that suits the layers behind a tensor best need not suit the outputs: what is clipped there may decide here. So
the few loudest tensors are tried with every proposal, one after the other, in a model where everything is rounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from onnxq.calibration.collect import Progress, Statistics, silent
from onnxq.calibration.data import Data
from onnxq.numerics.affine import parameters
from onnxq.search.grouping import Grouping
from onnxq.search.local import Range
from onnxq.search.reach import proposals
from onnxq.search.switches import Grid, Switch, SwitchBoard

LOUDEST = 12
"""How many ranges are tried again, at most."""

LOUD = 0.02
"""Those that cause less than this share of the noise are left alone."""

LESS = 0.98
"""Another range is taken where it leaves less than this share of the noise."""


def refined_ranges(
    grouping: Grouping,
    sources: Mapping[str, str],
    statistics: Statistics,
    data: Data,
    samples: Sequence[int],
    progress: Progress = silent,
) -> dict[str, tuple[float, float, str]]:
    """Low end, high end and rule of each range that another one should replace.

    Args:
        grouping: the float model and its static plan.
        sources: quantized tensors, each with the tensor whose range it takes; ranges that are fixed are left out.
        statistics: of these.
        data: what noise is measured on.
        samples: how many of it tell which tensors are loud, and how many choose.
        progress: told after each run.
    """
    plan = grouping.forms.plan
    ranges: dict[str, list[str]] = {}
    for tensor, source in sources.items():
        if source in statistics and tensor in plan.tensors:
            ranges.setdefault(source, []).append(tensor)
    loud = _loud(grouping, ranges, data, samples[0])
    options = {source: proposals(statistics[source].histogram, plan.recipe) for source in loud}
    static = list(grouping.static())
    others = [switch for source in loud for switch in _tried(grouping, ranges[source], options[source])]
    board = SwitchBoard(grouping.forms.graph, [*static, *others], data, samples[1])
    on = {switch.name for switch in static}
    least, chosen = board.noise(on), dict[str, tuple[float, float, str]]()
    for done, (source, found) in enumerate(options.items(), 1):
        best, before = "", {grouping.planned(tensor).name for tensor in ranges[source]}
        for rule in found:
            noise = board.noise(on - before | _names(ranges[source], rule))
            if noise < LESS * least:
                best, least = rule, noise
        if best:
            on = on - before | _names(ranges[source], best)
            chosen[source] = (*found[best], best)
        progress("ranges", done, len(options))
    return chosen


def _loud(grouping: Grouping, ranges: Mapping[str, Sequence[str]], data: Data, samples: int) -> list[str]:
    """The ranges that cause most of the noise, the loudest first."""
    switches = {tensor: grouping.planned(tensor) for tensors in ranges.values() for tensor in tensors}
    board = SwitchBoard(grouping.forms.graph, list(switches.values()), data, samples)
    noise = {source: board.noise([switches[tensor].name for tensor in tensors]) for source, tensors in ranges.items()}
    ranked, least = sorted(noise, key=lambda source: -noise[source]), LOUD * sum(noise.values())
    return [source for source in ranked if noise[source] > least][:LOUDEST]


def _tried(grouping: Grouping, tensors: Sequence[str], found: Mapping[str, Range]) -> Iterator[Switch]:
    """The tensors that share a range, on the grid of each other one."""
    settings = grouping.forms.plan.recipe.activation
    form = settings.grid
    for rule, ends in found.items():
        scale, zero_point = parameters(*ends, form, symmetric=settings.symmetric)
        grid = Grid(np.asarray(scale, np.float32), np.asarray(zero_point, form.dtype), form)
        for tensor in tensors:
            yield Switch(f"{tensor}|{rule}", tensor, grouping.rounded_for(tensor), grid=grid)


def _names(tensors: Sequence[str], rule: str) -> set[str]:
    return {f"{tensor}|{rule}" for tensor in tensors}
