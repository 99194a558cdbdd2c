"""What was decided for each node and each tensor, and why. A user may edit it and hand it back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from onnxq.errors import RecipeError
from onnxq.numerics.formats import FORMATS
from onnxq.recipe import Contract, Recipe, explain

LEFT_OUT = "(left out here; a saved plan has it)"
"""What stands for a rounding that is too long to be shown; a plan that holds it is refused."""


class Treatment(StrEnum):
    """What happens to a node."""

    STATIC = "static"
    """Runs on integers whose scales were fixed by calibration."""
    DYNAMIC = "dynamic"
    """Runs on integers; the scale of its input is found on each run."""
    WEIGHT = "weight"
    """Its weight is stored in integers."""
    HALF = "half"
    """Its weight is stored in half precision; where the target computes in it, the node runs in half precision."""
    FLOAT = "float"
    """Left as it was."""


class Record(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class NodePlan(Record):
    """The decision for one node.

    Attributes:
        op: its operator.
        treatment: what happens to it.
        reason: why.
        per_channel: whether its weight has a scale for each output channel.
        bits: width of its weight where that alone is stored in integers: 8 or 4.
        shares: the layer in whose blocks a table is looked up, with the bits of that; empty: it has its own.
        accuracy_level: of the kernel of such a weight: 4 rounds what it reads to 8 bits, which is fast; 0 does not.
        measured: what decided, where it was measured: noise over signal and microseconds, by form.
        rounding: how the integers of its weight differ from the nearest ones, as `weights.differences` writes it; empty
            where they do not.
    """

    op: str
    treatment: Treatment
    reason: str
    per_channel: bool = True
    bits: Literal[4, 8] = 8
    shares: str = ""
    accuracy_level: Literal[0, 4] = 4
    measured: dict[str, float] = {}
    rounding: str = ""


class TensorPlan(Record):
    """How one activation becomes integers: `q = clip(round(r / scale) + zero_point)`.

    Attributes:
        format: `uint8` or `int8`, or of fewer bits: `uint4`.
        scale: width of one step.
        zero_point: the integer that stands for 0.
        low: lower end of the range that was chosen.
        high: upper end.
        reason: which rule chose it, or which tensor it shares its scale with.
        means: mean of each channel where a layer reads it, for the correction of that layer's bias; empty if unknown.
    """

    format: str = Field(pattern="^u?int[2-8]$")
    scale: float = Field(gt=0, allow_inf_nan=False)
    zero_point: int
    low: float
    high: float
    reason: str
    means: list[float] = []

    @field_validator("zero_point")
    @classmethod
    def _in_format(cls, value: int, info: ValidationInfo) -> int:
        form = FORMATS[info.data.get("format", "uint8")]
        if not form.qmin <= value <= form.qmax:
            raise ValueError(f"{form.bits} bits reach from {form.qmin} to {form.qmax}")
        return value


class MaskPlan(Record):
    """How far down an attention mask has to reach.

    Attributes:
        mask: the tensor that is added to the scores.
        bound: the lowest value that it needs.
    """

    mask: str
    bound: float


class BalancePlan(Record):
    """Factors that make the channels of a tensor alike.

    Attributes:
        factors: what each channel is divided by, and the weights that read it multiplied by.
        multiplies: whether this costs a Mul; otherwise what makes the tensor takes the factors.
        reason: what it was measured to gain.
        gain: share of all noise at the outputs that it takes away.
    """

    factors: list[float]
    multiplies: bool
    reason: str
    gain: float = 0.0

    @field_validator("factors")
    @classmethod
    def _positive(cls, values: list[float]) -> list[float]:
        if not values or not all(1e-30 < value < 1e30 for value in values):
            raise ValueError("factors are positive numbers from 1e-30 to 1e30, one for each channel")
        return values


class Plan(Record):
    """Every decision about a model.

    Attributes:
        recipe: the request it answers.
        nodes: by node name; nodes that are not named stay in float.
        tensors: activations that become integers, by name.
        masks: additions of an attention mask, by node name.
        opset: version of the standard operators that the rewrites need; 0 is the model's own.
        rewrites: passes that made the model faster where it was planned, by name; they come first.
        balance: tensors whose channels are rescaled before anything is quantized, by name.
        noise: noise over signal at the outputs, measured on calibration data where forms were chosen by it.
        drop: what the metric of the contract lost there; None where it was not judged.
        speedup: how many times as fast as the float model it was, where it was planned.
    """

    recipe: Recipe
    nodes: dict[str, NodePlan]
    tensors: dict[str, TensorPlan] = {}
    masks: dict[str, MaskPlan] = {}
    opset: int = 0
    rewrites: list[str] = []
    balance: dict[str, BalancePlan] = {}
    noise: float | None = None
    drop: float | None = None
    speedup: float | None = None

    def treatment(self, node: str) -> Treatment:
        """What happens to the node of this name."""
        return self.nodes[node].treatment if node in self.nodes else Treatment.FLOAT

    @property
    def does_nothing(self) -> bool:
        """Whether it leaves a model as it is."""
        floats = all(node.treatment is Treatment.FLOAT for node in self.nodes.values())
        return floats and not self.rewrites and not self.masks

    @property
    def deeds(self) -> str:
        """Everything that it does to a model, as text; not what is asked of the result."""
        recipe = self.recipe.model_copy(update={"contract": Contract()})
        return self.model_copy(update={"recipe": recipe}).to_json()

    def brief(self) -> Plan:
        """The plan without the integers of weights, which are long: to be looked at, not to be followed."""
        shorter = {
            name: node.model_copy(update={"rounding": LEFT_OUT}) if node.rounding else node
            for name, node in self.nodes.items()
        }
        return self.model_copy(update={"nodes": shorter})

    def to_json(self) -> str:
        """The plan as text that a person can edit; numbers of one list stand on one line."""
        text = json.dumps(self.model_dump(mode="json"), indent=1)
        return re.sub(r"\[[^][{}\"]*\]", lambda found: re.sub(r"\s+", " ", found.group()), text) + "\n"


def make_plan(values: Mapping[str, Any]) -> Plan:
    """A plan from nested mappings. Raises RecipeError that names the key."""
    try:
        return Plan.model_validate(values)
    except ValidationError as error:
        raise RecipeError(explain(error, "plan")) from None


def read_plan(path: Path) -> Plan:
    """A plan that `Plan.to_json` wrote and somebody may have edited. Raises RecipeError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not {"recipe", "nodes"} & content.keys():
            raise RecipeError(f"'{path}' is no plan. --save-plan writes one.")
        return make_plan(content)
    except RecipeError as error:
        raise RecipeError(str(error) if str(path) in str(error) else f"'{path}': {error}") from None
    except OSError as error:
        raise RecipeError(f"Plan '{path}' cannot be read ({error.strerror}). Check the path.") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, and lists in lists in lists, too
        raise RecipeError(f"Plan '{path}' is no JSON: {error}.") from error
