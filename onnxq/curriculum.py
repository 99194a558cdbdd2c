"""How a rounded model is trained, as it was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from onnxq.errors import RecipeError
from onnxq.plan import Record
from onnxq.recipe import Settings, explain


class Curriculum(Settings):
    """How to train; what to train is the recipe's business.

    Attributes:
        method: `lsq`: weights, biases, scales and zero points together, from the outputs; `blocks`: the rounding of
            weights and the scales of activations, one block of the model after the other, which needs less data.
        steps: how many batches are learned from; for `blocks`, for each block.
        batch: samples of a batch.
        rate: how far a step moves a weight at first, as a share of the step of its grid; it falls to 0. None: 0.01 for
            4 bits, and less for more: 0.001 for 8.
        loss: `distill`: what the float model says; `labels`; or `module:function`.
        features: patterns for inner tensors of the float model that are to be met too.
        mix: whether samples are blended with each other, which makes more of few; None: where all inputs are floats.
        hold: the share of the samples that is not learned from, but tells when to stop.
        patience: looks at those without progress after which training stops; 0 for never.
        seed: of everything that is drawn by chance.
        device: where to train; `auto` is CUDA where there is some.
        threads: of PyTorch on the CPU; 0 is its own choice. Another number gives other last bits.
    """

    method: Literal["lsq", "blocks"] = "lsq"
    steps: int = Field(default=1000, ge=1)
    batch: int = Field(default=32, ge=1)
    rate: float | None = Field(default=None, gt=0, le=1)
    loss: str = "distill"
    features: tuple[str, ...] = ()
    mix: bool | None = None
    hold: float = Field(default=0.125, gt=0, lt=1)
    patience: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=0, ge=0)

    @field_validator("loss")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in ("distill", "labels") and ":" not in name:
            raise ValueError("there is no such loss. Known are distill, labels and MODULE:FUNCTION")
        return name


class Look(Record):
    """The loss on samples that are not learned from, after so many steps."""

    step: int
    loss: float


class Lesson(Record):
    """What training did.

    Attributes:
        method: how; `blocks` are counted instead of steps.
        samples: that were learned from.
        held: that told how good it was; the same ones for `blocks`.
        parameters: numbers that were trained.
        fidelity: the largest relative difference of the float model in PyTorch to that in ONNX Runtime.
        device: where it was trained.
        looks: the losses on samples that were held back.
        best: the step whose state was taken.
        stopped: why it ended before its time; empty where it did not.
        seconds: how long it took.
    """

    method: str = "lsq"
    samples: int
    held: int
    parameters: int
    fidelity: float
    device: str
    looks: list[Look]
    best: int
    stopped: str
    seconds: float

    @property
    def unit(self) -> str:
        """What is counted: a step, or a block."""
        return "block" if self.method == "blocks" else "step"

    @property
    def before(self) -> float:
        """The loss of the model as it was first rounded."""
        return self.looks[0].loss

    @property
    def after(self) -> float:
        """The loss of what was taken."""
        return next(look.loss for look in self.looks if look.step == self.best)


FLAGS: Mapping[str, str] = {
    **{key: f"--{key}" for key in Curriculum.model_fields},
    "method": "--train",
    "batch": "--train-batch",
    "threads": "--train-threads",
    "features": "--feature",
}
"""What the command line calls the keys of a curriculum."""


def make_curriculum(**values: Any) -> Curriculum:
    """A curriculum of what flags give; None stands for one that was left out. RecipeErrors name the flag."""
    try:
        return Curriculum.model_validate({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        raise RecipeError(explain(error, "curriculum", FLAGS)) from None
