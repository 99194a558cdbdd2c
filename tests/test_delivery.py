"""The contract decides: what is written, what is left alone, what is rejected, and that it decides alike again.

No real time decides a test: `clock` tells what everything takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxq
from onnxq import Contract, Options, Plan, Recipe, Result, api
from onnxq.build import Build, prepare
from onnxq.errors import OutputError
from onnxq.memo import Memo
from onnxq.plan import Treatment
from onnxq.recipe import Activation, Mode
from onnxq.runtime import Session
from tests.conftest import two_layers

if TYPE_CHECKING:
    from tests.conftest import Clock

Search = Callable[[list[Plan]], None]

LEAST_NOISE = Contract(metric="sqnr", max_drop=1e-7)
"""More than 8 bits can keep."""

NO_LAYER = "No layer runs faster in integers here without losing too much accuracy."
SLOW = "0.5 times the float model's speed: it would be slower."


def optimize(model: Path, data: Any, contract: Contract | None = None, mode: Mode = "auto", **options: Any) -> Result:
    """What becomes of a model under a contract; the rule for ranges is one that needs no search."""
    asked: dict[str, Any] = {} if contract is None else {"contract": contract}
    recipe = Recipe(mode=mode, activation=Activation(range="mse"), **asked)
    return onnxq.optimize(model, data=data, recipe=recipe, options=Options(**options))


def forms(result: Result) -> dict[str, str]:
    """What became of each layer."""
    assert result.plan is not None
    return {name: plan.treatment.value for name, plan in result.plan.nodes.items() if plan.op in ("MatMul", "Conv")}


def output_of(model: Path) -> Path:
    return model.with_name("model.int8.onnx")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def is_float_copy(model: Path) -> bool:
    return output_of(model).read_bytes() == model.read_bytes()


# speed


@pytest.mark.parametrize("mode", ["auto", "mixed-int8"])
def test_what_keeps_the_contract_is_written(model: Path, data: Path, clock: Clock, mode: Mode) -> None:
    result = optimize(model, data, mode=mode)
    assert (result.status, result.reason, result.mode) == ("optimized", "", "mixed-int8")
    assert (result.output, result.kept) == (str(output_of(model)), None)
    assert forms(result) == {"one": "static", "two": "static"}
    assert not is_float_copy(model)
    assert clock.timed == 1


@pytest.mark.parametrize(
    ("speedup", "written"), [(0.5, False), (0.999, False), (1.0, True)], ids=["slower", "a little slower", "as fast"]
)
def test_a_slower_model_is_never_written(model: Path, data: Path, clock: Clock, speedup: float, written: bool) -> None:
    clock.speedups = [speedup]
    result = optimize(model, data)
    assert result.status == ("optimized" if written else "left alone")
    assert is_float_copy(model) != written
    assert result.output == str(output_of(model))
    assert result.reason == ("" if written else SLOW.replace("0.5", f"{speedup:g}"))
    assert bool(result.changes) == written, "what was tried on the way is not in the file"


@pytest.mark.parametrize(
    ("static", "dynamic", "chosen"),
    [(30.0, 60.0, "static"), (60.0, 30.0, "dynamic"), (100.0, 110.0, "float")],
)
def test_the_time_of_each_form_decides(
    model: Path, data: Path, clock: Clock, static: float, dynamic: float, chosen: str
) -> None:
    clock.microseconds |= {"static": static, "dynamic": dynamic}
    result = optimize(model, data)
    assert forms(result) == {"one": chosen, "two": chosen}


@pytest.mark.parametrize("check", [True, False])
def test_where_no_layer_gains_the_float_model_stays(model: Path, data: Path, clock: Clock, check: bool) -> None:
    """However fast its normalized form was timed."""
    clock.microseconds |= {"static": 100.0, "dynamic": 100.0}
    result = optimize(model, data, check=check)
    assert (result.status, result.reason) == ("left alone", NO_LAYER)
    assert is_float_copy(model)
    assert result.changes == {}


def test_dynamic_layers_are_held_to_it_too(model: Path, clock: Clock) -> None:
    clock.speedups = [0.5]
    result = optimize(model, None)
    assert (result.status, result.mode, result.reason) == ("left alone", "dynamic-int8", SLOW)
    assert is_float_copy(model)


def test_a_single_recipe_without_a_contract_is_not_judged_by_its_speed(model: Path, data: Path, clock: Clock) -> None:
    clock.speedups = [0.5]
    for mode in ("static-int8", "dynamic-int8"):
        result = optimize(model, data, mode=mode)
        assert (result.status, result.mode) == ("optimized", mode)
        assert "Slower than the float model on this machine: 0.50 times its speed." in result.warnings
    result = optimize(model, data, Contract(min_speedup=1.0), mode="static-int8")
    asked = "0.5 times the float model's speed, below the 1 that --min-speedup asks for."
    assert (result.status, result.reason) == ("left alone", asked)


# accuracy


@pytest.fixture
def plans(model: Path, data: Path) -> list[Plan]:
    """From bold to cautious: ranges 25 times too wide, as they should be, one layer in float, all of them."""
    static = optimize(model, data, mode="static-int8", check=False).plan
    assert static is not None
    wide = {name: tensor.model_copy(update={"scale": 25 * tensor.scale}) for name, tensor in static.tensors.items()}
    found = [static.model_copy(update={"tensors": wide}), static]
    for name in ("one", "two"):
        spared = {name: found[-1].nodes[name].model_copy(update={"treatment": Treatment.FLOAT})}
        found.append(found[-1].model_copy(update={"nodes": found[-1].nodes | spared}))
    return found


def made_by(plan: Plan, model: Path) -> bytes:
    """What a plan alone makes of a model."""
    output = model.with_name("alone.onnx")
    onnxq.optimize(model, output, plan=plan, options=Options(check=False))
    return output.read_bytes()


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Search:
    """Let a search find certain plans."""

    def finds(plans: list[Plan]) -> None:
        def plan_model(build: Build, *_: object) -> list[Plan]:
            prepare(build)
            return plans

        monkeypatch.setattr(api, "plan_model", plan_model)

    return finds


@pytest.fixture
def noises(model: Path, data: Path, plans: list[Plan]) -> list[float]:
    """Noise over signal of each of these plans."""
    found = []
    for plan in plans:
        recipe = plan.recipe.model_copy(update={"contract": Contract(metric="sqnr")})
        plan = plan.model_copy(update={"recipe": recipe})
        proof = onnxq.optimize(model.read_bytes(), data=data, plan=plan, options=Options(force=True)).proof
        assert proof is not None
        assert proof.score is not None
        found.append(proof.score.drop)
    return found


@pytest.mark.usefixtures("clock")
def test_the_plans_of_these_tests_are_bold_first(noises: list[float]) -> None:
    assert noises[0] > 4 * noises[1] > 8 * noises[2] > 1e3 * noises[3]


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_the_first_plan_that_keeps_the_contract_is_taken(
    model: Path, data: Path, clock: Clock, plans: list[Plan], noises: list[float], search: Search, taken: int
) -> None:
    alone = made_by(plans[taken], model)
    search(plans)
    clock.timed = 0
    result = optimize(model, data, Contract(metric="sqnr", max_drop=1.01 * noises[taken]))
    assert (result.status, result.reason, clock.timed) == ("optimized", "", taken + 1)
    assert result.plan == plans[taken]
    assert result.proof is not None
    assert result.proof.score is not None
    assert result.proof.score.drop == noises[taken]
    assert output_of(model).read_bytes() == alone, "nothing is left of the plans before"


def test_what_is_louder_than_a_plan_that_lost_too_much_is_not_tried(
    model: Path, data: Path, clock: Clock, plans: list[Plan], noises: list[float], search: Search
) -> None:
    """As far as calibration data told; what is too slow says nothing about accuracy."""
    told = [plan.model_copy(update={"noise": noise}) for plan, noise in zip(plans, noises, strict=True)]
    clock.timed = 0
    as_loud = told[0].model_copy(update={"noise": noises[1]})
    search([told[1], told[0], as_loud, told[2]])
    result = optimize(model, data, Contract(metric="sqnr", max_drop=1.01 * noises[2]))
    assert (result.status, result.plan, clock.timed) == ("optimized", told[2], 2)
    clock.timed = 0
    search([told[1], plans[0], told[2]])
    result = optimize(model, data, Contract(metric="sqnr", max_drop=1.01 * noises[2]), memo=Memo())
    assert (result.status, clock.timed) == ("optimized", 3), "of one of them nobody knows the noise"
    clock.timed, clock.speedups = 0, [0.5, 2.0]
    search([told[2], told[1]])
    result = optimize(model, data, Contract(metric="sqnr", max_drop=1.01 * noises[1]), memo=Memo())
    assert (result.status, result.plan, clock.timed) == ("optimized", told[1], 2)


def test_where_no_plan_keeps_it_the_float_model_does(
    model: Path, data: Path, clock: Clock, plans: list[Plan], noises: list[float], search: Search
) -> None:
    alone = made_by(plans[2], model)
    search(plans)
    best = model.with_name("best.onnx")
    result = optimize(model, data, Contract(metric="sqnr", max_drop=0.5 * noises[2]), keep_best=best)
    assert result.status == "left alone"
    assert result.reason == (
        f"The noise of output 'y' is {100 * noises[2]:.3g} % of its signal (limit {50 * noises[2]:.3g})."
    )
    assert is_float_copy(model)
    assert result.plan == plans[2], "the best of those that lose too much; the float one is no result"
    assert result.kept == str(best)
    assert best.read_bytes() == alone


def test_static_layers_that_lose_too_much_are_left_alone(model: Path, data: Path, clock: Clock) -> None:
    result = optimize(model, data, LEAST_NOISE)
    assert result.status == "left alone"
    assert result.reason.startswith("The noise of output 'y' is ")
    assert result.reason.endswith(" % of its signal (limit 1e-05).")
    assert is_float_copy(model)
    assert clock.timed >= 1


def test_a_search_that_is_asked_for_less_noise_takes_a_more_cautious_plan(tmp_path: Path, clock: Clock) -> None:
    """Where one channel of the input is 60 times as large as the others, the first layer is fast and noisy."""
    proto, x = two_layers(), np.random.default_rng(1).standard_normal((24, 16)).astype(np.float32)
    weights = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    weights[0] /= 60
    x[:, 0] *= 60
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, proto.graph.initializer[0].name))
    model = tmp_path / "model.onnx"
    onnx.save(proto, model)
    found = []
    for drop in (0.5, 1e-3, 1e-7):
        clock.timed = 0
        found.append(optimize(model, {"x": x}, Contract(metric="sqnr", max_drop=drop)))
        assert clock.timed == 1, "what loses too much on calibration data is not proven"
    assert [result.status for result in found] == ["optimized", "optimized", "left alone"]
    assert forms(found[0]) == {"one": "static", "two": "static"}
    assert forms(found[1]) == {"one": "float", "two": "static"}
    assert found[1].plan is not None
    assert "it adds less noise" in found[1].plan.nodes["one"].reason
    assert is_float_copy(model)


def test_made_up_data_decides_nothing_about_accuracy(
    model: Path, clock: Clock, plans: list[Plan], search: Search
) -> None:
    search(plans)
    note = "The accuracy was not judged: the data is random. Give --data."
    result = optimize(model, "random")
    assert (result.status, result.plan, result.random) == ("optimized", plans[0], True)
    assert result.proof is not None
    assert result.proof.score is None
    assert note in result.warnings
    clock.speedups = [0.5]
    result = optimize(model, "random", memo=Memo())
    assert (result.status, result.reason) == ("left alone", SLOW)
    assert note in result.warnings


# rejected


@pytest.mark.parametrize(
    ("contract", "words"),
    [
        (Contract(min_speedup=100), "2 times the float model's speed, below the 100 that --min-speedup asks for."),
        (Contract(max_size="1%"), "(1% of the float model) that --max-size allows."),
        (Contract(max_size=100), "bytes, more than the 100 that --max-size allows."),
        (Contract(min_speedup=3, metric="sqnr", max_drop=1e-7), "(limit 1e-05). 2 times the float model's speed"),
    ],
)
@pytest.mark.parametrize("mode", ["auto", "static-int8"])
@pytest.mark.usefixtures("clock")
def test_what_float_cannot_keep_either_is_rejected(
    model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch,
    mode: Mode, contract: Contract, words: str,
) -> None:  # fmt: skip
    scratch = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    output_of(model).write_bytes(b"older")
    before = contents(model.parent)
    result = optimize(model, data, contract, mode=mode)
    assert (result.status, result.output, result.kept) == ("rejected", None, None)
    assert words in result.reason
    assert result.proof is not None
    assert result.plan is not None
    assert contents(model.parent) == before
    assert sorted(model.parent.iterdir()) == sorted(model.parent / name for name in before)
    assert not list(scratch.iterdir())


@pytest.mark.parametrize(
    ("times", "named"), [({"float us": 90.0, "static us": 30.0}, True), ({"float us": 90.0, "static us": 91.0}, False)]
)
@pytest.mark.usefixtures("clock")
def test_the_layers_in_the_way_are_named(
    model: Path, data: Path, plans: list[Plan], search: Search, times: dict[str, float], named: bool
) -> None:
    """Those that would be faster in integers, not those that are fast in float."""
    spared = plans[2].nodes["one"].model_copy(update={"measured": {"static noise": 0.5, **times}})
    plan = plans[2].model_copy(update={"nodes": plans[2].nodes | {"one": spared}})
    search([plan])
    result = optimize(model, data, Contract(min_speedup=2.5))
    assert result.status == "rejected"
    assert result.reason.endswith("In the way stand 'one', which lose too much accuracy in integers.") == named


def test_a_search_says_what_stood_in_the_way(model: Path, data: Path, clock: Clock) -> None:
    clock.microseconds |= {"static": 100.0, "dynamic": 100.0}
    result = optimize(model, data, Contract(min_speedup=2))
    assert (result.status, result.reason) == ("rejected", NO_LAYER)
    assert result.plan is not None
    assert result.plan.nodes["one"].measured["float us"] == 90.0


@pytest.mark.usefixtures("clock")
def test_a_size_that_float_has_too_is_no_reason_to_reject(model: Path, data: Path) -> None:
    """What is too noisy is left alone where the float model is small enough."""
    size = model.stat().st_size
    for most, status in ((size, "left alone"), (size - 1, "rejected")):
        assert optimize(model, data, LEAST_NOISE.model_copy(update={"max_size": most})).status == status


@pytest.mark.parametrize(("contract", "status"), [(Contract(), "left alone"), (Contract(min_speedup=2), "rejected")])
def test_a_model_without_layers_is_judged_as_it_is(data: Path, tmp_path: Path, contract: Contract, status: str) -> None:
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 16]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    model = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), model)
    result = optimize(model, data, contract)
    assert result.status == status
    assert "no layer" in result.reason
    assert output_of(model).exists() == (status == "left alone")


@pytest.mark.usefixtures("clock")
def test_the_best_model_is_kept_where_that_is_asked_for(model: Path, data: Path) -> None:
    best = model.with_name("best.onnx")
    result = optimize(model, data, Contract(min_speedup=100), keep_best=best)
    assert (result.status, result.output, result.kept) == ("rejected", None, str(best))
    assert not output_of(model).exists()
    x = np.load(data)["x"]
    got, expected = (Session(path, threads=1).run({"x": x})["y"] for path in (best, model))
    assert 0 < np.abs(got - expected).max() < 0.1 * np.abs(expected).max()
    fine = optimize(model, data, keep_best=model.with_name("unneeded.onnx"))
    assert (fine.status, fine.kept) == ("optimized", None)
    assert not model.with_name("unneeded.onnx").exists()
    assert output_of(model).read_bytes() == best.read_bytes()


def test_the_best_model_has_a_place_of_its_own(model: Path, data: Path) -> None:
    for place, words in ((output_of(model), "Name two files"), (model, "is the input model")):
        with pytest.raises(OutputError, match=words):
            optimize(model, data, keep_best=place)
    with pytest.raises(OutputError, match="does not exist"):
        optimize(model, data, keep_best=model.parent / "absent" / "best.onnx")


def test_force_writes_the_first_model_and_says_what_it_breaks(model: Path, data: Path, clock: Clock) -> None:
    clock.speedups = [0.5]
    result = optimize(model, data, force=True)
    assert (result.status, result.output) == ("optimized", str(output_of(model)))
    assert SLOW in result.warnings
    assert not is_float_copy(model)


# what was decided before


def test_a_replayed_plan_is_never_judged(model: Path, data: Path, clock: Clock) -> None:
    first = optimize(model, data, Contract(min_speedup=1.5))
    assert first.plan is not None
    clock.speedups = [0.5]
    output = model.with_name("again.onnx")
    again = onnxq.optimize(model, output, data=data, plan=first.plan, options=Options(memo=Memo()))
    assert (again.status, again.plan) == ("optimized", first.plan)
    assert output.read_bytes() == output_of(model).read_bytes()


@pytest.mark.parametrize(("before", "after"), [(2.0, 0.5), (0.5, 2.0)])
@pytest.mark.parametrize("on_disk", [True, False])
def test_a_speed_that_decided_once_decides_again(
    model: Path, data: Path, tmp_path: Path, clock: Clock, before: float, after: float, on_disk: bool
) -> None:
    memo = Memo(tmp_path / "memo" if on_disk else None)
    clock.speedups = [before]
    first, bytes_before = optimize(model, data, memo=memo), output_of(model).read_bytes()
    clock.speedups = [after]
    again = optimize(model, data, memo=Memo(memo.folder) if on_disk else memo)
    assert (again.status, again.reason, again.plan) == (first.status, first.reason, first.plan)
    assert output_of(model).read_bytes() == bytes_before
    elsewhere = optimize(model, data, memo=Memo())
    assert {first.status, elsewhere.status} == {"optimized", "left alone"}


@pytest.mark.parametrize("change", [{"threads": 2}, {"batch": 3}, {"seconds": 4.0}])
def test_it_decides_for_the_same_measurement_alone(
    model: Path, data: Path, clock: Clock, change: dict[str, Any]
) -> None:
    memo = Memo()
    options = Options(memo=memo)
    recipe = Recipe(mode="static-int8", contract=Contract(min_speedup=1))
    for mine, speedup, status in (
        (options, 2.0, "optimized"),
        (replace(options, **change), 0.5, "left alone"),
        (options, 0.5, "optimized"),
    ):
        clock.speedups = [speedup]
        assert onnxq.optimize(model, data=data, recipe=recipe, options=mine).status == status


@pytest.mark.usefixtures("clock")
def test_another_contract_is_held_against_the_speed_of_before(model: Path, data: Path, clock: Clock) -> None:
    memo = Memo()
    for asked, speedup, status in ((1.5, 2.0, "optimized"), (1.9, 1.2, "optimized"), (2.1, 9.0, "rejected")):
        clock.speedups = [speedup]
        assert optimize(model, data, Contract(min_speedup=asked), "static-int8", memo=memo).status == status


@pytest.mark.usefixtures("clock")
def test_accuracy_is_judged_anew_on_other_data_of_the_same_name(model: Path, data: Path, tmp_path: Path) -> None:
    memo, held = Memo(), tmp_path / "held.npz"
    x = np.load(data)["x"][:8]
    recipe = Recipe(mode="static-int8", contract=Contract(metric="sqnr", max_drop=0.02))
    for values, status in ((x, "optimized"), (4 * x, "left alone")):
        np.savez(held, x=values)  # four times as large, most of it is cut off
        result = onnxq.optimize(model, data=data, validation=held, recipe=recipe, options=Options(memo=memo))
        assert result.status == status
    assert "The noise of output 'y'" in result.reason or "cosine" in result.reason


def test_one_memo_gives_the_same_bytes_whatever_the_time_is(model: Path, data: Path, clock: Clock) -> None:
    memo = Memo()
    first, bytes_before = optimize(model, data, memo=memo), output_of(model).read_bytes()
    clock.microseconds |= {"float": 1.0, "dynamic": 80.0, "static": 90.0}
    clock.speedups = [0.1]
    again = optimize(model, data, memo=memo)
    assert (again.status, again.plan) == (first.status, first.plan) == ("optimized", first.plan)
    assert output_of(model).read_bytes() == bytes_before
    assert optimize(model, data, memo=Memo()).status == "left alone"
