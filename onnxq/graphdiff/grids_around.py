"""The scales that a float operator has in the Q/DQ around it: those that an integer operator in its place reads itself.

Q(Relu(Conv(DQ x, DQ w)))      x, w and y of QLinearConv
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from onnxq.graph import Tensor
from onnxq.graphdiff import views
from onnxq.graphdiff.indexed import Indexed

OUTPUT = -1

SLOTS: Mapping[str, int] = {"x": 0, "a": 0, "data": 0, "w": 1, "b": 1, "y": OUTPUT, "c": OUTPUT, "reduced": OUTPUT}
"""Which operand of the float operator the scales of an integer one belong to."""

SATURATING = frozenset({"Relu", "Clip"})
"""Operators that an integer operator does with the range of its output."""


def like(side: Indexed, place: int, names: Iterable[str]) -> dict[str, views.Grid]:
    """The scales around a float operator, by the names that an integer operator has for them."""
    node = side.nodes[place]
    found = {}
    for name in names:
        slot = SLOTS.get(name.lower(), len(node.inputs))
        if slot < len(node.inputs):
            grid = _behind(side, node.outputs[0]) if slot == OUTPUT else before(side, node.inputs[slot])
            found.update({} if grid is None else {name: grid})
    return found


def before(side: Indexed, tensor: Tensor) -> views.Grid | None:
    """The scales of what is made floats right before it is read, or long before where it is constant."""
    while tensor.name and tensor.name not in side.constants:
        maker = side.makers.get(tensor.name)
        if maker is None or not side.nodes[maker].inputs:
            return None
        if side.nodes[maker].op == "DequantizeLinear":
            return dict(views.numbers(side, maker)).get("x")
        if tensor.name not in side.fixed:
            return None
        tensor = side.nodes[maker].inputs[0]
    return None


def _behind(side: Indexed, tensor: Tensor) -> views.Grid | None:
    """The scales of what is rounded right after it is made, or after an operator that saturates."""
    readers = [place for place, _ in side.readers.get(tensor.name, ())]
    for place in readers:
        if side.nodes[place].op == "QuantizeLinear":
            return dict(views.numbers(side, place)).get("x")
    if len(readers) == 1 and side.nodes[readers[0]].op in SATURATING:
        return _behind(side, side.nodes[readers[0]].outputs[0])
    return None
