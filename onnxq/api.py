"""What a pipeline calls: each function strings the floors together on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxq import runtime
from onnxq.build import Build, Nothing, prepare, typed
from onnxq.calibration.collect import save_statistics
from onnxq.calibration.data import Data, DataSource, open_data
from onnxq.comparison import batch_size
from onnxq.continuation import Continuations, Prompt, compare_generation, find_prompt
from onnxq.delivery import Delivery, deliver, give_up
from onnxq.diagnosis.examination import SAMPLES, Settings, examine, normal
from onnxq.diagnosis.findings import Diagnosis
from onnxq.diagnosis.plans import examine_plan
from onnxq.errors import DataError, ModelError, OutputError, RecipeError
from onnxq.evaluation import Evaluation, check_single, evaluate_session
from onnxq.frontier import Frontier, check_choice, check_places, frontier
from onnxq.graph import Graph
from onnxq.imagined import imagined
from onnxq.inspection import Summary, has_scales, summarize
from onnxq.intake import NAMELESS, NO_DATA, about_weights, as_file, at_most, named, split, target_of, why_unfed
from onnxq.kernels import by_operator
from onnxq.memo import canonical
from onnxq.metric import check
from onnxq.mode_choice import choose_mode
from onnxq.modelfile import Source, check_output, load, orphans, replacing
from onnxq.options import Options, on_target
from onnxq.passes import PIPELINES
from onnxq.plan import Plan, Treatment
from onnxq.planning import calibrate_graph, plan_model
from onnxq.proof import Proof, prove
from onnxq.recipe import WEIGHT_ONLY, Contract, Mode, Recipe, recipe_of
from onnxq.result import Result
from onnxq.shelf import shelf_beside
from onnxq.study import fingerprint
from onnxq.targets import TARGETS
from onnxq.version import __version__

SMALL = 1 << 28
"""Bytes of weights up to which a language model writes the text that it is calibrated with, where nobody gives any."""


def optimize(
    model: Source,
    output: Path | str | None = None,
    *,
    data: DataSource | None = None,
    validation: DataSource | None = None,
    recipe: Recipe | Path | str | None = None,
    plan: Plan | None = None,
    statistics: Sequence[Path | str] = (),
    options: Options | None = None,
) -> Result:
    """Make a model small and fast, and prove that it still computes the same.

    Args:
        model: a path, the bytes of a model, or a `ModelProto`.
        output: where to write; None is `NAME.int8.onnx` beside the model, and no file where the model has no path.
        data: what to calibrate and to validate on; a part is held back for validation. Static modes need it.
        validation: data for validation alone; then all of `data` may calibrate.
        recipe: what to build, as a recipe, a mode like `static-int8` or a TOML file; None decides by itself.
        plan: decisions of an earlier run, perhaps edited; then no data is needed.
        statistics: files that `calibrate` wrote, instead of collecting again.
        options: how to go about it.

    Returns:
        The result. Where its status is `rejected`, nothing was written.

    Raises:
        ModelError: the model cannot be read, or the runtime refuses it.
        DataError: the data does not fit the model.
        RecipeError: recipe or plan contradict themselves or the model.
        OutputError: the output cannot be written.
    """
    options = options or Options()
    runtime.check_providers(options.providers)
    if plan and statistics:
        raise RecipeError("A plan holds its ranges already: give --plan or --statistics, not both.")
    source = load(model)
    wanted = plan.recipe if plan else recipe_of(recipe)
    options = on_target(options, TARGETS[wanted.target].provider)
    target = target_of(model, output, wanted)
    _check_keep_best(model, target, options.keep_best)
    _check_frontier(model, source, target, options)
    unfed = why_unfed(source)
    feeds = None if data is None or unfed else open_data(data, source.interface().inputs)
    fed = feeds is not None or bool(unfed)
    mode = choose_mode(wanted, fed, bool(plan or statistics)) if not has_scales(source) else "static-int8"
    check_choice("mixed-int8" if has_scales(source) else mode, plan, feeds is not None, options)
    wanted = _for_size(wanted, mode)
    build = Build(source.copy(), wanted, mode, progress=options.progress, warnings=about_weights(source))
    beside = target if source.files else None  # what fits into one file fits into memory
    kept = shelf_beside(beside, _wishes(source, wanted, mode, feeds))
    with as_file(model, source) as reference, named(model), kept as build.shelf:
        calibration, held = split(feeds, options.samples, mode, build)
        if validation is not None and not unfed:
            calibration = at_most(feeds, options.samples) if feeds else None
            held = open_data(validation, source.interface().inputs)
        check(wanted.contract, held)
        made_up = NO_DATA if unfed or held is not None else open_data("random", source.interface().inputs)
        tested = made_up if held is None else held
        prompt = find_prompt(options, tested, source.interface())
        seen = held is not None and held is calibration
        build.calibration, build.threads = calibration, options.threads
        if calibration is None and plan is None and mode in WEIGHT_ONLY and wanted.weight.fit:
            with build.stage("imagine"):
                build.calibration = _imagined(reference, source, options)
            if build.calibration is not None:
                build.warnings.append("Without data, weights were rounded for text that the model wrote itself.")
        judged = plan is None and (wanted.mode in ("auto", "mixed-int8") or bool(wanted.contract.model_fields_set))
        delivery = Delivery((reference, source), target, tested, seen, judged, options)
        try:
            if unfed:
                raise Nothing(unfed)
            plans = plan_model(build, plan, calibration, [Path(path) for path in statistics], options)
        except Nothing as nothing:
            result = Frontier(options.frontier is not None).beside(give_up(str(nothing), build, delivery))
            result = _written(result, prompt, build, delivery)
            result = _with_orphans(result, source)
            return _explained(result, build, delivery) if options.explain else result
        with frontier(build, plans, delivery) as models:
            result = models.beside(deliver(build, plans, delivery))
        if options.explain:
            result = _explained(result, build, delivery)
        result = _written(result, prompt, build, delivery)
        used = len(calibration) if calibration and plans and not plan and not statistics else 0
        return _with_orphans(result.model_copy(update={"calibrated": used}), source)


def _with_orphans(result: Result, source: Graph) -> Result:
    """The result that names data files of the model that was there before; another model may read them still."""
    found = [] if result.output is None else orphans(Path(result.output), source)
    said = [
        f"'{path}' ({path.stat().st_size / 1e6:.1f} MB) is left of the model that was there before. Delete it where no "
        "other model reads it."
        for path in found
    ]
    return result.model_copy(update={"warnings": [*result.warnings, *said]})


def _for_size(recipe: Recipe, mode: Mode) -> Recipe:
    """The recipe with no demand for speed where nobody made one and the mode is for size."""
    contract = recipe.contract
    if (
        mode not in (*WEIGHT_ONLY, "fp16")
        or not contract.model_fields_set
        or "min_speedup" in contract.model_fields_set
    ):
        return recipe
    return recipe.model_copy(update={"contract": contract.model_copy(update={"min_speedup": 0.0})})


def _imagined(path: Path, source: Graph, options: Options) -> Data | None:
    """Text by a language model itself, where it is small enough to write some in little time."""
    if sum(int(tensor._values.nbytes) for tensor in source.weights()) > SMALL:
        return None
    return imagined(runtime.Session(path, threads=options.threads), options.progress)


def _wishes(source: Graph, recipe: Recipe, mode: Mode, data: Data | None) -> str:
    """What rounded weights depend on, as text: files of the model, what is asked for, and the data."""
    files = [(str(file), stat.st_size, stat.st_mtime_ns) for file in sorted(source.files) for stat in [file.stat()]]
    nodes = [(node.name, node.op, [tensor.name for tensor in node.inputs]) for node in source.nodes]
    known = None if data is None else fingerprint(data, {})
    return canonical([__version__, mode, recipe.model_dump(mode="json"), files, nodes, known])


def _explained(result: Result, build: Build, delivery: Delivery) -> Result:
    """The result that says where the error of its model comes from, or why that cannot be said."""
    options, found, said = delivery.options, None, "no operator was quantized."
    treatments = set() if result.plan is None else {node.treatment for node in result.plan.nodes.values()}
    settings = Settings(threads=options.threads, memory=options.memory, progress=options.progress)
    with build.stage("explain"):
        try:
            if result.plan is not None and treatments != {Treatment.FLOAT}:
                found = examine_plan(delivery.reference[1], result.plan, result.mode, delivery.data, settings)
        except (ModelError, Nothing) as error:
            said = str(error)
    notes = [] if found else [f"Its error was not explained: {said}"]
    changed = {"diagnosis": found, "seconds": build.seconds, "warnings": [*result.warnings, *notes]}
    return result.model_copy(update=changed)


def _written(result: Result, prompt: Prompt | None, build: Build, delivery: Delivery) -> Result:
    """The result that says what its model and the float model write after the prompt, or why that cannot be said."""
    if prompt is None:
        return result
    if result.status != "optimized" or result.output is None:
        said = "the model is as it was." if result.status == "left alone" else "no model was written."
        return result.model_copy(update={"warnings": [*result.warnings, f"No texts were compared: {said}"]})
    with build.stage("generate"):
        found = _continued(delivery.reference[0], Path(result.output), prompt, delivery.options)
    return result.model_copy(update={"generation": found, "seconds": build.seconds})


def _continued(
    reference: Path, candidate: Path, prompt: Prompt, options: Options, provider: str | None = None
) -> Continuations:
    """What two models write, on the first provider of the options if none is named."""
    provider = provider or options.providers[0]
    one, other = (runtime.Session(path, provider=provider, threads=options.threads) for path in (reference, candidate))
    return compare_generation(one, other, prompt, options.seconds)


def _check_keep_best(model: Source, target: Path | None, place: Path | None) -> None:
    """Find out before the work whether the best model can be kept. Raises OutputError."""
    if place is None:
        return
    check_output(model, place, "--keep-best")
    if target is not None and place.resolve() == target.resolve():
        raise OutputError(f"The output and the best model to keep are both '{place}'. Name two files.")


def _check_frontier(model: Source, source: Graph, target: Path | None, options: Options) -> None:
    """Find out before the work whether a frontier can be written. Raises OutputError."""
    if options.frontier is None:
        return
    own = [Path(model)] if isinstance(model, (str, Path)) else []
    needed = [*own, *source.files, *([options.keep_best] if options.keep_best else [])]
    check_places(options.frontier, target or NAMELESS, needed)


def calibrate(
    model: Source,
    output: Path | str,
    *,
    data: DataSource,
    recipe: Recipe | Path | str | None = None,
    options: Options | None = None,
) -> dict[str, Any]:
    """Collect the statistics that a static plan needs, and save them as .npz; files of several runs can be joined.

    Returns:
        The file, the number of samples and tensors, and non-finite counts by tensor.

    Raises:
        As `optimize`.
    """
    options = options or Options()
    source, target = load(model), Path(output)
    check_output(model, target)
    build = Build(source.copy(), recipe_of(recipe), "static-int8", progress=options.progress)
    feeds = at_most(open_data(data, source.interface().inputs), options.samples)
    try:
        with named(model):
            placement = prepare(build)
    except Nothing as nothing:
        raise ModelError(f"There is nothing to calibrate. {nothing}") from None
    found = calibrate_graph(build, placement, feeds, options.threads, options.memory)
    with replacing(target) as file:
        save_statistics(found, file)
    odd = {name: seen.histogram.non_finite for name, seen in found.items() if seen.histogram.non_finite}
    return {"output": str(target), "samples": len(feeds), "tensors": len(found), "non_finite": odd}


def validate(
    reference: Source,
    candidate: Source,
    *,
    data: DataSource,
    contract: Contract | None = None,
    options: Options | None = None,
) -> list[Proof]:
    """Compare any two models with the same inputs on the same data, on every provider of the options.

    Args:
        reference: the float model.
        candidate: what it became.
        data: what to run them on.
        contract: what accuracy is measured by; `onnxq.contract.judge` holds the proofs against it.
        options: how to go about it.

    Raises:
        ModelError: a model cannot be read, or their inputs and outputs differ.
        ProviderError: a provider is not installed.
        DataError: the data does not fit.
        RecipeError: the metric of the contract does not fit the model or the data, or no text can be generated.
    """
    options = options or Options()
    runtime.check_providers(options.providers)
    first, second = load(reference), load(candidate)
    _same_interface(first, second)
    feeds = open_data(data, first.interface().inputs)
    check(contract or Contract(), feeds)
    prompt = find_prompt(options, feeds, first.interface())
    with as_file(reference, first) as one, as_file(candidate, second) as other, named(candidate):
        with named(reference):
            typed(first)
        proofs = [
            prove(
                (one, first),
                (other, second),
                feeds,
                seen=False,
                float_nodes={},
                provider=provider,
                threads=options.threads,
                batch=options.batch,
                seconds=options.seconds,
                layers=provider == options.providers[0],
                contract=contract,
                progress=options.progress,
            )
            for provider in options.providers
        ]
        if prompt is None:
            return proofs
        texts = [_continued(one, other, prompt, options, proof.provider) for proof in proofs]
        return [proof.model_copy(update={"generation": found}) for proof, found in zip(proofs, texts, strict=True)]


def evaluate(
    model: Source,
    *,
    data: DataSource,
    metric: str = "auto",
    batch: int | None = None,
    options: Options | None = None,
) -> Evaluation:
    """Say what one model is worth, float or quantized, on the first provider of the options.

    Args:
        model: a path, the bytes of a model, or a `ModelProto`.
        data: what to run it on.
        metric: `perplexity` of the next token, `top1` of labels, `module:function`, or `auto`: what fits.
        batch: samples that run at once; None: as many as `validate` takes.
        options: how to go about it.

    Raises:
        ModelError: the model cannot be read, or the runtime refuses it.
        ProviderError: the provider is not installed.
        DataError: the data does not fit.
        RecipeError: the metric compares two models, or fits neither this one nor its data.
    """
    options = options or Options()
    runtime.check_providers(options.providers)
    graph, provider = load(model), options.providers[0]
    feeds = open_data(data, graph.interface().inputs)
    check_single(metric, feeds)
    with as_file(model, graph) as file, named(model):
        session = runtime.Session(file, provider=provider, threads=options.threads)
        return evaluate_session(session, feeds, metric, provider, batch, options.progress)


def explain(
    reference: Source,
    candidate: Source,
    *,
    data: DataSource,
    top: int = 5,
    samples: int = SAMPLES,
    options: Options | None = None,
) -> Diagnosis:
    """Say where the error of a quantized model comes from, whoever quantized it, and what would help.

    Args:
        reference: the float model.
        candidate: what a quantizer made of it.
        data: what to run them on.
        top: operators for which cures are simulated.
        samples: samples on which noise is measured; ranks of operators settle with few.
        options: threads, memory and progress count.

    Raises:
        ModelError: a model cannot be read, their interfaces differ, the first is quantized, or the second is not.
        DataError: the data does not fit.
    """
    options = options or Options()
    first, second = load(reference), load(candidate)
    _same_interface(first, second)
    feeds = open_data(data, first.interface().inputs)
    with named(reference):
        first = normal(first)
    with as_file(candidate, second) as file, named(candidate):
        measured, second = runtime.Session(file, threads=options.threads), normal(second)
    settings = Settings(top, samples, options.threads, options.memory, options.progress)
    return examine(first, second, measured.run, feeds, settings)


def _same_interface(first: Graph, second: Graph) -> None:
    a, b = first.interface(), second.interface()
    for kind, one, other in (("input", a.inputs, b.inputs), ("output", a.outputs, b.outputs)):
        names = [spec.name for spec in one], [spec.name for spec in other]
        if names[0] != names[1]:
            raise ModelError(
                f"The {kind}s of the two models differ: {', '.join(names[0])} and {', '.join(names[1])}. "
                "Compare models of the same interface."
            )


def bench(
    models: Sequence[Path | str],
    *,
    data: DataSource = "random",
    options: Options | None = None,
    seconds: float = 5.0,
) -> list[dict[str, Any]]:
    """Time several models with the same inputs in one interleaved run.

    Returns:
        For each model: path, milliseconds, speed-up over the first, provider, threads, batch, kernels by operator.
    """
    options = options or Options()
    if not models:
        raise DataError("Name at least one model to time.")
    runtime.check_providers(options.providers)
    graphs = [load(path) for path in models]
    for graph in graphs[1:]:
        _same_interface(graphs[0], graph)
    feeds = next(open_data(data, graphs[0].interface().inputs).batches(options.batch))
    provider = options.providers[0]
    sessions = []
    for path in models:
        with named(path):
            sessions.append(runtime.Session(Path(path), provider=provider, threads=options.threads))
    timings = runtime.interleave(sessions, feeds, seconds=seconds * len(models), rounds=200)
    rows = []
    for path, timing in zip(models, timings, strict=True):
        recorded = runtime.Session(Path(path), provider=provider, threads=options.threads, profile=True)
        recorded.run(feeds)
        counts, _ = by_operator(recorded.kernels())
        rows.append(
            {
                "model": str(path),
                "milliseconds": timing.milliseconds,
                "speedup": timing.speedup,
                "provider": provider,
                "threads": options.threads,
                "batch": batch_size(feeds),
                "kernels": counts,
            }
        )
    return rows


def inspect(model: Source) -> Summary:
    """What is in a model: operators, types, sizes, and what is quantized how. Raises ModelError."""
    return summarize(load(model))


def describe_passes() -> list[dict[str, str]]:
    """Every pass in order: stage, name, what it does, what it promises."""
    return [
        {
            "stage": stage,
            "name": type(step).__name__,
            "does": (type(step).__doc__ or "").splitlines()[0],
            "promise": str(step.promise),
        }
        for stage, steps in PIPELINES.items()
        for step in steps
    ]
