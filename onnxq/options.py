"""How to go about it, as opposed to what is asked for (`Recipe`)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from onnxq import runtime
from onnxq.calibration.collect import Progress, silent
from onnxq.memo import Memo, default_folder


def _default_memo() -> Memo:
    return Memo(default_folder())


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
        keep_best: where to put the best model that was found, should none keep the contract; None: nowhere.
        frontier: folder for a handful of models from bold to cautious, beside the one that is chosen: NAME.1.onnx to
            NAME.5.onnx, where those of an earlier run are replaced; None: none.
        explain: whether to say where the error of the result comes from, and what would help.
        generate: how many tokens the float model and the result both write, to be compared and timed; 0 for none.
        prompt: what they continue; None: the first half of the first text of the data.
        tokenizer: the tokenizer.json of the model, for a prompt or for data that holds tokens; that of text data serves
            where none is named.
        providers: execution providers that validate; the first one is timed.
        memo: what was measured before: interrupted work goes on where it stopped, and later runs decide alike.
        progress: told what is going on.
    """

    samples: int = 128
    threads: int = 1
    batch: int = 1
    seconds: float = 3.0
    memory: int | None = None
    check: bool = True
    force: bool = False
    keep_best: Path | None = None
    frontier: Path | None = None
    explain: bool = False
    generate: int = 0
    prompt: str | None = None
    tokenizer: Path | None = None
    providers: tuple[str, ...] = (runtime.CPU,)
    memo: Memo = field(default_factory=_default_memo)
    progress: Progress = silent


def on_target(options: Options, provider: str) -> Options:
    """The same on the provider that a model is for, where it starts here and nobody asked for another one."""
    if provider == runtime.CPU or options.providers != (runtime.CPU,) or not runtime.starts(provider):
        return options
    return replace(options, providers=(provider,))
