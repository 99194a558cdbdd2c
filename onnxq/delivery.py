"""From a plan to a file: quantize, write, prove, hold against the contract, and take back what breaks it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from onnxq import runtime
from onnxq.build import Build, quantize, typed
from onnxq.calibration.data import Data
from onnxq.contract import Verdict, beside_limit, judge, keeps
from onnxq.graph import Graph
from onnxq.inspection import has_scales
from onnxq.memo import JSON
from onnxq.modelfile import load, replacing, save
from onnxq.options import Options
from onnxq.plan import NodePlan, Plan, Treatment
from onnxq.proof import Proof, disk_size, prove
from onnxq.recipe import Contract
from onnxq.result import Rejected, Result, broken, float_nodes, make_result
from onnxq.rewrite import Change

LOADED = 4
"""How many times the size of its weights in float32 a model takes that is run, packed and profiled, as measured."""

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
        proofs: what was found about models of this run, by plan: none is proven twice.
    """

    reference: tuple[Path, Graph]
    target: Path | None
    data: Data
    seen: bool
    judged: bool
    options: Options
    proofs: dict[str, Proof] = field(default_factory=dict)


def deliver(build: Build, plans: Sequence[Plan], delivery: Delivery) -> Result:
    """Try plans in order; the first that keeps the contract is written. Without plans the graph goes as it is.

    After one that loses too much, only quieter ones are tried. Where none keeps the contract, the float model does,
    unless speed or size were asked for: then nothing is written.
    """
    prepared, changes = build.graph, dict(build.changes)
    tried: list[tuple[Plan | None, Result, Verdict]] = []
    wanted: Sequence[Plan | None] = plans or [None]
    for plan in wanted:
        if any(_louder(plan, other) for other, _, verdict in tried if not verdict.accurate):
            continue
        result, verdict = attempt(build, plan, (prepared, changes), delivery)
        if verdict.holds or delivery.options.force:
            return result
        tried.append((plan, result, verdict))
    best, result, verdict = min(tried, key=lambda entry: _shortfall(*entry))
    build.plan = best
    kept = _keep(build, (prepared, changes), delivery.options.keep_best)
    if delivery.judged and _float_keeps(build.recipe.contract, delivery):
        result = leave_alone(result.reason, build, delivery)
    else:
        result = result.model_copy(update={"reason": f"{result.reason}{_in_the_way(best)}"})
    return result.model_copy(update={"kept": kept, "warnings": [*result.warnings, *verdict.notes]})


def _louder(plan: Plan | None, other: Plan | None) -> bool:
    """Whether a plan leaves at least as much noise as another one."""
    known = [each.noise for each in (plan, other) if each is not None and each.noise is not None]
    return len(known) == 2 and known[0] >= known[1]


def quantize_by(build: Build, plan: Plan | None, start: tuple[Graph, dict[str, list[Change]]]) -> None:
    """Quantize the prepared graph by a plan; without one it stays as it is."""
    build.graph, build.plan = start[0], plan
    build.changes = {name: list(found) for name, found in start[1].items()}
    if plan is not None:
        quantize(build)


def _keep(build: Build, start: tuple[Graph, dict[str, list[Change]]], place: Path | None) -> str | None:
    """Write the best of the models that break the contract to where it can be looked at."""
    if place is None:
        return None
    quantize_by(build, build.plan, start)
    with replacing(place) as file:
        save(build.graph, file)
    return str(place)


def attempt(
    build: Build, plan: Plan | None, start: tuple[Graph, dict[str, list[Change]]], delivery: Delivery
) -> tuple[Result, Verdict]:
    """Quantize by one plan, write, prove; what breaks the contract is taken back."""
    options, target = delivery.options, delivery.target
    quantize_by(build, plan, start)
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
                    said = [*result.warnings, *verdict.reasons, *verdict.notes]
                    return result.model_copy(update={"warnings": said}), verdict
                raise Rejected(" ".join(verdict.reasons))
        except Rejected as rejection:
            return make_result(build, "rejected", str(rejection), None, proof, delivery.data.is_random), verdict


def _verdict(build: Build, file: Path, proof: Proof | None, delivery: Delivery) -> Verdict:
    """Whether a model may be written; the speed that decided about the same two files before decides again."""
    random = delivery.data.is_random
    reason = broken(proof) if not random else ""
    if reason:
        return Verdict(holds=False, accurate=False, reasons=[reason])
    if delivery.judged and build.plan is not None and build.plan.does_nothing:
        return Verdict(holds=False, reasons=["No layer runs faster in integers here without losing too much accuracy."])
    if proof is None or not delivery.judged:
        score, limits = None if proof is None or random else proof.score, build.recipe.contract
        lost = score is not None and not keeps(score, limits)
        return Verdict(holds=True, notes=[f"{beside_limit(score, limits)}."] if score is not None and lost else [])
    memo, key = delivery.options.memo, _key(file, delivery)
    known = memo.get("speedup", key)
    found = known if isinstance(known, float) else memo.put("speedup", key, proof.speedup)
    speedup = found if isinstance(found, float) else proof.speedup
    told = proof.model_copy(update={"speedup": speedup})
    return judge(build.recipe.contract, told, random, build.context.target.provider)


def _key(file: Path, delivery: Delivery) -> dict[str, JSON]:
    """What a comparison of the speed of two files depends on."""
    options = delivery.options
    digests = [sha256(path.read_bytes()).hexdigest() for path in (delivery.reference[0], file)]
    return {
        "models": [*digests],
        "data": delivery.data.description,
        "provider": options.providers[0],
        "threads": options.threads,
        "batch": options.batch,
        "seconds": options.seconds,
        "machine": runtime.machine(),
    }


def _proof(build: Build, file: Path, delivery: Delivery) -> Proof | None:
    options = delivery.options
    too_large = _too_large(delivery) if options.check else None
    if too_large is not None:
        build.warnings.append(too_large)
        return None
    if not options.check:
        if not build.graph.files:  # what lies outside may be larger than memory
            runtime.Session(file, threads=options.threads)  # what the runtime refuses is not written
        return None
    plan, made = "" if build.plan is None else build.plan.to_json(), load(file)
    if plan not in delivery.proofs:
        delivery.proofs[plan] = _proven(build, (file, made), delivery)
    return delivery.proofs[plan].model_copy(update={"size": disk_size(file, made)})  # which depends on its name


def _too_large(delivery: Delivery) -> str | None:
    """The sentence why a model cannot be validated here; None where there is room for it."""
    floats = sum(math.prod(t._values.shape) for t in delivery.reference[1].weights() if t._values.dtype.kind == "f")
    needed, free = LOADED * 4 * floats, runtime.free_memory()
    if free is None or needed < free:
        return None
    return (
        f"Not validated: to run both models beside each other takes about {needed / 1e9:.0f} GB of memory, and "
        f"{free / 1e9:.0f} GB are free. Validate it where there is more, with: onnxq validate."
    )


def _proven(build: Build, made: tuple[Path, Graph], delivery: Delivery) -> Proof:
    options, (path, graph) = delivery.options, delivery.reference
    return prove(
        (path, typed(graph)),
        made,
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


def _shortfall(plan: Plan | None, result: Result, verdict: Verdict) -> tuple[bool, int, float]:
    """How far a model is from its contract: limits broken, then what accuracy it loses. A float one comes last."""
    score = None if result.proof is None else result.proof.score
    return plan is not None and plan.does_nothing, len(verdict.reasons), score.drop if score is not None else 0.0


def _float_keeps(contract: Contract, delivery: Delivery) -> bool:
    """Whether the float model itself keeps the contract."""
    size = disk_size(*delivery.reference)
    most = contract.most_bytes(size)
    return contract.min_speedup <= 1 and (most is None or size <= most)


def _in_the_way(plan: Plan | None) -> str:
    """The layers that were kept in float for their noise alone, the costliest first."""
    gains = {} if plan is None else {name: _gain(node) for name, node in plan.nodes.items()}
    worst = [name for name in sorted(gains, key=lambda name: -gains[name]) if gains[name] > 0][:IN_THE_WAY]
    if not worst:
        return ""
    return f" In the way stand {', '.join(repr(name) for name in worst)}, which lose too much accuracy in integers."


def _gain(node: NodePlan) -> float:
    """Microseconds that an integer form of a float layer would save."""
    known = node.measured
    if node.treatment is not Treatment.FLOAT or "static noise" not in known:
        return 0.0
    return known.get("float us", 0.0) - min(known.get(f"{form} us", math.inf) for form in ("static", "dynamic"))


def give_up(reason: str, build: Build, delivery: Delivery) -> Result:
    """What to do with a model that there is nothing to do about: leave it alone, unless that breaks the contract."""
    if not delivery.judged or _float_keeps(build.recipe.contract, delivery):
        return leave_alone(reason, build, delivery)
    return make_result(build, "rejected", f"{reason} As it is, it breaks the contract.", None, None, False)


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
