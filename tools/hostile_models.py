"""Models that are damaged, or made to do harm: each with the words that its error must hold."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FILE = "model.onnx"
LENGTH = 16
"""Numbers in each row of the input."""

QUICK = ("--recipe", "dynamic-int8", "--seconds", "0", "--quiet")


@dataclass(frozen=True)
class Hostile:
    """An input that must be refused, or that only looks as if it should be.

    Attributes:
        name: what it is.
        make: writes it into a folder, and returns the words of the command that meets it there.
        says: what the error must hold; None where the command must work.
    """

    name: str
    make: Callable[[Path], list[str]]
    says: str | None


def plain(count: int = 1) -> onnx.ModelProto:
    """Layers of 16 numbers each, with Relu between them."""
    random = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for index in range(count):
        end = "y" if index == count - 1 else f"r{index}"
        weights.append(
            numpy_helper.from_array(random.standard_normal((LENGTH, LENGTH)).astype(np.float32), f"w{index}")
        )
        nodes.append(helper.make_node("MatMul", [last, f"w{index}"], [f"m{index}"], f"mul{index}"))
        nodes.append(helper.make_node("Relu", [f"m{index}"], [end], f"relu{index}"))
        last = end
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", LENGTH]) for name in "xy")
    graph = helper.make_graph(nodes, "plain", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def content(data: bytes, *words: str) -> Callable[[Path], list[str]]:
    """A file with these bytes."""

    def make(folder: Path) -> list[str]:
        (folder / FILE).write_bytes(data)
        return ["optimize", FILE, *QUICK, *words]

    return make


def model(edit: Callable[[onnx.ModelProto], Any], *words: str) -> Callable[[Path], list[str]]:
    """A plain model, edited."""

    def make(folder: Path) -> list[str]:
        made = plain()
        edit(made)
        return content(made.SerializeToString(), *words)(folder)

    return make


def outside(place: dict[str, object], data: bytes | None = bytes(4 * LENGTH**2)) -> Callable[[Path], list[str]]:
    """A model whose weight lies in a file, as `place` says; None writes no such file."""

    def make(folder: Path) -> list[str]:
        made = plain()
        stored = made.graph.initializer[0]
        stored.ClearField("raw_data")
        stored.data_location = TensorProto.EXTERNAL
        for key, value in {"location": "w.bin", **place}.items():
            stored.external_data.add(key=key, value=str(value))
        if data is not None:
            (folder / "w.bin").write_bytes(data)
        return content(made.SerializeToString())(folder)

    return make


def linked(target: str) -> Callable[[Path], list[str]]:
    """A model whose data file is a link."""

    def make(folder: Path) -> list[str]:
        words = outside({}, None)(folder)
        (folder / "w.bin").symlink_to(target)
        return words

    return make


def flattened(**attributes: Any) -> Callable[[Path], list[str]]:
    """A model with another operator, and these attributes; without any, one that refers to that of a function."""

    def edit(made: onnx.ModelProto) -> None:
        node = helper.make_node("Flatten", ["m0"], ["y"], "flat", **attributes)
        if not attributes:
            node.attribute.add(name="axis", type=onnx.AttributeProto.INT, ref_attr_name="axis")
        made.graph.node[1].CopyFrom(node)

    return model(edit)


def sized(size: int) -> Callable[[Path], list[str]]:
    """A model whose input has so many rows."""

    def edit(made: onnx.ModelProto) -> None:
        made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = size

    return model(edit)


def pipe(name: str) -> Callable[[Path], list[str]]:
    """A model, or its data, that is a pipe into which nobody writes."""

    def make(folder: Path) -> list[str]:
        words = outside({}, None)(folder)
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
        return words

    return make


def weight(**fields: Any) -> Callable[[Path], list[str]]:
    """A model whose weight has other fields; None clears one."""

    def edit(made: onnx.ModelProto) -> None:
        stored = made.graph.initializer[0]
        for name, value in fields.items():
            stored.ClearField(name)
            if isinstance(value, list):
                getattr(stored, name).extend(value)
            elif value is not None:
                setattr(stored, name, value)

    return model(edit)


def huge(op: str, shape: list[int], **more: Any) -> Callable[[Path], list[str]]:
    """A model that makes a constant of the given shape before it adds a part of it."""

    def edit(made: onnx.ModelProto) -> None:
        sizes = numpy_helper.from_array(np.array(shape, np.int64), "sizes")
        one = numpy_helper.from_array(np.ones([1] * len(shape), np.float32), "one")
        inputs = {"ConstantOfShape": ["sizes"], "Range": ["from", "to", "step"]}.get(op, ["one", "sizes"])
        ends = [
            numpy_helper.from_array(np.array(v, np.int64), n) for n, v in (("from", 0), ("to", shape[0]), ("step", 1))
        ]
        made.graph.initializer.extend([sizes, one, *(ends if op == "Range" else [])])
        made.graph.node[1].output[0] = "z"
        made.graph.node.extend(
            [
                helper.make_node(op, inputs, ["large"], "grow", **more),
                helper.make_node("Cast", ["large"], ["floats"], "cast", to=TensorProto.FLOAT),
                helper.make_node("ReduceMax", ["floats"], ["most"], "reduce", keepdims=0),
                helper.make_node("Add", ["z", "most"], ["y"], "add"),
            ]
        )

    return model(edit)


def nested(depth: int) -> bytes:
    """Bodies of If inside each other, written without a parser that would refuse to."""

    def field(number: int, data: bytes) -> bytes:
        return _varint(number << 3 | 2) + _varint(len(data)) + data

    body = field(2, b"deep") + field(12, field(1, b"y"))
    for _ in range(depth):
        attribute = field(1, b"then_branch") + field(6, body) + _varint(20 << 3) + _varint(5)
        node = field(2, b"y") + field(4, b"If") + field(5, attribute)
        body = field(1, node) + field(2, b"deep") + field(12, field(1, b"y"))
    return _varint(1 << 3) + _varint(8) + field(8, _varint(2 << 3) + _varint(17)) + field(7, body)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def chain(op: str, count: int, *words: str) -> Callable[[Path], list[str]]:
    """A layer, and so many operators one after the other."""

    def edit(made: onnx.ModelProto) -> None:
        made.graph.node[1].output[0] = "a0"
        made.graph.node.extend(helper.make_node(op, [f"a{i}"], [f"a{i + 1}"]) for i in range(count))
        made.graph.node.append(helper.make_node("Identity", [f"a{count}"], ["y"]))

    return model(edit, *words)


def inspected(make: Callable[[Path], list[str]]) -> Callable[[Path], list[str]]:
    """The same file, only looked at."""
    return lambda folder: ["inspect", make(folder)[1]]


def renamed(name: str) -> Callable[[onnx.ModelProto], None]:
    """An edit that gives the inner tensor, the first node and its weight another name."""

    def edit(made: onnx.ModelProto) -> None:
        made.graph.node[0].name = name
        made.graph.node[0].output[0] = made.graph.node[1].input[0] = f"t{name}"
        made.graph.node[0].input[1] = made.graph.initializer[0].name = f"w{name}"

    return edit


def broken(name: str, edit: Callable[[onnx.ModelProto], Any] = lambda _: None) -> Callable[[onnx.ModelProto], None]:
    """An edit after which a node of this name has an operator that nobody knows."""

    def both(made: onnx.ModelProto) -> None:
        made.graph.node[1].name, made.graph.node[1].op_type = name, "Unheard"
        edit(made)

    return both


def recursive(made: onnx.ModelProto) -> None:
    """An edit that adds a function that calls itself."""
    made.opset_import.append(helper.make_opsetid("own", 1))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    again = helper.make_node("Again", ["a"], ["b"], domain="own")
    made.functions.append(helper.make_function("own", "Again", ["a"], ["b"], [again], opsets))
    made.graph.node[1].op_type, made.graph.node[1].domain = "Again", "own"


def opsets(*versions: tuple[str, int]) -> Callable[[Path], list[str]]:
    """A model with these imports."""

    def edit(made: onnx.ModelProto) -> None:
        del made.opset_import[:]
        made.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in versions)

    return model(edit)


def sparse(made: onnx.ModelProto) -> None:
    """An edit that adds a sparse weight that says it is huge."""
    stored = made.graph.sparse_initializer.add()
    stored.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "s"))
    stored.indices.CopyFrom(numpy_helper.from_array(np.array([2**61])))
    stored.dims.extend([2**62])
    made.graph.node[1].op_type = "Add"
    made.graph.node[1].input.append("s")


def quantized(scale: float) -> Callable[[Path], list[str]]:
    """A model that brings a scale along."""

    def edit(made: onnx.ModelProto) -> None:
        zero = numpy_helper.from_array(np.array(0, np.uint8), "zero")
        made.graph.initializer.extend([numpy_helper.from_array(np.array(scale, np.float32), "scale"), zero])
        made.graph.node[0].input[0] = "d"
        made.graph.node.insert(0, helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "quant"))
        made.graph.node.insert(1, helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], "dequant"))

    return model(edit)


def cut(share: float) -> Callable[[Path], list[str]]:
    """A model that was cut off."""
    whole = plain(3).SerializeToString()
    return content(whole[: int(share * len(whole))])


def patched(old: bytes, new: bytes) -> Callable[[Path], list[str]]:
    """A model some of whose bytes are others."""
    whole = plain().SerializeToString()
    assert old in whole
    return content(whole.replace(old, new, 1))


def link_of_model(target: str) -> Callable[[Path], list[str]]:
    """A model that is a link."""

    def make(folder: Path) -> list[str]:
        (folder / FILE).symlink_to(target)
        return ["optimize", FILE, *QUICK]

    return make


def enormous(folder: Path) -> list[str]:
    """A file of 100 GB that takes no space."""
    with open(folder / FILE, "wb") as file:
        file.truncate(100 * 2**30)
    return ["optimize", FILE, *QUICK]


def rows(title: str, table: Mapping[str, tuple[Callable[[Path], list[str]], str | None]]) -> Iterator[Hostile]:
    """A table as inputs."""
    for name, (make, says) in table.items():
        yield Hostile(f"{title}: {name}", make, says)
