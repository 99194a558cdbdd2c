"""Plans that give each layer the form that pays, from what was measured of its parts, then measured whole.

    noise and time of each form ── choose within budgets of noise ── build and measure each plan ── rank

Sums predict and models decide: what a plan leaves as noise, what it loses by the metric of the contract and how fast it
is are measured on the model that it makes (`trial.py`). Where that is more noise than the sums told, the budgets shrink
by as much, and the choice is made again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxq.build import place_graph
from onnxq.channels import BALANCED
from onnxq.decision import decide
from onnxq.graph import to_model
from onnxq.metric import Score
from onnxq.options import Options
from onnxq.placement import place_linear
from onnxq.plan import NodePlan, Plan, Treatment
from onnxq.recipe import Contract
from onnxq.search.cost import Costs, measure_costs
from onnxq.search.forms import BITS, DYNAMIC, FLOAT, STATIC, Forms
from onnxq.search.grouping import Grouping
from onnxq.search.mix import Table, best_trade, fastest_mixture, layers_of, mixtures, uniform
from onnxq.search.stopwatch import Stopwatch
from onnxq.study import Study
from onnxq.trial import NOISE_WORTH, TURNED_WORTH, USUAL_NOISE, Outcome, Trials

OFF = 1.5
"""How far sums may be off before budgets allow for it."""

FEW = 3
"""Plans that do not promise to keep the contract, and are tried all the same."""

NEARLY = 0.95
"""Share of the speed that is asked for which another measurement may make up for."""


@dataclass(frozen=True)
class Tried:
    """A plan and what was measured of it."""

    plan: Plan
    outcome: Outcome

    @property
    def price(self) -> float:
        """Time and accuracy in one number: the logarithm of the time, and what the noise is worth."""
        score, out = self.outcome.score, self.outcome
        turned = None if score is None else score.turned
        return (NOISE_WORTH * out.noise if turned is None else TURNED_WORTH * turned) - math.log(out.speedup)

    def keeps(self, contract: Contract, most: int | None) -> bool:
        """Whether it promises to keep a contract: measured on what calibration saw, and so without doubt's benefit."""
        score, out = self.outcome.score, self.outcome
        accurate = score is None or _likely_drop(score) <= contract.limit(score.metric)
        quiet = contract.max_drop is not None or out.noise <= USUAL_NOISE
        return accurate and quiet and self.small(most) and out.speedup >= contract.min_speedup

    def small(self, most: int | None) -> bool:
        """Whether its model takes so many bytes at most; None is any number."""
        return most is None or self.outcome.bytes <= most


def _likely_drop(score: Score) -> float:
    """What more samples would show, as far as that can be told."""
    return score.turned if score.metric == "agreement" and score.turned is not None else score.drop


def mixed_plans(study: Study, static: Plan, options: Options) -> list[Plan]:
    """Plans that give each layer the form that pays: static, dynamic, weight alone or float; the best trade first."""
    forms = Forms(study.build.graph, study.build.context.target, static)
    table = Table(Grouping(forms), *measure_forms(study, forms, options))
    trials = Trials(study, options.batch)
    tried: dict[str, Tried] = {}

    def attempt(plan: Plan) -> Tried:
        key = plan.deeds
        if key not in tried:
            tried[key] = Tried(plan, trials.outcome(plan))
        return tried[key]

    bold = fastest_mixture(table)
    outcome = attempt(plan_of(study, static, bold.nodes)).outcome
    off = outcome.noise / bold.noise if bold.noise > 0 else 1.0
    factor = 1.0 if 1 / OFF < off < OFF or not math.isfinite(off) else off
    most = study.recipe.contract.most_bytes(to_model(study.unchanged).ByteSize())
    room = None if most is None else most - (outcome.bytes - bold.bytes)
    trade = best_trade(table, NOISE_WORTH * factor, room)
    found = [*mixtures(table, factor, room), *([trade] if trade else [])]
    layers = [layers_of(table, mixture.nodes) for mixture in found[:FEW]]
    every = [
        *(mixture.nodes for mixture in found),
        *layers,
        *(uniform(table, form) for form in (STATIC, DYNAMIC, *BITS)),
    ]
    every += [uniform(table, FLOAT)] if study.rewrites else []
    for done, nodes in enumerate(every, 1):
        attempt(plan_of(study, static, nodes))
        study.build.progress("plans", done, len(every))
    for entry in ranked(list(tried.values()), study.recipe.contract, most)[:FEW]:
        attempt(otherwise_rounded(entry.plan, study))
    return [measured(entry) for entry in ranked(list(tried.values()), study.recipe.contract, most)]


def otherwise_rounded(plan: Plan, study: Study) -> Plan:
    """The plan with its static layers rounded as was no better for all layers together: for these it may be."""
    nodes = {
        name: node.model_copy(update={"rounding": study.other_rounding.get(name, "")})
        for name, node in plan.nodes.items()
        if node.treatment is Treatment.STATIC
    }
    return plan.model_copy(update={"nodes": {**plan.nodes, **nodes}})


def ranked(tried: Sequence[Tried], contract: Contract, most: int | None) -> list[Tried]:
    """Plans in the order in which they are worth proving: those that keep the contract, then what comes near to it.

    Of those that keep it, the best trade comes first, if it is better than no trade at all; where the accuracy is
    asked for, the fastest. Of the others the most cautious ones are tried too, for other samples may judge otherwise.
    """
    good = [e for e in tried if e.keeps(contract, most) and (e.price < 0 or contract.max_drop is not None)]
    good.sort(key=lambda entry: entry.price if contract.max_drop is None else -entry.outcome.speedup)
    others = [entry for entry in tried if entry not in good and not entry.plan.does_nothing]
    near = [e for e in others if e.small(most) and e.outcome.speedup >= NEARLY * contract.min_speedup]
    near.sort(key=lambda entry: entry.outcome.noise)
    if good or near:
        return [*good, *near[:FEW]]
    return [min(tried, key=lambda entry: (not entry.small(most), -entry.outcome.speedup))]


def measured(entry: Tried) -> Plan:
    """The plan with what was measured of it, three digits of that."""
    outcome = entry.outcome
    drop = None if outcome.score is None else three_digits(outcome.score.drop)
    values = {"noise": three_digits(outcome.noise), "speedup": three_digits(outcome.speedup), "drop": drop}
    return entry.plan.model_copy(update=values)


def three_digits(value: float) -> float:
    """What a measurement is worth."""
    return float(f"{value:.3g}")


def plan_of(study: Study, static: Plan, nodes: Mapping[str, NodePlan]) -> Plan:
    """The static plan with other decisions about some nodes; channels are balanced where integers read them."""
    placement = place_graph(study.build, {name: plan.reason for name, plan in nodes.items()})
    placement.nodes.update(nodes)
    plan = study.plan(static.recipe.activation.range, placement)
    scaled = (Treatment.STATIC, Treatment.DYNAMIC)
    integer = [node for node in study.build.graph.nodes if plan.treatment(node.name) in scaled]
    read = {tensor.name.removesuffix(BALANCED) for node in integer for tensor in node.inputs}
    kept = {name: own for name, own in plan.balance.items() if integer and (not own.multiplies or name in read)}
    gone = {f"{name}{BALANCED}" for name in plan.balance.keys() - kept.keys()}
    muls = {node.name for node in study.build.graph.nodes for tensor in node.outputs if tensor.name in gone}
    rest = {name: node for name, node in plan.nodes.items() if name not in muls}
    return plan.model_copy(update={"balance": kept, "nodes": rest})


def measure_forms(study: Study, forms: Forms, options: Options) -> tuple[dict[str, float], Costs]:
    """Noise of everything that a form rounds, and microseconds of everything that can take a form."""
    build, data = study.build, study.data
    assert data is not None
    grouping = Grouping(forms)
    names = [name for name, plan in forms.plan.nodes.items() if plan.treatment is Treatment.STATIC]
    muls = [node.name for node in grouping.muls.values()]
    watch = Stopwatch(threads=study.threads, memo=study.memo, progress=build.progress)
    feeds = next(data.batches(options.batch))
    plans = {STATIC: forms.plan, **{form: linear_plan(study, form) for form in (DYNAMIC, *BITS)}}
    costs = measure_costs(build.graph, plans, [*names, *muls], feeds, build.context.target, watch)
    samples = study.affordable(len(grouping.rounded))
    noise = study.recall(
        "shares",
        [samples, forms.plan.deeds],
        lambda: grouping.noise(data, samples, build.progress),
    )
    return noise, costs


def linear_plan(study: Study, form: str) -> Plan:
    """The plan that puts every linear layer in a form that needs no ranges."""
    treatment = Treatment.WEIGHT if form in BITS else Treatment(form)
    placement = place_linear(study.build.graph, study.recipe, treatment, BITS.get(form, 8))
    return decide(placement, {}, study.recipe, study.build.context.target)
