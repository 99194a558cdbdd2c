"""Training as a whole: it helps, comes out alike, goes on where it stopped, and ends where it should."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxq.calibration.data import Data
from onnxq.curriculum import Look
from onnxq.errors import RecipeError
from onnxq.graph import Graph
from tests.onnx_text import floats, read, serialize

torch = pytest.importorskip("torch", reason="training needs PyTorch")

from onnxq.training.batches import Batch, blended  # noqa: E402
from onnxq.training.checkpoints import Checkpoint  # noqa: E402
from onnxq.training.exam import Exam  # noqa: E402
from onnxq.training.losses import Scene, distill  # noqa: E402
from onnxq.training.qdq import take_apart  # noqa: E402
from onnxq.training.trainer import Trainer, groups, schedule, seeded  # noqa: E402
from onnxq.training.written import put_together  # noqa: E402
from tests.training.classroom import curriculum, data_of, exam_of, jolt, static, with_qdq  # noqa: E402

W = {"w": floats(16, 32), "b": floats(32), "n": floats(32, 4, seed=4), "k": floats(4, seed=6)}
TEXT = """(float[batch,16] x) => (float[batch,4] y) {
    [one] p = MatMul(x, w) [add] a = Add(p, b) [relu] r = Relu(a) [two] y = Gemm(r, n, k)
}"""
NOWHERE = Checkpoint(None, "")


@pytest.fixture(autouse=True)
def chance() -> Iterator[None]:
    with seeded(0, 1):
        yield


class Class:
    """A student with weights of 2 bits, its teacher and its data, all made anew."""

    def __init__(self, count: int = 64, **wishes: Any) -> None:
        self.exact = read(TEXT, W)
        self.graph: Graph = with_qdq(self.exact, "one two", "x r", static(2, 8))
        student, self.parts = take_apart(self.graph, self.exact)
        data = data_of(self.exact, count)
        self.learned: Data = data.take(slice(0, count - 16))
        self.exam: Exam = exam_of(student, self.exact, data.take(slice(count - 16, count)), **wishes)

    def train(self, checkpoint: Checkpoint = NOWHERE, **wishes: Any) -> tuple[int, str]:
        return Trainer(self.exam, self.learned, curriculum(**wishes), checkpoint).run()

    @property
    def bytes(self) -> bytes:
        """The Q/DQ model with what was trained."""
        put_together(self.parts, self.exam.student)
        return serialize(self.graph)

    @property
    def state(self) -> dict[str, Any]:
        return {name: values.clone() for name, values in self.exam.student.state_dict().items()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# what it does


def test_free_weights_are_trained_from_their_floats_and_held_against_what_was_found() -> None:
    room = Class()
    weights = list(room.exam.student.weights.values())
    found = [module.values.detach().clone() for module in weights]
    for module in weights:
        module.free = module.values.detach() + 9 * module.step  # so far off that nothing is gained
    best, _ = room.train(steps=2, batch=16, rate=1e-9)
    first, *others = room.exam.looks
    assert (best, first.step) == (0, 0)
    assert all(look.loss > first.loss for look in others)
    assert all(torch.equal(module.values, before) for module, before in zip(weights, found, strict=True))


def test_the_loss_goes_down() -> None:
    room = Class()
    best, stopped = room.train(steps=100, batch=16)
    first, last = room.exam.looks[0], room.exam.looks[-1]
    assert (first.step, last.step, stopped) == (0, 100, "")
    taken = next(look for look in room.exam.looks if look.step == best)
    assert taken.loss < 0.7 * first.loss
    assert taken.loss <= last.loss
    assert len(room.exam.looks) == 21


def test_everything_is_trained() -> None:
    """Weights, biases, and scales of both."""
    room = Class()
    before = room.state
    assert room.train(steps=100, batch=16)[0] > 50
    still = [name for name, values in room.exam.student.named_parameters() if torch.equal(values, before[name])]
    assert all(name.endswith("zero_point") for name in still), still
    moved = [name for name in room.state if name not in still and not torch.equal(room.state[name], before[name])]
    assert len(moved) >= 8


def test_it_comes_out_alike_on_each_run_and_otherwise_with_another_seed() -> None:
    """The seed is all that chance depends on."""
    one, two, other = Class(), Class(), Class()
    one.train(steps=12, rate=0.1)
    torch.rand(7)
    two.train(steps=12, rate=0.1)
    other.train(steps=12, rate=0.1, seed=1)
    assert one.bytes == two.bytes
    assert one.bytes != other.bytes
    assert one.exam.looks == two.exam.looks != other.exam.looks


def test_the_teacher_stays_as_it_is() -> None:
    room = Class()
    before = serialize(room.exact)
    constants = {name: values.clone() for name, values in room.exam.teacher.constants.items()}
    room.train(steps=5)
    assert same(constants, room.exam.teacher.constants)
    assert serialize(room.exact) == before


def test_samples_are_blended_where_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counting(batch: Batch, draw: Any) -> Batch:
        seen.append(1)
        return blended(batch, draw)

    monkeypatch.setattr("onnxq.training.trainer.blended", counting)
    Class().train(steps=3)
    assert len(seen) == 3
    Class().train(steps=3, mix=False)
    assert len(seen) == 3
    labelled = Class()
    labelled.learned = data_of(labelled.exact, 48, labels=np.zeros(48, np.int64))
    labelled.train(steps=3)
    assert len(seen) == 3


def test_weights_move_by_shares_of_their_steps() -> None:
    """One rate for 2 bits and 8."""
    room = Class()
    student = room.exam.student
    rates = {id(group["params"][0]): group["lr"] for group in groups(student, 0.5)}
    for module in student.weights.values():
        steps = np.abs(weight_scales(module))
        assert rates[id(module.values)] == pytest.approx(0.5 * np.median(steps), rel=0.5)
        assert steps.min() * 0.5 <= rates[id(module.values)] <= steps.max() * 0.5
    assert all(rate > 0 for rate in rates.values())
    learned = {id(values) for values in student.parameters() if values.requires_grad}
    assert set(rates) == learned


def weight_scales(module: Any) -> Any:
    return module.quantizer.learned().scale


@pytest.mark.parametrize("steps", [1, 7, 100, 1000])
def test_the_rate_rises_and_falls(steps: int) -> None:
    rates = [schedule(step, steps) for step in range(steps)]
    top = int(np.argmax(rates))
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert top <= max(1, 0.06 * steps)
    if steps >= 100:
        assert rates[0] < 0.3
        assert max(rates) > 0.95
        assert rates[-1] < 0.01
        assert rates[steps // 2] == pytest.approx(0.5, abs=0.02)


def test_progress_is_told() -> None:
    room, told = Class(), []
    trainer = Trainer(room.exam, room.learned, curriculum(steps=4), NOWHERE, lambda *said: told.append(said))
    trainer.run()
    assert [(done, total) for _, done, total in told] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert all(what.startswith("train: loss ") for what, _, _ in told)


def test_chance_and_threads_are_left_as_they_were() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with seeded(9, 1):
        torch.rand(5)
        assert torch.get_num_threads() == 1
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.rand(2), expected)
    with seeded(9, 0):
        one = torch.rand(3)
    with seeded(9, 0):
        assert torch.equal(torch.rand(3), one)


# the exam


def test_a_look_is_the_mean_over_samples() -> None:
    """Of batches of any size."""
    room, other = Class(size=16), Class(size=5)
    room.exam.loss = other.exam.loss = lambda scene: (scene.outputs["y"] - scene.targets["y"]).square().mean()
    room.exam.look(0)
    other.exam.look(0)
    assert room.exam.looks[0].loss == pytest.approx(other.exam.looks[0].loss, rel=1e-4)
    assert room.exam.looks[0].loss > 0


def test_a_clearly_better_state_of_before_is_taken() -> None:
    for worse, expected in ((1.3, 0), (1.05, 0), (0.95, 5)):
        room = Class()
        room.exam.look(0)
        first = room.state
        jolt(room.exam.student)
        last = room.state
        room.exam.looks.append(Look(step=5, loss=worse * room.exam.looks[0].loss))
        assert room.exam.settle() == expected
        assert same(room.state, last if expected else first)


@pytest.mark.parametrize(
    ("losses", "patience", "expected"),
    [
        ([3, 2, 1], 1, False),
        ([3, 2, 2.5], 1, True),
        ([3, 2, 2.5], 2, False),
        ([3, 2, 2.5, 2.1], 2, True),
        ([3, 2, 2.5, 1.9], 2, False),
        ([3, 2, 2, 2], 2, False),
        ([3, 4, 5, 6], 0, False),
        ([3, 4], 2, False),
    ],
)
def test_patience(losses: list[float], patience: int, expected: bool) -> None:
    exam = Class().exam
    exam.looks = [Look(step=step, loss=loss) for step, loss in enumerate(losses)]
    assert exam.stands_still(patience) is expected


# where it ends


def test_no_progress_ends_it() -> None:
    room = Class()
    best, stopped = room.train(steps=200, rate=1.0, patience=2, mix=False)
    looks = room.exam.looks
    assert stopped == "No progress in the last 2 looks."
    assert looks[-1].step < 200
    assert min(look.loss for look in looks[-2:]) > min(look.loss for look in looks)
    assert best in {look.step for look in looks}


class Breaking:
    """Distillation that breaks after so many steps: the loss itself, or its gradient alone."""

    def __init__(self, after: int, gradient: bool = False) -> None:
        self.after, self.gradient, self.calls = after, gradient, 0

    def __call__(self, scene: Scene) -> Any:
        found = distill(scene)
        if not found.requires_grad:  # a look
            return found
        self.calls += 1
        if self.calls <= self.after:
            return found
        if self.gradient:
            return found + torch.sqrt((scene.outputs["y"] * 0).sum())
        return found * math.nan


@pytest.mark.parametrize("after", [0, 4, 7])
def test_a_loss_that_is_not_finite_ends_it_with_the_best_state(after: int) -> None:
    room = Class()
    room.exam.loss = Breaking(after)
    best, stopped = room.train(steps=40, rate=0.1)
    steps = "1 step" if after == 0 else f"{after + 1} steps"
    assert stopped == f"The loss was not finite after {steps}; a lower rate may help."
    least = min(room.exam.looks, key=lambda look: look.loss)
    assert best == least.step
    room.exam.look(99)
    assert room.exam.looks[-1].loss == pytest.approx(least.loss, rel=1e-6)


@pytest.mark.parametrize("steps", [40, 6])
def test_a_gradient_that_is_not_finite_leaves_the_best_state(steps: int) -> None:
    """The state is broken before the loss tells: at a look, or at the very end."""
    room = Class()
    room.exam.loss = Breaking(5, gradient=True)
    best, _ = room.train(steps=steps, rate=0.1)
    assert best < 6
    assert all(np.isfinite(values.numpy()).all() for values in room.state.values())
    room.exam.look(99)
    finite = [look for look in room.exam.looks[:-1] if math.isfinite(look.loss)]
    assert room.exam.looks[-1].loss == pytest.approx(next(k.loss for k in finite if k.step == best), rel=1e-6)


# going on


class Stopped(Exception):
    """Somebody ends the process."""


def stopping(at: int) -> Any:
    def told(what: str, done: int, total: int) -> None:
        if done == at:
            raise Stopped

    return told


@pytest.mark.parametrize("at", [1, 5, 11, 17, 20])
def test_an_interrupted_run_goes_on_to_the_same_result(at: int, tmp_path: Path) -> None:
    """20 steps with a look after each; blended, with scales that learn."""
    whole, parted = Class(), Class()
    expected = whole.train(rate=0.1, steps=40)
    kept = Checkpoint(tmp_path / "state", "this run")
    with pytest.raises(Stopped):
        Trainer(parted.exam, parted.learned, curriculum(rate=0.1, steps=40), kept, stopping(2 * at)).run()
    again = Class()
    torch.rand(11)
    assert again.train(kept, rate=0.1, steps=40) == expected
    assert again.exam.looks == whole.exam.looks
    assert same(again.state, whole.state)
    assert again.bytes == whole.bytes


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    kept = Checkpoint(tmp_path / "state", "this run")
    one, two = Class(), Class()
    expected = one.train(kept, steps=10, rate=0.1)
    before = (tmp_path / "state").read_bytes()
    two.exam.loss = lambda scene: pytest.fail("there is nothing left to do")
    assert two.train(kept, steps=10, rate=0.1) == expected
    assert one.bytes == two.bytes
    assert (tmp_path / "state").read_bytes() == before


def test_a_run_that_lost_patience_is_not_trained_again(tmp_path: Path) -> None:
    kept = Checkpoint(tmp_path / "state", "this run")
    one, two = Class(), Class()
    wishes: dict[str, Any] = {"steps": 200, "rate": 1.0, "patience": 2, "mix": False}
    expected = one.train(kept, **wishes)
    assert expected[1]
    assert two.train(kept, **wishes) == expected
    assert one.exam.looks == two.exam.looks
    assert one.bytes == two.bytes


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    Class().train(Checkpoint(tmp_path / "state", "this run"), steps=3)
    with pytest.raises(RecipeError, match=r"is of another model, data or curriculum\. Name another file, or delete it"):
        Class().train(Checkpoint(tmp_path / "state", "another"), steps=3)


def pickled(content: Any) -> bytes:
    return pickle.dumps(content)


WRONG = {
    "empty": b"",
    "text": b"hello, this is no checkpoint\n",
    "a pickle": pickled({"run": "this run"}),
    "a pickled function": pickled(print),
    "a zip": b"PK\x03\x04" + bytes(60),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_of_something_else_is_refused(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "state"
    file.write_bytes(WRONG[kind])
    with pytest.raises(RecipeError, match=r"(?s)is no checkpoint of onnxq.*Name another file, or delete it"):
        Class().train(Checkpoint(file, "this run"), steps=3)
    assert file.read_bytes() == WRONG[kind]


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), {"run": "this run"}, {"weights": torch.ones(3)}])
def test_what_pytorch_saved_of_something_else_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "state")
    with pytest.raises(RecipeError, match="Name another file, or delete it"):
        Class().train(Checkpoint(tmp_path / "state", "this run"), steps=3)


def test_a_file_that_breaks_off_is_refused(tmp_path: Path) -> None:
    kept = Checkpoint(tmp_path / "state", "this run")
    Class().train(kept, steps=3)
    whole = (tmp_path / "state").read_bytes()
    for share in (0.1, 0.5, 0.95):
        (tmp_path / "state").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(RecipeError, match="is no checkpoint of onnxq"):
            Class().train(kept, steps=3)


def test_nothing_is_written_where_nothing_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Class().train(steps=3)
    assert not list(tmp_path.iterdir())
    assert replace(NOWHERE, run="x").load(Class().exam, None) == 0
