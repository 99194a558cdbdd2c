"""Short digests that are equal where values, attributes and bodies are, whatever their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any

import numpy as np

from onnxq.bodies import StoredBody, labelled
from onnxq.graph import Array, Constant, Stored, weight
from onnxq.opsets import default_attributes
from onnxq.parse import attribute

Outer = Callable[[str], str]
"""What stands for a tensor of the graph around a body."""


def digest(*parts: str) -> str:
    """A digest of some texts; how they are parted counts."""
    return blake2b("\x00".join([str(len(parts)), *parts]).encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def of_values(values: Array) -> str:
    """A digest of type, shape and values."""
    head = f"{values.dtype.name} {values.shape}"
    if values.dtype == object:
        return digest(head, repr(values.tolist()))
    content = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return digest(head, blake2b(content.data, digest_size=12).hexdigest())


def of_sparse(stored: Any) -> str:
    """A digest of a sparse weight, whatever it is called."""
    bare = type(stored)()
    bare.CopyFrom(stored)
    bare.values.name = bare.indices.name = ""
    return of_message(bare)


def of_message(stored: Any) -> str:
    """A digest of all that a message of ONNX says."""
    return digest(stored.SerializeToString(deterministic=True).hex())


def of_attributes(op: str, domain: str, version: int, attributes: Mapping[str, Any], outer: Outer) -> dict[str, str]:
    """A text for each attribute, those left out as what they are worth."""
    found = {name: _text(value) for name, value in default_attributes(op, domain, version).items()}
    found.update((name, of_attribute(value, outer)) for name, value in attributes.items())
    return found


def of_attribute(value: Any, outer: Outer) -> str:
    """A plain value as text, anything else as a digest."""
    if not hasattr(value, "SerializeToString"):
        return _text(value)
    inner = [of_body(body, outer) for _, body in labelled([value])]
    if inner:
        return digest("bodies", *inner)
    if value.HasField("t"):
        return of_values(weight(Constant("", Stored(value.t, None))))
    bare = type(value)()
    bare.CopyFrom(value)
    bare.doc_string = ""
    return of_message(bare)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{np.float32(value):.9g}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_text, value))}]"
    return str(value)


def of_body(body: StoredBody, outer: Outer) -> str:
    """A digest of what a body computes; names of tensors and the order of nodes do not count."""
    known = {"": ""} | {info.name: f"input {place}" for place, info in enumerate(body.input)}
    known.update((item.name, of_values(weight(Constant("", Stored(item, None))))) for item in body.initializer)

    def place(name: str) -> str:
        return known[name] if name in known else outer(name)

    for node in body.node:
        attributes = sorted((stored.name, of_attribute(attribute(stored), place)) for stored in node.attribute)
        words = [word for pair in attributes for word in pair]
        domain = "" if node.domain == "ai.onnx" else node.domain
        made = digest(node.op_type, domain, *words, "inputs", *map(place, node.input))
        known.update((name, f"{made} {index}") for index, name in enumerate(node.output) if name)
    return digest("body", *(place(info.name) for info in body.output))
