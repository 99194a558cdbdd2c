"""What quantization does to the output of one layer, from activations of a few samples.

The layer is run with its real input, then with a rounded input and a rounded weight. The mean of the difference is left
out for each channel: a bias makes up for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxq.calibration.collect import unmasked
from onnxq.calibration.data import Data, mask_of
from onnxq.channels import input_channels
from onnxq.graph import Graph, alone, to_model, weight
from onnxq.layers import Layer, weight_axis
from onnxq.numerics.affine import dequantize, fake_quantize, parameters, quantize_weight
from onnxq.numerics.formats import FORMATS
from onnxq.recipe import Recipe
from onnxq.runtime import Session

Array = np.ndarray[Any, Any]
Range = tuple[float, float]

ELEMENTS = 1 << 20
"""Numbers of a tensor that are kept at most; whole samples, so that a convolution sees whole pictures."""

SAMPLES = 16
"""Samples that are looked at, at most."""

HELD = 1 << 27
"""Numbers of different tensors that are held at a time."""


def activations(graph: Graph, names: Sequence[str], data: Data) -> Iterator[tuple[str, Array]]:
    """Values of tensors on a few samples, padding left out where axes allow; a group of tensors at a time."""
    feeds = list(data.take(slice(0, SAMPLES)).batches(1))
    if not feeds:
        return
    inputs = {tensor.name for tensor in graph.inputs}
    yield from ((name, np.concatenate([f[name] for f in feeds])) for name in names if name in inputs)
    waiting = [name for name in names if name not in inputs]
    group = max(1, min(len(waiting), HELD // (2 * ELEMENTS)))
    for start in range(0, len(waiting), group):
        part = waiting[start : start + group]
        session = Session(to_model(graph, extra_outputs=part).SerializeToString(), folder=graph.folder)
        kept: dict[str, list[Array]] = {name: [] for name in part}
        for feed in feeds:
            wanted = [name for name in part if sum(value.size for value in kept[name]) < ELEMENTS]
            if not wanted:
                break
            for name, value in session.run(feed, wanted).items():
                kept[name].append(unmasked(value, mask_of(feed)))
        yield from ((name, _joined(values)) for name, values in kept.items())


def _joined(values: list[Array]) -> Array:
    """One array; rows of different lengths one below the other."""
    if len({value.shape[1:] for value in values}) > 1:
        values = [value.reshape(-1, value.shape[-1]) for value in values]
    return np.concatenate(values)


@dataclass
class Bench:
    """One layer with its real input.

    Attributes:
        graph: that it stands in.
        layer: the layer, without activations.
        x: its input on a few samples.
        recipe: how weights and activations are rounded.
    """

    graph: Graph
    layer: Layer
    x: Array
    recipe: Recipe

    def __post_init__(self) -> None:
        node = self.layer.node
        self.values = weight(node.inputs[1])
        single = None if self.layer.linear else to_model(alone(self.graph, node, 2)).SerializeToString()
        self._session = None if single is None else Session(single)
        self.y = self._run(self.x, self.values)
        self.signal = float(np.vdot(self.y, self.y)) or 1.0

    def _run(self, x: Array, values: Array) -> Array:
        node = self.layer.node
        if self._session is None:
            return np.asarray(x @ (values.T if node.attrs.get("transB", 0) else values))
        (y,) = self._session.run({node.inputs[0].name: x, node.inputs[1].name: values}).values()
        return y

    def rounded(self, values: Array) -> Array:
        """A weight on the grid that the recipe gives it."""
        settings, axis = self.recipe.weight, weight_axis(self.layer.node) if self.recipe.weight.per_channel else None
        found = quantize_weight(values, FORMATS[settings.format], axis=axis, symmetric=settings.symmetric)
        return dequantize(found.values, found.scale, found.zero_point, axis)

    def gridded(self, x: Array, ends: Range) -> Array:
        """An input on the grid of a range."""
        form = FORMATS[self.recipe.activation.format]
        scale, zero_point = parameters(*ends, form, symmetric=self.recipe.activation.symmetric)
        return fake_quantize(x, scale, zero_point, form)

    def noise(self, x: Array, values: Array) -> float:
        """Noise over signal at the output, for an input and a weight that stand for the real ones."""
        error = self._run(x, values) - self.y
        axes = (0, *range(2, error.ndim)) if not self.layer.linear else tuple(range(error.ndim - 1))
        error -= error.mean(axes, keepdims=True)
        return float(np.vdot(error, error)) / self.signal

    @property
    def inputs(self) -> int:
        """How many channels the layer reads."""
        return input_channels(self.layer)

    def by_channel(self, factors: Array) -> Array:
        """Factors, shaped like the input's channels."""
        rank = self.x.ndim
        return factors.reshape((1, -1, *([1] * (rank - 2)))) if not self.layer.linear else factors
