"""A build that is trained between its Q/DQ and its folding: simulate, check, train, write back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from onnxq.build import Build
from onnxq.calibration.data import Data
from onnxq.curriculum import Curriculum, Lesson
from onnxq.errors import DataError, RecipeError
from onnxq.graph import Graph, weight
from onnxq.layers import LAYERS
from onnxq.memo import canonical
from onnxq.plan import Plan, Treatment
from onnxq.recipe import WEIGHT_ONLY
from onnxq.study import fingerprint
from onnxq.training import blocked, qdq, written
from onnxq.training.batches import channels_last
from onnxq.training.blocks import Reconstruction, find_blocks
from onnxq.training.checkpoints import Checkpoint
from onnxq.training.exam import Exam
from onnxq.training.fidelity import check_fidelity
from onnxq.training.interpreter import Interpreter
from onnxq.training.losses import find_loss
from onnxq.training.simulation import Simulation
from onnxq.training.trainer import Trainer, seeded


@dataclass(frozen=True)
class Teaching:
    """What trains a build, and what it is trained on.

    Attributes:
        data: samples to learn from; a share of them is held back.
        curriculum: how.
        checkpoint: where the state is kept; None for nowhere.
    """

    data: Data
    curriculum: Curriculum
    checkpoint: Path | None = None

    def check(self, source: Graph) -> None:
        """Find out before the work what does not fit: device, loss, labels, features. Raises RecipeError."""
        pick_device(self.curriculum.device)
        find_loss(self.curriculum.loss)
        if self.curriculum.loss == "labels" and self.data.labels is None:
            raise RecipeError("--loss labels needs data with an array 'labels'. Add one, or take --loss distill.")
        whole = any(array.dtype.kind != "f" for array in self.data.sample(0).values())
        told = self.data.labels is not None and self.curriculum.loss != "distill"
        if self.curriculum.mix and (whole or told):
            raise RecipeError("--mix blends samples, which integers and labels cannot be. Leave it out.")
        _matching([tensor.name for node in source.nodes for tensor in node.outputs], self.curriculum.features)

    def __call__(self, build: Build, exact: Graph) -> Lesson:
        """Train what was quantized, in place.

        Args:
            build: with the quantized graph, not folded yet, and its plan.
            exact: the float graph that it was made of.

        Raises:
            UnsupportedModel: an operator has no counterpart in PyTorch, or differs there.
            RecipeError: the curriculum does not fit.
        """
        assert build.plan is not None
        self.check(exact)
        start, curriculum, device = time.perf_counter(), self.curriculum, pick_device(self.curriculum.device)
        loss, (learned, held) = find_loss(curriculum.loss), self._split()
        with seeded(curriculum.seed, curriculum.threads):
            teacher = Interpreter(exact)
            fidelity = check_fidelity(exact, teacher, self.data.sample(0), build.threads)
            teacher.constants.update({name: channels_last(values) for name, values in teacher.constants.items()})
            student, put_back = _student(build, exact, curriculum.method != "blocks")
            exam = Exam(
                student.to(device),
                teacher.to(device).eval(),
                held,
                curriculum.batch,
                loss,
                [tensor.name for tensor in exact.outputs if tensor.dtype in (np.float32, np.float16)],
                _features(exact, student, curriculum.features),
                device,
            )
            asked = exam, learned, curriculum, Checkpoint(self.checkpoint, self._run(build.plan, exact)), build.progress
            if curriculum.method == "blocks":
                best, stopped = Reconstruction(*asked).run(find_blocks(exact, _trained(build.plan))), ""
            else:
                best, stopped = Trainer(*asked).run()
            put_back()
        return Lesson(
            method=curriculum.method,
            samples=len(learned),
            held=len(held),
            parameters=sum(values.numel() for values in student.parameters() if values.requires_grad),
            fidelity=fidelity,
            device=str(device),
            looks=exam.looks,
            best=best,
            stopped=stopped,
            seconds=round(time.perf_counter() - start, 1),
        )

    def _split(self) -> tuple[Data, Data]:
        """What is learned from, and what tells how good it is: the same for blocks, which are trained to the end."""
        if self.curriculum.method == "blocks":
            return self.data, self.data
        count = len(self.data)
        if count < 2:
            raise DataError(f"{self.data.description}: training needs 2 samples at least. Give more data.")
        return self.data.split(max(1, count - max(1, round(self.curriculum.hold * count))))

    def _run(self, plan: Plan, exact: Graph) -> str:
        """What this run depends on, as text; nobody asks where no state is kept."""
        if self.checkpoint is None:
            return ""
        asked = self.curriculum.model_dump(mode="json")
        found = sha256(canonical([asked, plan.deeds, fingerprint(self.data, {})]).encode())
        for tensor in exact.weights():
            found.update(np.ascontiguousarray(weight(tensor)).tobytes())
        return found.hexdigest()


def _student(build: Build, exact: Graph, keep: bool) -> tuple[Simulation, Callable[[], None]]:
    """What learns, and how that goes back into the build; `keep` is for weights that round as they were found to."""
    plan = build.plan
    assert plan is not None
    if build.mode in WEIGHT_ONLY:
        student, blocks = blocked.take_apart(exact, plan, build.shelf, keep)
        return student, lambda: blocked.put_together(blocks, student, build.shelf, build.graph)
    student, parts = qdq.take_apart(build.graph, exact, keep)

    def put_back() -> None:
        written.put_together(parts, student)
        build.plan = _with_grids(plan, parts)

    return student, put_back


def _trained(plan: Plan) -> set[str]:
    """The nodes whose weights are trained."""
    return {name for name, node in plan.nodes.items() if node.op in LAYERS and node.treatment is not Treatment.FLOAT}


def _with_grids(plan: Plan, parts: qdq.Blueprint) -> Plan:
    """The plan with the grids of activations as they were learned."""
    tensors = dict(plan.tensors)
    for site, quantizer in parts.sites:
        grid = quantizer.learned()
        for name in site.tensors & tensors.keys():
            scale, zero = float(grid.scale), int(grid.zero_point)
            low, high = (scale * (end - zero) for end in (grid.form.qmin, grid.form.qmax))
            changed = {"scale": scale, "zero_point": zero, "low": low, "high": high, "reason": "Learned in training."}
            tensors[name] = tensors[name].model_copy(update=changed)
    return plan.model_copy(update={"tensors": tensors})


def _features(exact: Graph, student: Simulation, patterns: Sequence[str]) -> list[str]:
    """The inner tensors that patterns mean, of those that both models have. Raises RecipeError."""
    both = {tensor.name for node in student.graph.nodes for tensor in node.outputs}
    known = [t.name for node in exact.nodes for t in node.outputs if t.dtype == np.float32 and t.name in both]
    return _matching(known, patterns)


def _matching(known: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The names that patterns mean. Raises RecipeError where one means none."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise RecipeError(
                f"Feature '{pattern}' matches no tensor that the float and the quantized model both have, such as "
                f"'{known[-1] if known else ''}'. Name a tensor, or a pattern with *."
            )
    return [name for name in known if any(fnmatchcase(name, pattern) for pattern in patterns)]


def pick_device(name: str) -> torch.device:
    """The device of this name; `auto` is CUDA where there is some. Raises RecipeError."""
    if name == "cuda" and not torch.cuda.is_available():
        raise RecipeError("PyTorch finds no CUDA device here. Take --device cpu, or install PyTorch with CUDA.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
