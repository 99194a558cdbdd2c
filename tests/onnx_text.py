"""Graphs from ONNX text, graphs as text, and what ONNX Runtime makes of them.

(float[2,3] x) => (float[2,4] y) { [fc] y = MatMul(x, w) }
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray

from onnxq.graph import Graph, Node, from_model, is_constant, to_model
from onnxq.numerics.affine import parameters, quantize_weight
from onnxq.numerics.formats import FORMATS
from onnxq.pipeline import Context, Outcome, Pass, run
from onnxq.plan import Plan
from onnxq.rewrite import Change
from onnxq.runtime import Session, tensor_types
from onnxq.spec import Fact
from onnxq.targets import CPU

Array = NDArray[Any]
EVERYTHING = frozenset(Fact)


def read(text: str, weights: Mapping[str, Any] | None = None, opset: int = 17) -> Graph:
    """The graph of `(inputs) => (outputs) { nodes }`, with types; weights come from the mapping."""
    versions = f'"" : {opset}, "com.microsoft" : 1'
    model = onnx.parser.parse_model(f"<ir_version: 9, opset_import: [{versions}]> g {text}")
    for name, values in (weights or {}).items():
        stored = values if isinstance(values, onnx.TensorProto) else onnx.numpy_helper.from_array(np.asarray(values))
        stored.name = name
        model.graph.initializer.append(stored)
    return typed(from_model(model))


def typed(graph: Graph) -> Graph:
    """The same graph, with the types and shapes that the runtime infers."""
    inner = [name for name, tensor in graph.tensors().items() if tensor.inputs and not is_constant(tensor)]
    graph.annotate(tensor_types(to_model(graph, extra_outputs=inner).SerializeToString()))
    return graph


def listing(graph: Graph) -> str:
    """One line for each node, as ONNX text writes it, without node names."""
    return "\n".join(_line(node) for node in graph.nodes)


def lines(text: str) -> str:
    """Expected text in the form of `listing`: no indentation, no empty lines, a broken line joined."""
    kept = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return "\n".join(kept).replace(",\n", ", ")


def _line(node: Node) -> str:
    attributes = ", ".join(f"{key}={_value(value)}" for key, value in sorted(node.attrs.items()))
    inputs = ", ".join(tensor.name or '""' for tensor in node.inputs)
    op = f"{node.domain}.{node.op}" if node.domain else node.op
    return f"{', '.join(t.name for t in node.outputs)} = {op}{f'<{attributes}>' if attributes else ''}({inputs})"


def _value(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


def ops(graph: Graph) -> list[str]:
    """The operators in order."""
    return [node.op for node in graph.nodes]


def apply(step: Pass, graph: Graph, plan: Plan | None = None) -> Outcome:
    """Run one pass over a copy of the graph."""
    return run([step], graph, Context(CPU, plan), EVERYTHING)


def changes(outcome: Outcome) -> list[Change]:
    """All changes and refusals of a run."""
    return [change for found in outcome.changes.values() for change in found]


def refusal(outcome: Outcome, node: str) -> str:
    """The sentence why a node was left alone."""
    (reason,) = [change.reason for change in changes(outcome) if change.node == node and not change.done]
    return reason


def serialize(graph: Graph) -> bytes:
    """The bytes of the model."""
    return bytes(to_model(graph).SerializeToString(deterministic=True))


def normal(graph: Graph, seed: int = 0, *, batch: int = 2) -> dict[str, Array]:
    """Standard normal numbers for every input; symbolic sizes are the batch."""
    random = np.random.default_rng(seed)
    shapes = {t.name: [d if isinstance(d, int) else batch for d in t.shape or ()] for t in graph.inputs}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def execute(graph: Graph, feeds: Mapping[str, Array], *, optimize: bool = False) -> list[Array]:
    """The outputs, with all of the runtime's own rewrites or with none."""
    return list(Session(serialize(graph), threads=1, optimize=optimize).run(feeds).values())


def assert_same(
    before: Graph, after: Graph, feeds: Mapping[str, Array] | None = None, *, rtol: float = 1e-6, atol: float = 0.0
) -> None:
    """Both graphs return the same, whether the runtime rewrites the second or not.

    `rtol` is of the largest magnitude of the output: the order of a float sum decides errors of that kind.
    """
    feeds = normal(before) if feeds is None else feeds
    expected = execute(before, feeds)
    for optimize in (False, True):
        for want, have in zip(expected, execute(after, feeds, optimize=optimize), strict=True):
            assert have.dtype == want.dtype
            assert have.shape == want.shape
            assert np.unique(want).size > min(4, want.size - 1), "an output that hardly varies proves nothing"
            if want.dtype.kind == "f":
                np.testing.assert_allclose(have, want, rtol=0, atol=atol + rtol * float(np.abs(want).max()))
            else:
                np.testing.assert_array_equal(have, want)


def assert_within(before: Graph, after: Graph, step: float, *, steps: int = 1, seed: int = 0) -> None:
    """Outputs on a grid of this step differ by some steps at most."""
    assert_same(before, after, normal(before, seed), rtol=1e-6, atol=steps * step)


def grid(name: str, low: float, high: float, *, symmetric: bool = False, format: str = "uint8") -> dict[str, Array]:
    """`NAME_scale` and `NAME_zero` of the grid that covers [low, high]."""
    scale, zero = parameters(low, high, FORMATS[format], symmetric=symmetric)
    return {f"{name}_scale": scale, f"{name}_zero": zero}


def integers(
    name: str,
    shape: Sequence[int],
    *,
    axis: int | None = None,
    format: str = "int8",
    symmetric: bool = True,
    seed: int = 7,
) -> dict[str, Array]:
    """A random weight as `NAME`, `NAME_scale` and `NAME_zero`."""
    values = np.random.default_rng(seed).standard_normal(tuple(shape))
    if axis is not None:  # channels of different magnitude, so that an axis that is taken for another shows
        values *= np.moveaxis(np.logspace(-1, 1, shape[axis]).reshape(-1, *[1] * (len(shape) - 1)), 0, axis)
    found = quantize_weight(values, FORMATS[format], axis=axis, symmetric=symmetric)
    return {name: found.values, f"{name}_scale": found.scale, f"{name}_zero": found.zero_point}


def into(*names: str) -> str:
    """Lines from the float input NAME to NAME_f, through Q and DQ."""
    return "".join(
        f"{n}_q = QuantizeLinear({n}, {n}_scale, {n}_zero)\n{n}_f = DequantizeLinear({n}_q, {n}_scale, {n}_zero)\n"
        for n in names
    )


def stored(name: str, axis: int | None = None) -> str:
    """A line from the integer weight NAME to NAME_f."""
    along = "" if axis is None else f"<axis={axis}>"
    return f"{name}_f = DequantizeLinear{along}({name}, {name}_scale, {name}_zero)\n"


def out_of(name: str, to: str = "y") -> str:
    """Lines from a float tensor to the float output TO, through Q and DQ."""
    scale = f"{to}_scale, {to}_zero"
    return f"{to}_q = QuantizeLinear({name}, {scale})\n{to} = DequantizeLinear({to}_q, {scale})\n"


def floats(*shape: int, seed: int = 3) -> Array:
    """Standard normal float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def sqnr(reference: ArrayLike, values: ArrayLike) -> float:
    """Signal to quantization noise in decibels."""
    a, b = np.asarray(reference, np.float64), np.asarray(values, np.float64)
    return float(10 * np.log10((a**2).sum() / max(((a - b) ** 2).sum(), 1e-300)))
