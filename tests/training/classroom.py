"""Small models in training: their Q/DQ, their data, and a few steps in some direction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from onnxq.build import GIVEN, Build
from onnxq.calibration.data import Data, open_data
from onnxq.curriculum import Curriculum
from onnxq.graph import Graph, to_model
from onnxq.modelfile import load
from onnxq.numerics.affine import parameters
from onnxq.numerics.formats import FORMATS
from onnxq.options import Options
from onnxq.passes import BALANCE, QUANTIZE
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.plan import NodePlan, Plan, TensorPlan, Treatment
from onnxq.planning import plan_model
from onnxq.recipe import Recipe, make_recipe
from onnxq.runtime import Session
from onnxq.training.exam import Exam
from onnxq.training.interpreter import Interpreter
from onnxq.training.losses import Loss, distill
from onnxq.training.simulation import Simulation
from tests.onnx_text import Array, apply, normal

MODELS = Path(__file__).parents[2] / "models"
CPU = torch.device("cpu")
torch.set_num_threads(1)  # models are small, and tests run beside each other


def static(bits: int = 8, activation_bits: int | None = None, **weight: Any) -> Recipe:
    """A static recipe of so many bits, whose plan is made quickly."""
    activation = {"bits": activation_bits or bits, "range": "minmax"}
    weights = {"bits": bits, "rounding": "nearest", "correct_bias": False, **weight}
    return make_recipe({"mode": "static-int8", "activation": activation, "weight": weights, "least_sqnr": 0})


def ranges(graph: Graph, names: Iterable[str], recipe: Recipe) -> dict[str, TensorPlan]:
    """The grid of each named tensor for normal inputs."""
    feeds, wanted = normal(graph), list(names)
    inner = [name for name in wanted if name not in feeds]
    seen = feeds | Session(to_model(graph, extra_outputs=inner).SerializeToString(), threads=1).run(feeds)
    found = {}
    for name in wanted:
        low, high = float(seen[name].min()), float(seen[name].max())
        scale, zero = parameters(low, high, recipe.activation.grid, symmetric=recipe.activation.symmetric)
        found[name] = TensorPlan(
            format=recipe.activation.grid.name,
            scale=float(scale),
            zero_point=int(zero),
            low=low,
            high=high,
            reason="As seen.",
        )
    return found


def plan_of(graph: Graph, nodes: str, tensors: Mapping[str, TensorPlan], recipe: Recipe) -> Plan:
    """A plan that runs the named nodes on static integers."""
    ops = {node.name: node.op for node in graph.nodes}
    static = {
        name: NodePlan(
            op=ops[name], treatment=Treatment.STATIC, reason="By hand.", per_channel=recipe.weight.per_channel
        )
        for name in nodes.split()
    }
    return Plan(recipe=recipe, nodes=static, tensors=dict(tensors))


def with_qdq(graph: Graph, nodes: str, names: str, recipe: Recipe, **shared: str) -> Graph:
    """The graph with Q/DQ around some nodes and behind some tensors; `shared` names the tensor whose grid one has."""
    tensors = ranges(graph, names.split(), recipe)
    tensors |= {name: tensors[other] for name, other in shared.items()}
    return apply(InsertQdq(), graph, plan_of(graph, nodes, tensors, recipe)).graph


def planned(model: str | Graph, recipe: Recipe, data: Any) -> tuple[Build, Graph, Data]:
    """A graph, or a sample model, as it is right before training: with Q/DQ or its like, the float one, its data."""
    graph = load(MODELS / f"{model}.onnx") if isinstance(model, str) else model
    feeds = open_data(data, graph.interface().inputs)
    build = Build(graph, recipe, recipe.mode, threads=1, calibration=feeds)
    plan, *_ = plan_model(build, None, feeds, [], Options(seconds=0.01))
    build.plan = plan
    build.apply(BALANCE, GIVEN)
    exact = build.graph
    build.apply(QUANTIZE, GIVEN)
    return build, exact, feeds


def data_of(graph: Graph, count: int = 24, seed: int = 1, **more: Array) -> Data:
    """Normal inputs for a graph whose batch has any size."""
    return open_data({**normal(graph, seed, batch=count), **more}, graph.interface().inputs)


def exam_of(student: Simulation, exact: Graph, held: Data, *, loss: Loss = distill, size: int = 8) -> Exam:
    """A student beside its teacher."""
    outputs = [tensor.name for tensor in exact.outputs]
    return Exam(student, Interpreter(exact).eval(), held, size, loss, outputs, (), CPU)


def curriculum(**wishes: Any) -> Curriculum:
    """Short, and on one thread."""
    return Curriculum(**{"threads": 1, "steps": 20, "batch": 8, **wishes})


def jolt(student: Simulation, size: float = 0.1, seed: int = 0) -> None:
    """Move everything that is trained at random: weights by steps of their grids, scales by shares of themselves."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in student.weights.values():
            weight.values.add_(10 * size * weight.step * torch.randn(weight.values.shape, generator=draw))
        for quantizer in student.quantizers:
            quantizer.log_scale.add_(size * torch.randn(quantizer.log_scale.shape, generator=draw))
            if not quantizer.steady:
                quantizer.zero_point.add_(20 * size * torch.randn(quantizer.zero_point.shape, generator=draw))
        for values in student.constants.values():
            values.add_(size * torch.randn(values.shape, generator=draw))


def simulated(student: Simulation, feeds: Mapping[str, Array], wanted: Iterable[str] | None = None) -> dict[str, Array]:
    """What the student makes of a batch."""
    student.eval()
    with torch.no_grad():
        found = student(
            {name: torch.from_numpy(value) for name, value in feeds.items()}, None if wanted is None else list(wanted)
        )
    return {name: value.numpy() for name, value in found.items()}


def executed(graph: Graph, feeds: Mapping[str, Array], wanted: Iterable[str] = ()) -> dict[str, Array]:
    """What ONNX Runtime makes of it, each operator as it stands."""
    model = to_model(graph, extra_outputs=list(wanted)).SerializeToString()
    return dict(Session(model, folder=graph.folder, threads=1, optimize=False).run(feeds))


def grid_of(name: str) -> Any:
    """A format by its name."""
    return FORMATS[name]
