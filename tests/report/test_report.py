"""The report: its numbers are the document's, its names are harmless, and it is there whole or not at all."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxq as package
from onnxq import report
from onnxq.curriculum import Lesson, Look
from onnxq.errors import OutputError, RecipeError
from onnxq.options import Options
from onnxq.recipe import Recipe
from onnxq.report.figures import FORMS
from onnxq.result import Point, Result
from tests.report.pages import document, read, wrong_numbers

if TYPE_CHECKING:
    from tests.conftest import Command

pytest.importorskip("jinja2", reason="the report needs Jinja2 and Plotly: pip install 'onnxq[report]'")

STATIC = ("--recipe", "static-int8", "--seconds", 0)
NASTY = "</script><img src=x onerror=alert(1)>'\"&amp;{{7*7}}\u2028"


def nasty_model(path: Path) -> Path:
    """Two layers whose names try to be markup."""
    names = [f"{NASTY}{number}" for number in range(4)]
    weight = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], [names[1]], names[0]),
            helper.make_node("Relu", [names[1]], [names[2]], names[2]),
            helper.make_node("MatMul", [names[2], "w"], [names[3]], names[3]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info(names[3], TensorProto.FLOAT, ["batch", 16])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "report.html"


def test_every_number_of_optimize_is_that_of_the_json(onnxq: Command, model: Path, data: Path, page: Path) -> None:
    words = ("optimize", model, "--data", data, *STATIC, "--max-size", "80%", "--explain", "--json", "--report", page)
    done = onnxq(*words)
    shown = read(page)
    assert document(shown) == done.json
    assert list(wrong_numbers(shown.numbers, done.json)) == []
    places = {number.at for number in shown.numbers} | {number.part for number in shown.numbers}
    for needed in (
        "/proof/size",
        "/proof/milliseconds",
        "/proof/speedup",
        "/proof/outputs/y/cosine",
        "/limits/0/measured",
        "/ranges/0/clipped",
        "/ranges/0/outliers/0/times",
        "/proof/layers/0/sqnr_db",
        "/diagnosis/findings/0/share",
    ):
        assert needed in places
    assert shown.texts["command"].startswith("onnxq optimize ")
    assert shown.texts["command"].endswith(f"--report {page}")


def test_every_layer_is_in_the_table_with_its_grid_and_its_reason(
    onnxq: Command, model: Path, data: Path, page: Path
) -> None:
    found = onnxq("optimize", model, "--data", data, *STATIC, "--keep-float", "two", "--json", "--report", page).json
    text = page.read_text(encoding="utf-8")
    rows = re.findall(r'<tr data-kind="(.*?)">(.*?)</tr>', text)
    cells = {re.findall(r"<td.*?>(.*?)</td>", row)[0]: (kind, row) for kind, row in rows}
    assert list(cells)[: len(found["plan"]["nodes"])] == list(found["plan"]["nodes"])
    kind, row = cells["one"]
    run = next(place for place, node in enumerate(found["proof"]["nodes"]) if node["node"].startswith("one"))
    assert kind == "static"
    assert found["plan"]["nodes"]["one"]["reason"] in row
    assert "int8 × 32" in row
    for field in ("scale", "zero_point", "microseconds"):
        assert f'data-at="/proof/nodes/{run}/{field}"' in row
    assert cells["relu"][0] in ("fused", "float", "static")
    assert cells["two"][0] == "float"
    assert "Take it out of --keep-float" in text


def test_validate_and_explain_have_pages_too(onnxq: Command, model: Path, data: Path, page: Path) -> None:
    onnxq("optimize", model, "--data", data, *STATIC, "--no-validate", "--quiet")
    other = model.with_name("model.int8.onnx")
    for words in (("validate", model, other, "--seconds", 0), ("explain", model, other)):
        done = onnxq(*words, "--data", data, "--json", "--report", page)
        shown = read(page)
        assert document(shown) == done.json
        assert len(shown.numbers) > 10
        assert list(wrong_numbers(shown.numbers, done.json)) == []
        assert "plotly" not in shown.texts  # nothing to draw


@pytest.mark.usefixtures("clock")
def test_a_model_that_is_rejected_or_left_alone_says_why(onnxq: Command, model: Path, data: Path, page: Path) -> None:
    for words, status, code in (((), "left alone", 0), (("--min-speedup", 100), "rejected", 1)):
        keep = ("--keep-float", "MatMul") if status == "left alone" else ()
        done = onnxq("optimize", model, "--data", data, *words, *keep, "--json", "--report", page)
        assert (done.code, done.json["status"]) == (code, status)
        assert status in page.read_text(encoding="utf-8")
        assert list(wrong_numbers(read(page).numbers, done.json)) == []


def test_a_frontier_and_a_lesson_are_shown(page: Path, model: Path, data: Path) -> None:
    found = package.optimize(model, data=data, recipe=Recipe(mode="static-int8"), options=Options(seconds=0))
    looks = [Look(step=step, loss=1 / (step + 1)) for step in range(0, 50, 10)]
    lesson = Lesson(
        samples=12, held=4, parameters=345, fidelity=0, device="cpu", looks=looks, best=30, stopped="", seconds=1.5
    )
    points = [
        Point(file=f"{n}.onnx", size=100 * n, milliseconds=n, speedup=1 / n, metric="cosine", drop=n / 100,
              sqnr_db=30.0, holds=n < 3, chosen=n == 2)
        for n in (1, 2, 3)
    ]  # fmt: skip
    found = found.model_copy(update={"frontier": points, "lesson": lesson, "untrained": found.proof})
    package.write_report(found, page)
    shown = read(page)
    assert list(wrong_numbers(shown.numbers, document(shown))) == []
    charts = [attributes.get("data-chart") for _, attributes in shown.tags if "data-chart" in attributes]
    assert charts == ["frontier", "lesson", *["histogram"] * len(found.ranges)]
    assert {"/frontier/2/drop", "/lesson/parameters"} <= {number.at for number in shown.numbers}


@pytest.mark.parametrize(
    ("method", "best", "words"),
    [
        ("lsq", 10, "the state after step 10 was taken."),
        ("lsq", 0, "the loss never fell: the model is as calibration left it."),
        ("blocks", 10, "10 blocks, one after the other."),
    ],
)
def test_what_training_counts(page: Path, model: Path, data: Path, method: str, best: int, words: str) -> None:
    found = package.optimize(model, data=data, recipe=Recipe(mode="static-int8"), options=Options(seconds=0))
    looks = [Look(step=0, loss=1.0), Look(step=10, loss=0.5)]
    lesson = Lesson(
        method=method, samples=12, held=4, parameters=345, fidelity=0, device="cpu", looks=looks, best=best, stopped="",
        seconds=1.5,
    )  # fmt: skip
    package.write_report(found.model_copy(update={"lesson": lesson}), page)
    text = page.read_text(encoding="utf-8").partition('id="training"')[2].partition("</section>")[0]
    assert words in " ".join(re.sub(r"<[^>]+>", "", text).split())


def test_what_was_not_validated_or_not_written_is_said(page: Path, model: Path, data: Path) -> None:
    recipe = Recipe(mode="static-int8")
    found = package.optimize(model, data=data, recipe=recipe, options=Options(check=False))
    package.write_report(found, page)
    assert "Nothing was validated" in page.read_text(encoding="utf-8")
    assert 'href="#summary"' not in page.read_text(encoding="utf-8")
    package.write_report(found.model_copy(update={"status": "left alone", "reason": "Slow."}), page)
    assert "It was not what was written." in page.read_text(encoding="utf-8")
    found = package.optimize(model, data=data, recipe=recipe, options=Options(seconds=0))
    package.write_report(found, page)
    assert "Nothing was validated" not in page.read_text(encoding="utf-8")
    assert "not what was written" not in page.read_text(encoding="utf-8")
    assert "top-1" not in page.read_text(encoding="utf-8"), "there are no labels"


def test_a_comparison_is_drawn_and_anything_else_refused(page: Path, model: Path) -> None:
    package.write_report(package.diff(model, model), page)
    assert json.loads(read(page).texts["data"])["diff"]["edits"] == []
    for other in ("a text", 5, None):
        with pytest.raises(RecipeError, match=f"{type(other).__name__} has no report"):
            package.write_report(other, page)  # type: ignore[arg-type]


def test_a_page_from_python_tells_an_equivalent_call(page: Path, model: Path, data: Path) -> None:
    recipe = Recipe(mode="static-int8")
    found = package.optimize(model, data=data, recipe=recipe, options=Options(check=False))
    package.write_report(found, page)
    call = read(page).texts["command"]
    assert call.startswith("onnxq.optimize(model, ")
    assert "'mode': 'static-int8'" in call
    assert document(read(page))["status"] == "optimized"


def test_names_that_are_markup_are_harmless(onnxq: Command, tmp_path: Path, data: Path, page: Path) -> None:
    model = nasty_model(tmp_path / "nasty.onnx")
    done = onnxq("optimize", model, "--data", data, *STATIC, "--explain", "--json", "--report", page)
    assert done.code == 0
    shown = read(page)
    assert document(shown) == done.json
    assert "img" not in {tag for tag, _ in shown.tags}
    assert not any(name.startswith("on") for _, attributes in shown.tags for name in attributes)
    text = page.read_text(encoding="utf-8")
    assert "onerror=alert(1)>" not in text
    assert "{{7*7}}" in text  # as it is: no template within a template


def test_a_page_asks_the_network_for_nothing(onnxq: Command, model: Path, data: Path, page: Path) -> None:
    onnxq("optimize", model, "--data", data, *STATIC, "--report", page, "--quiet")
    tags = read(page).tags
    assert not [attributes for _, attributes in tags if "src" in attributes]
    assert all(str(attributes["href"]).startswith("#") for _, attributes in tags if "href" in attributes)
    assert "link" not in {tag for tag, _ in tags}
    (policy,) = [a["content"] for _, a in tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert str(policy).startswith("default-src 'none'")
    assert "'unsafe-inline'; img-src" in str(policy)  # for styles; scripts are known by their digest
    assert "script-src 'sha256-" in str(policy)


def test_the_same_document_gives_the_same_bytes(onnxq: Command, model: Path, data: Path, page: Path) -> None:
    done = onnxq("optimize", model, "--data", data, *STATIC, "--json", "--quiet")
    for place in (page, page.with_name("again.html")):
        report.write_report(done.json, place, command="c", subject="s")
    assert page.read_bytes() == page.with_name("again.html").read_bytes()


def test_without_the_extra_one_line_says_what_to_install(
    onnxq: Command, model: Path, data: Path, page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "find_spec", lambda _: None)
    for words in (("optimize", model), ("finetune", model), ("validate", model, model), ("explain", model, model)):
        done = onnxq(*words, "--data", data, "--report", page)
        assert (done.code, done.out) == (2, "")
        assert "pip install 'onnxq[report]'" in done.err
        assert len(done.err.splitlines()) == 1
    assert sorted(model.parent.iterdir()) == sorted([model, data])
    with pytest.raises(RecipeError, match="onnxq\\[report\\]"):
        package.write_report([], page)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("nowhere/report.html", "does not exist"),
        ("", "is a folder"),
        ("model.onnx", "is the input model"),
        ("data.npz", "--data reads"),
        ("out.onnx", "both name"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    onnxq: Command, model: Path, data: Path, tmp_path: Path, place: str, words: str
) -> None:
    done = onnxq("optimize", model, "-o", tmp_path / "out.onnx", "--data", data, "--report", tmp_path / place)
    assert done.code == 2
    assert words in done.err
    assert sorted(tmp_path.iterdir()) == sorted([model, data])


def test_a_folder_that_refuses_is_found_out_before_the_work(
    onnxq: Command, model: Path, data: Path, page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxq.reporting.os.access", lambda _, mode: mode == os.R_OK)
    done = onnxq("optimize", model, "--data", data, "--report", page)
    assert done.code == 2
    assert "cannot be written to" in done.err


def test_half_a_page_is_never_left(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page.write_text("old")

    def fail(self: Path, *_: Any, **__: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OutputError, match="No space left"):
        report.write_report({"passed": True, "reasons": [], "proofs": []}, page, command="c", subject="s")
    assert page.read_bytes() == b"old"
    assert list(page.parent.iterdir()) == [page]


def test_numbers_are_written_for_people() -> None:
    written = {
        ("size", 945_000): "923 KiB",
        ("size", 12): "12 B",
        ("ms", 0.2263): "0.226 ms",
        ("ms", 123.4): "123 ms",
        ("us", 1234.0): "1,234 µs",
        ("percent", 0.2634): "26.3 %",
        ("percent", 0.000412): "0.041 %",
        ("percent", 0): "0.0 %",
        ("db", 44.7049): "44.7 dB",
        ("times", 2.4351): "2.44×",
        ("number", 0.016105037): "0.01611",
        ("count", 1_234_567): "1,234,567",
    }
    assert {key: FORMS[key[0]](key[1]) for key in written} == written


def test_a_report_loads_nothing_that_is_not_asked_for() -> None:
    code = "import sys, onnxq.report; assert not {'jinja2', 'plotly'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_result_without_data_has_no_ranges(onnxq: Command, model: Path, page: Path) -> None:
    done = onnxq("optimize", model, "--recipe", "dynamic-int8", "--seconds", 0, "--json", "--report", page)
    assert done.json["ranges"] == []
    assert list(wrong_numbers(read(page).numbers, done.json)) == []
    assert json.loads(json.dumps(done.json)).keys() == Result.model_fields.keys()
