"""The options of the command line: each is declared once, so that it means the same in every command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SOURCE = "SOURCE"
DATA, RECIPE, CONTRACT, PROOF, RESULT = "Data", "Recipe", "Contract", "Proof", "Result"  # the panels of --help

Model = Annotated[Path, typer.Argument(help="The ONNX model.", show_default=False)]
FloatModel = Annotated[Path, typer.Argument(help="The float model.", show_default=False)]
OtherModel = Annotated[Path, typer.Argument(help="What it became.", show_default=False)]
Models = Annotated[list[Path], typer.Argument(help="The ONNX models.", show_default=False)]

Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        rich_help_panel=RESULT,
        help="Where to write; NAME.int8.onnx beside the model if left out.",
        show_default=False,
    ),
]
StatisticsOutput = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="FILE", rich_help_panel=RESULT, help="Where to write (.npz).", show_default=False
    ),
]
CalibrationData = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar=SOURCE,
        rich_help_panel=DATA,
        help="What to calibrate and validate on: FILE.npz, a FOLDER of .npz or of test_data_set_*, images:FOLDER, "
        "text:FILE, python:MODULE:FUNCTION, or random. A part is held back for validation.",
        show_default=False,
    ),
]
NeededData = Annotated[
    str,
    typer.Option(
        "--data",
        metavar=SOURCE,
        rich_help_panel=DATA,
        help="What to run on: FILE.npz, a FOLDER of .npz or of test_data_set_*, images:FOLDER, text:FILE, "
        "python:MODULE:FUNCTION, or random.",
        show_default=False,
    ),
]
Validation = Annotated[
    str | None,
    typer.Option(
        "--validation",
        metavar=SOURCE,
        rich_help_panel=DATA,
        help="Validate on this instead of on a part of --data.",
        show_default=False,
    ),
]
StatisticsFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--statistics",
        metavar="FILE",
        rich_help_panel=DATA,
        help="What `onnxq calibrate` wrote, instead of calibrating again; several files are joined.",
        show_default=False,
    ),
]
Samples = Annotated[
    int, typer.Option("--samples", metavar="N", min=1, rich_help_panel=DATA, help="How many samples calibrate at most.")
]
NoiseSamples = Annotated[
    int,
    typer.Option("--samples", metavar="N", min=1, rich_help_panel=DATA, help="On how many samples noise is measured."),
]
Top = Annotated[
    int,
    typer.Option(
        "--top", metavar="N", min=0, rich_help_panel=RESULT, help="For how many operators cures are simulated."
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        rich_help_panel=DATA,
        help="What the activations of a calibration batch may take, like 2GB or 500MB.",
        show_default=False,
    ),
]

RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME|FILE",
        rich_help_panel=RECIPE,
        help="auto (default: mixed-int8 with data, dynamic-int8 without), mixed-int8 (each layer static, dynamic or "
        "float, by measured noise and time), static-int8, dynamic-int8, weight-int8, weight-int4, fp16, or a .toml "
        "file; flags override the file.",
        show_default=False,
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="NAME",
        rich_help_panel=RECIPE,
        help="What it will run on: cpu (default) or cuda, which is for fp16 (its default), weight-int8 and "
        "weight-int4; and for TensorRT, static-int8 --format qdq --activations int8 --symmetric.",
        show_default=False,
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="NAME",
        rich_help_panel=RECIPE,
        help="integer (default): integer operators; qdq: Q/DQ pairs for the runtime to fold.",
        show_default=False,
    ),
]
RangeRule = Annotated[
    str | None,
    typer.Option(
        "--range",
        metavar="RULE",
        rich_help_panel=RECIPE,
        help="How the range of an activation is chosen: auto (default: what leaves the least noise), minmax, "
        "moving-average, percentile, entropy or mse.",
        show_default=False,
    ),
]
Percent = Annotated[
    float | None,
    typer.Option(
        "--percent",
        metavar="P",
        rich_help_panel=RECIPE,
        help="What the percentile rule keeps; 99.99 if left out.",
        show_default=False,
    ),
]
LeastSqnr = Annotated[
    float | None,
    typer.Option(
        "--least-sqnr",
        metavar="DB",
        rich_help_panel=RECIPE,
        help="Signal to noise that the outputs should keep; below it the noisiest layers stay in float. 12 if left "
        "out, 0 for never.",
        show_default=False,
    ),
]
Activations = Annotated[
    str | None,
    typer.Option(
        "--activations",
        metavar="TYPE",
        rich_help_panel=RECIPE,
        help="The type of activations: uint8 (default) or int8.",
        show_default=False,
    ),
]
Symmetric = Annotated[
    bool | None,
    typer.Option(
        "--symmetric/--affine",
        rich_help_panel=RECIPE,
        help="Whether 0 lies in the middle of the range of an activation, or of a weight for weight-int8 and "
        "weight-int4; affine is the default.",
        show_default=False,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="TYPE",
        rich_help_panel=RECIPE,
        help="The type of weights: int8 (default) or uint8.",
        show_default=False,
    ),
]
RoundingMethod = Annotated[
    str | None,
    typer.Option(
        "--method",
        metavar="NAME",
        rich_help_panel=RECIPE,
        help="How weight-int8 and weight-int4 round: rtn (to nearest, on grids with the least squared error), hqq, "
        "awq, gptq, or auto (default: gptq with data, rtn without).",
        show_default=False,
    ),
]
Fit = Annotated[
    bool | None,
    typer.Option(
        "--fit/--no-fit",
        rich_help_panel=RECIPE,
        help="Whether rtn fits its grids (default), or just covers the range of a block, several times as quickly.",
        show_default=False,
    ),
]
BlockSize = Annotated[
    str | None,
    typer.Option(
        "--block-size",
        metavar="N",
        rich_help_panel=RECIPE,
        help="Weights that share a scale for weight-int8 and weight-int4: 16, 32 (default), 64, 128, 256 or channel. "
        "Larger is smaller and faster, and less accurate.",
        show_default=False,
    ),
]
Bits = Annotated[
    float | None,
    typer.Option(
        "--bits",
        metavar="B",
        rich_help_panel=RECIPE,
        help="Of weights in blocks on average, like 4.5: the layers that need it most get 8 bits, the others 4. Of "
        "weights of static-int8: 2 to 8.",
        show_default=False,
    ),
]
ActivationBits = Annotated[
    int | None,
    typer.Option(
        "--activation-bits",
        metavar="B",
        rich_help_panel=RECIPE,
        help="Of activations of static-int8, 2 to 8; fewer than 8 run on 8-bit kernels, and are no faster.",
        show_default=False,
    ),
]
PerChannel = Annotated[
    bool | None,
    typer.Option(
        "--per-channel/--per-tensor",
        rich_help_panel=RECIPE,
        help="One scale for each output channel of a weight (default), or one for all.",
        show_default=False,
    ),
]
Balance = Annotated[
    bool | None,
    typer.Option(
        "--balance/--no-balance",
        rich_help_panel=RECIPE,
        help="Whether channels may be rescaled against each other where that leaves less noise; they may by default.",
        show_default=False,
    ),
]
KeepFloat = Annotated[
    list[str] | None,
    typer.Option(
        "--keep-float",
        metavar="PATTERN",
        rich_help_panel=RECIPE,
        help="Keep a node in float: its name, its operator, or a pattern like '/encoder/*'. May be repeated.",
        show_default=False,
    ),
]
PlanFile = Annotated[
    Path | None,
    typer.Option(
        "--plan",
        metavar="FILE.json",
        rich_help_panel=RECIPE,
        help="The decisions of an earlier run, perhaps edited; needs no data.",
        show_default=False,
    ),
]
FrontierFolder = Annotated[
    Path | None,
    typer.Option(
        "--frontier",
        metavar="DIR",
        rich_help_panel=RESULT,
        help="Also write a handful of models there, from bold to cautious, none of which another beats in everything: "
        "NAME.1.onnx to NAME.5.onnx, where NAME is that of the output. Files of these names are replaced.",
        show_default=False,
    ),
]
Explained = Annotated[
    bool,
    typer.Option(
        "--explain",
        rich_help_panel=RESULT,
        help="Also say where the error of the result comes from, and what would help, as `onnxq explain` does; where "
        "nothing keeps the contract, of the best model that was tried.",
    ),
]
Generate = Annotated[
    int | None,
    typer.Option(
        "--generate",
        metavar="N",
        min=1,
        rich_help_panel=PROOF,
        help="For a language model: also let both models write N tokens, compare the texts, and time reading and "
        "writing. They continue --prompt, or the first half of the first text of the data; 32 with --prompt alone.",
        show_default=False,
    ),
]
Prompt = Annotated[
    str | None,
    typer.Option(
        "--prompt", metavar="TEXT", rich_help_panel=PROOF, help="What both models are to continue.", show_default=False
    ),
]
Tokenizer = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer",
        metavar="FILE",
        rich_help_panel=PROOF,
        help="The tokenizer.json of the model, for --prompt; that of text data if left out.",
        show_default=False,
    ),
]
SavePlan = Annotated[
    Path | None,
    typer.Option(
        "--save-plan",
        metavar="FILE.json",
        rich_help_panel=RESULT,
        help="Write every decision, with its reason.",
        show_default=False,
    ),
]

MetricName = Annotated[
    str | None,
    typer.Option(
        "--metric",
        metavar="NAME",
        rich_help_panel=CONTRACT,
        help="What accuracy is: auto (default: by kind of output), top1, agreement, cosine, sqnr, kl, perplexity, or "
        "MODULE:FUNCTION, called with (outputs, feeds, labels); larger is better.",
        show_default=False,
    ),
]
SingleMetric = Annotated[
    str,
    typer.Option(
        "--metric",
        metavar="NAME",
        rich_help_panel=PROOF,
        help="What it is worth by: perplexity of the next token, top1 (needs labels), MODULE:FUNCTION, called with "
        "(outputs, feeds, labels), or auto: labels if there are any, perplexity if it is a language model.",
    ),
]
MaxDrop = Annotated[
    str | None,
    typer.Option(
        "--max-drop",
        metavar="SHARE",
        rich_help_panel=CONTRACT,
        help="How much worse it may be by that, like 0.5% or 0.005. If left out, 5% for agreement, 0.05 (nats) for kl, "
        "1% for every other.",
        show_default=False,
    ),
]
LimitedDrop = Annotated[
    str | None,
    typer.Option(
        "--max-drop",
        metavar="SHARE",
        rich_help_panel=CONTRACT,
        help="Exit with 1 where it is worse by more than that, like 0.5% or 0.005. Not judged if left out.",
        show_default=False,
    ),
]
MinSpeedup = Annotated[
    float | None,
    typer.Option(
        "--min-speedup",
        metavar="X",
        rich_help_panel=CONTRACT,
        help="How many times as fast as the float model it must be. If left out, 1; a single recipe like static-int8 "
        "is held to that only where something else of a contract is asked for.",
        show_default=False,
    ),
]
MaxSize = Annotated[
    str | None,
    typer.Option(
        "--max-size",
        metavar="SIZE",
        rich_help_panel=CONTRACT,
        help="What the written model may take: 50MB, or 30% of the float model.",
        show_default=False,
    ),
]
KeepBest = Annotated[
    Path | None,
    typer.Option(
        "--keep-best",
        metavar="FILE",
        rich_help_panel=CONTRACT,
        help="Where to put the best model that was found, should none keep the contract.",
        show_default=False,
    ),
]

Threads = Annotated[
    int,
    typer.Option(
        "--threads", metavar="N", min=0, rich_help_panel=PROOF, help="Threads of ONNX Runtime; 0 is its own choice."
    ),
]
Batch = Annotated[
    int,
    typer.Option("--batch", metavar="N", min=1, rich_help_panel=PROOF, help="Samples in the batch that is timed."),
]
RunBatch = Annotated[
    int | None,
    typer.Option(
        "--batch",
        metavar="N",
        min=1,
        rich_help_panel=PROOF,
        help="Samples that run at once; 8, or fewer large ones, if left out.",
        show_default=False,
    ),
]
Seconds = Annotated[
    float,
    typer.Option("--seconds", metavar="S", min=0, rich_help_panel=PROOF, help="How long to measure the latency."),
]
Providers = Annotated[
    str,
    typer.Option(
        "--providers", metavar="A,B", rich_help_panel=PROOF, help="Execution providers to run on, one after another."
    ),
]
Check = Annotated[
    bool,
    typer.Option("--validate/--no-validate", rich_help_panel=PROOF, help="Whether to compare with the float model."),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        rich_help_panel=PROOF,
        help="Write the model even where it proves to be broken, or breaks the contract.",
    ),
]
CacheFolder = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="DIR",
        file_okay=False,
        rich_help_panel=PROOF,
        help="Where measurements are remembered, so that later runs decide alike and interrupted ones go on; "
        "ONNXQ_CACHE or ~/.cache/onnxq if left out.",
        show_default=False,
    ),
]
NoCache = Annotated[
    bool, typer.Option("--no-cache", rich_help_panel=PROOF, help="Measure everything anew, and remember nothing.")
]
LeastCosine = Annotated[
    float,
    typer.Option(
        "--min-cosine",
        metavar="C",
        min=-1,
        max=1,
        rich_help_panel=PROOF,
        help="Exit with 1 where the mean cosine of an output is lower.",
    ),
]
LeastAgreement = Annotated[
    float | None,
    typer.Option(
        "--min-agreement",
        metavar="A",
        min=0,
        max=1,
        rich_help_panel=PROOF,
        help="Exit with 1 where the argmax of a classifier's output agrees less often.",
        show_default=False,
    ),
]

Report = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE",
        rich_help_panel=RESULT,
        help="Write all of it as one page (.html) that opens offline and on a phone. Needs the extra report.",
        show_default=False,
    ),
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json", rich_help_panel=RESULT, help="One JSON document on standard output; all else on standard error."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", rich_help_panel=RESULT, help="No tables and no progress.")]
