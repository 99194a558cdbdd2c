"""What a pipeline calls: each function strings the floors together on one page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from onnxq import runtime
from onnxq.build import Build, Nothing, build_model, calibrate_graph, choose_mode, prepare, typed
from onnxq.calibration.collect import Progress, save_statistics, silent
from onnxq.calibration.data import Data, DataSource, open_data
from onnxq.errors import DataError, ModelError, RecipeError, UnsupportedModel
from onnxq.graph import Graph
from onnxq.inspection import Summary, summarize
from onnxq.modelfile import Source, check_output, load, replacing, save
from onnxq.passes import PIPELINES
from onnxq.plan import Plan
from onnxq.proof import Proof, batch_size, by_operator, prove
from onnxq.recipe import Mode, Recipe
from onnxq.result import Rejected, Result, broken, float_nodes, make_result


@dataclass(frozen=True)
class Options:
    """How to go about it; none of these changes what is asked for.

    Attributes:
        samples: how many samples calibrate at most.
        threads: threads of the runtime; 0 is its own choice.
        batch: samples in the batch whose latency is measured.
        seconds: time for the latency measurement.
        memory: bytes that the activations of one calibration batch may take; None is no limit.
        check: whether to validate; without it nothing is proven.
        force: write the model even where validation rejects it.
        providers: execution providers that validate; the first one is timed.
        progress: told what is going on.
    """

    samples: int = 128
    threads: int = 1
    batch: int = 1
    seconds: float = 3.0
    memory: int | None = None
    check: bool = True
    force: bool = False
    providers: tuple[str, ...] = (runtime.CPU,)
    progress: Progress = silent


def optimize(
    model: Source,
    output: Path | str | None = None,
    *,
    data: DataSource | None = None,
    validation: DataSource | None = None,
    recipe: Recipe | None = None,
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
        recipe: what to build; `Recipe()` decides by itself.
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
    target = _target(model, output)
    wanted = plan.recipe if plan else recipe or Recipe()
    feeds = None if data is None else open_data(data, source.interface().inputs)
    mode = choose_mode(wanted, bool(feeds or plan or statistics)) if not _has_scales(source) else "static-int8"
    build = Build(source.copy(), wanted, mode, progress=options.progress)
    with _as_file(model, source) as reference, _named(model):
        calibration, held = _split(feeds, options.samples, mode, build)
        if validation is not None:
            calibration = _at_most(feeds, options.samples) if feeds else None
            held = open_data(validation, source.interface().inputs)
        try:
            files = [Path(path) for path in statistics]
            build_model(build, plan, calibration, files, options.threads, options.memory)
        except Nothing as nothing:
            return _left_alone(str(nothing), build, reference, source, target)
        tested = held if held is not None else open_data("random", source.interface().inputs)
        seen = held is not None and held is calibration
        result = _write(build, (reference, source), target, tested, seen, options)
        used = len(calibration) if calibration and build.plan and not plan and not statistics else 0
        return result.model_copy(update={"calibrated": used})


def _write(
    build: Build, reference: tuple[Path, Graph], target: Path | None, data: Data, seen: bool, options: Options
) -> Result:
    """Write, prove, and take back what proves to be broken."""
    with TemporaryDirectory(prefix="onnxq.") as scratch:
        place = target or Path(scratch) / "model.onnx"
        try:
            with replacing(place) as file:
                with build.stage("write"):
                    save(build.graph, file)
                with build.stage("validate"):
                    proof = _proof(build, reference, file, data, seen, options)
                result = make_result(build, "optimized", "", target, proof, data.is_random)
                reason = broken(proof) if not data.is_random else ""
                if reason and not options.force:
                    raise Rejected(reason)
                return result
        except Rejected as rejection:
            return make_result(build, "rejected", str(rejection), None, proof, data.is_random)


def _proof(
    build: Build, reference: tuple[Path, Graph], file: Path, data: Data, seen: bool, options: Options
) -> Proof | None:
    if not options.check:
        runtime.Session(file, threads=options.threads)  # what the runtime refuses is not written
        return None
    return prove(
        (reference[0], typed(reference[1])),
        (file, load(file)),
        data,
        seen=seen,
        float_nodes=float_nodes(build),
        layers=not _has_scales(reference[1]),  # inner tensors of two quantized models do not correspond
        provider=options.providers[0],
        threads=options.threads,
        batch=options.batch,
        seconds=options.seconds,
        progress=options.progress,
    )


def _has_scales(graph: Graph) -> bool:
    return summarize(graph).quantized != "float"


def _split(feeds: Data | None, samples: int, mode: Mode, build: Build) -> tuple[Data | None, Data | None]:
    """Data for calibration and for validation; the same where there is one sample only."""
    if feeds is None:
        return None, None
    if len(feeds) < 2:
        build.warnings.append("One sample only: validated on what calibration saw. Give more data, or --validation.")
        return feeds, feeds
    calibration, held = feeds.split(min(samples, len(feeds) - max(1, len(feeds) // 4)))
    return calibration, held


def _at_most(feeds: Data, samples: int) -> Data:
    """So many samples, spread over all of them."""
    return feeds.split(samples)[0] if len(feeds) > samples else feeds


def _target(model: Source, output: Path | str | None) -> Path | None:
    """Where to write. Raises OutputError where that cannot be."""
    if output is None and not isinstance(model, (str, Path)):
        return None
    target = Path(output) if output is not None else Path(str(model)).with_suffix(".int8.onnx")
    check_output(model, target)
    return target


@contextmanager
def _as_file(model: Source, graph: Graph) -> Iterator[Path]:
    """The float model as a file: its own, or a temporary one for a model that is only in memory."""
    if isinstance(model, (str, Path)):
        yield Path(model)
        return
    with TemporaryDirectory(prefix="onnxq.") as folder:
        file = Path(folder) / "model.onnx"
        save(graph, file)
        yield file


@contextmanager
def _named(model: Source) -> Iterator[None]:
    """What the runtime refuses is said with the name of the file."""
    try:
        yield
    except UnsupportedModel as error:
        if not isinstance(model, (str, Path)) or str(error).startswith("'"):
            raise
        raise UnsupportedModel(f"'{Path(model).name}': {error}") from None


def _left_alone(reason: str, build: Build, reference: Path, source: Graph, target: Path | None) -> Result:
    """The model as it was, with the reason; it must load, or there is nothing to hand on."""
    runtime.Session(reference, threads=1)
    build.changes.clear()  # what was tried on the way is not in the file
    if target is not None:
        with replacing(target) as file:
            if source.files:
                save(source, file)
            else:
                shutil.copyfile(reference, file)
    return make_result(build, "left alone", reason, target, None, False)


def calibrate(
    model: Source,
    output: Path | str,
    *,
    data: DataSource,
    recipe: Recipe | None = None,
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
    build = Build(source.copy(), recipe or Recipe(), "static-int8", progress=options.progress)
    feeds = _at_most(open_data(data, source.interface().inputs), options.samples)
    try:
        with _named(model):
            placement = prepare(build)
    except Nothing as nothing:
        raise ModelError(f"There is nothing to calibrate. {nothing}") from None
    found = calibrate_graph(build, placement, feeds, options.threads, options.memory)
    with replacing(target) as file:
        save_statistics(found, file)
    odd = {name: seen.histogram.non_finite for name, seen in found.items() if seen.histogram.non_finite}
    return {"output": str(target), "samples": len(feeds), "tensors": len(found), "non_finite": odd}


def validate(reference: Source, candidate: Source, *, data: DataSource, options: Options | None = None) -> list[Proof]:
    """Compare any two models with the same inputs on the same data, on every provider of the options.

    Raises:
        ModelError: a model cannot be read, or their inputs and outputs differ.
        ProviderError: a provider is not installed.
        DataError: the data does not fit.
    """
    options = options or Options()
    runtime.check_providers(options.providers)
    first, second = load(reference), load(candidate)
    _same_interface(first, second)
    feeds = open_data(data, first.interface().inputs)
    with _as_file(reference, first) as one, _as_file(candidate, second) as other, _named(candidate):
        with _named(reference):
            typed(first)
        return [
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
                progress=options.progress,
            )
            for provider in options.providers
        ]


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
        with _named(path):
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
