"""Which layer of the float model a quantized layer was: by the names that tools keep, else by order and shape."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.diagnosis.stored import StoredLayer
from onnxq.graph import Array, Graph, weight
from onnxq.layers import Layer, layer_of

ABSORBED = frozenset({"Relu", "Clip"})
"""Activations that belong to the layer before them."""

ADDED = re.compile(
    r"_QuantizeLinear(_Output|_Input)?$|_DequantizeLinear(_Output)?$|_(output_|un|de)?quantized?$|_quant$|quant_scaled_output$"
    r"|_quantize$|_dequantize$|_balanced$|_padded$|_transposed$|_unclipped$|_float$|_\d+$|^(q|dq)_output_|^(Q|Deq)uantizeLinear_"
)
"""What tools (ONNX Runtime, NNCF, this one) put around the name of a float tensor or node."""

LEAST_COSINE = 0.5
"""Weights that are less alike than this are not taken for the same layer because of their place alone."""


def bare(name: str, known: Container[str]) -> str | None:
    """The float name inside a name that a tool made; None where there is none among the known ones."""
    while name not in known:
        shorter = ADDED.sub("", name, count=1)
        if shorter == name:
            return None
        name = shorter
    return name


@dataclass(frozen=True, eq=False)
class Pair:
    """A layer of the float model, and what became of it."""

    layer: Layer
    stored: StoredLayer

    @property
    def is_quantized(self) -> bool:
        """Whether its weight is stored in integers."""
        return self.stored.weight.scales > 0

    @property
    def exact(self) -> Array:
        """The float weight, in the layout of the stored one."""
        return plain_weight(self.layer)


def plain_weight(layer: Layer) -> Array:
    """(outputs, inputs / groups, ...) of a convolution, (inputs, outputs) of a product."""
    values = weight(layer.weight)
    return values.T if layer.node.op == "Gemm" and layer.node.attrs.get("transB", 0) else values


def float_layers(graph: Graph) -> list[Layer]:
    """Every layer with a weight."""
    return [found for node in graph.nodes if isinstance(found := layer_of(graph, node, ABSORBED), Layer)]


def pair_up(graph: Graph, stored: Sequence[StoredLayer]) -> tuple[list[Pair], list[StoredLayer]]:
    """Float layers with their quantized form, in the order of the float graph, and quantized layers without a match."""
    layers = float_layers(graph)
    named = _by_name(layers)
    found: dict[str, StoredLayer] = {}
    waiting: list[StoredLayer] = []
    for one in stored:
        names = [bare(name, named) for name in one.names]
        match = next((named[n] for n in names if n and _fits(named[n], one) and named[n].node.name not in found), None)
        if match is None:
            waiting.append(one)
        else:
            found[match.node.name] = one
    free = [layer for layer in layers if layer.node.name not in found]
    lost = [one for one in waiting if not _by_place(one, free, found)]
    return [Pair(layer, found[layer.node.name]) for layer in layers if layer.node.name in found], lost


def _by_name(layers: Sequence[Layer]) -> dict[str, Layer]:
    """Layers by the names of their nodes, weights and outputs; names of several layers are left out."""
    found: dict[str, Layer] = {}
    shared: set[str] = set()
    for layer in layers:
        for name in {layer.node.name, layer.weight.name, layer.node.outputs[0].name, layer.output.name}:
            shared.update({name} if name in found else ())
            found[name] = layer
    return {name: layer for name, layer in found.items() if name not in shared}


def _fits(layer: Layer, stored: StoredLayer) -> bool:
    return layer.linear != stored.is_convolution and plain_weight(layer).shape == stored.weight.values.shape


def _by_place(stored: StoredLayer, free: list[Layer], found: dict[str, StoredLayer]) -> bool:
    """Take the first free layer of the same shape, if the weights are alike."""
    for layer in free:
        if _fits(layer, stored) and _alike(plain_weight(layer), stored.weight.values):
            found[layer.node.name] = stored
            free.remove(layer)
            return True
    return False


def _alike(one: Array, other: Array) -> bool:
    a, b = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    return bool(a @ b >= LEAST_COSINE * np.linalg.norm(a) * np.linalg.norm(b))
