"""From options to what is asked for: a recipe of its name, its file and its flags, and what else words stand for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxq import quantities
from onnxq.errors import OutputError, RecipeError

if TYPE_CHECKING:
    from onnxq.memo import Memo
    from onnxq.recipe import Recipe

WEIGHT_ONLY = ("weight-int8", "weight-int4")
"""Those that store weights in blocks."""

PLACES: Mapping[str, tuple[str, ...]] = {
    "target": ("target",),
    "format": ("format",),
    "least_sqnr": ("least_sqnr",),
    "balance": ("balance",),
    "activations": ("activation", "format"),
    "activation_bits": ("activation", "bits"),
    "range": ("activation", "range"),
    "percent": ("activation", "percent"),
    "weights": ("weight", "format"),
    "bits": ("weight", "bits"),
    "per_channel": ("weight", "per_channel"),
    "method": ("weight", "method"),
    "fit": ("weight", "fit"),
    "block_size": ("weight", "block_size"),
    "metric": ("contract", "metric"),
    "max_drop": ("contract", "max_drop"),
    "min_speedup": ("contract", "min_speedup"),
    "max_size": ("contract", "max_size"),
}
"""Where a recipe keeps what a flag says."""


def bytes_of(size: str | None) -> int | None:
    """What `--memory` asks for, in bytes. Raises RecipeError."""
    try:
        return None if size is None else quantities.bytes_of(size)
    except ValueError as error:
        raise RecipeError(f"--memory {error}") from None


def memo_of(folder: Path | None, forgetful: bool) -> Memo:
    """What `--cache` and `--no-cache` ask for. Raises RecipeError where both were given."""
    from onnxq.memo import Memo, default_folder

    if folder is not None and forgetful:
        raise RecipeError("--cache and --no-cache contradict each other. Give one of them.")
    return Memo(None if forgetful else folder or default_folder())


def keep_apart(output: Path | None, **inputs: Path | str | None) -> None:
    """Refuse to write over what a command reads. Raises OutputError."""
    if output is None or not output.exists():
        return
    for flag, path in inputs.items():
        if path is not None and Path(path).exists() and os.path.samefile(output, path):
            raise OutputError(f"The output '{output}' is what --{flag} reads. Name another file.")


def asked_of(
    recipe: str | None, keep_float: Sequence[str] | None = None, symmetric: bool | None = None, **flags: Any
) -> dict[str, Any]:
    """What flags ask for, nested as a recipe is; None stands for a flag that was not given."""
    asked: dict[str, Any] = {"nodes": {pattern: {"quantize": False} for pattern in keep_float or []}}
    for name, value in flags.items():
        *groups, key = PLACES[name]
        reduce(lambda found, group: found.setdefault(group, {}), groups, asked)[key] = value
    kind = "weight" if recipe in WEIGHT_ONLY else "activation"
    return {**asked, kind: {**asked.get(kind, {}), "symmetric": symmetric}}


def check_plan(plan: Path | None, recipe: str | None, asked: Mapping[str, Any]) -> None:
    """Refuse a plan beside a recipe or its flags. Raises RecipeError."""
    if plan is not None and (recipe is not None or given(asked)):
        raise RecipeError("--plan brings its own recipe. Leave out --recipe and its flags, or edit the plan.")


def make_wish(name: str | None, flags: Mapping[str, Any]) -> Recipe:
    """The recipe of a name or a file, with the flags that were given on top of it.

    Args:
        name: a mode, or the path of a TOML file; None is `auto`.
        flags: as a recipe is nested; None stands for a flag that was not given.

    Raises:
        RecipeError: there is no such mode or file, or a value is unknown.
    """
    from onnxq.recipe import make_recipe, recipe_of

    base = recipe_of(name).model_dump(exclude_unset=True)
    asked = given(flags)
    names = {".".join(place): f"--{name.replace('_', '-')}" for name, place in PLACES.items() if _holds(asked, place)}
    recipe = make_recipe(_merged(base, asked), names)
    if recipe.mode not in WEIGHT_ONLY:
        blocks = ("method", "fit", "block_size", *(() if recipe.mode == "static-int8" else ("bits",)))
        for flag in [flag for flag in blocks if _holds(asked, PLACES[flag])]:
            modes = " or ".join([*WEIGHT_ONLY, *(["static-int8"] if flag == "bits" else [])])
            raise RecipeError(f"--{flag.replace('_', '-')} has no effect on {recipe.mode}. Add --recipe {modes}.")
    rules = {recipe.activation.range, *(wish.range for wish in recipe.nodes.values())}
    if _holds(asked, PLACES["percent"]) and not rules & {"percentile", "auto"}:
        raise RecipeError(f"--percent has no effect on --range {recipe.activation.range}. Add --range percentile.")
    return recipe


def block_size_of(text: str | None) -> int | str | None:
    """A number where it is one; what else is allowed, the recipe knows."""
    return int(text) if text is not None and text.isdigit() else text


def given(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that were given."""
    nested = {key: given(value) if isinstance(value, Mapping) else value for key, value in flags.items()}
    return {key: value for key, value in nested.items() if value is not None and value != {}}


def _holds(asked: Mapping[str, Any], place: Sequence[str]) -> bool:
    """Whether something was asked for at a place."""
    *groups, key = place
    return key in reduce(lambda found, group: found.get(group, {}), groups, asked)


def _merged(base: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags over the base. Patterns of flags come first: the first that matches decides."""
    found = dict(base)
    for key, value in flags.items():
        below = found.get(key, {})
        if key == "nodes":
            found[key] = {**value, **{name: wish for name, wish in below.items() if name not in value}}
        else:
            found[key] = _merged(below, value) if isinstance(value, Mapping) else value
    return found
