"""Models for the sweep: what the onnx package can make for testing backends, and a folder of awkward ones."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
from google.protobuf.message import DecodeError
from mutations import flipped, mutate
from onnx import numpy_helper
from onnx.backend.test.case import model as whole_models
from onnx.backend.test.case import node as node_models

DATA = Path(onnx.backend.test.__file__).parent / "data"

STORED = ("light", "pytorch-converted", "pytorch-operator", "simple")
"""Folders of the onnx package; the models of its folder `real` are no part of it: `light` has their graphs."""


SMALL = 2_000_000
"""Bytes of a model that is changed by chance."""


@dataclass(frozen=True)
class Case:
    """A model and what it may be fed.

    Attributes:
        name: with what it comes from.
        model: its bytes, or where it lies.
        feeds: its inputs by name; None where it brings none.
    """

    name: str
    model: bytes | Path
    feeds: dict[str, Any] | None

    def read(self) -> onnx.ModelProto:
        """The model; what it keeps in other files stays there."""
        return onnx.load(self.model, load_external_data=False) if isinstance(self.model, Path) else _parsed(self.model)


def _parsed(content: bytes) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.ParseFromString(content)
    return model


@cache
def generated() -> tuple[Case, ...]:
    """One or more models for each operator, and for functions, sequences and training; made by the onnx package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of NumPy, about overflows that are meant
        made = [*node_models.collect_testcases(None), *whole_models.collect_testcases()]
    return tuple(_generated(case) for case in made if case.model is not None)


def _generated(case: Any) -> Case:
    values = case.data_sets[0][0] if case.data_sets else None
    feeds = None if values is None else _named(case.model, [_value(value) for value in values])
    return Case(f"{case.kind}/{case.name}", case.model.SerializeToString(), feeds)


def _value(value: Any) -> Any:
    """The value of a stored tensor or sequence; anything else is one already."""
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, onnx.SequenceProto):
        return numpy_helper.to_list(value)
    return numpy_helper.to_optional(value) if isinstance(value, onnx.OptionalProto) else value


def _named(model: onnx.ModelProto, values: Sequence[Any]) -> dict[str, Any]:
    return {info.name: value for info, value in zip(model.graph.input, values, strict=False)}


def stored() -> Iterator[Case]:
    """The models that lie in the onnx package, each with its first set of data."""
    for kind in STORED:
        for path in sorted((DATA / kind).glob("*.onnx")):
            yield Case(f"{kind}/{path.stem}", path, None)
        for path in sorted((DATA / kind).glob("*/model.onnx")):
            yield Case(f"{kind}/{path.parent.name}", path, _first_set(path))


def _first_set(path: Path) -> dict[str, Any] | None:
    """The first set of inputs beside a model; None where there is none."""
    infos = onnx.load(path, load_external_data=False).graph.input
    files = [path.parent / "test_data_set_0" / f"input_{index}.pb" for index in range(len(infos))]
    present = [(info, file) for info, file in zip(infos, files, strict=True) if file.exists()]
    return {info.name: _value(_protobuf(info, file)) for info, file in present} if files and present else None


def _protobuf(info: onnx.ValueInfoProto, file: Path) -> Any:
    kinds: dict[str, Any] = {"sequence_type": onnx.SequenceProto, "optional_type": onnx.OptionalProto}
    found = kinds.get(str(info.type.WhichOneof("value")), onnx.TensorProto)()
    found.ParseFromString(file.read_bytes())
    return found


def frozen(case: Case) -> Case | None:
    """The model with all inputs but the first as weights, as exporters write it; None where it has no such inputs."""
    model, (first, *others) = case.read(), list((case.feeds or {"": 0}).items())
    tensors = [(name, value) for name, value in others if isinstance(value, np.ndarray) and value.dtype != object]
    if len(tensors) < len(model.graph.input) - 1 or not tensors or model.ir_version < 4:
        return None
    for name, value in tensors:
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    kept = [info for info in model.graph.input if info.name == first[0]]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return Case(f"frozen/{case.name.rpartition('/')[2]}", model.SerializeToString(), dict([first]))


def awkward(zoo: Path) -> Iterator[Case]:
    """The models of a zoo that are there because they are awkward."""
    for path in sorted((zoo / "torture").glob("*.onnx")):
        yield Case(f"torture/{path.stem}", path, None)


def all_cases(zoo: Path | None) -> list[Case]:
    """Every model, each name once: what the onnx package stores and also makes comes as it is made."""
    made = list({case.name: case for case in (*stored(), *generated())}.values())
    return [*made, *(case for case in map(frozen, made) if case is not None), *(awkward(zoo) if zoo else ())]


def mutants(cases: Sequence[Case], count: int, seed: int = 0) -> Iterator[Case]:
    """So many models that are like these, and changed by chance; all are models to protobuf, some to the runtime."""
    stored = [(case.name, case.model if isinstance(case.model, bytes) else case.model.read_bytes()) for case in cases]
    small = [(name, content) for name, content in stored if len(content) <= SMALL]
    random, number = Random(seed), 0
    while number < count:
        name, model = random.choice(small)
        content = mutate(model, 2 * SMALL, random.randrange(2**32), flipped)
        with suppress(DecodeError):
            onnx.ModelProto().ParseFromString(content)
            yield Case(f"mutant/{seed}.{number} of {name}", content, None)
            number += 1


def spread(cases: Sequence[Case], count: int) -> list[Case]:
    """About so many models, the same ones each time, with every operator and every element type among them.

    First come those that bring something new: an operator, a type of an input or an output, a size of 0, a kind of
    attribute; then others, evenly.
    """
    seen: set[str] = set()
    chosen: dict[str, Case] = {}
    for case in sorted(cases, key=lambda case: (isinstance(case.model, Path), case.name)):
        new = _families(case.read()) - seen
        if new:
            seen |= new
            chosen[case.name] = case
    others = [case for case in cases if case.name not in chosen]
    step = max(1, len(others) // max(1, count - len(chosen)))
    return [*chosen.values(), *others[::step]]


def _families(model: onnx.ModelProto) -> set[str]:
    """What a model stands for, coarsely enough that a few models stand for all."""
    found = {f"attribute {a.type}" for node in model.graph.node for a in node.attribute}
    found |= {f"operator {node.domain}.{node.op_type[:4]}" for node in model.graph.node}
    found |= {"function" for _ in model.functions}
    for info in (*model.graph.input, *model.graph.output):
        kind = str(info.type.WhichOneof("value"))
        sizes = [
            dimension.dim_value for dimension in info.type.tensor_type.shape.dim if dimension.HasField("dim_value")
        ]
        found |= {f"kind {kind} {info.type.tensor_type.elem_type}", f"empty {0 in sizes}"}
        found.add(f"scalar {kind == 'tensor_type' and not info.type.tensor_type.shape.dim}")
    return found
