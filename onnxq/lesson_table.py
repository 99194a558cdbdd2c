"""What training did, as a person reads it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group

from onnxq import tables
from onnxq.quantities import plural

if TYPE_CHECKING:
    from rich.console import RenderableType

    from onnxq.curriculum import Lesson
    from onnxq.proof import Proof
    from onnxq.recipe import Contract
    from onnxq.result import Result


def lesson(model: Path, found: Result, contract: Contract) -> RenderableType:
    """What `finetune` did: the result as for `optimize`, and beside it what calibration alone gives."""
    rows: list[tuple[str, RenderableType]] = []
    if found.lesson is not None:
        rows.append(("Trained", trained(found.lesson)))
        rows.append(("Loss", losses(found.lesson)))
    if found.untrained is not None and found.proof is not None:
        rows.append(("Untrained", beside(found.untrained, found.proof)))
    whole = tables.result(model, found, contract)
    return Group(whole, tables.sheet(rows)) if rows else whole


def trained(found: Lesson) -> str:
    """What was trained, on what, for how long."""
    why = f" {found.stopped}" if found.stopped else ""
    done = plural(found.looks[-1].step, found.unit)
    return (
        f"{plural(found.parameters, 'number')} on {plural(found.samples, 'sample')}, {done} on "
        f"{found.device} in {found.seconds:.0f} s.{why}"
    )


def losses(found: Lesson) -> str:
    """The loss before and after."""
    held = "the samples learned from"
    if found.method != "blocks":
        held = f"{plural(found.held, 'sample')} not learned from"
    if found.best == 0:
        return f"{found.before:.4g} before, and never less on {held}: the model is as calibration left it"
    return f"{found.before:.4g} before, {found.after:.4g} after {plural(found.best, found.unit)}, on {held}"


def beside(untrained: Proof, proof: Proof) -> str:
    """What the same model loses without training, and with it."""
    if untrained.score is not None and proof.score is not None:
        before, after = untrained.score, proof.score
        metric, exact = before.metric, after.float_value
        return f"{metric} {before.value:.4g} without training, {after.value:.4g} with it, float {exact:.4g}"
    return f"cosine {untrained.cosine:.5f} without training, {proof.cosine:.5f} with it"
