"""`onnxq finetune` and the options that only it has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxq import flags, wishes
from onnxq.reporting import check_outputs, check_page, report, told, write_page, write_plan

TRAINING = "Training"  # the panel of --help

Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar=flags.SOURCE,
        rich_help_panel=flags.DATA,
        help="What to calibrate on and to learn from, as for optimize; 'labels' count for --loss labels alone. "
        "A part is held back for validation. Without data, a small language model learns from text that it writes.",
        show_default=False,
    ),
]
RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME|FILE",
        rich_help_panel=flags.RECIPE,
        help="static-int8 (default), weight-int8 or weight-int4, or a .toml file; flags override the file.",
        show_default=False,
    ),
]
Method = Annotated[
    str,
    typer.Option(
        "--train",
        metavar="NAME",
        rich_help_panel=TRAINING,
        help="What is trained: lsq (weights, biases and scales together, from the outputs), or blocks (how weights are "
        "rounded, and the scales of activations, one block of the model after the other: for few samples).",
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps",
        metavar="N",
        min=1,
        rich_help_panel=TRAINING,
        help="Batches to learn from; with blocks, for each block. 1000 if left out.",
        show_default=False,
    ),
]
TrainBatch = Annotated[
    int, typer.Option("--train-batch", metavar="N", min=1, rich_help_panel=TRAINING, help="Samples of such a batch.")
]
Rate = Annotated[
    float | None,
    typer.Option(
        "--rate",
        metavar="R",
        rich_help_panel=TRAINING,
        help="How far a step moves a weight at first, as a share of a step of its grid; 0.01 for 4 bits, 0.001 for 8 "
        "if left out.",
        show_default=False,
    ),
]
Loss = Annotated[
    str,
    typer.Option(
        "--loss",
        metavar="NAME",
        rich_help_panel=TRAINING,
        help="What is made small: distill (how far outputs are from those of the float model), labels (cross entropy), "
        "or MODULE:FUNCTION, called with (outputs, targets, feeds, labels): tensors by name; it returns one number.",
    ),
]
Features = Annotated[
    list[str] | None,
    typer.Option(
        "--feature",
        metavar="PATTERN",
        rich_help_panel=TRAINING,
        help="Inner tensors to be met too, by name or a pattern with *. May be repeated.",
        show_default=False,
    ),
]
Mix = Annotated[
    bool | None,
    typer.Option(
        "--mix/--no-mix",
        rich_help_panel=TRAINING,
        help="Whether samples are blended with each other; they are where all inputs are floats and none is labelled.",
        show_default=False,
    ),
]
Hold = Annotated[
    float,
    typer.Option(
        "--hold",
        metavar="SHARE",
        rich_help_panel=TRAINING,
        help="Of the samples, to tell which state is the best one instead of learning from them.",
    ),
]
Patience = Annotated[
    int,
    typer.Option(
        "--patience",
        metavar="N",
        min=0,
        rich_help_panel=TRAINING,
        help="Stop after so many looks (of 20) without progress; 0 for never.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, rich_help_panel=TRAINING, help="Of all chance.")]
Device = Annotated[
    str,
    typer.Option("--device", metavar="NAME", rich_help_panel=TRAINING, help="Where to train: cpu, cuda, or auto."),
]
TrainThreads = Annotated[
    int,
    typer.Option(
        "--train-threads",
        metavar="N",
        min=0,
        rich_help_panel=TRAINING,
        help="Threads of PyTorch; 0 is its own choice. Another number gives other last bits.",
    ),
]
CheckpointFile = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        metavar="FILE",
        rich_help_panel=TRAINING,
        help="Keep the state there; if the file exists, go on from it, with the same result as in one go.",
        show_default=False,
    ),
]


def finetune(
    context: typer.Context,
    model: flags.Model,
    output: flags.Output = None,
    data: Data = None,
    validation: flags.Validation = None,
    samples: flags.Samples = 128,
    memory: flags.Memory = None,
    recipe: RecipeName = None,
    format: flags.Format = None,
    range_rule: flags.RangeRule = None,
    activations: flags.Activations = None,
    activation_bits: flags.ActivationBits = None,
    symmetric: flags.Symmetric = None,
    weights: flags.Weights = None,
    per_channel: flags.PerChannel = None,
    block_size: flags.BlockSize = None,
    bits: flags.Bits = None,
    balance: flags.Balance = None,
    keep_float: flags.KeepFloat = None,
    plan: flags.PlanFile = None,
    train: Method = "lsq",
    steps: Steps = None,
    train_batch: TrainBatch = 32,
    rate: Rate = None,
    loss: Loss = "distill",
    feature: Features = None,
    mix: Mix = None,
    hold: Hold = 0.125,
    patience: Patience = 0,
    seed: Seed = 0,
    device: Device = "auto",
    train_threads: TrainThreads = 0,
    checkpoint: CheckpointFile = None,
    metric: flags.MetricName = None,
    max_drop: flags.MaxDrop = None,
    min_speedup: flags.MinSpeedup = None,
    max_size: flags.MaxSize = None,
    threads: flags.Threads = 1,
    batch: flags.Batch = 1,
    seconds: flags.Seconds = 3.0,
    force: flags.Force = False,
    cache: flags.CacheFolder = None,
    no_cache: flags.NoCache = False,
    save_plan: flags.SavePlan = None,
    page: flags.Report = None,
    as_json: flags.AsJson = False,
    quiet: flags.Quiet = False,
) -> int:
    """Quantize a float model and train it to be close to itself again: no labels, no training code. Needs PyTorch.

        onnxq finetune model.onnx --data images.npz --bits 4 --activation-bits 4

    The recipe is static-int8 if none is named; weight-int4 and weight-int8 are for language models.
    """
    from onnxq import finetuning, lesson_table
    from onnxq.curriculum import make_curriculum
    from onnxq.options import Options
    from onnxq.plan import read_plan

    asked = wishes.asked_of(
        recipe, keep_float, symmetric, format=format, balance=balance, activations=activations, range=range_rule,
        activation_bits=activation_bits, weights=weights, per_channel=per_channel, bits=bits,
        block_size=wishes.block_size_of(block_size), metric=metric, max_drop=max_drop, min_speedup=min_speedup,
        max_size=max_size,
    )  # fmt: skip
    wishes.check_plan(plan, recipe, asked)
    curriculum = make_curriculum(
        method=train, steps=steps, batch=train_batch, rate=rate, loss=loss, features=feature or (), mix=mix, hold=hold,
        patience=patience, seed=seed, device=device, threads=train_threads,
    )  # fmt: skip
    memo, chosen = wishes.memo_of(cache, no_cache), wishes.make_wish(recipe or "static-int8", asked)
    followed = None if plan is None else read_plan(plan)
    for written in (output, save_plan, checkpoint, page):
        wishes.keep_apart(written, data=data, validation=validation, recipe=recipe, plan=plan)
    check_outputs(model, {"--output": output, "--save-plan": save_plan, "--checkpoint": checkpoint, "--report": page})
    check_page(page)
    with told(quiet) as progress:
        result = finetuning.finetune(
            model,
            output,
            data=data,
            validation=validation,
            recipe=chosen,
            plan=followed,
            curriculum=curriculum,
            checkpoint=checkpoint,
            options=Options(
                samples=samples,
                threads=threads,
                batch=batch,
                seconds=seconds,
                memory=wishes.bytes_of(memory),
                force=force,
                memo=memo,
                progress=progress,
            ),
        )
    result = write_plan(result, save_plan)
    contract = (followed.recipe if followed else chosen).contract
    shown = result.shown()
    write_page(shown, page, context, model.name)
    report(shown, lambda: lesson_table.lesson(model, result, contract), as_json, quiet, page)
    return 1 if result.status == "rejected" else 0
