"""A model on the way to its plan: what is known of it, and what was measured before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np

from onnxq.build import Build
from onnxq.calibration.collect import Statistics, digest
from onnxq.calibration.data import Data
from onnxq.decision import Range, decide
from onnxq.graph import Graph, to_model
from onnxq.memo import JSON, Memo, canonical
from onnxq.placement import Placement
from onnxq.plan import BalancePlan, Plan, Treatment
from onnxq.recipe import RangeRule, Recipe
from onnxq.runtime import Session, interleave
from onnxq.search.sensitivity import RULE_SAMPLES, SAMPLES, Noise, noise_meter

PATIENCE = 8.0
"""Seconds that the measurements of one kind may take, as far as samples can be saved."""

PACE_SECONDS = 0.3
"""For finding out how long a run takes."""


@dataclass
class Study:
    """A model on the way to its plan, and what is known of it.

    Attributes:
        build: the model; its graph is replaced where channels are balanced.
        placement: what could run on integers.
        statistics: of the tensors that need a range.
        data: what to measure on; None where there are only statistics, or nothing.
        threads: threads of the runtime.
        memory: bytes that the activations of one batch may take.
        memo: what was measured before.
        rewrites: passes that made it faster.
        opset: version of the standard operators that they need; 0 for the model's own.
        chosen: ranges that were found tensor by tensor.
        balance: factors of tensors that were balanced.
        rounding: how weights of static layers are rounded where not to nearest.
        other_rounding: how else they could be, which was no better where everything is static.
        original: the graph before that, which noise is measured against.
        plain: the graph before it was rewritten, which speed is measured against.
        key: what measurements depend on, beside the graph and what is measured.
    """

    build: Build
    placement: Placement
    statistics: Statistics
    data: Data | None
    threads: int = 1
    memory: int | None = None
    memo: Memo = field(default_factory=Memo)
    rewrites: list[str] = field(default_factory=list)
    opset: int = 0
    chosen: Mapping[str, Range] = field(default_factory=dict)
    balance: dict[str, BalancePlan] = field(default_factory=dict)
    rounding: dict[str, str] = field(default_factory=dict)
    other_rounding: dict[str, str] = field(default_factory=dict)
    original: Graph | None = None
    plain: Graph | None = None
    key: Mapping[str, JSON] = field(default_factory=dict)

    def recall(self, kind: str, what: JSON, measure: Callable[[], Any]) -> Any:
        """What was measured before, or is measured now and remembered: interrupted work goes on where it stopped."""
        # plans are long, and what is remembered keeps its key
        asked = sha256(canonical(what).encode()).hexdigest()
        key = {**self.key, "graph": self.digest, "what": asked}
        known = self.memo.get(kind, key)
        if known is None:
            known = self.memo.put(kind, key, measure())
        return known

    @cached_property
    def digest(self) -> str:
        """Tells graphs apart."""
        return sha256(to_model(self.build.graph).SerializeToString()).hexdigest()

    @property
    def recipe(self) -> Recipe:
        """What was asked for."""
        return self.build.recipe

    @property
    def unchanged(self) -> Graph:
        """The float graph as it came."""
        return self.plain or self.before

    @property
    def before(self) -> Graph:
        """The float graph that plans are carried out on: before its channels were balanced."""
        return self.original or self.build.graph

    def affordable(self, runs: int, most: int = RULE_SAMPLES) -> int:
        """How many samples so many measurements may look at: few where a run takes long, so that searches end.

        Only where forms are chosen by time anyway; everything else gives the same bytes on every machine.
        """
        if self.build.mode != "mixed-int8":
            return SAMPLES
        pace = float(self.recall("pace", None, self._pace))
        return int(np.clip(PATIENCE / (max(runs, 1) * pace), SAMPLES, most))

    def _pace(self) -> float:
        """Seconds that a sample takes, to the next power of two."""
        assert self.data is not None
        session = Session(to_model(self.before).SerializeToString(), folder=self.before.folder)
        feeds = next(self.data.batches(1))
        (timing,) = interleave([session], feeds, seconds=PACE_SECONDS)
        return float(2.0 ** np.ceil(np.log2(timing.milliseconds / 1e3)))

    def plan(self, rule: RangeRule | None = None, placement: Placement | None = None) -> Plan:
        """The plan by a rule for ranges (the recipe's if left out)."""
        recipe = self.recipe if rule is None else by_rule(self.recipe, rule)
        target = self.build.context.target
        made = decide(placement or self.placement, self.statistics, recipe, target, self.chosen)
        nodes = {
            name: node.model_copy(update={"rounding": self.rounding[name]})
            for name, node in made.nodes.items()
            if name in self.rounding and node.treatment is Treatment.STATIC
        }
        return made.model_copy(
            update={
                "nodes": {**made.nodes, **nodes},
                "balance": self.balance,
                "rewrites": self.rewrites,
                "opset": self.opset,
            }
        )

    def meter(self, samples: int) -> Noise:
        """What plans cost at the outputs, beside the graph as it was before its channels were balanced."""
        assert self.data is not None
        data, meters = self.data, dict[str, Noise]()

        def measure(plan: Plan) -> float:
            if not meters:
                meters["noise"] = noise_meter(self.build.graph, self.build.context, data, samples, self.original)
            return meters["noise"](plan)

        def recalled(plan: Plan) -> float:
            return float(self.recall("noise", [samples, plan.deeds], lambda: measure(plan)))

        return recalled


def by_rule(recipe: Recipe, rule: RangeRule) -> Recipe:
    """The recipe with another range rule."""
    return recipe.model_copy(update={"activation": recipe.activation.model_copy(update={"range": rule})})


def fingerprint(data: Data, statistics: Statistics) -> JSON:
    """Tells data apart: its description, how much there is, the first samples, the labels, and statistics of all."""
    held = sha256()
    for feeds in data.take(slice(0, 4)).batches(1):
        for name, value in sorted(feeds.items()):
            held.update(name.encode() + str(value.shape).encode() + np.ascontiguousarray(value).tobytes())
    labels = data.labels
    held.update(b"" if labels is None else repr(labels.tolist()).encode())
    return [data.description, len(data), held.hexdigest(), digest(statistics)]
