"""The page of a graph diff as a person uses it: opened, searched, zoomed, clicked, and with ten thousand nodes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import pytest
from onnx import TensorProto, helper

import onnxq
from onnxq import diffing
from onnxq.options import Options
from onnxq.recipe import Recipe
from tests.browser.chromium import DESKTOP, PHONE, Window, opened
from tests.browser.test_report_page import QUICK
from tests.report.pages import read
from tests.report.test_report import NASTY, nasty_model

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytest.importorskip("igraph", reason="the page of a diff needs igraph: pip install 'onnxq[report]'")

ROOT = Path(__file__).parents[2]
MANY = 10_000


def write(before: Path, after: Path, page: Path) -> Path:
    onnxq.write_report(diffing.diff(before, after), page)
    return page


@pytest.fixture(scope="session")
def digits(browser: Browser, pages: Path) -> Path:
    """digits.onnx beside what static-int8 makes of it."""
    before, after = ROOT / "models" / "digits.onnx", pages / "digits_static.onnx"
    data = ROOT / "models" / "digits_calibration.npz"
    options = Options(check=False, samples=16)
    onnxq.optimize(before, after, data=data, recipe=QUICK, options=options)
    return write(before, after, pages / "digits_diff.html")


@pytest.fixture(scope="session")
def nasty(browser: Browser, pages: Path) -> Path:
    """Names that try to be markup, on both sides."""
    before, after = nasty_model(pages / "nasty_before.onnx"), pages / "nasty_after.onnx"
    onnxq.optimize(before, after, data="random", recipe=Recipe(mode="static-int8"), options=Options(check=False))
    return write(before, after, pages / "nasty_diff.html")


def long_model(path: Path, changed: bool) -> Path:
    """Blocks of four nodes, one after the other; in the middle another operator where it is changed."""
    nodes, last = [], "x"
    for number in range(MANY // 4):
        name = f"layer.{number // 25}/block.{number}"
        op = "Sigmoid" if changed and number == MANY // 8 else "Tanh"
        outputs = [f"{name}/{part}" for part in ("a", "b", "c", "d")]
        nodes += [
            helper.make_node("Relu", [last], [outputs[0]], f"{name}/relu"),
            helper.make_node(op, [last], [outputs[1]], f"{name}/gate"),
            helper.make_node("Mul", outputs[:2], [outputs[2]], f"{name}/mul"),
            helper.make_node("Add", [last, outputs[2]], [outputs[3]], f"{name}/add"),
        ]
        last = outputs[3]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", last)]
    graph = helper.make_graph(nodes, "long", infos[:1], infos[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def drawn(window: Window, side: int) -> int:
    """How many colours a canvas shows: one where nothing was drawn."""
    window.page.wait_for_timeout(100)
    return int(
        window(
            """(side) => {
              const { canvas } = sides[side];
              const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
              return new Set(new Uint32Array(data.buffer)).size;
            }""",
            side,
        )
    )


def click_node(window: Window, wanted: str) -> str:
    """Click on the box of a node that is in sight and fits a condition; its name."""
    found = window(
        f"""() => {{
          for (const side of sides) for (const box of side.boxes) {{
            const {{ node }} = box, {{ canvas, view }} = side, at = canvas.getBoundingClientRect();
            if (!node || !({wanted})) continue;
            const x = at.left + view.x + (box.x + box.w / 2) * view.k;
            const y = at.top + view.y + (box.y + box.h / 2) * view.k;
            if (document.elementFromPoint(x, y) === canvas) return [node.view.name, x, y];
          }}
        }}"""
    )
    assert found, f"no node in sight with {wanted}"
    window.page.mouse.click(found[1], found[2])
    return str(found[0])


@pytest.mark.parametrize("name", ["digits", "nasty"])
def test_it_opens_without_complaint_and_asks_the_network_for_nothing(
    browser: Browser, request: pytest.FixtureRequest, name: str
) -> None:
    page = request.getfixturevalue(name)
    papers = set()
    for size, scheme in ((DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "light")):
        with opened(browser, page, size, scheme) as window:  # type: ignore[arg-type]
            assert drawn(window, 0) > 1
            assert drawn(window, 1) > 1
            papers.add(window("getComputedStyle(document.body).backgroundColor"))
            assert window.complaints == []
            assert window.requests == []
            assert not window.overflows
            assert window("document.querySelectorAll('img').length") == 0
    assert len(papers) == 2


def test_the_page_holds_the_json_of_the_command(browser: Browser, digits: Path, pages: Path) -> None:
    found = diffing.diff(ROOT / "models" / "digits.onnx", pages / "digits_static.onnx")
    assert json.loads(read(digits).texts["data"])["diff"] == json.loads(found.model_dump_json())
    with opened(browser, digits) as window:
        said = window.page.inner_text("#details")
        assert f"{len(found.before.nodes)} → {len(found.after.nodes)}" in said
        for kind, count in found.counts.items():
            if count and kind in ("inserted", "removed", "replaced", "changed"):
                assert f"{kind}\t{count}" in said
        assert f"{len(found.edits)} differences" in window.page.inner_text("h1")


def test_a_click_shows_what_became_of_a_node(browser: Browser, digits: Path) -> None:
    with opened(browser, digits) as window:
        name = click_node(window, 'node.edit && node.edit.kind === "replaced" && node.side === 0')
        window.page.wait_for_selector("#details h3")
        said = window.page.inner_text("#details")
        assert name in said
        assert "WHAT HAPPENED" in said.upper()
        assert window("selected.view.name") == name
        window.page.keyboard.press("Escape")
        assert window("selected") is None


def test_search_finds_a_node_and_leads_to_it(browser: Browser, digits: Path) -> None:
    with opened(browser, digits) as window:
        window.page.keyboard.press("/")
        window.page.keyboard.type("qlinearadd")
        hits = window.page.locator("#hits li")
        assert hits.count() >= 2
        assert "QLinearAdd" in hits.first.inner_text()
        window.page.keyboard.press("Enter")
        assert window("selected.view.op").endswith("QLinearAdd")
        assert "QLinearAdd" in window.page.inner_text("#details h3")
        window.page.locator("#query").fill("no such node")
        assert hits.all_inner_texts() == ["Nothing of that name."]
        assert window.complaints == []


def test_wheel_drag_and_buttons_move_the_view(browser: Browser, digits: Path) -> None:
    with opened(browser, digits) as window:
        box = window.page.locator("#side0").bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

        def changes(act: Callable[[], Any], what: str) -> bool:
            before = window(f"sides[0].view.{what}")
            act()
            window.page.wait_for_timeout(50)
            return bool(window(f"sides[0].view.{what}") != before)

        window.page.mouse.move(x, y)
        assert changes(lambda: window.page.mouse.wheel(0, -240), "k")

        def drag() -> None:
            window.page.mouse.down()
            window.page.mouse.move(x + 40, y + 30, steps=3)
            window.page.mouse.up()

        assert changes(drag, "x")
        assert changes(lambda: window.page.locator("#fit").click(), "k")
        assert window("sides[0].size.w * sides[0].view.k <= sides[0].canvas.clientWidth")


def test_every_difference_is_visited_in_turn(browser: Browser, digits: Path) -> None:
    with opened(browser, digits) as window:
        seen = set()
        for _ in range(window("edits.length")):
            window.page.locator("#next").click()
            seen.add(window("edits.indexOf(selected.edit)"))
        assert seen == set(range(window("edits.length")))
        window.page.keyboard.press("p")
        assert window("edits.indexOf(selected.edit)") == window("edits.length - 2")


def test_names_that_are_markup_stay_text(browser: Browser, nasty: Path) -> None:
    with opened(browser, nasty) as window:
        for _ in range(window("edits.length")):
            window.page.locator("#next").click()
        assert window("document.querySelectorAll('img').length") == 0
        assert window.complaints == []
        names = window("sides[0].nodes.map((node) => node.view.name)")
        assert any(str(name).startswith(NASTY[:40]) for name in names)


def test_ten_thousand_nodes_stay_usable(
    browser: Browser, pages: Path, record_property: Callable[[str, object], None]
) -> None:
    before, after = long_model(pages / "long.onnx", False), long_model(pages / "longer.onnx", True)
    page = write(before, after, pages / "long_diff.html")
    with opened(browser, page) as window:
        record_property("seconds to open", round(window.seconds, 2))
        record_property("bytes", page.stat().st_size)
        print(f"{MANY} nodes: {page.stat().st_size / 2**20:.1f} MiB, opened in {window.seconds:.2f} s")
        assert window("sides.map((side) => side.nodes.length)") == [MANY, MANY]
        assert window("edits.length") == 1
        window.page.locator("#next").click()
        assert window("selected.edit.kind") == "replaced"
        window.page.locator("#query").fill("block.1777/gate")
        window.page.keyboard.press("Enter")
        assert window("selected.view.name") == "layer.71/block.1777/gate"
        window.page.locator("#unfold").click()
        assert drawn(window, 0) > 1
        assert window("sides[0].boxes.filter((box) => box.node).length") == MANY
        window.page.locator("#fold").click()
        assert window("sides[0].boxes.length") < MANY
        assert (window.complaints, window.requests) == ([], [])
