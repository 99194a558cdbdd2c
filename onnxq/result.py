"""What `optimize` hands back, and when it rejects its own work."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from onnxq.build import Build
from onnxq.continuation import Continuations
from onnxq.contract import CLEARLY_SLOWER, Limit, limits
from onnxq.curriculum import Lesson
from onnxq.diagnosis.findings import Diagnosis
from onnxq.distributions import TensorRange, worst_ranges
from onnxq.plan import Plan, Record, Treatment
from onnxq.proof import Proof
from onnxq.recipe import Mode

Status = Literal["optimized", "left alone", "rejected"]

LEAST_COSINE = 0.9
"""A mean cosine of an output below this means that the model is broken, not that it is quantized."""


class Point(Record):
    """One of several models between cautious and bold.

    Attributes:
        file: where it is.
        size: its bytes.
        milliseconds: its median latency.
        speedup: how many times as fast as the float model it is.
        metric: what accuracy is measured by; None where that was not measured.
        drop: what it loses by that; None likewise.
        sqnr_db: signal to quantization noise of its worst output; None where there is no noise.
        holds: whether it keeps the contract.
        chosen: whether it is the one that was written as the output.
    """

    file: str
    size: int
    milliseconds: float
    speedup: float
    metric: str | None
    drop: float | None
    sqnr_db: float | None
    holds: bool
    chosen: bool = False


class Result(Record):
    """What `optimize` did.

    Attributes:
        status: `optimized`; `left alone`: the output is the input, for a reason; `rejected`: nothing keeps the
            contract, or the outputs were too far from those of the float model, and there is no output.
        reason: why it was left alone or rejected; empty otherwise.
        output: the file that was written; None where none was.
        mode: what was built.
        plan: every decision; None where there was none to make.
        changes: what each pass did, or left alone and why: {pass: [(node, operator, became, reason)]}.
        proof: the comparison with the float model; None where it was not asked for.
        warnings: what a careful person would want to know.
        seconds: time by stage.
        random: whether validation ran on made-up data, so that its accuracy says little.
        calibrated: how many samples calibrated; 0 where none were needed.
        frontier: models from bold to cautious, none of which another one beats in everything, if that was asked for.
        diagnosis: where the error of the quantized model comes from, if that was asked for; of the best one that was
            tried where none was written.
        generation: what the float model and the one that was written write after one prompt, if that was asked for.
        kept: where the best model went that breaks the contract, if that was asked for.
        lesson: what training did, if there was any.
        untrained: the proof of the same model without that: quantized by calibration alone.
        ranges: how the values of the worst tensors lie in their ranges, where calibration data was seen.
        limits: the contract beside what was measured: each limit, and whether it is kept.
    """

    status: Status
    reason: str = ""
    output: str | None = None
    mode: Mode
    plan: Plan | None = None
    changes: dict[str, list[tuple[str, str, str, str]]] = {}
    proof: Proof | None = None
    warnings: list[str] = []
    seconds: dict[str, float] = {}
    random: bool = False
    calibrated: int = 0
    frontier: list[Point] = []
    diagnosis: Diagnosis | None = None
    generation: Continuations | None = None
    kept: str | None = None
    lesson: Lesson | None = None
    untrained: Proof | None = None
    ranges: list[TensorRange] = []
    limits: list[Limit] = []

    def shown(self) -> Result:
        """The same as it is printed: without the integers of weights in its plan, which are long."""
        return self.model_copy(update={"plan": self.plan.brief()}) if self.plan else self


class Rejected(Exception):
    """Validation found the model broken."""


def broken(proof: Proof | None) -> str:
    """The sentence why a model must not be used; empty where it may."""
    if proof is None:
        return ""
    if not proof.finite:
        return "The quantized model returns NaN or infinity where the float model does not."
    if proof.cosine < LEAST_COSINE:
        worst = min(proof.outputs, key=lambda name: proof.outputs[name].cosine)
        return (
            f"Output '{worst}' has a mean cosine of {proof.cosine:.4f} to the float model, below {LEAST_COSINE}. "
            "Keep the worst layers of the report in float, try another range rule, or write it with --force."
        )
    return ""


def make_result(
    build: Build, status: Status, reason: str, target: Path | None, proof: Proof | None, random: bool
) -> Result:
    """The record of a build, with the warnings that the proof gives rise to."""
    changes = {
        name: [(c.node, c.op, c.done, c.reason) for c in found] for name, found in build.changes.items() if found
    }
    warnings = list(build.warnings)
    if random and proof is not None:
        warnings.append("Validated on random numbers: the accuracy says little. Give --data for a proof.")
    provider = build.context.target.provider
    if proof is not None and proof.provider != provider:
        warnings.append(
            f"Validated on {proof.provider}, since {provider} does not run here: its speed is not that of the target."
        )
    elif proof is not None and proof.speedup < CLEARLY_SLOWER and build.mode != "weight-int8":
        warnings.append(f"Slower than the float model on this machine: {proof.speedup:.2f} times its speed.")
    return Result(
        status=status,
        reason=reason,
        output=None if target is None else str(target),
        mode=build.mode,
        plan=build.plan,
        changes=changes,
        proof=proof,
        warnings=warnings,
        seconds=build.seconds,
        random=random,
        ranges=worst_ranges(build.plan, proof, build.seen),
        limits=[] if proof is None else limits(build.recipe.contract, proof, random, provider, _timed(build)),
    )


def _timed(build: Build) -> bool:
    """Whether the contract asks for speed, by what was asked for or by the mode."""
    return "min_speedup" in build.recipe.contract.model_fields_set or build.recipe.mode in ("auto", "mixed-int8")


def float_nodes(build: Build) -> dict[str, tuple[str, str]]:
    """Operators that stayed in float, with the sentence why."""
    found: dict[str, tuple[str, str]] = {}
    if build.plan is not None:
        found = {
            name: (plan.op, plan.reason)
            for name, plan in build.plan.nodes.items()
            if plan.treatment is Treatment.FLOAT and not plan.reason.startswith("Part of layer")
        }
    for change in build.changes.get("FoldInteger", []):
        if not change.done:
            found[change.node] = (change.op, change.reason)
    return found
