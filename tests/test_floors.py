"""Imports point down: every file stands on a floor, and reads only what stands there or below."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = {
    "onnxq.cli": 5,
    "onnxq.__main__": 5,
    "onnxq.flags": 5,
    "onnxq.wishes": 5,
    "onnxq.reporting": 5,
    "onnxq.guard": 5,
    "onnxq.schema_command": 5,
    "onnxq.finetune_command": 5,
    "onnxq.diff_command": 5,
    "onnxq.diff_table": 5,
    "onnxq.lint_command": 5,
    "onnxq.tables": 5,
    "onnxq.diagnosis_table": 5,
    "onnxq.lesson_table": 5,
    "onnxq.language_table": 5,
    "onnxq": 4,
    "onnxq.api": 4,
    "onnxq.documents": 4,
    "onnxq.finetuning": 4,
    "onnxq.diffing": 4,
    "onnxq.linting": 4,
    "onnxq.blockwise": 3,
    "onnxq.build": 3,
    "onnxq.decision": 3,
    "onnxq.diagnosis": 3,
    "onnxq.diagnosis.*": 3,
    "onnxq.calibration.collect": 3,
    "onnxq.comparison": 3,
    "onnxq.continuation": 3,
    "onnxq.contract": 3,
    "onnxq.graphdiff": 3,
    "onnxq.graphdiff.*": 3,
    "onnxq.distributions": 3,
    "onnxq.evaluation": 3,
    "onnxq.generation": 3,
    "onnxq.frontier": 3,
    "onnxq.imagined": 3,
    "onnxq.intake": 3,
    "onnxq.inspection": 3,
    "onnxq.metric": 3,
    "onnxq.metric_choice": 3,
    "onnxq.passes": 3,
    "onnxq.mixed": 3,
    "onnxq.muls": 3,
    "onnxq.node_runs": 3,
    "onnxq.trial": 3,
    "onnxq.weight_plans": 3,
    "onnxq.planning": 3,
    "onnxq.delivery": 3,
    "onnxq.relay": 3,
    "onnxq.options": 3,
    "onnxq.study": 3,
    "onnxq.placement": 3,
    "onnxq.proof": 3,
    "onnxq.report": 3,
    "onnxq.report.*": 3,
    "onnxq.result": 3,
    "onnxq.search": 3,
    "onnxq.search.*": 3,
    "onnxq.tallies": 3,
    "onnxq.training": 3,
    "onnxq.training.*": 3,
    "onnxq.training.operators.*": 3,
    "onnxq.passes.*": 2,
    "onnxq.islands": 2,
    "onnxq.operands": 2,
    "onnxq.pipeline": 2,
    "onnxq.abandoned": 0,
    "onnxq.axes": 1,
    "onnxq.bodies": 1,
    "onnxq.calibration": 1,
    "onnxq.calibration.arrays": 1,
    "onnxq.calibration.caches": 1,
    "onnxq.calibration.data": 1,
    "onnxq.calibration.feeds": 1,
    "onnxq.calibration.folders": 1,
    "onnxq.calibration.functions": 1,
    "onnxq.calibration.images": 1,
    "onnxq.calibration.noise": 1,
    "onnxq.calibration.options": 1,
    "onnxq.calibration.ranges": 1,
    "onnxq.calibration.spread": 1,
    "onnxq.calibration.statistics": 1,
    "onnxq.calibration.text": 1,
    "onnxq.emit": 1,
    "onnxq.fake_quant": 1,
    "onnxq.graph": 1,
    "onnxq.half_nodes": 1,
    "onnxq.half_planning": 3,
    "onnxq.half_weights": 1,
    "onnxq.inner": 1,
    "onnxq.layers": 1,
    "onnxq.lookups": 1,
    "onnxq.nbits": 1,
    "onnxq.weights": 1,
    "onnxq.channels": 1,
    "onnxq.curriculum": 1,
    "onnxq.kernels": 1,
    "onnxq.memo": 1,
    "onnxq.mode_choice": 1,
    "onnxq.modelfile": 1,
    "onnxq.parse": 1,
    "onnxq.plan": 1,
    "onnxq.recipe": 1,
    "onnxq.rewrite": 1,
    "onnxq.runtime": 1,
    "onnxq.opsets": 1,
    "onnxq.shelf": 1,
    "onnxq.sizes": 1,
    "onnxq.spec": 1,
    "onnxq.targets": 1,
    "onnxq.targets.*": 1,
    "onnxq.tensors": 1,
    "onnxq.trained": 1,
    "onnxq.views": 1,
    "onnxq.signatures": 1,
    "onnxq.wellformed": 1,
    "onnxq.errors": 0,
    "onnxq.version": 0,
    "onnxq.interface": 0,
    "onnxq.numerics": 0,
    "onnxq.numerics.*": 0,
    "onnxq.quantities": 0,
    "onnxq.numerics.rounding.*": 0,
}
"""Every file; a new one is put here, or under a package that stands on one floor."""

DOORWAYS = {
    "onnx": {
        "onnxq.bodies",
        "onnxq.emit",
        "onnxq.graph",
        "onnxq.modelfile",
        "onnxq.parse",
        "onnxq.opsets",
        "onnxq.signatures",
        "onnxq.tensors",
        "onnxq.wellformed",
    },
    "onnx_graphsurgeon": {"onnxq.tensors"},
    "onnxruntime": {"onnxq.runtime"},
}
"""The files that may import a library."""


def files() -> dict[str, Path]:
    """Every module of the package by its name, passes included."""
    sources = [*(ROOT / "onnxq").rglob("*.py"), *(ROOT / "passes").rglob("*.py")]
    found: dict[str, Path] = {}
    for path in sources:
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        parts = ["onnxq", *parts] if parts[0] == "passes" else parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def floor(module: str) -> int | None:
    """Where a module stands; None where nobody said."""
    return FLOORS.get(module, FLOORS.get(f"{module.rpartition('.')[0]}.*"))


def imports(source: str, known: set[str]) -> Iterator[str]:
    """Everything that a file imports, inside functions too: `from onnxq import api` is `onnxq.api`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            base = node.module or ""
            inner = [f"{base}.{alias.name}" for alias in node.names]
            yield from (name if name in known else base for name in inner)


def violations(module: str, source: str, known: set[str]) -> Iterator[str]:
    """What breaks the rules, one sentence each."""
    own = floor(module)
    if own is None:
        yield f"{module} stands on no floor. Put it into FLOORS."
        return
    for name in sorted(set(imports(source, known))):
        package = name.partition(".")[0]
        if module not in DOORWAYS.get(package, {module}):
            yield f"{module} imports {name}, which only {', '.join(sorted(DOORWAYS[package]))} may."
        if package != "onnxq":
            continue
        if name not in known:
            yield f"{module} imports {name}, which does not exist."
            continue
        other = floor(name)
        if other is not None and other > own:
            yield f"{module} (floor {own}) imports {name} (floor {other})."
        if module.startswith("onnxq.passes.") and (name.startswith("onnxq.passes") or name == "onnxq.runtime"):
            yield f"{module} imports {name}: a pass imports no other pass, and no runtime."


MODULES = files()


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    assert list(violations(module, MODULES[module].read_text(encoding="utf-8"), set(MODULES))) == []


def test_every_floor_is_lived_on() -> None:
    built = {floor(module) for module in MODULES}
    assert built >= {0, 1, 2, 3, 4}
    assert "onnxq.passes.fold_integer" in MODULES


KNOWN = {"onnxq.graph", "onnxq.api", "onnxq.passes.a", "onnxq.passes.b", "onnxq.runtime", "onnxq.errors", "onnxq"}


@pytest.mark.parametrize(
    ("module", "source", "words"),
    [
        ("onnxq.news", "", "stands on no floor"),
        ("onnxq.graph", "from onnxq.api import optimize", r"\(floor 1\) imports onnxq.api \(floor 4\)"),
        ("onnxq.graph", "from onnxq import api", "imports onnxq.api"),
        ("onnxq.graph", "from onnxq import optimize", r"imports onnxq \(floor 4\)"),
        ("onnxq.graph", "def f():\n    import onnxq.api", "imports onnxq.api"),
        ("onnxq.graph", "from onnxq.gone import x", "imports onnxq.gone, which does not exist"),
        ("onnxq.passes.a", "from onnxq.passes.b import B", "a pass imports no other pass"),
        ("onnxq.passes.a", "from onnxq.runtime import Session", "no runtime"),
        ("onnxq.passes.a", "import onnx", "imports onnx, which only"),
        ("onnxq.passes.a", "from onnx.helper import make_node", "imports onnx.helper, which only"),
        ("onnxq.numerics.affine", "from onnxq.graph import Graph", "floor 0"),
        ("onnxq.numerics.affine", "from onnx import numpy_helper", "imports onnx, which only"),
        ("onnxq.graph", "import onnxruntime as ort", r"which only onnxq\.runtime may"),
        ("onnxq.graph", "import onnx_graphsurgeon as gs", r"which only onnxq\.tensors may"),
    ],
)
def test_a_broken_rule_is_seen(module: str, source: str, words: str) -> None:
    assert re.search(words, "\n".join(violations(module, source, KNOWN)))


def test_what_is_allowed_is_not_reported() -> None:
    source = "import numpy\nfrom onnxq.errors import ModelError\nfrom onnxq.graph import Graph"
    assert list(violations("onnxq.passes.a", source, KNOWN)) == []
    assert list(violations("onnxq.api", "from onnxq.passes.a import A", KNOWN)) == []


def test_relative_imports_are_refused() -> None:
    with pytest.raises(AssertionError, match="a relative import"):
        list(violations("onnxq.graph", "from .errors import ModelError", KNOWN))
