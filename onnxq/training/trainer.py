"""Training as a whole: all weights, scales and zero points together, from what the outputs lose.

Weights move by shares of the step of their grid, whatever its width: one rate fits 2 bits and 8.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn

from onnxq.calibration.collect import Progress, silent
from onnxq.calibration.data import Data
from onnxq.curriculum import Curriculum
from onnxq.errors import RecipeError
from onnxq.quantities import plural
from onnxq.training.batches import Batch, blended, endless, may_blend
from onnxq.training.checkpoints import Checkpoint
from onnxq.training.exam import Exam
from onnxq.training.fake_quant import Quantizer
from onnxq.training.simulation import Simulation

LOOKS = 20
"""How often training looks at the samples that were held back."""

WARM = 0.05
"""The share of the steps in which the rate rises."""

REACH = 4.0
"""How fast the ends of a range move beside weights, both in steps of the grid."""

BIASES = 0.05
"""How fast a bias moves, in shares of its size."""

FASTEST = (0.9, 0.99)
"""How long the optimizer remembers gradients and their squares: runs are short."""


@contextmanager
def seeded(seed: int, threads: int) -> Iterator[None]:
    """Everything that is drawn by chance, and the order of sums, alike on each run; left as it was."""
    before, used = torch.get_rng_state(), torch.get_num_threads()
    strict = torch.are_deterministic_algorithms_enabled()
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    if threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_rng_state(before)
        torch.use_deterministic_algorithms(strict)
        torch.set_num_threads(used)


def rate_for(student: Simulation, asked: float | None) -> float:
    """How far a step moves a weight at first, in steps of its grid: what was asked for, or what suits its bits.

    Measured: 4 bits learned best at 0.01 (ResNet-20: 80 % top-1; at 0.1: 72 %), 8 bits at 0.001 (MobileNetV1 with one
    scale for each weight: divergence 0.16, against 0.26 at 0.01).
    """
    widths = [weight.quantizer.grid.form.bits for weight in student.weights.values()]
    return asked or 0.01 * 10 ** ((4 - sum(widths) / max(len(widths), 1)) / 4)


def groups(student: Simulation, rate: float) -> list[dict[str, Any]]:
    """What is trained, each with its own rate."""
    found: list[dict[str, Any]] = [
        {"params": [weight.values], "lr": rate * weight.step} for weight in student.weights.values()
    ]
    for quantizer in student.quantizers:
        found.append(scale_group(quantizer, rate))
        if not quantizer.steady:
            found.append({"params": [quantizer.zero_point], "lr": rate})
    return [*found, *(bias_group(values, rate) for values in student.constants.values())]


def scale_group(quantizer: Quantizer, rate: float) -> dict[str, Any]:
    """The logarithm of a scale, and how fast it moves: the more steps a range has, the further each moves its ends."""
    return {"params": [quantizer.log_scale], "lr": rate * 2 * REACH / (quantizer.grid.form.levels - 1)}


def bias_group(values: nn.Parameter, rate: float) -> dict[str, Any]:
    """A bias, which moves by shares of its size."""
    size = float(values.detach().square().mean().sqrt())
    return {"params": [values], "lr": rate * BIASES * max(size, 1e-4)}


def schedule(step: int, steps: int) -> float:
    """The share of its rate that a step has: up in a line, down in a cosine."""
    return min(1.0, (step + 1) / max(1, round(WARM * steps))) * falling(step, steps)


def falling(step: int, steps: int) -> float:
    """From 1 down to 0, in a cosine."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


@dataclass(frozen=True)
class Course:
    """What every training is given.

    Attributes:
        exam: what learns, and what tells how good it is.
        data: to learn from.
        curriculum: how.
        checkpoint: where the state is kept.
        progress: told what is going on.
    """

    exam: Exam
    data: Data
    curriculum: Curriculum
    checkpoint: Checkpoint
    progress: Progress = silent


class Trainer(Course):
    """One run."""

    def run(self) -> tuple[int, str]:
        """Train, and leave the student in its best state; the step that is of, and why it ended early, or nothing."""
        curriculum, exam = self.curriculum, self.exam
        optimizer = torch.optim.Adam(groups(exam.student, rate_for(exam.student, curriculum.rate)), betas=FASTEST)
        rates = [group["lr"] for group in optimizer.param_groups]
        done = self.checkpoint.load(exam, optimizer)
        if not exam.looks:
            exam.look(0)  # what calibration found: if nothing turns out better, that is kept
            for weight in exam.student.weights.values():
                weight.let_go()
        if not math.isfinite(exam.looks[0].loss):
            raise RecipeError("The loss is not finite before anything was trained. Check the loss, or the data.")
        every, stopped, broken = max(1, math.ceil(curriculum.steps / LOOKS)), self._impatient(), False
        for step, batch in enumerate(() if stopped else self._lessons()):
            if step < done:
                continue  # what chance gave before comes again
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * schedule(step, curriculum.steps)
            lost = self._step(batch, optimizer)
            self.progress(f"train: loss {lost:.3g}", step + 1, curriculum.steps)
            if broken := not math.isfinite(lost):
                stopped = f"The loss was not finite after {plural(step + 1, 'step')}; a lower rate may help."
                break
            if (step + 1) % every == 0 or step + 1 == curriculum.steps:
                exam.look(step + 1)
                self.checkpoint.save(exam, optimizer, step + 1)
                if stopped := self._impatient():
                    break
        return exam.settle(broken), stopped

    def _impatient(self) -> str:
        """Why to stop, or nothing."""
        patience = self.curriculum.patience
        return f"No progress in the last {patience} looks." if self.exam.stands_still(patience) else ""

    def _lessons(self) -> Iterator[Batch]:
        """So many batches, blended where that is wanted."""
        curriculum, generator = self.curriculum, torch.Generator().manual_seed(self.curriculum.seed)
        blend = may_blend(self.data) if curriculum.mix is None else curriculum.mix
        found = islice(endless(self.data, curriculum.batch, self.exam.device, generator), curriculum.steps)
        return (blended(batch, generator) if blend else batch for batch in found)

    def _step(self, batch: Batch, optimizer: torch.optim.Optimizer) -> float:
        self.exam.student.train()
        lost = self.exam.lost(batch)
        optimizer.zero_grad()
        lost.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return float(lost.detach())
