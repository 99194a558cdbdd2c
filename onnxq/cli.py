"""Words in, one call of the API, text or JSON out. What a command needs is imported when it runs: `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnxq import __version__, diff_command, finetune_command, flags, lint_command, schema_command, wishes
from onnxq.errors import RecipeError
from onnxq.reporting import check_outputs, check_page, report, told, write_page, write_plan

if TYPE_CHECKING:
    from onnxq.proof import Proof
    from onnxq.recipe import Contract

CPU = "CPUExecutionProvider"

app = typer.Typer(
    name="onnxq",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"onnxq {__version__}")
        raise typer.Exit(0)


@app.callback()
def onnxq(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Make ONNX models small and fast without breaking them: calibrate, quantize, fold, validate.

    Exit codes: 0 done, 1 checked and found wanting, 2 wrong use or bad input.
    """


@app.command()
def optimize(
    context: typer.Context,
    model: flags.Model,
    output: flags.Output = None,
    data: flags.CalibrationData = None,
    validation: flags.Validation = None,
    statistics: flags.StatisticsFiles = None,
    samples: flags.Samples = 128,
    memory: flags.Memory = None,
    recipe: flags.RecipeName = None,
    target: flags.Target = None,
    format: flags.Format = None,
    range_rule: flags.RangeRule = None,
    percent: flags.Percent = None,
    least_sqnr: flags.LeastSqnr = None,
    activations: flags.Activations = None,
    activation_bits: flags.ActivationBits = None,
    symmetric: flags.Symmetric = None,
    weights: flags.Weights = None,
    per_channel: flags.PerChannel = None,
    method: flags.RoundingMethod = None,
    fit: flags.Fit = None,
    block_size: flags.BlockSize = None,
    bits: flags.Bits = None,
    balance: flags.Balance = None,
    keep_float: flags.KeepFloat = None,
    plan: flags.PlanFile = None,
    metric: flags.MetricName = None,
    max_drop: flags.MaxDrop = None,
    min_speedup: flags.MinSpeedup = None,
    max_size: flags.MaxSize = None,
    keep_best: flags.KeepBest = None,
    frontier: flags.FrontierFolder = None,
    explained: flags.Explained = False,
    generate: flags.Generate = None,
    prompt: flags.Prompt = None,
    tokenizer: flags.Tokenizer = None,
    threads: flags.Threads = 1,
    batch: flags.Batch = 1,
    seconds: flags.Seconds = 3.0,
    check: flags.Check = True,
    force: flags.Force = False,
    cache: flags.CacheFolder = None,
    no_cache: flags.NoCache = False,
    save_plan: flags.SavePlan = None,
    page: flags.Report = None,
    as_json: flags.AsJson = False,
    quiet: flags.Quiet = False,
) -> int:
    """Turn a float model into a small and fast one, and prove that it still computes the same.

        onnxq optimize model.onnx --data calibration.npz

    Without data, the linear layers find the scales of their inputs on each run (dynamic-int8).
    """
    from onnxq import api, diagnosis_table, tables
    from onnxq.options import Options
    from onnxq.plan import read_plan

    limits = {"metric": metric, "max_drop": max_drop, "min_speedup": min_speedup, "max_size": max_size}
    asked = wishes.asked_of(
        recipe, keep_float, symmetric, target=target, format=format, least_sqnr=least_sqnr, balance=balance,
        activations=activations, activation_bits=activation_bits, range=range_rule, percent=percent,
        weights=weights, bits=bits, per_channel=per_channel, method=method, fit=fit,
        block_size=wishes.block_size_of(block_size), **limits,
    )  # fmt: skip
    wishes.check_plan(plan, recipe, asked)
    if not check and (wishes.given(limits) or keep_best is not None):
        raise RecipeError("--no-validate leaves nothing to judge a contract by. Leave it out, or the contract.")
    memo = wishes.memo_of(cache, no_cache)
    chosen = wishes.make_wish(recipe, asked)
    followed = None if plan is None else read_plan(plan)
    for written in (output, save_plan, keep_best, page):
        wishes.keep_apart(written, data=data, validation=validation, recipe=recipe, plan=plan)
    check_outputs(model, {"--output": output, "--save-plan": save_plan, "--keep-best": keep_best, "--report": page})
    check_page(page)
    with told(quiet) as progress:
        result = api.optimize(
            model,
            output,
            data=data,
            validation=validation,
            recipe=chosen,
            plan=followed,
            statistics=statistics or (),
            options=Options(
                samples=samples,
                threads=threads,
                batch=batch,
                seconds=seconds,
                memory=wishes.bytes_of(memory),
                check=check,
                force=force,
                keep_best=keep_best,
                frontier=frontier,
                explain=explained,
                generate=generate or 0,
                prompt=prompt,
                tokenizer=tokenizer,
                memo=memo,
                progress=progress,
            ),
        )
    result = write_plan(result, save_plan)
    contract = (followed.recipe if followed else chosen).contract
    shown = result.shown()
    write_page(shown, page, context, model.name)
    report(shown, lambda: diagnosis_table.below(tables.result(model, result, contract), result), as_json, quiet, page)
    return 1 if result.status == "rejected" else 0


app.command()(finetune_command.finetune)
app.command()(diff_command.diff)


@app.command()
def calibrate(
    model: flags.Model,
    output: flags.StatisticsOutput,
    data: flags.NeededData,
    samples: flags.Samples = 128,
    memory: flags.Memory = None,
    recipe: flags.RecipeName = None,
    target: flags.Target = None,
    keep_float: flags.KeepFloat = None,
    threads: flags.Threads = 1,
    as_json: flags.AsJson = False,
    quiet: flags.Quiet = False,
) -> int:
    """Collect the statistics of activations for `optimize --statistics`; files of several runs can be joined."""
    from onnxq import api, tables
    from onnxq.options import Options

    chosen = wishes.make_wish(recipe, wishes.asked_of(recipe, keep_float, target=target))
    wishes.keep_apart(output, data=data, recipe=recipe)
    with told(quiet) as progress:
        options = Options(samples=samples, threads=threads, memory=wishes.bytes_of(memory), progress=progress)
        found = api.calibrate(model, output, data=data, recipe=chosen, options=options)
    report(found, lambda: tables.calibration(found), as_json, quiet)
    return 0


@app.command()
def inspect(model: flags.Model, as_json: flags.AsJson = False, quiet: flags.Quiet = False) -> int:
    """Show what is in a model: interface, operators, sizes, and what is quantized how."""
    from onnxq import api, tables

    found = api.inspect(model)
    report(found, lambda: tables.summary(model, found), as_json, quiet)
    return 0


@app.command()
def validate(
    context: typer.Context,
    reference: flags.FloatModel,
    candidate: flags.OtherModel,
    data: flags.NeededData,
    providers: flags.Providers = CPU,
    min_cosine: flags.LeastCosine = 0.9,
    min_agreement: flags.LeastAgreement = None,
    metric: flags.MetricName = None,
    max_drop: flags.LimitedDrop = None,
    generate: flags.Generate = None,
    prompt: flags.Prompt = None,
    tokenizer: flags.Tokenizer = None,
    threads: flags.Threads = 1,
    batch: flags.Batch = 1,
    seconds: flags.Seconds = 3.0,
    page: flags.Report = None,
    as_json: flags.AsJson = False,
    quiet: flags.Quiet = False,
) -> int:
    """Compare a quantized model with its float model: accuracy, speed, size, and the kernels that ran."""
    from onnxq import api, tables
    from onnxq.options import Options

    limits = wishes.asked_of(None, metric=metric, max_drop=max_drop, min_speedup=0)
    contract = wishes.make_wish(None, limits).contract
    _check_pair(reference, candidate, data, page)
    with told(quiet) as progress:
        options = Options(
            threads=threads,
            batch=batch,
            seconds=seconds,
            generate=generate or 0,
            prompt=prompt,
            tokenizer=tokenizer,
            providers=_names(providers),
            progress=progress,
        )
        proofs = api.validate(reference, candidate, data=data, contract=contract, options=options)
    wanting = [reason for proof in proofs for reason in shortcomings(proof, min_cosine, min_agreement)]
    judged = None if max_drop is None else contract
    wanting += [reason for proof in proofs for reason in broken_limits(proof, judged)]
    document = {"passed": not wanting, "reasons": wanting, "proofs": proofs}
    write_page(document, page, context, f"{candidate.name} beside {reference.name}")
    report(document, lambda: tables.proofs(candidate, proofs, judged, wanting), as_json, quiet, page)
    return 1 if wanting else 0


def _check_pair(reference: Path, candidate: Path, data: str, page: Path | None) -> None:
    """Find out before the work whether a report of two models can be written."""
    wishes.keep_apart(page, data=data)
    for model in (reference, candidate):
        check_outputs(model, {"--report": page})
    check_page(page)


def broken_limits(proof: Proof, contract: Contract | None) -> list[str]:
    """Where a model loses more than it may, one sentence each. Raises RecipeError where nothing was measured."""
    from onnxq.contract import judge

    if contract is None:
        return []
    if proof.score is None:
        raise RecipeError("--max-drop needs real data and an output that holds numbers: made-up data proves nothing.")
    return [f"On {proof.provider}: {reason}" for reason in judge(contract, proof, random=False).reasons]


def shortcomings(proof: Proof, min_cosine: float, min_agreement: float | None) -> list[str]:
    """Where a model misses what was asked of it, one sentence each. Raises RecipeError where nothing has classes."""
    if min_agreement is not None and all(output.agreement is None for output in proof.outputs.values()):
        raise RecipeError("--min-agreement needs an output with one score per class; there is none. Use --min-cosine.")
    found = []
    for name, output in proof.outputs.items():
        place = f"Output '{name}' on {proof.provider}"
        if not output.finite:
            found.append(f"{place} holds NaN or infinity where the float model's does not.")
        if not output.cosine >= min_cosine:  # so written, NaN is found wanting too
            found.append(f"{place} has a mean cosine of {output.cosine:.5f}, below {min_cosine}.")
        if min_agreement is not None and output.agreement is not None and output.agreement < min_agreement:
            found.append(f"{place} agrees in {100 * output.agreement:.2f} % of cases, below {100 * min_agreement:g} %.")
    return found


@app.command("eval")
def evaluate(
    model: flags.Model,
    data: flags.NeededData,
    metric: flags.SingleMetric = "auto",
    providers: flags.Providers = CPU,
    threads: flags.Threads = 1,
    batch: flags.RunBatch = None,
    as_json: flags.AsJson = False,
    quiet: flags.Quiet = False,
) -> int:
    """Say what one model is worth, float or quantized: perplexity of texts, top-1 of labels, or your own score."""
    from onnxq import api, language_table, runtime
    from onnxq.options import Options

    runtime.check_providers(_names(providers))
    with told(quiet) as progress:
        found = [
            api.evaluate(
                model,
                data=data,
                metric=metric,
                batch=batch,
                options=Options(threads=threads, providers=(name,), progress=progress),
            )
            for name in _names(providers)
        ]
    report({"evaluations": found}, lambda: language_table.evaluations(model, found), as_json, quiet)
    return 0


@app.command()
def explain(
    context: typer.Context,
    reference: flags.FloatModel,
    candidate: flags.OtherModel,
    data: flags.NeededData,
    top: flags.Top = 5,
    samples: flags.NoiseSamples = 4,
    memory: flags.Memory = None,
    threads: flags.Threads = 1,
    page: flags.Report = None,
    as_json: flags.AsJson = False,
    quiet: flags.Quiet = False,
) -> int:
    """Say where the error of a quantized model comes from, whoever quantized it, and what would help."""
    from onnxq import api, diagnosis_table
    from onnxq.options import Options

    _check_pair(reference, candidate, data, page)
    with told(quiet) as progress:
        options = Options(threads=threads, memory=wishes.bytes_of(memory), progress=progress)
        found = api.explain(reference, candidate, data=data, top=top, samples=samples, options=options)
    write_page(found, page, context, f"{candidate.name} beside {reference.name}")
    report(found, lambda: diagnosis_table.diagnosis(candidate.name, found, top), as_json, quiet, page)
    return 0


@app.command()
def bench(
    models: flags.Models,
    data: flags.NeededData = "random",
    providers: flags.Providers = CPU,
    threads: flags.Threads = 1,
    batch: flags.Batch = 1,
    seconds: flags.Seconds = 3.0,
    as_json: flags.AsJson = False,
    quiet: flags.Quiet = False,
) -> int:
    """Time several models of the same interface in one interleaved run; the first is the measure."""
    from onnxq import api, runtime, tables
    from onnxq.options import Options

    runtime.check_providers(_names(providers))
    with told(quiet):
        rows = [
            row
            for name in _names(providers)
            for row in api.bench(
                models,
                data=data,
                options=Options(threads=threads, batch=batch, providers=(name,)),
                seconds=seconds,
            )
        ]
    report({"models": rows}, lambda: tables.timings(rows), as_json, quiet)
    return 0


app.command()(lint_command.lint)


@app.command()
def passes(as_json: flags.AsJson = False, quiet: flags.Quiet = False) -> int:
    """List every pass in the order in which they run, and what each promises."""
    from onnxq import api, tables

    found = api.describe_passes()
    report({"passes": found}, lambda: tables.passes(found), as_json, quiet)
    return 0


app.command()(schema_command.schema)


def _names(providers: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in providers.split(",") if name.strip())
