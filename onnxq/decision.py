"""From statistics to a plan: the range, scale and zero point of every tensor that a placement runs on integers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from onnxq.calibration import ranges
from onnxq.calibration.collect import Statistics
from onnxq.errors import DataError
from onnxq.numerics.affine import parameters
from onnxq.numerics.formats import FORMATS
from onnxq.placement import Placement
from onnxq.plan import MaskPlan, Plan, TensorPlan
from onnxq.recipe import RangeRule, Recipe
from onnxq.targets import Target

MASK_BOUND = -60.0
"""A hidden score so far down weighs e**-16 beside the largest even if it is 44 above it: below a float32 step."""

WIDEST_SCORES = 40.0
"""The spread of scores up to which the bound is safe."""


Range = tuple[float, float, str]
"""Low end, high end, and the rule that found them."""


def decide(
    placement: Placement,
    statistics: Statistics,
    recipe: Recipe,
    target: Target,
    chosen: Mapping[str, Range] = MappingProxyType({}),
) -> Plan:
    """Turn statistics into ranges, and ranges into scales and zero points; chosen ranges stay.

    Raises:
        DataError: a tensor that needs a range was not seen in the statistics.
    """
    tensors: dict[str, TensorPlan] = {}
    for name, source in placement.tensors.items():
        form = recipe.activation.grid
        if source in placement.fixed:
            (low, high), reason = placement.fixed[source], "The operator returns nothing else."
        elif source in chosen:
            low, high, found = chosen[source]
            reason = f"Range by {found}: the least noise in the layers that read it."
        else:
            rule = recipe.override(placement.asked[source].name, placement.asked[source].op).range
            low, high, reason = _range(source, statistics, recipe, rule or recipe.activation.range)
        scale, zero_point = parameters(low, high, form, symmetric=recipe.activation.symmetric)
        zero = int(zero_point)
        wanted = FORMATS[f"{target.activation.rstrip('8')}{form.bits}"]
        if recipe.format == "integer" and form.name != wanted.name:
            # the same steps under other names: integer kernels of the target take one signedness only
            zero += wanted.qmin - form.qmin
            form = wanted
        means = _means(name, statistics) if recipe.weight.correct_bias else []
        shared = "" if source == name else f" Shares the scale of '{source}'."
        tensors[name] = TensorPlan(
            format=form.name,
            scale=float(scale),
            zero_point=zero,
            low=low,
            high=high,
            reason=reason + shared,
            means=means,
        )
    masks = decide_masks(placement, statistics)
    return Plan(recipe=recipe, nodes=placement.nodes, tensors=tensors, masks=masks)


def _means(name: str, statistics: Statistics) -> list[float]:
    """Channel means to six digits: what a bias needs, and a person can read."""
    mean = statistics[name].sums.mean if name in statistics else None
    return [] if mean is None else [float(f"{value:.6g}") for value in mean]


def _range(name: str, statistics: Statistics, recipe: Recipe, rule: RangeRule) -> tuple[float, float, str]:
    if name not in statistics:
        raise DataError(f"The statistics say nothing about tensor '{name}'. Collect them again for this model.")
    seen, settings = statistics[name], recipe.activation
    if rule == "moving-average":
        low, high = ranges.moving_average(seen.average)
    elif rule == "percentile":
        low, high = ranges.percentile(seen.histogram, settings.percent)
    elif rule == "entropy":
        low, high = ranges.entropy(seen.histogram, settings.grid.levels)
    elif rule in ("mse", "auto"):
        low, high = ranges.mse(seen.histogram, settings.grid, settings.symmetric)
    else:
        low, high = ranges.minmax(seen.histogram)
    return float(low), float(high), f"Range by {rule}."


def decide_masks(placement: Placement, statistics: Statistics) -> dict[str, MaskPlan]:
    """Sums whose mask reaches far down, and whose scores stay close enough together for the bound."""
    plans: dict[str, MaskPlan] = {}
    for node, pair in placement.sums.items():
        for mask, scores in (pair, pair[::-1]):
            if mask not in statistics or scores not in statistics:
                continue
            low, seen = statistics[mask].histogram, statistics[scores].histogram
            hides = (low.negative_infinities or low.low < -1e4) and low.high <= 0.0
            if hides and seen.non_finite == 0 and seen.high - seen.low <= WIDEST_SCORES:
                plans[node] = MaskPlan(mask=mask, bound=MASK_BOUND)
    return plans
