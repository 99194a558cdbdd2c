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
from onnxq.channels import scaled_inputs
from onnxq.graph import Graph, alone, to_model, weight
from onnxq.layers import Layer, weight_axis
from onnxq.numerics.affine import dequantize, parameters, quantize_weight
from onnxq.recipe import Recipe
from onnxq.runtime import Session

Array = np.ndarray[Any, Any]
Range = tuple[float, float]

ELEMENTS = 1 << 19
"""Numbers of a tensor that are kept at most; whole samples, so that a convolution sees whole pictures."""

SAMPLES = 16
"""Samples that are looked at, at most."""

HELD = 1 << 27
"""Numbers of different tensors that are held at a time."""

OUTPUTS = 128
"""Outputs of a layer that are looked at, at most, where each has a scale of its own and all read the same inputs."""


def activations(graph: Graph, names: Sequence[str], data: Data) -> Iterator[tuple[str, Array]]:
    """Values of tensors on a few samples, padding left out where axes allow; a group of tensors at a time.

    Samples with NaN or infinity in a tensor are left out for it; a tensor that has no others is left out.
    """
    feeds = list(data.take(slice(0, SAMPLES)).batches(1))
    inputs = {tensor.name for tensor in graph.inputs}
    group = HELD // (2 * ELEMENTS)
    for part in (names[start : start + group] for start in range(0, len(names), group)):
        inner = [name for name in part if name not in inputs]
        session = Session(to_model(graph, extra_outputs=inner).SerializeToString(), folder=graph.folder)
        kept: dict[str, list[Array]] = {name: [] for name in part}
        for feed in feeds:
            wanted = [name for name in part if sum(value.size for value in kept[name]) < ELEMENTS]
            asked = [name for name in wanted if name not in inputs]
            values = {**feed, **(session.run(feed, asked) if asked else {})}
            for name in wanted:
                value = unmasked(values[name], mask_of(feed))
                if value.size and np.isfinite(value).all():
                    kept[name].append(value)
        yield from ((name, _joined(found)) for name, found in kept.items() if found)


def _joined(values: list[Array]) -> Array:
    """One array: rows of different lengths one below the other; of pictures those that are as large as the first."""
    if len({value.shape[1:] for value in values}) == 1:
        return np.concatenate(values)
    if values[0].ndim < 4 and len({value.shape[-1] for value in values}) == 1:
        return np.concatenate([value.reshape(-1, value.shape[-1]) for value in values])
    return np.concatenate([value for value in values if value.shape[1:] == values[0].shape[1:]])


@dataclass
class Bench:
    """One layer with its real input. Of many outputs, some are looked at.

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
        self._axis = weight_axis(node) if self.recipe.weight.per_channel else None
        # one thread: the parts are small, and waiting for others to finish costs more than they save
        self._session = Session(to_model(alone(self.graph, node, 2)).SerializeToString(), threads=1)
        self._room = np.empty_like(self.x)
        self.exact = self._run(self.x, self.weight())
        self._signal = float(np.vdot(self.exact, self.exact)) or 1.0

    def weight(self, factors: Array | None = None) -> Array:
        """The float weight of some of the outputs, its inputs multiplied by factors."""
        layer = self.layer
        values = weight(layer.node.inputs[1]) if factors is None else scaled_inputs(layer, factors)
        if self._axis is None or int(layer.node.attrs.get("group", 1)) > 1:
            return values
        step = -(-values.shape[self._axis] // OUTPUTS)
        some = values[::step] if self._axis == 0 else values[:, ::step]
        return np.ascontiguousarray(some)

    def _run(self, x: Array, values: Array) -> Array:
        data, weight = self.layer.node.inputs[:2]
        (y,) = self._session.run({data.name: x, weight.name: values}).values()
        return y

    def rounded(self, factors: Array | None = None) -> Array:
        """The weight on the grid that the recipe gives it."""
        settings = self.recipe.weight
        found = quantize_weight(self.weight(factors), settings.grid, axis=self._axis, **settings.fitting)
        return dequantize(found.values, found.scale, found.zero_point, self._axis)

    def noise(self, rounded: Array, ends: Range, factors: Array | None = None) -> float:
        """Noise over signal at the output, for a rounded weight and an input on the grid of a range.

        With factors, the input is divided by them before it is rounded, and the weight was multiplied by them.
        """
        form, symmetric = self.recipe.activation.grid, self.recipe.activation.symmetric
        scale, zero_point = parameters(*ends, form, symmetric=symmetric)
        steps, zero = self._room, int(zero_point)
        np.multiply(self.x, 1 / scale if factors is None else self.by_channel(1 / (scale * factors)), out=steps)
        np.rint(steps, out=steps)
        np.clip(steps, form.qmin - zero, form.qmax - zero, out=steps)
        error = self._run(steps, rounded * scale)
        error -= self.exact
        others = tuple(i for i in range(error.ndim) if i != (error.ndim - 1 if self.layer.linear else 1))
        mean = error.mean(others).astype(np.float64)
        # the sum of squares about the mean, without another pass
        power = float(np.vdot(error, error)) - error.size / mean.size * float(mean @ mean)
        return float(max(power, 0.0) / self._signal)

    def by_channel(self, values: Array) -> Array:
        """One number for each channel, shaped to go with the input."""
        return values if self.layer.linear else values.reshape(-1, *[1] * (self.x.ndim - 2))
