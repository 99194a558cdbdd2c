"""The page: its data, what it may not do, how it folds, and names that try to break it."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from onnx import helper

from onnxq import diff
from onnxq.errors import OutputError
from onnxq.graphdiff.blocks import Block, fold, homes, units_of
from onnxq.graphdiff.findings import GraphDiff
from tests.graphdiff.pairs import differ
from tests.graphdiff.test_models import large

pytest.importorskip("igraph", reason="the page of a diff needs igraph: pip install 'onnxq[report]'")

from onnxq.graphdiff.layout import Layout, is_safe, lay_out
from onnxq.graphdiff.page import render, write

TEXT = "(float[N,4] x) => (float[N,4] y) {{ [a] a = Relu(x) [b] b = {}(a) [c] y = Neg(b) }}"


def data(page: str) -> Any:
    """What is embedded in a page."""
    (found,) = re.findall(r'<script type="application/json" id="data"[^>]*>(.*?)</script>', page, re.DOTALL)
    return json.loads(found)


@pytest.fixture
def found() -> GraphDiff:
    return differ(TEXT.format("Exp"), TEXT.format("Abs"))


def test_its_data_is_the_comparison(found: GraphDiff) -> None:
    page = render(found)
    assert data(page)["diff"] == json.loads(found.model_dump_json())
    assert data(page)["layout"] == json.loads(lay_out(found).model_dump_json())
    assert render(found) == page


def test_it_asks_nobody_for_anything(found: GraphDiff) -> None:
    page = render(found)
    assert "default-src 'none'" in page
    assert not re.search(
        r"https?://|@import|url\(|<link[^>]+href=\"(?!data:)|\bsrc=|fetch\(|XMLHttpRequest|innerHTML", page
    )


class Elements(HTMLParser):
    """Counts the elements of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts = self.images = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Scripts and images."""
        self.scripts += tag == "script"
        self.images += tag == "img"


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def test_names_do_not_break_it() -> None:
    node = helper.make_node("Relu", ["x"], ["y"], f"{EVIL} & \u2028 {{{{ 1 }}}}")
    infos = [helper.make_tensor_value_info(name, 1, [4]) for name in ("x", "y")]
    model = helper.make_model(
        helper.make_graph([node], EVIL, infos[:1], infos[1:]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    page, elements = render(diff(model, model)), Elements()
    elements.feed(page)
    assert (elements.scripts, elements.images) == (2, 0)
    assert data(page)["diff"]["before"]["nodes"][0]["name"] == node.name


def test_a_title_is_escaped(found: GraphDiff) -> None:
    named = found.model_copy(update={"before": found.before.model_copy(update={"name": f"{EVIL}.onnx"})})
    elements = Elements()
    elements.feed(render(named))
    assert (elements.scripts, elements.images) == (2, 0)


def test_it_is_written_whole_or_not_at_all(found: GraphDiff, tmp_path: Path) -> None:
    place = tmp_path / "page.html"
    write(found, place)
    assert place.read_text(encoding="utf-8") == render(found)
    assert list(tmp_path.iterdir()) == [place]
    with pytest.raises(OutputError, match="cannot be written to"):
        write(found, tmp_path / "missing" / "page.html")


# Layout


def check_layout(found: GraphDiff, drawn: Layout) -> None:
    """Every node has a place of its own, below what it reads in the same block."""
    for side, model in zip(drawn.sides, (found.before, found.after), strict=True):
        assert len(side.nodes) == len(side.homes) == len(model.nodes)
        places = [(home, *at) for home, at in zip(side.homes, side.nodes, strict=True)]
        places += [(drawn.blocks[i].parent, *at) for i, at in enumerate(side.blocks) if at is not None]
        assert len(set(places)) == len(places)
        for home in side.homes:  # every block around a node is drawn
            while drawn.blocks[home].parent >= 0:
                assert side.blocks[home] is not None
                home = drawn.blocks[home].parent
        makers = {name: place for place, node in enumerate(model.nodes) for name in node.outputs}
        for place, node in enumerate(model.nodes):
            for maker in (makers[name] for name in node.inputs if name in makers):
                if side.homes[maker] == side.homes[place]:
                    assert side.nodes[maker][1] < side.nodes[place][1]


def test_a_small_graph_is_drawn_whole(found: GraphDiff) -> None:
    drawn = lay_out(found)
    check_layout(found, drawn)
    assert [block.parent for block in drawn.blocks] == [-1]
    assert [layer for _, layer in drawn.sides[0].nodes] == [0, 1, 2]


def test_a_constant_stands_above_its_reader() -> None:
    chain = "a = Relu(x) b = Exp(a) d = Neg(b) c = Constant<value = float[4] {1,2,3,4}>() y = Add(d, c)"
    found = differ(f"(float[N,4] x) => (float[N,4] y) {{ {chain} }}", TEXT.format("Exp"))
    layers = {node.op: at[1] for node, at in zip(found.before.nodes, lay_out(found).sides[0].nodes, strict=True)}
    assert layers["Constant"] == layers["Add"] - 1 == 2


def test_a_large_graph_folds_by_the_scopes_of_its_names() -> None:
    found = diff(large(30), large(30, edited=True))
    drawn = lay_out(found)
    check_layout(found, drawn)
    labels = {block.label for block in drawn.blocks}
    assert {"layer.0", "layer.1", "layer.2", "block.0", "block.9"} <= labels
    children = Counter(block.parent for block in drawn.blocks)
    assert max(children.values()) <= 40
    inner = next(i for i, block in enumerate(drawn.blocks) if block.label == "block.3")
    assert drawn.blocks[drawn.blocks[inner].parent].label.startswith("layer.")
    assert drawn == lay_out(found)


def test_graphs_without_scopes_fold_by_runs() -> None:
    root = fold([(f"node_{i}", f"node_{i}") for i in range(5000)])
    sizes = [len(block.children) for block in root.walk()]
    assert max(sizes) <= 40
    assert root.size == 5000
    first = next(child for child in root.children if isinstance(child, Block))
    assert re.fullmatch(r"node_0 … node_\d+", first.label)


def test_what_has_no_scope_lies_where_its_neighbours_do() -> None:
    units = [(f"/a/{i}", None) for i in range(100)] + [("loose", None)] + [(f"/a/{i}", None) for i in range(100, 200)]
    units += [("end", None), *((f"/b/{i}", None) for i in range(100))]
    root = fold(units)
    where = homes(root, units, 0)
    labels = [block.label for block in root.walk()]
    assert where["end"] == 0
    assert "loose" not in [units[child][0] for child in root.children if isinstance(child, int)]
    assert {"a", "b"} <= set(labels)


def test_units_hold_every_node_once() -> None:
    found = diff(large(20), large(20, edited=True))
    units = units_of(found)
    for side, model in enumerate((found.before, found.after)):
        assert sorted(filter(None, (unit[side] for unit in units))) == sorted(node.name for node in model.nodes)


def test_an_igraph_that_crashes_is_not_trusted() -> None:
    assert is_safe("0.11.9")
    assert not is_safe("1.0.0")
