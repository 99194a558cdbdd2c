"""What training brings where calibration alone loses much: the cases of the README, each in one run.

    python tools/training_table.py --zoo ZOO [--cases resnet20 ...] [--device cuda] [--json FILE]

Prints a row for each case: the float model, the same recipe by calibration alone (all that `optimize` does for it), and
trained without labels. Samples that are learned from are not among those that are tested on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import zoo
from rich.console import Console
from rich.table import Table

from onnxq import Curriculum, Options, Result, finetune
from onnxq.recipe import make_recipe

Feeds = dict[str, np.ndarray[Any, Any]]
Split = Callable[[Path], tuple[Feeds | None, Feeds]]


@dataclass(frozen=True)
class Case:
    """A model, a recipe that is hard on it, and how it is trained.

    Attributes:
        key: what it is called.
        model: file in models/ of the zoo.
        split: what is learned from (None: text that the model writes itself), and what it is tested on, with labels.
        recipe: what is built.
        curriculum: how it is trained.
    """

    key: str
    model: str
    split: Split
    recipe: Mapping[str, Any]
    curriculum: Mapping[str, Any] = field(default_factory=dict)


def cifar(count: int) -> Split:
    """So many of the even-numbered pictures, without labels; all others for the test."""

    def split(place: Path) -> tuple[Feeds, Feeds]:
        stored = zoo._load(place, "cifar10_test2000.npz")
        images = zoo._channels_first(zoo.standardize(stored["images"].astype(np.float32)))
        learned = np.random.default_rng(0).permutation(np.arange(0, len(images), 2))[:count]
        others = np.setdiff1d(np.arange(len(images)), learned)
        return {"input": images[learned]}, {"input": images[others], "labels": stored["labels"][others]}

    return split


def task(key: str, *, own: bool = False) -> Split:
    """The calibration data of a task of the zoo and its test; `own`: nothing to learn from."""

    def split(place: Path) -> tuple[Feeds | None, Feeds]:
        calibration, test = zoo.TASKS[key].split(place, None)
        return None if own else dict(calibration.feeds), {**test.feeds, **test.labels}

    return split


STATIC = {"mode": "static-int8"}
CASES: Mapping[str, Case] = MappingProxyType({
    case.key: case
    for case in (
        Case("resnet20", "cifar10_resnet20.onnx", cifar(512),
             {**STATIC, "activation": {"bits": 4}, "weight": {"bits": 4}}),
        Case("resnet20-blocks", "cifar10_resnet20.onnx", cifar(128),
             {**STATIC, "activation": {"bits": 4}, "weight": {"bits": 4}}, {"method": "blocks", "steps": 200}),
        Case("mobilenetv1", "mobilenetv1_0.25_224.onnx", task("mobilenetv1"),
             {**STATIC, "weight": {"per_channel": False}}, {"steps": 1200, "hold": 0.06}),
        Case("stories260k", "stories260k.onnx", task("stories260k", own=True),
             {"mode": "weight-int4", "contract": {"metric": "perplexity"}}, {"batch": 16, "steps": 600}),
    )
})  # fmt: skip


def run(case: Case, place: Path, asked: Mapping[str, Any]) -> Result:
    """Finetune one model, and prove it on the test."""
    learned, test = case.split(place)
    return finetune(
        place / "models" / case.model,
        Path(asked["out"]) / f"{case.key}.onnx",
        data=learned,
        validation=test,
        recipe=make_recipe({"least_sqnr": 0, **case.recipe}),
        curriculum=Curriculum(**{**case.curriculum, **{key: asked[key] for key in ("steps", "device") if asked[key]}}),
        options=Options(force=True, progress=_told),
    )


def _told(stage: str, done: int, total: int) -> None:
    if sys.stderr.isatty() or done == total or done % max(1, total // 20) == 0:
        print(f"\r{stage} {done} of {total}", end="", file=sys.stderr)


def figures(found: Result) -> dict[str, Any]:
    """What the table shows of one case."""
    assert found.proof is not None
    assert found.untrained is not None
    assert found.lesson is not None
    before, after = found.untrained.score, found.proof.score
    assert before is not None
    assert after is not None
    exact, one, other = after.float_value, before.value, after.value
    assert exact is not None
    assert one is not None
    assert other is not None
    lost = one - exact
    output = after.output or next(iter(found.proof.outputs))
    return {
        "metric": after.metric,
        "float": exact,
        "calibrated": one,
        "trained": other,
        "recovered": (one - other) / lost if lost else 0.0,
        "standard_error": after.standard_error,
        "agreement": [proof.outputs[output].agreement for proof in (found.untrained, found.proof)],
        "speedup": found.proof.speedup,
        "samples": found.lesson.samples,
        "steps": found.lesson.looks[-1].step,
        "seconds": found.lesson.seconds,
        "device": found.lesson.device,
    }


def main() -> int:
    """Run the cases that are asked for."""
    parser = argparse.ArgumentParser(description="What training without labels brings.")
    parser.add_argument("--zoo", type=Path, required=True, help="folder that holds models/ and data/")
    parser.add_argument("--out", default=".", help="folder for the models")
    parser.add_argument("--cases", nargs="*", choices=sorted(CASES), default=list(CASES))
    parser.add_argument("--steps", type=int, help="instead of what a case has")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--json", type=Path, help="file for all figures")
    asked = vars(parser.parse_args())
    rows = {key: figures(run(CASES[key], asked["zoo"], asked)) for key in asked["cases"]}
    table = Table("case", "metric", "float", "calibrated", "trained", "recovered", "agreement", "steps", "seconds")
    for key, row in rows.items():
        agreement = " → ".join("" if share is None else f"{100 * share:.1f} %" for share in row["agreement"])
        values = [f"{row[name]:.4f}" for name in ("float", "calibrated", "trained")]
        table.add_row(key, row["metric"], *values, f"{100 * row['recovered']:.0f} %", agreement, str(row["steps"]),
                      f"{row['seconds']:.0f}")  # fmt: skip
    Console().print(table)
    if asked["json"]:
        asked["json"].write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
