"""Weights of a few bits that others trained go where the runtime multiplies with them as they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from onnxq.graph import MICROSOFT, Array, Graph, Tensor, is_constant, weight
from onnxq.islands import dq, scales
from onnxq.nbits import Parts, regrouped, with_bias
from onnxq.numerics.formats import FORMATS
from onnxq.numerics.rounding.blocks import Blocked
from onnxq.pipeline import Context, Lossy, Promise
from onnxq.rewrite import Bind, Change, Either, Match, Missing, Op
from onnxq.spec import Fact

LAYER = Either(
    (
        Op("MatMul", (Bind("x"), dq("w")), name="layer"),
        Op("Gemm", (Bind("x"), dq("w"), Missing(Bind("bias"))), name="layer"),
    )
)
BITS = (4, 8)
SMALLEST, LARGEST = 16, 128
"""Inputs that share a scale: fewer the kernel does not take, and more save nothing."""


@dataclass(frozen=True)
class PackWeights:
    """Store a weight of 4 bits, or one with a scale for each block, as `MatMulNBits` reads it.

        MatMul(x, DQ(w, block_size))       => MatMulNBits(x, w')
        Gemm(x, DQ(w, block_size), b)      => MatMulNBits(x, w', b)

    Integers, scales and zero points stay what they are. Comes after folding, which takes those weights whose input is
    quantized. Leaves alone blocks along the outputs, blocks of no multiple of 16 inputs, and weights of 8 bits with a
    scale for each channel, which the runtime takes as they are.

    Attributes:
        accuracy_level: 4 rounds the inputs to 8 bits, as the runtime does where it finds such a weight by itself.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QDQ})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.INTEGER})
    promise: ClassVar[Promise] = Lossy()

    accuracy_level: Literal[0, 4] = 4

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each layer."""
        stored: dict[tuple[str, ...], Parts] = {}
        for node in list(graph.nodes):
            match = LAYER.match(node.outputs[0]) if node.outputs else None
            if match is None or not is_constant(match["w"]) or not _wanted(match):
                continue
            name, op, output = node.name, node.op, node.outputs[0]
            found = _blocked(match)
            if isinstance(found, str):
                yield Change(name, op, "", found)
                continue
            key = (match["w"].name, match["w_scale"].name, str(node.attrs.get("transB", 0)))
            if key not in stored:
                stored[key] = _stored(graph, match["w"].name, found, match["w_scale"])
            inputs = [match["x"], *with_bias(stored[key], match.get("bias"))]
            sizes = {"K": found.inputs, "N": len(found.values), "bits": found.bits, "block_size": found.block}
            graph.remove(node)
            sizes["accuracy_level"] = self.accuracy_level
            graph.add("MatMulNBits", inputs, [output], name=name, domain=MICROSOFT, **sizes)
            yield Change(name, op, "MatMulNBits", "Its weight keeps its integers and its scales.")


def _wanted(match: Match) -> bool:
    """Whether this is a weight of 4 bits, or one in blocks."""
    name = "" if match["w"].dtype is None else match["w"].dtype.name
    form = FORMATS.get(name)
    blocks = bool(match.nodes["w_dequantize"].attrs.get("block_size", 0))
    return form is not None and form.bits in BITS and (form.bits == 4 or blocks)


def _blocked(match: Match) -> Blocked | str:
    """The weight in the layout of the operator, or the sentence why it has none."""
    layer, before = match.nodes["layer"], match.nodes["w_dequantize"]
    shape = match["w"].shape or ()
    if len(shape) != 2:
        return f"Its weight has {len(shape)} axes; MatMulNBits wants 2."
    if layer.op == "Gemm" and (obstacle := _gemm_obstacle(match)) is not None:
        return obstacle
    rows = bool(layer.attrs.get("transB", 0))  # [outputs, inputs]
    inputs, size = int(shape[1 if rows else 0]), int(before.attrs.get("block_size", 0))  # type: ignore[arg-type]
    several = scales(match, "w").size > 1
    along = several and int(before.attrs.get("axis", 1)) % 2 == (1 if rows else 0)
    if size and not along and several:
        return "Its weight has blocks along its outputs; MatMulNBits wants them along its inputs."
    if along and not size:
        return "Its weight has a scale for each input; MatMulNBits wants one for each output."
    block = _block(size if size else inputs, exact=bool(size) and size < inputs)
    if block < SMALLEST:
        return f"Its blocks of {size} inputs are no multiple of {SMALLEST}."

    def turned(tensor: Tensor | None) -> Array | None:
        if tensor is None:
            return None
        values = weight(tensor)
        if values.ndim < 2:
            return values.reshape(-1, 1)
        return values if rows else values.T

    integers, scale = turned(match["w"]), turned(match["w_scale"])
    assert integers is not None
    assert scale is not None
    if not np.isfinite(scale.astype(np.float32)).all():
        return "A scale of its weight is not finite."
    return regrouped(integers, scale, turned(match.get("w_zero_point")), size or inputs, block)


def _block(size: int, *, exact: bool) -> int:
    """The largest power of two that divides a block, or that a scale for all inputs may be repeated for."""
    if exact:
        return min(size & -size, LARGEST)
    return int(np.clip(1 << (size - 1).bit_length(), SMALLEST, LARGEST))


def _gemm_obstacle(match: Match) -> str | None:
    layer, bias = match.nodes["layer"], match.get("bias")
    if layer.attrs.get("transA", 0) or any(layer.attrs.get(key, 1.0) != 1.0 for key in ("alpha", "beta")):
        return "A Gemm with transA, alpha or beta has no kernel with such weights."
    columns = (match["w"].shape or (0, 0))[0 if layer.attrs.get("transB", 0) else 1]
    if bias is not None and (not is_constant(bias) or tuple(bias.shape or ()) != (columns,)):
        return "Its bias does not have one number for each output channel."
    return None


def _stored(graph: Graph, name: str, found: Blocked, scale: Tensor) -> Parts:
    """Values, scales and zero points as inputs of the operator; of two 4-bit zero points in a byte too."""
    assert scale.dtype is not None
    values = graph.constant(f"{name}_blocks", found.values)
    parts: Parts = [values, graph.constant(f"{name}_scales", found.scale.astype(scale.dtype))]
    zeros = found.packed_zero_point()
    return parts if zeros is None else [*parts, graph.constant(f"{name}_zero_points", zeros)]
