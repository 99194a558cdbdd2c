"""Models that were trained with quantization elsewhere: folded without data, and within one step of what was trained.

Each form is written as an exporter writes it: PyTorch (both exporters, and `torch.ao`), TensorFlow by tf2onnx,
Brevitas (QCDQ), NNCF and ModelOpt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.errors import ModelError
from onnxq.graph import Graph, is_constant
from onnxq.modelfile import load
from onnxq.options import Options
from onnxq.result import Result
from tests.onnx_text import Array, assert_same, execute, floats, normal, ops, read, serialize, sqnr, typed

LAYERS = ("Conv", "Gemm", "MatMul")
STEP = np.float32(0.25)
"""Of the last quantized tensor of every form."""

Weights = dict[str, Any]


@dataclass(frozen=True)
class Form:
    """A model as some exporter writes it.

    Attributes:
        body: nodes from `x` to `y`, in ONNX text.
        weights: what they read.
        gone: operators that must not be left.
        x: sizes of the input.
        rank: axes of the output.
        opset: version of the standard operators.
        step: how far outputs may move.
    """

    body: str
    weights: Weights
    gone: tuple[str, ...] = ("Conv", "Gemm", "MatMul", "Relu", "BatchNormalization")
    x: str = "2,3,8,8"
    rank: int = 2
    opset: int = 17
    step: float = float(STEP)

    def graph(self) -> Graph:
        """The model."""
        text = f"(float[{self.x}] x) => (float[{','.join('abcd'[: self.rank])}] y) {{ {self.body} }}"
        return read(text, self.weights, self.opset)


def pair(source: str, to: str, name: str, clip: str = "", attributes: str = "") -> str:
    """QuantizeLinear, Clip and DequantizeLinear with NAME_s and NAME_z; the limits of Clip by name."""
    made = f"{to}_q" if not clip else f"{to}_c"
    between = f"{made} = Clip({to}_q, {clip}) " if clip else ""
    q = f"{to}_q = QuantizeLinear{attributes}({source}, {name}_s, {name}_z) "
    return q + between + f"{to} = DequantizeLinear{attributes}({made}, {name}_s, {name}_z)\n"


def grid(name: str, scale: float, zero: int, dtype: Any = np.uint8) -> Weights:
    """Scale and zero point of a tensor, as PyTorch stores them: with one element."""
    return {f"{name}_s": np.array([scale], np.float32), f"{name}_z": np.array([zero], dtype)}


def channels(name: str, values: Array, axis: int = 0, top: int = 127, dtype: Any = np.int8) -> Weights:
    """A float weight, and a learned scale for each of its channels."""
    others = tuple(i for i in range(values.ndim) if i != axis)
    scale = (np.abs(values).max(others) / top * np.linspace(0.8, 1.1, values.shape[axis])).astype(np.float32)
    return {name: values, f"{name}_s": scale, f"{name}_z": np.zeros(scale.shape, dtype)}


def tensor(name: str, values: Array, top: int = 127) -> Weights:
    """A float weight and one learned scale for it."""
    scale = np.abs(values).max() / top * 0.9
    return {name: values} | grid(name, float(scale), 0, np.int8)


W1, W2 = floats(16, 3, 3, 3), floats(16, 16, 3, 3, seed=5) / np.float32(4)
FC = floats(10, 256, seed=8) / np.float32(8)
BIAS = {"b1": floats(16, seed=1), "b2": floats(16, seed=2), "b3": floats(10, seed=4)}
LIMITS = {"shape": np.array([2, 256])}


def weights(w: Any = channels, *, signed: bool = False, steps: int = 255) -> Weights:
    """What `network` reads: activations of so many steps."""
    middle, low = (0, -128) if signed else (steps // 2 + 1, 0)
    kind = np.int8 if signed else np.uint8
    found = grid("x", 8 / steps, middle, kind) | grid("a", 20 / steps, low, kind) | grid("m", 40 / steps, middle, kind)
    found |= grid("r", 30 / steps, low, kind) | grid("y", float(STEP), middle, kind)
    kernels: Weights = w("w1", W1) | w("w2", W2) | w("w3", FC)
    return BIAS | LIMITS | found | kernels


def network(*, axis: int | None = 0, acts: str = "", kernel: str = "", first: str = "", flat: str = "") -> str:
    """Conv, Relu, Conv, residual Add, Relu, MaxPool, Flatten, Gemm, as PyTorch exports fake-quantized modules."""
    along = "" if axis is None else f"<axis={axis}>"
    text = pair("x", "x0", "x", acts)
    text += "".join(pair(f"w{i}", f"w{i}_f", f"w{i}", kernel, along) for i in (1, 2, 3))
    text += first or "c = Conv<pads=[1,1,1,1], strides=[2,2]>(x0, w1_f, b1) c0 = Relu(c)\n" + pair("c0", "a", "a", acts)
    text += "d = Conv<pads=[1,1,1,1]>(a, w2_f, b2)\n" + pair("d", "m", "m", acts)
    text += "s = Add(a, m) s0 = Relu(s)\n" + pair("s0", "r", "r", acts) + (flat or "f = Flatten(r)\n")
    return text + "e = Gemm<transB=1>(f, w3_f, b3)\n" + pair("e", "y", "y", acts)


def early() -> str:
    """Q/DQ stands before Relu, and nothing behind it."""
    return "c = Conv<pads=[1,1,1,1], strides=[2,2]>(x0, w1_f, b1)\n" + pair("c", "c0", "m") + "a = Relu(c0)\n"


NORM = {
    "g": 1 + floats(16, seed=6) / 9,
    "t": floats(16, seed=7) / 3,
    "u": floats(16, seed=8) / 9,
    "v": 1 + floats(16, seed=9) ** 2,
    "k": (1 + floats(1, 16, 1, 1, seed=10) / 9).astype(np.float32),
    "b0": np.zeros(16, np.float32),
    "ba": floats(1, 16, 1, 1, seed=3),
}
BATCHNORM = "c = Conv<pads=[1,1,1,1], strides=[2,2]>(x0, w1_f, b1) n = BatchNormalization(c, g, t, u, v) c0 = Relu(n)\n"
TORCH_AO = (
    "c = Conv<pads=[1,1,1,1], strides=[2,2]>(x0, w1_f, b0) i = Div(c, k) j = Add(i, ba) "
    "n = BatchNormalization(j, g, t, u, v) c0 = Relu(n)\n"
)
POOLED = "p = MaxPool<kernel_shape=[1,1]>(r) f = Reshape(p, shape)\n"
U7 = {"low": np.uint8(0), "top": np.uint8(127)}
U4 = {"low": np.uint8(0), "top": np.uint8(15), "wl": np.int8(-8), "wt": np.int8(7)}
S6 = {"low": np.int8(-32), "top": np.int8(31), "wl": np.int8(-31), "wt": np.int8(31)}
NARROW = {"wl": np.int8(-127), "wt": np.int8(127)}


def fewer(bits: int) -> Weights:
    """Activations and weights of fewer bits, with scales to match."""
    steps, top = (1 << bits) - 1, (1 << (bits - 1)) - 1
    found = weights(lambda n, v, axis=0: channels(n, v, axis, top), steps=steps)
    kernels = channels("w1", W1, 0, top) | channels("w2", W2, 0, top) | channels("w3", FC, 0, top)
    return found | kernels | grid("y", 2.0, steps // 2 + 1)


def brevitas() -> Weights:
    """Six bits, all signed, in containers of eight."""
    kernels = channels("w1", W1, 0, 31) | channels("w2", W2, 0, 31) | channels("w3", FC, 0, 31)
    acts = {"x": 0.13, "a": 0.5, "m": 0.6, "r": 0.9}
    found: Weights = {}
    for name, scale in acts.items():
        found |= grid(name, scale, 0, np.int8)
    return BIAS | LIMITS | S6 | found | kernels | grid("y", 1.0, 0, np.int8)


TF = (
    pair("x", "x0", "x")
    + "t = Transpose<perm=[0,3,1,2]>(x0)\n"
    + pair("k", "k_f", "k", attributes="<axis=3>")
    + "kt = Transpose<perm=[3,2,0,1]>(k_f) c = Conv<pads=[1,1,1,1]>(t, kt, b1) u = Transpose<perm=[0,2,3,1]>(c) "
    + "r = Relu(u)\n"
    + pair("r", "a", "a")
    + "v = Transpose<perm=[0,3,1,2]>(a) p = GlobalAveragePool(v)\n"
    + pair("p", "p0", "a")
    + "s = Squeeze(p0, axes)\n"
    + pair("h", "h_f", "h")
    + "e = MatMul(s, h_f) o = Add(e, b3)\n"
    + pair("o", "y", "y")
)
TF_WEIGHTS = (
    BIAS
    | grid("x", 8 / 255, 128)
    | grid("a", 20 / 255, 0)
    | grid("y", 0.05, 128)
    | channels("k", W1.transpose(2, 3, 1, 0).copy(), 3)
    | {"h": floats(16, 10), "h_s": np.float32(3.1 / 254), "h_z": np.int8(-3), "axes": np.array([2, 3])}
)


def four_bits(name: str, shape: tuple[int, ...], grids: tuple[int, ...], kind: str = "INT4") -> Weights:
    """A weight of 4 bits that is stored as such, and its scales."""
    low = -8 if kind == "INT4" else 0
    numbers = np.random.default_rng(3).integers(low, low + 16, shape)
    code = onnx.TensorProto.DataType.Value(kind)
    made = onnx.helper.make_tensor(name, code, shape, numbers.reshape(-1).tolist())
    scale = (0.02 + np.abs(floats(*grids)) / 20).astype(np.float32)
    return {name: made, f"{name}_s": scale}


INT4 = (
    pair("x", "x0", "x")
    + "k_f = DequantizeLinear<axis=0>(k, k_s) h_f = DequantizeLinear<axis=0>(h, h_s) "
    + "c = Conv<pads=[1,1,1,1]>(x0, k_f, b1) r = Relu(c)\n"
    + pair("r", "a", "a")
    + "p = GlobalAveragePool(a)\n"
    + pair("p", "p0", "a")
    + "f = Flatten(p0) e = Gemm<transB=1>(f, h_f, b3)\n"
    + pair("e", "y", "y")
)
INT4_WEIGHTS = (
    BIAS
    | grid("x", 8 / 255, 128)
    | grid("a", 5 / 255, 0)
    | grid("y", 0.05, 128)
    | four_bits("k", (16, 3, 3, 3), (16,))
    | four_bits("h", (10, 16), (10,))
)
COMPUTED = (
    "half = Constant<value_float=0.5>() s2 = Mul(x_s, half) x_t = Identity(x_z) "
    "q = QuantizeLinear(x, s2, x_t) x0 = DequantizeLinear(q, s2, x_t) d, mask = Dropout(x0) i = Identity(d) "
    "k_f = DequantizeLinear<axis=0>(k, k_s) c = Conv(i, k_f, b1) c_q = QuantizeLinear(c, m_s) "
    "y = DequantizeLinear(c_q, m_s)"
)
SHARED = (
    "q = QuantizeLinear(x, x_s, x_z) d1 = DequantizeLinear(q, x_s, x_z) d2 = DequantizeLinear(q, x_s, x_z)\n"
    + pair("w1", "w1_f", "w1", attributes="<axis=0>")
    + "d = Conv<pads=[1,1,1,1], strides=[2,2]>(d2, w1_f) "
    + "e = Conv<pads=[1,1,1,1], strides=[2,2]>(d1, w1_f)\n"
    + pair("d", "d0", "m")
    + pair("e", "e0", "m")
    + pair("d0", "d3", "m")
    + "s = Add(d3, e0)\n"
    + pair("s", "s0", "y")
    + "y = Flatten(s0)"
)
MODELOPT_RESIDUAL = (
    pair("x", "x0", "x")
    + pair("w1", "w1_f", "w1", attributes="<axis=0>")
    + "w2_f = DequantizeLinear<axis=0>(w2i, w2_s, w2_z) c = Conv<pads=[1,1,1,1]>(x0, w1_f, b1) r = Relu(c)\n"
    + pair("r", "a", "a")
    + "b_f = DequantizeLinear<axis=0>(bi, bs, bz) d = Conv<pads=[1,1,1,1]>(a, w2_f, b_f)\n"
    + pair("d", "m", "m")
    + "z = Add(m, a) z0 = Relu(z)\n"
    + pair("z0", "y", "y")
)


def stored_integers() -> Weights:
    """A weight and a bias that the exporter stored as integers."""
    found = weights()
    scale = found["w2_s"]
    bias_scale = (scale * found["a_s"]).astype(np.float32)
    integers = np.clip(np.rint(W2 / scale.reshape(-1, 1, 1, 1)), -128, 127).astype(np.int8)
    bias = np.rint(BIAS["b2"] / bias_scale).astype(np.int32)
    return found | {"w2i": integers, "bi": bias, "bs": bias_scale, "bz": np.zeros(16, np.int32)} | grid("y", 0.25, 0)


def microsoft(text: str) -> str:
    """The same in the operators of another domain."""
    return re.sub("(De|)([qQ]uantizeLinear)", r"com.microsoft.\1\2", text)


def spelled(name: str, to: str, scale: str, low: str, high: str) -> str:
    """Fake quantization in float operators, as PyTorch exports a module of one's own."""
    return (
        f"{to}_1 = Div({name}, {scale}) {to}_2 = Clip({to}_1, {low}, {high}) {to}_3 = Round({to}_2) "
        f"{to} = Mul({to}_3, {scale})\n"
    )


LSQ = (
    spelled("x", "x0", "x_s", "low", "top")
    + spelled("w1", "w1_f", "w1_e", "low", "top")
    + "c = Conv<pads=[1,1,1,1]>(x0, w1_f, b1) r = Relu(c)\n"
    + spelled("r", "a", "a_s", "zero", "all")
    + "d = Conv<pads=[1,1,1,1]>(a, w2, b2)\n"
    + spelled("d", "y", "y_s", "low", "top")
)


def lsq() -> Weights:
    """Learned scales; the exporter has folded the second weight into floats."""
    found = weights(signed=True)
    folded = np.clip(np.rint(W2 / found["w2_s"].reshape(-1, 1, 1, 1)), -127, 127) * found["w2_s"].reshape(-1, 1, 1, 1)
    limits = {"low": -127, "top": 127, "zero": 0, "all": 255}
    return (
        found
        | {"w2": folded.astype(np.float32), "w1_e": found["w1_s"].reshape(-1, 1, 1, 1)}
        | {name: np.float32(value) for name, value in limits.items()}
    )


FEW = network(acts="low, top", kernel="wl, wt")
FORMS: dict[str, Form] = {
    "PyTorch, per channel": Form(network(), weights()),
    "PyTorch, per tensor": Form(network(axis=None), weights(tensor)),
    "PyTorch, 0..127": Form(network(acts='"", top'), weights(steps=127) | U7 | grid("y", 0.5, 64), step=0.5),
    "PyTorch, -128..127": Form(network(), weights(signed=True)),
    "PyTorch, weights -127..127": Form(network(kernel="wl, wt"), weights() | NARROW),
    # with 16 steps, one that rounds the other way inside, for the sake of a bias, is more than one at the output
    "PyTorch, 4 bits": Form(FEW, fewer(4) | U4, step=2 * 2.0),
    "PyTorch, MaxPool and Reshape": Form(network(flat=POOLED), weights()),
    "PyTorch, batch normalization": Form(network(first=BATCHNORM + pair("c0", "a", "a")), weights() | NORM),
    "PyTorch, torch.ao": Form(network(first=TORCH_AO + pair("c0", "a", "a")), weights() | NORM),
    "PyTorch, Q/DQ before Relu": Form(network(first=early()), weights()),
    "PyTorch, Q/DQ before Relu, signed": Form(network(first=early()), weights(signed=True)),
    "Brevitas, 6 bits, signed": Form(FEW, brevitas(), step=1.0),
    "TensorFlow": Form(TF, TF_WEIGHTS, x="2,8,8,3", step=0.05),
    "int4, per channel": Form(INT4, INT4_WEIGHTS, opset=21, step=0.05),
    "scales that are computed": Form(
        COMPUTED,
        BIAS
        | grid("x", 16 / 255, 128)
        | {"m_s": np.float32(0.2)}
        | {"k": np.random.default_rng(1).integers(-127, 128, (16, 3, 3, 3)).astype(np.int8)}
        | {"k_s": np.linspace(0.01, 0.02, 16, dtype=np.float32)},
        rank=4,
        step=0.2,
    ),
    "shared, and two pairs alike": Form(SHARED, weights(), step=0.25),
    "modules of one's own, LSQ": Form(LSQ, lsq(), ("Conv", "Div", "Round", "Mul", "Relu"), rank=4),
    "another domain": Form(microsoft(network()), weights()),
    "ModelOpt and NNCF, stored integers": Form(MODELOPT_RESIDUAL, stored_integers(), rank=4),
}


@pytest.fixture
def folded(tmp_path: Path) -> Any:
    """Optimize a graph without data; the record, and the model that came out."""

    def run(graph: Graph) -> tuple[Result, Graph]:
        path, target = tmp_path / "trained.onnx", tmp_path / "folded.onnx"
        path.write_bytes(serialize(graph))
        result = onnxq.optimize(path, target, options=Options(threads=1, seconds=0.2, force=True))
        return result, typed(load(target))

    return run


def dequantized_weights(graph: Graph) -> list[str]:
    """Layers that read a weight through DequantizeLinear."""
    made = {n.outputs[0].name for n in graph.nodes if n.op == "DequantizeLinear" and is_constant(n.inputs[0])}
    return [node.name for node in graph.nodes if node.op in LAYERS and node.inputs[1].name in made]


def assert_steps(before: Graph, after: Graph, feeds: Mapping[str, Array], step: float) -> None:
    """Outputs differ by a step at most, rewritten by the runtime or not; the trained model is never rewritten."""
    (want,) = execute(before, feeds)
    for optimize in (False, True):
        (have,) = execute(after, feeds, optimize=optimize)
        assert np.unique(want).size > 3
        assert float(np.abs(have - want).max()) <= step * 1.0001


@pytest.mark.parametrize("name", FORMS)
def test_folds(name: str, folded: Any) -> None:
    form = FORMS[name]
    before = form.graph()
    result, after = folded(before)
    assert result.status == "optimized"
    assert result.proof is not None
    assert result.proof.reference == "Q/DQ"
    assert dequantized_weights(after) == []
    assert not set(ops(after)) & set(form.gone), ops(after)
    assert ops(after).count("QuantizeLinear") == 1
    assert ops(after).count("DequantizeLinear") == 1
    for seed in range(3):
        assert_steps(before, after, normal(before, seed), form.step)


@pytest.mark.parametrize("opset", [18, 21])
def test_folds_in_every_opset(opset: int, folded: Any) -> None:
    before = Form(network(first=TORCH_AO + pair("c0", "a", "a")), weights() | NORM, opset=opset).graph()
    _, after = folded(before)
    assert not set(ops(after)) & {"Conv", "Gemm", "BatchNormalization"}
    assert_steps(before, after, normal(before), float(STEP))


def test_two_steps_are_found() -> None:
    """The comparison is one: a bias that is off by two steps does not pass it."""
    before = FORMS["PyTorch, per channel"].graph()
    other = Form(network(), weights() | {"b3": BIAS["b3"] + 2 * STEP}).graph()
    with pytest.raises(AssertionError):
        assert_steps(before, other, normal(before), float(STEP))
    with pytest.raises(AssertionError):
        assert_same(before, other, rtol=0.01)


# weights of 4 bits and blocks


def blocked(layer: str, kind: str) -> Graph:
    """A linear layer with blocks of 32 inputs, as ModelOpt and others store them."""
    shape, grids = ((24, 128), (24, 4)) if "transB" in layer else ((128, 24), (4, 24))
    found = eight_bits(shape, grids) if kind == "INT8" else four_bits("w", shape, grids, kind)
    body = f"f = DequantizeLinear<axis={1 if 'transB' in layer else 0}, block_size=32>(w, w_s) y = {layer}"
    return read(f"(float[5,128] x) => (float[a,b] y) {{ {body} }}", found | {"b": floats(24)}, 21)


def eight_bits(shape: tuple[int, ...], grids: tuple[int, ...]) -> Weights:
    values = np.random.default_rng(3).integers(-128, 128, shape).astype(np.int8)
    return {"w": values, "w_s": (0.002 + np.abs(floats(*grids)) / 200).astype(np.float32)}


BLOCKED = {"MatMul": "MatMul(x, f)", "Gemm": "Gemm<transB=1>(x, f, b)"}


@pytest.mark.parametrize("kind", ["INT4", "UINT4", "INT8"])
@pytest.mark.parametrize("layer", BLOCKED)
def test_blocks_become_matmulnbits(layer: str, kind: str, folded: Any) -> None:
    """Scales and integers are the model's own; inputs are rounded to 8 bits, as the runtime does with such weights.

    That leaves 45 dB, measured on normal numbers; with inputs as they are (`accuracy_level` 0) 130 dB are left.
    """
    before = blocked(BLOCKED[layer], kind)
    _, after = folded(before)
    assert ops(after) == ["MatMulNBits"]
    feeds = normal(before)
    (want,), (have,) = execute(before, feeds), execute(after, feeds)
    assert sqnr(want, have) > 40
    (node,) = after.nodes
    node.attrs["accuracy_level"] = 0
    (exact,) = execute(after, feeds)
    assert sqnr(want, exact) > 110


# what stays


STAYS: dict[str, tuple[Form, str]] = {
    "int16 activations": (
        Form(
            "q = QuantizeLinear(x, x_s, x_z) x0 = DequantizeLinear(q, x_s, x_z) "
            + pair("w1", "w1_f", "w1", attributes="<axis=0>")
            + "[conv] c = Conv(x0, w1_f, b1) r = QuantizeLinear(c, a_s, a_z) y = DequantizeLinear(r, a_s, a_z)",
            weights() | grid("x", 2**-12, 0, np.int16) | grid("a", 2**-10, 0, np.int16),
            rank=4,
            opset=21,
        ),
        "Its input is int16; integer kernels here want uint8.",
    ),
    "no quantizer behind a layer": (
        Form(
            pair("x", "x0", "x") + pair("w1", "w1_f", "w1", attributes="<axis=0>") + "[conv] y = Conv(x0, w1_f, b1)",
            weights(),
            rank=4,
        ),
        "No QuantizeLinear stands behind it, which its kernel needs.",
    ),
    "no quantizer before a layer": (
        Form(pair("w1", "w1_f", "w1", attributes="<axis=0>") + "[conv] y = Conv(x, w1_f, b1)", weights(), rank=4),
        "Only its weight is quantized: what it reads comes as floats.",
    ),
    "a scale of 0": (
        Form(
            pair("x", "x0", "x")
            + "w_f = DequantizeLinear<axis=0>(w2i, w2_s, w2_z) c = Conv(x0, w1) [conv] d = Conv(c0, w_f)\n"
            + pair("c", "c0", "a")
            + pair("d", "y", "a"),
            stored_integers() | {"w2_s": np.linspace(0, 0.1, 16, dtype=np.float32)},
            rank=4,
        ),
        "A scale of its weight is 0, negative or not finite.",
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_stays_and_says_why(name: str, folded: Any) -> None:
    form, reason = STAYS[name]
    before = form.graph()
    result, after = folded(before)
    assert (reason, "conv") in {(why, node) for found in result.changes.values() for node, _, _, why in found}
    assert dequantized_weights(after) == []  # dequantized once, not on every run
    assert_steps(before, after, normal(before), {"int16 activations": 2**-10, "a scale of 0": 20 / 255}.get(name, 1e-3))


WRONG: dict[str, tuple[Weights, str]] = {
    "scale of 0": (grid("x", 0, 128), "its scale is 0, and must be above 0"),
    "negative scale": (grid("a", -0.1, 0), "its scale is -0.1"),
    "infinite scale": ({"w1_s": np.full(16, np.inf, np.float32)}, "its scale is inf"),
    "other type": ({"w1_z": np.zeros(16, np.uint8), "w1_t": np.zeros(16, np.int8)}, "its zero point is"),
    "other length": ({"w1_s": np.ones(15, np.float32), "w1_z": np.zeros(15, np.int8)}, "it has 15 scales for axis 0"),
    "fewer zero points": ({"w1_z": np.zeros(15, np.int8)}, "it has 15 zero points for 16 scales"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_scale_that_cannot_be_one_is_named(name: str, tmp_path: Path) -> None:
    more, says = WRONG[name]
    body = pair("x", "x0", "x") + pair("w1", "w1_f", "w1", attributes="<axis=0>") + "c = Conv(x0, w1_f)\n"
    body = body.replace("(w1_f_q, w1_s, w1_z)", "(w1_f_q, w1_s, w1_t)") if "w1_t" in more else body
    text = f"(float[2,3,8,8] x) => (float[a,b,c,d] y) {{ {body + pair('c', 'y', 'a')} }}"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {text}')
    for key, values in (weights() | more).items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), key))
    with pytest.raises(ModelError, match=says):
        onnxq.optimize(model)
