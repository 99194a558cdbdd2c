"""What the user asked for. From flags, a TOML file or Python; unknown keys are refused."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from onnxq.errors import RecipeError

Mode = Literal["auto", "static-int8", "dynamic-int8", "weight-int8"]
RangeRule = Literal["auto", "minmax", "moving-average", "percentile", "entropy", "mse"]
ActivationFormat = Literal["uint8", "int8"]
WeightFormat = Literal["int8", "uint8"]
GraphFormat = Literal["integer", "qdq"]


class Settings(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Activation(Settings):
    """How tensors between operators are quantized.

    Attributes:
        format: 8 bits, unsigned or signed.
        symmetric: whether 0 lies in the middle of the range.
        range: the rule that turns a statistic into a range; `auto` tries all but moving-average and takes the one that
            leaves the least noise at the outputs, measured on calibration data (without data: mse).
        percent: what the percentile rule keeps, in percent.
    """

    format: ActivationFormat = "uint8"
    symmetric: bool = False
    range: RangeRule = "auto"
    percent: float = Field(default=99.99, gt=50, le=100)


class Weight(Settings):
    """How weights are quantized.

    Attributes:
        format: 8 bits, signed or unsigned.
        symmetric: whether the zero point is the middle of the format.
        per_channel: one scale for each output channel, or one for the whole weight.
        correct_bias: whether biases make up for the mean error of rounded weights, from calibration data.
        embeddings: whether embedding tables (Gather) are stored in 8 bits.
        block_size: weights that share a scale along the reduced axis; for `weight-int8` alone.
    """

    format: WeightFormat = "int8"
    symmetric: bool = True
    per_channel: bool = True
    correct_bias: bool = True
    embeddings: bool = True
    block_size: Literal[16, 32, 64, 128, 256] = 32


class Override(Settings):
    """What differs for the nodes whose name or operator matches a pattern.

    Attributes:
        quantize: False keeps the node in float.
        per_channel: as in `Weight`, for this node.
        range: as in `Activation`, for the inputs and the output of this node.
    """

    quantize: bool = True
    per_channel: bool | None = None
    range: RangeRule | None = None


def matches(pattern: str, name: str, op: str) -> bool:
    """Whether a pattern means a node: its name, its operator, or a wildcard for its name (which may hold brackets)."""
    return pattern in (name, op) or fnmatchcase(name, pattern)


class Recipe(Settings):
    """The whole request.

    Attributes:
        mode: static (weights and activations, needs data), dynamic (activations at run time, needs no data),
            weight-only, or `auto`: static where there is data, dynamic where there is none.
        target: the execution provider to build for.
        least_sqnr: signal to quantization noise, in dB, that static outputs should keep; where they do not, the layers
            that cause most of the noise stay in float, a tenth of all layers at most (or two). 0 turns this off.
        format: `integer` folds Q/DQ into integer operators, `qdq` leaves them for the runtime to fold.
        bound_masks: whether attention masks may be raised to where they cost no denormal numbers; needs data.
        activation: how activations are quantized.
        weight: how weights are quantized.
        nodes: overrides by node name, operator or a pattern with `*`; the first that matches decides.
    """

    mode: Mode = "auto"
    target: Literal["cpu"] = "cpu"
    format: GraphFormat = "integer"
    least_sqnr: float = Field(default=12.0, ge=0)
    bound_masks: bool = True
    activation: Activation = Activation()
    weight: Weight = Weight()
    nodes: dict[str, Override] = {}

    def override(self, name: str, op: str) -> Override:
        """What the user wants for one node."""
        for pattern, wish in self.nodes.items():
            if matches(pattern, name, op):
                return wish
        return Override()


def make_recipe(values: Mapping[str, Any]) -> Recipe:
    """A recipe from nested mappings. Raises RecipeError that names the key."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(explain(error, "recipe")) from None


def read_recipe(path: Path) -> Recipe:
    """A recipe from a TOML file. Raises RecipeError."""
    try:
        return make_recipe(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise RecipeError(f"Recipe '{path}' cannot be read ({error.strerror}). Check the path.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"Recipe '{path}' is no TOML: {error}.") from error


def _known(title: str, location: tuple[int | str, ...]) -> str:
    """The keys that there are beside a wrong one, for recipes."""
    homes: dict[str, type[Settings]] = {"activation": Activation, "weight": Weight, "nodes": Override}
    home: type[Settings] = homes.get(str(location[0]), Recipe) if len(location) > 1 else Recipe
    return f" Known keys: {', '.join(home.model_fields)}." if title == "Recipe" else " Take it out."


def explain(error: ValidationError, what: str) -> str:
    """The first complaint of pydantic as one sentence."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"]) or what
    if first["type"] == "extra_forbidden":
        return f"Unknown key '{place}' in the {what}.{_known(error.title, first['loc'])}"
    if first["type"] == "missing":
        return f"The {what} lacks '{place}'. Add it."
    return f"'{place}' in the {what} is {first['input']!r:.80}: {first['msg']}."
