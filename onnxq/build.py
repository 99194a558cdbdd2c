"""From a float graph to a quantized one: prepare, plan, quantize, fold."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Literal

from onnxq import runtime
from onnxq.blockwise import Work
from onnxq.calibration.collect import Progress, Statistics, silent
from onnxq.calibration.data import Data
from onnxq.channels import Factors, check_balance, divided
from onnxq.contract import CLEARLY_SLOWER
from onnxq.curriculum import Lesson
from onnxq.errors import RecipeError, UnsupportedModel
from onnxq.graph import Graph, is_constant, skeleton, upgrade
from onnxq.half_nodes import half_beside, half_nodes, newest
from onnxq.half_weights import half_already, half_weights
from onnxq.inner import inner_names, inner_plans
from onnxq.layers import LAYERS
from onnxq.lookups import stored_lookups
from onnxq.passes import BALANCE, FASTER, FIND, FOLD, NORMALIZE, QUANTIZE, SETTLE
from onnxq.pipeline import Context, Outcome, Pass, run
from onnxq.placement import Placement, embeddings, needed_opset, place, place_linear
from onnxq.plan import Plan, Treatment
from onnxq.recipe import WEIGHT_ONLY, Mode, Recipe, matches
from onnxq.rewrite import Change
from onnxq.shelf import Shelf
from onnxq.spec import Fact, has_integer_operators
from onnxq.targets import TARGETS
from onnxq.trained import check_scales

WEIGHTED = LAYERS | {"ConvTranspose", "LSTM", "GRU", "RNN"}
"""Operators that a user expects to be quantized."""

OLDEST_OPSET = 10
"""The first opset with integer operators."""


GIVEN = frozenset({Fact.NAMED, Fact.NORMAL})
"""What holds once a model is prepared."""


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
        factors: what the channels of inner tensors were divided by, to compare them with those of the float model.
        shelf: weights that were rounded.
        calibration: what weights are rounded with; None where there is no data.
        threads: of the runtime.
        teach: trains what was quantized, before it is folded: called with the build and the float graph; None: nobody.
        lesson: what that did.
        seen: what calibration saw of the tensors of the plan; empty where nothing was.
        progress: told what is going on.
    """

    graph: Graph
    recipe: Recipe
    mode: Mode
    plan: Plan | None = None
    changes: dict[str, list[Change]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    factors: dict[str, Factors] = field(default_factory=dict)
    shelf: Shelf = field(default_factory=Shelf)
    calibration: Data | None = None
    threads: int = 0
    teach: Callable[[Build, Graph], Lesson] | None = None
    lesson: Lesson | None = None
    seen: Statistics = field(default_factory=dict)
    progress: Progress = silent

    @property
    def context(self) -> Context:
        """What passes may read."""
        return Context(TARGETS[self.recipe.target], self.plan, self.shelf)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of a stage."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)

    def apply(self, passes: Sequence[Pass], given: frozenset[Fact]) -> None:
        """Run passes, and remember their changes."""
        self.adopt(run(passes, self.graph, self.context, given))

    def rewrite(self, names: Sequence[str], opset: int) -> None:
        """Apply the passes of these names that make a model faster, in operators of this version at least."""
        self.graph = raised(self, opset) or self.graph
        self.apply([step for step in FASTER if type(step).__name__ in names], GIVEN)
        self.graph = typed(self.graph)

    def beside(self, graph: Graph) -> Build:
        """The same request for another graph, on trial."""
        return replace(self, graph=graph, warnings=[])

    def adopt(self, outcome: Outcome) -> None:
        """Take over what passes made, and remember their changes."""
        self.graph = outcome.graph
        for name, changes in outcome.changes.items():
            self.changes.setdefault(name, []).extend(changes)


def raised(build: Build, opset: int) -> Graph | None:
    """The normalized graph in standard operators of a newer version; None where that is not newer, or cannot be."""
    if opset <= build.graph.opset:
        return None
    try:
        graph = typed(upgrade(build.graph, opset))
        return run(NORMALIZE, graph, build.context).graph
    except UnsupportedModel:
        return None


def typed(graph: Graph) -> Graph:
    """The graph with the element types and shapes that the runtime infers; shape inference never fails for good."""
    names = [name for name, tensor in graph.tensors().items() if not is_constant(tensor) and tensor.inputs]
    model = skeleton(graph, names).SerializeToString()
    graph.annotate(runtime.tensor_types(model, graph.folder))
    return graph


def prepare(build: Build) -> Placement:
    """Normalize, and decide where integers pay; raises the opset where an integer operator needs a newer one.

    Raises:
        Nothing: no operator can run on integers.
        UnsupportedModel: the runtime refuses the model.
    """
    if build.mode == "fp16" and half_already(build.graph):
        raise Nothing("The weights of the model are in half precision already.")
    typed(build.graph)
    build.apply(NORMALIZE, frozenset())
    placement = place_graph(build)
    needed = needed_opset(build.graph, placement, build.recipe, build.mode)
    needed = max(needed, newest(build.graph, build.context.target))
    if build.graph.opset < needed:
        try:
            build.graph = typed(upgrade(build.graph, needed))
            build.apply(NORMALIZE, frozenset())
            placement = place_graph(build)
        except UnsupportedModel as error:
            if build.graph.opset < OLDEST_OPSET:
                raise Nothing(str(error)) from None
            build.warnings.append(f"{error} Some operators stay in float.")
    known = inner_names(build.graph) | {(node.name, node.op) for node in build.graph.nodes}
    for pattern in build.recipe.nodes:
        if not any(matches(pattern, name, op) for name, op in known):
            build.warnings.append(f"Pattern '{pattern}' of the recipe matches no node and no operator.")
    if all(plan.treatment is Treatment.FLOAT for plan in placement.nodes.values()):
        raise Nothing(_why_nothing(build.graph, placement, build.mode))
    return placement


def place_graph(build: Build, spared: Mapping[str, str] | None = None) -> Placement:
    """Where integers pay; `spared` gives the reason for each node that is kept from them."""
    graph, recipe, target = build.graph, build.recipe, build.context.target
    if build.mode == "fp16":
        nodes = half_nodes(graph, recipe, target, spared) if target.half else half_weights(graph, recipe)
        return Placement(nodes, {}, {}, {})
    if build.mode in ("static-int8", "mixed-int8"):
        measured = build.mode == "mixed-int8"
        placement = place(graph, target, recipe, spared, stems=measured)
    else:
        treatment = Treatment.DYNAMIC if build.mode == "dynamic-int8" else Treatment.WEIGHT
        bits: Literal[4, 8] = 4 if build.mode == "weight-int4" else 8
        placement = place_linear(graph, recipe, treatment, bits)
        if treatment is Treatment.WEIGHT:
            placement.nodes.update(inner_plans(graph, recipe, bits))
    placement.nodes.update(embeddings(graph, recipe))
    placement.nodes.update(stored_lookups(graph, placement.nodes, recipe))
    if target.half and build.mode in WEIGHT_ONLY:
        return Placement(half_beside(graph, recipe, target, placement.nodes, spared), {}, {}, {})
    return placement


def _why_nothing(graph: Graph, placement: Placement, mode: Mode) -> str:
    if mode == "fp16":
        why = next((plan.reason for plan in placement.nodes.values()), "It holds no float32 weight that is worth it.")
        return f"Nothing can go into half precision: {why[0].lower()}{why[1:]}"
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


def follow_plan(build: Build, plan: Plan) -> None:
    """Take the decisions of a plan that was made before. Raises RecipeError where it does not fit the model."""
    prepare(build)
    build.plan = plan
    build.rewrite(plan.rewrites, plan.opset)
    check_balance(build.graph, plan.balance)
    names = {node.name: node for node in run(BALANCE, build.graph, build.context, GIVEN).graph.nodes}
    inside = {name for name, _ in inner_names(build.graph)}
    for name, decision in plan.nodes.items():
        if name not in names and name not in inside:
            raise RecipeError(f"The plan names node '{name}', which the model does not have. Make the plan again.")
        if decision.treatment is Treatment.STATIC and decision.op in LAYERS:
            data = names[name].inputs[0].name
            if data not in plan.tensors:
                raise RecipeError(
                    f"The plan runs '{name}' on static integers, but has no range for its input '{data}'."
                )


def quantize(build: Build) -> None:
    """Write the plan into the graph, and fold it where the recipe wants integer operators."""
    assert build.plan is not None
    build.shelf = build.shelf.under(sha256(build.plan.deeds.encode()).hexdigest())
    with build.stage("quantize"):
        build.factors = divided(build.graph, build.plan.balance)
        build.apply(BALANCE, GIVEN)
        exact = build.graph
        build.apply(QUANTIZE, GIVEN)
    if build.mode not in WEIGHT_ONLY:
        train(build, exact)
    if build.recipe.format == "integer":
        with build.stage("fold"):
            build.apply(FOLD, GIVEN | {Fact.QDQ})
    if build.mode in WEIGHT_ONLY:
        with build.stage("round"):
            round_weights(build, exact)
        train(build, exact)  # from what was rounded


def train(build: Build, exact: Graph) -> None:
    """Train what was quantized, where that is asked for."""
    if build.teach is not None:
        with build.stage("train"):
            build.lesson = build.teach(build, exact)


def round_weights(build: Build, exact: Graph) -> None:
    """Round what is stored in blocks: with data one layer after the other, else each weight for itself."""
    assert build.plan is not None
    work = Work(exact, build.graph, build.plan, build.shelf, build.calibration, build.threads, build.progress)
    levels = work.run()
    if levels:
        nodes = {name: build.plan.nodes[name].model_copy(update={"accuracy_level": 0}) for name in levels}
        build.plan = build.plan.model_copy(update={"nodes": {**build.plan.nodes, **nodes}})
        others = f" and {len(levels) - 1} more" if len(levels) > 1 else ""
        build.warnings.append(
            f"At the slower accuracy level 0 for '{next(iter(levels))}'{others}: to round the input to 8 bits would "
            "cost more than to round the weight."
        )


def fold_existing(build: Build) -> None:
    """Fold the Q/DQ that a model brings along, with its own scales.

    Raises:
        Nothing: there is nothing to fold.
        ModelError: a scale or a zero point cannot be what it says.
    """
    if build.context.target.half:
        raise Nothing("The model already holds Q/DQ, and CUDA has no integer kernels for it. Give the float model.")
    if build.recipe.format == "qdq":
        raise Nothing("The model already holds Q/DQ, and --format qdq asks for nothing else.")
    if "min_speedup" not in build.recipe.contract.model_fields_set:  # the runtime folds Q/DQ as well: a tie is no loss
        contract = build.recipe.contract.model_copy(update={"min_speedup": CLEARLY_SLOWER})
        build.recipe = build.recipe.model_copy(update={"contract": contract})
    build.mode = "static-int8"
    with build.stage("fold"):
        check_scales(build.graph)  # before the runtime, which says less
        typed(build.graph)
        build.apply((*FIND, *NORMALIZE), frozenset())
        check_scales(build.graph)  # and those that were made by constant expressions
        typed(build.graph)
        build.apply((*SETTLE, *FOLD), GIVEN | {Fact.QDQ})


def already_quantized(graph: Graph) -> str | None:
    """The sentence why a model that already holds integer operators is left as it is."""
    if has_integer_operators(graph):
        return "The model already holds integer operators; quantizing it again would only lose accuracy."
    return None
