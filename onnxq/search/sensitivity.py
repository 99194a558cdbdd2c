"""The noise that each layer alone brings to the outputs, and which layers are better left in float.

Noise powers of different layers add up, as far as they are small and independent; so the layers whose removal helps are
found one by one, and the outcome is measured again, since this is an approximation.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnxq.calibration.collect import Progress, silent
from onnxq.calibration.data import Data
from onnxq.graph import Graph, to_model
from onnxq.passes import FOLD, QUANTIZE
from onnxq.pipeline import Context, run
from onnxq.plan import Plan, Treatment
from onnxq.runtime import Session
from onnxq.spec import Fact
from onnxq.validate import compare_outputs

SAMPLES = 8
"""Samples on which layers are compared; ratios between layers settle with few."""

RULE_SAMPLES = 64
"""Samples on which range rules are compared; these differ less."""

LAYERS = frozenset({"Conv", "MatMul", "Gemm"})


def output_noise(graph: Graph, plan: Plan, context: Context, data: Data, reference: Session) -> float:
    """Noise over signal at the outputs when the graph runs by this plan: 10**(-SQNR / 10), the worst output's."""
    given = frozenset({Fact.NAMED, Fact.NORMAL})
    quantized = run((*QUANTIZE, *FOLD), graph, Context(context.target, plan), given).graph
    session = Session(to_model(quantized).SerializeToString(), folder=graph.folder)
    proofs = compare_outputs(reference, session, data)
    return max((10 ** (-p.sqnr_db / 10) for p in proofs.values() if p.sqnr_db is not None), default=0.0)


def layer_noise(
    graph: Graph, plan: Plan, context: Context, data: Data, reference: Session, progress: Progress = silent
) -> dict[str, float]:
    """What each static layer causes at the outputs when it alone runs on integers, the worst first."""
    layers = [name for name, p in plan.nodes.items() if p.treatment is Treatment.STATIC and p.op in LAYERS]
    found: dict[str, float] = {}
    for done, name in enumerate(layers, 1):
        alone = plan.model_copy(update={"nodes": {name: plan.nodes[name]}})
        found[name] = output_noise(graph, alone, context, data, reference)
        progress("search", done, len(layers))
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def worst_layers(noise: Mapping[str, float], budget: float) -> list[str]:
    """The noisiest layers without which the others stay within the budget; a tenth of all layers at most."""
    most = max(1, len(noise) // 10)
    rest = sum(noise.values())
    chosen: list[str] = []
    for name, own in noise.items():
        if rest <= budget or len(chosen) == most:
            break
        chosen.append(name)
        rest -= own
    return chosen
