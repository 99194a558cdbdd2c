"""Plans of mixed forms: which are tried, and in what order they are worth proving."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import onnxq
from onnxq import mixed
from onnxq.build import GIVEN, Build, follow_plan
from onnxq.graph import Graph, to_model
from onnxq.memo import Memo
from onnxq.metric import Score
from onnxq.mixed import FEW, NEARLY, Tried, linear_plan, measured, mixed_plans, otherwise_rounded, plan_of, ranked
from onnxq.options import Options
from onnxq.passes import BALANCE
from onnxq.pipeline import Context, run
from onnxq.plan import BalancePlan, NodePlan, Plan, Treatment
from onnxq.recipe import Contract, Recipe
from onnxq.search.cost import Costs, measure_costs
from onnxq.search.forms import DYNAMIC, FLOAT, STATIC, WEIGHT_4, WEIGHT_8, Forms
from onnxq.search.grouping import Grouping
from onnxq.search.mix import Mixture, Table, mixtures
from onnxq.search.stopwatch import Stopwatch
from onnxq.study import Study
from onnxq.targets import CPU
from onnxq.trial import NOISE_WORTH, TURNED_WORTH, USUAL_NOISE, Outcome, Trials
from onnxq.weights import differences, rounded_weight
from tests.onnx_text import floats, read, serialize
from tests.studies import recipe, study_of

if TYPE_CHECKING:
    from tests.conftest import Clock

# ranking


def score(metric: str = "agreement", drop: float = 0.0, turned: float | None = None) -> Score:
    return Score(
        metric=metric, output="y", drop=drop, float_value=1, value=1, samples=9, standard_error=0.01, turned=turned
    )


def tried(
    name: str = "plan", *, noise: float = 1e-4, speedup: float = 2.0, size: int = 100, score: Score | None = None
) -> Tried:
    """A plan with one static layer of this name; the plan `float` does nothing."""
    treatment = Treatment.FLOAT if name == "float" else Treatment.STATIC
    plan = Plan(recipe=Recipe(), nodes={name: NodePlan(op="Conv", treatment=treatment, reason="")})
    return Tried(plan, Outcome(noise=noise, score=score, milliseconds=1.0, speedup=speedup, bytes=size))


def order(entries: Sequence[Tried], contract: Contract | None = None, most: int | None = None) -> list[str]:
    return [name for entry in ranked(entries, contract or Contract(), most) for name in entry.plan.nodes]


def test_a_price_is_time_and_what_is_lost() -> None:
    assert tried(noise=0.01, speedup=math.e).price == pytest.approx(NOISE_WORTH * 0.01 - 1)
    judged = score(turned=0.02)
    assert tried(noise=9.0, speedup=math.e, score=judged).price == pytest.approx(TURNED_WORTH * 0.02 - 1)
    assert tried(noise=0.01, speedup=1.0, score=score("cosine")).price == pytest.approx(NOISE_WORTH * 0.01)


@pytest.mark.parametrize(
    ("entry", "contract", "kept"),
    [
        (tried(), Contract(), True),
        (tried(noise=USUAL_NOISE), Contract(), True),
        (tried(noise=1.01 * USUAL_NOISE), Contract(), False),
        (tried(noise=1.01 * USUAL_NOISE), Contract(max_drop=0.5), True),
        (tried(speedup=0.99), Contract(), False),
        (tried(speedup=0.99), Contract(min_speedup=0.9), True),
        (tried(score=score("cosine", 0.01)), Contract(), True),
        (tried(score=score("cosine", 0.011)), Contract(), False),
        (tried(score=score("cosine", 0.011)), Contract(max_drop=0.02), True),
        (tried(score=score("cosine", 0.03)), Contract(max_drop=0.02), False),
        # few decisions did turn, or many: what may be expected counts, without doubt's benefit
        (tried(score=score("agreement", 0.0, 0.06)), Contract(), False),
        (tried(score=score("agreement", 0.2, 0.04)), Contract(), True),
        (tried(score=score("agreement", 0.2)), Contract(), False),
        # labels tell more than decisions
        (tried(score=score("top1", 0.0, 0.06)), Contract(), True),
        (tried(score=score("top1", 0.02, 0.001)), Contract(), False),
    ],
)
def test_what_promises_to_keep_a_contract(entry: Tried, contract: Contract, kept: bool) -> None:
    assert entry.keeps(contract, None) is kept


def test_what_is_too_large_keeps_none() -> None:
    for most, kept in ((None, True), (101, True), (100, True), (99, False)):
        assert tried(size=100).small(most) is kept
        assert tried(size=100).keeps(Contract(), most) is kept


def test_the_best_trade_comes_first_and_the_fastest_where_accuracy_is_asked_for() -> None:
    entries = [
        tried("quiet", noise=0.001, speedup=1.98),
        tried("bold", noise=0.009, speedup=2.0),
        tried("slow", speedup=1.5),
    ]
    assert order(entries) == ["quiet", "bold", "slow"]
    assert order(entries, Contract(max_drop=0.1)) == ["bold", "quiet", "slow"]


def test_a_trade_that_is_worse_than_none_comes_after_those_that_are_better() -> None:
    """A hundredth of the time is not worth the noise; where accuracy is asked for, any gain is."""
    entries = [tried("worse", noise=0.009, speedup=1.01), tried("better", noise=0.0001, speedup=1.02)]
    assert entries[0].price > 0 > entries[1].price
    assert order(entries) == ["better", "worse"]
    assert order(entries[:1]) == ["worse"], "it comes near to the contract"
    assert order([tried("worse", noise=0.009, speedup=1.03), *entries[1:]], Contract(max_drop=0.1)) == [
        "worse",
        "better",
    ]


def test_what_comes_near_is_tried_from_the_most_cautious_on() -> None:
    loud = [tried(f"loud {i}", noise=0.02 + i / 100, speedup=3.0) for i in reversed(range(5))]
    good = tried("good", speedup=1.5)
    assert order([*loud, good]) == ["good", "loud 0", "loud 1", "loud 2"]
    assert FEW == 3
    slow = tried("slow", noise=0.0, speedup=1.01 * NEARLY)
    assert order([*loud, slow]) == ["slow", "loud 0", "loud 1"], "another measurement may find it fast enough"
    assert order([*loud, tried("slower", noise=0.0, speedup=0.99 * NEARLY)]) == ["loud 0", "loud 1", "loud 2"]


def test_a_plan_that_does_nothing_is_near_to_no_contract() -> None:
    """But the float model may keep one that asks for nothing else."""
    entries = [tried("float", noise=0.0, speedup=1.0), tried("loud", noise=0.5)]
    assert order(entries) == ["loud"]
    assert order(entries, Contract(max_drop=0.0)) == ["loud", "float"]
    fast = tried("float", noise=0.0, speedup=1.001)
    assert order([fast]) == ["float"]
    assert fast.plan.does_nothing


def test_what_is_too_large_is_not_even_near() -> None:
    entries = [tried("large", speedup=4.0, size=200), tried("small", noise=0.5, speedup=2.0, size=100)]
    assert order(entries, most=100) == ["small"]
    assert order(entries, most=200) == ["large", "small"]


def test_where_nothing_is_near_one_is_left_to_say_why() -> None:
    """The fastest of those that are small enough."""
    entries = [
        tried("large", speedup=0.8, size=200),
        tried("small", speedup=0.5),
        tried("smaller", speedup=0.4, size=9),
    ]
    assert order(entries, most=100) == ["small"]
    assert order(entries) == ["large"]
    assert order(entries, most=5) == ["large"]


def test_a_plan_tells_what_was_measured_of_it() -> None:
    plan = measured(tried(noise=0.00123456, speedup=2.34567, score=score("cosine", 0.0098765)))
    assert (plan.noise, plan.speedup, plan.drop) == (0.00123, 2.35, 0.00988)
    assert measured(tried()).drop is None
    assert measured(tried(noise=math.inf)).noise == math.inf


# plans

X = {"x": floats(24, 5, 16, seed=7)}
TWO = """(float[n,5,16] x) => (float[n,5,8] y) {
    [first] a = Abs(x) [one] b = MatMul(a, w1) [second] c = Tanh(b) [two] y = MatMul(c, w2) }"""


def two() -> Graph:
    return read(TWO, {"w1": floats(16, 24), "w2": floats(24, 8)})


def decided(**treatments: str) -> dict[str, NodePlan]:
    return {
        name: NodePlan(op="MatMul", treatment=Treatment(treatment), reason="So it is.")
        for name, treatment in treatments.items()
    }


def test_a_plan_of_decisions_is_the_static_one_elsewhere() -> None:
    study = study_of(two(), X)
    static = study.plan()
    plan = plan_of(study, static, decided(one="dynamic"))
    assert {name: plan.nodes[name].treatment.value for name in ("one", "two")} == {"one": "dynamic", "two": "static"}
    assert plan.nodes["one"].reason == "So it is."
    assert plan.nodes["two"] == static.nodes["two"]
    assert plan.tensors == {"c": static.tensors["c"]}, "a range that nobody needs is gone"
    assert plan_of(study, static, {}) == static


def balanced() -> Study:
    """A study whose layers both read channels through a Mul."""
    plain, factors = study_of(two(), X), np.linspace(0.5, 2, 24).tolist()
    balance = {
        "a": BalancePlan(factors=factors[:16], multiplies=True, reason=""),
        "c": BalancePlan(factors=factors, multiplies=True, reason=""),
    }
    context = Context(CPU, plain.plan().model_copy(update={"balance": balance}))
    study = study_of(run(BALANCE, plain.build.graph, context, GIVEN).graph, X)
    study.original, study.balance = plain.build.graph, balance
    return study


@pytest.mark.parametrize(
    ("treatment", "multiplied"), [("static", True), ("dynamic", True), ("weight", False), ("float", False)]
)
def test_channels_are_multiplied_where_integers_read_them_alone(treatment: str, multiplied: bool) -> None:
    """And a plan can be followed in either case: it names no node that its own factors would have brought."""
    study = balanced()
    nodes = {} if treatment == "static" else decided(one=treatment)
    plan = plan_of(study, study.plan(), nodes)
    assert list(plan.balance) == (["a", "c"] if multiplied else ["c"])
    build = Build(two(), recipe(), "mixed-int8")
    follow_plan(build, plan)
    made = {node.name for node in run(BALANCE, build.graph, build.context, GIVEN).graph.nodes}
    assert plan.nodes.keys() <= made


def test_factors_that_cost_nothing_stay_while_anything_is_in_integers() -> None:
    text = "(float[n,16] x) => (float[n,8] y) { [one] b = MatMul(x, w1) c = Relu(b) [two] y = MatMul(c, w2) }"
    plain = study_of(read(text, {"w1": floats(16, 24), "w2": floats(24, 8)}), {"x": floats(24, 16)})
    balance = {"b": BalancePlan(factors=np.linspace(0.5, 2, 24).tolist(), multiplies=False, reason="")}
    context = Context(CPU, plain.plan().model_copy(update={"balance": balance}))
    study = study_of(run(BALANCE, plain.build.graph, context, GIVEN).graph, {"x": floats(24, 16)})
    study.original, study.balance = plain.build.graph, balance
    assert plan_of(study, study.plan(), decided(two="float")).balance == balance
    assert plan_of(study, study.plan(), decided(one="weight", two="float")).balance == {}


def test_other_roundings_are_those_that_were_no_better_for_all_layers() -> None:
    study = study_of(two(), X)
    study.rounding, study.other_rounding = {}, {"one": "other", "two": "more"}
    plan = plan_of(study, study.plan(), decided(two="dynamic"))
    assert {name: node.rounding for name, node in otherwise_rounded(plan, study).nodes.items()} == {
        "first": "", "one": "other", "second": "", "two": "",
    }  # fmt: skip
    study.rounding, study.other_rounding = {"one": "best"}, {}
    plan = study.plan()
    assert plan.nodes["one"].rounding == "best"
    assert otherwise_rounded(plan, study).nodes["one"].rounding == "", "to nearest"


@pytest.mark.parametrize(
    ("form", "treatment", "bits"), [(DYNAMIC, "dynamic", 8), (WEIGHT_8, "weight", 8), (WEIGHT_4, "weight", 4)]
)
def test_a_linear_plan_has_every_layer_in_one_form(form: str, treatment: str, bits: int) -> None:
    found = linear_plan(study_of(two(), X), form)
    assert {name: (node.treatment.value, node.bits) for name, node in found.nodes.items()} == dict.fromkeys(
        ("one", "two"), (treatment, bits)
    )
    assert found.tensors == {}


# search


def searched(study: Study, **options: Any) -> list[Plan]:
    return mixed_plans(study, study.plan(), Options(memo=study.memo, **options))


def forms(plan: Plan) -> dict[str, str]:
    """What becomes of each layer."""
    found = {name: node for name, node in plan.nodes.items() if node.op in ("MatMul", "Conv")}
    return {name: f"{n.treatment.value}{n.bits if n.bits == 4 else ''}" for name, n in found.items()}


def unmeasured(plan: Plan) -> Plan:
    """The plan as it was tried."""
    return plan.model_copy(update={"noise": None, "speedup": None, "drop": None})


def test_plans_tell_what_their_models_do(clock: Clock) -> None:
    study = study_of(two(), X)
    found = searched(study)
    assert forms(found[0]) == {"one": "static", "two": "static"}
    trials = Trials(study, 1)
    for plan in found:
        outcome = trials.outcome(unmeasured(plan))
        assert plan.noise == pytest.approx(outcome.noise, rel=0.01)
        assert plan.speedup == pytest.approx(clock.whole(plan).speedup, rel=0.01)
        assert outcome.score is not None
        assert plan.drop == pytest.approx(outcome.score.drop, rel=0.01)
    assert len({plan.deeds for plan in found}) == len(found)


@pytest.mark.usefixtures("clock")
def test_every_plan_can_be_followed() -> None:
    for plan in searched(study_of(two(), X)):
        build = Build(two(), recipe(), "mixed-int8")
        follow_plan(build, plan)


def test_what_is_fastest_as_a_whole_comes_first(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the sum of its parts foretold: each form for all layers is tried in any case."""
    parts = dict(clock.microseconds)
    whole = {**parts, WEIGHT_8: 10.0}
    honest = clock.whole

    def surprising(plan: Plan) -> Any:
        clock.microseconds = whole
        try:
            return honest(plan)
        finally:
            clock.microseconds = parts

    monkeypatch.setattr(Trials, "_timing", lambda _, plan, __: surprising(plan))
    found = searched(study_of(two(), X))
    assert forms(found[0]) == {"one": "weight", "two": "weight"}
    assert found[0].speedup == 9.0


WIDE = """(float[n,64] x) => (float[n,64] y) { [one] a = MatMul(x, w1) b = Tanh(a) [two] y = MatMul(b, w2) }"""


def wide() -> Graph:
    return read(WIDE, {"w1": floats(64, 256) / 8, "w2": floats(256, 64) / 16})


@pytest.mark.parametrize(
    ("most", "treatments"),
    [
        (None, ["static", "static"]),
        ("40%", ["static", "static"]),
        ("22%", ["static", "weight4"]),
        ("18%", ["weight4", "weight4"]),
    ],
)
def test_where_only_4_bits_are_small_enough_they_are_taken(
    tmp_path: Path, clock: Clock, most: str | None, treatments: list[str]
) -> None:
    """Float takes 4 bytes for each weight, integers 1, and 4 bits with a scale for 32 of them 5/8."""
    clock.microseconds |= {STATIC: 30.0, DYNAMIC: 40.0, WEIGHT_8: 50.0, WEIGHT_4: 60.0}
    path = tmp_path / "wide.onnx"
    path.write_bytes(serialize(wide()))
    contract = Contract(metric="sqnr", max_drop=0.5, max_size=most)
    result = onnxq.optimize(path, data={"x": floats(32, 64)}, recipe=recipe(contract), options=Options(memo=Memo()))
    assert (result.status, result.reason) == ("optimized", "")
    assert result.plan is not None
    assert sorted(forms(result.plan).values()) == treatments
    if most is not None:
        size = path.with_name("wide.int8.onnx").stat().st_size
        assert size <= int(most.rstrip("%")) / 100 * path.stat().st_size


def test_every_plan_is_small_enough_where_any_is(clock: Clock) -> None:
    clock.microseconds |= {WEIGHT_4: 60.0}
    small = Contract(metric="sqnr", max_drop=0.5, max_size="26%")
    study = study_of(wide(), {"x": floats(32, 64)}, recipe(small))
    found, trials = searched(study), Trials(study, 1)
    most = 0.26 * to_model(wide()).ByteSize()
    sizes = [
        trials.outcome(plan.model_copy(update=dict.fromkeys(("noise", "speedup", "drop")))).bytes for plan in found
    ]
    assert len(sizes) > 1
    assert max(sizes) <= most


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float | None]]:
    """By how much budgets shrink in each search, and how many bytes there are for weights."""
    found: list[tuple[float, float | None]] = []

    def watched(table: Table, factor: float = 1.0, max_bytes: float | None = None) -> list[Mixture]:
        found.append((factor, max_bytes))
        return mixtures(table, factor, max_bytes)

    monkeypatch.setattr(mixed, "mixtures", watched)
    return found


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("by", [1.0, 0.1, 4.0])
def test_budgets_shrink_by_as_much_as_the_sums_were_off(
    monkeypatch: pytest.MonkeyPatch, asked: list[tuple[float, float | None]], by: float
) -> None:
    honest = Grouping.noise
    monkeypatch.setattr(Grouping, "noise", lambda *args: {name: by * own for name, own in honest(*args).items()})
    study = study_of(two(), X)
    searched(study)
    loud = Trials(study, 1).outcome(study.plan()).noise
    grouping = Grouping(Forms(study.build.graph, CPU, study.plan()))
    keys = ("one|static", "a|read by a", "two|static", "c|read by c")
    assert study.data is not None
    noise = grouping.noise(study.data, study.affordable(len(grouping.rounded)))
    off = loud / sum(noise[key] for key in keys)
    assert 0.8 / by < off < 1.25 / by
    ((factor, room),) = asked
    assert factor == (1.0 if by == 1.0 else pytest.approx(off))
    assert room is None


@pytest.mark.usefixtures("clock")
def test_a_model_whose_outputs_lose_their_bounds_is_searched_all_the_same(
    asked: list[tuple[float, float | None]],
) -> None:
    """Where a quantized value of 0 is divided by, nothing tells how far the sums are off."""
    text = (
        "(float[n,8,6,6] x) => (float[n,8,6,6] y) { [one] a = Conv(x, w1, k) [two] b = Conv(a, w2, k) y = Div(one, b) }"
    )
    weights = {"w1": floats(8, 8, 1, 1, seed=1) / 3, "w2": floats(8, 8, 1, 1) / 3, "k": floats(8), "one": np.float32(1)}
    data = {"x": floats(32, 8, 6, 6, seed=7)}
    found = searched(study_of(read(text, weights), data, recipe(Contract(metric="sqnr"))))
    assert asked == [(1.0, None)]
    assert found


@pytest.mark.usefixtures("clock")
def test_weights_have_the_room_that_the_rest_of_a_model_leaves(asked: list[tuple[float, float | None]]) -> None:
    study = study_of(wide(), {"x": floats(32, 64)}, recipe(Contract(max_size=70_000)))
    searched(study)
    ((_, room),) = asked
    rest = Trials(study, 1).outcome(study.plan()).bytes - 2 * 64 * 256
    assert room == 70_000 - rest
    assert 500 < rest < 10_000


def never(*_: object, **__: object) -> Any:
    raise AssertionError("This was measured before.")


@pytest.mark.usefixtures("clock")
def test_a_second_search_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = searched(study_of(two(), X, memo=Memo(tmp_path)))
    monkeypatch.setattr(Trials, "_measure", never)
    monkeypatch.setattr(Grouping, "noise", never)
    monkeypatch.setattr(Study, "_pace", never)
    monkeypatch.setattr(mixed, "Stopwatch", partial(Stopwatch, timer=never))
    assert searched(study_of(two(), X, memo=Memo(tmp_path))) == first


@pytest.mark.usefixtures("clock")
def test_plans_that_were_tried_are_told() -> None:
    told = list[tuple[str, int, int]]()
    study = study_of(two(), X)
    study.build.progress = lambda *step: told.append(step)
    searched(study)
    plans = [step[1:] for step in told if step[0] == "plans"]
    assert plans == [(done, len(plans)) for done in range(1, len(plans) + 1)]
    assert len(plans) >= 4


@pytest.mark.usefixtures("clock")
def test_floats_alone_are_a_plan_where_rewrites_made_them_faster() -> None:
    """Else they are the float model, which nobody has to try."""
    exact = recipe(Contract(metric="sqnr", max_drop=0.0))
    study = study_of(two(), X, exact)
    alone = {"one": FLOAT, "two": FLOAT}
    assert alone not in [forms(plan) for plan in searched(study)]
    study.rewrites = ["FuseNorms"]
    (first, *_) = searched(study)
    assert forms(first) == alone
    assert first.rewrites == ["FuseNorms"]
    assert not first.does_nothing


@pytest.mark.usefixtures("clock")
def test_plans_worth_proving_are_rounded_otherwise_too() -> None:
    study = study_of(two(), X)
    (layer, _) = Forms(study.build.graph, CPU, study.plan()).layers.values()
    nearest = rounded_weight(layer, study.recipe.weight, True).values
    study.other_rounding = {"one": differences(nearest // 2, nearest)}
    found = [plan.nodes["one"].rounding for plan in searched(study) if forms(plan)["one"] == STATIC]
    assert set(found) == {"", study.other_rounding["one"]}


BETWEEN = """(float[n,8,6,6] x) => (float[n,8,6,6] y) {
    [one] a = Conv(x, w, k) [two] b = Conv(a, w, k) [sum] s = Add(a, b) [three] c = Conv(s, w, k)
    [four] d = Conv(c, w, k) [end] y = Tanh(d) }"""


@pytest.mark.usefixtures("clock")
def test_what_stands_between_layers_is_left_static_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its parts say that it is faster in float, a whole model may say otherwise."""
    prices = {"sum": {STATIC: 30.0, FLOAT: 1.0}, "four": {STATIC: 50.0, FLOAT: 10.0}}

    def costs(graph: Graph, plans: object, names: Sequence[str], *_: object) -> Costs:
        return Costs(layers={name: prices.get(name, {STATIC: 30.0, FLOAT: 90.0}) for name in names}, boundary={})

    monkeypatch.setattr(mixed, "measure_costs", costs)
    graph = read(BETWEEN, {"w": floats(8, 8, 1, 1) / 3, "k": floats(8, seed=1)})
    found = searched(study_of(graph, {"x": floats(24, 8, 6, 6, seed=7)}))
    both = [(plan.treatment("sum").value, plan.treatment("four").value) for plan in found]
    assert (FLOAT, FLOAT) in both, "as the parts say"
    assert (STATIC, FLOAT) in both
    assert (STATIC, STATIC) in both


@pytest.mark.usefixtures("clock")
def test_muls_that_balance_channels_are_timed_like_any_part(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[str] = []

    def watched(graph: Graph, plans: Any, names: Sequence[str], *rest: Any) -> Costs:
        timed.extend(names)
        return measure_costs(graph, plans, names, *rest)

    monkeypatch.setattr(mixed, "measure_costs", watched)
    searched(balanced())
    assert timed == ["one", "two", "a_balance", "c_balance"]
