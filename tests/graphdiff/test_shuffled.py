"""Random graphs: in another order and under other names they are the same; edited, every node is accounted for."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxq.graph import from_model
from onnxq.graphdiff.compare import compare
from onnxq.runtime import Session
from tests.graphdiff.pairs import check_accounts, lines

UNARY, BINARY = ("Relu", "Neg", "Sigmoid", "Identity"), ("Add", "Sub", "Mul", "MatMul")

Nodes = list[tuple[str, tuple[int, ...]]]
"""Operators and what they read: earlier nodes from 1 up, inputs 0 and -1, weights from -2 down."""


@st.composite
def graphs(draw: st.DrawFn) -> Nodes:
    """A dozen nodes or so, diamonds and shared weights among them."""
    nodes: Nodes = []
    for place in range(draw(st.integers(1, 14))):
        source = st.integers(-5, place)
        op = draw(st.sampled_from(UNARY + BINARY))
        nodes.append((op, (draw(source),) if op in UNARY else (draw(source), draw(source))))
    return nodes


def build(nodes: Nodes, name: Callable[[str], str] = str, order: list[int] | None = None) -> onnx.ModelProto:
    """The model; what nobody reads is an output."""

    def source(place: int) -> str:
        return name(f"t{place}") if place > 0 else f"x{-place}" if place > -2 else name(f"w{-place - 2}")

    read = {place for _, places in nodes for place in places}
    outputs = [place for place in range(1, len(nodes) + 1) if place not in read]
    made = [
        helper.make_node(op, [source(p) for p in places], [source(place)], name(f"{op}_{place}"))
        for place, (op, places) in enumerate(nodes, 1)
    ]
    ends = [helper.make_node("Identity", [source(place)], [f"y{index}"]) for index, place in enumerate(outputs)]
    values = [np.random.default_rng(i // 2).standard_normal((4, 4)).astype(np.float32) for i in range(4)]
    shuffled = made if order is None else [made[i] for i in order]
    graph = helper.make_graph(
        [*ends, *shuffled] if order is not None else [*shuffled, *ends],
        "random",
        [helper.make_tensor_value_info(f"x{i}", 1, [4, 4]) for i in range(2)],
        [helper.make_tensor_value_info(f"y{i}", 1, [4, 4]) for i in range(len(outputs))],
        [numpy_helper.from_array(v, name(f"w{i}")) for i, v in enumerate(values)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@settings(max_examples=60, deadline=None)
@given(graphs(), st.randoms(use_true_random=False))
def test_order_and_names_make_no_difference(nodes: Nodes, random: Random) -> None:
    order = list(range(len(nodes)))
    random.shuffle(order)
    other = build(nodes, lambda name: f"{name[::-1]}_other", order)
    found = compare(from_model(build(nodes)), from_model(other), ("a", "b"))
    assert found.empty, lines(found)
    check_accounts(found)


@settings(max_examples=60, deadline=None)
@given(graphs(), graphs(), st.integers(0, 14))
def test_every_node_is_accounted_for(nodes: Nodes, others: Nodes, kept: int) -> None:
    mixed = nodes[:kept] + others[min(kept, len(nodes)) :]  # earlier nodes stay where they are
    if not mixed:
        return
    first, second = from_model(build(nodes)), from_model(build(mixed))
    found, back = compare(first, second, ("a", "b")), compare(second, first, ("b", "a"))
    check_accounts(found)
    check_accounts(back)
    assert found.empty == back.empty
    assert found.empty or nodes != mixed


@settings(max_examples=40, deadline=None)
@given(graphs(), st.data())
def test_one_edit_is_found(nodes: Nodes, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(nodes) - 1))
    op, read = nodes[place]
    other = list(nodes)
    other[place] = ("Exp" if op in UNARY else "Div", read)
    found = compare(from_model(build(nodes)), from_model(build(other)), ("a", "b"))
    check_accounts(found)
    ops = [{node.name: node.op for node in model.nodes} for model in (found.before, found.after)]
    came = [ops[1][name] for edit in found.edits for name in edit.after]
    assert ("Exp" if op in UNARY else "Div") in came


@settings(max_examples=60, deadline=None)
@given(graphs(), st.data())
def test_what_computes_something_else_is_never_the_same(nodes: Nodes, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(nodes) - 1))
    op, read = nodes[place]
    slot = data.draw(st.integers(0, len(read) - 1))
    other = list(nodes)
    other[place] = (op, (*read[:slot], data.draw(st.integers(-5, place)), *read[slot + 1 :]))
    models = [build(nodes), build(other)]
    feeds = {f"x{i}": np.random.default_rng(i + 9).standard_normal((4, 4)).astype(np.float32) for i in range(2)}
    one, two = (Session(model.SerializeToString(), threads=1, optimize=False).run(feeds) for model in models)
    found = compare(from_model(models[0]), from_model(models[1]), ("a", "b"))
    check_accounts(found)
    if one.keys() != two.keys() or any(not np.array_equal(one[name], two[name], equal_nan=True) for name in one):
        assert not found.empty
