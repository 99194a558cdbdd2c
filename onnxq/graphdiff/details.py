"""What is different about two nodes that stand for each other: attributes, weights, scales and types."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest

import numpy as np

from onnxq.graph import Array, Tensor
from onnxq.graphdiff import grids_around, views
from onnxq.graphdiff.families import COMMUTATIVE
from onnxq.graphdiff.findings import Aspect, Detail
from onnxq.graphdiff.fixed import FixedValues
from onnxq.graphdiff.grouping import Group, Grouping
from onnxq.graphdiff.indexed import Indexed
from onnxq.graphdiff.likeness import Weights
from onnxq.graphdiff.wiring import Wiring
from onnxq.opsets import default_attributes

SCALES = ("_scale", "_zero_point")

NEAR = 0.1
"""A channel whose factor is within this of 1 is not rescaled."""

RESCALED = ", each channel rescaled"
"""What is said of a weight that is the same but for such factors."""


@dataclass(eq=False)
class Comparison:
    """Compares the main nodes of groups.

    Attributes:
        grouping: every node of both graphs.
        weights: of both sides.
    """

    grouping: Grouping
    weights: tuple[Weights, Weights]

    @property
    def sides(self) -> tuple[Indexed, Indexed]:
        """Both graphs."""
        return self.grouping.sides

    @cached_property
    def fixed(self) -> FixedValues:
        """What is the same on each run."""
        return FixedValues(self.sides, self.weights)

    @cached_property
    def wiring(self) -> Wiring:
        """Where everything comes from."""
        return Wiring(self.grouping, self.fixed)

    def details(self, group: Group) -> list[Detail]:
        """Every difference between the main nodes of a group."""
        one, other = group.first[0], group.second[0]
        first, second = self.sides
        if first.forward[one] == second.forward[other]:  # the same, on inputs of another type perhaps
            return list(_types(first, one, second, other))
        same = first.nodes[one].op == second.nodes[other].op
        found: list[Detail] = []
        if first.local[one] != second.local[other] or first.is_computed(one) or second.is_computed(other):
            found += self._attributes(one, other) if same else []
            found += self._weights(one, other, same)
            found += _grids(first, one, second, other)
        if same or not (views.grids(first, one) or views.grids(second, other)):  # which say it already
            found += _types(first, one, second, other)
        found += self.wiring.details(group, same)
        return found

    def _attributes(self, one: int, other: int) -> Iterator[Detail]:
        first, second = self.sides
        before, after = first.attributes[one], second.attributes[other]
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                texts = [_attribute(side, place, name) for side, place in ((first, one), (second, other))]
                yield _detail("attributes", name, texts)

    def _weights(self, one: int, other: int, same: bool) -> Iterator[Detail]:
        layers = [weights.layer(place) for weights, place in zip(self.weights, (one, other), strict=True)]
        if layers[0] is not None and layers[1] is not None:
            slots = [_slot(layer.node.op) for layer in layers if layer is not None]
            yield from self._weight(one, other, slots, (layers[0].weight.values, layers[1].weight.values), same)
        else:
            slots = [-1, -1]
        if same:
            yield from self._operands(one, other, slots)

    def _weight(
        self, one: int, other: int, slots: list[int], values: tuple[Array, Array], same: bool
    ) -> Iterator[Detail]:
        """The weight of a layer, whatever it is stored as; with its scales, unless an operator tells them."""
        read = [
            side.nodes[place].inputs[slot] for side, place, slot in zip(self.sides, (one, other), slots, strict=True)
        ]
        stored = [_stored(side, tensor.name) for side, tensor in zip(self.sides, read, strict=True)]
        grids = [
            views.describe(*found[:2], "") if same and (found := grids_around.before(side, tensor)) else ""
            for side, tensor in zip(self.sides, read, strict=True)
        ]
        texts = [", ".join(filter(None, (_held(tensor), grid))) for tensor, grid in zip(stored, grids, strict=True)]
        apart = _apart(*values)
        if texts[0] != texts[1] or apart != 0:
            rest = _rescaled(*values, axis=0 if self.sides[0].nodes[one].op.count("Conv") else -1)
            if rest is not None and (apart is None or rest < apart / 2):
                apart, texts[1] = rest, f"{texts[1]}{RESCALED}"
            name = stored[0].name if stored[0] is not None else read[0].name
            yield _detail("weights", name, texts, apart)

    def _operands(self, one: int, other: int, slots: list[int]) -> Iterator[Detail]:
        """Constants that two nodes of one operator read at the same place."""
        first, second = self.sides
        names = [[t.name for t in side.nodes[at].inputs] for side, at in zip(self.sides, (one, other), strict=True)]
        fixed = [[name in side.fixed for name in read] for side, read in zip(self.sides, names, strict=True)]
        if first.nodes[one].op in COMMUTATIVE and fixed[0] == fixed[1][::-1]:
            names[1].reverse()
        roles = first.roles(one)
        for slot, (left, right) in enumerate(zip_longest(*names, fillvalue="")):
            role = roles[slot] if slot < len(roles) else f"input {slot}"
            if slot in slots or role.endswith(SCALES) or not (left in first.fixed or right in second.fixed):
                continue
            if not self.fixed.same(left, right):
                yield self._constant(left, right, role)

    def _constant(self, left: str, right: str, role: str) -> Detail:
        """How a constant operand differs, and by how much."""
        stored = [_stored(side, name) for side, name in zip(self.sides, (left, right), strict=True)]
        values = [self.fixed.value(side, name) for side, name in enumerate((left, right))]
        apart = None if values[0] is None or values[1] is None else _apart(values[0], values[1])
        return _detail("weights", left or right or role, [_held(tensor) for tensor in stored], apart)


def _detail(aspect: Aspect, name: str, texts: Sequence[str], apart: float | None = None) -> Detail:
    before, after = texts
    return Detail(aspect=aspect, name=name, before=before, after=after, max_difference=apart)


def _attribute(side: Indexed, place: int, name: str) -> str:
    """An attribute as text; one that is left out as its default, or as nothing."""
    node = side.nodes[place]
    value = node.attrs.get(name)
    if value is None:
        value = default_attributes(node.op, node.domain or "", side.version(node)).get(name)
    return "" if value is None else views.shown(value)


def _slot(op: str) -> int:
    """Where a layer has its weight."""
    return 3 if op in ("QLinearConv", "QLinearMatMul", "QGemm") else 1


def _stored(side: Indexed, name: str) -> Tensor | None:
    """The constant behind an operand, through all that is computed of it; None where it depends on the input."""
    while name and name not in side.constants:
        maker = side.makers.get(name)
        if maker is None or name not in side.fixed or not side.nodes[maker].inputs:
            return None
        name = side.nodes[maker].inputs[0].name
    return side.constants.get(name)


def _held(tensor: Tensor | None) -> str:
    if tensor is None:
        return ""
    value = views.of_tensor(tensor).value
    return f"{views.type_of(tensor)} {value}".rstrip()


def _apart(one: Array, other: Array) -> float | None:
    """The largest difference between two arrays of numbers; None where their shapes differ."""
    if one.shape != other.shape or one.dtype == object or other.dtype == object:
        return None
    if ("float" in one.dtype.name) != ("float" in other.dtype.name):  # integers that stand for something else
        return None
    if not one.size:
        return 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        found = np.abs(one.astype(np.float64) - other.astype(np.float64)).max()
    return float(found) if np.isfinite(found) else None


def _rescaled(one: Array, other: Array, axis: int) -> float | None:
    """The largest difference that is left when a factor for each channel is taken out; None where none is needed."""
    if one.shape != other.shape or not one.size:
        return None
    left, right = (np.moveaxis(part, axis, 0).reshape(part.shape[axis], -1).astype(np.float64) for part in (one, other))
    power = (left * left).sum(axis=1)
    factors = (left * right).sum(axis=1) / np.where(power > 0, power, 1)
    if not np.isfinite(factors).all() or np.allclose(factors[power > 0], 1, atol=NEAR):
        return None
    return float(np.abs(left * factors[:, None] - right).max())


def _grids(first: Indexed, one: int, second: Indexed, other: int) -> Iterator[Detail]:
    """Operands that become integers on one side alone, or otherwise."""
    before, after = dict(views.numbers(first, one)), dict(views.numbers(second, other))
    before, after = (
        before or grids_around.like(first, one, after),
        after or grids_around.like(second, other, before),
    )
    if {name.lower() for name in before} & {name.lower() for name in after}:  # x of one operator is X of another
        before, after = ({name.lower(): grid for name, grid in side.items()} for side in (before, after))
    for name in dict.fromkeys([*before, *after]):
        texts = [views.describe(*side[name]) if name in side else "" for side in (before, after)]
        if texts[0] != texts[1] or _unequal(before.get(name), after.get(name)):
            yield _detail("requantized", name, texts)


def _unequal(one: views.Grid | None, other: views.Grid | None) -> bool:
    if one is None or other is None:
        return one is not other
    return any(not _alike(a, b) for a, b in zip(one[:2], other[:2], strict=True) if a is not None and b is not None)


def _alike(one: Array, other: Array) -> bool:
    """Whether numbers are the same, those that are one for all channels repeated."""
    return (one.size == other.size or 1 in (one.size, other.size)) and bool(np.all(one.ravel() == other.ravel()))


def _types(first: Indexed, one: int, second: Indexed, other: int) -> Iterator[Detail]:
    """Outputs whose element type differs, where both are known."""
    for left, right in zip(first.nodes[one].outputs, second.nodes[other].outputs, strict=False):
        if left.dtype is not None and right.dtype is not None and left.dtype != right.dtype:
            yield _detail("retyped", left.name, [str(np.dtype(tensor.dtype)) for tensor in (left, right)])
