"""Which channels are worth rescaling, and by how much: searched tensor by tensor, measured at the layers that read it.

The factor of a channel weighs how far its activations reach against how far its weights do:

    s = reach(x) ** strength / reach(w) ** (1 - strength)                       (SmoothQuant, arXiv:2211.10438, eq. 4)
    s = max(1, reach(x) / bound)                                                (only what sticks out of the others)

Every strength and some bounds are tried with rounded inputs and rounded weights, and the best is kept where it leaves
clearly less noise than no factors at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnxq.calibration.collect import Progress, Statistics, silent
from onnxq.calibration.data import Data
from onnxq.calibration.statistics import channel_axis
from onnxq.channels import input_channels, layers_of, spaces
from onnxq.graph import Array, Graph, Tensor, weight
from onnxq.layers import Layer
from onnxq.plan import BalancePlan
from onnxq.recipe import Recipe
from onnxq.search.local import Bench, Range, activations

STRENGTHS = (0.4, 0.55, 0.7, 0.85, 1.0)
STICKING_OUT = (1, 2, 4, 12)
"""How many channels a bound brings down to the reach of the next one."""

LEAST_REACH = 0.01
"""No channel counts as reaching less far than this share of the farthest: unseen data may wake it up."""

KEPT = 99.98
"""The percentile of the input that is tried as its range, beside the whole of it."""

PEEKED = 1 << 16
"""Numbers that this percentile is taken of."""

CLEARLY_LESS = 0.89
"""Half a decibel less noise is worth factors that cost nothing; a Mul has to gain more."""

WORTH_A_MUL = 0.5

LEAST_GAIN = 0.005
"""Share of all noise at the outputs that a Mul has to take away."""


@dataclass(frozen=True)
class Site:
    """A tensor, or several that are rescaled together, whose channels may get factors.

    Attributes:
        name: what the plan calls it.
        readers: layers that read it.
        reach: the largest absolute value of each channel.
        least: factors may not be smaller, nor larger than 1, or a Clip would cut other values; None without a Clip.
        multiplies: whether the division costs a Mul.
    """

    name: str
    readers: tuple[Layer, ...]
    reach: Array
    least: Array | None
    multiplies: bool

    @cached_property
    def candidates(self) -> tuple[Array, ...]:
        """Factors to try."""
        return tuple(self._fitted(factors) for factors in self._tried())

    def _tried(self) -> Iterator[Array]:
        weights = _reach_of_weights(self.readers)
        if weights is None:
            yield self.reach
            return
        for strength in STRENGTHS:
            yield self.reach**strength / weights ** (1 - strength)
        order = np.sort(self.reach)[::-1]
        for count in [count for count in STICKING_OUT if count < len(order)]:
            yield np.maximum(1.0, self.reach / order[count])

    def _fitted(self, factors: Array) -> Array:
        """Factors around 1, or as a Clip has them, with six digits as the plan holds them."""
        if self.least is None:
            factors = factors / np.exp(np.mean(np.log(factors)))
        else:
            factors = np.maximum(factors / factors.max(), self.least)
        return np.array([float(f"{value:.6g}") for value in factors], np.float32)


def _reach_of_weights(readers: tuple[Layer, ...]) -> Array | None:
    """The largest weight that each channel meets; None where every channel has weights of its own (depthwise)."""
    found = [reach for layer in readers if (reach := _reach_of_weight(layer)) is not None]
    return None if not found else _floored(np.max(found, axis=0))


def _reach_of_weight(layer: Layer) -> Array | None:
    values = np.abs(weight(layer.node.inputs[1]))
    if layer.linear:
        return np.asarray(values.max(0 if layer.node.attrs.get("transB", 0) else 1))
    groups = int(layer.node.attrs.get("group", 1))
    outputs, inputs = values.shape[:2]
    by_group = values.reshape(groups, outputs // groups, inputs, -1).max((1, 3))
    return None if groups > 1 and inputs == 1 else np.asarray(by_group.reshape(-1))


def _floored(reach: Array) -> Array:
    most = float(reach.max(initial=0.0))
    return np.maximum(reach, LEAST_REACH * most if most > 0 else 1.0).astype(np.float64)


def sites(graph: Graph, statistics: Statistics, static: set[str], integer: set[str]) -> list[Site]:
    """Everything that may be rescaled.

    Args:
        graph: the float model.
        statistics: of tensors that are quantized.
        static: names of layers that run on static integers.
        integer: names of tensors that integer operators make; a Mul behind these would be a detour.
    """
    found: list[Site] = []
    taken: set[str] = set()
    tensors = graph.tensors()
    for space in spaces(graph):
        if all(layer.node.name in static for layer in space.readers):
            reaches = {
                name: reach
                for name in space.tensors
                if (reach := _reach(tensors[name], space.axis, space.channels, statistics)) is not None
            }
            if reaches and reaches.keys() >= space.limits.keys():
                reach, least = _floored(np.max(list(reaches.values()), axis=0)), _least(reaches, space.limits)
                found.append(Site(space.name, space.readers, reach, least, False))
                taken.update(space.tensors)
    by_tensor: dict[str, list[Layer]] = {}
    for layer in layers_of(graph):
        if layer.linear and layer.node.name in static and layer.data.name not in taken | integer:
            by_tensor.setdefault(layer.data.name, []).append(layer)
    for name, readers in by_tensor.items():
        last = len(tensors[name].shape or ()) - 1
        own = _reach(tensors[name], last, input_channels(readers[0]), statistics)
        if own is not None:
            found.append(Site(name, tuple(readers), _floored(own), None, True))
    return found


def _reach(tensor: Tensor, axis: int, channels: int, statistics: Statistics) -> Array | None:
    """The largest absolute value of each channel; None where the statistics do not tell these channels apart."""
    if tensor.name not in statistics or channel_axis(len(tensor.shape or ())) != axis:
        return None
    seen = statistics[tensor.name].channels
    reach = np.maximum(np.abs(seen.low), np.abs(seen.high))
    return reach if reach.shape == (channels,) and np.isfinite(reach).all() else None


def _least(reaches: Mapping[str, Array], limits: Mapping[str, float]) -> Array | None:
    """The smallest factors with which no value passes a limit that did not pass it before; 1 where one was cut."""
    ends = [_floored(reaches[name]) / limit for name, limit in limits.items() if limit < np.inf]
    return np.max(ends, axis=0) if ends else None


def find_balance(
    graph: Graph, found: list[Site], data: Data, recipe: Recipe, noise: Mapping[str, float], progress: Progress = silent
) -> dict[str, BalancePlan]:
    """The factors that pay.

    Args:
        graph: the float model.
        found: where factors can be put.
        data: a few samples of it are looked at.
        recipe: how inputs and weights are rounded.
        noise: what each layer alone causes at the outputs, by name, to tell what a Mul gains.
        progress: told after each tensor.
    """
    readers: dict[str, list[Layer]] = {}
    for site in found:
        for layer in site.readers:
            readers.setdefault(layer.data.name, []).append(layer)
    gains: dict[str, dict[str, list[float]]] = {}
    by_tensor = {layer.data.name: site for site in found for layer in site.readers}
    for done, (name, x) in enumerate(activations(graph, list(readers), data), 1):
        for layer in readers[name]:
            gains.setdefault(by_tensor[name].name, {})[layer.node.name] = _noises(
                Bench(graph, layer, x, recipe), by_tensor[name]
            )
        progress("balance", done, len(readers))
    total = sum(noise.values())
    plans = {site.name: _choose(site, gains[site.name], noise, total) for site in found if site.name in gains}
    return {name: plan for name, plan in plans.items() if plan is not None}


def _noises(bench: Bench, site: Site) -> list[float]:
    """Local noise without factors, then with each candidate."""
    low, high, some = _channels(bench)
    found = []
    for factors in (None, *site.candidates):
        by = np.float32(1) if factors is None else factors
        rounded = bench.rounded(factors)
        ends = _ranges(low / by, high / by, some / by)
        found.append(min(bench.noise(rounded, own, factors) for own in ends))
    return found


def _channels(bench: Bench) -> tuple[Array, Array, Array]:
    """The low end and the high end of each channel of the input, and some of its values, with the channels last."""
    x = bench.x
    places = x.reshape(1, -1, x.shape[-1]) if bench.layer.linear else x.reshape(*x.shape[:2], -1).swapaxes(1, 2)
    return places.min((0, 1)), places.max((0, 1)), places[:, :: max(1, x.size // PEEKED)]


def _ranges(low: Array, high: Array, some: Array) -> list[Range]:
    """The whole of an input, and most of it."""
    whole = (min(float(low.min()), 0.0), max(float(high.max()), 0.0))
    ends = np.percentile(some, [(100 - KEPT) / 2, (100 + KEPT) / 2])
    return list(dict.fromkeys((whole, (min(float(ends[0]), 0.0), max(float(ends[1]), 0.0)))))


def _choose(
    site: Site, noises: Mapping[str, list[float]], noise: Mapping[str, float], total: float
) -> BalancePlan | None:
    """The candidate with the least noise, weighed by what each layer's noise means at the outputs."""
    table = np.array([np.array(values) / values[0] for values in noises.values() if values[0] > 0])
    shares = np.array([noise.get(name, 0.0) for name, values in noises.items() if values[0] > 0])
    if not shares.size:
        return None
    weights = shares if shares.sum() > 0 else np.ones(len(shares))
    left = weights @ table / weights.sum()
    best = int(np.argmin(left))
    gained = float(shares.sum() * (1 - left[best]) / total) if total > 0 else 0.0
    if left[best] > (WORTH_A_MUL if site.multiplies else CLEARLY_LESS) or (site.multiplies and gained < LEAST_GAIN):
        return None
    factors = site.candidates[best - 1]
    fall = -10 * np.log10(max(left[best], 1e-9))
    reason = f"Local noise falls by {fall:.1f} dB, {100 * gained:.1f} % of all noise at the outputs."
    return BalancePlan(
        factors=[float(f"{value:.6g}") for value in factors],
        multiplies=site.multiplies,
        reason=reason,
        gain=float(f"{gained:.3g}"),
    )
