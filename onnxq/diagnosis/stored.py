"""What a quantized graph holds, whoever made it: weights as its layers see them, and the grids of its activations.

MatMul(DQ(Q(x)), DQ(w))         Q/DQ pairs of any tool
QLinearConv, QLinearMatMul, QGemm, MatMulIntegerToFloat, DynamicQuantizeMatMul, MatMulNBits
Mul(Cast(MatMulInteger(DynamicQuantizeLinear(x), w)), x_scale * w_scale), and the same with ConvInteger
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from onnxq.diagnosis.constants import Constants, Numbers, dequantized, unpack_blocks
from onnxq.graph import Array, Graph, Node, Tensor
from onnxq.numerics.formats import FORMATS
from onnxq.search.switches import Grid

FLOAT_LAYERS = frozenset({"Conv", "FusedConv", "MatMul", "Gemm"})
"""Layers whose weight may be one of floats; FusedConv is a Conv that the runtime shall not quantize on its own."""

Input = Grid | Literal["dynamic"] | None
"""How a layer reads its activation: on a fixed grid, on one found at run time, or in floats."""


@dataclass(frozen=True, eq=False)
class StoredLayer:
    """A layer whose weight is stored in integers.

    Attributes:
        node: the operator that multiplies.
        names: names under which the float model may know the layer: its node, its weight, its output.
        weight: as the layer sees it: (outputs, inputs / groups, ...) of a convolution, (inputs, outputs) of a product.
        bias: one number for each output; None where the operator adds none.
        data: how it reads its activation.
    """

    node: Node
    names: tuple[str, ...]
    weight: Numbers
    bias: Array | None
    data: Input

    @property
    def is_convolution(self) -> bool:
        """Whether it stands for a Conv."""
        return "Conv" in self.node.op

    @property
    def returns_integers(self) -> bool:
        """Whether its result is rounded, whoever reads it."""
        if self.node.op not in ("Conv", "MatMul", "Gemm"):
            return self.node.op in ("QLinearConv", "QLinearMatMul") or (
                self.node.op == "QGemm" and len(self.node.inputs) > 7
            )
        readers = self.node.outputs[0].outputs
        if len(readers) == 1 and readers[0].op in ("Relu", "Clip", "Add"):
            readers = readers[0].outputs[0].outputs
        return bool(readers) and all(reader.op == "QuantizeLinear" for reader in readers)


@dataclass(frozen=True)
class Reader:
    """Reads layers and grids out of one graph."""

    graph: Graph
    constants: Constants
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, graph: Graph) -> Reader:
        """For a graph that nobody edits meanwhile."""
        return cls(graph, Constants(graph), graph.tensors())

    def layers(self) -> Iterator[StoredLayer]:
        """Every layer with a weight in integers, in the order of the graph."""
        readers: dict[str, Callable[[Node], StoredLayer | None]] = {
            "Conv": self._with_floats,
            "MatMul": self._with_floats,
            "Gemm": self._with_floats,
            "QLinearConv": self._with_integers,
            "QLinearMatMul": self._with_integers,
            "QGemm": self._with_integers,
            "MatMulIntegerToFloat": self._mixed,
            "DynamicQuantizeMatMul": self._dynamic,
            "MatMulInteger": self._plain_integers,
            "ConvInteger": self._plain_integers,
            "MatMulNBits": self._blocks,
        }
        for node in self.graph.nodes:
            found = readers[node.op](node) if node.op in readers else None
            if found is not None:
                yield found

    def float_layers(self) -> Iterator[StoredLayer]:
        """Every layer with a constant weight in floats, which a tool may have rescaled like those beside it."""
        for node in self.graph.nodes:
            numbers = self.constants.numbers(node.inputs[1]) if node.op in FLOAT_LAYERS else None
            if numbers is not None and numbers.scales == 0:
                turned = node.op == "Gemm" and node.attrs.get("transB", 0)
                yield self._layer(node, numbers.turned() if turned else numbers, node.inputs[1], None, None)

    # one for each kind of operator

    def _with_floats(self, node: Node) -> StoredLayer | None:
        """Conv, MatMul or Gemm behind DequantizeLinear."""
        numbers = self.constants.numbers(node.inputs[1])
        if numbers is None or numbers.scales == 0:
            return None
        if node.op == "Gemm" and node.attrs.get("transB", 0):
            numbers = numbers.turned()
        bias = self.constants.value(_at(node, 2)) if node.op != "MatMul" else self._added(node.outputs[0])
        return self._layer(node, numbers, node.inputs[1], bias, self.read(node.inputs[0]))

    def _with_integers(self, node: Node) -> StoredLayer | None:
        """QLinearConv, QLinearMatMul or QGemm: x, its scale and zero point, w, its scale and zero point."""
        axis = 0 if node.op == "QLinearConv" or node.attrs.get("transB", 0) else 1
        numbers = self._stored(node, 3, 4, 5, axis)
        if numbers is None:
            return None
        numbers = numbers.without(self._padded(node.inputs[0]))
        bias = self.constants.value(_at(node, {"QLinearConv": 8, "QGemm": 6}.get(node.op, 99)))
        if bias is not None:  # int32 in units of the accumulator
            steps = self.constants.value(node.inputs[1]), self.constants.value(node.inputs[4])
            bias = None if steps[0] is None or steps[1] is None else bias * (steps[0] * steps[1]).reshape(-1)
        if node.op == "QGemm" and node.attrs.get("transB", 0):
            numbers = numbers.turned()
        return self._layer(node, numbers, node.inputs[3], bias, self._grid(node.inputs[1], _at(node, 2)))

    def _mixed(self, node: Node) -> StoredLayer | None:
        """MatMulIntegerToFloat: x, w, both scales, both zero points, bias."""
        numbers = self._stored(node, 1, 3, 5, 1)
        bias, grid = self.constants.value(_at(node, 6)), self._grid(node.inputs[2], _at(node, 4))
        return None if numbers is None else self._layer(node, numbers, node.inputs[1], bias, grid)

    def _dynamic(self, node: Node) -> StoredLayer | None:
        """DynamicQuantizeMatMul: x, w, its scale and zero point, bias."""
        numbers = self._stored(node, 1, 2, 3, 1)
        bias = self.constants.value(_at(node, 4))
        return None if numbers is None else self._layer(node, numbers, node.inputs[1], bias, "dynamic")

    def _plain_integers(self, node: Node) -> StoredLayer | None:
        """MatMulInteger or ConvInteger, then Cast and Mul with the product of the scales."""
        product = _next(_next(node.outputs[0], "Cast"), "Mul")
        if product is None:
            return None
        scaled = next((t for t in product.inputs if not (t.inputs and t.inputs[0].op == "Cast")), None)
        factors = scaled.inputs[0].inputs if scaled is not None and scaled.inputs else []
        scale = next((value for t in factors if (value := self.constants.value(t)) is not None), None)
        values, zero_point = self.constants.value(node.inputs[1]), self.constants.value(_at(node, 3))
        if values is None or scale is None:
            return None
        numbers = dequantized(values, scale, zero_point, 0 if node.op == "ConvInteger" else 1)
        found = self._layer(node, numbers, node.inputs[1], None, "dynamic")
        return StoredLayer(node, (*found.names, product.outputs[0].name), numbers, None, "dynamic")

    def _blocks(self, node: Node) -> StoredLayer | None:
        """MatMulNBits: x, blocks, scales, zero points, g_idx, bias."""
        packed, scales, zero_points = (self.constants.value(_at(node, place)) for place in (1, 2, 3))
        if packed is None or scales is None or _at(node, 4) is not None:
            return None
        outputs, inputs, bits, block = (int(node.attrs[name]) for name in ("N", "K", "bits", "block_size"))
        values = unpack_blocks(packed, scales, zero_points, outputs, inputs, bits, block)
        numbers = Numbers(values.T, None, int(scales.size))
        return self._layer(node, numbers, node.inputs[1], self.constants.value(_at(node, 5)), None)

    # pieces

    def _layer(self, node: Node, numbers: Numbers, weight: Tensor, bias: Array | None, data: Input) -> StoredLayer:
        names = (node.name, weight.name, node.outputs[0].name)
        return StoredLayer(node, names, numbers, None if bias is None else bias.reshape(-1), data)

    def _padded(self, data: Tensor) -> int:
        """How many channels a Pad has put behind those that there were, for weights of 0 to read."""
        maker = data.inputs[0] if data.inputs else None
        pads = self.constants.value(_at(maker, 1)) if maker is not None and maker.op == "Pad" else None
        if pads is None or pads.size != 8 or np.count_nonzero(pads) != np.count_nonzero(pads[5]):
            return 0
        return max(0, int(pads[5]))  # of the begins and ends of four axes, the end of the second

    def _stored(self, node: Node, place: int, scale: int, zero_point: int, axis: int) -> Numbers | None:
        values, step = self.constants.value(node.inputs[place]), self.constants.value(_at(node, scale))
        if values is None or step is None:
            return None
        return dequantized(values, step, self.constants.value(_at(node, zero_point)), axis)

    def _grid(self, scale: Tensor, zero_point: Tensor | None) -> Input:
        """A fixed grid, or one that DynamicQuantizeLinear finds."""
        step, zero = self.constants.value(scale), self.constants.value(zero_point)
        if step is None:
            return "dynamic"
        return make_grid(step, np.zeros((), np.uint8) if zero is None else zero)

    def grid(self, node: Node, scale: int, zero_point: int) -> Input:
        """The grid whose scale and zero point a node reads at these places."""
        step = _at(node, scale)
        return None if step is None else self._grid(step, _at(node, zero_point))

    def read(self, tensor: Tensor) -> Input:
        """How the reader of a float tensor sees it: through DQ(Q(x)), through DQ of what an integer operator made."""
        maker = tensor.inputs[0] if tensor.inputs else None
        if maker is None or maker.op != "DequantizeLinear":
            return None
        return self._grid(maker.inputs[1], _at(maker, 2))

    def _added(self, product: Tensor) -> Array | None:
        """The constant row that an Add behind a matrix product adds, Q/DQ between them or not."""
        reader: Node | None = product.outputs[0] if len(product.outputs) == 1 else None
        while reader is not None and reader.op in ("QuantizeLinear", "DequantizeLinear"):
            made = reader.outputs[0]
            reader = made.outputs[0] if len(made.outputs) == 1 else None
        if reader is None or reader.op != "Add":
            return None
        return next((value for t in reader.inputs if (value := self.constants.value(t)) is not None), None)


def make_grid(scale: Array, zero_point: Array, axis: int | None = None) -> Grid | None:
    """The grid of an activation; None for types other than integers of 16 bits at most, and for scales out of range."""
    form = FORMATS.get(zero_point.dtype.name)
    if form is None or form.bits > 16 or not np.all(np.isfinite(scale) & (scale > 0)):
        return None
    if scale.size == 1:
        return Grid(scale.reshape(()).astype(np.float32), zero_point.reshape(-1)[:1].reshape(()), form)
    return Grid(scale.astype(np.float32), zero_point, form, axis)


def _at(node: Node, place: int) -> Tensor | None:
    """An optional input; None where it is left out."""
    return node.inputs[place] if len(node.inputs) > place and node.inputs[place].name else None


def _next(before: Tensor | Node | None, op: str) -> Node | None:
    """The first reader of a tensor, or of a node's output, if it is this operator."""
    tensor = before.outputs[0] if isinstance(before, Node) else before
    reader = tensor.outputs[0] if tensor is not None and tensor.outputs else None
    return reader if reader is not None and reader.op == op else None
