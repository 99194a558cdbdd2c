"""Training block by block: each is made to hand on what the same block of the float model does.

    float model      ── block ── t
                                  │ Fisher-weighted difference, small
    rounded model    ── block ── y        weights round up or down, activations have learned scales

A block ends where one tensor carries everything that layers computed: behind each residual sum, say. That takes few
samples, and no more memory than one block needs.

Li et al., BRECQ, arXiv:2102.05426; how weights round: Nagel et al., AdaRound, arXiv:2004.10568; activations that are
rounded by chance: Wei et al., QDrop, arXiv:2203.05740.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from onnxq.comparison import looks_like_classes
from onnxq.graph import Graph, is_constant, reads
from onnxq.training.batches import Batch, Tensors, batches
from onnxq.training.losses import SMALLEST, is_distribution
from onnxq.training.simulation import Simulation, Weight, share_up
from onnxq.training.trainer import Course, bias_group, falling, rate_for, scale_group

DROPPED = 0.5
"""The share of the activations that pass as they are while a block is trained."""

ROUNDING = 0.01
"""How fast the choice between up and down moves."""

SHARPEST, SOFTEST = 2.0, 20.0
"""How the pressure towards whole numbers grows: the power falls from one to the other."""

FREE = 0.2
"""The share of the steps in which there is no such pressure."""

PRESSURE = 1.0
"""What it weighs, beside the loss that a block begins with."""


@dataclass(frozen=True)
class Block:
    """A part of a graph between two tensors, through which all else that it computes goes.

    Attributes:
        start: what it reads beside the inputs of the graph; None for the first.
        ends: what it makes: one tensor, or the outputs of the graph for the last.
    """

    start: str | None
    ends: tuple[str, ...]


def find_blocks(graph: Graph, trained: Collection[str]) -> list[Block]:
    """The blocks of a float graph, each with a trained weight at least.

    Args:
        graph: the float graph, its nodes in order.
        trained: names of nodes with a trained weight.
    """
    last = {name: place for place, node in enumerate(graph.nodes) for name in reads(node)}
    last.update({tensor.name: len(graph.nodes) for tensor in graph.outputs})
    learned, live, found = set[str](), set[str](), list[Block]()
    start, holds = None, False
    for place, node in enumerate(graph.nodes):
        holds |= node.name in trained
        if node.name in trained or any(t.name in learned and not is_constant(t) for t in node.inputs):
            floats = [t.name for t in node.outputs if t.name and t.dtype in (np.float32, np.float16, None)]
            learned.update(floats)
            live.update(floats)
        live = {name for name in live if last.get(name, -1) > place}
        if holds and len(live) == 1 and (end := next(iter(live))) in {t.name for t in node.outputs}:
            found.append(Block(start, (end,)))
            start, holds = end, False
    outputs = tuple(tensor.name for tensor in graph.outputs)
    if holds or not found:
        return [*found, Block(start, outputs)]
    return [*found[:-1], Block(found[-1].start, outputs)]


@dataclass(frozen=True)
class Drill:
    """A block that is trained, and which of how many it is."""

    block: Block
    number: int
    count: int


class Reconstruction(Course):
    """Trains a student block by block."""

    @property
    def student(self) -> Simulation:
        """What learns."""
        return self.exam.student

    def run(self, blocks: Sequence[Block]) -> int:
        """Train one block after the other; how many there were."""
        feeds = list(batches(self.data, self.curriculum.batch, self.exam.device))
        given: list[Tensors] = [dict(batch.feeds) for batch in feeds]
        done = self.checkpoint.load(self.exam, None)
        if not self.exam.looks:
            self.exam.look(0)
        for number, block in enumerate(blocks):
            if number >= done:
                torch.manual_seed(self.curriculum.seed + number)  # as if each block stood alone, to go on with any
                self._train(Drill(block, number, len(blocks)), feeds, given)
                self.exam.look(number + 1)
                self.checkpoint.save(self.exam, None, number + 1)
            self.student.eval()
            with torch.no_grad():
                made = [self.student(before, list(block.ends)) for before in given]
            given = [{**batch.feeds, **after} for batch, after in zip(feeds, made, strict=True)]
        return len(blocks)

    def _train(self, drill: Drill, feeds: Sequence[Batch], given: Sequence[Tensors]) -> None:
        """Train one block on what the blocks before it hand on."""
        names, steps = list(drill.block.ends), self.curriculum.steps
        aims = [self._aim(drill.block, batch) for batch in feeds]
        weights, others = self._parts(names, given[0])
        if not weights:
            return
        for weight in weights:
            weight.soften()
        chosen = [weight.upward for weight in weights if weight.upward is not None]
        optimizer = torch.optim.Adam([{"params": chosen, "lr": ROUNDING}, *others])
        rates, first = [group["lr"] for group in optimizer.param_groups], 0.0
        self._drop(DROPPED)
        self.student.train()
        for step in range(steps):
            place = int(torch.randint(len(feeds), ()))
            for group, rate in zip(optimizer.param_groups[1:], rates[1:], strict=True):
                group["lr"] = rate * falling(step, steps)
            lost = _lost(self.student(given[place], names), aims[place])
            first = first or float(lost.detach()) or 1.0
            optimizer.zero_grad()
            (lost / first + _pressure(chosen, step / steps)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            self.progress(f"train: block {drill.number + 1}", drill.number * steps + step + 1, drill.count * steps)
        self._drop(0.0)
        for weight in weights:
            weight.harden()

    def _drop(self, share: float) -> None:
        for quantizer in self.student.activations.values():
            quantizer.drop = share

    def _parts(self, names: list[str], given: Tensors) -> tuple[list[Weight], list[dict[str, object]]]:
        """What a block holds that is trained: the weights, and all else with its rate."""
        student, rate = self.student, rate_for(self.student, self.curriculum.rate)
        student.train()
        student.zero_grad(set_to_none=True)
        heard = [made.float().square().mean() for made in student(given, names).values() if made.requires_grad]
        if heard:
            torch.stack(heard).sum().backward()  # type: ignore[no-untyped-call]
        weights = [weight for weight in student.weights.values() if weight.values.grad is not None]
        groups: list[dict[str, object]] = [
            scale_group(quantizer, rate)
            for quantizer in student.activations.values()
            if quantizer.log_scale.grad is not None
        ]
        groups += [bias_group(values, rate) for values in student.constants.values() if values.grad is not None]
        student.zero_grad(set_to_none=True)
        return weights, groups

    def _aim(self, block: Block, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """What the float model makes of a batch, and how much each number matters at its outputs."""
        with torch.no_grad():
            made = self.exam.teacher(batch.feeds, list(block.ends))
        leaves = {name: made[name].detach().requires_grad_() for name in block.ends if made[name].is_floating_point()}
        outputs = self.exam.teacher({**batch.feeds, **leaves}, self.exam.teacher.outputs)
        heard = [_surprise(found) for found in outputs.values() if found.requires_grad]
        grads = torch.autograd.grad(torch.stack(heard).sum(), list(leaves.values()), allow_unused=True)
        return {
            name: (leaf.detach(), _importance(grad, leaf))
            for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
        }


def _lost(made: Tensors, aims: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
    """What a block loses, where it matters, as a share of what there is to lose."""
    return torch.stack(
        [
            (matters * (made[name] - aim).square()).mean() / aim.var().clamp_min(SMALLEST)
            for name, (aim, matters) in aims.items()
        ]
    ).sum()


def _pressure(chosen: Sequence[nn.Parameter], done: float) -> Tensor:
    """What it costs to lie between two steps; nothing at first, and more and more then."""
    if done < FREE:
        return torch.zeros(())
    power = SOFTEST + (SHARPEST - SOFTEST) * (done - FREE) / (1 - FREE)
    count = sum(part.numel() for part in chosen)
    return (
        PRESSURE * torch.stack([(1 - (2 * share_up(part) - 1).abs().pow(power)).sum() for part in chosen]).sum() / count
    )


def _surprise(output: Tensor) -> Tensor:
    """A number whose gradient, squared, is on average what the divergence of the output is as sensitive to."""
    if not looks_like_classes(output):
        return (output * torch.randint_like(output, 2).mul_(2).sub_(1)).sum()
    scores = torch.log(output.clamp_min(SMALLEST)) if is_distribution(output) else torch.log_softmax(output, -1)
    flat = scores.reshape(-1, scores.shape[-1])
    drawn = torch.multinomial(flat.detach().exp(), 1)
    return -flat.gather(1, drawn).sum()


def _importance(gradient: Tensor | None, like: Tensor) -> Tensor:
    """Squared gradients, 1 on average."""
    if gradient is None or not bool(gradient.any()):
        return torch.ones_like(like)
    squared = gradient.square()
    return squared / squared.mean()
