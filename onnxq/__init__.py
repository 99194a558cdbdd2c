"""onnxq makes ONNX models small and fast without breaking them.

import onnxq

result = onnxq.optimize("model.onnx", "model.int8.onnx", data="calibration.npz")
print(result.proof.speedup, result.proof.cosine)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from onnxq.version import __version__

if TYPE_CHECKING:
    from onnxq.api import bench, calibrate, describe_passes, evaluate, explain, inspect, optimize, validate
    from onnxq.curriculum import Curriculum, Lesson
    from onnxq.diagnosis.findings import Diagnosis
    from onnxq.diffing import diff
    from onnxq.errors import OnnxqError
    from onnxq.evaluation import Evaluation
    from onnxq.finetuning import finetune
    from onnxq.graphdiff.findings import GraphDiff
    from onnxq.linting import Lint, lint
    from onnxq.options import Options
    from onnxq.plan import Plan
    from onnxq.proof import Proof
    from onnxq.recipe import Contract, Recipe
    from onnxq.report import write_report
    from onnxq.result import Result

HOMES = {
    "Options": "onnxq.options",
    "Result": "onnxq.result",
    "bench": "onnxq.api",
    "calibrate": "onnxq.api",
    "inspect": "onnxq.api",
    "lint": "onnxq.linting",
    "Lint": "onnxq.linting",
    "optimize": "onnxq.api",
    "describe_passes": "onnxq.api",
    "evaluate": "onnxq.api",
    "explain": "onnxq.api",
    "finetune": "onnxq.finetuning",
    "diff": "onnxq.diffing",
    "GraphDiff": "onnxq.graphdiff.findings",
    "validate": "onnxq.api",
    "OnnxqError": "onnxq.errors",
    "Plan": "onnxq.plan",
    "Proof": "onnxq.proof",
    "Recipe": "onnxq.recipe",
    "Contract": "onnxq.recipe",
    "Curriculum": "onnxq.curriculum",
    "Lesson": "onnxq.curriculum",
    "Diagnosis": "onnxq.diagnosis.findings",
    "Evaluation": "onnxq.evaluation",
    "write_report": "onnxq.report",
}
"""Where the public names live; they are imported when they are first used, so that `onnxq --help` is quick."""

__all__ = [
    "Contract",
    "Curriculum",
    "Diagnosis",
    "Evaluation",
    "GraphDiff",
    "Lesson",
    "Lint",
    "OnnxqError",
    "Options",
    "Plan",
    "Proof",
    "Recipe",
    "Result",
    "__version__",
    "bench",
    "calibrate",
    "describe_passes",
    "diff",
    "evaluate",
    "explain",
    "finetune",
    "inspect",
    "lint",
    "optimize",
    "validate",
    "write_report",
]


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name in HOMES:
        return getattr(import_module(HOMES[name]), name)
    raise AttributeError(f"module 'onnxq' has no attribute '{name}'")
