"""How good a student is: its loss on one batch, and on samples that are not learned from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from onnxq.calibration.data import Data
from onnxq.curriculum import Look
from onnxq.training.batches import Batch, batches
from onnxq.training.interpreter import Interpreter
from onnxq.training.losses import Loss, Scene
from onnxq.training.simulation import Simulation

State = dict[str, Tensor]

CLEARLY_BETTER = 0.9
"""Less than this share of a loss is no chance: few samples tell."""


@dataclass
class Exam:
    """A student beside its teacher.

    Attributes:
        student: what learns.
        teacher: the float model.
        held: samples that are not learned from.
        size: how many of them run at once.
        loss: what is made small.
        outputs: those of the model that count.
        features: inner tensors that count too.
        device: where both run.
        looks: losses on what was held back.
        best: the state of the student where that was lowest.
    """

    student: Simulation
    teacher: Interpreter
    held: Data
    size: int
    loss: Loss
    outputs: Sequence[str]
    features: Sequence[str]
    device: torch.device
    looks: list[Look] = field(default_factory=list)
    best: State | None = None

    def lost(self, batch: Batch) -> Tensor:
        """The loss on a batch."""
        wanted = [*self.outputs, *self.features]
        with torch.no_grad():
            aims = self.teacher(batch.feeds, wanted)
        found = self.student(batch.feeds, wanted)
        scene = Scene(
            {name: found[name] for name in self.outputs},
            {name: aims[name] for name in self.outputs},
            {name: found[name] for name in self.features},
            {name: aims[name] for name in self.features},
            batch.feeds,
            batch.labels,
            batch.mask,
        )
        return self.loss(scene)

    def look(self, step: int) -> None:
        """Take the loss on what was held back, and remember the state where it is the lowest so far, and finite."""
        self.student.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for batch in batches(self.held, self.size, self.device):
                size = len(next(iter(batch.feeds.values())))
                total, count = total + size * float(self.lost(batch)), count + size
        found = total / max(count, 1)
        if not self.looks or found < min(map(_finite, self.looks)):
            self.best = {name: values.clone() for name, values in self.student.state().items()}
        self.looks.append(Look(step=step, loss=found))

    def settle(self, broken: bool = False) -> int:
        """Keep the last state, unless another was clearly better, or it is broken or no gain; the step it is of."""
        first, last = min(self.looks, key=_finite), self.looks[-1]
        gained = last.loss < self.looks[0].loss or len(self.looks) == 1
        if not broken and gained and first.loss >= CLEARLY_BETTER * last.loss:  # which no loss is that is not finite
            return last.step
        assert self.best is not None
        self.student.restore(self.best)
        return first.step

    def stands_still(self, patience: int) -> bool:
        """Whether so many looks in a row brought no progress."""
        least = min(map(_finite, self.looks))
        return 0 < patience < len(self.looks) and all(_finite(look) > least for look in self.looks[-patience:])


def _finite(look: Look) -> float:
    """The loss; that of a broken state is above all others."""
    return look.loss if math.isfinite(look.loss) else math.inf
