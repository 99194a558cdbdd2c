"""The range of each tensor by itself: of what the rules propose, the one that hurts the layers behind it least."""

from __future__ import annotations

from collections.abc import Mapping

from onnxq.calibration import ranges
from onnxq.calibration.collect import Progress, Statistics, silent
from onnxq.calibration.data import Data
from onnxq.calibration.statistics import Histogram
from onnxq.channels import layers_of
from onnxq.graph import Graph
from onnxq.layers import Layer
from onnxq.recipe import Recipe
from onnxq.search.local import Bench, activations

PERCENTILES = (99.999, 99.99, 99.9)


def proposals(histogram: Histogram, recipe: Recipe) -> dict[str, ranges.Range]:
    """What each rule makes of a statistic, the first of equals kept."""
    settings = recipe.activation
    found = {"mse": ranges.mse(histogram, settings.grid, settings.symmetric)}
    found["minmax"] = ranges.minmax(histogram)
    found.update({f"percentile {p:g}": ranges.percentile(histogram, p) for p in PERCENTILES})
    unique: dict[ranges.Range, str] = {}
    for name, ends in found.items():
        unique.setdefault(ends, name)
    return {name: ends for ends, name in unique.items()}


def best_ranges(
    graph: Graph,
    tensors: Mapping[str, str],
    statistics: Statistics,
    data: Data,
    recipe: Recipe,
    progress: Progress = silent,
) -> dict[str, tuple[float, float, str]]:
    """Low end, high end and rule for each tensor that layers read.

    Args:
        graph: the float model.
        tensors: quantized tensors, each with the tensor whose range it takes.
        statistics: of these tensors.
        data: a few samples of it are looked at.
        recipe: how inputs and weights are rounded.
        progress: told after each tensor.
    """
    readers: dict[str, list[Layer]] = {}
    for layer in layers_of(graph):
        if tensors.get(layer.data.name) in statistics:
            readers.setdefault(layer.data.name, []).append(layer)
    costs: dict[str, dict[str, float]] = {}
    options = {name: proposals(statistics[tensors[name]].histogram, recipe) for name in readers}
    for done, (name, x) in enumerate(activations(graph, list(readers), data), 1):
        total = costs.setdefault(tensors[name], {})
        for layer in readers[name]:
            bench = Bench(graph, layer, x, recipe)
            rounded = bench.rounded()
            found = {rule: bench.noise(rounded, ends) for rule, ends in options[name].items()}
            least = max(min(found.values()), 1e-30)
            for rule, noise in found.items():
                total[rule] = total.get(rule, 0.0) + noise / least
        progress("ranges", done, len(readers))
    chosen = {}
    for source, total in costs.items():
        rule = min(total, key=lambda name: total[name])
        chosen[source] = (*proposals(statistics[source].histogram, recipe)[rule], rule)
    return chosen
