"""A plan goes to text and back without losing a bit, and an edit that makes no sense is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.errors import RecipeError
from onnxq.plan import LEFT_OUT, BalancePlan, MaskPlan, NodePlan, Plan, TensorPlan, Treatment, make_plan, read_plan
from onnxq.recipe import Contract, Override, Recipe

FINITE = st.floats(allow_nan=False, allow_infinity=False)
SCALES = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)
NAMES = st.text(max_size=8)


@st.composite
def tensor_plans(draw: st.DrawFn) -> TensorPlan:
    """Any decision about a tensor."""
    form = draw(st.sampled_from(["uint8", "int8"]))
    lowest = 0 if form == "uint8" else -128
    return TensorPlan(
        format=form,
        scale=draw(SCALES),
        zero_point=draw(st.integers(lowest, lowest + 255)),
        low=draw(FINITE),
        high=draw(FINITE),
        reason=draw(NAMES),
        means=draw(st.lists(FINITE, max_size=3)),
    )


NODE_PLANS = st.builds(
    NodePlan,
    op=NAMES,
    treatment=st.sampled_from(Treatment),
    reason=NAMES,
    per_channel=st.booleans(),
    bits=st.sampled_from([4, 8]),
    rounding=st.sampled_from(["", "eJxjYAAAAAIAAQ=="]),
)
BALANCE_PLANS = st.builds(
    BalancePlan,
    factors=st.lists(st.floats(1e-20, 1e20), min_size=1, max_size=3),
    multiplies=st.booleans(),
    reason=NAMES,
)
RECIPES = st.builds(Recipe, nodes=st.dictionaries(NAMES, st.builds(Override, quantize=st.booleans()), max_size=2))
PLANS = st.builds(
    Plan,
    recipe=RECIPES,
    nodes=st.dictionaries(NAMES, NODE_PLANS, max_size=3),
    tensors=st.dictionaries(NAMES, tensor_plans(), max_size=3),
    masks=st.dictionaries(NAMES, st.builds(MaskPlan, mask=NAMES, bound=FINITE), max_size=2),
    balance=st.dictionaries(NAMES, BALANCE_PLANS, max_size=2),
    noise=st.none() | FINITE,
    drop=st.none() | FINITE,
    speedup=st.none() | FINITE,
)


@settings(max_examples=60, deadline=None)
@given(PLANS)
def test_text_and_back_is_exact(plan: Plan) -> None:
    found = make_plan(json.loads(plan.to_json()))
    assert found == plan
    assert found.to_json() == plan.to_json()


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(plan().to_json(), encoding="utf-8")
    assert read_plan(path) == plan()


def plan() -> Plan:
    """Two nodes, one tensor, channels that are rescaled."""
    return Plan(
        recipe=Recipe(mode="static-int8"),
        nodes={
            "conv": NodePlan(op="Conv", treatment=Treatment.STATIC, reason="Runs on integers."),
            "lstm": NodePlan(op="LSTM", treatment=Treatment.FLOAT, reason="No kernel."),
        },
        tensors={"x": TensorPlan(format="uint8", scale=0.1, zero_point=3, low=-0.3, high=25.2, reason="mse")},
        balance={"x": BalancePlan(factors=[0.5, 2.0], multiplies=False, reason="")},
    )


def test_nodes_that_are_not_named_stay_in_float() -> None:
    assert [plan().treatment(name) for name in ("conv", "lstm", "other")] == [
        Treatment.STATIC,
        Treatment.FLOAT,
        Treatment.FLOAT,
    ]


def test_a_plan_of_floats_alone_does_nothing() -> None:
    node = NodePlan(op="Conv", treatment=Treatment.FLOAT, reason="")
    still = Plan(recipe=Recipe(), nodes={"conv": node, "other": node})
    assert still.does_nothing
    assert Plan(recipe=Recipe(), nodes={}).does_nothing
    for treatment in (Treatment.STATIC, Treatment.DYNAMIC, Treatment.WEIGHT):
        nodes = {"conv": node, "other": node.model_copy(update={"treatment": treatment})}
        assert not still.model_copy(update={"nodes": nodes}).does_nothing
    assert not still.model_copy(update={"rewrites": ["FuseNorms"]}).does_nothing
    assert not still.model_copy(update={"masks": {"add": MaskPlan(mask="m", bound=-60.0)}}).does_nothing


def test_deeds_are_the_same_whatever_is_asked_of_the_result() -> None:
    asked = Recipe(mode="static-int8", contract=Contract(max_drop=0.5, min_speedup=3.0, max_size="10%"))
    assert plan().model_copy(update={"recipe": asked}).deeds == plan().deeds
    others = [
        plan().model_copy(update={"recipe": Recipe(mode="static-int8", balance=False)}),
        plan().model_copy(update={"opset": 23}),
        plan().model_copy(update={"tensors": {}}),
        plan().model_copy(update={"balance": {}}),
        plan().model_copy(update={"nodes": {}}),
    ]
    assert len({other.deeds for other in (plan(), *others)}) == 1 + len(others)


def test_the_text_is_for_people() -> None:
    lines = plan().to_json().splitlines()
    assert '   "treatment": "static",' in lines
    assert '   "scale": 0.1,' in lines


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("nodes", "conv", "treatment"), "int4", r"'nodes\.conv\.treatment' in the plan is 'int4'"),
        (("nodes", "conv", "treatmnt"), "float", r"Unknown key 'nodes\.conv\.treatmnt' in the plan"),
        (("nodes", "conv", "bits"), 5, r"'nodes\.conv\.bits' in the plan is 5"),
        (("tensors", "x", "scale"), 0, r"'tensors\.x\.scale' in the plan is 0: .*greater than 0"),
        (("tensors", "x", "scale"), float("nan"), r"'tensors\.x\.scale' in the plan is nan"),
        (("tensors", "x", "scale"), float("inf"), r"'tensors\.x\.scale' in the plan is inf"),
        (("tensors", "x", "scale"), "wide", r"'tensors\.x\.scale' in the plan is 'wide'"),
        (("tensors", "x", "zero_point"), 256, r"'tensors\.x\.zero_point' in the plan is 256: .*from 0 to 255"),
        (("tensors", "x", "zero_point"), -1, r"'tensors\.x\.zero_point' in the plan is -1"),
        (("tensors", "x", "zero_point"), 1.5, r"'tensors\.x\.zero_point' in the plan is 1\.5"),
        (("tensors", "x", "format"), "int9", r"'tensors\.x\.format' in the plan is 'int9'"),
        (("balance", "x", "factors"), [], r"'balance\.x\.factors' in the plan is \[\]: .*one for each channel"),
        (("balance", "x", "factors"), [1.0, 0.0], r"'balance\.x\.factors' in the plan is .*positive"),
        (("balance", "x", "factors"), [1.0, -2.0], r"'balance\.x\.factors' in the plan is .*positive"),
        (("balance", "x", "factors"), [1e-45], r"'balance\.x\.factors' in the plan is .*from 1e-30"),
        (("balance", "x", "factors"), [1e39], r"'balance\.x\.factors' in the plan is .*to 1e30"),
        (("balance", "x", "factors"), [float("nan")], r"'balance\.x\.factors' in the plan is"),
        (("recipe", "moed"), "auto", r"Unknown key 'recipe\.moed' in the plan"),
        (("extra",), 1, "Unknown key 'extra' in the plan"),
        (("nodes",), [], "'nodes' in the plan is"),
    ],
)
def test_an_edit_that_makes_no_sense_is_named(place: tuple[str, ...], value: Any, words: str) -> None:
    values = json.loads(plan().to_json())
    inner = values
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(RecipeError, match=words):
        make_plan(values)


def test_a_brief_plan_leaves_out_integers_and_nothing_else() -> None:
    nodes = {**plan().nodes, "conv": plan().nodes["conv"].model_copy(update={"rounding": "x" * 10**6})}
    long = plan().model_copy(update={"nodes": nodes})
    assert len(long.brief().to_json()) < 3000
    assert long.brief().nodes["conv"].rounding == LEFT_OUT
    assert make_plan(json.loads(long.brief().to_json().replace(LEFT_OUT, ""))) == plan()
    assert plan().brief() == plan()
    assert long.nodes["conv"].rounding.startswith("xxx")


def test_zero_points_follow_the_format() -> None:
    for form, lowest in (("int8", -128), ("uint8", 0)):
        for zero_point in (lowest, lowest + 255):
            TensorPlan(format=form, scale=1, zero_point=zero_point, low=0, high=1, reason="")
        with pytest.raises(ValueError, match="8 bits reach"):
            TensorPlan(format=form, scale=1, zero_point=lowest + 256, low=0, high=1, reason="")


def test_what_is_missing_is_named() -> None:
    with pytest.raises(RecipeError, match="The plan lacks 'recipe'"):
        make_plan({"nodes": {}})
    with pytest.raises(RecipeError, match=r"The plan lacks 'nodes\.a\.op'"):
        make_plan({"recipe": {}, "nodes": {"a": {"treatment": "float", "reason": ""}}})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"plan\.json' is no JSON"),
        (b'{"recipe": {}', "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"[]", r"plan\.json' is no plan\. --save-plan writes one"),
    ],
)
def test_files_that_make_no_sense_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=words):
        read_plan(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"gone\.json' cannot be read \(No such file or directory\)"):
        read_plan(tmp_path / "gone.json")
