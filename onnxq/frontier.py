"""A handful of quantized models from bold to cautious, beside the one that is chosen.

plans ── build and prove each ── drop those that another beats in everything ── thin out ── NAME.1.onnx, NAME.2.onnx

They come with the chosen one: all of them when it is delivered, none of them where that fails.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from onnxq.build import Build
from onnxq.delivery import Delivery, attempt, quantize_by
from onnxq.errors import OutputError, RecipeError
from onnxq.graph import Graph
from onnxq.modelfile import replacing, save
from onnxq.options import Options
from onnxq.plan import Plan
from onnxq.proof import Proof
from onnxq.recipe import Mode
from onnxq.result import Point, Result, broken
from onnxq.rewrite import Change

MOST = 5
"""Models of a frontier: a handful."""

EMPTY = "No frontier was written: there are no quantized models here to choose from."
Start = tuple[Graph, dict[str, list[Change]]]
"""A prepared graph, and what was done to it."""

ELSEWHERE = "Name another folder with --frontier."


@dataclass(frozen=True)
class Candidate:
    """A plan, what was measured of the model that it makes, and whether that keeps the contract."""

    plan: Plan
    proof: Proof
    holds: bool

    @property
    def sqnr_db(self) -> float | None:
        """Signal over noise at the worst output; None where there is no noise."""
        return min((out.sqnr_db for out in self.proof.outputs.values() if out.sqnr_db is not None), default=None)

    @property
    def costs(self) -> tuple[float, ...]:
        """Noise in dB, slowness, size and what the metric lost: less is better."""
        noise = -math.inf if self.sqnr_db is None else -self.sqnr_db
        drop = 0.0 if self.proof.score is None else self.proof.score.drop
        return noise, -self.proof.speedup, self.proof.size, drop

    @property
    def float_costs(self) -> tuple[float, ...]:
        """The same of the float model."""
        return -math.inf, -1.0, self.proof.size_float, 0.0

    def point(self, file: Path, size: int) -> Point:
        """What a person and a program are told about it, once it is written."""
        score = self.proof.score
        return Point(
            file=str(file),
            size=size,
            milliseconds=self.proof.milliseconds,
            speedup=self.proof.speedup,
            metric=None if score is None else score.metric,
            drop=None if score is None else score.drop,
            sqnr_db=self.sqnr_db,
            holds=self.holds,
        )


@dataclass(frozen=True)
class Frontier:
    """The models that were written, each with its plan; none where no frontier was asked for."""

    wanted: bool
    points: Sequence[tuple[Plan, Point]] = ()

    def beside(self, result: Result) -> Result:
        """The result that says which models lie beside it, and which of them it is."""
        plan = result.plan if result.status == "optimized" else None
        marked = [point.model_copy(update={"chosen": own == plan}) for own, point in self.points]
        notes = [EMPTY] if self.wanted and not marked else []
        return result.model_copy(update={"frontier": marked, "warnings": [*result.warnings, *notes]})


@contextmanager
def frontier(build: Build, plans: Sequence[Plan], delivery: Delivery) -> Iterator[Frontier]:
    """Write a handful of models together with what the block delivers; the build is left as it was."""
    folder = delivery.options.frontier
    if folder is None:
        yield Frontier(wanted=False)
        return
    start, plan = (build.graph, dict(build.changes)), build.plan
    files = places(folder, delivery.target or delivery.reference[0])
    points, written = [], set()
    with ExitStack() as stack:
        chosen = handful(list(_candidates(build, plans, start, delivery)))
        if chosen:
            stack.enter_context(_there(folder))
        for candidate, file in zip(chosen, files, strict=False):
            quantize_by(build, candidate.plan, start)
            draft = stack.enter_context(replacing(file))
            with build.stage("write"):
                save(build.graph, draft)
            made = list(draft.parent.iterdir())
            written |= {file.with_name(part.name) for part in made}
            points.append((candidate.plan, candidate.point(file, sum(part.stat().st_size for part in made))))
        build.graph, build.changes, build.plan = *start, plan
        yield Frontier(True, points)
    for file in {name for place in files for name in (place, _data(place))} - written:
        file.unlink(missing_ok=True)  # of an earlier run


def _candidates(build: Build, plans: Sequence[Plan], start: Start, delivery: Delivery) -> Iterator[Candidate]:
    """Every plan that makes a quantized model which is not broken."""
    own = replace(delivery, target=None)
    for plan in plans:
        if plan.does_nothing:
            continue
        result, verdict = attempt(build, plan, start, own)
        if result.proof is not None and (delivery.data.is_random or not broken(result.proof)):
            yield Candidate(plan, result.proof, verdict.holds)


def handful(found: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other beats, nor the float model, from bold to cautious; of many, both ends and some between."""
    best = [one for one in found if not any(_beat(c, one.costs) for c in (one.float_costs, *(o.costs for o in found)))]
    best.sort(key=lambda one: one.costs, reverse=True)
    if len(best) <= MOST:
        return best
    fastest = max(range(len(best)), key=lambda place: best[place].proof.speedup)
    spaced = [round(step * (len(best) - 1) / (MOST - 1)) for step in range(1, MOST)]
    return [best[place] for place in sorted({fastest, *spaced})]


def _beat(costs: Sequence[float], others: Sequence[float]) -> bool:
    """Whether these are at most the others in everything, and less in something."""
    pairs = list(zip(costs, others, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def places(folder: Path, model: Path) -> list[Path]:
    """Where the models of a frontier go that belongs to this model."""
    return [folder / f"{model.stem}.{number}.onnx" for number in range(1, MOST + 1)]


def _data(file: Path) -> Path:
    """Where weights of a model lie that are not in its file."""
    return file.with_name(f"{file.name}.data")


@contextmanager
def _there(folder: Path) -> Iterator[None]:
    """A folder that is there for the block; one that was made for it and stays empty goes again."""
    made = not folder.exists()
    if made:
        folder.mkdir()
    try:
        yield
    finally:
        if made and not any(folder.iterdir()):
            folder.rmdir()


def check_choice(mode: Mode, plan: Plan | None, data: bool, options: Options) -> None:
    """Refuse a frontier where one model was asked for, or where there is nothing to compare by. Raises RecipeError."""
    if options.frontier is None:
        return
    if not options.check:
        raise RecipeError("--no-validate leaves nothing to compare the models of --frontier by. Leave out one of them.")
    if plan is not None:
        raise RecipeError("--plan makes one model, and --frontier wants several. Leave out one of them.")
    if not data:
        raise RecipeError("--frontier compares ways to run the model by measuring them. Give --data, or leave it out.")
    if mode != "mixed-int8":
        raise RecipeError(
            f"--frontier mixes forms of layers (mixed-int8), and what was asked for is one model, {mode}. Leave out "
            "--frontier, or what asks for that: --recipe, --statistics or --format qdq."
        )


def check_places(folder: Path, model: Path, needed: Collection[Path]) -> None:
    """Find out before the work whether a frontier can be written, over nothing that is needed. Raises OutputError."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"'{folder}' is no folder. {ELSEWHERE}")
    home = folder if folder.exists() else folder.parent
    if not home.is_dir():
        raise OutputError(f"The folder '{home}' does not exist. Create it, or name another one with --frontier.")
    if not os.access(home, os.W_OK | os.X_OK):
        raise OutputError(f"The folder '{home}' cannot be written to. {ELSEWHERE}")
    kept = {path.resolve() for path in needed}
    for file in [name for place in places(folder, model) for name in (place, _data(place))]:
        if file.resolve() in kept:
            raise OutputError(f"'{file}' would be replaced, but this run needs it. {ELSEWHERE}")
        if file.is_symlink() or (file.exists() and not file.is_file()):
            raise OutputError(f"'{file}' would be replaced, but is no plain file. {ELSEWHERE}")
