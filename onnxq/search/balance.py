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

import numpy as np

from onnxq.calibration.collect import Progress, Statistics, silent
from onnxq.calibration.data import Data
from onnxq.channels import input_channels, layers_of, scaled_inputs, spaces
from onnxq.graph import Array, Graph, weight
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

PEEKED = 1 << 17
"""Numbers that this percentile is taken of."""

CLEARLY_LESS = 0.89
"""Half a decibel less noise is worth factors that cost nothing; a Mul has to gain more."""

WORTH_A_MUL = 0.5


@dataclass(frozen=True)
class Site:
    """A tensor, or several that are rescaled together, whose channels may get factors.

    Attributes:
        name: what the plan calls it.
        readers: layers that read it.
        reach: the largest absolute value of each channel.
        limit: values may not pass this after the division; inf where they may.
        multiplies: whether the division costs a Mul.
    """

    name: str
    readers: tuple[Layer, ...]
    reach: Array
    limit: float
    multiplies: bool

    def candidates(self) -> Iterator[Array]:
        """Factors to try."""
        weights = _reach_of_weights(self.readers)
        if weights is None:
            yield self._fitted(self.reach)
            return
        for strength in STRENGTHS:
            yield self._fitted(self.reach**strength / weights ** (1 - strength))
        order = np.sort(self.reach)[::-1]
        for count in [count for count in STICKING_OUT if count < len(order)]:
            yield self._fitted(np.maximum(1.0, self.reach / order[count]))

    def _fitted(self, factors: Array) -> Array:
        """Factors that keep to the limit, around 1, with six digits as the plan holds them."""
        if self.limit < np.inf:
            factors = np.maximum(factors / factors.max(), self.reach / self.limit)
        else:
            factors = factors / np.exp(np.mean(np.log(factors)))
        return np.array([float(f"{value:.6g}") for value in factors], np.float32)


def _reach_of_weights(readers: tuple[Layer, ...]) -> Array | None:
    """The largest weight that each channel meets; None where every channel has weights of its own (depthwise)."""
    found = [reach for layer in readers if (reach := _reach_of_weight(layer)) is not None]
    return None if not found else _floored(np.max(found, axis=0))


def _reach_of_weight(layer: Layer) -> Array | None:
    groups = int(layer.node.attrs.get("group", 1)) if layer.node.op == "Conv" else 1
    if groups > 1:
        return None
    values = np.abs(weight(layer.node.inputs[1]))
    if not layer.linear:
        return np.asarray(values.reshape(*values.shape[:2], -1).max((0, 2)))
    return np.asarray(values.max(0 if layer.node.attrs.get("transB", 0) else 1))


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
    for space in spaces(graph):
        reach = _reach(space.tensors, statistics, space.readers)
        if reach is not None and all(layer.node.name in static for layer in space.readers):
            found.append(Site(space.name, space.readers, reach, space.limit, False))
            taken.update(space.tensors)
    by_tensor: dict[str, list[Layer]] = {}
    for layer in layers_of(graph):
        if layer.linear and layer.node.name in static and layer.data.name not in taken | integer:
            by_tensor.setdefault(layer.data.name, []).append(layer)
    for name, readers in by_tensor.items():
        reach = _reach((name,), statistics, tuple(readers))
        if reach is not None:
            found.append(Site(name, tuple(readers), reach, np.inf, True))
    return found


def _reach(names: tuple[str, ...], statistics: Statistics, readers: tuple[Layer, ...]) -> Array | None:
    channels = {input_channels(layer) for layer in readers}
    seen = [statistics[name].channels for name in names if name in statistics]
    ends = [np.maximum(np.abs(s.low), np.abs(s.high)) for s in seen if {s.low.size} == channels]
    if not ends or not np.isfinite(ends).all():
        return None
    return _floored(np.max(ends, axis=0))


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
    plain = _least_noise(bench, bench.x, weight(bench.layer.node.inputs[1]))
    rest = []
    for factors in site.candidates():
        x = bench.x / bench.by_channel(factors)
        rest.append(_least_noise(bench, x, scaled_inputs(bench.layer, factors)))
    return [plain, *rest]


def _least_noise(bench: Bench, x: Array, values: Array) -> float:
    """Noise with the best of some ranges."""
    rounded = bench.rounded(values)
    return min(bench.noise(bench.gridded(x, ends), rounded) for ends in _ranges(x))


def _ranges(x: Array) -> list[Range]:
    some = x.reshape(-1)[:: max(1, x.size // PEEKED)]
    low, high = np.percentile(some, [(100 - KEPT) / 2, (100 + KEPT) / 2])
    whole = (min(float(x.min()), 0.0), max(float(x.max()), 0.0))
    return list(dict.fromkeys((whole, (min(float(low), 0.0), max(float(high), 0.0)))))


def _choose(
    site: Site, noises: Mapping[str, list[float]], noise: Mapping[str, float], total: float
) -> BalancePlan | None:
    """The candidate with the least noise, weighed by what each layer's noise means at the outputs."""
    table = np.array([np.array(values) / max(values[0], 1e-30) for values in noises.values()])
    shares = np.array([noise.get(name, 0.0) for name in noises])
    shares = shares if shares.sum() > 0 else np.ones(len(noises))
    left = shares @ table / shares.sum()
    best = int(np.argmin(left))
    gained = float(shares.sum() * (1 - left[best]) / total) if total > 0 else 0.0
    if left[best] > (WORTH_A_MUL if site.multiplies else CLEARLY_LESS) or (site.multiplies and gained < 0.005):
        return None
    factors = list(site.candidates())[best - 1]
    reason = (
        f"Local noise falls by {-10 * np.log10(left[best]):.1f} dB, {100 * gained:.1f} % of all noise at the outputs."
    )
    return BalancePlan(factors=[float(f"{value:.6g}") for value in factors], multiplies=site.multiplies, reason=reason)
