"""What the user asked for. From flags, a TOML file or Python; unknown keys are refused."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from onnxq.errors import RecipeError
from onnxq.numerics.formats import FORMATS, Format
from onnxq.quantities import bytes_of, share_of

Mode = Literal["auto", "mixed-int8", "static-int8", "dynamic-int8", "weight-int8", "weight-int4", "fp16"]
WEIGHT_ONLY: tuple[Mode, ...] = ("weight-int8", "weight-int4")
"""Those that store weights in blocks of integers, and leave activations in floats."""

Method = Literal["auto", "rtn", "hqq", "awq", "gptq"]
RangeRule = Literal["auto", "minmax", "moving-average", "percentile", "entropy", "mse"]
ActivationFormat = Literal["uint8", "int8"]
WeightFormat = Literal["int8", "uint8"]
GraphFormat = Literal["integer", "qdq"]

MAX_DROPS: Mapping[str, float] = {
    "top1": 0.01,  # a share of the samples
    "agreement": 0.05,  # a share of the samples, whether the float model was right about them or not
    "cosine": 0.01,
    "sqnr": 0.01,  # noise over signal: 20 dB
    "kl": 0.05,  # nats
    "perplexity": 0.01,  # of the perplexity of the float model
}
"""The metrics, and the drop that each allows where nothing else is asked for (what a drop is: `onnxq.metric`)."""

MAX_OWN_DROP = 0.01
"""The same for a function of the user's, as a share of the float model's score."""


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
        bits: of static activations, from 2 to 8; fewer than 8 lie in 8-bit integers, for no kernel is faster with them.
    """

    format: ActivationFormat = "uint8"
    symmetric: bool = False
    bits: int = Field(default=8, ge=2, le=8)
    range: RangeRule = "auto"
    percent: float = Field(default=99.99, gt=50, le=100)

    @property
    def grid(self) -> Format:
        """The integers of an activation."""
        return FORMATS[f"{self.format.rstrip('8')}{self.bits}"]


class Weight(Settings):
    """How weights are quantized.

    Attributes:
        format: 8 bits, signed or unsigned.
        symmetric: whether the zero point is the middle of the format; None: for all weights but those in blocks.
        per_channel: one scale for each output channel, or one for the whole weight.
        correct_bias: whether biases make up for the mean error of rounded weights, from calibration data.
        rounding: `nearest`, or `auto`: so that the errors of a static layer's inputs cancel at its output where that
            was measured to pay; needs data.
        embeddings: whether embedding tables (Gather) are stored in 8 bits.
        embedding_bits: 8: a scale for each row; 4: blocks like those of weights alone. None: a table that is also the
            weight of such a layer is stored once, in blocks of 8 bits, and others take 8.
        block_size: inputs of an output that share a scale where the weight alone is stored in integers; `channel` is
            all of them.
        bits: of such weights on average, from 4 to 8: between them, the layers that need it most get 8. Of the weights
            of a static recipe: a whole number from 2 to 8. None: as the recipe's name says.
        method: how such weights are rounded. rtn: to the nearest, on grids with the least squared error; hqq: likewise,
            with the least sum of errors to the power 0.7; awq: channels that matter are scaled up before; gptq: so
            that errors cancel, layer after layer. `auto`: gptq where there is data, rtn where there is none.
        fit: whether the grids of rtn are fitted, or just cover the range of their block, which is much quicker.
    """

    format: WeightFormat = "int8"
    symmetric: bool | None = None
    per_channel: bool = True
    correct_bias: bool = True
    rounding: Literal["nearest", "auto"] = "auto"
    embeddings: bool = True
    embedding_bits: Literal[4, 8] | None = None
    block_size: Literal[16, 32, 64, 128, 256, "channel"] = 32
    bits: float | None = Field(default=None, ge=2, le=8)
    method: Method = "auto"
    fit: bool = True

    @property
    def grid(self) -> Format:
        """The integers of a weight that is multiplied as such."""
        return FORMATS[f"{self.format.rstrip('8')}{int(self.bits or 8)}"]

    @property
    def fitting(self) -> dict[str, bool]:
        """How the grid of such a weight is found, as `quantize_weight` takes it."""
        return {"symmetric": self.centred, "fit": self.grid.bits < 8}

    @property
    def centred(self) -> bool:
        """Whether the zero point of 8-bit weights is the middle of the format."""
        return self.symmetric is not False

    @property
    def blocks_centred(self) -> bool:
        """The same for weights in blocks."""
        return self.symmetric is True

    def block(self, inputs: int) -> int:
        """Inputs that share a scale, of so many: always a power of 2."""
        return self.block_size if self.block_size != "channel" else max(16, 1 << (inputs - 1).bit_length())


class Contract(Settings):
    """What the result must keep to.

    Attributes:
        metric: what accuracy is measured by: a key of `MAX_DROPS`, `module:function`, or `auto`, by kind of output.
        max_drop: how much worse it may be; `1%` and 0.01 are the same. None: as `MAX_DROPS` has it.
        min_speedup: how many times as fast as the float model it must be; 0 allows anything.
        max_size: bytes that the written model may take, `50MB`, or a share of the float model's size, like `30%`.
    """

    metric: str = "auto"
    max_drop: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    min_speedup: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    max_size: int | str | None = None

    @field_validator("metric")
    @classmethod
    def _known(cls, name: str) -> str:
        module, colon, function = name.removeprefix("python:").rpartition(":")
        if name not in ("auto", *MAX_DROPS) and not (module and colon and function):
            raise ValueError(f"there is no such metric. Known are auto, {', '.join(MAX_DROPS)} and MODULE:FUNCTION")
        return name.removeprefix("python:")

    @field_validator("max_drop", mode="before")
    @classmethod
    def _share(cls, value: object) -> object:
        return share_of(value) if isinstance(value, str) else value

    @field_validator("max_size", mode="before")
    @classmethod
    def _size(cls, value: object) -> object:
        if isinstance(value, str) and value.strip().endswith("%") and share_of(value):
            return f"{100 * share_of(value):.12g}%"
        if isinstance(value, str):
            return bytes_of(value)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value <= 0):
            raise ValueError("write bytes, a size like 50MB, or a share of the float model's like 30%")
        return value

    def limit(self, metric: str) -> float:
        """The largest drop of a metric that is allowed."""
        return self.max_drop if self.max_drop is not None else MAX_DROPS.get(metric, MAX_OWN_DROP)

    def most_bytes(self, size_float: int) -> int | None:
        """Bytes that the written model may take beside a float model of this size; None for any number."""
        return int(share_of(self.max_size) * size_float) if isinstance(self.max_size, str) else self.max_size


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
            weight-only in 8 or 4 bits, fp16 (floats of half the size: on a CPU the weights, on a GPU everything),
            mixed (static, dynamic or float for each layer, by measured noise and time), or `auto`: mixed where there is
            data, dynamic where there is none, fp16 on a GPU.
        target: the execution provider to build for: `cpu`, or `cuda`.
        least_sqnr: signal to quantization noise, in dB, that static outputs should keep; where they do not, the layers
            that cause most of the noise stay in float, a tenth of all layers at most (or two). 0 turns this off.
        format: `integer` folds Q/DQ into integer operators, `qdq` leaves them for the runtime to fold.
        bound_masks: whether attention masks may be raised to where they cost no denormal numbers; needs data.
        balance: whether channels may be rescaled against each other (SmoothQuant, equalization); needs data.
        activation: how activations are quantized.
        weight: how weights are quantized.
        contract: what the result must keep to.
        nodes: overrides by node name, operator or a pattern with `*`; the first that matches decides.
    """

    mode: Mode = "auto"
    target: Literal["cpu", "cuda"] = "cpu"
    format: GraphFormat = "integer"
    least_sqnr: float = Field(default=12.0, ge=0)
    bound_masks: bool = True
    balance: bool = True
    activation: Activation = Activation()
    weight: Weight = Weight()
    contract: Contract = Contract()
    nodes: dict[str, Override] = {}

    @model_validator(mode="after")
    def _bits_fit(self) -> Recipe:
        """Few bits are for static recipes; averages for weights in blocks."""
        bits = self.weight.bits
        if self.activation.bits < 8 and self.mode != "static-int8":
            raise ValueError(f"activations of {self.activation.bits} bits need the mode static-int8, not {self.mode}")
        if bits is None or self.mode == "auto":
            return self
        if self.mode in WEIGHT_ONLY and bits < 4:
            raise ValueError(f"weights in blocks take 4 to 8 bits, not {bits:g}")
        if self.mode == "static-int8" and bits != int(bits):
            raise ValueError(f"static weights take a whole number of bits, not {bits:g}")
        if bits < 8 and self.mode not in (*WEIGHT_ONLY, "static-int8"):
            raise ValueError(f"weights of {bits:g} bits need the mode static-int8 or weight-int4, not {self.mode}")
        return self

    def override(self, name: str, op: str) -> Override:
        """What the user wants for one node."""
        for pattern, wish in self.nodes.items():
            if matches(pattern, name, op):
                return wish
        return Override()


def make_recipe(values: Mapping[str, Any], flags: Mapping[str, str] = MappingProxyType({})) -> Recipe:
    """A recipe from nested mappings. Raises RecipeError that names the key, or the flag that it was given by."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(explain(error, "recipe", flags)) from None


def recipe_of(wanted: Recipe | Path | str | None) -> Recipe:
    """A recipe itself, that of a mode or of a TOML file; None is `auto`. Raises RecipeError."""
    if isinstance(wanted, Recipe):
        return wanted
    if wanted is None or wanted in get_args(Mode):
        return make_recipe({} if wanted is None else {"mode": wanted})
    if Path(wanted).suffix != ".toml" and not Path(wanted).exists():
        raise RecipeError(
            f"There is no recipe '{wanted}'. Known are {', '.join(get_args(Mode))}; a file ends in .toml."
        )
    return read_recipe(Path(wanted))


def read_recipe(path: Path) -> Recipe:
    """A recipe from a TOML file. Raises RecipeError."""
    try:
        return make_recipe(tomllib.loads(path.read_text(encoding="utf-8")))
    except RecipeError as error:
        raise RecipeError(f"'{path}': {error}") from None
    except OSError as error:
        raise RecipeError(f"Recipe '{path}' cannot be read ({error.strerror}). Check the path.") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, and lists in lists in lists, too
        raise RecipeError(f"Recipe '{path}' is no TOML: {error}.") from error


def _known(title: str, location: tuple[int | str, ...]) -> str:
    """The keys that there are beside a wrong one, for recipes."""
    homes: dict[str, type[Settings]] = {
        "activation": Activation,
        "weight": Weight,
        "contract": Contract,
        "nodes": Override,
    }
    home: type[Settings] = homes.get(str(location[0]), Recipe) if len(location) > 1 else Recipe
    return f" Known keys: {', '.join(home.model_fields)}." if title == "Recipe" else " Take it out."


def explain(error: ValidationError, what: str, flags: Mapping[str, str] = MappingProxyType({})) -> str:
    """The first complaint of pydantic as one sentence; `flags` are those of the command line, by key."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"Unknown key '{place}' in the {what}.{_known(error.title, first['loc'])}"
    if first["type"] == "missing":
        return f"The {what} lacks '{place}'. Add it."
    reason = first["msg"].removeprefix("Value error, ").rstrip(".")
    if first["type"] == "value_error" and not place:  # keys that contradict each other
        return f"{reason[0].upper()}{reason[1:]}."
    subject = flags.get(place) or f"'{place or what}' in the {what}"
    return f"{subject} is {first['input']!r:.80}: {reason}."
