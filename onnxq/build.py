"""From a float graph to a quantized one: prepare, plan, quantize, fold."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from onnxq import runtime
from onnxq.calibration.collect import Progress, Statistics, collect, load_statistics, non_finite, silent
from onnxq.calibration.data import Data
from onnxq.decision import decide
from onnxq.errors import DataError, RecipeError, UnsupportedModel
from onnxq.graph import Graph, is_constant, to_model, upgrade
from onnxq.layers import LAYERS
from onnxq.passes import FOLD, NORMALIZE, QUANTIZE
from onnxq.pipeline import Context, Outcome, Pass, run
from onnxq.placement import Placement, embeddings, needed_opset, place, place_linear
from onnxq.plan import Plan, Treatment
from onnxq.recipe import Mode, RangeRule, Recipe, matches
from onnxq.rewrite import Change
from onnxq.search.sensitivity import RULE_SAMPLES, SAMPLES, layer_noise, noise_meter, worst_layers
from onnxq.spec import Fact, has_integer_operators, has_qdq
from onnxq.targets import TARGETS

WEIGHTED = LAYERS | {"ConvTranspose", "LSTM", "GRU", "RNN"}
"""Operators that a user expects to be quantized."""

RULES: tuple[RangeRule, ...] = ("mse", "percentile", "entropy", "minmax")
"""What `range = "auto"` tries, in the order of preference."""

CLEARLY_LESS = 0.9
"""A rule replaces an earlier one where it leaves less than this share of its noise (half a decibel)."""

OLDEST_OPSET = 10
"""The first opset with integer operators."""


class Nothing(Exception):
    """There is nothing to do for this model, for the reason that it carries."""


@dataclass
class Build:
    """A model on its way, and the record of what happened to it.

    Attributes:
        graph: as it is now.
        recipe: what was asked for.
        mode: what is built; never `auto`.
        plan: every decision, once they are made.
        changes: by name of the pass.
        warnings: what a careful person would want to know.
        seconds: time by stage.
        progress: told what is going on.
    """

    graph: Graph
    recipe: Recipe
    mode: Mode
    plan: Plan | None = None
    changes: dict[str, list[Change]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    progress: Progress = silent

    @property
    def context(self) -> Context:
        """What passes may read."""
        return Context(TARGETS[self.recipe.target], self.plan)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of a stage."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)

    def apply(self, passes: Sequence[Pass], given: frozenset[Fact]) -> None:
        """Run passes, and remember their changes."""
        outcome: Outcome = run(passes, self.graph, self.context, given)
        self.graph = outcome.graph
        for name, changes in outcome.changes.items():
            self.changes.setdefault(name, []).extend(changes)


def choose_mode(recipe: Recipe, informed: bool) -> Mode:
    """Static where there is data, a plan or statistics; dynamic where there is none. Raises DataError."""
    if recipe.mode == "auto":
        return "static-int8" if informed else "dynamic-int8"
    if recipe.mode == "static-int8" and not informed:
        raise DataError("static-int8 needs data to calibrate on. Give --data, or use --recipe dynamic-int8.")
    if recipe.mode == "dynamic-int8" and recipe.format == "qdq":
        raise RecipeError("Dynamic quantization has no Q/DQ form. Use --format integer, or --recipe static-int8.")
    return recipe.mode


def typed(graph: Graph) -> Graph:
    """The graph with the element types and shapes that the runtime infers; shape inference never fails for good."""
    names = [name for name, tensor in graph.tensors().items() if not is_constant(tensor) and tensor.inputs]
    model = to_model(graph, extra_outputs=names).SerializeToString()
    graph.annotate(runtime.tensor_types(model, graph.folder))
    return graph


def prepare(build: Build) -> Placement:
    """Normalize, and decide where integers pay; raises the opset where an integer operator needs a newer one.

    Raises:
        Nothing: no operator can run on integers.
        UnsupportedModel: the runtime refuses the model.
    """
    typed(build.graph)
    build.apply(NORMALIZE, frozenset())
    placement = _place(build)
    needed = needed_opset(build.graph, placement, build.recipe, build.mode)
    if build.graph.opset < needed:
        try:
            build.graph = typed(upgrade(build.graph, needed))
            build.apply(NORMALIZE, frozenset())
            placement = _place(build)
        except UnsupportedModel as error:
            if build.graph.opset < OLDEST_OPSET:
                raise Nothing(str(error)) from None
            build.warnings.append(f"{error} Some operators stay in float.")
    for pattern in build.recipe.nodes:
        if not any(matches(pattern, node.name, node.op) for node in build.graph.nodes):
            build.warnings.append(f"Pattern '{pattern}' of the recipe matches no node and no operator.")
    if all(plan.treatment is Treatment.FLOAT for plan in placement.nodes.values()):
        raise Nothing(_why_nothing(build.graph, placement))
    return placement


def _place(build: Build, spared: Mapping[str, str] | None = None) -> Placement:
    graph, recipe = build.graph, build.recipe
    if build.mode == "static-int8":
        placement = place(graph, build.context.target, recipe, spared)
    else:
        treatment = Treatment.DYNAMIC if build.mode == "dynamic-int8" else Treatment.WEIGHT
        placement = place_linear(graph, recipe, treatment)
    placement.nodes.update(embeddings(graph, recipe))
    return placement


def _why_nothing(graph: Graph, placement: Placement) -> str:
    layers = [(n, p) for n, p in placement.nodes.items() if p.op in WEIGHTED]
    if layers:
        name, plan = layers[0]
        return (
            f"No operator can run on integers; the first of {len(layers)} layers, '{name}' ({plan.op}): {plan.reason}"
        )
    inside = sorted({n.op for n in graph.nodes if n.op in ("If", "Loop", "Scan")})
    if inside:
        return f"All layers lie inside {', '.join(inside)}, whose bodies are carried through as they are."
    return "The model holds no layer with a weight (Conv, MatMul, Gemm) to quantize."


def calibrate_graph(build: Build, placement: Placement, data: Data, threads: int, memory: int | None) -> Statistics:
    """Statistics of every tensor that the placement needs a range for."""
    sums = {name for pair in placement.sums.values() for name in pair}
    names = sorted({*placement.tensors, *placement.tensors.values(), *sums} - set(placement.fixed))
    with build.stage("calibrate"):
        found = collect(build.graph, names, data, threads=threads, memory=memory, progress=build.progress)
    for name, count in non_finite(found, without=sums).items():
        build.warnings.append(f"Tensor '{name}' was NaN or infinite {count} times in calibration; these were left out.")
    return found


def make_plan(build: Build, data: Data | None, statistics: Sequence[Path], threads: int, memory: int | None) -> None:
    """Decide everything: from files of statistics, from data, or without either where the mode needs none."""
    placement = prepare(build)
    found: Statistics = {}
    if placement.tensors or placement.sums:
        if statistics:
            found = load_statistics(statistics)
        elif data is not None:
            found = calibrate_graph(build, placement, data, threads, memory)
    with build.stage("plan"):
        build.plan = decide(placement, found, build.recipe, build.context.target)
    if data is not None and build.plan.tensors:
        with build.stage("search"):
            if build.recipe.activation.range == "auto":
                choose_rule(build, placement, found, data)
            if build.recipe.least_sqnr:
                spare_worst(build, found, data)


def choose_rule(build: Build, placement: Placement, statistics: Statistics, data: Data) -> None:
    """Take the range rule that leaves the least noise at the outputs."""
    measure = noise_meter(build.graph, build.context, data, RULE_SAMPLES)
    best = math.inf
    for done, rule in enumerate(RULES, 1):
        recipe = by_rule(build.recipe, rule)
        plan = decide(placement, statistics, recipe, build.context.target)
        noise = measure(plan)
        if noise < CLEARLY_LESS * best:
            best, build.plan = noise, plan
        build.progress("ranges", done, len(RULES))


def by_rule(recipe: Recipe, rule: RangeRule) -> Recipe:
    """The recipe with another range rule."""
    return recipe.model_copy(update={"activation": recipe.activation.model_copy(update={"range": rule})})


def spare_worst(build: Build, statistics: Statistics, data: Data) -> None:
    """Leave the layers in float that cause most of the noise, where the outputs keep less than the recipe wants."""
    graph, context, wanted = build.graph, build.context, build.recipe.least_sqnr
    assert build.plan is not None
    measure = noise_meter(graph, context, data, SAMPLES)
    before, budget = measure(build.plan), 10 ** (-wanted / 10)
    if before <= budget:
        return
    noise = layer_noise(build.plan, measure, build.progress)
    reasons = {
        name: f"In integers it alone costs too much: the outputs keep {decibels(noise[name]):.1f} dB over its noise."
        for name in worst_layers(noise, budget)
    }
    spared = decide(_place(build, reasons), statistics, build.plan.recipe, context.target)
    after = measure(spared)
    if after < before:
        build.plan = spared
    if min(after, before) > budget:
        build.warnings.append(
            f"The outputs keep {decibels(min(after, before)):.1f} dB over the quantization noise; "
            f"the recipe asks for {wanted:g} (least_sqnr)."
        )


def decibels(noise: float) -> float:
    """Signal over noise in dB, from noise over signal."""
    return -10 * math.log10(noise) if noise > 0 else math.inf


def follow_plan(build: Build, plan: Plan) -> None:
    """Take the decisions of a plan that was made before. Raises RecipeError where it does not fit the model."""
    prepare(build)
    names = {node.name: node for node in build.graph.nodes}
    for name, decision in plan.nodes.items():
        if name not in names:
            raise RecipeError(f"The plan names node '{name}', which the model does not have. Make the plan again.")
        if decision.treatment is Treatment.STATIC and decision.op in LAYERS:
            data = names[name].inputs[0].name
            if data not in plan.tensors:
                raise RecipeError(
                    f"The plan runs '{name}' on static integers, but has no range for its input '{data}'."
                )
    build.plan = plan


def quantize(build: Build) -> None:
    """Write the plan into the graph, and fold it where the recipe wants integer operators."""
    with build.stage("quantize"):
        given = frozenset({Fact.NAMED, Fact.NORMAL})
        build.apply(QUANTIZE, given)
        if build.recipe.format == "integer":
            build.apply(FOLD, given | {Fact.QDQ})


def fold_existing(build: Build) -> None:
    """Fold the Q/DQ that a model brings along, with its own scales. Raises Nothing where there is nothing to fold."""
    if build.recipe.format == "qdq":
        raise Nothing("The model already holds Q/DQ, and --format qdq asks for nothing else.")
    with build.stage("fold"):
        typed(build.graph)
        build.apply(NORMALIZE, frozenset())
        build.apply(FOLD, frozenset({Fact.NAMED, Fact.NORMAL, Fact.QDQ}))


def already_quantized(graph: Graph) -> str | None:
    """The sentence why a model that already holds integer operators is left as it is."""
    if has_integer_operators(graph):
        return "The model already holds integer operators; quantizing it again would only lose accuracy."
    return None


def build_model(
    build: Build,
    plan: Plan | None,
    data: Data | None,
    statistics: Sequence[Path],
    threads: int,
    memory: int | None,
) -> None:
    """The whole way. Raises Nothing where the model is best left alone."""
    reason = already_quantized(build.graph)
    if reason is not None:
        raise Nothing(reason)
    if has_qdq(build.graph):
        fold_existing(build)
        return
    if plan is not None:
        follow_plan(build, plan)
    else:
        make_plan(build, data, statistics, threads, memory)
        assert build.plan is not None
        resolved = build.plan.recipe.model_copy(update={"mode": build.mode})
        build.plan = build.plan.model_copy(update={"recipe": resolved})
    quantize(build)
