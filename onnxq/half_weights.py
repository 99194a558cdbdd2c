"""Which weights are worth half precision where operators keep computing in float32, and which do not fit it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache

import numpy as np

from onnxq.graph import MICROSOFT, Constant, Graph, Node, weight
from onnxq.numerics.halves import half_obstacle
from onnxq.plan import NodePlan, Treatment
from onnxq.recipe import Recipe

LEAST = 256
"""Numbers from which on a constant is worth a Cast."""

STORED = "Its weight is stored in half precision."
BY_RECIPE = "The recipe keeps it in float."

Fits = Callable[[Constant], str | None]
"""Why the numbers of a weight do not fit into half precision."""


def large_constants(node: Node) -> list[Constant]:
    """The float32 weights of an operator that are large enough, each once."""
    read = dict.fromkeys(t for t in node.inputs if isinstance(t, Constant) and t.dtype == np.float32)
    return [tensor for tensor in read if size(tensor) >= LEAST]


def size(tensor: Constant) -> int:
    """How many numbers a constant holds."""
    return math.prod(tensor._values.shape)


def misfit(tensor: Constant) -> str | None:
    """The sentence why the numbers of a weight do not fit into half precision; reads the weight."""
    found = half_obstacle(weight(tensor))
    return None if found is None else f"Weight '{tensor.name}' stays: {found}."


def promised(graph: Graph, tensor: Constant) -> str | None:
    """The sentence why a weight has to stay what it is for somebody else; None where it has not."""
    if tensor.name in graph.captured:
        return f"Weight '{tensor.name}' is read inside the body of an If, Loop or Scan."
    return f"Weight '{tensor.name}' is an output of the model." if graph.kept(tensor) else None


def half_weights(graph: Graph, recipe: Recipe) -> dict[str, NodePlan]:
    """For each operator with a large float32 weight, whether at least one of its weights goes into half precision.

    Reads every weight once.
    """
    spared = {node.name for node in graph.nodes if not recipe.override(node.name, node.op).quantize}
    fits = cache(misfit)
    plans: dict[str, NodePlan] = {}
    for node in graph.nodes:
        found = large_constants(node)
        if not found:
            continue
        reasons = [_obstacle(graph, node, tensor, spared) or fits(tensor) for tensor in found]
        why = None if None in reasons else reasons[0]
        treatment = Treatment.HALF if why is None else Treatment.FLOAT
        plans[node.name] = NodePlan(op=node.op, treatment=treatment, reason=why or STORED)
    return plans


def _obstacle(graph: Graph, node: Node, tensor: Constant, spared: set[str]) -> str | None:
    """Why a weight of an operator stays, whatever its numbers are."""
    if node.name in spared:
        return BY_RECIPE
    return promised(graph, tensor) or _foreign(tensor) or shared(tensor, dict.fromkeys(spared, Treatment.FLOAT))


def _foreign(tensor: Constant) -> str | None:
    for reader in tensor.outputs:
        if (reader.domain or "") not in ("", MICROSOFT):
            return f"Weight '{tensor.name}' is read by '{reader.name}', an operator of {reader.domain}."
    return None


def shared(tensor: Constant, treatments: Mapping[str, Treatment]) -> str | None:
    """The sentence why a weight stays for one of its readers: to store it twice would save nothing."""
    for reader in tensor.outputs:
        if treatments.get(reader.name) is Treatment.FLOAT:
            return f"Weight '{tensor.name}' is shared with '{reader.name}', which stays in float."
    return None


def half_already(graph: Graph) -> bool:
    """Whether the weights of a model are in half precision: none is worth it, and some are there."""
    weights = [tensor for tensor in graph.tensors().values() if isinstance(tensor, Constant) and size(tensor) >= LEAST]
    kinds = {np.dtype(tensor.dtype) for tensor in weights}
    return np.dtype(np.float16) in kinds and np.dtype(np.float32) not in kinds
