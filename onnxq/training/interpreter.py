"""A graph as a PyTorch module: its nodes run in order, each by its operator or by what replaces it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxq.errors import DataError, UnsupportedModel
from onnxq.graph import Array, Constant, Graph, Node, in_order, stored_value, weight
from onnxq.training.operators import OPERATORS, Call, Operator

OLDEST_OPSET = 7
"""Before it, operators broadcast by an attribute."""

Replacement = Callable[..., Any]


@dataclass(frozen=True)
class Step:
    """One node, ready to run.

    Attributes:
        name: of the node.
        op: its operator.
        inputs: names of tensors, empty where one is left out.
        outputs: likewise.
        attributes: as operators read them.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Schedule:
    """The steps that some tensors need, and after each of them the tensors that nobody reads any more."""

    steps: tuple[tuple[Step, tuple[str, ...]], ...]


class Interpreter(torch.nn.Module):
    """Runs a graph in PyTorch.

    Attributes:
        constants: every constant by its tensor's name, looked up on each run: a parameter may be put in place of one.
            Floats follow the module to a device; integers, and numbers without axes, stay on the CPU, where they are
            read without waiting for the device.
        replaced: by the name of a node, what runs in its place.
    """

    constants: dict[str, Tensor]

    def __init__(self, graph: Graph, replaced: Mapping[str, Replacement] = {}) -> None:
        """Take a graph apart.

        Args:
            graph: the float model.
            replaced: by the name of a node, what is called with its input tensors in place of its operator (None for
                those left out), and returns its output, or a tuple of them. Modules among them are submodules.

        Raises:
            UnsupportedModel: operators are missing (all are named), or the opset is too old.
        """
        super().__init__()
        _check(graph, replaced)
        self.opset = graph.opset
        self.replaced = dict(replaced)
        self.constants = {tensor.name: as_tensor(weight(tensor)) for tensor in graph.weights()}
        self.inputs = [tensor.name for tensor in graph.inputs]
        self.outputs = [tensor.name for tensor in graph.outputs]
        self.steps: list[Step] = []
        for node in in_order(graph.nodes):
            if is_stored(node):
                self.constants[node.outputs[0].name] = as_tensor(_loaded(node))
            else:
                self.steps.append(_step(node))
        modules = [part for part in self.replaced.values() if isinstance(part, torch.nn.Module)]
        self.parts = torch.nn.ModuleList(dict.fromkeys(modules))
        self._schedules: dict[tuple[tuple[str, ...], frozenset[str]], Schedule] = {}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Interpreter:
        """Move or convert everything, float constants too; parameters among them stay the same objects."""
        inherited: Callable[..., Any] = super()._apply
        inherited(fn, recurse)
        for name, tensor in self.constants.items():
            if isinstance(tensor, torch.nn.Parameter):
                tensor.data = fn(tensor.data)
            elif tensor.is_floating_point():
                moved = fn(tensor)
                self.constants[name] = moved if tensor.ndim else tensor.to(moved.dtype)
        return self

    def forward(self, feeds: Mapping[str, Tensor], wanted: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Run what is needed.

        Args:
            feeds: the inputs by name; inner tensors may be fed too, and then nothing before them runs.
            wanted: tensors to return, inner ones too; the outputs of the graph if left out.

        Raises:
            DataError: a tensor is wanted that nothing makes, or an input is not fed.
        """
        names = tuple(self.outputs if wanted is None else wanted)
        values = dict(feeds)
        for step, done in self._schedule(names, feeds.keys()).steps:
            inputs = tuple(self._value(name, values) for name in step.inputs)
            values.update(zip(step.outputs, self._run(step, inputs), strict=False))
            for name in done:
                values.pop(name, None)
        return {name: values[name] if name in values else self.constants[name] for name in names}

    def _value(self, name: str, values: Mapping[str, Tensor]) -> Tensor | None:
        if not name:
            return None
        return values[name] if name in values else self.constants[name]

    def _run(self, step: Step, inputs: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
        if step.name in self.replaced:
            result = self.replaced[step.name](*inputs)
        else:
            call = Call(beside(inputs), step.attributes, self.opset, len(step.outputs))
            result = OPERATORS[step.op](call)
        return result if isinstance(result, tuple) else (result,)

    def _schedule(self, wanted: tuple[str, ...], fed: Collection[str]) -> Schedule:
        key = (wanted, frozenset(fed))
        if key not in self._schedules:
            self._schedules[key] = self._planned(wanted, fed)
        return self._schedules[key]

    def _planned(self, wanted: tuple[str, ...], fed: Collection[str]) -> Schedule:
        known = {*fed, *self.constants}
        needed, steps = {name for name in wanted if name not in known}, []
        last = {*wanted}
        for step in reversed(self.steps):
            if needed.isdisjoint(step.outputs):
                continue
            needed = (needed - {*step.outputs}) | {name for name in step.inputs if name and name not in known}
            read = dict.fromkeys(name for name in (*step.inputs, *step.outputs) if name not in last)
            last.update(read)
            steps.append((step, tuple(read)))
        if needed:
            raise DataError(
                f"Tensor '{min(needed)}' is needed, but neither fed nor made by a node. "
                f"The inputs are {', '.join(self.inputs)}."
            )
        return Schedule(tuple(reversed(steps)))


def beside(inputs: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """Floats where the first tensor lies that is not on the CPU; integers, conditions and single numbers stay."""
    device = next((tensor.device for tensor in inputs if tensor is not None and tensor.device.type != "cpu"), None)
    if device is None:
        return inputs
    return tuple(t.to(device) if t is not None and t.ndim and t.is_floating_point() else t for t in inputs)


def _check(graph: Graph, replaced: Mapping[str, Replacement]) -> None:
    """Raise UnsupportedModel where an operator is missing."""
    if graph.opset < OLDEST_OPSET:
        raise UnsupportedModel(
            f"The model's opset is {graph.opset}; training needs {OLDEST_OPSET} at least. Export it with a newer one."
        )
    missing: dict[str, str] = {}
    for node in graph.nodes:
        if node.name not in replaced and not is_stored(node) and _operator(node) is None:
            missing.setdefault(f"{node.domain}.{node.op}" if node.domain else node.op, node.name)
    if missing:
        named = ", ".join(f"{op} (node '{node}')" for op, node in missing.items())
        raise UnsupportedModel(
            f"The model cannot be trained in PyTorch: these operators are missing there: {named}. "
            "Export it without them, or quantize it without training."
        )


def _operator(node: Node) -> Operator | None:
    return None if node.domain else OPERATORS.get(node.op)


def is_stored(node: Node) -> bool:
    """Whether a node holds a constant of numbers."""
    return node.op == "Constant" and not node.domain and _loaded(node) is not None


def _loaded(node: Node) -> Array | None:
    value = stored_value(node)
    if value is None or value.dtype == np.dtype(object):
        return None
    return weight(Constant("", value))


def _step(node: Node) -> Step:
    attributes = {name: _plain(value) for name, value in node.attrs.items()}
    stored = stored_value(node)
    if stored is not None:
        attributes["value"] = as_tensor(weight(Constant("", stored)))
    inputs, outputs = (tuple(tensor.name for tensor in tensors) for tensors in (node.inputs, node.outputs))
    return Step(node.name, node.op, inputs, outputs, attributes)


def _plain(value: Any) -> Any:
    """An attribute as operators read it: texts, and lists that are empty, are kept as they are stored."""
    return [*value.ints, *value.floats, *(text.decode() for text in value.strings)] if hasattr(value, "ints") else value


KINDS: Mapping[str, tuple[type, torch.dtype]] = {
    "int4": (np.int8, torch.int8),
    "uint4": (np.uint8, torch.uint8),
    "bfloat16": (np.float32, torch.bfloat16),
    "float8_e4m3fn": (np.float32, torch.float8_e4m3fn),
    "float8_e5m2": (np.float32, torch.float8_e5m2),
}
"""Element types that NumPy lacks: a wider one that it has, and that of PyTorch."""


def as_tensor(values: Array | None) -> Tensor:
    """A copy of an array. Raises UnsupportedModel for an element type that PyTorch lacks."""
    assert values is not None
    try:
        if values.dtype.name in KINDS:
            wide, kind = KINDS[values.dtype.name]
            return torch.from_numpy(values.astype(wide)).to(kind)
        return torch.from_numpy(np.array(values))
    except TypeError as error:
        raise UnsupportedModel(f"PyTorch has no element type {values.dtype}. Export the model without it.") from error
