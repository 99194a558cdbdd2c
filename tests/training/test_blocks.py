"""Blocks of a graph, and training one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxq.calibration.data import Data
from onnxq.graph import Graph
from tests.onnx_text import floats, normal, read, serialize

torch = pytest.importorskip("torch", reason="training needs PyTorch")

from onnxq.training.batches import batches  # noqa: E402
from onnxq.training.blocks import Block, Reconstruction, _lost, find_blocks  # noqa: E402
from onnxq.training.checkpoints import Checkpoint  # noqa: E402
from onnxq.training.exam import Exam  # noqa: E402
from onnxq.training.qdq import take_apart  # noqa: E402
from onnxq.training.trainer import seeded  # noqa: E402
from onnxq.training.written import put_together  # noqa: E402
from tests.training.classroom import (  # noqa: E402
    CPU,
    curriculum,
    data_of,
    exam_of,
    executed,
    simulated,
    static,
    with_qdq,
)

W = {"w": floats(8, 8) / 3, "v": floats(8, 8, seed=4) / 3, "u": floats(8, 8, seed=5) / 3, "n": floats(8, 4, seed=6)}


def blocks(text: str, trained: str, inputs: str = "float[batch,8] x", outputs: str = "float[a,b] y") -> list[Block]:
    return find_blocks(read(f"({inputs}) => ({outputs}) {{ {text} }}", W), trained.split())


# where they end


def test_a_chain_has_a_block_for_each_layer() -> None:
    """What follows a layer and computes nothing of its own belongs to the next block; the last one has the output."""
    found = blocks("[one] a = MatMul(x, w) r = Relu(a) [two] b = MatMul(r, v) t = Tanh(b) [three] y = MatMul(t, u)",
                   "one two three")  # fmt: skip
    assert found == [Block(None, ("a",)), Block("a", ("b",)), Block("b", ("y",))]


def test_what_stands_behind_the_last_layer_is_in_its_block() -> None:
    found = blocks("[one] a = MatMul(x, w) [two] b = MatMul(a, v) y = Softmax(b)", "one two")
    assert found == [Block(None, ("a",)), Block("a", ("y",))]


def test_a_residual_sum_ends_a_block() -> None:
    text = """[one] a = MatMul(x, w) r = Relu(a) [two] b = MatMul(r, v) [sum] s = Add(b, a)
        [three] c = MatMul(s, u) [four] d = MatMul(c, w) y = Add(d, s)"""
    assert blocks(text, "one two three four") == [Block(None, ("a",)), Block("a", ("s",)), Block("s", ("y",))]


def test_a_residual_around_everything_is_one_block() -> None:
    """What is no layer's doing may go past: here the input of the graph."""
    text = "[one] a = MatMul(x, w) [two] b = MatMul(a, v) y = Add(b, x)"
    assert blocks(text, "one two") == [Block(None, ("a",)), Block("a", ("y",))]
    text = "[zero] z = MatMul(x, u) [one] a = MatMul(z, w) [two] b = MatMul(a, v) y = Add(b, z)"
    assert blocks(text, "zero one two") == [Block(None, ("z",)), Block("z", ("y",))]


def test_two_branches_are_one_block() -> None:
    text = """[one] a = MatMul(x, w) [left] l = MatMul(a, v) [right] r = MatMul(a, u) t = Tanh(r) s = Mul(l, t)
        [two] y = MatMul(s, w)"""
    assert blocks(text, "one left right two") == [Block(None, ("a",)), Block("a", ("s",)), Block("s", ("y",))]


def test_two_outputs_are_in_the_last_block() -> None:
    text = "[one] a = MatMul(x, w) [left] y = MatMul(a, v) [right] z = MatMul(a, u)"
    found = blocks(text, "one left right", outputs="float[a,b] y, float[c,d] z")
    assert found == [Block(None, ("a",)), Block("a", ("y", "z"))]


def test_an_output_on_the_way_is_an_end_twice() -> None:
    """Of the block that makes it, and of the last one, which has all outputs."""
    text = "[one] a = MatMul(x, w) [two] z = MatMul(a, v) [three] y = MatMul(z, u)"
    found = blocks(text, "one two three", outputs="float[a,b] y, float[c,d] z")
    assert found == [Block(None, ("a",)), Block("a", ("z",)), Block("z", ("y", "z"))]


def test_a_mask_for_all_blocks_ends_none() -> None:
    """It is made of an input, and not by layers."""
    text = """
        m = Cast<to=1>(mask)
        [one] a = MatMul(x, w) p = Mul(a, m)
        [two] b = MatMul(p, v) q = Mul(b, m)
        [three] y = MatMul(q, u)"""
    found = blocks(text, "one two three", "float[batch,8] x, int64[batch,1] mask")
    assert found == [Block(None, ("a",)), Block("a", ("b",)), Block("b", ("y",))]


def test_shapes_of_what_layers_made_end_none() -> None:
    text = """[one] a = MatMul(x, w) s = Shape(a) r = Relu(a) [two] b = MatMul(r, v) t = Reshape(b, s)
        [three] y = MatMul(t, u)"""
    assert blocks(text, "one two three") == [Block(None, ("a",)), Block("a", ("b",)), Block("b", ("y",))]


def test_layers_that_are_not_trained_join_the_block_of_one_that_is() -> None:
    text = "[one] a = MatMul(x, w) [two] b = MatMul(a, v) [three] c = MatMul(b, u) [four] y = MatMul(c, w)"
    assert blocks(text, "two four") == [Block(None, ("b",)), Block("b", ("y",))]
    assert blocks(text, "two") == [Block(None, ("y",))]


def test_nothing_to_train_is_one_block() -> None:
    assert blocks("[one] y = MatMul(x, w)", "") == [Block(None, ("y",))]
    assert blocks("[act] y = Relu(x)", "") == [Block(None, ("y",))]


def test_blocks_hold_every_trained_layer_once() -> None:
    text = """[one] a = MatMul(x, w) r = Relu(a) [two] b = MatMul(r, v) [sum] s = Add(b, a)
        [three] c = MatMul(s, u) [four] d = MatMul(c, w) y = Add(d, s)"""
    found = blocks(text, "one two three four")
    assert [block.start for block in found] == [None, *(block.ends[0] for block in found[:-1])]


# training


@pytest.fixture(autouse=True)
def chance() -> Iterator[None]:
    with seeded(0, 1):
        yield


TEXT = """(float[batch,8] x) => (float[batch,4] y) {
    [one] a = MatMul(x, w) [r1] r = Relu(a)
    [two] b = MatMul(r, v) [r2] t = Relu(b)
    [three] y = MatMul(t, n)
}"""
PICTURE = """(float[batch,3,6,6] x) => (float[batch,4,4,4] y) {
    [one] a = Conv(x, k, kb) [r1] r = Relu(a) [two] y = Conv<pads=[1,1,1,1]>(r, l, lb)
}"""
K = {"k": floats(4, 3, 3, 3) / 2, "kb": floats(4), "l": floats(4, 4, 3, 3, seed=9) / 2, "lb": floats(4, seed=7)}


class Class:
    """A student of few bits, its teacher and its data, all made anew."""

    def __init__(self, picture: bool = False, bits: int = 2) -> None:
        self.exact = read(PICTURE, K) if picture else read(TEXT, {name: W[name] for name in "wvn"})
        nodes, tensors = ("one two", "x r") if picture else ("one two three", "x r t")
        self.graph: Graph = with_qdq(self.exact, nodes, tensors, static(bits, 8))
        self.student, self.parts = take_apart(self.graph, self.exact)
        self.data: Data = data_of(self.exact, 64)
        self.exam: Exam = exam_of(self.student, self.exact, self.data, size=16)
        self.blocks = find_blocks(self.exact, nodes.split())

    def train(self, checkpoint: Checkpoint | None = None, progress: Any = None, **wishes: Any) -> int:
        course = curriculum(**{"method": "blocks", "batch": 16, "steps": 60, **wishes})
        told = {} if progress is None else {"progress": progress}
        return Reconstruction(self.exam, self.data, course, checkpoint or Checkpoint(None, ""), **told).run(self.blocks)

    @property
    def bytes(self) -> bytes:
        put_together(self.parts, self.student)
        return serialize(self.graph)


@pytest.mark.parametrize(("picture", "most"), [(False, 0.75), (True, 0.9)])
def test_the_loss_of_the_outputs_goes_down(picture: bool, most: float) -> None:
    room = Class(picture)
    assert room.train(steps=200) == len(room.blocks)
    looks = room.exam.looks
    assert [look.step for look in looks] == list(range(len(room.blocks) + 1))
    assert looks[-1].loss < most * looks[0].loss


def test_what_each_block_hands_on_comes_closer_where_it_matters() -> None:
    room = Class(picture=True)
    work = Reconstruction(room.exam, room.data, curriculum(method="blocks", batch=16, steps=200), Checkpoint(None, ""))
    samples = list(batches(room.data, 16, CPU))
    aims = {block: [work._aim(block, batch) for batch in samples] for block in room.blocks}

    def lost(block: Block) -> float:
        room.student.eval()
        with torch.no_grad():
            pairs = zip(samples, aims[block], strict=True)
            return sum(float(_lost(room.student(batch.feeds, list(block.ends)), aim)) for batch, aim in pairs)

    before = [lost(block) for block in room.blocks]
    work.run(room.blocks)
    assert all(lost(block) < 0.95 * first for block, first in zip(room.blocks, before, strict=True))


def test_weights_end_on_their_grids() -> None:
    """And each at the step below or above where it was."""
    room = Class()
    before = {name: module.values.detach().clone() for name, module in room.student.weights.items()}
    scales = {name: module.quantizer.learned().scale for name, module in room.student.weights.items()}
    room.train()
    moved = 0
    for name, module in room.student.weights.items():
        assert module.upward is None
        np.testing.assert_array_equal(module.quantizer.learned().scale, scales[name])
        scale, _ = module.quantizer.along_all(module.values)
        steps, floats_ = module.values.detach() / scale, before[name] / scale
        np.testing.assert_allclose(steps, torch.round(steps), atol=1e-5)
        form = module.quantizer.grid.form
        assert (steps - floats_.clamp(form.qmin, form.qmax)).abs().max() < 1
        moved += int((torch.round(steps) != torch.round(floats_).clamp(form.qmin, form.qmax)).sum())
        np.testing.assert_array_equal(module().detach(), module.values.detach())
    assert moved > 0


def test_activations_learn_and_are_whole_in_the_end() -> None:
    room = Class()
    before = {name: float(quantizer.log_scale.detach()) for name, quantizer in room.student.activations.items()}
    room.train()
    for name, quantizer in room.student.activations.items():
        assert float(quantizer.log_scale.detach()) != before[name], name
        assert quantizer.drop == 0


def test_biases_learn() -> None:
    room = Class(picture=True)
    before = {name: values.detach().clone() for name, values in room.student.constants.items()}
    room.train()
    assert len(before) == 2
    assert all(not torch.equal(values, before[name]) for name, values in room.student.constants.items())


def test_what_was_trained_is_what_runs() -> None:
    room = Class(picture=True)
    room.train()
    put_together(room.parts, room.student)
    feeds = normal(room.exact, 4)
    name = room.graph.outputs[0].name
    expected, found = simulated(room.student, feeds)[name], executed(room.graph, feeds)[name]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * float(np.abs(expected).max()))


def test_it_comes_out_alike_on_each_run_and_otherwise_with_another_seed() -> None:
    one, two, other = Class(), Class(), Class()
    one.train()
    torch.rand(5)
    two.train()
    other.train(seed=1)
    assert one.bytes == two.bytes
    assert one.bytes != other.bytes


class Stopped(Exception):
    """Somebody ends the process."""


@pytest.mark.parametrize("done", [1, 2, 3])
def test_it_goes_on_with_the_block_that_it_stopped_in(done: int, tmp_path: Path) -> None:
    whole, parted, again = Class(), Class(), Class()
    assert len(whole.blocks) == 3
    whole.train()
    kept = Checkpoint(tmp_path / "state", "this run")

    if done == 3:
        parted.train(kept)
    else:
        with pytest.raises(Stopped):
            parted.train(kept, lambda what, step, total: stop_at(step, 60 * done + 30))
    trained: list[int] = []
    again.train(kept, lambda what, step, total: trained.append(step))
    assert (min(trained) if trained else 181) == 60 * done + 1
    assert again.exam.looks == whole.exam.looks
    assert again.bytes == whole.bytes


def stop_at(step: int, last: int) -> None:
    if step == last:
        raise Stopped


def test_progress_counts_all_blocks() -> None:
    room, told = Class(), []
    room.train(steps=2, progress=lambda *said: told.append(said))
    assert told == [(f"train: block {place // 2 + 1}", place + 1, 6) for place in range(6)]
