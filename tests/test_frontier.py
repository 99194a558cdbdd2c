"""A handful of models beside the chosen one: which of them, under which names, and that nothing else is left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import helper

import onnxq
from onnxq import Contract, Options, Plan, Proof, Recipe, Result, api
from onnxq.build import Build, prepare
from onnxq.frontier import EMPTY, MOST, Candidate, handful
from onnxq.memo import Memo
from onnxq.plan import Treatment
from onnxq.recipe import Activation, Override
from onnxq.runtime import Session

if TYPE_CHECKING:
    from tests.conftest import Clock, Command

Search = Callable[[list[Plan]], None]
MSE = Recipe(activation=Activation(range="mse"))
"""A rule that needs no search."""


@pytest.fixture
def plans(model: Path, data: Path) -> list[Plan]:
    """Ranges as they should be, 10 times too wide, one layer in float, all of them in float."""
    recipe = MSE.model_copy(update={"mode": "static-int8"})
    static = onnxq.optimize(model, data=data, recipe=recipe, options=Options(check=False)).plan
    assert static is not None
    model.with_name("model.int8.onnx").unlink()
    wide = {name: tensor.model_copy(update={"scale": 10 * tensor.scale}) for name, tensor in static.tensors.items()}
    found = [static, static.model_copy(update={"tensors": wide})]
    for name in ("one", "two"):
        last = found[0] if name == "one" else found[-1]
        spared = {name: last.nodes[name].model_copy(update={"treatment": Treatment.FLOAT})}
        found.append(last.model_copy(update={"nodes": last.nodes | spared}))
    return found


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
def folder(tmp_path: Path) -> Path:
    return tmp_path / "frontier"


def optimize(model: Any, data: Any, folder: Path, contract: Contract | None = None, **options: Any) -> Result:
    recipe = MSE if contract is None else MSE.model_copy(update={"contract": contract})
    return onnxq.optimize(model, data=data, recipe=recipe, options=Options(frontier=folder, **options))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# which of them


def candidate(sqnr_db: float | None, speedup: float, size: int = 100, drop: float | None = 0.0) -> Candidate:
    proof = Proof.model_construct(
        outputs={"y": SimpleNamespace(sqnr_db=sqnr_db)},
        size=size,
        size_float=400,
        speedup=speedup,
        milliseconds=1 / speedup,
        score=None if drop is None else SimpleNamespace(drop=drop, metric="top1"),
    )
    return Candidate(Plan(recipe=MSE, nodes={}), proof, True)


def test_what_another_one_beats_in_everything_is_left_out() -> None:
    bold, cautious, small = candidate(20, 3), candidate(40, 2), candidate(10, 1, size=50)
    beaten = [candidate(20, 2.9), candidate(39, 2), candidate(40, 2, size=101), candidate(40, 2, drop=0.1)]
    assert handful([*beaten, cautious, small, bold]) == [small, bold, cautious]


def test_what_the_float_model_beats_in_everything_is_left_out() -> None:
    slow, large = candidate(40, 0.9, size=400), candidate(50, 1.1, size=500)
    small, lucky = candidate(30, 0.9, size=399), candidate(20, 0.8, size=401, drop=-0.01)
    assert handful([slow, large, small, lucky]) == [lucky, small, large]


def test_equals_and_what_has_no_noise() -> None:
    exact, silent, loud = candidate(None, 1), candidate(0.0, 2), candidate(-3.0, 2)
    assert handful([exact, loud, silent]) == [silent, exact]
    assert handful([exact, exact]) == [exact, exact]
    assert handful([]) == []
    unknown = candidate(30, 1, drop=None)
    assert handful([unknown, candidate(30, 2, drop=None)]) == [candidate(30, 2, drop=None)]


@pytest.mark.parametrize("count", range(1, 14))
def test_a_handful_keeps_both_ends(count: int) -> None:
    found = [candidate(10.0 + place, 5 - place / 10) for place in range(count)]
    chosen = handful(found[::-1])
    assert len(chosen) == min(count, MOST)
    assert (chosen[0], chosen[-1]) == (found[0], found[-1])
    gaps = np.diff([found.index(one) for one in chosen])
    assert count <= MOST or gaps.max() - gaps.min() <= 1


def test_the_fastest_stays_where_others_are_only_smaller() -> None:
    small = [candidate(place, 1 + place / 10, size=50 + place) for place in range(6)]
    fast = [candidate(10 + place, 5 - place / 10) for place in range(6)]
    chosen = handful([*small, *fast])
    assert len(chosen) <= MOST
    assert fast[0] in chosen
    assert chosen[-1] == fast[-1]


# on disk


def test_a_frontier_is_written_beside_the_chosen_model(
    model: Path, data: Path, folder: Path, clock: Clock, plans: list[Plan], search: Search
) -> None:
    clock.speedups = [3.0, 3.5, 2.0]
    search(plans)
    result = optimize(model, data, folder, Contract(min_speedup=1.5, max_drop=0.5))
    assert (result.status, result.plan) == ("optimized", plans[0])
    assert names(folder) == ["model.int8.1.onnx", "model.int8.2.onnx", "model.int8.3.onnx"]
    assert [Path(point.file).name for point in result.frontier] == names(folder)
    assert [point.speedup for point in result.frontier] == [3.5, 3.0, 2.0], "from bold to cautious"
    assert [point.chosen for point in result.frontier] == [False, True, False]
    assert all(point.holds for point in result.frontier)
    noise = [point.sqnr_db for point in result.frontier]
    assert all(one is not None for one in noise)
    assert noise == sorted(noise, key=lambda one: one or 0.0)
    written = Path(result.output or "").read_bytes()
    assert [Path(point.file).read_bytes() == written for point in result.frontier] == [False, True, False]
    assert [Path(point.file).stat().st_size for point in result.frontier] == [p.size for p in result.frontier]
    assert clock.timed == 3, "the float plan is none of them, and what was chosen is not timed again"
    assert result.proof is not None
    assert result.proof.speedup == 3.0
    assert Result.model_validate_json(result.model_dump_json()) == result


def test_a_model_says_whether_it_keeps_the_contract(
    model: Path, data: Path, folder: Path, clock: Clock, plans: list[Plan], search: Search
) -> None:
    clock.speedups = [3.0, 3.5, 2.0]
    search(plans)
    rejected = optimize(model, data, folder, Contract(min_speedup=9), memo=Memo())
    assert (rejected.status, rejected.output) == ("rejected", None)
    assert [(point.holds, point.chosen) for point in rejected.frontier] == [(False, False)] * 3
    assert len(names(folder)) == 3
    clock.timed = 0
    found = optimize(model, data, folder, Contract(min_speedup=2.5), memo=Memo())
    assert [(point.holds, point.chosen) for point in found.frontier] == [(True, False), (True, True), (False, False)]


@pytest.mark.usefixtures("clock")
def test_broken_models_and_beaten_ones_are_not_there(
    model: Path, data: Path, folder: Path, plans: list[Plan], search: Search
) -> None:
    zero = {name: tensor.model_copy(update={"scale": 1e4}) for name, tensor in plans[0].tensors.items()}
    search([plans[0].model_copy(update={"tensors": zero}), *plans])
    result = optimize(model, data, folder)
    assert names(folder) == ["model.int8.1.onnx", "model.int8.2.onnx"], "ranges that are too wide gain no speed"
    assert [point.metric for point in result.frontier] == ["agreement"] * 2
    assert result.warnings == []


@pytest.mark.usefixtures("clock")
def test_files_of_an_earlier_run_are_replaced_and_no_others(
    model: Path, data: Path, folder: Path, plans: list[Plan], search: Search
) -> None:
    folder.mkdir()
    older = [f"model.int8.{number}.onnx{end}" for number in range(1, 7) for end in ("", ".data")]
    for name in (*older, "model.onnx", "notes.txt", "model.int8.x.onnx"):
        (folder / name).write_bytes(b"older")
    search(plans[:1])
    optimize(model, data, folder)
    kept = ["model.int8.1.onnx", "model.int8.6.onnx", "model.int8.6.onnx.data", "model.int8.x.onnx"]
    assert names(folder) == [*kept, "model.onnx", "notes.txt"]
    assert (folder / "model.int8.1.onnx").read_bytes() != b"older"
    assert (folder / "model.int8.6.onnx").read_bytes() == b"older"


def large_layers(path: Path) -> Path:
    """`two_layers`, with a first weight that is worth a file of its own."""
    random = np.random.default_rng(0)
    weights = {"first": random.standard_normal((16, 512)), "second": random.standard_normal((512, 4))}
    nodes = [helper.make_node("MatMul", ["x", "first"], ["a"], "one"), helper.make_node("Relu", ["a"], ["b"], "relu")]
    nodes.append(helper.make_node("MatMul", ["b", "second"], ["y"], "two"))
    infos = [helper.make_tensor_value_info(n, 1, ["batch", s]) for n, s in (("x", 16), ("y", 4))]
    stored = [onnx.numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()]
    graph = helper.make_graph(nodes, "large", infos[:1], infos[1:], stored)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.parent.mkdir(exist_ok=True)
    onnx.save(made, path, save_as_external_data=True, location="weights.bin")
    return path


@pytest.mark.usefixtures("clock")
def test_weights_in_files_of_their_own(
    data: Path, tmp_path: Path, folder: Path, plans: list[Plan], search: Search
) -> None:
    model = large_layers(tmp_path / "large" / "model.onnx")
    recipe = MSE.model_copy(update={"nodes": {"one": Override(quantize=False)}})
    result = onnxq.optimize(model, data=data, recipe=recipe, options=Options(frontier=folder))
    assert result.frontier
    assert names(folder) == sorted(f"{Path(p.file).name}{end}" for p in result.frontier for end in ("", ".data"))
    x = np.load(data)["x"]
    for point in result.frontier:
        files = [Path(point.file), Path(f"{point.file}.data")]
        assert point.size == sum(file.stat().st_size for file in files)
        got, expected = (Session(path, threads=1).run({"x": x})["y"] for path in (files[0], model))
        assert point.sqnr_db is not None
        assert 10 * np.log10((expected**2).sum() / ((got - expected) ** 2).sum()) > point.sqnr_db - 2
    assert sum(point.chosen for point in result.frontier) == 1
    assert result.proof is not None
    assert result.proof.size == sum(file.stat().st_size for file in model.parent.glob("model.int8.onnx*"))
    whole = tmp_path / "whole" / "model.onnx"
    whole.parent.mkdir()
    onnx.save(onnx.load(model), whole)
    optimize(whole, data, folder)
    assert not list(folder.glob("*.data"))


@pytest.mark.usefixtures("clock")
def test_a_model_in_memory(model: Path, data: Path, folder: Path, plans: list[Plan], search: Search) -> None:
    search(plans)
    result = optimize(model.read_bytes(), data, folder)
    assert result.output is None
    assert names(folder) == ["model.1.onnx", "model.2.onnx"]
    assert [point.chosen for point in result.frontier] == [True, False]


@pytest.mark.usefixtures("clock")
def test_random_data_measures_no_drop(model: Path, folder: Path, plans: list[Plan], search: Search) -> None:
    search(plans)
    result = optimize(model, "random", folder)
    assert [(point.metric, point.drop) for point in result.frontier] == [(None, None)] * 2


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("before", [True, False])
def test_nothing_is_left_behind_where_the_model_is_not_delivered(
    model: Path, data: Path, folder: Path, plans: list[Plan], search: Search, monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory, before: bool,
) -> None:  # fmt: skip
    scratch = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    if before:
        folder.mkdir()
        (folder / "model.int8.1.onnx").write_bytes(b"older")
    drafts: list[str] = []

    def interrupted(*_: object) -> None:
        drafts.extend(path.name for path in folder.rglob("*.onnx"))
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "deliver", interrupted)
    search(plans)
    with pytest.raises(KeyboardInterrupt):
        optimize(model, data, folder)
    assert set(drafts) == {"model.int8.1.onnx", "model.int8.2.onnx"}, "stopped while the models were half-written"
    assert folder.exists() == before
    if before:
        assert names(folder) == ["model.int8.1.onnx"]
        assert (folder / "model.int8.1.onnx").read_bytes() == b"older"
    assert not list(scratch.iterdir())


def test_where_there_is_nothing_to_choose_from_a_note_says_so(
    model: Path, data: Path, folder: Path, clock: Clock, plans: list[Plan], search: Search
) -> None:
    search(plans[-1:])
    result = optimize(model, data, folder)
    assert (result.status, result.frontier, result.warnings) == ("left alone", [], [EMPTY])
    assert not folder.exists()
    kept = MSE.model_copy(update={"nodes": {"*": Override(quantize=False)}})
    nothing = onnxq.optimize(model, data=data, recipe=kept, options=Options(frontier=folder))
    assert EMPTY in nothing.warnings


def test_a_model_with_scales_of_its_own_is_one_model(model: Path, data: Path, folder: Path, clock: Clock) -> None:
    qdq = model.with_name("qdq.onnx")
    recipe = Recipe(mode="static-int8", format="qdq")
    onnxq.optimize(model, qdq, data=data, recipe=recipe, options=Options(check=False))
    result = onnxq.optimize(qdq, data=data, options=Options(frontier=folder))
    assert (result.status, result.frontier) == ("optimized", [])
    assert EMPTY in result.warnings


# the command


@pytest.mark.usefixtures("clock")
def test_a_table_for_a_person(
    onnxq: Command, model: Path, data: Path, folder: Path, plans: list[Plan], search: Search
) -> None:
    search(plans)
    done = onnxq("optimize", model, "--data", data, "--frontier", folder)
    assert (done.code, done.err) == (0, "")
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert "Frontier size latency speed drop (agreement) SQNR contract" in lines
    rows = [line for line in lines if line.startswith("model.int8.") and "dB" in line]
    assert [row.split()[0] for row in rows] == names(folder)
    assert rows[0].endswith("dB kept chosen")
    assert rows[1].endswith("dB kept")
    assert f"Frontier {folder}" in lines


def test_a_person_is_told_where_the_chosen_model_is_none_of_them(
    onnxq: Command, model: Path, data: Path, folder: Path, clock: Clock, plans: list[Plan], search: Search
) -> None:
    clock.speedups = [2.0, 3.0]
    search(plans[1::-1])  # the wide ranges first: as good by the metric, so they are chosen
    done = onnxq("optimize", model, "--data", data, "--frontier", folder, "--metric", "sqnr", "--max-drop", "90%")
    assert done.code == 0
    assert "model.int8.onnx is none of them: one of these beats it in everything" in " ".join(done.out.split())


@pytest.mark.usefixtures("clock")
def test_the_same_for_a_program(
    onnxq: Command, model: Path, data: Path, folder: Path, plans: list[Plan], search: Search
) -> None:
    search(plans)
    done = onnxq("optimize", model, "--data", data, "--frontier", folder, "--json", "--quiet")
    assert (done.code, done.err) == (0, "")
    first = done.json["frontier"][0]
    assert first.keys() == {
        *("file", "size", "milliseconds", "speedup", "metric", "drop", "sqnr_db", "holds", "chosen"),
    }
    assert (first["file"], first["chosen"]) == (str(folder / "model.int8.1.onnx"), True)
    assert onnxq("optimize", model, "--data", data, "--frontier", folder, "--quiet").out == ""
