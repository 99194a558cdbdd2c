"""Studies of small models, as planning makes them: prepared, calibrated, nothing chosen yet."""

from __future__ import annotations

from typing import Any

from onnxq.build import Build, prepare
from onnxq.calibration.data import Data, open_data
from onnxq.graph import Graph
from onnxq.memo import Memo
from onnxq.planning import calibrate_graph
from onnxq.recipe import Contract, Mode, Recipe, make_recipe
from onnxq.study import Study, fingerprint


def recipe(contract: Contract | None = None, **wish: Any) -> Recipe:
    """A recipe whose ranges need no search."""
    made = make_recipe({"activation": {"range": "minmax"}} | wish)
    return made if contract is None else made.model_copy(update={"contract": contract})


def study_of(
    graph: Graph,
    source: Any,
    asked: Recipe | None = None,
    *,
    mode: Mode = "mixed-int8",
    memo: Memo | None = None,
    threads: int = 1,
) -> Study:
    """A study of a graph, which is copied, and of all of the data."""
    build = Build(graph.copy(), asked or recipe(), mode)
    data = source if isinstance(source, Data) else open_data(source, graph.interface().inputs)
    placement = prepare(build)
    statistics = calibrate_graph(build, placement, data, threads, None)
    study = Study(build, placement, statistics, data, threads, None, memo or Memo())
    study.key = {"data": fingerprint(data, statistics), "threads": threads}
    return study
