"""Weights rounded so that the errors of a layer's inputs cancel at its output, searched layer by layer.

Rounded to nearest, every weight errs by itself. But inputs rise and fall together, so a weight that was rounded up can
make up for one that was rounded down: GPTQ, then coordinate descent. What goes together is known from few samples;
others tell how much of that to believe (`numerics/rounding/shrinkage.py`), and whether the error falls there too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxq.calibration.collect import Progress, silent, unmasked
from onnxq.calibration.data import Data, mask_of
from onnxq.calibration.statistics import Gram
from onnxq.channels import layers_of
from onnxq.graph import Graph, to_model, weight
from onnxq.layers import Layer, weight_axis
from onnxq.numerics.affine import QuantizedWeight, fake_quantize
from onnxq.numerics.formats import Format, IntegerArray
from onnxq.numerics.rounding.descent import descend
from onnxq.numerics.rounding.gptq import gptq
from onnxq.numerics.rounding.output_error import output_error
from onnxq.numerics.rounding.shrinkage import shrinkage, shrunk
from onnxq.numerics.unfold import unfold
from onnxq.plan import Plan, TensorPlan, Treatment
from onnxq.recipe import Weight
from onnxq.runtime import Session
from onnxq.search.forms import STATIC, Forms, grid_of, layer_shares
from onnxq.search.sensitivity import RULE_SAMPLES
from onnxq.search.switches import SwitchBoard
from onnxq.study import Study
from onnxq.weights import as_matrix, corrected_means, differences, rounded_weight

Array = np.ndarray[Any, Any]

SAMPLES = 64
"""Samples that are looked at, at most: the last ones, for noise is measured on the first."""

UNSEEN = 8
"""One in so many samples is never looked at, where there are few."""

ROWS = 4096
"""Rows of inputs of a layer that are looked at, at most; the same number of each sample."""

PARTS = 4
"""One in so many samples is not fitted, but tells whether the others can be believed."""

QUIET = 0.02
"""The quietest layers, which together cause this share of the noise, are rounded to nearest: plans stay smaller."""

GLANCE = 2
"""Samples that tell which layers these are."""

CLEARLY_LESS = 0.9
"""The error has to fall to this share."""

BELIEVED = 0.9
"""The bias is taken to make up for this share of the mean error; in the quantized model the means are a little off."""

MOST_INPUTS = 4096
"""A layer with more is rounded to nearest: time and memory grow with their square."""

HELD = 1 << 27
"""Numbers of different tensors that are held at a time."""


@dataclass(frozen=True)
class View:
    """What a layer sees of a tensor, which other layers may see just so.

    Attributes:
        tensor: its name.
        inputs: how many numbers make a row.
        window: size, strides, pads and dilations of a convolution's window; empty where the last axis makes a row.
        means: what the bias makes up for, of each channel; empty where it does not.
    """

    tensor: str
    inputs: int
    window: tuple[tuple[int, ...], ...]
    means: tuple[float, ...]

    @classmethod
    def of(cls, layer: Layer, plan: TensorPlan) -> View:
        """The view of a layer whose input has this plan."""
        means = corrected_means(layer, plan.means)
        attributes, inputs = layer.node.attrs, as_matrix(layer, weight(layer.node.inputs[1])).shape[1]
        options = (tuple(attributes.get(key, ())) for key in ("strides", "pads", "dilations"))
        window = () if layer.linear else (tuple(layer.weight.shape or ())[2:], *options)
        return cls(layer.data.name, inputs, window, () if means is None else tuple(means))

    def rows(self, x: Array, plan: TensorPlan, most: int, seed: int) -> Array:
        """What the integer layer reads, less the means: (rows, inputs), `most` of them at most."""
        grid = grid_of(plan)
        x = fake_quantize(x, grid.scale, grid.zero_point, grid.format)
        options = [part or None for part in self.window[1:]]
        rows = x.reshape(-1, self.inputs) if not self.window else unfold(x, self.window[0], *options)
        if len(rows) > most:
            rows = rows[np.random.default_rng(seed).choice(len(rows), most, replace=False)]
        means = BELIEVED * np.asarray(self.means or (0,), np.float32)
        return np.asarray(rows - np.repeat(means, self.inputs // len(means)))


def choose_rounding(study: Study, plain: Plan) -> Plan:
    """The plan with weights rounded so that their errors cancel, where that leaves less noise at the outputs."""
    build, data, measure = study.build, study.data, study.meter(RULE_SAMPLES)
    assert data is not None

    def search() -> dict[str, str]:
        shares = layer_shares(build.graph, build.context.target, plain, data, GLANCE, build.progress)
        found = better_rounding(build.graph, plain, data, shares, build.progress)
        forms = Forms(build.graph, build.context.target, plain)
        return helpful(forms, found, data, study.affordable(2 * len(found)), build.progress)

    study.rounding = study.recall("rounding", plain.deeds, search)
    plan = study.plan(plain.recipe.activation.range)
    # each was measured to help, alone; all together they meet the noise of everything else, and must not clearly hurt
    if study.rounding and CLEARLY_LESS * measure(plan) < measure(plain):
        return plan
    study.rounding, study.other_rounding = {}, study.rounding
    return plain


def helpful(
    forms: Forms, found: Mapping[str, str], data: Data, samples: int, progress: Progress = silent
) -> dict[str, str]:
    """Those roundings that leave less noise at the outputs of the model, each alone in a float one.

    What cancels at the output of a layer need not help the model: the layers behind may add up what is left.
    """
    if not found:
        return {}
    plan = forms.plan
    nodes = {name: plan.nodes[name].model_copy(update={"rounding": text}) for name, text in found.items()}
    rounded = replace(forms, plan=plan.model_copy(update={"nodes": {**plan.nodes, **nodes}}))
    nearest = {name: list(forms.rounded(name, STATIC)) for name in found}
    others = {name: [replace(s, name=f"{s.name}, other") for s in rounded.rounded(name, STATIC)] for name in found}
    switches = [switch for name in found for switch in (*nearest[name], *others[name])]
    board, kept = SwitchBoard(forms.graph, switches, data, samples), dict[str, str]()
    for done, (name, text) in enumerate(found.items(), 1):
        before, after = (board.noise([switch.name for switch in own[name]]) for own in (nearest, others))
        kept |= {name: text} if after < CLEARLY_LESS * before else {}
        progress("rounding", done, len(found))
    return kept


def better_rounding(
    graph: Graph, plan: Plan, data: Data, noise: Mapping[str, float], progress: Progress = silent
) -> dict[str, str]:
    """How to round the weights of static layers that do better than with the nearest integers, as `NodePlan` has it.

    The same data gives the same integers; another number of BLAS threads may give others that are as good.

    Args:
        graph: the float model that the plan is for.
        plan: what runs on static integers, and the ranges.
        data: some of it is looked at.
        noise: what each layer alone causes at the outputs, by name.
        progress: told after each layer.
    """
    heard = _heard(noise)
    layers = [layer for layer in layers_of(graph) if layer.node.name in heard and _suits(layer, plan)]
    readers: dict[View, list[Layer]] = {}
    for layer in layers:
        readers.setdefault(View.of(layer, plan.tensors[layer.data.name]), []).append(layer)
    some = data.take(slice(max(len(data) - SAMPLES, len(data) // UNSEEN), None))
    found: dict[str, str] = {}
    done = 0
    for views in _groups(list(readers)):
        for view, (fitted, others) in _rows(graph, views, plan, some).items():
            grams = Gram.of(fitted).total, Gram.of(others).total
            for layer in readers[view]:
                text = _rounded(layer, plan.recipe.weight, *grams)
                found |= {layer.node.name: text} if text else {}
                done += 1
                progress("rounding", done, len(layers))
    return found


def _suits(layer: Layer, plan: Plan) -> bool:
    """Whether a layer is one whose integers may be chosen: signed, static, one matrix product."""
    node, settings = layer.node, plan.recipe.weight
    if plan.treatment(node.name) is not Treatment.STATIC or layer.data.name not in plan.tensors:
        return False
    plain = node.attrs.get("group", 1) == 1 and node.attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    symmetric = settings.grid.signed and settings.centred and plan.nodes[node.name].per_channel
    return plain and symmetric and as_matrix(layer, weight(node.inputs[1])).shape[1] <= MOST_INPUTS


def _heard(noise: Mapping[str, float]) -> set[str]:
    """All layers but the quietest."""
    names = sorted(noise, key=lambda name: noise[name])
    together = np.cumsum([noise[name] for name in names])
    return {name for name, sum_ in zip(names, together, strict=True) if sum_ > QUIET * together[-1]}


def _groups(views: Sequence[View]) -> Iterator[list[View]]:
    """Views whose rows fit into memory together."""
    group: list[View] = []
    for view in views:
        if group and ROWS * sum(other.inputs for other in (*group, view)) > HELD:
            yield group
            group = []
        group.append(view)
    if group:
        yield group


def _rows(graph: Graph, views: Sequence[View], plan: Plan, data: Data) -> dict[View, tuple[Array, Array]]:
    """What layers see of most samples and of the others; views of which there is not enough are left out."""
    names = list(dict.fromkeys(view.tensor for view in views))
    given = {tensor.name for tensor in graph.inputs}
    inner = [name for name in names if name not in given]
    session = Session(to_model(graph, extra_outputs=inner).SerializeToString(), folder=graph.folder)
    found: dict[View, tuple[list[Array], list[Array]]] = {view: ([], []) for view in views}
    for number, feed in enumerate(data.batches(1)):
        seen = {**feed, **(session.run(feed, inner) if inner else {})}
        for view, parts in found.items():
            value = unmasked(seen[view.tensor], mask_of(feed))
            if value.size and np.isfinite(value).all():
                rows = view.rows(value, plan.tensors[view.tensor], max(1, ROWS // len(data)), number)
                parts[number % PARTS == PARTS - 1].append(rows)
    return {view: (np.concatenate(a), np.concatenate(b)) for view, (a, b) in found.items() if a and b}


def _rounded(layer: Layer, settings: Weight, fitted: Array, others: Array) -> str:
    """The differences to the nearest integers; empty where these do about as well on other samples."""
    nearest = rounded_weight(layer, settings, True)
    exact, start = as_matrix(layer, weight(layer.node.inputs[1])), as_matrix(layer, nearest.values)

    def error(values: IntegerArray) -> float:
        return float(output_error(values * nearest.scale[:, None], exact, others).sum())

    share = shrinkage(fitted, others)
    before = error(start)
    if not error(_cancelling(exact, nearest, settings.grid, shrunk(fitted, share))) < CLEARLY_LESS * before:
        return ""
    # once that is settled, there is no reason to do without the other samples
    chosen = _cancelling(exact, nearest, settings.grid, shrunk(fitted + others, share))
    return differences(_restored(layer, chosen, nearest.values.shape), nearest.values)


def _cancelling(exact: Array, nearest: QuantizedWeight, form: Format, gram: Array) -> IntegerArray:
    """Integers whose errors cancel, as far as the Gram matrix tells."""
    grid = (nearest.scale, nearest.zero_point, form.narrow)
    return descend(exact, gram, *grid, start=gptq(exact, gram, *grid, act_order=True), sweeps=1)


def _restored(layer: Layer, values: Array, shape: tuple[int, ...]) -> Array:
    """Undo `as_matrix`."""
    return values.reshape(shape) if not layer.linear or weight_axis(layer.node) == 0 else values.T
