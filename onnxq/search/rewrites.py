"""Which rewrites make a model faster on this machine: each is tried, and timed in floats and quantized.

A model ends up in float, in integers, or between the two. So a rewrite is judged by the best that a model can do with
it against the best without it:

    before: float 10 ms, quantized  8 ms  =>  8
    after:  float  7 ms, quantized  9 ms  =>  7, which is 1.14 times as fast: keep it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np

from onnxq import runtime
from onnxq.calibration.collect import Progress, silent
from onnxq.graph import Graph, to_model
from onnxq.layers import weight_obstacle
from onnxq.memo import JSON, Memo
from onnxq.pipeline import Context, Outcome, Pass, run
from onnxq.recipe import Override, Recipe
from onnxq.runtime import Session, interleave
from onnxq.spec import Fact

WORTH = 1.01
"""A rewrite that gains less than this is left out."""

SECONDS = 3.0
"""For each rewrite: four models take turns."""

ROUNDS = 1000
"""At most; small models are through before the time is up."""

GIVEN = frozenset({Fact.NAMED, Fact.NORMAL})

Array = np.ndarray[Any, Any]
Draft = Callable[[Graph], Graph]
"""The graph as it would be quantized."""


def worth_it(
    passes: Sequence[Pass],
    graph: Graph,
    context: Context,
    draft: Draft,
    feeds: Mapping[str, Array],
    threads: int,
    memo: Memo,
    progress: Progress = silent,
) -> list[Pass]:
    """The passes that make the model faster in the better of its two forms, each on top of those before it.

    Args:
        passes: what to try, in order.
        graph: the float graph.
        context: what passes may read.
        draft: quantizes a graph somehow; only its speed matters.
        feeds: one batch.
        threads: threads of the runtime.
        memo: what was measured before.
        progress: told after each pass.
    """
    kept: list[Pass] = []
    for done, step in enumerate(passes, 1):
        outcome = run((step,), graph, context, GIVEN)
        if changed(outcome) and _gain(graph, outcome.graph, draft, feeds, threads, memo) >= WORTH:
            kept.append(step)
            graph = outcome.graph
        progress("rewrites", done, len(passes))
    return kept


def keeps_named(step: Pass, graph: Graph, context: Context, recipe: Recipe) -> bool:
    """Whether all layers about which the recipe says something of their own are still there after a pass."""
    if not recipe.nodes:
        return True
    left = {node.name for node in run((step,), graph, context, GIVEN).graph.nodes}
    gone = [node for node in graph.nodes if node.name not in left and weight_obstacle(node) is None]
    return all(recipe.override(node.name, node.op) == Override() for node in gone)


def changed(outcome: Outcome) -> bool:
    """Whether passes did anything."""
    return any(change.done for changes in outcome.changes.values() for change in changes)


def fires(step: Pass, graph: Graph, context: Context) -> bool:
    """Whether a pass finds something to do."""
    return changed(run((step,), graph, context, GIVEN))


def _gain(before: Graph, after: Graph, draft: Draft, feeds: Mapping[str, Array], threads: int, memo: Memo) -> float:
    """How many times as fast the second graph is, each in the form that suits it best."""
    graphs = (before, draft(before), after, draft(after))
    models = [to_model(graph).SerializeToString() for graph in graphs]
    key: dict[str, JSON] = {
        "models": [sha256(model).hexdigest() for model in models],
        "shapes": {name: list(value.shape) for name, value in feeds.items()},
        "threads": threads,
        "machine": runtime.machine(),
    }
    known = memo.get("rewrite", key)
    if isinstance(known, float):
        return known
    sessions = [
        Session(model, folder=graph.folder, threads=threads) for model, graph in zip(models, graphs, strict=True)
    ]
    del models  # large models were held twice
    speeds = [timing.speedup for timing in interleave(sessions, feeds, seconds=SECONDS, rounds=ROUNDS)]
    gain = memo.put("rewrite", key, max(speeds[2:]) / max(speeds[:2]))
    assert isinstance(gain, float)
    return gain
