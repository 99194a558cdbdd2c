"""A graph as an ONNX model again, in the lowest versions that it needs; and what one node returns."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto
from onnx.reference import ReferenceEvaluator

from onnxq.interface import TensorSpec
from onnxq.tensors import Array, Constant, Node, Stored, bodies, declared, is_constant, nested, weight

if TYPE_CHECKING:
    from onnxq.graph import Graph

LARGE = 1 << 14
"""Bytes from which on a weight is taken for one whose values no shape depends on."""

Keep = Callable[[Constant], TensorProto]
"""How a weight is written: returns the TensorProto that stands for it."""


def embed(constant: Constant) -> TensorProto:
    """The weight inside the model; what is stored outside stays a reference."""
    values = constant._values
    if not isinstance(values, Stored):
        return onnx.numpy_helper.from_array(weight(constant), constant.name)
    if values.tensor.name == constant.name:
        return values.tensor
    renamed = TensorProto()
    renamed.CopyFrom(values.tensor)
    renamed.name = constant.name
    return renamed


def to_model(
    graph: Graph,
    keep: Keep = embed,
    extra_outputs: Iterable[str] = (),
    weights: Iterable[Constant] | None = None,
) -> ModelProto:
    """The graph as a model. `extra_outputs` makes inner tensors visible, for calibration and for validation."""
    model = ModelProto()
    model.CopyFrom(graph.shell)
    model.graph.node.extend(to_node(node) for node in graph.nodes)
    stored = graph.weights() if weights is None else weights
    model.graph.initializer.extend(keep(tensor) for tensor in sorted(stored, key=lambda t: t.name))
    del model.graph.input[:]
    wanted = {tensor.name for tensor in graph.inputs}
    model.graph.input.extend(info for info in graph.shell.graph.input if info.name in wanted)
    del model.graph.value_info[:]
    same = _unchanged_types(graph)
    model.graph.value_info.extend(info for info in graph.shell.graph.value_info if info.name in same)
    shown = {info.name for info in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra_outputs if name not in shown)
    _stamp(model, graph)
    return model


def skeleton(graph: Graph, extra_outputs: Iterable[str]) -> ModelProto:
    """The graph without its large weights, which are inputs here: enough to tell the types of all tensors."""
    large = {t.name: t for t in graph.weights() if t._values.dtype.kind in "fuV" and t._values.nbytes > LARGE}
    kept = [tensor for tensor in graph.weights() if tensor.name not in large]
    model = to_model(graph, extra_outputs=extra_outputs, weights=kept)
    specs = [TensorSpec(name, t._values.dtype, tuple(t._values.shape)) for name, t in sorted(large.items())]
    return with_inputs(model, specs)


def with_inputs(shell: ModelProto, specs: Iterable[TensorSpec]) -> ModelProto:
    """A copy of the model around a graph that declares more inputs; copies of a graph share their shell."""
    made = ModelProto()
    made.CopyFrom(shell)
    for spec in specs:
        code = onnx.helper.np_dtype_to_tensor_dtype(spec.dtype)
        made.graph.input.append(onnx.helper.make_tensor_value_info(spec.name, code, spec.shape))
    return made


def branch(name: str, nodes: Sequence[Node], output: TensorSpec) -> AttributeProto:
    """A body of If that returns one tensor. It holds the constants it reads; other tensors come from around it."""
    body = onnx.GraphProto(name=output.name)
    body.node.extend(to_node(node) for node in nodes)
    constants = {tensor.name: tensor for node in nodes for tensor in node.inputs if isinstance(tensor, Constant)}
    body.initializer.extend(embed(tensor) for tensor in constants.values())
    code = onnx.helper.np_dtype_to_tensor_dtype(output.dtype)
    body.output.append(onnx.helper.make_tensor_value_info(output.name, code, output.shape))
    return AttributeProto(name=name, type=AttributeProto.GRAPH, g=body)


def _unchanged_types(graph: Graph) -> set[str]:
    """Names of inner tensors whose declaration in the file still holds."""
    specs = {info.name: declared(info) for info in graph.shell.graph.value_info}
    return {
        name
        for name, tensor in graph.tensors().items()
        if (spec := specs.get(name)) is not None
        and not is_constant(tensor)
        and (tensor.dtype, tensor.shape) == (spec.dtype, spec.shape)
    }


def to_node(node: Node) -> NodeProto:
    """One node as ONNX stores it."""
    made = NodeProto()
    if node.remarks is not None:
        made.CopyFrom(node.remarks)
    made.op_type, made.name, made.domain = node.op, node.name, node.domain or ""
    made.input.extend(tensor.name for tensor in node.inputs)
    made.output.extend(tensor.name for tensor in node.outputs)
    for name, value in node.attrs.items():
        stored = isinstance(value, onnx.AttributeProto)
        made.attribute.append(value if stored else onnx.helper.make_attribute(name, value))
    return made


def _stamp(model: ModelProto, graph: Graph) -> None:
    """Opsets in use, and the lowest IR version that they and the runtime agree on."""
    inner = nested(body for node in graph.nodes for body in bodies(node))
    used = {""} | {node.domain or "" for node in graph.nodes} | {node.domain for body in inner for node in body.node}
    used |= {entry.domain for function in model.functions for entry in function.opset_import}
    del model.opset_import[:]
    kept = {domain: number for domain, number in graph.opsets.items() if domain in used} or graph.opsets
    model.opset_import.extend(onnx.helper.make_opsetid(*entry) for entry in sorted(kept.items()))
    standard = [onnx.helper.make_opsetid("", graph.opset)]
    lowest = onnx.helper.find_min_ir_version_for(standard, ignore_unknown=True)
    # IR 3 lists every weight as an input; since 4 a weight need not be one, and 8 brought functions
    model.ir_version = max(lowest, 4, 8 if model.functions else 0)


def evaluate(graph: Graph, node: Node) -> list[Array] | None:
    """What a node that reads only constants returns, by onnx's reference implementation; None where that fails."""
    inputs = {t.name: weight(t) for t in node.inputs if t.name}
    infos = [onnx.ValueInfoProto(name=name) for name in inputs]
    outputs = [onnx.ValueInfoProto(name=t.name) for t in node.outputs if t.name]
    body = onnx.helper.make_graph([to_node(node)], "one_node", infos, outputs)
    opsets = [onnx.helper.make_opsetid(domain, number) for domain, number in graph.opsets.items()]
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = ReferenceEvaluator(onnx.helper.make_model(body, opset_imports=opsets))
            return [np.asarray(value) for value in evaluator.run(None, inputs)]
    except Exception:  # the reference implementation has gaps, and raises whatever it likes there
        return None
