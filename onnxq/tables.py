"""What a person reads: results as tables, and progress."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from onnxq.contract import beside_limit, keeps, sentence
from onnxq.quantities import milliseconds, plural, size_of

if TYPE_CHECKING:
    from onnxq.comparison import OutputProof
    from onnxq.continuation import Continuations
    from onnxq.inspection import Summary
    from onnxq.proof import FloatNode, LayerError, Proof
    from onnxq.recipe import Contract
    from onnxq.result import Point, Result

MOST_OUTPUTS, MOST_LAYERS, MOST_KERNELS, MOST_REASONS, MOST_OPERATORS = 5, 5, 8, 4, 5
"""Rows that a person wants to read; the JSON document holds them all."""

LAYERS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "GRU"})
"""Operators whose reasons come first: they take the time."""

CPU = "CPUExecutionProvider"

PLAIN_WIDTH = 120
"""Columns where the output is no terminal."""


class Paper(Console):
    """A console that takes all text literally, and leaves a broken pipe to the caller."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, highlight=False, emoji=False)
        if not self.is_terminal:
            self.width = PLAIN_WIDTH

    def on_broken_pipe(self) -> None:
        """Rich would end the process with the code that means a rejected model."""
        raise BrokenPipeError


def console(*, stderr: bool = False) -> Console:
    """Standard output, or standard error."""
    return Paper(stderr=stderr)


class Rate(ProgressColumn):
    """Samples per second."""

    def render(self, task: Task) -> Text:
        """The speed so far."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s", style="cyan")


class Bars:
    """A bar for each task, one at a time; where standard error is no terminal, a line every now and then.

    A finished bar stays, and nothing is drawn between tasks: the latency is measured there.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self._console = console(stderr=True)
        self._silent = silent
        self._bar: Progress | None = None
        self._task = ""
        self._said = time.monotonic()

    def __call__(self, task: str, done: int, total: int) -> None:
        """Take in how far a task is; what follows its name and a colon is shown beside it."""
        if self._silent:
            return
        if not self._console.is_terminal:
            self._say(task, done, total)
            return
        name, _, said = task.partition(": ")
        if self._bar is None or name != self._task:
            self.close()
            self._task, self._bar = name, _bar(self._console, in_bytes=name == BYTES)
            self._bar.add_task(name, total=total)
            self._bar.start()
        described = f"{name}, {said}" if said else name
        self._bar.update(self._bar.task_ids[0], completed=done, total=total, description=described)
        if done >= total:
            self.close()

    def _say(self, task: str, done: int, total: int) -> None:
        """A line for a log, so that long work is not taken for dead."""
        now = time.monotonic()
        if now - self._said >= SILENCE:
            self._said = now
            self._console.print(f"{task}: {done:,} of {total:,}")

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


SILENCE = 30.0
"""Seconds after which a log is told how far things are."""

BYTES = "bytes"
"""The task whose progress is counted in bytes."""


def _bar(paper: Console, *, in_bytes: bool = False) -> Progress:
    left = TimeRemainingColumn(elapsed_when_finished=True)
    counted = (DownloadColumn(), TransferSpeedColumn()) if in_bytes else (MofNCompleteColumn(), Rate())
    return Progress(TextColumn("{task.description:<10}", markup=False), BarColumn(), *counted, left, console=paper)


# Numbers


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _decibels(value: float | None) -> str:
    return "equal" if value is None else f"{value:.1f} dB"


def _counts(counts: Mapping[str, int], most: int) -> str:
    """`7 QLinearConv, 2 QLinearAdd, 3 more`."""
    parts = [f"{count} {name}" for name, count in list(counts.items())[:most]]
    rest = sum(list(counts.values())[most:])
    return ", ".join([*parts, f"{rest} more"] if rest else parts)


# Pieces


def _table(*columns: str, left: int = 1) -> Table:
    """A table whose first `left` columns hold names and whose others hold numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place < left else "right", overflow="fold", no_wrap=place >= left)
    return table


def sheet(rows: Sequence[tuple[str, RenderableType]]) -> Table:
    """Labels on the left, anything on the right."""
    sheet = Table.grid(padding=(0, 2))
    sheet.add_column(style="bold", no_wrap=True)
    sheet.add_column(overflow="fold")
    for label, content in rows:
        sheet.add_row(label, content)
    return sheet


def _title(text: str, style: str = "bold") -> Text:
    return Text(text, style=style, overflow="fold")


def _before_and_after(proof: Proof) -> Table:
    table = _table("", proof.reference, "quantized", "")
    if proof.size_float:
        table.add_row("Size", size_of(proof.size_float), size_of(proof.size), _percent(proof.size / proof.size_float))
    change = f"{proof.speedup:.2f}x as fast"
    table.add_row("Latency", milliseconds(proof.milliseconds_float), milliseconds(proof.milliseconds), change)
    if proof.memory and proof.memory_float:
        share = _percent(proof.memory / proof.memory_float)
        table.add_row("Memory", size_of(proof.memory_float), size_of(proof.memory), share)
    return table


def _accuracy(outputs: Mapping[str, OutputProof], made_up: bool = False) -> Table:
    agree = any(o.agreement is not None for o in outputs.values())
    labelled = any(o.top1 is not None for o in outputs.values())
    diverges = any(o.kl is not None for o in outputs.values())
    table = _table(
        "Output (random numbers)" if made_up else "Output",
        "cosine",
        "worst sample",
        "SQNR",
        "max error",
        *["argmax"] * agree,
        *["KL"] * diverges,
        *["top-1 float", "top-1"] * labelled,
    )
    # what decides something comes first: a cache may be further off, and matters less
    shown = sorted(outputs.items(), key=lambda item: (item[1].agreement is None, item[1].cosine))[:MOST_OUTPUTS]
    for name, o in shown:
        figures = [f"{o.cosine:.5f}", f"{o.cosine_min:.4f}", _decibels(o.sqnr_db), f"{o.max_error:.3g}"]
        figures += [_percent(o.agreement)] * agree + ["" if o.kl is None else f"{o.kl:.3g}"] * diverges
        figures += [_percent(o.top1_float), _percent(o.top1)] * labelled
        table.add_row(name, *figures, style=None if o.finite else "red")
    if len(outputs) > len(shown):
        table.add_row(f"{len(outputs) - len(shown)} more, all closer")
    return table


def _frontier(points: Sequence[Point]) -> Table:
    """Models from bold to cautious."""
    metric = next((point.metric for point in points if point.metric), None)
    drop = [] if metric is None else [f"drop ({metric})"]
    table = _table("Frontier", "size", "latency", "speed", *drop, "SQNR", "contract", "")
    for point in points:
        figures = [size_of(point.size), milliseconds(point.milliseconds), f"{point.speedup:.2f}x"]
        figures += [_drop(point)] * len(drop)
        figures += [_decibels(point.sqnr_db), "kept" if point.holds else "broken", "chosen" if point.chosen else ""]
        table.add_row(Path(point.file).name, *figures, style="bold" if point.chosen else None)
    return table


def _drop(point: Point) -> str:
    """Nats as they are, everything else in percent."""
    if point.drop is None:
        return ""
    return f"{point.drop:.3g}" if point.metric == "kl" else f"{100 * point.drop:.3g} %"


def _where(found: Result) -> str:
    """Where the models of a frontier lie, and whether the one that was written is among them."""
    folder = str(Path(found.frontier[0].file).parent)
    if found.status != "optimized" or found.output is None or any(point.chosen for point in found.frontier):
        return folder
    return (
        f"{folder}; {Path(found.output).name} is none of them: one of these beats it in everything, or is close to it"
    )


def _layers(layers: Sequence[LayerError]) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for layer in layers[:MOST_LAYERS]:
        note = " (but for factors between channels)" if layer.rescaled else ""
        table.add_row(_decibels(layer.sqnr_db), layer.op, f"{layer.tensor}{note}")
    return table


def float_groups(nodes: Sequence[FloatNode]) -> list[tuple[Counter[str], str, str]]:
    """Nodes by the sentence why they stayed float: (number by operator, sentence, name of one), layers first."""
    found: dict[str, list[FloatNode]] = {}
    for node in nodes:
        found.setdefault(node.reason.replace(f" {node.op}.", " it."), []).append(node)
    groups = [
        (Counter(node.op for node in same), same[0].reason if len({n.op for n in same}) == 1 else reason, same[0].node)
        for reason, same in found.items()
    ]
    return sorted(groups, key=lambda group: (not LAYERS & group[0].keys(), -group[0].total()))


def _float_rows(nodes: Sequence[FloatNode]) -> list[Text]:
    groups = float_groups(nodes)
    rows = []
    for counts, reason, example in groups[:MOST_REASONS]:
        row = Text(f"{_counts(dict(counts.most_common()), MOST_OPERATORS)}: {reason}", overflow="fold")
        rows.append(row.append(f" Such as {example}.", style="dim"))
    rest = sum(group[0].total() for group in groups[MOST_REASONS:])
    return [*rows, Text(f"{plural(rest, 'node')} for other reasons; --json names them.")] if rest else rows


def _proof_rows(proof: Proof) -> list[tuple[str, RenderableType]]:
    rows: list[tuple[str, RenderableType]] = []
    worst = [layer for layer in proof.layers if layer.sqnr_db is not None]
    if worst:
        rows.append(("Largest error", _layers(worst)))
    rows.append(("Kernels", _counts(proof.kernels, MOST_KERNELS)))
    if proof.provider != CPU:
        taken = _counts(proof.on_cpu, MOST_KERNELS) or "no operator"
        copies = "1 copy" if proof.copies == 1 else f"{proof.copies} copies"
        rows.append(("On the CPU", f"{taken}; {copies} between it and the other device"))
    for place, row in enumerate(_float_rows(proof.float_nodes)):
        rows.append(("" if place else "Left in float", row))
    return rows


def _score(proof: Proof, contract: Contract | None) -> list[tuple[str, RenderableType]]:
    """The loss, beside what is allowed."""
    score = proof.score
    if score is None:
        return []
    words = sentence(score) if contract is None else beside_limit(score, contract)
    style = "" if contract is None or keeps(score, contract) else "yellow"
    return [("Accuracy", Text(f"{words}.", style=style, overflow="fold"))]


def _conditions(proof: Proof) -> str:
    threads = "the runtime's choice of threads" if proof.threads == 0 else plural(proof.threads, "thread")
    return f"{proof.provider}, {threads}, batch of {proof.batch}"


def _texts(found: Continuations | None) -> list[RenderableType]:
    """What both models write, if that was asked for."""
    from onnxq.language_table import continuations  # which is made of the pieces above

    return [] if found is None else [continuations(found), ""]


# Documents


def result(model: Path, found: Result, contract: Contract) -> RenderableType:
    """What `optimize` did."""
    style = {"optimized": "bold green", "left alone": "bold yellow", "rejected": "bold red"}[found.status]
    mode = "" if found.status == "left alone" else f", {found.mode}"
    head = _title(f"{model.name}: {found.status}{mode}", style)
    rows: list[tuple[str, RenderableType]] = [("Reason", found.reason)] if found.reason else []
    parts: list[RenderableType] = [head]
    if found.proof is not None:
        parts += ["", _before_and_after(found.proof), "", _accuracy(found.proof.outputs, found.random), ""]
        parts += _texts(found.generation)
        rows += [*_score(found.proof, contract), *_proof_rows(found.proof)]
        rows.append(("Measured", _conditions(found.proof)))
    if found.frontier:
        parts += [*([] if found.proof else [""]), _frontier(found.frontier), ""]
    rows += [("Data", _data(found))] if _data(found) else []
    rows += [("Warning", Text(warning, style="yellow", overflow="fold")) for warning in found.warnings]
    rows += [("Best kept", Text(found.kept, overflow="fold"))] if found.kept else []
    rows += [("Frontier", Text(_where(found), overflow="fold"))] if found.frontier else []
    rows.append(("File", _file(found)))
    return Group(*parts, sheet(rows))


def _data(found: Result) -> str:
    parts = [f"calibrated on {plural(found.calibrated, 'sample')}"] if found.calibrated else []
    if found.proof is not None:
        seen = ", which calibration saw" if found.proof.seen else ""
        parts.append(f"validated on {found.proof.data}{seen}")
    return "; ".join(parts)


def _file(found: Result) -> str:
    took = f"{sum(found.seconds.values()):.1f} s"
    return f"{found.output} ({took})" if found.output else f"none written ({took})"


def proofs(
    candidate: Path, found: Sequence[Proof], contract: Contract | None, wanting: Sequence[str]
) -> RenderableType:
    """What `validate` found, provider by provider; `contract` is what accuracy was judged by."""
    parts: list[RenderableType] = []
    for proof in found:
        rows = [*_score(proof, contract), *_proof_rows(proof), ("Data", proof.data)]
        head = _title(f"{candidate.name} on {_conditions(proof)}")
        parts += [head, "", _before_and_after(proof), "", _accuracy(proof.outputs), "", *_texts(proof.generation)]
        parts += [sheet(rows), ""]
    if not wanting:
        return Group(*parts, _title("Passed.", "bold green"))
    return Group(*parts, *(_title(reason, "bold red") for reason in wanting))


def calibration(found: Mapping[str, Any]) -> RenderableType:
    """What `calibrate` wrote."""
    rows: list[tuple[str, RenderableType]] = [
        ("Statistics", f"{plural(found['tensors'], 'tensor')}, {plural(found['samples'], 'sample')}"),
        *(("Warning", f"'{name}' was NaN or infinite {n} times") for name, n in found["non_finite"].items()),
        ("File", found["output"]),
    ]
    return sheet(rows)


def summary(model: Path, found: Summary) -> RenderableType:
    """What `inspect` saw."""
    domains = ", ".join(f"{name} {version}" for name, version in found.domains.items())
    written = f"opset {domains}; IR {found.ir_version}" + (f"; by {found.producer}" if found.producer else "")
    weights = ", ".join(f"{size_of(size)} {kind}" for kind, size in found.weight_bytes.items())
    rows: list[tuple[str, RenderableType]] = [
        (
            "Quantized",
            f"{found.quantized}, {found.integer_layers} of {plural(len(found.layers), 'layer')} on integers",
        ),
        *(("" if place else "Inputs", line) for place, line in enumerate(found.inputs)),
        *(("" if place else "Outputs", line) for place, line in enumerate(found.outputs)),
        ("Weights", f"{found.parameters:,} parameters; {weights or 'none'}"),
        ("Operators", _counts(found.operators, 30)),
        ("Format", written),
    ]
    return Group(_title(model.name), sheet(rows), "", _kinds(found))


def _kinds(found: Summary) -> Table:
    """Layers of the same operator, type and granularity in one row."""
    table = _table("Layers", "weight", "scales", "count", "bytes", left=3)
    counts: Counter[tuple[str, str, str]] = Counter()
    sizes: Counter[tuple[str, str, str]] = Counter()
    for layer in found.layers:
        scales = "" if layer.scales == 0 else "per tensor" if layer.scales == 1 else "per channel"
        counts[layer.op, layer.type, scales] += 1
        sizes[layer.op, layer.type, scales] += layer.bytes
    for kind, size in sizes.most_common():
        table.add_row(*kind, str(counts[kind]), size_of(size))
    return table


def timings(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """What `bench` measured."""
    table = _table("Model", "provider", "latency", "speed", "threads", "batch", left=2)
    for row in rows:
        figures = (milliseconds(row["milliseconds"]), f"{row['speedup']:.2f}x", str(row["threads"]), str(row["batch"]))
        table.add_row(row["model"], row["provider"], *figures)
    kernels = sheet([(row["model"], _counts(row["kernels"], MOST_KERNELS)) for row in rows])
    return Group(table, "", kernels)


def passes(rows: Sequence[Mapping[str, str]]) -> RenderableType:
    """Every pass."""
    table = _table("Stage", "pass", "does", "promise", left=4)
    for row in rows:
        table.add_row(row["stage"], row["name"], row["does"], row["promise"])
    return table
