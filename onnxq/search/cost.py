"""What each layer costs in each form that it can take, in microseconds on this machine.

Each layer is cut out of the model as it would be in a form, with its real shapes and values: between integer
neighbours its integer kernel alone. What stands between unlike neighbours (Q, DQ, a change of layout) is told apart, so
that a search can add it where it applies.

The sum over a model is what its kernels take together, but for what the runtime fuses across layers: a float Add behind
a convolution costs next to nothing in a model, and its full time here.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from onnxq.graph import Graph, Node, to_model
from onnxq.layers import Layer, layer_of
from onnxq.memo import canonical
from onnxq.numerics.formats import FORMATS
from onnxq.passes import FOLD, QUANTIZE
from onnxq.pipeline import Context, run
from onnxq.plan import Plan, Record, Treatment
from onnxq.runtime import Session
from onnxq.search.region import Cutter, channels_last, ends, successors
from onnxq.search.stopwatch import Sample, Stopwatch, Times
from onnxq.spec import Fact
from onnxq.targets.table import Target

FLOAT = "float"
"""The form that everything can take, and that needs no plan."""

SPATIAL = frozenset(
    {"MaxPool", "QLinearAveragePool", "QLinearGlobalAveragePool", "Resize", "Pad", "Concat", "QLinearConcat"}
)
"""Operators that the runtime turns to another layout between integer convolutions, where their time is another."""

TENSORS = 64
"""Parts whose inputs are held at a time."""

Array = np.ndarray[Any, Any]
Ends = tuple[Sequence[str], Sequence[str]]
"""Names of the tensors to cut at: inputs and outputs."""

Samples = dict[str, dict[str, Sample | None]]
"""By layer and form; None where another operator absorbs the layer."""

K = TypeVar("K", bound=Hashable)


class Boundary(Record):
    """Microseconds that a tensor costs where those who make it and those who read it differ in form.

    Attributes:
        quantize: a float operator makes it, static ones read it.
        dequantize: a static operator makes it, float ones read it.
        dynamic: several dynamic layers read it, for all of them together; 0 where each quantizes its input on its own.
    """

    quantize: float = 0.0
    dequantize: float = 0.0
    dynamic: float = 0.0


class Costs(Record):
    """Microseconds on this machine.

    Attributes:
        layers: by layer and form; forms that a layer cannot take are absent. What another operator absorbs costs 0.
        boundary: by tensor, for all tensors that a plan runs on integers.
    """

    layers: dict[str, dict[str, float]]
    boundary: dict[str, Boundary]


def measure_costs(
    graph: Graph,
    plans: Mapping[str, Plan],
    layers: Sequence[str],
    feeds: Mapping[str, Array],
    target: Target,
    watch: Stopwatch,
) -> Costs:
    """Measure layers in float and in the form that each plan gives them, and the boundaries between forms.

    Args:
        graph: the normalized float graph, with types; it is not touched.
        plans: by name of the form; each says what the whole model would be. Float needs none.
        layers: names of nodes: layers, to which their bias Add and activation belong, or any other nodes.
        feeds: one batch, from which all shapes and values follow.
        target: what the model is built for.
        watch: what measures.
    """
    parts = {name: with_tail(graph, name, target) for name in layers}
    sampler = Sampler(feeds, watch.threads)
    samples = sample_layers(graph, plans, parts, target, sampler)
    borders = sample_borders(graph, plans, sampler)
    cut_out = [{form: sample for form, sample in forms.items() if sample is not None} for forms in samples.values()]
    timed = watch.times([*cut_out, *borders.values()])
    times = dict(zip(samples, timed[: len(samples)], strict=True))
    changes = layout_changes(graph, parts, samples, times)
    costs = {
        name: {form: times[name][form].own if sample else 0.0 for form, sample in forms.items()}
        for name, forms in samples.items()
    }
    boundary = {
        name: Boundary(**{kind: round(own.own + changes[name, kind], 1) for kind, own in kinds.items()})
        for name, kinds in zip(borders, timed[len(samples) :], strict=True)
    }
    return Costs(layers=costs, boundary=boundary)


def with_tail(graph: Graph, name: str, target: Target) -> list[Node]:
    """The node of this name, with the bias Add and the activation behind it where it is a layer."""
    node = next(node for node in graph.nodes if node.name == name)
    layer = layer_of(graph, node, target.absorbed)
    return [node, *layer.tail] if isinstance(layer, Layer) else [node]


@dataclass(frozen=True)
class Sampler:
    """Cuts parts out of graphs, with the values that a real run gives them; parts alike share the values of the first.

    Attributes:
        feeds: what the run is fed.
        threads: threads of the runtime.
    """

    feeds: Mapping[str, Array]
    threads: int
    known: dict[str, Sample] = field(default_factory=dict, repr=False)

    def take(self, graph: Graph, cuts: Mapping[K, Ends]) -> dict[K, Sample]:
        """The part between each pair of ends. The graph learns the types of its tensors."""
        if not cuts:
            return {}
        inner = {name for inputs, _ in cuts.values() for name in inputs} - set(self.feeds)
        model = to_model(graph, extra_outputs=sorted(inner)).SerializeToString()
        session = Session(model, folder=graph.folder, threads=self.threads)
        graph.annotate(session.outputs)
        cutter, found = Cutter(graph), dict[K, Sample]()
        keys = list(cuts)
        for some in (keys[start : start + TENSORS] for start in range(0, len(keys), TENSORS)):
            wanted = sorted({name for key in some for name in cuts[key][0]} & inner)
            values = {**self.feeds, **(session.run(self.feeds, wanted) if wanted else {})}
            for key in some:
                inputs, outputs = cuts[key]
                sample = Sample(cutter.cut(inputs, outputs), {name: values[name] for name in inputs})
                found[key] = self.known.setdefault(canonical(sample.structure), sample)
        return found


def sample_layers(
    graph: Graph, plans: Mapping[str, Plan], parts: Mapping[str, Sequence[Node]], target: Target, sampler: Sampler
) -> Samples:
    """Each layer in float, and in each form that makes something else of it."""
    floats = sampler.take(graph.copy(), {name: ends(graph, nodes) for name, nodes in parts.items()})
    samples: Samples = {name: {FLOAT: sample} for name, sample in floats.items()}
    given = frozenset({Fact.NAMED, Fact.NORMAL})
    for form in [form for form in plans if form != FLOAT]:
        quantized = run((*QUANTIZE, *FOLD), graph, Context(target, plans[form]), given).graph
        made = successors(graph, quantized)
        here = {name: [made[node.name] for node in nodes if node.name in made] for name, nodes in parts.items()}
        found = sampler.take(quantized, {name: ends(quantized, nodes) for name, nodes in here.items() if nodes})
        for name, nodes in here.items():
            sample = found.get(name)
            if sample is not None and sample.integer and nodes[0].op in SPATIAL:
                samples[name][form] = between_convolutions(sample)
            elif sample is None or sample.structure != floats[name].structure:
                samples[name][form] = sample
    return samples


def between_convolutions(sample: Sample) -> Sample:
    """The same operator, where its pictures have the channels last."""
    part = channels_last(sample.part)
    names = zip(sample.part.inputs, part.inputs, strict=True)
    values = {new.name: (sample.feeds[old.name], new.name != old.name) for old, new in names}
    turned = {name: np.moveaxis(value, 1, -1) if turn else value for name, (value, turn) in values.items()}
    return Sample(part, {name: np.ascontiguousarray(value) for name, value in turned.items()})


def sample_borders(graph: Graph, plans: Mapping[str, Plan], sampler: Sampler) -> dict[str, dict[str, Sample]]:
    """Q, DQ and dynamic quantization of each tensor that needs it in one of the plans, by the fields of `Boundary`."""
    bordered = graph.copy()
    cuts: dict[tuple[str, str], Ends] = {}
    tensors = bordered.tensors()
    for name, plan in {name: plan for form in plans.values() for name, plan in form.tensors.items()}.items():
        scale = bordered.constant(f"{name}_scale", np.asarray(plan.scale, np.float32))
        zero_point = bordered.constant(f"{name}_zero_point", np.asarray(plan.zero_point, FORMATS[plan.format].dtype))
        integers, floats = bordered.variable(f"{name}_quantized"), bordered.variable(f"{name}_dequantized")
        bordered.add("QuantizeLinear", [tensors[name], scale, zero_point], [integers], name=f"{name}_quantize")
        bordered.add("DequantizeLinear", [integers, scale, zero_point], [floats], name=f"{name}_dequantize")
        cuts[name, "quantize"] = [name], [integers.name]
        cuts[name, "dequantize"] = [integers.name], [floats.name]
    for name in read_together(graph, plans):
        outputs = [bordered.variable(f"{name}_{part}") for part in ("dynamic", "scale", "zero_point")]
        bordered.add("DynamicQuantizeLinear", [tensors[name]], outputs, name=f"{name}_dynamic_quantize")
        cuts[name, "dynamic"] = [name], [tensor.name for tensor in outputs]
    borders: dict[str, dict[str, Sample]] = defaultdict(dict)
    for (name, kind), sample in sampler.take(bordered, cuts).items():
        borders[name][kind] = sample
    return borders


def read_together(graph: Graph, plans: Mapping[str, Plan]) -> list[str]:
    """Tensors that several dynamic layers of one plan read."""
    found: dict[str, None] = {}
    for plan in plans.values():
        dynamic = [node for node in graph.nodes if plan.treatment(node.name) is Treatment.DYNAMIC]
        readers = Counter(node.inputs[0].name for node in dynamic)
        found |= dict.fromkeys(name for name, count in readers.items() if count > 1)
    return list(found)


def layout_changes(
    graph: Graph,
    parts: Mapping[str, Sequence[Node]],
    samples: Samples,
    times: Mapping[str, Mapping[str, Times]],
) -> dict[tuple[str, str], float]:
    """Microseconds in which the layout of a tensor is changed where its maker and its readers differ in form."""
    leave: dict[tuple[str, str], float] = defaultdict(float)
    enter: dict[tuple[str, str], float] = defaultdict(float)
    for name, nodes in parts.items():
        inputs, outputs = ends(graph, nodes)
        floats = [times[name][FLOAT]]
        integers = [times[name][form] for form, sample in samples[name].items() if sample and sample.integer]
        for kind, makers, readers in (("quantize", floats, integers), ("dequantize", integers, floats)):
            for tensor in outputs:
                leave[tensor, kind] = max((own.exit for own in makers), default=0.0)
            for tensor in inputs:
                entry = max((own.entry for own in readers), default=0.0)
                enter[tensor, kind] = max(enter[tensor, kind], entry)
    return defaultdict(float, {key: leave[key] + enter[key] for key in {*leave, *enter}})
