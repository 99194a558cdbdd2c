"""Makes reports and comparisons of a zoo's models and of 10,000 nodes, and opens each in Chromium.

    python tools/open_pages.py --zoo ZOO [--keep DIR]

For each page: its size, the seconds until it is there and until all of it is drawn, how many numbers it shows, and how
many of these are others than in the JSON; and what the console said and which addresses it asked for, which must be
nothing. The exit code is 1 where something is wrong, or a page takes 3 seconds. Needs the extras test and browser.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

# ruff: noqa: E402
import onnxq
from onnxq import Options, Recipe, diffing
from tests.browser.chromium import Window, chromium, opened, why_not
from tests.report.pages import Shown, document, read, wrong_numbers

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NODES = 10_000
WIDTH = 16
MODELS = {"MiniLM-L6": "minilm_l6_v2_stsb_vocab.onnx", "MobileNetV2": "mobilenetv2_1.0_224.onnx"}
LONGEST = 3.0
"""Seconds that a page may take."""

DRAWN = """() => document.querySelectorAll('.plot:not([data-drawn])').length === 0
  && (typeof sides === "undefined" || sides.every((side) => side.boxes.length > 0))"""
"""Whether all charts of a report, or both graphs of a comparison, are there."""

SHOWN = """[...document.querySelectorAll("data")].map((each) => [
  each.textContent, Number(each.value), each.dataset.at || "", each.dataset.part || "", each.dataset.whole || ""])"""
"""Every number of a report."""


@dataclass
class Opening:
    """How a page opened.

    Attributes:
        name: of the page.
        size: in bytes.
        loaded: seconds until it was there.
        drawn: until all of it was drawn.
        numbers: how many it shows.
        wrong: what is wrong with it.
    """

    name: str
    size: int
    loaded: float
    drawn: float
    numbers: int
    wrong: list[str] = field(default_factory=list)


def long_model(path: Path) -> Path:
    """So many nodes: layers with a bias, an activation and a residual sum, one after the other."""
    random, last = np.random.default_rng(0), "x"
    nodes: list[onnx.NodeProto] = []
    weights = [numpy_helper.from_array(np.asarray(0.5, np.float32), "half")]
    for number in range(NODES // 5):
        name = f"stage.{number // 100}/block.{number}"
        values = random.standard_normal((WIDTH, WIDTH)).astype(np.float32) / WIDTH
        weights += [
            numpy_helper.from_array(values, f"{name}/w"),
            numpy_helper.from_array(values[0] / 9, f"{name}/b"),
        ]
        parts = [f"{name}/{part}" for part in ("product", "biased", "bent", "sum", "halved")]
        reads = [[last, f"{name}/w"], [parts[0], f"{name}/b"], [parts[1]], [parts[2], last], [parts[3], "half"]]
        for op, read_, made in zip(("MatMul", "Add", "Relu", "Add", "Mul"), reads, parts, strict=True):
            nodes.append(helper.make_node(op, read_, [made], made))
        last = parts[-1]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH]) for name in ("x", last)]
    graph = helper.make_graph(nodes, "long", infos[:1], infos[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def make(name: str, model: Path, folder: Path) -> Iterator[tuple[str, Path, Callable[[Window, Path], list[str]]]]:
    """Optimize a model, and write its report and the comparison of both."""
    after = folder / f"{model.stem}.int8.onnx"
    recipe = Recipe.model_validate({"mode": "static-int8", "activation": {"range": "minmax"}})
    options = Options(seconds=0.2, samples=2, force=True)  # what made-up data breaks is shown all the same
    result = onnxq.optimize(model, after, data="random?samples=4", recipe=recipe, options=options)
    page = folder / f"{model.stem}.report.html"
    onnxq.write_report(result, page, subject=model.name)
    yield f"{name}, report", page, wrong_in_report
    page = folder / f"{model.stem}.diff.html"
    found = diffing.diff(model, after)
    onnxq.write_report(found, page)
    exact = json.loads(found.model_dump_json())
    yield f"{name}, comparison", page, lambda window, page: wrong_in_diff(window, page, exact)


def wrong_in_report(window: Window, page: Path) -> list[str]:
    """Numbers that are others than in the document."""
    return list(wrong_numbers([Shown(*each) for each in window(SHOWN)], document(read(page))))


def wrong_in_diff(window: Window, page: Path, exact: Any) -> list[str]:
    """Whether the page holds the comparison as it is, and says so many differences."""
    wrong = [] if json.loads(read(page).texts["data"])["diff"] == exact else ["another comparison"]
    title = window.page.inner_text("h1")
    return wrong if f"{len(exact['edits'])} difference" in title else [*wrong, f"another number in '{title}'"]


def look(browser: Browser, name: str, page: Path, wrong_numbers_of: Callable[[Window, Path], list[str]]) -> Opening:
    """Open a page."""
    began = time.perf_counter()
    with opened(browser, page) as window:
        window.page.wait_for_function(DRAWN)
        drawn = time.perf_counter() - began
        wrong = wrong_numbers_of(window, page)
        numbers = len(window(SHOWN))
    wrong += [f"console: {said}" for said in window.complaints] + [f"asks for {url}" for url in window.requests]
    wrong += [f"takes {drawn:.1f} s"] if drawn > LONGEST else []
    return Opening(name, page.stat().st_size, window.seconds, drawn, numbers, wrong)


def main(words: Sequence[str]) -> int:
    """Make and open all pages. 1 where one is wrong or slow."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--zoo", type=Path, help="a folder with the models; without it, only 10,000 nodes are shown")
    parser.add_argument("--keep", type=Path, help="a folder for the pages")
    arguments = parser.parse_args(words)
    if why_not():
        parser.error(why_not())
    from playwright.sync_api import sync_playwright

    with ExitStack() as stack:
        folder = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(exist_ok=True, parents=True)
        models = {name: arguments.zoo / "models" / file for name, file in MODELS.items()} if arguments.zoo else {}
        models[f"{NODES:,} nodes"] = long_model(folder / "long.onnx")
        pages = [made for name, model in models.items() for made in make(name, model, folder)]
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        openings = [look(browser, *each) for each in pages]
        browser.close()
    print("| page | size | there | drawn | numbers | wrong |\n|---|--:|--:|--:|--:|--:|")
    for each in openings:
        print(
            f"| {each.name} | {each.size / 1e6:.1f} MB | {each.loaded:.2f} s | {each.drawn:.2f} s | {each.numbers:,} | "
            f"{len(each.wrong)} |"
        )
        for said in each.wrong:
            print(f"    {said}", file=sys.stderr)
    return int(any(each.wrong for each in openings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
