"""A build that is trained: what is asked for, what comes of it, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxq.build import Build
from onnxq.calibration.data import Data
from onnxq.curriculum import Lesson
from onnxq.errors import DataError, OnnxqError, RecipeError
from onnxq.graph import Graph, weight
from onnxq.recipe import Recipe, make_recipe
from tests.onnx_text import floats, normal, read, serialize

torch = pytest.importorskip("torch", reason="training needs PyTorch")

from onnxq.training import lesson  # noqa: E402
from onnxq.training.lesson import Teaching, pick_device  # noqa: E402
from onnxq.training.losses import find_loss  # noqa: E402
from tests.training.classroom import curriculum, executed, planned, static  # noqa: E402

TEXT = """(float[batch,4,8,8] x) => (float[batch,4] y) {
    [one] a = Conv(x, w, b) [r1] r = Relu(a) [two] c = Conv(r, v) [sum] s = Add(c, c2)
    [pool] p = GlobalAveragePool(s) [flat] f = Flatten(p) [head] y = Gemm(f, n, k)
}"""
W = {"w": floats(8, 4, 3, 3), "b": floats(8), "v": floats(8, 8, 3, 3, seed=4) / 5, "n": floats(8, 4, seed=5)}
W |= {"k": floats(4, seed=6), "c2": floats(8, 1, 1, seed=8)}
WORDS = (
    "(float[batch,5,32] x) => (float[batch,5,32] y) { [one] a = MatMul(x, w) [r] r = Relu(a) [two] y = MatMul(r, v) }"
)


class Class:
    """A build with Q/DQ in it, its float graph, and data."""

    def __init__(self, recipe: Recipe | None = None, *, words: bool = False, size: float = 1.0, **more: Any) -> None:
        weights = {"w": size * floats(32, 32), "v": floats(32, 32, seed=3)} if words else W
        graph = read(WORDS if words else TEXT, weights)
        feeds = {**normal(graph, 1, batch=32), **more}
        made: tuple[Build, Graph, Data] = planned(graph, recipe or static(3), feeds)
        self.build, self.exact, self.data = made

    def teach(self, checkpoint: Path | None = None, **wishes: Any) -> Lesson:
        return Teaching(self.data, curriculum(**wishes), checkpoint)(self.build, self.exact)


# what comes of it


def test_what_a_lesson_tells() -> None:
    room = Class()
    found = room.teach(steps=20, hold=0.25, device="cpu")
    assert (found.samples, found.held, found.device, found.stopped) == (24, 8, "cpu", "")
    assert [look.step for look in found.looks] == list(range(21))
    assert found.before == found.looks[0].loss
    assert found.after == next(look.loss for look in found.looks if look.step == found.best)
    assert 0 <= found.fidelity < 1e-5
    floats_ = sum(W[name].size for name in ("w", "b", "v", "n", "k"))
    assert floats_ < found.parameters < floats_ + 60
    assert found.seconds >= 0


def test_the_plan_tells_what_was_learned() -> None:
    room = Class()
    assert room.build.plan is not None
    before = room.build.plan.tensors
    room.teach(steps=30, rate=0.5, hold=0.5)
    after = room.build.plan.tensors
    grids = {node.inputs[0].name: node for node in room.build.graph.nodes if node.op == "QuantizeLinear"}
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        node = grids.get(name) or grids[f"{name}_unquantized"]
        assert np.float32(tensor.scale) == weight(node.inputs[1])
        assert tensor.zero_point == weight(node.inputs[2])
        assert tensor.reason == "Learned in training."
        assert tensor.low == pytest.approx(tensor.scale * (0 - tensor.zero_point))
        assert tensor.high == pytest.approx(tensor.scale * (7 - tensor.zero_point))
    assert room.build.plan.nodes == Class().build.plan.nodes  # type: ignore[union-attr]


def test_weights_in_blocks_go_onto_the_shelf() -> None:
    room = Class(make_recipe({"mode": "weight-int4"}), words=True)
    assert room.build.plan is not None
    plan, names = room.build.plan, ["w|columns|4", "v|columns|4"]
    assert not any(name in room.build.shelf for name in names)
    room.teach(steps=30)
    assert all(name in room.build.shelf for name in names)
    assert room.build.plan == plan
    feeds = normal(room.exact, 3)
    exact, found = executed(room.exact, feeds)["y"], executed(room.build.graph, feeds)["y"]
    assert np.square(found - exact).mean() < 0.1 * exact.var()


def test_blocks_learn_from_all_samples() -> None:
    room = Class()
    before = serialize(room.build.graph)
    found = room.teach(method="blocks", steps=5)
    assert (found.samples, found.held) == (32, 32)
    assert found.best == found.looks[-1].step == 3
    assert serialize(room.build.graph) != before


@pytest.mark.parametrize(("hold", "held"), [(0.01, 1), (0.125, 4), (0.5, 16), (0.99, 31)])
def test_some_samples_are_held_back_and_some_are_not(hold: float, held: int) -> None:
    found = Class().teach(steps=1, hold=hold)
    assert (found.samples, found.held) == (32 - held, held)


def test_it_comes_out_alike_on_each_run() -> None:
    one, two = Class(), Class()
    one.teach(steps=6, rate=0.3)
    torch.manual_seed(99)
    two.teach(steps=6, rate=0.3)
    assert serialize(one.build.graph) == serialize(two.build.graph)


def test_the_float_graph_stays_as_it_is() -> None:
    room = Class()
    before = serialize(room.exact)
    room.teach(steps=3)
    assert serialize(room.exact) == before


# features


@pytest.mark.parametrize(
    ("patterns", "expected"), [(("s",), ["s"]), (("[ps]",), ["s", "p"]), (("s", "p*"), ["s", "p"])]
)
def test_features_are_met_too(patterns: tuple[str, ...], expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []
    plain = find_loss
    monkeypatch.setattr(lesson, "find_loss", lambda name: lambda scene: recorded(plain(name), scene, seen))
    room = Class()
    found = room.teach(steps=2, features=patterns)
    assert all(names == set(expected) for names in seen)
    assert found.before != Class().teach(steps=2).before


def recorded(loss: Any, scene: Any, seen: list[set[str]]) -> Any:
    seen.append({*scene.features})
    assert all(scene.features[name].shape == aim.shape for name, aim in scene.aims.items())
    return loss(scene)


def test_a_pattern_that_means_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"Feature 'layer\*' matches no tensor .* such as '\w+'\. Name a tensor"):
        Class().teach(steps=2, features=("s", "layer*"))


# the device


def test_cuda_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match=r"finds no CUDA device here\. Take --device cpu"):
        Class().teach(steps=2, device="cuda")
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")


def test_cuda_is_taken_where_there_is_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda")
    assert pick_device("cpu") == torch.device("cpu")


# losses


def test_labels_are_learned() -> None:
    """Cross entropy of labels that are the float model's own, with noise: another loss than distillation."""
    labels = np.arange(32) % 4
    found = Class(labels=labels).teach(steps=3, loss="labels", hold=0.5)
    assert found.before > 0.5
    assert found.before != Class(labels=labels).teach(steps=3, hold=0.5).before


def test_labels_are_missed() -> None:
    with pytest.raises(RecipeError, match="--loss labels needs data with an array 'labels'"):
        Class().teach(steps=3, loss="labels")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the current folder."""
    (tmp_path / "my_loss.py").write_text(
        "import torch\n"
        "def good(outputs, targets, feeds, labels):\n"
        "    assert labels is None and set(feeds) == {'x'}\n"
        "    return (outputs['y'] - targets['y']).abs().mean().reshape(1)\n"
        "def wrong(outputs, targets, feeds, labels):\n"
        "    return outputs['logits'].mean()\n"
        "def nothing(outputs, targets, feeds, labels):\n"
        "    pass\n"
        "def detached(outputs, targets, feeds, labels):\n"
        "    return targets['y'].mean()\n"
        "def many(outputs, targets, feeds, labels):\n"
        "    return outputs['y']\n"
        "def few(outputs):\n"
        "    return outputs['y'].mean()\n"
    )
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("own")
def test_a_loss_of_the_users_own() -> None:
    room = Class()
    before = serialize(room.build.graph)
    found = room.teach(steps=30, loss="my_loss:good")
    assert found.after < found.before
    assert serialize(room.build.graph) != before


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("wrong", "failed with KeyError: 'logits'"),
        ("few", r"failed with TypeError: few\(\) takes 1 positional"),
        ("nothing", "returns no number with a gradient"),
        ("detached", "returns no number with a gradient"),
        ("many", "returns no number with a gradient"),
        ("absent", "has no function 'absent'"),
    ],
)
def test_what_is_wrong_with_such_a_loss_is_said(function: str, says: str) -> None:
    with pytest.raises(OnnxqError, match=f"Loss 'my_loss:{function}'.*{says}"):
        Class().teach(steps=2, loss=f"my_loss:{function}")


# what is refused


def test_one_sample_is_too_few() -> None:
    room = Class()
    room.data = room.data.take(slice(0, 1))
    with pytest.raises(DataError, match="training needs 2 samples at least"):
        room.teach(steps=2)


def test_two_samples_are_enough() -> None:
    room = Class()
    room.data = room.data.take(slice(0, 2))
    for hold in (0.01, 0.99):
        found = Teaching(room.data, curriculum(steps=1, hold=hold))(replace(room.build), room.exact)
        assert (found.samples, found.held) == (1, 1)


def test_labels_cannot_be_blended() -> None:
    room = Class(labels=np.arange(32) % 4)
    room.teach(steps=1, mix=True)  # labels do not count here
    with pytest.raises(RecipeError, match=r"--mix blends samples, which integers and labels cannot be\. Leave it out"):
        room.teach(steps=1, mix=True, loss="labels")


def test_integers_cannot_be_blended() -> None:
    graph = read("(int64[batch,3] i, float[batch,3,32] x) => (float[a,b,c] y) { f = Cast<to=1>(i) u = Unsqueeze(f, two)"
                 " s = Mul(x, u) [one] y = MatMul(s, w) }", {"w": floats(32, 32), "two": np.array([2])})  # fmt: skip
    feeds = {"i": np.ones((8, 3), np.int64), "x": floats(8, 3, 32)}
    build, exact, data = planned(graph, static(4), feeds)
    with pytest.raises(RecipeError, match="--mix blends samples"):
        Teaching(data, curriculum(steps=1, mix=True))(build, exact)


# checkpoints


def test_a_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    whole, parted, again = Class(), Class(), Class()
    expected = whole.teach(steps=40, rate=0.2)

    def told(what: str, done: int, total: int) -> None:
        if done == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Teaching(parted.data, curriculum(steps=40, rate=0.2), tmp_path / "state")(
            replace(parted.build, progress=told), parted.exact
        )
    found = again.teach(tmp_path / "state", steps=40, rate=0.2)
    assert found.looks == expected.looks
    assert serialize(again.build.graph) == serialize(whole.build.graph)


OTHERS: dict[str, Any] = {
    "curriculum": lambda: (Class(), {"seed": 1}),
    "plan": lambda: (Class(static(4)), {}),
    "data": lambda: (Class(labels=np.arange(32)), {}),
    "method": lambda: (Class(), {"method": "blocks"}),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_checkpoint_of_another_run_is_refused(what: str, tmp_path: Path) -> None:
    Class().teach(tmp_path / "state", steps=2)
    room, wishes = OTHERS[what]()
    with pytest.raises(RecipeError, match="is of another model, data or curriculum"):
        room.teach(tmp_path / "state", **{"steps": 2, **wishes})


def test_a_checkpoint_of_a_model_with_other_weights_is_refused(tmp_path: Path) -> None:
    """Though the plan is the same: it knows no scales of weights."""
    recipe = make_recipe({"mode": "weight-int4"})
    Class(recipe, words=True).teach(tmp_path / "state", steps=2)
    Class(recipe, words=True).teach(tmp_path / "state", steps=2)
    other = Class(recipe, words=True, size=1.5)
    assert other.build.plan == Class(recipe, words=True).build.plan
    with pytest.raises(RecipeError, match="is of another model, data or curriculum"):
        other.teach(tmp_path / "state", steps=2)
