"""The diagnosis of what a plan makes of a model, for which no file of either is needed."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from onnxq.build import GIVEN, Build, follow_plan, quantize
from onnxq.calibration.data import Data
from onnxq.diagnosis.examination import Settings, examine, normal
from onnxq.diagnosis.findings import Diagnosis
from onnxq.graph import Graph
from onnxq.modelfile import load, save
from onnxq.passes import BALANCE
from onnxq.pipeline import run
from onnxq.plan import Plan
from onnxq.recipe import Mode
from onnxq.runtime import Session


def examine_plan(source: Graph, plan: Plan, mode: Mode, data: Data, settings: Settings) -> Diagnosis:
    """Find out what each operator costs that a plan quantizes.

    The float side is the model as the plan prepares it, rewritten for speed and its channels balanced: there every
    quantized layer finds its own, whatever was done to both.

    Args:
        source: the float model; it is not touched.
        plan: what was decided about it.
        mode: what the plan builds.
        data: what to measure on.
        settings: how closely to look.

    Raises:
        Nothing: the plan leaves nothing to quantize.
        ModelError: no layer with a weight is quantized.
        UnsupportedModel: the runtime refuses a model.
    """
    build = Build(source.copy(), plan.recipe, mode)
    follow_plan(build, plan)
    reference = run(BALANCE, build.graph, build.context, GIVEN).graph  # which does nothing where it was done before
    quantize(build)
    with TemporaryDirectory(prefix="onnxq.") as folder:
        file = Path(folder) / "model.onnx"
        save(build.graph, file)
        session = Session(file, threads=settings.threads)
        return examine(normal(reference), normal(load(file)), session.run, data, settings)
