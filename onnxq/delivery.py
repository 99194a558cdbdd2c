"""From a plan to a file: quantize, write, prove, hold against the contract, and take back what breaks it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from onnxq import runtime
from onnxq.build import Build, quantize, typed
from onnxq.calibration.data import Data
from onnxq.contract import Verdict, judge
from onnxq.graph import Graph
from onnxq.inspection import has_scales
from onnxq.memo import JSON
from onnxq.modelfile import load, replacing, save
from onnxq.options import Options
from onnxq.plan import Plan, Treatment
from onnxq.proof import Proof, prove
from onnxq.result import Rejected, Result, broken, float_nodes, make_result
from onnxq.rewrite import Change

IN_THE_WAY = 3
"""How many layers a rejection names."""


@dataclass(frozen=True)
class Delivery:
    """Where a model goes, and what it is held against.

    Attributes:
        reference: the float model, as a file and as a graph.
        target: where to write; None for nowhere.
        data: what to prove it on.
        seen: whether calibration saw that.
        judged: whether the contract decides, or is only reported.
        options: how to go about it.
    """

    reference: tuple[Path, Graph]
    target: Path | None
    data: Data
    seen: bool
    judged: bool
    options: Options


def deliver(build: Build, plans: Sequence[Plan], delivery: Delivery) -> Result:
    """Try plans in order; the first that keeps the contract is written. Without plans the graph goes as it is.

    Where none keeps it, the float model does, unless speed or size were asked for: then nothing is written.
    """
    prepared, changes = build.graph, dict(build.changes)
    tried: list[tuple[Plan | None, Result, Verdict]] = []
    wanted: Sequence[Plan | None] = plans or [None]
    for plan in wanted:
        result, verdict = _attempt(build, plan, (prepared, changes), delivery)
        if verdict.holds or delivery.options.force:
            return result
        tried.append((plan, result, verdict))
    best, result, verdict = min(tried, key=lambda entry: _shortfall(entry[1], entry[2]))
    keep = delivery.options.keep_best
    if keep is not None:
        build.graph, build.plan, build.changes = prepared, best, dict(changes)
        if best is not None:
            quantize(build)
        with replacing(keep) as file:
            save(build.graph, file)
        result = result.model_copy(update={"kept": str(keep)})
    reason = " ".join(verdict.reasons)
    if _float_will_do(build, delivery, result):
        return leave_alone(reason, build, delivery)
    in_the_way = _in_the_way(best)
    return result.model_copy(update={"status": "rejected", "reason": f"{reason}{in_the_way}", "output": None})


def _attempt(
    build: Build, plan: Plan | None, start: tuple[Graph, dict[str, list[Change]]], delivery: Delivery
) -> tuple[Result, Verdict]:
    """Quantize by one plan, write, prove; what breaks the contract is taken back."""
    options, target = delivery.options, delivery.target
    if plan is not None:
        build.graph, build.plan = start[0], plan
        build.changes = {name: list(found) for name, found in start[1].items()}
        quantize(build)
    with TemporaryDirectory(prefix="onnxq.") as scratch:
        try:
            with replacing(target or Path(scratch) / "model.onnx") as file:
                with build.stage("write"):
                    save(build.graph, file)
                with build.stage("validate"):
                    proof = _proof(build, file, delivery)
                verdict = _verdict(build, file, proof, delivery)
                result = make_result(build, "optimized", "", target, proof, delivery.data.is_random)
                if verdict.holds or options.force:
                    return result.model_copy(update={"warnings": [*result.warnings, *verdict.notes]}), verdict
                raise Rejected(" ".join(verdict.reasons))
        except Rejected as rejection:
            return make_result(build, "rejected", str(rejection), None, proof, delivery.data.is_random), verdict


def _verdict(build: Build, file: Path, proof: Proof | None, delivery: Delivery) -> Verdict:
    """Whether a model may be written; what was decided about the same two files before is decided again."""
    random = delivery.data.is_random
    reason = broken(proof) if not random else ""
    if reason:
        return Verdict(holds=False, reasons=[reason])
    if proof is None or not delivery.judged:
        return Verdict(holds=True)
    memo, key = (
        delivery.options.memo,
        _key(file, delivery) | {"contract": build.recipe.contract.model_dump(mode="json")},
    )
    known = memo.get("verdict", key)
    if isinstance(known, dict):
        return Verdict.model_validate(known)
    found = judge(build.recipe.contract, proof, random)
    memo.put("verdict", key, found.model_dump(mode="json"))
    return found


def _key(file: Path, delivery: Delivery) -> dict[str, JSON]:
    """What a comparison of two files depends on."""
    options = delivery.options
    digests = [sha256(path.read_bytes()).hexdigest() for path in (delivery.reference[0], file)]
    return {
        "models": [*digests],
        "data": delivery.data.description,
        "samples": len(delivery.data),
        "threads": options.threads,
        "batch": options.batch,
        "machine": runtime.machine(),
    }


def _proof(build: Build, file: Path, delivery: Delivery) -> Proof | None:
    options = delivery.options
    if not options.check:
        runtime.Session(file, threads=options.threads)  # what the runtime refuses is not written
        return None
    path, graph = delivery.reference
    return prove(
        (path, typed(graph)),
        (file, load(file)),
        delivery.data,
        seen=delivery.seen,
        float_nodes=float_nodes(build),
        layers=not has_scales(graph),  # inner tensors of two quantized models do not correspond
        provider=options.providers[0],
        threads=options.threads,
        batch=options.batch,
        seconds=options.seconds,
        contract=build.recipe.contract,
        factors=build.factors,
        progress=options.progress,
    )


def _shortfall(result: Result, verdict: Verdict) -> tuple[int, float]:
    """How far a model is from its contract: limits broken, then what accuracy it loses."""
    score = None if result.proof is None else result.proof.score
    return len(verdict.reasons), score.drop if score is not None else 0.0


def _float_will_do(build: Build, delivery: Delivery, result: Result) -> bool:
    """Whether the float model keeps the contract that the quantized ones broke."""
    contract = build.recipe.contract
    if not delivery.judged or result.proof is None:
        return False
    most = contract.most_bytes(result.proof.size_float)
    return contract.min_speedup <= 1 and (most is None or result.proof.size_float <= most)


def _in_the_way(plan: Plan | None) -> str:
    """The layers that were kept in float, the costliest first."""
    layers = [] if plan is None else [n for n, p in plan.nodes.items() if p.treatment is Treatment.FLOAT and p.measured]
    if not layers or plan is None:
        return ""
    times: Mapping[str, float] = {name: plan.nodes[name].measured.get("float us", 0.0) for name in layers}
    worst = sorted(layers, key=lambda name: -times[name])[:IN_THE_WAY]
    return f" In the way stand {', '.join(repr(name) for name in worst)}, which lose too much accuracy in integers."


def leave_alone(reason: str, build: Build, delivery: Delivery) -> Result:
    """The model as it was, with the reason; it must load, or there is nothing to hand on."""
    path, graph = delivery.reference
    runtime.Session(path, threads=1)
    build.changes.clear()  # what was tried on the way is not in the file
    if delivery.target is not None:
        with replacing(delivery.target) as file:
            if graph.files:
                save(graph, file)
            else:
                shutil.copyfile(path, file)
    return make_result(build, "left alone", reason, delivery.target, None, False)
