"""What can be said about an operator without running anything: its weight, its input, what to keep in mind."""

from __future__ import annotations

from typing import Literal

import numpy as np

from onnxq.calibration.collect import Seen
from onnxq.calibration.statistics import BINS
from onnxq.diagnosis.findings import Outlier
from onnxq.diagnosis.matching import Pair
from onnxq.diagnosis.suspects import Case, Suspect
from onnxq.graph import Array
from onnxq.search.switches import Grid

FAR_APART = 3.0
"""Decibels between simulation and reality that want an explanation."""


def notes(case: Case, simulated: float | None, actual: float | None) -> list[str]:
    """What to keep in mind."""
    found = []
    if case.lost:
        names = ", ".join(f"'{one.names[0]}'" for one in case.lost[:3])
        found.append(f"No layer of the float model was found for {len(case.lost)} quantized layers, such as {names}.")
    if simulated is not None and actual is not None and abs(simulated - actual) > FAR_APART:
        rounds = any(s.pair.stored.node.op == "MatMulNBits" for s in case.suspects.values() if s.pair)
        why = "MatMulNBits rounds activations to 8 bits inside its kernel." if rounds else "An overflow is one reason."
        found.append(
            f"The runtime computes something else than the graph says: {actual:.1f} dB where the simulation has "
            f"{simulated:.1f} dB. {why if actual < simulated else 'Not everything here was understood.'}"
        )
    return found


def treatment(suspect: Suspect) -> Literal["static", "dynamic", "weight", "between"]:
    """How an operator was quantized."""
    if suspect.pair is None:
        return "between"
    if isinstance(suspect.input, Grid):
        return "static"
    return "dynamic" if suspect.input == "dynamic" else "weight"


def output_of(suspect: Suspect) -> str:
    """The tensor that leaves an operator, activations that belong to it included."""
    return suspect.pair.layer.output.name if suspect.pair is not None else suspect.node.outputs[0].name


def about_weight(pair: Pair) -> dict[str, object]:
    """What is known about the weight of a layer."""
    exact = np.abs(pair.exact)
    axes = tuple(range(1, exact.ndim)) if pair.layer.node.op == "Conv" else (0,)
    return {"weight_outlier": outlier(exact.max(axis=axes)), "per_channel": pair.stored.weight.scales > 1}


def about_activation(name: str, seen: Seen | None, grid: Grid | None) -> dict[str, object]:
    """What is known about an activation that is rounded."""
    if seen is None:
        return {"input": name}
    return {
        "input": name,
        "input_range": (seen.histogram.low, seen.histogram.high),
        "input_outlier": outlier(np.maximum(-seen.channels.low, seen.channels.high)),
        "clipped": None if grid is None or np.size(grid.scale) > 1 else clipped(seen, grid),
    }


def outlier(reach: Array) -> Outlier | None:
    """The channel that reaches farthest."""
    if reach.ndim == 0 or reach.size < 2 or not np.isfinite(reach).all():
        return None
    middle = float(np.median(reach))
    place = int(np.argmax(reach))
    return Outlier(channel=place, times=float(reach[place]) / middle if middle > 0 else np.inf)


def clipped(seen: Seen, grid: Grid) -> float:
    """The share of values that lie more than half a step beyond the grid; a bin counts by its middle."""
    scale, zero = float(np.max(grid.scale)), int(np.max(grid.zero_point))
    low, high = ((end - zero) * scale for end in (grid.format.qmin - 0.5, grid.format.qmax + 0.5))
    middles = (np.arange(-BINS, BINS) + 0.5) * seen.histogram.width
    return float(seen.histogram.counts[(middles < low) | (middles > high)].sum()) / max(seen.histogram.count, 1)
