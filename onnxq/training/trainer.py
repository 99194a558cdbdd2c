"""Training as a whole: all weights, scales and zero points together, from what the outputs lose.

Weights move by shares of the step of their grid, whatever its width: one rate fits 2 bits and 8.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from onnxq.calibration.collect import Progress, silent
from onnxq.calibration.data import Data
from onnxq.curriculum import Curriculum, Look
from onnxq.training.batches import Batch, batches, blended, endless, may_blend
from onnxq.training.checkpoints import Checkpoint
from onnxq.training.interpreter import Interpreter
from onnxq.training.losses import Loss, Scene
from onnxq.training.simulation import Simulation

LOOKS = 20
"""How often training looks at the samples that were held back."""

WARM = 0.05
"""The share of the steps in which the rate rises."""

SCALES = 0.1
"""How fast scales move beside weights, in shares of themselves."""

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


def groups(student: Simulation, rate: float) -> list[dict[str, Any]]:
    """What is trained, each with its own rate."""
    found: list[dict[str, Any]] = [
        {"params": [weight.values], "lr": rate * weight.step} for weight in student.weights.values()
    ]
    for quantizer in student.quantizers:
        found.append({"params": [quantizer.log_scale], "lr": rate * SCALES})
        if not quantizer.steady:
            found.append({"params": [quantizer.zero_point], "lr": rate})
    for values in student.constants.values():
        size = float(values.detach().square().mean().sqrt())
        found.append({"params": [values], "lr": rate * BIASES * max(size, 1e-4)})
    return found


def schedule(step: int, steps: int) -> float:
    """The share of its rate that a step has: up in a line, down in a cosine."""
    warm = max(1, round(WARM * steps))
    return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))


@dataclass
class Trainer:
    """One run.

    Attributes:
        student: what learns.
        teacher: the float model.
        data: to learn from, and to tell how good it is.
        curriculum: how.
        loss: what is made small.
        outputs: those of the model that count.
        features: inner tensors that count too.
        device: where.
        checkpoint: where the state is kept.
        progress: told what is going on.
    """

    student: Simulation
    teacher: Interpreter
    data: tuple[Data, Data]
    curriculum: Curriculum
    loss: Loss
    outputs: Sequence[str]
    features: Sequence[str]
    device: torch.device
    checkpoint: Checkpoint
    progress: Progress = silent
    looks: list[Look] = field(default_factory=list)

    def run(self) -> tuple[list[Look], str]:
        """Train, and leave the student in its best state; the losses on the way, and why it ended early."""
        curriculum, student = self.curriculum, self.student
        optimizer = torch.optim.Adam(groups(student, curriculum.rate), betas=FASTEST)
        rates = [group["lr"] for group in optimizer.param_groups]
        generator = torch.Generator().manual_seed(curriculum.seed)
        state = self.checkpoint.load(student, optimizer)
        done, self.looks, best = (0, [], None) if state is None else state
        blend = may_blend(self.data[0]) if curriculum.mix is None else curriculum.mix
        every, stopped = max(1, math.ceil(curriculum.steps / LOOKS)), ""
        if not self.looks:
            best = self._look(0, best)
        lessons = endless(self.data[0], curriculum.batch, self.device, generator)
        for step, batch in zip(range(curriculum.steps), lessons, strict=False):
            taken = blended(batch, generator) if blend else batch
            if step < done:
                continue  # what chance gave before comes again
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * schedule(step, curriculum.steps)
            lost = self._step(taken, optimizer)
            self.progress(f"train: loss {lost:.3g}", step + 1, curriculum.steps)
            if not math.isfinite(lost):
                stopped = f"The loss was not finite after {step + 1} steps; a lower rate may help."
                break
            if (step + 1) % every == 0 or step + 1 == curriculum.steps:
                best = self._look(step + 1, best)
                self.checkpoint.save(student, optimizer, (step + 1, self.looks, best))
                if self._tired():
                    stopped = f"No progress in the last {curriculum.patience} looks."
                    break
        assert best is not None
        student.load_state_dict(best)
        return self.looks, stopped

    def _step(self, batch: Batch, optimizer: torch.optim.Optimizer) -> float:
        self.student.train()
        lost = self.loss(self._scene(batch))
        optimizer.zero_grad()
        lost.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return float(lost.detach())

    def _scene(self, batch: Batch) -> Scene:
        wanted = [*self.outputs, *self.features]
        with torch.no_grad():
            aims = self.teacher(batch.feeds, wanted)
        found = self.student(batch.feeds, wanted)
        return Scene(
            {name: found[name] for name in self.outputs},
            {name: aims[name] for name in self.outputs},
            {name: found[name] for name in self.features},
            {name: aims[name] for name in self.features},
            batch.feeds,
            batch.labels,
            batch.mask,
        )

    def _look(self, step: int, best: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """The loss on what was held back; the state of the student where it is the lowest so far."""
        self.student.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for batch in batches(self.data[1], self.curriculum.batch, self.device):
                size = len(next(iter(batch.feeds.values())))
                total, count = total + size * float(self.loss(self._scene(batch))), count + size
        found = total / max(count, 1)
        better = all(found < look.loss for look in self.looks)
        self.looks.append(Look(step=step, loss=found))
        if better or best is None:
            return {name: values.detach().clone() for name, values in self.student.state_dict().items()}
        return best

    def _tired(self) -> bool:
        """Whether there was no progress for too long."""
        patience, least = self.curriculum.patience, min(look.loss for look in self.looks)
        return 0 < patience < len(self.looks) and all(look.loss > least for look in self.looks[-patience:])
