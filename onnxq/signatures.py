"""Whether nodes are used as ONNX says: how many inputs and outputs there are, and of which types attributes are.

The runtime refuses others too, but not everything that reads a model asks the runtime first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import AttributeProto, NodeProto
from onnx.defs import OpSchema

from onnxq.errors import ModelError
from onnxq.opsets import LEAST, schema_of
from onnxq.tensors import nested

STANDARD = ("", "ai.onnx")
"""The domain of the operators that are checked, by both of its names."""

ANY = 2**31 - 1
"""As many as one likes, in the specification."""


def check_nodes(model: onnx.ModelProto) -> None:
    """Raise ModelError where a standard operator is used in another way than ONNX knows, or without a version."""
    own = {(function.domain, function.name) for function in model.functions}
    for body in (model.graph, *model.functions):
        imports = model.opset_import if body is model.graph else body.opset_import
        versions = [entry.version for entry in imports if entry.domain in STANDARD]
        version = versions[-1] if versions else None  # the runtime takes the last one too
        for node in (node for part in nested([body]) for node in part.node):
            if body is model.graph:
                _check_references(node)
            if (node.domain, node.op_type) in own:
                continue
            if node.domain in STANDARD:
                _check(node, version)
            elif node.domain == "com.microsoft":
                _check_count(node, "inputs", node.input, LEAST.get(node.op_type, 0))


def _title(node: NodeProto) -> str:
    return f"Node '{node.name or next(iter(node.output), '')}' ({node.op_type})"


def _check_references(node: NodeProto) -> None:
    for stored in node.attribute:
        if stored.ref_attr_name:
            raise ModelError(
                f"{_title(node)} refers to attribute '{stored.ref_attr_name}' of a function, and stands in none. "
                "Export the model again."
            )


def _check(node: NodeProto, version: int | None) -> None:
    """Number of inputs and outputs, those that must be there, and attributes."""
    title = _title(node)
    if version is None:
        raise ModelError(f"{title} is a standard operator, and the model names no opset for those. Export it again.")
    schema = schema_of(node.op_type, "", version)
    if schema is None:
        return
    known = version <= onnx.defs.onnx_opset_version()  # a later version may allow more
    _check_count(node, "inputs", node.input, schema.min_input, schema.max_input if known else ANY)
    _check_count(node, "outputs", node.output, schema.min_output, schema.max_output if known else ANY)
    for name, parameter in zip(node.input, schema.inputs, strict=False):
        if not name and parameter.option == OpSchema.FormalParameterOption.Single:
            raise ModelError(f"{title} lacks its input '{parameter.name}'. Export the model again.")
    _check_attributes(node, schema.attributes, title)


def _check_count(node: NodeProto, kind: str, names: Sequence[str], least: int, most: int = ANY) -> None:
    if not least <= len(names) <= most:
        allowed = f"{least}" if least == most else f"{least} or more" if most == ANY else f"{least} to {most}"
        raise ModelError(f"{_title(node)} has {len(names)} {kind}, and takes {allowed}. Export the model again.")


def _check_attributes(node: NodeProto, known: Mapping[str, OpSchema.Attribute], title: str) -> None:
    for stored in node.attribute:
        wanted = known.get(stored.name)
        if wanted is None or stored.ref_attr_name or stored.type == AttributeProto.UNDEFINED:
            continue
        known_type = stored.type in AttributeProto.AttributeType.values()
        found = AttributeProto.AttributeType.Name(stored.type) if known_type else str(stored.type)
        right = str(wanted.type).rpartition(".")[2]
        if found != right:
            raise ModelError(
                f"Attribute '{stored.name}' of {title[0].lower()}{title[1:]} is {found}, not {right}. "
                "Export the model again."
            )
