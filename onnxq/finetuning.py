"""`finetune`: quantize, train what was rounded, fold, and prove it beside what calibration alone gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from onnxq import runtime
from onnxq.build import Build, Nothing
from onnxq.calibration.data import Data, DataSource, open_data
from onnxq.curriculum import Curriculum, Lesson
from onnxq.delivery import Delivery, attempt, give_up
from onnxq.errors import DataError, ModelError, OutputError, RecipeError
from onnxq.graph import Graph
from onnxq.imagined import imagined
from onnxq.inspection import has_scales
from onnxq.intake import as_file, at_most, named, split, target_of
from onnxq.metric import check
from onnxq.modelfile import Source, check_output, load
from onnxq.options import Options
from onnxq.plan import Plan, Treatment
from onnxq.planning import plan_model
from onnxq.recipe import WEIGHT_ONLY, Mode, Recipe, recipe_of
from onnxq.result import Result
from onnxq.shelf import shelf_beside

TEXTS = 256
"""Texts that a language model writes for itself to learn from."""

VAIN = "Training brought no gain. More data, more steps or another rate may help."

TRAINED: tuple[Mode, ...] = ("static-int8", *WEIGHT_ONLY)
"""What has scales that can be learned: those of dynamic activations are found on each run."""


def finetune(
    model: Source,
    output: Path | str | None = None,
    *,
    data: DataSource | None = None,
    validation: DataSource | None = None,
    recipe: Recipe | Path | str | None = None,
    plan: Plan | None = None,
    curriculum: Curriculum | None = None,
    checkpoint: Path | str | None = None,
    options: Options | None = None,
) -> Result:
    """Quantize a model, and train it to be close to the float model again; no labels and no training code are needed.

    Args:
        model: a float model: a path, the bytes of a model, or a `ModelProto`.
        output: where to write; None is `NAME.int8.onnx` beside the model, and no file where the model has no path.
        data: what to calibrate on and to learn from; a part is held back for validation. None: text that a small
            language model writes itself.
        validation: data for validation alone; then all of `data` may be learned from.
        recipe: what to build, as a recipe, a mode or a TOML file; `auto` is static-int8.
        plan: decisions of an earlier run, perhaps edited.
        curriculum: how to train.
        checkpoint: a file for the state of the training; if it exists, training goes on from there.
        options: how to go about it.

    Returns:
        The result, with what training did (`lesson`) and the proof of the same model without it (`untrained`).

    Raises:
        ModelError: the model cannot be read, holds integers already, or has operators that cannot be trained.
        DataError: the data does not fit the model.
        RecipeError: PyTorch is missing, or recipe, plan or curriculum contradict themselves or the model.
        OutputError: the output cannot be written.
    """
    options, curriculum = options or Options(), curriculum or Curriculum()
    _check_pytorch()
    runtime.check_providers(options.providers)
    source = load(model)
    if has_scales(source):
        raise ModelError(
            "The model holds integers or Q/DQ already. Train the float model; onnxq optimize folds what others trained."
        )
    wanted = _to_train(plan.recipe if plan else recipe_of(recipe or "static-int8"), plan)
    target, kept = target_of(model, output, wanted), None if checkpoint is None else Path(checkpoint)
    if kept is not None:
        check_output(model, kept, "--checkpoint")
        if target is not None and kept.resolve() == target.resolve():
            raise OutputError(f"The output '{target}' is the checkpoint. Name another file.")
    build = Build(source.copy(), wanted, wanted.mode, progress=options.progress, threads=options.threads)
    with as_file(model, source) as reference, named(model), shelf_beside(None, "") as build.shelf:
        if data is not None:
            feeds = open_data(data, source.interface().inputs)
        else:
            with build.stage("imagine"):
                feeds = _own_text(reference, options)
        learned, held = split(feeds, len(feeds), wanted.mode, build)
        if validation is not None:
            learned, held = feeds, open_data(validation, source.interface().inputs)
        assert learned is not None
        assert held is not None
        check(wanted.contract, held)
        build.calibration = at_most(learned, options.samples)
        judged = plan is None and bool(wanted.contract.model_fields_set)
        delivery = Delivery((reference, source), target, held, held is learned, judged, options)
        teach = _teacher(source, learned, curriculum, kept)
        try:
            first, *_ = plan_model(build, plan, build.calibration, [], options)
        except Nothing as nothing:
            return give_up(str(nothing), build, delivery)
        start = build.graph, dict(build.changes)
        before, _ = attempt(build, first, start, replace(delivery, target=None, judged=False, proofs={}))
        build.teach = teach
        result, _ = attempt(build, first, start, delivery)
    vain = [VAIN] if build.lesson is not None and build.lesson.after >= build.lesson.before else []
    extra = {
        "lesson": build.lesson,
        "untrained": before.proof,
        "calibrated": len(build.calibration),
        "warnings": [*result.warnings, *vain],
    }
    return result.model_copy(update=extra)


def _own_text(model: Path, options: Options) -> Data:
    """Text by the model itself. Raises DataError where it writes none."""
    found = imagined(runtime.Session(model, threads=options.threads), options.progress, TEXTS)
    if found is None:
        raise DataError("Training needs data, and only a causal language model writes some itself. Give --data.")
    return found


def _teacher(
    source: Graph, learned: Data, curriculum: Curriculum, checkpoint: Path | None
) -> Callable[[Build, Graph], Lesson]:
    """What trains a build, once it was found to fit; imported late, since it needs PyTorch."""
    from onnxq.training.lesson import Teaching

    found = Teaching(learned, curriculum, checkpoint)
    found.check(source)
    return found


def _check_pytorch() -> None:
    if find_spec("torch") is None:
        raise RecipeError("Training needs PyTorch, which is not installed. Run: pip install 'onnxq[train]'")


def _to_train(recipe: Recipe, plan: Plan | None) -> Recipe:
    """The recipe with its mode; layers that lose much are trained instead of spared. Raises RecipeError."""
    mode: Mode = "static-int8" if recipe.mode == "auto" else recipe.mode
    if mode not in TRAINED and plan is None:
        raise RecipeError(f"{mode} has no scales that can be learned. Take --recipe {', '.join(TRAINED)}.")
    treatments = set() if plan is None else {node.treatment for node in plan.nodes.values()}
    if Treatment.DYNAMIC in treatments or Treatment.HALF in treatments:
        raise RecipeError("The plan runs layers dynamically or in half precision, where no scales can be learned.")
    if mode in WEIGHT_ONLY or plan is not None:
        return recipe
    return recipe.model_copy(update={"mode": mode, "least_sqnr": 0.0})
