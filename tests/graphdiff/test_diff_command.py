"""`onnxq diff`: what it prints where, its exit codes, and bad input."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

import onnxq
from onnxq import diffing
from onnxq.graph import to_model
from onnxq.graphdiff.compare import _is_precision
from onnxq.graphdiff.details import RESCALED
from onnxq.graphdiff.findings import Detail
from tests.onnx_text import floats, read

if TYPE_CHECKING:
    from tests.conftest import Command

IGRAPH = "the page of a diff needs igraph: pip install 'onnxq[report]'"

HEAD = "(float[N,4] x) => (float[N,4] y)"
TEXT = f"{HEAD} {{ [one] a = MatMul(x, w) [two] y = Relu(a) }}"


def save(folder: Path, name: str, text: str, weight: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Path:
    place = folder / name
    onnx.save(to_model(read(text, {"w": weight})), place)
    return place


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    """A model, and others that differ from it in one way each."""
    w = floats(4, 4)
    texts = {
        "same": TEXT,
        "inserted": f"{HEAD} {{ [one] a = MatMul(x, w) [i] b = Neg(a) [two] y = Relu(b) }}",
        "removed": f"{HEAD} {{ [one] y = MatMul(x, w) }}",
        "replaced": f"{HEAD} {{ [one] a = MatMul(x, w) [two] y = Exp(a) }}",
        "interface": TEXT.replace("[N,4] y", "[M,4] y"),
        "precision": TEXT.replace(
            "[two] y = Relu(a)", "[c] h = Cast<to=10>(a) [d] s = Cast<to=1>(h) [two] y = Relu(s)"
        ),
    }
    found = {name: save(tmp_path, f"{name}.onnx", text, w) for name, text in texts.items()}
    found["changed"] = save(tmp_path, "changed.onnx", TEXT, w + np.float32(0.5))
    return found | {"model": save(tmp_path, "model.onnx", TEXT, w)}


def test_the_same_model(onnxq: Command, models: dict[str, Path]) -> None:
    done = onnxq(
        "diff", models["model"], models["same"], "--fail-on", "inserted,removed,replaced,changed,interface,precision"
    )
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "--- model.onnx",
        "+++ same.onnx",
        "The graphs are the same: 2 nodes, 64 B of weights.",
    ]


@pytest.mark.parametrize("alarm", ["inserted", "removed", "replaced", "changed", "interface", "precision"])
def test_alarms(onnxq: Command, models: dict[str, Path], alarm: str) -> None:
    assert onnxq("diff", models["model"], models[alarm], "--fail-on", alarm, "--quiet").code == 1
    assert onnxq("diff", models["model"], models["same"], "--fail-on", alarm, "--quiet").code == 0
    assert onnxq("diff", models["model"], models[alarm], "--quiet").code == 0
    others = {"inserted", "removed", "replaced", "changed", "interface"} - {alarm}
    if alarm != "precision":  # Casts that were inserted are both
        assert onnxq("diff", models["model"], models[alarm], "--fail-on", ", ".join(others), "--quiet").code == 0


def test_json_is_what_the_api_returns(onnxq: Command, models: dict[str, Path]) -> None:
    done = onnxq("diff", models["model"], models["changed"], "--json", "--quiet")
    assert done.err == ""
    found = diffing.diff(models["model"], models["changed"])
    assert done.json == json.loads(found.model_dump_json())
    assert type(found).model_validate(done.json) == found
    both = onnxq("diff", models["model"], models["changed"], "--json")
    assert both.json == done.json
    assert "changed.onnx" in both.err


def test_text(onnxq: Command, models: dict[str, Path]) -> None:
    said = onnxq("diff", models["model"], models["inserted"]).out
    assert "@@ inserted @@\n  MatMul             one\n+ Neg                i\n  Relu               two\n" in said
    said = onnxq("diff", models["model"], models["replaced"]).out
    assert "@@ replaced @@\n  MatMul             one\n- Relu               two\n+ Exp                two\n" in said
    said = onnxq("diff", models["model"], models["changed"]).out
    assert "~ MatMul             one\n      w: float32[4, 4], other values, differs by 0.5 at most\n" in said
    said = onnxq("diff", models["model"], models["interface"]).out
    assert "@@ interface @@\n~ output y: float32[N, 4] -> float32[M, 4]\n" in said


def test_edits_that_are_alike_are_counted(onnxq: Command, tmp_path: Path) -> None:
    def chain(op: str) -> str:
        names = ["x", *(f"t{i}" for i in range(11)), "y"]
        steps = [f"[n{i}] u{i} = {op}({a}) [m{i}] {b} = Exp(u{i})" for i, (a, b) in enumerate(pairwise(names))]
        return f"{HEAD} {{ {' '.join(steps)} }}"

    models = [save(tmp_path, f"{op}.onnx", chain(op), floats(4, 4)) for op in ("Relu", "Neg")]
    said = onnxq("diff", *models).out
    assert said.count("\n- Relu") == 2
    assert "   and 10 more like this: Relu -> Neg" in said
    assert onnxq("diff", *models, "--all").out.count("\n- Relu") == 12


def test_a_page(onnxq: Command, models: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("igraph", reason=IGRAPH)
    place = tmp_path / "diff.html"
    assert onnxq("diff", models["model"], models["changed"], "--html", place, "--quiet").code == 0
    assert place.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_page_needs_its_packages(
    onnxq: Command, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name in ("onnxq.graphdiff.page", "onnxq.graphdiff.layout")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "igraph", None)
    place = tmp_path / "diff.html"
    done = onnxq("diff", models["model"], models["changed"], "--html", place)
    assert (done.code, done.out) == (2, "")
    assert "--html needs the package igraph. Install it with: pip install 'onnxq[report]'." in done.err
    assert not place.exists()
    assert onnxq("diff", models["model"], models["changed"]).code == 0


def test_an_igraph_that_crashes_is_refused(
    onnxq: Command, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("igraph", reason=IGRAPH)
    monkeypatch.setattr("onnxq.graphdiff.layout.VERSION", "1.0.0")
    done = onnxq("diff", models["model"], models["changed"], "--html", tmp_path / "diff.html")
    assert done.code == 2
    assert "another igraph than 1.0.0" in done.err


def test_factors_between_channels_are_no_other_precision() -> None:
    """As the runtime folds a batch normalization into a convolution."""
    text = "(float[n,8] x) => (float[n,4] y) { [fc] y = MatMul(x, w) }"
    plain, factors = floats(8, 4), np.array([1, 2, 3, 0.5], np.float32)
    before, after = (to_model(read(text, {"w": values})) for values in (plain, plain * factors))
    found = diffing.diff(before, after)
    assert found.raises("changed")
    assert not found.raises("precision")
    assert "each channel rescaled" in found.edits[0].details[0].after
    computed = Detail(aspect="weights", name="w", before="float32", after=f"float32{RESCALED}")
    assert not _is_precision(computed), "a weight that is computed has no shape in its words"
    assert _is_precision(computed.model_copy(update={"after": f"float16{RESCALED}"}))


def test_bad_input(onnxq: Command, models: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(models["model"].read_bytes()[:60])
    cases = [
        ((tmp_path / "missing.onnx", models["same"]), "does not exist"),
        ((models["model"], tmp_path / "missing.onnx"), "does not exist"),
        ((models["model"], broken), "not an ONNX model"),
        ((models["model"], models["same"], "--fail-on", "inserted,everything"), "does not know 'everything'"),
        ((models["model"], models["same"], "--fail-on", ""), "does not know ''"),
        (
            (models["model"], models["same"], "--html", models["same"]),
            "is the input model. Name another file with --html",
        ),
        ((models["model"], models["same"], "--html", tmp_path), "is a folder"),
        ((models["model"], models["same"], "--html", tmp_path / "no" / "x.html"), "does not exist"),
        ((models["model"],), "'after'"),
    ]
    for words, message in cases:
        done = onnxq("diff", *words)
        assert (done.code, done.out) == (2, ""), words
        assert message in done.err
        assert done.err.count("\n") == 1
    done = onnxq("diff", models["model"], broken, "--json")
    assert done.code == 2
    assert done.json["error"]["type"] == "ModelError"


def test_the_public_name_stays_a_function(models: dict[str, Path]) -> None:
    for _ in range(2):
        assert onnxq.diff(models["model"], models["same"]).empty
    assert isinstance(onnxq.diff(models["model"].read_bytes(), onnx.load(models["same"])), onnxq.GraphDiff)
