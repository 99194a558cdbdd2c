"""The state of a training, kept in a file: an interrupted run goes on where it stopped, with the same result."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from onnxq.curriculum import Look
from onnxq.errors import RecipeError
from onnxq.modelfile import replacing
from onnxq.training.exam import Exam


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
            "student": exam.student.state_dict(),
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
        if content.get("run") != self.run:
            raise RecipeError(
                f"Checkpoint '{self.file}' is of another model, data or curriculum. Name another file, or delete it."
            )
        exam.student.load_state_dict(content["student"])
        if optimizer is not None:
            optimizer.load_state_dict(content["optimizer"])
        torch.set_rng_state(content["chance"])
        exam.looks = [Look(step=step, loss=loss) for step, loss in content["looks"]]
        exam.best = content["best"]
        return int(content["done"])

    @staticmethod
    def _read(file: Path) -> dict[str, Any]:
        try:
            found = torch.load(file, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            said = str(error).splitlines()[0][:160]
            raise RecipeError(
                f"'{file}' is no checkpoint of onnxq ({said}). Name another file, or delete it."
            ) from None
        if not isinstance(found, dict):
            raise RecipeError(f"'{file}' is no checkpoint of onnxq. Name another file, or delete it.")
        return found
