"""The state of a training, kept in a file: an interrupted run goes on where it stopped, with the same result."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from warnings import catch_warnings

import torch

from onnxq.curriculum import Look
from onnxq.errors import RecipeError
from onnxq.modelfile import replacing
from onnxq.training.exam import Exam

KEYS = frozenset({"run", "done", "looks", "best", "student", "optimizer", "chance"})
"""What a checkpoint holds."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a state is kept.

    Attributes:
        file: None for nowhere.
        run: what tells this run from others; a state of another one is refused.
    """

    file: Path | None
    run: str

    def save(self, exam: Exam, optimizer: torch.optim.Optimizer | None, done: int) -> None:
        """Keep the state after so many steps, in place of what was kept before."""
        if self.file is None:
            return
        content = {
            "run": self.run,
            "done": done,
            "looks": [(look.step, look.loss) for look in exam.looks],
            "best": exam.best,
            "student": exam.student.state(),
            "optimizer": None if optimizer is None else optimizer.state_dict(),
            "chance": torch.get_rng_state(),
        }
        with replacing(self.file) as file:
            torch.save(content, file)

    def load(self, exam: Exam, optimizer: torch.optim.Optimizer | None) -> int:
        """Take up the state that was kept, if there is one; how many steps are done.

        Raises:
            RecipeError: it is of another run, or nothing of ours.
        """
        if self.file is None or not self.file.exists():
            return 0
        content = self._read(self.file)
        if content["run"] != self.run:
            raise RecipeError(
                f"Checkpoint '{self.file}' is of another model, data or curriculum. Name another file, or delete it."
            )
        exam.student.restore(content["student"])
        if optimizer is not None:
            optimizer.load_state_dict(content["optimizer"])
        torch.set_rng_state(content["chance"])
        exam.looks = [Look(step=step, loss=loss) for step, loss in content["looks"]]
        exam.best = content["best"]
        return int(content["done"])

    @staticmethod
    def _read(file: Path) -> dict[str, Any]:
        """What was kept. PyTorch runs none of it, and says in many ways that it is something else, or damaged."""
        found = None
        with catch_warnings(action="ignore"), suppress(Exception):
            found = torch.load(file, weights_only=True)
        if not isinstance(found, dict) or not found.keys() >= KEYS:
            raise RecipeError(f"'{file}' is no checkpoint of onnxq, or damaged. Name another file, or delete it.")
        return found
