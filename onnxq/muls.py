"""Which of the Muls that balance channels are worth their time."""

from __future__ import annotations

from collections.abc import Mapping

from onnxq.build import GIVEN
from onnxq.channels import BALANCED
from onnxq.options import Options
from onnxq.passes import BALANCE
from onnxq.pipeline import Context, run
from onnxq.plan import BalancePlan, Plan
from onnxq.search.cost import FLOAT, Sampler
from onnxq.search.region import ends
from onnxq.search.stopwatch import Stopwatch
from onnxq.study import Study
from onnxq.trial import NOISE_WORTH, Trials


def without_dear_muls(
    study: Study, plain: Plan, balance: Mapping[str, BalancePlan], options: Options
) -> dict[str, BalancePlan]:
    """The factors, less those whose Mul takes more time than the noise is worth that it takes away.

    Args:
        study: the model before its channels are balanced.
        plain: the plan without factors.
        balance: the factors.
        options: samples in the batch that is timed.
    """
    times = _times(study, plain, balance, options)
    if not times:
        return dict(balance)
    whole = Trials(study, options.batch).outcome(plain)
    worth = {name: NOISE_WORTH * whole.noise * balance[name].gain * 1e3 * whole.milliseconds for name in times}
    return {name: own for name, own in balance.items() if name not in times or times[name] <= worth[name]}


def _times(study: Study, plain: Plan, balance: Mapping[str, BalancePlan], options: Options) -> dict[str, float]:
    """Microseconds of each Mul."""
    build, data = study.build, study.data
    assert data is not None
    context = Context(build.context.target, plain.model_copy(update={"balance": balance}))
    graph = run(BALANCE, build.graph, context, GIVEN).graph
    scaled = {f"{name}{BALANCED}": name for name, own in balance.items() if own.multiplies}
    muls = {scaled[t.name]: node for node in graph.nodes for t in node.outputs if t.name in scaled}
    sampler = Sampler(next(data.batches(options.batch)), study.threads)
    samples = sampler.take(graph, {name: ends(graph, [mul]) for name, mul in muls.items()})
    watch = Stopwatch(threads=study.threads, memo=study.memo, progress=build.progress)
    times = watch.times([{FLOAT: sample} for sample in samples.values()])
    return {name: own[FLOAT].own for name, own in zip(samples, times, strict=True)}
