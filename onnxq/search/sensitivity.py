"""The noise that each layer alone brings to the outputs, and which layers are better left in float.

Noise powers of different layers add up, as far as they are small and independent; so the layers whose removal helps are
found one by one, and the outcome is measured again, since this is an approximation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from onnxq.calibration.data import Data
from onnxq.graph import Graph, to_model
from onnxq.passes import FOLD, QUANTIZE
from onnxq.pipeline import Context, run
from onnxq.plan import Plan
from onnxq.runtime import Session
from onnxq.search.reference import remember, worst
from onnxq.spec import Fact

SAMPLES = 8
"""Samples on which layers are compared; ratios between layers settle with few."""

RULE_SAMPLES = 64
"""Samples on which range rules are compared; these differ less."""

Noise = Callable[[Plan], float]
"""Noise over signal at the outputs when a graph runs by a plan: 10**(-SQNR / 10), the worst output's."""


def noise_meter(graph: Graph, context: Context, data: Data, samples: int, reference: Graph | None = None) -> Noise:
    """A function that measures plans for a graph; the float outputs are computed once. Padding does not count.

    `reference` returns the float outputs where the graph itself was rescaled; the graph if left out.
    """
    original = reference or graph
    session = Session(to_model(original).SerializeToString(), folder=graph.folder)
    known = remember(session.run, [spec.name for spec in session.outputs], data, samples)

    def measure(plan: Plan) -> float:
        given = frozenset({Fact.NAMED, Fact.NORMAL})
        quantized = run((*QUANTIZE, *FOLD), graph, Context(context.target, plan), given).graph
        return worst(known.noise(Session(to_model(quantized).SerializeToString(), folder=graph.folder).run))

    return measure


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
