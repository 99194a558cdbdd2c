"""Plans for weights in blocks: which layers take 8 bits instead of 4, and which channels are scaled up before (AWQ)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxq.blockwise import rows_of
from onnxq.build import GIVEN, Build
from onnxq.calibration.data import Data
from onnxq.channels import Space, spaces
from onnxq.errors import DataError
from onnxq.graph import Array, Graph, weight
from onnxq.layers import Layer
from onnxq.modelfile import expected_size
from onnxq.nbits import blocked_layers
from onnxq.numerics.rounding.awq import awq_factors
from onnxq.numerics.rounding.blocks import block_round
from onnxq.passes import QUANTIZE
from onnxq.pipeline import run
from onnxq.plan import BalancePlan, NodePlan, Plan, Treatment
from onnxq.relay import Relay
from onnxq.search.choice import Group, Option, most_accurate
from onnxq.search.switches import Switch, SwitchBoard
from onnxq.weights import as_matrix, blocked_bytes, blocked_weight, matrix_shape, seen_blocks

STEPS = (4.25, 4.5, 5.0, 6.0, 8.0)
"""Bits on average that are tried one after the other where 4 lose too much."""

FEWEST, MOST = 4.0, 8.0
"""Bits."""

PRECISE = 1 / 256
"""The noise of 8 bits over that of 4: steps of a sixteenth."""

BOARD = 1 << 29
"""Bytes of weights up to which a second copy of them fits beside the model, to be switched on layer by layer."""

SAMPLES = 8
"""On which the noise of single layers is measured: their order settles with few."""

WORTH = 0.98
"""Factors are kept where less than this share of the error is left."""


def weight_plans(build: Build, plain: Plan) -> list[Plan]:
    """Plans in the order in which they are worth trying: from few bits to more, as far as the contract has room.

    Raises:
        DataError: AWQ was asked for, and there is no data.
    """
    settings, contract = plain.recipe.weight, plain.recipe.contract
    if settings.method == "awq":
        if build.calibration is None:
            raise DataError("AWQ looks at activations, and needs data. Give --data, or take --method hqq.")
        plain = plain.model_copy(update={"balance": balanced(build, plain, build.calibration)})
    layers = _layers(build.graph, plain)
    if build.mode == "weight-int8" or not layers:
        return [plain]
    fewest = settings.bits or FEWEST
    room = contract.most_bytes(expected_size(build.graph))
    most = MOST if room is None else _fitting(build, plain, layers, room)
    if room is not None and contract.max_drop is None and settings.bits is None:
        wanted = [max(most, fewest)]
    else:
        steps = [bits for bits in STEPS if fewest < bits <= most] if contract.model_fields_set else []
        wanted = [fewest, *steps]
    loud = loudness(build, plain, layers) if wanted != [FEWEST] else {}
    return [with_bits(plain, layers, bits, loud) for bits in wanted]


def _layers(graph: Graph, plan: Plan) -> dict[str, list[Layer]]:
    """Layers whose weights are stored in blocks, by the weight: those that share one share its bits."""
    found: dict[str, list[Layer]] = {}
    for layer in blocked_layers(graph, plan.nodes):
        found.setdefault(layer.weight.name, []).append(layer)
    return found


def _fitting(build: Build, plan: Plan, layers: Mapping[str, list[Layer]], room: int) -> float:
    """The bits on average with which a model takes so many bytes."""
    context = replace(build.context, plan=with_bits(plan, layers, FEWEST, {}))
    least = expected_size(run(QUANTIZE, build.graph, context, GIVEN).graph)
    free = [own[0] for own in layers.values() if not _is_precise(plan, own)]
    small, large = (sum(_size(plan, layer, bits) for layer in free) for bits in (4, 8))
    return float(np.clip(FEWEST + (MOST - FEWEST) * (room - least) / max(large - small, 1), FEWEST, MOST))


def _size(plan: Plan, layer: Layer, bits: int) -> int:
    outputs, inputs = matrix_shape(layer)
    return blocked_bytes(plan.recipe.weight, bits, inputs, outputs)


def with_bits(plan: Plan, layers: Mapping[str, list[Layer]], bits: float, loud: Mapping[str, float]) -> Plan:
    """The plan with so many bits on average: 8 where that takes the most noise away for its bytes, 4 elsewhere."""
    groups = [
        Group(
            name,
            (
                *([] if _is_precise(plan, own) else [Option("4", loud.get(name, 0.0), 0.0, _size(plan, own[0], 4))]),
                Option("8", PRECISE * loud.get(name, 0.0), 0.0, _size(plan, own[0], 8)),
            ),
        )
        for name, own in layers.items()
    ]
    least, largest = (sum(group.options[i].bytes for group in groups) for i in (0, -1))
    share = (bits - FEWEST) / (MOST - FEWEST)
    choice = most_accurate(groups, max_bytes=least + share * (largest - least))
    assert choice is not None, "4 bits for all are always a choice."
    nodes: dict[str, NodePlan] = {}
    for name, own in layers.items():
        precise = choice.options[name] == "8" and (share > 0 or _is_precise(plan, own))
        for layer in own:
            before = plan.nodes[layer.node.name]
            raised = precise and share < 1 and not _is_precise(plan, own)
            note = " It is among those that lose most in 4 bits." if raised else ""
            nodes[layer.node.name] = before.model_copy(
                update={"bits": 8 if precise else 4, "reason": before.reason + note}
            )
    return plan.model_copy(update={"nodes": {**plan.nodes, **nodes}})


def _is_precise(plan: Plan, layers: Sequence[Layer]) -> bool:
    """Whether layers that share a weight need 8 bits whatever is asked for: it is a lookup table too."""
    return any(plan.nodes[layer.node.name].bits == 8 for layer in layers)


def loudness(build: Build, plan: Plan, layers: Mapping[str, list[Layer]]) -> dict[str, float]:
    """Noise over signal that each weight in 4 bits causes: at the outputs where there is data, else at its layer."""
    graph, settings = build.graph, plan.recipe.weight
    small = sum(4 * math.prod(matrix_shape(own[0])) for own in layers.values()) <= BOARD
    if build.calibration is None or not small or any(own[0].weight.dtype != np.float32 for own in layers.values()):
        return {name: _own_noise(own[0], plan) for name, own in layers.items()}
    switches = [
        Switch(layer.node.name, name, (layer.node.name,), values=seen_blocks(layer, blocked_weight(layer, settings, 4)))
        for name, own in layers.items()
        for layer in own
    ]
    board = SwitchBoard(graph, switches, build.calibration, SAMPLES, threads=build.threads)
    groups = {name: [layer.node.name for layer in own] for name, own in layers.items()}
    return board.shares(groups, build.progress).noise


def _own_noise(layer: Layer, plan: Plan) -> float:
    """Noise over signal of a weight, if all its inputs are alike."""
    exact = as_matrix(layer, np.asarray(weight(layer.weight), np.float32))
    seen = blocked_weight(layer, plan.recipe.weight, 4).seen()
    signal = float(np.square(exact, dtype=np.float64).sum())
    return float(np.square(seen - exact, dtype=np.float64).sum()) / signal if signal > 0 else 0.0


def balanced(build: Build, plan: Plan, data: Data) -> dict[str, BalancePlan]:
    """Factors for the inputs of layers in blocks, where what makes these inputs can take them for nothing."""
    graph, settings = build.graph, plan.recipe.weight
    found: dict[str, BalancePlan] = {}
    fitting = [space for space in spaces(graph) if _suits(space, plan)]
    relay = Relay.start(graph, data.batches(), build.threads)
    order = {tensor: place for place, node in enumerate(graph.nodes) for tensor in (t.name for t in node.outputs)}
    for done, space in enumerate(sorted(fitting, key=lambda s: order.get(s.readers[0].data.name, -1)), 1):
        gram, magnitude = _seen(relay, space.readers[0], data)
        bits = plan.nodes[space.readers[0].node.name].bits
        block, symmetric = settings.block(space.channels), settings.blocks_centred

        def rounded(values: Array, bits: int = bits, block: int = block, symmetric: bool = symmetric) -> Array:
            return block_round(values.T, bits=bits, block=block, symmetric=symmetric, method="rtn").seen()

        exact = [as_matrix(layer, weight(layer.weight)) for layer in space.readers]
        factors, left = awq_factors(exact, magnitude, gram, rounded)
        if left < WORTH:
            reason = f"Scaled up, channels that matter leave {100 * left:.0f} % of the error of its readers."
            found[space.name] = BalancePlan(factors=factors.tolist(), multiplies=False, reason=reason, gain=1 - left)
        build.progress("awq", done, len(fitting))
    return found


def _suits(space: Space, plan: Plan) -> bool:
    """Whether all that reads a space are linear layers in blocks, of one tensor, whose weights nobody looks up."""
    looked_up = {node.shares for node in plan.nodes.values() if node.shares}
    if looked_up & {layer.node.name for layer in space.readers}:
        return False
    names = {layer.data.name for layer in space.readers}
    blocked = all(plan.treatment(layer.node.name) is Treatment.WEIGHT and layer.linear for layer in space.readers)
    return blocked and len(names) == 1 and not space.limits


def _seen(relay: Relay, layer: Layer, data: Data) -> tuple[Array, Array]:
    """Sum of x^T x of what a layer reads, and the mean of its absolute values by channel."""
    gram, size, count = np.zeros(()), np.zeros(()), 0
    for feeds, value in zip(data.batches(), relay.reach(layer.data.name), strict=True):
        rows = rows_of(value, feeds, layer)
        rows = rows[np.isfinite(rows).all(axis=1)]
        gram, size, count = gram + rows.T @ rows, size + np.abs(rows).sum(axis=0), count + len(rows)
    return gram, size / max(count, 1)
