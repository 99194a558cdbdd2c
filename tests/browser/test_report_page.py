"""The report as a person uses it: opened, sorted, searched, by day and by night, on a desk and on a phone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import onnxq
from onnxq.curriculum import Lesson, Look
from onnxq.options import Options
from onnxq.recipe import Activation, Recipe, Weight
from onnxq.result import Point
from tests.browser.chromium import DESKTOP, PHONE, Window, opened
from tests.report.pages import Shown, document, read, wrong_numbers
from tests.report.test_report import NASTY, nasty_model

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[2]

QUICK = Recipe(
    mode="static-int8",
    balance=False,
    least_sqnr=0,
    activation=Activation(range="percentile"),
    weight=Weight(rounding="nearest"),
)
"""Nothing that has to be searched for."""

VISIBLE = """
[...document.querySelectorAll("data")].filter((each) => each.getClientRects().length).map((each) => [
  each.textContent, Number(each.value), each.dataset.at || "", each.dataset.part || "", each.dataset.whole || ""])
"""
"""Every number that can be seen."""


@pytest.fixture(scope="session")
def digits(browser: Browser, pages: Path) -> Path:
    """The report of digits.onnx, with a frontier and a lesson that were made up."""
    found = onnxq.optimize(
        ROOT / "models" / "digits.onnx",
        pages / "digits.onnx",
        data=ROOT / "models" / "digits_calibration.npz",
        recipe=QUICK,
        options=Options(seconds=0.1, samples=32, explain=True),
    )
    looks = [Look(step=step, loss=2 / (step + 10)) for step in range(0, 100, 5)]
    lesson = Lesson(
        samples=64, held=9, parameters=77777, fidelity=0, device="cpu", looks=looks, best=95, stopped="", seconds=12
    )
    points = [
        Point(file=f"{NASTY}{n}.onnx", size=100_000 * n, milliseconds=n / 9, speedup=2 / n, metric="agreement",
              drop=0.1 / n, sqnr_db=30.0 + n, holds=n > 1, chosen=n == 2)
        for n in (1, 2, 3)
    ]  # fmt: skip
    found = found.model_copy(update={"frontier": points, "lesson": lesson, "untrained": found.proof})
    onnxq.write_report(found, pages / "digits.html", subject="digits.onnx")
    return pages / "digits.html"


@pytest.fixture(scope="session")
def docstrings(browser: Browser, pages: Path) -> Path:
    """The report of docstrings.onnx."""
    found = onnxq.optimize(
        ROOT / "models" / "docstrings.onnx",
        pages / "docstrings.onnx",
        data=ROOT / "models" / "docstrings_calibration.npz",
        recipe=QUICK,
        options=Options(seconds=0.1, samples=16),
    )
    onnxq.write_report(found, pages / "docstrings.html", subject="docstrings.onnx")
    return pages / "docstrings.html"


@pytest.fixture(scope="session")
def nasty(browser: Browser, pages: Path) -> Path:
    """The report of a model whose names try to be markup."""
    found = onnxq.optimize(
        nasty_model(pages / "nasty.onnx"),
        data="random",
        recipe=Recipe(mode="static-int8"),
        options=Options(seconds=0, explain=True),
    )
    onnxq.write_report(found, pages / "nasty.html", subject=NASTY)
    return pages / "nasty.html"


@pytest.fixture(params=["digits", "docstrings", "nasty"])
def page(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(request.param))


def plain(text: str) -> str:
    """Text without white space, which is drawn in many ways."""
    return "".join(text.split())


def draw_everything(window: Window) -> int:
    """Wait until every chart is there, also those that nobody scrolled to; how many there are."""
    window.page.wait_for_function("document.querySelectorAll('.plot:not([data-drawn])').length === 0")
    charts = window.page.locator(".plot")
    for index in range(charts.count()):
        window.page.wait_for_selector(f".plot >> nth={index} >> css=.main-svg >> nth=0", state="attached")
    return charts.count()


def column(window: Window, name: str) -> list[Any]:
    """What the shown cells of a column of the table of layers hold: a number, or text."""
    return list(
        window(
            """(name) => {
              const table = document.getElementById("table");
              const at = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent === name);
              return [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => {
                const number = row.cells[at].querySelector("data");
                return number ? Number(number.value) : row.cells[at].textContent.trim();
              });
            }""",
            name,
        )
    )


def test_it_opens_without_complaint_and_asks_the_network_for_nothing(browser: Browser, page: Path) -> None:
    for size, scheme in ((DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "light")):
        with opened(browser, page, size, scheme) as window:  # type: ignore[arg-type]
            assert draw_everything(window) >= 1
            assert window.complaints == []
            assert window.requests == []
            assert not window.overflows


def test_every_number_that_is_seen_is_that_of_the_json(browser: Browser, page: Path) -> None:
    with opened(browser, page) as window:
        shown = [Shown(*each) for each in window(VISIBLE)]
        found = document(read(page))
        assert len(shown) > 20
        assert list(wrong_numbers(shown, found)) == []
        assert window("JSON.parse(document.getElementById('document').textContent)") == found


def test_charts_draw_what_the_json_says(browser: Browser, digits: Path) -> None:
    with opened(browser, digits) as window:
        draw_everything(window)
        found = document(read(digits))
        drawn = window(
            "[...document.querySelectorAll('.plot')].map((p) => [p.dataset.chart, p.data[0].x, p.data[0].y])"
        )
        assert drawn[0][1:] == [[p["milliseconds"] for p in found["frontier"]], [p["drop"] for p in found["frontier"]]]
        assert drawn[1][2] == [look["loss"] for look in found["lesson"]["looks"]]
        assert [chart[2] for chart in drawn[2:]] == [each["counts"] for each in found["ranges"]]
        window.page.locator(".plot .points path.point").first.hover(force=True)
        window.page.wait_for_selector(".hoverlayer .hovertext")
        label = str(window("document.querySelector('.hovertext').textContent"))
        assert plain(f"{NASTY}1.onnx").rpartition("/")[2] in plain(label)  # a file without its folders


def test_a_click_on_a_heading_sorts_and_a_second_one_turns_it_round(browser: Browser, docstrings: Path) -> None:
    with opened(browser, docstrings) as window:
        before = column(window, "Node")
        for name in ("time", "error", "scale", "zero", "operator", "reason", "Node"):
            head = window.page.locator("#table th", has_text=name).first
            head.click()
            up = [value for value in column(window, name) if value != ""]
            head.click()
            down = [value for value in column(window, name) if value != ""]
            assert head.get_attribute("aria-sort") == "descending"
            assert len(up) > 3
            if isinstance(up[0], float | int):
                numbers = [value for value in up if not isinstance(value, str)]
                assert numbers == sorted(numbers)
                assert [value for value in down if not isinstance(value, str)] == numbers[::-1]
            else:
                assert up != down
                assert sorted(up) == sorted(down)
            everything = column(window, name)
            assert "" not in everything[: len(down)]  # what is empty comes last
        assert sorted(column(window, "Node")) == sorted(before)
        window.page.locator("#table th", has_text="time").first.press("Enter")
        assert window.page.locator("#table th", has_text="time").first.get_attribute("aria-sort") == "ascending"
        assert window.complaints == []


def test_search_finds_words_in_names_operators_and_reasons(browser: Browser, docstrings: Path) -> None:
    with opened(browser, docstrings) as window:
        search = window.page.locator(".tools input")
        total = len(column(window, "Node"))
        search.fill("matmul integer")
        found = column(window, "Node")
        assert 0 < len(found) < total
        assert window.page.locator(".tools output").inner_text() == f"{len(found)} of {total} nodes"
        search.fill("no such thing")
        assert column(window, "Node") == []
        search.fill("")
        window.page.locator(".tools select").select_option("static")
        assert set(column(window, "runs")) == {"static"}
        window.page.locator(".tools select").select_option("")
        assert len(column(window, "Node")) == total


def visible(window: Window) -> int:
    """How many rows of the table of layers are laid out."""
    return int(window("[...document.querySelectorAll('#table tbody tr')].filter((row) => row.offsetHeight).length"))


def test_a_long_table_is_laid_out_as_far_as_it_is_scrolled(browser: Browser, pages: Path) -> None:
    """10,000 rows at once would take seconds."""
    node = {"op": "Conv", "treatment": "float", "reason": "It is one of many."}
    names = [f"layer {number:04}" for number in range(1200)]
    found = {"status": "left alone", "plan": {"nodes": dict.fromkeys(names, node)}}
    onnxq.write_report(found, pages / "long.html", command="onnxq", subject="long.onnx")
    with opened(browser, pages / "long.html") as window:
        count = window.page.locator(".tools output")
        assert (visible(window), count.inner_text()) == (500, "1,200 nodes")
        frame = window.page.locator("#table").locator("xpath=..")
        for expected in (1000, 1200):
            frame.evaluate("(frame) => { frame.scrollTop = frame.scrollHeight; }")
            window.page.wait_for_timeout(200)
            assert visible(window) == expected
        window.page.locator(".tools input").fill("layer 111")
        assert (visible(window), count.inner_text()) == (11, "11 of 1,200 nodes")
        window.page.locator(".tools input").fill("")
        assert visible(window) == 500
        head = window.page.locator("#table th", has_text="Node").first
        head.click()
        head.click()
        assert window.page.locator("#table tbody tr").first.inner_text().startswith("layer 1199")
        assert visible(window) == 500
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((pages / "long.html").as_uri())
    assert page.locator("#table tbody tr").last.is_visible()
    context.close()


def test_light_and_dark(browser: Browser, digits: Path) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    grid = "document.querySelector('.plot').layout.xaxis.gridcolor"
    with opened(browser, digits) as light, opened(browser, digits, scheme="dark") as dark:
        for window in (light, dark):
            window.page.locator(".plot").first.scroll_into_view_if_needed()
            window.page.wait_for_selector(".plot[data-drawn]")
        assert light(paper) != dark(paper)
        assert light(grid) != dark(grid)
        before = light(paper)
        light.page.locator("#theme").click()
        assert (light(paper), light(grid)) == (dark(paper), dark(grid))
        light.page.locator("#theme").click()
        assert light(paper) == before


def test_names_that_are_markup_stay_text(browser: Browser, nasty: Path) -> None:
    with opened(browser, nasty) as window:
        assert window("document.querySelectorAll('img').length") == 0
        assert plain(f"{NASTY}0") in [plain(name) for name in column(window, "Node")]
        for details in window.page.locator("details").all():
            details.locator("summary").click()
        assert window.complaints == []


def test_the_numbers_can_be_saved(browser: Browser, digits: Path, tmp_path: Path) -> None:
    with opened(browser, digits) as window:
        with window.page.expect_download() as saved:
            window.page.locator("#save").click()
        saved.value.save_as(tmp_path / "saved.json")
        text = (tmp_path / "saved.json").read_text(encoding="utf-8")
        assert window("(text) => JSON.parse(text).status", text) == "optimized"


def test_it_is_readable_without_scripts(browser: Browser, digits: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(digits.as_uri())
    assert page.locator("#table tbody tr").count() > 10
    assert "Left in float" in page.inner_text("body")
    context.close()
