"""The noise that each layer alone brings to the outputs, and which layers are better left in float.

Noise powers of different layers add up, as far as they are small and independent; so the layers whose removal helps are
found one by one, and the outcome is measured again, since this is an approximation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from onnxq.calibration.collect import Progress, silent, unmasked
from onnxq.calibration.data import Data, mask_of
from onnxq.graph import Graph, to_model
from onnxq.layers import LAYERS
from onnxq.passes import FOLD, QUANTIZE
from onnxq.pipeline import Context, run
from onnxq.plan import Plan, Treatment
from onnxq.runtime import Session
from onnxq.spec import Fact

SAMPLES = 8
"""Samples on which layers are compared; ratios between layers settle with few."""

RULE_SAMPLES = 64
"""Samples on which range rules are compared; these differ less."""

REMEMBERED = 1 << 28
"""Bytes of float outputs that are kept in memory; past that, no further sample is taken."""

Array = np.ndarray[Any, Any]
Noise = Callable[[Plan], float]
"""Noise over signal at the outputs when a graph runs by a plan: 10**(-SQNR / 10), the worst output's."""


def noise_meter(graph: Graph, context: Context, data: Data, samples: int) -> Noise:
    """A function that measures plans for a graph; the float outputs are computed once. Padding does not count."""
    reference = Session(to_model(graph).SerializeToString(), folder=graph.folder)
    known: list[tuple[dict[str, Array], dict[str, Array]]] = []
    for feeds in data.take(slice(0, samples)).batches():
        outputs = {name: value for name, value in reference.run(feeds).items() if value.dtype.kind == "f"}
        known.append((feeds, outputs))
        if sum(value.nbytes for _, seen in known for value in seen.values()) > REMEMBERED:
            break

    def measure(plan: Plan) -> float:
        given = frozenset({Fact.NAMED, Fact.NORMAL})
        quantized = run((*QUANTIZE, *FOLD), graph, Context(context.target, plan), given).graph
        session = Session(to_model(quantized).SerializeToString(), folder=graph.folder)
        sums: dict[str, list[float]] = {}
        for feeds, outputs in known:
            got, mask = session.run(feeds, list(outputs)), mask_of(feeds)
            for name, value in outputs.items():
                total = sums.setdefault(name, [0.0, 0.0])
                total[0] += power(unmasked(value, mask))
                total[1] += power(unmasked(got[name] - value, mask))
        return max((noise / signal for signal, noise in sums.values() if signal > 0), default=0.0)

    return measure


def power(values: Array) -> float:
    """Sum of squares of the finite values."""
    return float(np.sum(np.square(values[np.isfinite(values)], dtype=np.float64)))


def layer_noise(plan: Plan, noise: Noise, progress: Progress = silent) -> dict[str, float]:
    """What each static layer causes at the outputs when it alone runs on integers, the worst first."""
    layers = [name for name, p in plan.nodes.items() if p.treatment is Treatment.STATIC and p.op in LAYERS]
    found: dict[str, float] = {}
    for done, name in enumerate(layers, 1):
        found[name] = noise(plan.model_copy(update={"nodes": {name: plan.nodes[name]}}))
        progress("search", done, len(layers))
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def worst_layers(noise: Mapping[str, float], budget: float) -> list[str]:
    """The noisiest layers without which the others stay within the budget; a tenth of all layers at most, or two.

    Two, because a bad tensor has a layer on either side, and is quantized as long as one of them is.
    """
    most = max(2, len(noise) // 10)
    rest = sum(noise.values())
    chosen: list[str] = []
    for name, own in noise.items():
        if rest <= budget or len(chosen) == most:
            break
        chosen.append(name)
        rest -= own
    return chosen
