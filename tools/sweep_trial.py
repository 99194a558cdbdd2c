"""One model by one recipe: what became of it, and what is wrong with that."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from sweep_models import Case

import onnxq
from onnxq.build import typed
from onnxq.calibration.data import open_data
from onnxq.memo import Memo
from onnxq.modelfile import load, save
from onnxq.passes import FASTER, NORMALIZE
from onnxq.pipeline import Context, run
from onnxq.runtime import Session
from onnxq.spec import Fact
from onnxq.targets import CPU

PASSES = "passes alone"
"""No recipe: the passes that keep what a model computes, whatever follows them."""

RECIPES: Mapping[str, dict[str, Any]] = {
    "auto": {},
    "static-int8": {"mode": "static-int8", "activation": {"range": "minmax"}},
    "static-int8 qdq": {"mode": "static-int8", "activation": {"range": "minmax"}, "format": "qdq"},
    "dynamic-int8": {"mode": "dynamic-int8"},
    "weight-int8": {"mode": "weight-int8"},
    "fp16": {"mode": "fp16"},
    PASSES: {},
}
"""What is asked for."""

STEPS = (*NORMALIZE, *FASTER)

CLOSE = {np.dtype(np.float16): 1e-2, np.dtype(np.float32): 1e-4, np.dtype(np.float64): 1e-4}
"""By how much an output may differ after those passes, as a share of its largest value; others not at all."""

REPEATED = 1e-5
"""By how much an error may differ, as a share of the largest value, from what the proof says of the same inputs."""


@dataclass
class Finding:
    """What became of a model.

    Attributes:
        name: of the model.
        recipe: what was asked for.
        outcome: optimized, left alone, rejected, refused, or died.
        reason: why, where it was not optimized.
        problems: what must not be; empty where all is well.
        seconds: how long it took.
    """

    name: str
    recipe: str
    outcome: str
    reason: str = ""
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Original:
    """A model as it came: what it is fed, and what the runtime makes of that, or why it makes nothing."""

    model: onnx.ModelProto
    feeds: dict[str, Any] | None
    outputs: list[Any] | None
    refusal: str = ""

    @cached_property
    def valid(self) -> bool:
        """Whether ONNX allows the model, and its outputs have the shapes that it says; the runtime takes others too."""
        try:
            onnx.checker.check_model(self.model)
        except onnx.checker.ValidationError:
            return False
        pairs = zip(self.model.graph.output, self.outputs or [], strict=False)
        return all(_fits(info.type.tensor_type.shape.dim, value) for info, value in pairs)


def _fits(sizes: Sequence[onnx.TensorShapeProto.Dimension], value: Any) -> bool:
    """Whether an output has the shape that was declared, as far as one was."""
    if not isinstance(value, np.ndarray) or not sizes:
        return True
    known = [size.dim_value if size.HasField("dim_value") else None for size in sizes]
    same = (one in (None, other) for one, other in zip(known, value.shape, strict=False))
    return len(known) == value.ndim and all(same)


def attempt(case: Case, recipe: str) -> Finding:
    """Optimize a model, and hold what comes out against what went in."""
    finding = Finding(case.name, recipe, "died")
    original = _original(case)
    with TemporaryDirectory(prefix="sweep.") as folder:
        output = Path(folder) / "out.onnx"
        try:
            result = _rewritten(case, output) if recipe == PASSES else _optimize(case, recipe, original, output)
        except onnxq.OnnxqError as error:
            finding.outcome, finding.reason = "refused", f"{type(error).__name__}: {error}"
            finding.problems += _of_refusal(original, str(error), output)
        except Exception:
            finding.reason = traceback.format_exc().splitlines()[-1]
            finding.problems.append(traceback.format_exc())
        else:
            finding.outcome, finding.reason = result.status, result.reason
            finding.problems += _of_result(case, original, result, output)
        known = {output.name, f"{output.name}.data"}
        finding.problems += [f"left behind: {path.name}" for path in Path(folder).iterdir() if path.name not in known]
    return finding


def alone(case: Case) -> None:
    """What the runtime makes of a model, without us: where this dies, it is not for us to mend."""
    with suppress(Exception):  # which no death is
        _original(case)


def _optimize(case: Case, recipe: str, original: Original, output: Path) -> onnxq.Result:
    """One call of the Python interface, which measures no longer than it must."""
    model: Any = case.model
    return onnxq.optimize(
        model,
        output,
        data=[original.feeds] if original.feeds else None,
        recipe=onnxq.Recipe.model_validate(RECIPES[recipe]),
        options=onnxq.Options(seconds=0.0, samples=2, memo=Memo(None)),
    )


def _rewritten(case: Case, output: Path) -> onnxq.Result:
    """The model after the passes that keep what it computes. Raises UnsupportedModel where the runtime refuses it."""
    Session(case.model)
    graph = typed(load(case.model))
    outcome = run(STEPS, graph, Context(CPU), frozenset(Fact))
    save(outcome.graph, output)
    done = sum(bool(change.done) for changes in outcome.changes.values() for change in changes)
    return onnxq.Result(
        status="optimized" if done else "left alone", reason="Nothing to rewrite.", output=str(output), mode="auto"
    )


def _original(case: Case) -> Original:
    model = case.read()
    given = case.feeds if case.feeds is not None or not model.graph.input else _made_up(case)
    given = None if given is None else {name: _calm(value) for name, value in given.items()}
    try:
        return Original(model, given, _run(case.model, given or {}))
    except Exception as error:
        return Original(model, given, None, str(error).replace("\n", " "))


def _calm(value: Any) -> Any:
    """The value with 1 for NaN, with which nothing can be calibrated."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fV" or value.dtype.names:
        return value
    odd = np.isnan(value.astype(np.float64))
    return np.where(odd, np.ones((), value.dtype), value) if odd.any() else value


def _made_up(case: Case) -> dict[str, Any] | None:
    try:
        data = open_data("random?samples=1", load(case.model).interface().inputs)
    except onnxq.OnnxqError:
        return None
    return dict(data.sample(0))


def _run(model: bytes | Path, feeds: Mapping[str, Any]) -> list[Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model if isinstance(model, bytes) else str(model), options)
    return list(session.run(None, dict(feeds)))


def _of_refusal(original: Original, said: str, output: Path) -> Iterator[str]:
    """What is wrong with a model that was refused."""
    if not said or "\n" in said:
        yield f"the error is no single line: {said!r}"
    if not original.refusal and original.valid:
        yield f"refused, though it runs: {said}"
    if output.exists():
        yield "refused, and written"


def _of_result(case: Case, original: Original, result: onnxq.Result, output: Path) -> Iterator[str]:
    """What is wrong with a model that was optimized, left alone or rejected."""
    if result.status != "optimized" and not result.reason:
        yield "no reason given"
    if result.status == "rejected":
        yield from ["rejected, and written"] if output.exists() else []
        return
    if not output.exists():
        yield "nothing written"
        return
    yield from _of_interface(original.model, onnx.load(output, load_external_data=False))
    if original.outputs is None or not original.valid:
        return
    try:
        got = _run(output, original.feeds or {})
    except Exception as error:
        yield f"the result does not run: {error}"
        return
    names = [info.name for info in original.model.graph.output]
    for name, before, after in zip(names, original.outputs, got, strict=True):
        yield from _of_output(name, before, after, result)


def _of_interface(before: onnx.ModelProto, after: onnx.ModelProto) -> Iterator[str]:
    """Names, order, types and shapes of inputs and outputs stay; weights that are listed as inputs are none."""
    weights = {tensor.name for tensor in before.graph.initializer}
    inputs = [info for info in before.graph.input if info.name not in weights]
    for kind, one, other in (
        ("inputs", inputs, list(after.graph.input)),
        ("outputs", list(before.graph.output), list(after.graph.output)),
    ):
        known = {info.name for info in one}
        if [_declared(info) for info in one] != [
            _declared(i) for i in other if i.name in known or i.name not in weights
        ]:
            yield f"the {kind} changed from {one} to {other}"


def _declared(info: onnx.ValueInfoProto) -> tuple[str, bytes]:
    return info.name, info.type.SerializeToString(deterministic=True)


def _of_output(name: str, before: Any, after: Any, result: onnxq.Result) -> Iterator[str]:
    """An output of a model that was left alone is the same; that of another is as the proof or its passes say."""
    exact = result.status == "left alone" or (result.proof is not None and name not in result.proof.outputs)
    if exact or not isinstance(before, np.ndarray) or (result.proof is None and before.dtype not in CLOSE):
        if not _same(before, after):
            yield f"output '{name}' changed from {_short(before)} to {_short(after)}"
        return
    if (before.shape, before.dtype) != (after.shape, after.dtype):
        yield f"output '{name}' was {before.dtype}{before.shape}, and is {after.dtype}{after.shape}"
        return
    one, other = (np.asarray(value, np.float64) for value in (before, after))
    usable = np.isfinite(one)
    if not np.isfinite(other[usable]).all():
        yield f"output '{name}' holds NaN or infinity"
        return
    error = float(np.abs(one[usable] - other[usable]).max(initial=0.0))
    largest = float(np.abs(one[usable]).max(initial=0.0))
    said = CLOSE[before.dtype] * largest if result.proof is None else result.proof.outputs[name].max_error
    if error > said + REPEATED * (1 + largest):
        yield f"output '{name}' is off by {error:g}, where {said:g} is allowed"


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        same_type = (one.shape, one.dtype) == (other.shape, other.dtype)
        return same_type and (
            one.tobytes() == other.tobytes() if one.dtype != object else one.tolist() == other.tolist()
        )
    if isinstance(one, Sequence) and isinstance(other, Sequence) and not isinstance(one, str):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _short(value: Any) -> str:
    return " ".join(str(value).split())[:80]
