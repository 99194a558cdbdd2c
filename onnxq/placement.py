"""Where integers pay: which layers, which operators between them, and which tensors need a range.

A layer (Conv, MatMul, Gemm with a constant weight) is worth a quantized input. An operator between layers follows only
where all that it reads is already integer and somebody behind it wants integers; everything else would be a detour
through Q and DQ that costs time and accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from onnxq.graph import Graph, Node, Tensor, is_constant
from onnxq.layers import LAYERS, SINGLE, WIDE, Layer, is_masking, layer_of, only_reader, pads_with_zeros
from onnxq.plan import NodePlan, Treatment
from onnxq.recipe import WEIGHT_ONLY, Mode, Recipe
from onnxq.targets import Target

BESIDE_FLOATS = "Its neighbours are float: Q and DQ around it would cost more than it saves."


@dataclass(frozen=True)
class Placement:
    """What runs as integers.

    Attributes:
        nodes: the decision for each node that could be thought of, with its reason.
        tensors: each activation that becomes integer, and the tensor whose range it takes: itself, or one that it
            shares its scale with.
        fixed: ranges that are known without data.
        asked: for each tensor, a node that decides about it, for overrides of the range rule.
        sums: for each addition before a Softmax its two sides: scores and mask, in either order.
    """

    nodes: dict[str, NodePlan]
    tensors: dict[str, str]
    fixed: dict[str, tuple[float, float]]
    asked: dict[str, Node]
    sums: dict[str, tuple[str, str]] = field(default_factory=dict)


@dataclass
class Draft:
    """The state of the search: what is still believed to run as integers.

    `integer` names the tensors that are there as integers anyway: made by an integer operator, or read by a layer.
    """

    layers: dict[str, Layer] = field(default_factory=dict)
    followers: dict[str, Node] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    integer: set[str] = field(default_factory=set)


def place(
    graph: Graph, target: Target, recipe: Recipe, spared: Mapping[str, str] | None = None, *, stems: bool = False
) -> Placement:
    """Decide for every node whether it runs on integers with static scales.

    Args:
        graph: the float model.
        target: what runs it.
        recipe: what was asked for.
        spared: the reason for each node that stays in float because it was found to cost too much.
        stems: whether a convolution over few channels may run on integers, because its time will be measured.
    """
    draft = _first_draft(graph, target, recipe, spared or {}, stems)
    while _prune(graph, target, draft):
        pass
    nodes = _node_plans(graph, target, draft, recipe)
    tensors, asked = _tensors(graph, target, draft)
    fixed = {
        node.outputs[0].name: target.fixed[node.op]
        for node in draft.followers.values()
        if node.op in target.fixed and node.outputs[0].name in tensors
    }
    return Placement(nodes, tensors, fixed, asked, masked_sums(graph, recipe))


def _first_draft(graph: Graph, target: Target, recipe: Recipe, spared: Mapping[str, str], stems: bool) -> Draft:
    draft = Draft(reasons=dict(spared))
    for node in [n for n in graph.nodes if n.name not in spared]:
        if not recipe.override(node.name, node.op).quantize:
            draft.reasons[node.name] = "The recipe keeps it in float."
        elif node.op in target.layers and not (node.domain or ""):
            _draft_layer(graph, node, target, draft, stems)
        elif node.op in target.why_float:
            draft.reasons[node.name] = target.why_float[node.op]
    for node in graph.nodes:
        if node.name not in draft.reasons and _follows(node, target, draft):
            draft.followers[node.name] = node
            draft.integer.update(t.name for t in node.outputs)
    return draft


def _draft_layer(graph: Graph, node: Node, target: Target, draft: Draft, stems: bool) -> None:
    layer = layer_of(graph, node, target.absorbed)
    if isinstance(layer, str):
        draft.reasons[node.name] = layer
        return
    if not stems and _is_stem(layer, target):
        count = _channels(layer)
        what = "1 channel" if count == 1 else f"{count} channels"
        draft.reasons[node.name] = f"A convolution over {what} is faster in float here."
        return
    draft.layers[node.name] = layer
    draft.integer.update((layer.data.name, layer.output.name))
    draft.reasons.update({part.name: f"Part of layer '{node.name}'." for part in layer.tail})


def _is_stem(layer: Layer, target: Target) -> bool:
    """A convolution over few channels, read by others or by what is float anyway: nothing loses its integers."""
    few = layer.node.op == "Conv" and _channels(layer) < target.stem_channels
    return few and not any(_could_follow(reader, target) for reader in layer.output.outputs)


def _could_follow(node: Node, target: Target) -> bool:
    """Whether an operator between layers can run as integers at all."""
    return not node.domain and node.op in target.followers | target.movers | target.joins


def _channels(layer: Layer) -> int:
    """Channels that a convolution reads, over all groups; a depthwise one reads many."""
    shape = layer.weight.shape or (0, 0)
    return int(shape[1]) * int(layer.node.attrs.get("group", 1))  # type: ignore[arg-type]


def data_inputs(node: Node, target: Target) -> list[Tensor]:
    """The activations that a follower reads."""
    return [t for t in (node.inputs[:1] if node.op in target.movers else node.inputs) if t.name]


def _follows(node: Node, target: Target, draft: Draft) -> bool:
    if not _could_follow(node, target):
        return False
    if node.op == "AveragePool" and any(node.attrs.get(k, 0) for k in ("ceil_mode", "dilations")):
        return False
    if node.op == "Pad" and not pads_with_zeros(node):
        return False
    if node.op == "Resize" and node.attrs.get("mode", "nearest") != "nearest":
        return False
    read = data_inputs(node, target)
    return bool(read) and all(t.name in draft.integer and not is_constant(t) for t in read)


def _prune(graph: Graph, target: Target, draft: Draft) -> bool:
    """Take back what does not pay; returns whether anything changed."""
    wanted = {layer.data.name for layer in draft.layers.values()}
    inputs = {name: [t.name for t in data_inputs(node, target)] for name, node in draft.followers.items()}
    for names in inputs.values():
        wanted.update(names)
    dropped = [
        name
        for name, node in draft.followers.items()
        if not all(t in draft.integer for t in inputs[name]) or not any(t.name in wanted for t in node.outputs)
    ]
    for name in dropped:
        draft.integer.difference_update(t.name for t in draft.followers.pop(name).outputs)
    read = {layer.data.name for layer in draft.layers.values()}
    floats = [
        layer.output.name
        for layer in draft.layers.values()
        if layer.linear and layer.output.name in draft.integer - read and not _all_integer(graph, layer.output, draft)
    ]
    draft.integer.difference_update(floats)
    return bool(dropped or floats)


def _all_integer(graph: Graph, tensor: Tensor, draft: Draft) -> bool:
    integer = {id(layer.node) for layer in draft.layers.values()} | {id(n) for n in draft.followers.values()}
    return not graph.kept(tensor) and bool(tensor.outputs) and all(id(n) in integer for n in tensor.outputs)


def _node_plans(graph: Graph, target: Target, draft: Draft, recipe: Recipe) -> dict[str, NodePlan]:
    plans: dict[str, NodePlan] = {}
    for node in graph.nodes:
        if node.name in draft.layers:
            wish = recipe.override(node.name, node.op).per_channel
            per_channel = recipe.weight.per_channel if wish is None else wish
            reason = "Integer kernel with a constant weight."
            plans[node.name] = NodePlan(op=node.op, treatment=Treatment.STATIC, reason=reason, per_channel=per_channel)
        elif node.name in draft.followers:
            plans[node.name] = NodePlan(op=node.op, treatment=Treatment.STATIC, reason="Between integer operators.")
        elif node.name in draft.reasons:
            plans[node.name] = NodePlan(op=node.op, treatment=Treatment.FLOAT, reason=draft.reasons[node.name])
        elif any(t.dtype == np.float32 for t in node.outputs):
            known = node.op in target.followers | target.movers | target.joins and not node.domain
            reason = BESIDE_FLOATS if known else f"The target '{target.name}' has no integer kernel for {node.op}."
            plans[node.name] = NodePlan(op=node.op, treatment=Treatment.FLOAT, reason=reason)
    return plans


def _tensors(graph: Graph, target: Target, draft: Draft) -> tuple[dict[str, str], dict[str, Node]]:
    """Tensors that need a range, and for each the tensor whose range it takes."""
    asked: dict[str, Node] = {}
    takes: dict[str, str] = {}
    for node in graph.nodes:
        if node.name in draft.layers:
            layer = draft.layers[node.name]
            asked.setdefault(layer.data.name, node)
            if layer.output.name in draft.integer:
                asked[layer.output.name] = node
        elif node.name in draft.followers:
            for tensor in (*data_inputs(node, target), *node.outputs):
                if not _saturates(graph, tensor, draft):
                    asked.setdefault(tensor.name, node)
            if node.op in target.movers:
                takes.update({t.name: node.inputs[0].name for t in node.outputs})
    _share_into_joins(graph, target, draft, takes)
    return {name: _root(name, takes) for name in asked}, asked


def _saturates(graph: Graph, tensor: Tensor, draft: Draft) -> bool:
    """Whether a sum goes into nothing but a Relu, which the ends of the range of the sum then replace."""
    maker, reader = tensor.inputs[0] if tensor.inputs else None, only_reader(graph, tensor)
    summed = maker is not None and maker.op in ("Add", "Mul") and maker.name in draft.followers
    return summed and reader is not None and reader.op == "Relu" and reader.name in draft.followers


def _share_into_joins(graph: Graph, target: Target, draft: Draft, takes: dict[str, str]) -> None:
    """Inputs that only a Concat reads take the scale of its output, so that it just moves bytes."""
    for node in draft.followers.values():
        if node.op not in target.joins:
            continue
        for tensor in node.inputs:
            alone = all(reader is node for reader in tensor.outputs) and not graph.kept(tensor)
            if alone and tensor.name not in takes:
                takes[tensor.name] = node.outputs[0].name


def _root(name: str, takes: Mapping[str, str]) -> str:
    while name in takes:
        name = takes[name]
    return name


def place_linear(graph: Graph, recipe: Recipe, treatment: Treatment, bits: Literal[4, 8] = 8) -> Placement:
    """Only linear layers, for recipes that need no data: dynamic activations, or integer weights alone."""
    nodes: dict[str, NodePlan] = {}
    types = WIDE if treatment is Treatment.WEIGHT else SINGLE
    for node in graph.nodes:
        if node.op not in LAYERS or (node.domain or ""):
            continue
        layer = layer_of(graph, node, frozenset(), types)
        wish = recipe.override(node.name, node.op)
        if not wish.quantize:
            reason, decision = "The recipe keeps it in float.", Treatment.FLOAT
        elif isinstance(layer, str):
            reason, decision = layer, Treatment.FLOAT
        elif node.op == "Conv":
            reason, decision = NO_DYNAMIC_CONV, Treatment.FLOAT
        else:
            reason, decision = "Linear layer with a constant weight.", treatment
        per_channel = recipe.weight.per_channel if wish.per_channel is None else wish.per_channel
        plan = NodePlan(op=node.op, treatment=decision, reason=reason, per_channel=per_channel, bits=bits)
        nodes[node.name] = plan
    return Placement(nodes, {}, {}, {}, masked_sums(graph, recipe))


def masked_sums(graph: Graph, recipe: Recipe) -> dict[str, tuple[str, str]]:
    """Both sides of every addition before a Softmax, by node, where neither is a constant."""
    found = [n for n in graph.nodes if is_masking(n) and not any(map(is_constant, n.inputs))]
    return {n.name: (n.inputs[0].name, n.inputs[1].name) for n in found} if recipe.bound_masks else {}


NO_DYNAMIC_CONV = "Without data a convolution stays float: ConvInteger and dequantized weights are slower than float."


def embeddings(graph: Graph, recipe: Recipe) -> dict[str, NodePlan]:
    """Lookup tables that are worth 8 bits: two axes, floats, at least 16 Ki numbers, read by Gather alone."""
    plans: dict[str, NodePlan] = {}
    for node in graph.nodes:
        if node.op != "Gather" or not recipe.weight.embeddings or not is_constant(node.inputs[0]):
            continue
        table = node.inputs[0]
        size = int(np.prod([int(s) for s in table.shape or ()]))  # type: ignore[arg-type]
        if table.dtype not in WIDE or len(table.shape or ()) != 2 or size < 1 << 14 or node.attrs.get("axis", 0):
            continue
        if not recipe.override(node.name, node.op).quantize:
            continue
        plans[node.name] = NodePlan(op="Gather", treatment=Treatment.WEIGHT, reason="Embedding table in 8 bits.")
    return plans


def needed_opset(graph: Graph, placement: Placement, recipe: Recipe, mode: Mode) -> int:
    """The lowest opset that has every operator which the placement leads to."""
    static = {plan.op for plan in placement.nodes.values() if plan.treatment is Treatment.STATIC}
    if mode == "dynamic-int8":
        return 11  # DynamicQuantizeLinear
    if mode == "fp16":
        return 7  # Cast with the number of a type, and all else that the runtime knows
    if mode in WEIGHT_ONLY and recipe.format == "qdq":
        return 21  # DequantizeLinear in blocks
    if not static:
        return graph.opset
    if recipe.format == "qdq":
        return 13  # DequantizeLinear with a scale for each channel
    if recipe.activation.bits < 8:
        return 12  # Clip on integers
    if static & {"MaxPool", "Concat"} or recipe.activation.symmetric:
        return 12  # MaxPool on integers; Clip on integers, for ranges that reach beyond an activation
    return 11 if static & {"Pad", "DepthToSpace"} else 10  # QLinearConv, QuantizeLinear
