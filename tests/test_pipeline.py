"""Passes run in an order that makes sense, on a copy, and what they break is caught."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from onnx import parser

from onnxq.errors import RecipeError
from onnxq.graph import Graph, from_model, to_model
from onnxq.passes import FOLD, NORMALIZE, QUANTIZE
from onnxq.pipeline import Context, Exact, Promise, check_order, run
from onnxq.rewrite import Change
from onnxq.spec import Fact
from onnxq.targets import CPU

TEXT = '<ir_version: 7, opset_import: ["" : 13]> g (float[2] x) => (float[2] y) { t = Neg(x)  y = Relu(t) }'
CONTEXT = Context(CPU)


def two_nodes() -> Graph:
    """Neg, Relu."""
    return from_model(parser.parse_model(TEXT))


def nothing(graph: Graph, context: Context) -> None:
    """No edit."""


@dataclass(frozen=True)
class First:
    """A pass for these tests: edits the graph by a function, and says so."""

    edit: Callable[[Graph, Context], Any] = nothing
    needs: frozenset[Fact] = frozenset()
    gives: frozenset[Fact] = frozenset()
    promise: Promise = field(default_factory=Exact)

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        self.edit(graph, context)
        yield Change("n", type(self).__name__, "done", "Because.")


class Second(First):
    """The same under another name."""


def test_facts_add_up() -> None:
    passes = (
        First(gives=frozenset({Fact.NORMAL})),
        Second(needs=frozenset({Fact.NORMAL}), gives=frozenset({Fact.QDQ})),
    )
    assert check_order(passes) == {Fact.NORMAL, Fact.QDQ}
    assert check_order((), frozenset({Fact.NAMED})) == {Fact.NAMED}


def test_a_pass_before_what_it_needs_is_named() -> None:
    needs = Second(needs=frozenset({Fact.QDQ, Fact.NORMAL}))
    with pytest.raises(RecipeError, match=r"Second needs NORMAL, QDQ, which no earlier pass gives\. Put the pass"):
        check_order((needs, First(gives=frozenset({Fact.QDQ, Fact.NORMAL}))))
    with pytest.raises(RecipeError, match="Second needs NORMAL, QDQ"):
        run((needs,), two_nodes(), CONTEXT)


def test_what_is_given_need_not_be_made() -> None:
    needs = Second(needs=frozenset({Fact.QDQ}))
    assert run((needs,), two_nodes(), CONTEXT, frozenset({Fact.QDQ})).changes["Second"]


def test_the_wrong_order_runs_no_pass_at_all() -> None:
    ran: list[str] = []
    passes = (First(lambda *_: ran.append("first")), Second(needs=frozenset({Fact.QDQ})))
    with pytest.raises(RecipeError):
        run(passes, two_nodes(), CONTEXT)
    assert ran == []


def test_the_pipelines_of_this_package_are_in_order() -> None:
    facts = check_order(NORMALIZE)
    facts = check_order((*QUANTIZE, *FOLD), facts | {Fact.NAMED, Fact.NORMAL})
    assert {Fact.QDQ, Fact.INTEGER} <= facts
    with pytest.raises(RecipeError, match="needs QDQ"):
        check_order((*FOLD, *QUANTIZE), frozenset({Fact.NAMED, Fact.NORMAL}))


def test_the_given_graph_is_not_touched() -> None:
    graph = two_nodes()
    before = to_model(graph).SerializeToString(deterministic=True)

    def edit(copy: Graph, context: Context) -> None:
        assert copy is not graph
        copy.nodes[1].op = "Abs"
        copy.opsets[""] = 99

    outcome = run((First(edit),), graph, CONTEXT)
    assert to_model(graph).SerializeToString(deterministic=True) == before
    assert [node.op for node in outcome.graph.nodes] == ["Neg", "Abs"]


def test_passes_run_in_order_with_the_context() -> None:
    seen: list[object] = []
    passes = (First(lambda g, c: seen.append(("first", c))), Second(lambda g, c: seen.append(("second", c))))
    run(passes, two_nodes(), CONTEXT)
    assert seen == [("first", CONTEXT), ("second", CONTEXT)]


def test_changes_and_times_are_kept_by_name() -> None:
    outcome = run((First(), Second(), First()), two_nodes(), CONTEXT)
    assert {name: len(changes) for name, changes in outcome.changes.items()} == {"First": 2, "Second": 1}
    assert outcome.changes["Second"] == [Change("n", "Second", "done", "Because.")]
    assert outcome.seconds.keys() == {"First", "Second"}
    assert all(seconds > 0 for seconds in outcome.seconds.values())


def test_the_graph_is_tidied_between_passes() -> None:
    ops: list[list[str]] = []

    def skip(graph: Graph, context: Context) -> None:
        graph.redirect(graph.tensors()["t"], graph.inputs[0])

    run((First(skip), Second(lambda g, c: ops.append([n.op for n in g.nodes]))), two_nodes(), CONTEXT)
    assert ops == [["Relu"]]


def test_a_pass_that_breaks_the_graph_is_named() -> None:
    def damage(graph: Graph, context: Context) -> None:
        graph.nodes[1].name = graph.nodes[0].name

    with pytest.raises(AssertionError, match="Second: two nodes are called 'Neg_0'"):
        run((First(), Second(damage)), two_nodes(), CONTEXT)
