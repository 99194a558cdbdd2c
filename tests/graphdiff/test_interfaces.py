"""What those notice who only run a model."""

from __future__ import annotations

from onnxq.graph import from_model, to_model
from onnxq.graphdiff.compare import compare
from tests.graphdiff.pairs import differ, lines
from tests.onnx_text import read

TEXT = "(float[N,4] x, float[N,4] u) => (float[N,4] y, float[N,4] z) { y = Relu(x) z = Sigmoid(u) }"


def changes(before: str, after: str) -> list[tuple[str, str, str, str]]:
    """All of them; no node may differ."""
    found = differ(before, after)
    assert lines(found) == []
    return [(change.what, change.name, change.before, change.after) for change in found.interface]


def test_the_same_interface() -> None:
    assert changes(TEXT, TEXT) == []


def test_names_types_and_shapes() -> None:
    assert changes(TEXT, TEXT.replace("x", "v")) == [
        ("input", "x", "float32[N, 4]", ""),
        ("input", "v", "", "float32[N, 4]"),
    ]
    assert changes(TEXT, TEXT.replace("[N,4] z", "[M,4] z")) == [("output", "z", "float32[N, 4]", "float32[M, 4]")]


def test_order() -> None:
    after = "(float[N,4] u, float[N,4] x) => (float[N,4] y, float[N,4] z) { y = Relu(x) z = Sigmoid(u) }"
    assert changes(TEXT, after) == [("input", "order", "x, u", "u, x")]


def test_outputs_that_come_from_elsewhere() -> None:
    after = "(float[N,4] x, float[N,4] u) => (float[N,4] y, float[N,4] z) { [a] z = Relu(x) [b] y = Sigmoid(u) }"
    assert [change[:2] for change in changes(TEXT, after)] == [("output", "y"), ("output", "z")]


def test_opset_and_metadata_are_told_and_raise_no_alarm() -> None:
    first, model = read(TEXT, opset=17), to_model(read(TEXT, opset=18))
    model.producer_name = "somebody"
    model.metadata_props.add(key="author", value="me")
    found = compare(first, from_model(model), ("a", "b"))
    told = {(change.what, change.name): (change.before, change.after) for change in found.interface}
    assert told["opset", "ai.onnx"] == ("17", "18")
    assert told["metadata", "producer"] == ("", "somebody")
    assert told["metadata", "metadata author"] == ("", "me")
    assert not found.raises("interface")
    assert not found.empty
