"""A plan in half precision: norms as one operator, which sums up in float32, and float32 where data shows large values.

place ── fuse norms ── run the float model on data ── keep in float32 what makes or reads a large tensor
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxq.build import GIVEN, Build, place_graph, raised
from onnxq.calibration.data import Data
from onnxq.graph import Array, Graph, to_model
from onnxq.half_nodes import floats
from onnxq.layers import is_masking
from onnxq.numerics.halves import HIGHEST, hides
from onnxq.options import Options
from onnxq.passes.fuse_norms import FuseNorms
from onnxq.pipeline import run
from onnxq.placement import Placement
from onnxq.plan import Treatment
from onnxq.runtime import Session
from onnxq.search.rewrites import changed

NORMS_OPSET = 17
"""The version of the standard operators that brought LayerNormalization."""

MOST = HIGHEST / 4
"""How far a tensor may reach on the data: other data reaches further."""

SAMPLES = 32
"""On which that is looked at."""

GROUP = 32
"""Tensors that are held at a time."""


def place_halves(
    build: Build, placement: Placement, data: Data | None, options: Options
) -> tuple[Placement, list[str], int]:
    """Where a model computes in half precision; names of the rewrites that come first, and the opset for them.

    `placement` is where it would without them; to place reads every weight.
    """
    rewrites, opset = fuse_norms(build)
    placement = place_graph(build) if rewrites else placement
    if data is None:
        return placement, rewrites, opset
    with build.stage("calibrate"):
        loud = too_large(build.graph, placement, data, options)
    return (place_graph(build, loud) if loud else placement), rewrites, opset


def fuse_norms(build: Build) -> tuple[list[str], int]:
    """Let norms be one operator where they can be: its kernel sums up in float32, whatever it reads."""
    step = FuseNorms()
    graph = raised(build, NORMS_OPSET) or build.graph
    fused = run((step,), graph, build.context, GIVEN)
    left = {node.name for node in fused.graph.nodes}
    gone = [node for node in graph.nodes if node.name not in left]
    if not changed(fused) or not all(build.recipe.override(node.name, node.op).quantize for node in gone):
        return [], 0
    build.rewrite([type(step).__name__], NORMS_OPSET)
    return [type(step).__name__], NORMS_OPSET


def too_large(graph: Graph, placement: Placement, data: Data, options: Options) -> dict[str, str]:
    """For each node that makes or reads a tensor which comes near the end of half precision, a sentence."""
    halves = {name for name, plan in placement.nodes.items() if plan.treatment is not Treatment.FLOAT}
    nodes = [node for node in graph.nodes if node.name in halves and not is_masking(node)]
    names = list(dict.fromkeys(tensor.name for node in nodes for tensor in floats(node.outputs)))
    reached = reach(graph, names, data.take(slice(0, SAMPLES)), options)
    found: dict[str, str] = {}
    for node in graph.nodes:
        for tensor in (*node.outputs, *node.inputs):
            if reached.get(tensor.name, 0.0) > MOST:
                size = f"{reached[tensor.name]:.3g}"
                why = f"'{tensor.name}' reaches {size} on the data, and half precision ends at {HIGHEST:g}."
                found.setdefault(node.name, why)
    return found


def reach(graph: Graph, names: Sequence[str], data: Data, options: Options) -> dict[str, float]:
    """The largest magnitude of each tensor; a mask does not count."""
    found = dict.fromkeys(names, 0.0)
    groups = [names[start : start + GROUP] for start in range(0, len(names), GROUP)]
    for done, group in enumerate(groups, 1):
        model = to_model(graph, extra_outputs=group).SerializeToString()
        session = Session(model, folder=graph.folder, threads=options.threads)
        for feeds in data.batches():
            for name, values in session.run(feeds, list(group)).items():
                found[name] = max(found[name], _largest(values))
        options.progress("calibrate", done, len(groups))
    return found


def _largest(values: Array) -> float:
    sizes = np.abs(values)
    largest = float(sizes[np.isfinite(sizes)].max(initial=0.0))
    return 0.0 if largest > HIGHEST and hides(values) else largest
