"""What `auto` means, and which modes a target and a format take."""

from __future__ import annotations

from onnxq.errors import DataError, RecipeError
from onnxq.recipe import Mode, Recipe


def choose_mode(recipe: Recipe, data: bool, known: bool) -> Mode:
    """What `auto` means here: mixed where there is data, static by a plan or statistics, dynamic without any of these.

    Raises:
        DataError: a mode that measures activations was asked for, and there is nothing to measure.
        RecipeError: the recipe contradicts itself.
    """
    if recipe.mode == "weight-int8" and recipe.weight.bits not in (None, 8):
        raise RecipeError(f"weight-int8 has 8 bits, and not {recipe.weight.bits:g}. Add --recipe weight-int4.")
    if recipe.target == "cuda":
        return _mode_on_cuda(recipe, data or known)
    if recipe.mode == "auto":
        if data and recipe.format == "integer" and not known:
            return "mixed-int8"
        return "static-int8" if data or known else "dynamic-int8"
    if recipe.mode == "static-int8" and not (data or known):
        raise DataError("static-int8 needs data to calibrate on. Give --data, or use --recipe dynamic-int8.")
    if recipe.mode == "mixed-int8" and not (data or known):
        raise DataError("mixed-int8 measures every layer, and needs data. Give --data, or use --recipe dynamic-int8.")
    if recipe.mode in ("dynamic-int8", "mixed-int8") and recipe.format == "qdq":
        kind = "Dynamic" if recipe.mode == "dynamic-int8" else "Mixed"
        raise RecipeError(f"{kind} quantization has no Q/DQ form. Use --format integer, or --recipe static-int8.")
    return recipe.mode


def _mode_on_cuda(recipe: Recipe, measured: bool) -> Mode:
    """The same where a GPU runs the model: half precision if nothing else is asked for."""
    if recipe.mode == "auto":
        return "fp16"
    if recipe.mode not in ("static-int8", "dynamic-int8", "mixed-int8"):
        return recipe.mode
    if recipe.mode != "static-int8" or recipe.format != "qdq":
        raise RecipeError(
            f"{recipe.mode} is not for --target cuda, which has no integer kernels for these operators. Take --recipe "
            "fp16, weight-int8 or weight-int4; or, for TensorRT, --recipe static-int8 --format qdq."
        )
    if recipe.activation.format != "int8" or not recipe.activation.symmetric:
        raise RecipeError("TensorRT takes symmetric int8 alone. Add --activations int8 --symmetric.")
    if not measured:
        raise DataError("static-int8 needs data to calibrate on. Give --data, or use --recipe fp16.")
    return recipe.mode
