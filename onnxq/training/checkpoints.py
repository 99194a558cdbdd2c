"""The state of a training, kept in a file: an interrupted run goes on where it stopped, with the same result."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onnxq.curriculum import Look
from onnxq.errors import RecipeError
from onnxq.modelfile import replacing
from onnxq.training.simulation import Simulation

State = tuple[int, list[Look], dict[str, Tensor] | None]
"""Steps that are done, what was seen on the way, and the best state of the student."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a state is kept.

    Attributes:
        file: None for nowhere.
        run: what tells this run from others; a state of another one is refused.
    """

    file: Path | None
    run: str

    def save(self, student: Simulation, optimizer: torch.optim.Optimizer, state: State) -> None:
        """Keep the state, in place of what was kept before."""
        if self.file is None:
            return
        done, looks, best = state
        content = {
            "run": self.run,
            "done": done,
            "looks": [(look.step, look.loss) for look in looks],
            "best": best,
            "student": student.state_dict(),
            "optimizer": optimizer.state_dict(),
            "chance": torch.get_rng_state(),
        }
        with replacing(self.file) as file:
            torch.save(content, file)

    def load(self, student: Simulation, optimizer: torch.optim.Optimizer) -> State | None:
        """Take up the state that was kept; None where there is none. Raises RecipeError where it is of another run."""
        if self.file is None or not self.file.exists():
            return None
        content = self._read(self.file)
        if content.get("run") != self.run:
            raise RecipeError(
                f"Checkpoint '{self.file}' is of another model, data or curriculum. Name another file, or delete it."
            )
        student.load_state_dict(content["student"])
        optimizer.load_state_dict(content["optimizer"])
        torch.set_rng_state(content["chance"])
        looks = [Look(step=step, loss=loss) for step, loss in content["looks"]]
        return content["done"], looks, content["best"]

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
