"""How fast the integer kernels of the CPU provider are beside the float operator: taking turns, one thread."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table
from textmodel import parsed, random_array

from onnxq.graph import Array
from onnxq.runtime import Session


@dataclass(frozen=True)
class Layer:
    """A float operator of one size, to be timed against its integer kernels; `sizes` fills in their texts."""

    kind: str
    name: str
    sizes: Mapping[str, int | str]


LAYERS: Sequence[Layer] = (
    *(Layer("linear", f"384 to 1536, {rows} rows", {"m": rows, "k": 384, "n": 1536}) for rows in (1, 128, 1024)),
    *(
        Layer("conv", name, {"i": read, "c": read // group, "n": made, "s": side, "k": size, "a": options})
        for name, read, made, side, size, group, options in (
            ("3x3, 64 to 64, 56x56", 64, 64, 56, 3, 1, "pads=[1,1,1,1]"),
            ("3x3, 256 to 256, 14x14", 256, 256, 14, 3, 1, "pads=[1,1,1,1]"),
            ("1x1, 256 to 64, 56x56", 256, 64, 56, 1, 1, "group=1"),
            ("depthwise 3x3, 96, 56x56", 96, 96, 56, 3, 96, "group=96, pads=[1,1,1,1]"),
            ("stem 3x3 stride 2, 3 to 32, 224x224", 3, 32, 224, 3, 1, "strides=[2,2], pads=[1,1,1,1]"),
        )
    ),
)

WEIGHT = "int8[{k},{n}] w, float[{n}] w_scale, int8[{n}] w_zero, int32[{n}] b"
CONV_WEIGHT = "int8[{n},{c},{k},{k}] w, float[{n}] w_scale, int8[{n}] w_zero, int32[{n}] b"
X, Y = "float x_scale, {t} x_zero", "float y_scale, {t} y_zero"
BITS8 = "MatMulNBits<K={k}, N={n}, bits=8, block_size=32, accuracy_level"
BLOCKS = "uint8[{n},{blocks},32] w, float[{n},{blocks}] w_scale"
MATMUL_FLOAT = "MatMulIntegerToFloat(q, w, x_scale, w_scale, x_zero, w_zero)"

KERNELS: Mapping[str, Mapping[str, tuple[str, str, str]]] = {
    "linear": {
        "float": ("float[{m},{k}] x", "float[{k},{n}] w, float[{n}] b", "y = Gemm(x, w, b)"),
        "QGemm": ("{t}[{m},{k}] x", f"{X}, {WEIGHT}", "y = MS.QGemm(x, x_scale, x_zero, w, w_scale, w_zero, b)"),
        "QLinearMatMul": (
            "{t}[{m},{k}] x", f"{X}, {Y}, {WEIGHT}",
            "y = QLinearMatMul(x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero)",
        ),
        "QuantizeLinear, MatMulIntegerToFloat": (
            "float[{m},{k}] x", f"{X}, {WEIGHT}", f"q = QuantizeLinear(x, x_scale, x_zero) y = MS.{MATMUL_FLOAT}",
        ),
        "DynamicQuantizeMatMul": ("float[{m},{k}] x", WEIGHT, "y = MS.DynamicQuantizeMatMul(x, w, w_scale)"),
        "MatMulNBits 8 bits, level 4": ("float[{m},{k}] x", BLOCKS, f"y = MS.{BITS8}=4>(x, w, w_scale)"),
        "MatMulNBits 8 bits, level 0": ("float[{m},{k}] x", BLOCKS, f"y = MS.{BITS8}=0>(x, w, w_scale)"),
    },
    "conv": {
        "float": ("float[1,{i},{s},{s}] x", "float[{n},{c},{k},{k}] w, float[{n}] b", "y = Conv<{a}>(x, w, b)"),
        "QLinearConv": (
            "{t}[1,{i},{s},{s}] x", f"{X}, {Y}, {CONV_WEIGHT}",
            "y = QLinearConv<{a}>(x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, b)",
        ),
        "ConvInteger": ("{t}[1,{i},{s},{s}] x", f"{X}, {CONV_WEIGHT}", "y = ConvInteger<{a}>(x, w, x_zero)"),
    },
}  # fmt: skip
"""Inputs, weights and operators; {t} is the type of the activations."""
TYPES = {"uint8": "u8 s8", "int8": "s8 s8"}
"""Of activations, and how a kernel with such activations and signed weights is labelled."""


@dataclass(frozen=True)
class Speed:
    """Kernel times of one layer in microseconds, the float one first, by kernel and types."""

    layer: str
    microseconds: Mapping[str, float]

    def gain(self, kernel: str) -> float:
        """How many times faster than the float operator."""
        return self.microseconds["float"] / self.microseconds[kernel]


def measure(layer: Layer, seconds: float) -> Speed:
    """Let all kernels of a layer take turns."""
    sessions: dict[str, Session] = {}
    for name, texts in KERNELS[layer.kind].items():
        typed = any("{t}" in text for text in texts)  # the others take floats
        for activation in TYPES if typed else ("uint8",):
            label = f"{name} {TYPES[activation]}" if typed else name
            sizes = {**layer.sizes, "t": activation, "blocks": int(layer.sizes["k"]) // 32}
            inputs, weights, body = (text.format(**sizes) for text in texts)
            model = parsed(inputs, weights, body, ["y"])
            sessions[label] = Session(model.SerializeToString(), threads=1, profile=True)
    feeds = {label: _feeds(session) for label, session in sessions.items()}
    rounds, start = 0, time.perf_counter()
    while rounds < 5 or (rounds < 200 and time.perf_counter() - start < seconds):
        for label, session in sessions.items():
            for _ in range(3):  # most runs then find their weights in the caches
                session.run(feeds[label])
        rounds += 1
    taken = {label: sum(kernel.microseconds for kernel in s.kernels()) for label, s in sessions.items()}
    return Speed(f"{layer.kind} {layer.name}", taken)


def _feeds(session: Session) -> dict[str, Array]:
    return {s.name: random_array(s.dtype, [int(str(d)) for d in s.shape or ()]) for s in session.inputs}


def speed_table(found: Sequence[Speed]) -> Table:
    """One row for each layer and kernel."""
    table = Table("layer", "kernel", "µs", "times float", title="Kernels, one thread")
    for speed in found:
        for kernel, taken in speed.microseconds.items():
            table.add_row(speed.layer, kernel, f"{taken:.0f}", f"{speed.gain(kernel):.2f}")
        table.add_section()
    return table
