"""From a prepared graph and data to plans: ranges, balanced channels, and the form of every layer.

place ── collect ── balance ── ranges ─┬─ static: spare the worst layers
                                       └─ mixed: measure noise and cost of each form; choose, from bold to cautious
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.build import (
    GIVEN,
    Build,
    Nothing,
    already_quantized,
    fold_existing,
    follow_plan,
    place_graph,
    prepare,
    raised,
)
from onnxq.calibration.collect import Seen, Statistics, collect, load_statistics, non_finite
from onnxq.calibration.data import Data
from onnxq.decision import Range, decide
from onnxq.fake_quant import brings_scales
from onnxq.graph import Graph
from onnxq.half_planning import place_halves
from onnxq.mixed import mixed_plans
from onnxq.muls import without_dear_muls
from onnxq.options import Options
from onnxq.passes import BALANCE, FASTER, FOLD, QUANTIZE
from onnxq.pipeline import Context, run
from onnxq.placement import Placement
from onnxq.plan import BalancePlan, Plan, Treatment
from onnxq.recipe import WEIGHT_ONLY, RangeRule
from onnxq.search.balance import Site, find_balance, sites
from onnxq.search.forms import Forms, layer_shares
from onnxq.search.grouping import Grouping
from onnxq.search.reach import best_ranges
from onnxq.search.refine import LOUDEST, refined_ranges
from onnxq.search.rewrites import fires, keeps_named, worth_it
from onnxq.search.rounding import choose_rounding
from onnxq.search.sensitivity import RULE_SAMPLES, SAMPLES, worst_layers
from onnxq.spec import has_qdq
from onnxq.study import Study, by_rule, fingerprint
from onnxq.version import __version__
from onnxq.weight_plans import weight_plans

RULES: tuple[RangeRule, ...] = ("mse", "percentile", "entropy", "minmax")
"""What `range = "auto"` tries for all tensors alike, in the order of preference."""

ATTENTION_OPSET = 23
"""The version of the standard operators that brought Attention."""

WELL_KNOWN = 512
"""Values of a channel that tell how far it reaches; after fewer, unseen data goes past it, and would be cut off."""

CLEARLY_LESS = 0.9
"""Something replaces an earlier choice where it leaves less than this share of its noise (half a decibel)."""


def plan_model(
    build: Build, plan: Plan | None, data: Data | None, statistics: Sequence[Path], options: Options
) -> list[Plan]:
    """Plans in the order in which they are worth trying; none for a model that brings scales of its own.

    Raises:
        Nothing: the model is best left alone.
    """
    reason = already_quantized(build.graph)
    if reason is not None:
        raise Nothing(reason)
    if has_qdq(build.graph) or (not build.context.target.half and brings_scales(build.graph)):
        fold_existing(build)
        return []
    if plan is not None:
        follow_plan(build, plan)
        return [plan]
    resolved = build.recipe.model_copy(update={"mode": build.mode})
    plans = make_plans(build, data, statistics, options)
    return [
        plan.model_copy(update={"recipe": plan.recipe.model_copy(update={"mode": resolved.mode})}) for plan in plans
    ]


def make_plans(build: Build, data: Data | None, statistics: Sequence[Path], options: Options) -> list[Plan]:
    """Decide: from files of statistics, from data, or without either where the mode needs none."""
    placement = prepare(build)
    rewrites: list[str] = []
    opset, plain = 0, build.graph
    if build.mode == "mixed-int8" and data is not None:
        with build.stage("rewrite"):
            rewrites, opset = make_faster(build, data, options)
            placement = place_graph(build)
    if build.context.target.half and build.mode != "static-int8":
        placement, rewrites, opset = place_halves(build, placement, data, options)
    found: Statistics = {}
    if placement.tensors or placement.sums:
        if statistics:
            found = load_statistics(statistics)
        elif data is not None:
            found = calibrate_graph(build, placement, data, options.threads, options.memory)
    study = Study(build, placement, found, data, options.threads, options.memory, options.memo, rewrites, opset)
    build.seen = found
    with build.stage("plan"):
        plan = study.plan()
    if build.mode in WEIGHT_ONLY:
        with build.stage("search"):
            return weight_plans(build, plan)
    if data is None or not plan.tensors:
        return [plan]
    study.plain = plain
    study.key = {"data": fingerprint(data, found), "threads": options.threads, "version": __version__}
    with build.stage("search"):
        if build.recipe.balance:
            balance_channels(study, options)
        plan = refine(study, choose_rule(study)) if build.recipe.activation.range == "auto" else study.plan()
        if build.recipe.weight.rounding == "auto":
            plan = choose_rounding(study, plan)
        if build.mode == "mixed-int8":
            plans = mixed_plans(study, plan, options)
        else:
            plans = [spare_worst(study, plan) if build.recipe.least_sqnr else plan]
    build.graph, build.seen = study.before, study.statistics
    return plans


def make_faster(build: Build, data: Data, options: Options) -> tuple[list[str], int]:
    """Apply the rewrites that pay on this machine, in floats or quantized; their names, and the opset for them."""
    target, recipe = build.context.target, by_rule(build.recipe, "minmax")

    def draft(graph: Graph) -> Graph:
        placement = place_graph(replace(build.beside(graph), mode="static-int8"))
        made_up = dict.fromkeys(placement.tensors.values(), Seen.of(np.array([-4, 4], np.float32)))
        plan = decide(placement, made_up, recipe, target)
        return run((*QUANTIZE, *FOLD), graph, Context(target, plan), GIVEN).graph

    feeds = next(data.batches(options.batch))
    newer = raised(build, ATTENTION_OPSET)
    graph, context = newer or build.graph, build.context
    steps = [step for step in FASTER if keeps_named(step, graph, context, build.recipe)]
    found = worth_it(steps, graph, context, draft, feeds, options.threads, options.memo, build.progress)
    needed = newer is not None and not all(fires(step, build.graph, context) for step in found)
    names, opset = [type(step).__name__ for step in found], ATTENTION_OPSET if needed else 0
    build.rewrite(names, opset)
    return names, opset


def calibrate_graph(build: Build, placement: Placement, data: Data, threads: int, memory: int | None) -> Statistics:
    """Statistics of every tensor that the placement needs a range for."""
    sums = {name for pair in placement.sums.values() for name in pair}
    names = sorted({*placement.tensors, *placement.tensors.values(), *sums} - set(placement.fixed))
    with build.stage("calibrate"):
        found = collect(build.graph, names, data, threads=threads, memory=memory, progress=build.progress)
    for name, count in non_finite(found, without=sums).items():
        build.warnings.append(f"Tensor '{name}' was NaN or infinite {count} times in calibration; these were left out.")
    return found


def balance_channels(study: Study, options: Options) -> None:
    """Rescale channels where that leaves less noise, and measure whether it did."""
    build, data = study.build, study.data
    assert data is not None
    static = {name for name, plan in study.placement.nodes.items() if plan.treatment is Treatment.STATIC}
    made = {tensor.name for node in build.graph.nodes if node.name in static for tensor in node.outputs}
    known = {name: seen for name, seen in study.statistics.items() if seen.sums.count >= WELL_KNOWN}
    found = sites(build.graph, known, static, made)
    if not found:
        return
    plain = study.plan("mse")
    balance = recalled_balance(study, plain, found)
    if build.mode == "mixed-int8":
        balance = without_dear_muls(study, plain, balance, options)
    if not balance:
        return
    trial = plain.model_copy(update={"balance": balance})
    graph = run(BALANCE, build.graph, Context(build.context.target, trial), GIVEN).graph
    other = replace(study, build=build.beside(graph), balance=balance, original=build.graph)
    other.placement = place_graph(other.build)
    other.statistics = calibrate_graph(other.build, other.placement, data, study.threads, study.memory)
    samples = study.affordable(2)
    if other.meter(samples)(other.plan("mse")) < CLEARLY_LESS * study.meter(samples)(plain):
        build.graph = graph
        study.placement, study.statistics = other.placement, other.statistics
        study.original, study.balance = other.original, balance
        study.__dict__.pop("digest", None)


def recalled_balance(study: Study, plain: Plan, found: list[Site]) -> dict[str, BalancePlan]:
    """The factors that pay, each layer's gain weighed by what its noise means at the outputs."""
    build, data = study.build, study.data
    assert data is not None

    def search() -> Any:
        samples = study.affordable(len(plain.nodes))
        shares = layer_shares(build.graph, build.context.target, plain, data, samples, build.progress)
        balance = find_balance(build.graph, found, data, study.recipe, shares, build.progress)
        return {name: plan.model_dump(mode="json") for name, plan in balance.items()}

    known = study.recall("balance", plain.deeds, search)
    return {name: BalancePlan.model_validate(plan) for name, plan in known.items()}


def choose_rule(study: Study) -> Plan:
    """The plan by the rule that leaves the least noise at the outputs: one for all tensors, or the best for each."""
    assert study.data is not None
    build, measure = study.build, study.meter(RULE_SAMPLES)
    best, least = study.plan("mse"), math.inf
    for done, rule in enumerate(RULES, 1):
        plan = study.plan(rule)
        noise = measure(plan)
        if noise < CLEARLY_LESS * least:
            least, best = noise, plan
        build.progress("rules", done, len(RULES))
    uniform = best.recipe.activation.range
    single = {name for name, node in study.placement.asked.items() if build.recipe.override(node.name, node.op).range}
    study.chosen = {
        name: ends
        for name, ends in recalled_ranges(study, best).items()
        if name not in single and name not in study.placement.fixed
    }
    plan = study.plan(uniform)
    if measure(plan) < CLEARLY_LESS * least:
        best = plan
    else:
        study.chosen = {}
    return best


def recalled_ranges(study: Study, plain: Plan) -> dict[str, Range]:
    """The range of each tensor that hurts the layers behind it least."""
    build, data = study.build, study.data
    assert data is not None

    def search() -> Any:
        found = best_ranges(build.graph, study.placement.tensors, study.statistics, data, study.recipe, build.progress)
        return {name: list(ends) for name, ends in found.items()}

    known = study.recall("ranges", plain.deeds, search)
    return {name: (low, high, rule) for name, (low, high, rule) in known.items()}


def refine(study: Study, plain: Plan) -> Plan:
    """The plan with other ranges for the loudest tensors, where that leaves less noise at the outputs."""
    build, data, measure = study.build, study.data, study.meter(RULE_SAMPLES)
    assert data is not None
    fixed = {name for name, node in study.placement.asked.items() if build.recipe.override(node.name, node.op).range}
    fixed |= study.placement.fixed.keys()
    sources = {tensor: source for tensor, source in study.placement.tensors.items() if source not in fixed}

    def search() -> Any:
        grouping = Grouping(Forms(build.graph, build.context.target, plain))
        samples = SAMPLES, study.affordable(LOUDEST * len(RULES))
        found = refined_ranges(grouping, sources, study.statistics, data, samples, build.progress)
        return {name: list(ends) for name, ends in found.items()}

    before = study.chosen
    known = study.recall("refined", plain.deeds, search)
    study.chosen = {**before, **{name: (low, high, rule) for name, (low, high, rule) in known.items()}}
    plan = study.plan(plain.recipe.activation.range)
    if known and measure(plan) < measure(plain):
        return plan
    study.chosen = before
    return plain


def spare_worst(study: Study, plan: Plan) -> Plan:
    """Leave the layers in float that cause most of the noise, where the outputs keep less than the recipe wants."""
    assert study.data is not None
    build, wanted = study.build, study.recipe.least_sqnr
    measure = study.meter(SAMPLES)
    before, budget = measure(plan), 10 ** (-wanted / 10)
    if before <= budget:
        return plan
    noise = layer_shares(build.graph, build.context.target, plan, study.data, SAMPLES, build.progress)
    reasons = {
        name: f"In integers it alone costs too much: the outputs keep {decibels(noise[name]):.1f} dB over its noise."
        for name in worst_layers(noise, budget)
    }
    spared = study.plan(plan.recipe.activation.range, place_graph(build, reasons))
    after = measure(spared)
    if min(after, before) > budget:
        build.warnings.append(
            f"The outputs keep {decibels(min(after, before)):.1f} dB over the quantization noise; "
            f"the recipe asks for {wanted:g} (least_sqnr)."
        )
    return spared if after < before else plan


def decibels(noise: float) -> float:
    """Signal over noise in dB, from noise over signal."""
    return -10 * math.log10(noise) if noise > 0 else math.inf
