"""Attention masks that are low enough, and no lower."""

from __future__ import annotations

import numpy as np

from onnxq.calibration.collect import collect
from onnxq.calibration.data import open_data
from onnxq.decision import decide_masks
from onnxq.graph import Graph
from onnxq.passes.bound_masks import BoundMasks
from onnxq.placement import place
from onnxq.plan import MaskPlan, Plan
from onnxq.recipe import Recipe
from onnxq.targets import CPU
from tests.onnx_text import apply, changes, execute, lines, listing, read

BODY = "[add] a = Add(scores, mask) [soft] y = Softmax<axis=-1>(a)"
PLAN = Plan(recipe=Recipe(), nodes={}, masks={"add": MaskPlan(mask="mask", bound=-60.0)})
LOWEST = float(np.finfo(np.float32).min)


def model(body: str = BODY) -> Graph:
    return read(f"(float[2,4,8] scores, float[2,1,8] mask) => (float[2,4,8] y) {{ {body} }}")


def feeds(spread: float, hidden: float = LOWEST) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = np.where(np.arange(8) < 5, 0.0, hidden).astype(np.float32) * np.ones((2, 1, 1), np.float32)
    scores = rng.uniform(-spread / 2, spread / 2, (2, 4, 8)).astype(np.float32)
    return {"scores": scores, "mask": mask}


def planned(spread: float, hidden: float = LOWEST) -> dict[str, MaskPlan]:
    graph = model()
    placement = place(graph, CPU, Recipe())
    data = open_data([feeds(spread, hidden)], graph.interface().inputs)
    return decide_masks(placement, collect(graph, ["scores", "mask"], data))


def test_raises_the_mask() -> None:
    after = apply(BoundMasks(), model(), PLAN)
    expected = """
        mask_bounded = Max(mask, mask_bound)
        a = Add(scores, mask_bounded)
        y = Softmax<axis=-1>(a)
    """
    assert sorted(listing(after.graph).splitlines()) == sorted(lines(expected).splitlines())
    assert [change.done for change in changes(after)] == ["Max"]


def test_changes_less_than_float32_can_show() -> None:
    before = model()
    after = apply(BoundMasks(), before, PLAN).graph
    for hidden in (LOWEST, -1e9, -np.inf):
        given = feeds(30.0, hidden)
        np.testing.assert_allclose(execute(after, given)[0], execute(before, given)[0], rtol=1e-6, atol=1e-12)


def test_runs_twice_as_once() -> None:
    once = apply(BoundMasks(), model(), PLAN).graph
    assert listing(apply(BoundMasks(), once, PLAN).graph) == listing(once)


def test_a_mask_that_two_sums_share_is_bounded_once() -> None:
    body = "[add] a = Add(scores, mask) s = Softmax<axis=-1>(a) [two] b = Add(mask, s) y = Softmax<axis=-1>(b)"
    choice = MaskPlan(mask="mask", bound=-60.0)
    after = apply(BoundMasks(), model(body), Plan(recipe=Recipe(), nodes={}, masks={"add": choice, "two": choice}))
    assert [node.op for node in after.graph.nodes].count("Max") == 1
    assert len(changes(after)) == 2


def test_leaves_alone_what_the_plan_does_not_name() -> None:
    after = apply(BoundMasks(), model(), Plan(recipe=Recipe(), nodes={}))
    assert listing(after.graph) == listing(model())


def test_leaves_a_sum_alone_that_others_read_too() -> None:
    body = "[add] a = Add(scores, mask) [soft] s = Softmax<axis=-1>(a) [relu] r = Relu(a) [sum] y = Add(s, r)"
    assert listing(apply(BoundMasks(), model(body), PLAN).graph) == listing(model(body))


def test_the_plan_names_masks_whose_scores_stay_together() -> None:
    assert planned(30.0) == {"add": MaskPlan(mask="mask", bound=-60.0)}
    assert planned(30.0, -np.inf) == {"add": MaskPlan(mask="mask", bound=-60.0)}
    assert planned(50.0) == {}, "a hidden score may be 50 above the largest that shows"
    assert planned(30.0, -100.0) == {}, "a bias, no mask"
