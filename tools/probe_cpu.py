"""What the CPU provider of the installed ONNX Runtime runs as integers, and how fast: the evidence for targets/cpu.py.

    python tools/probe_cpu.py [--json FILE]     what becomes integer, and what that gains on this machine
    python tools/probe_cpu.py --check           fails where onnxq/targets/cpu.py claims what the runtime does not do

Fusion: each operator gets Q/DQ on every input and output, is loaded with full optimization, and the optimized graph
is read. Speed: the float operator and its integer kernels take turns, one thread, on the runtime's own clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from kernel_speed import LAYERS, TYPES, measure, speed_table
from onnx import helper, numpy_helper
from rich.console import Console
from rich.table import Table
from textmodel import MIDDLE, OPSET, parsed

from onnxq.graph import MICROSOFT, Array
from onnxq.targets import CPU, Target

LOWEST = {"uint8": 0, "int8": -128}
INSTRUCTIONS = ("avx2", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
"""Processor flags that decide which integer kernels run."""


# ---- what is probed ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """A float graph to put Q/DQ around.

    Attributes:
        inputs: activations, as ONNX text declares them.
        body: the operators.
        weights: filled with numbers; w and w2 are quantized to int8, b to int32, others stay as they are.
        per_channel: whether w has a scale for each output channel (axis 0).
        saturates: whether the zero point of the output is the lowest integer, as behind a Relu.
        float_output: whether the output stays float.
        moves: whether it only moves values, so that it may as well run on bare integers.
        opset: of the standard operators.
        outputs: the names that the body gives them.
    """

    inputs: str
    body: str
    weights: str = "float[1] f"
    per_channel: bool = False
    saturates: bool = False
    float_output: bool = False
    moves: bool = False
    opset: int = OPSET
    outputs: tuple[str, ...] = ("y",)


IMAGE = "float[1,8,6,6] x"
KERNEL = "float[8,8,3,3] w, float[8] b"
ROWS = "float[4,8] x"
MATRIX = "float[8,8] w, float[8] b"
TWO = "float[1,8,6,6] x, float[1,8,6,6] x2"
SEQUENCE = "float[4,1,8] x"
LIMITS = "float low = {0}, float high = {6}"

FUSION: Mapping[str, Probe] = {
    "Conv": Probe(IMAGE, "y = Conv(x, w, b)", KERNEL),
    "Conv, per channel": Probe(IMAGE, "y = Conv(x, w, b)", KERNEL, per_channel=True),
    "Conv, float bias": Probe(IMAGE, "y = Conv(x, w, f)", "float[8,8,3,3] w, float[8] f"),
    "Conv, depthwise": Probe(IMAGE, "y = Conv<group=8>(x, w, b)", "float[8,1,3,3] w, float[8] b", per_channel=True),
    "Conv, 1-D": Probe("float[1,8,9] x", "y = Conv(x, w, b)", "float[8,8,3] w, float[8] b"),
    "Conv, 3-D": Probe("float[1,8,5,5,5] x", "y = Conv(x, w, b)", "float[8,8,3,3,3] w, float[8] b"),
    "Conv, Relu": Probe(IMAGE, "t = Conv(x, w, b) y = Relu(t)", KERNEL, saturates=True),
    "Conv, Relu, zero point in the middle": Probe(IMAGE, "t = Conv(x, w, b) y = Relu(t)", KERNEL),
    "Conv, Clip": Probe(IMAGE, "t = Conv(x, w, b) y = Clip(t, low, high)", f"{KERNEL}, {LIMITS}", saturates=True),
    "Conv, HardSwish": Probe(IMAGE, "t = Conv(x, w, b) y = HardSwish(t)", KERNEL),
    "Conv, float output": Probe(IMAGE, "y = Conv(x, w, b)", KERNEL, float_output=True),
    "Gemm": Probe(ROWS, "y = Gemm<transB=1>(x, w, b)", MATRIX),
    "Gemm, per channel": Probe(ROWS, "y = Gemm<transB=1>(x, w, b)", MATRIX, per_channel=True),
    "Gemm, float output": Probe(ROWS, "y = Gemm<transB=1>(x, w, b)", MATRIX, float_output=True),
    "MatMul": Probe(ROWS, "y = MatMul(x, w)", MATRIX),
    "MatMul, float output": Probe(ROWS, "y = MatMul(x, w)", MATRIX, float_output=True),
    "MatMul, Add, float output": Probe(
        ROWS, "t = MatMul(x, w) y = Add(t, f)", "float[8,8] w, float[8] f", float_output=True
    ),
    "MatMul, two activations": Probe("float[4,8] x, float[8,4] x2", "y = MatMul(x, x2)"),
    "ConvTranspose": Probe(IMAGE, "y = ConvTranspose(x, w, b)", KERNEL),
    "LSTM": Probe(SEQUENCE, "y = LSTM<hidden_size=4>(x, w, w2)", "float[1,16,8] w, float[1,16,4] w2"),
    "GRU": Probe(SEQUENCE, "y = GRU<hidden_size=4>(x, w, w2)", "float[1,12,8] w, float[1,12,4] w2"),
    "RNN": Probe(SEQUENCE, "y = RNN<hidden_size=4>(x, w, w2)", "float[1,4,8] w, float[1,4,4] w2"),
    "Attention": Probe(
        "float[1,4,8] x, float[1,4,8] x2, float[1,4,8] x3",
        "y = Attention<q_num_heads=2, kv_num_heads=2>(x, x2, x3)",
        opset=23,
    ),
    "Add": Probe(TWO, "y = Add(x, x2)"),
    "Mul": Probe(TWO, "y = Mul(x, x2)"),
    "Sub": Probe(TWO, "y = Sub(x, x2)"),
    "Div": Probe(TWO, "y = Div(x, x2)"),
    "Where": Probe(TWO, "y = Where(c, x, x2)", "bool[1,8,6,6] c"),
    "Concat": Probe(TWO, "y = Concat<axis=1>(x, x2)"),
    "LeakyRelu": Probe(IMAGE, "y = LeakyRelu<alpha=0.1>(x)"),
    "LeakyRelu, slope 0": Probe(IMAGE, "y = LeakyRelu<alpha=0.0>(x)"),
    "Relu": Probe(IMAGE, "y = Relu(x)"),
    "Clip": Probe(IMAGE, "y = Clip(x, low, high)", LIMITS),
    "Sigmoid": Probe(IMAGE, "y = Sigmoid(x)"),
    "Softmax": Probe(ROWS, "y = Softmax(x)"),
    "Tanh": Probe(IMAGE, "y = Tanh(x)"),
    "Gelu": Probe(IMAGE, f"y = {MICROSOFT}.Gelu(x)"),
    "Erf": Probe(IMAGE, "y = Erf(x)"),
    "HardSwish": Probe(IMAGE, "y = HardSwish(x)"),
    "HardSigmoid": Probe(IMAGE, "y = HardSigmoid(x)"),
    "Sqrt": Probe(IMAGE, "y = Sqrt(x)"),
    "Pow": Probe(IMAGE, "y = Pow(x, two)", "float two = {2}"),
    "LayerNormalization": Probe(ROWS, "y = LayerNormalization(x, f, f)", "float[8] f"),
    "InstanceNormalization": Probe(IMAGE, "y = InstanceNormalization(x, f, f)", "float[8] f"),
    "AveragePool": Probe(IMAGE, "y = AveragePool<kernel_shape=[2,2]>(x)"),
    "GlobalAveragePool": Probe(IMAGE, "y = GlobalAveragePool(x)"),
    "ReduceMean": Probe(IMAGE, "y = ReduceMean<axes=[2,3]>(x)"),
    "Pad": Probe(IMAGE, "y = Pad(x, pads)", "int64[8] pads = {0,0,1,1,0,0,1,1}", moves=True),
    "MaxPool": Probe(IMAGE, "y = MaxPool<kernel_shape=[2,2]>(x)", moves=True),
    "Reshape": Probe(IMAGE, "y = Reshape(x, shape)", "int64[2] shape = {1,-1}", moves=True),
    "Transpose": Probe(IMAGE, "y = Transpose<perm=[0,2,3,1]>(x)", moves=True),
    "Flatten": Probe(IMAGE, "y = Flatten(x)", moves=True),
    "Squeeze": Probe(IMAGE, "y = Squeeze(x, axes)", "int64[1] axes = {0}", moves=True),
    "Unsqueeze": Probe(IMAGE, "y = Unsqueeze(x, axes)", "int64[1] axes = {0}", moves=True),
    "Slice": Probe(IMAGE, "y = Slice(x, low, high)", "int64[4] low = {0,0,1,1}, int64[4] high = {1,8,5,5}", moves=True),
    "Split": Probe(IMAGE, "y, y2 = Split<axis=1>(x, parts)", "int64[2] parts = {4,4}", outputs=("y", "y2"), moves=True),
    "Gather": Probe(IMAGE, "y = Gather<axis=1>(x, index)", "int64[2] index = {0,3}", moves=True),
    "Expand": Probe(IMAGE, "y = Expand(x, shape)", "int64[4] shape = {2,8,6,6}", moves=True),
    "DepthToSpace": Probe(IMAGE, "y = DepthToSpace<blocksize=2>(x)", moves=True),
    "SpaceToDepth": Probe(IMAGE, "y = SpaceToDepth<blocksize=2>(x)", moves=True),
    "Resize": Probe(IMAGE, 'y = Resize<mode="nearest">(x, , scales)', "float[4] scales = {1,1,2,2}", moves=True),
    "Resize, linear": Probe(IMAGE, 'y = Resize<mode="linear">(x, , scales)', "float[4] scales = {1,1,2,2}"),
}
"""By operator; after a comma, a variation of it."""

CLAIMS: Sequence[tuple[str, str, tuple[str, ...]]] = (
    ("layers", "{}", ("integer",)),
    ("float_output", "{}, float output", ("integer",)),
    ("followers", "{}", ("integer",)),
    ("movers", "{}", ("moves", "direct")),
    ("joins", "{}", ("integer",)),
    ("absorbed", "Conv, {}", ("integer",)),
    ("why_float", "{}", ("float",)),
)
"""A field of the target, the probe of an operator named there, and what the runtime must make of it."""
WRITTEN_AS = {("followers", "Relu"): "LeakyRelu, slope 0"}
"""Operators that onnxq writes as another one."""


# ---- graphs --------------------------------------------------------------------------------------------------------


def with_qdq(probe: Probe, activation: str) -> onnx.ModelProto:
    """The graph of a probe with Q/DQ on every input and output and DQ behind every weight."""
    model = parsed(probe.inputs, probe.weights, probe.body, probe.outputs, probe.opset)
    graph, before, after = model.graph, [], []
    for tensor in graph.input:
        inner, tensor.name = tensor.name, f"{tensor.name}_float"
        before += _pair(graph, tensor.name, inner, activation, MIDDLE)
    for stored in [tensor for tensor in graph.initializer if tensor.name in ("w", "w2", "b")]:
        before.append(_dequantized(graph, stored, probe.per_channel))
    for tensor in [] if probe.float_output else graph.output:
        inner, tensor.name = tensor.name, f"{tensor.name}_float"
        after += _pair(graph, inner, tensor.name, activation, LOWEST if probe.saturates else MIDDLE)
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _pair(
    graph: onnx.GraphProto, source: str, result: str, activation: str, zero: Mapping[str, int]
) -> list[onnx.NodeProto]:
    parameters = [f"{result}_scale", f"{result}_zero"]
    _constant(graph, parameters[0], np.float32(0.02))
    _constant(graph, parameters[1], np.dtype(activation).type(zero[activation]))
    integers = f"{result}_integers"
    return [
        helper.make_node("QuantizeLinear", [source, *parameters], [integers]),
        helper.make_node("DequantizeLinear", [integers, *parameters], [result]),
    ]


def _dequantized(graph: onnx.GraphProto, stored: onnx.TensorProto, per_channel: bool) -> onnx.NodeProto:
    """Turn a float weight into integers, and give the DQ that has its name; a bias has the scale of x times w."""
    name, dtype = stored.name, "int32" if stored.name == "b" else "int8"
    scale = 0.02**2 if dtype == "int32" else 0.02
    values = np.clip(np.rint(numpy_helper.to_array(stored) / scale), -127, 127).astype(dtype)
    shape = [values.shape[0]] if per_channel else []
    stored.CopyFrom(numpy_helper.from_array(values, f"{name}_integers"))
    _constant(graph, f"{name}_scale", np.full(shape, scale, np.float32))
    _constant(graph, f"{name}_zero", np.zeros(shape, dtype))
    return helper.make_node("DequantizeLinear", [stored.name, f"{name}_scale", f"{name}_zero"], [name], axis=0)


def _constant(graph: onnx.GraphProto, name: str, values: Array | np.generic) -> None:
    graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))


# ---- fusion --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fused:
    """What the runtime made of a probe.

    Attributes:
        verdict: `integer`: other operators, on integers; `moves`: the same operator, on integers; `direct`: Q/DQ stay,
            but the operator takes bare integers; `float`: an operator reads floats; `refused`: the model does not load.
        ops: the operators that remain, or the reason of a refusal.
        quantize: how many QuantizeLinear remain; the inputs of the graph need one each.
        dequantize: how many DequantizeLinear remain.
    """

    verdict: str
    ops: tuple[str, ...]
    quantize: int = 0
    dequantize: int = 0

    def __str__(self) -> str:
        return f"{self.verdict}: {' '.join(self.ops)} [Q{self.quantize} DQ{self.dequantize}]"


def fuse(probe: Probe, activation: str) -> Fused:
    """Load a probe with full optimization and read what became of it."""
    model = with_qdq(probe, activation)
    try:
        graph = optimized(model)
    except Exception as error:  # the runtime has many kinds
        return Fused("refused", (str(error).splitlines()[0][:100],))
    ops = [node.op_type for node in graph.node]
    kept = tuple(op for op in ops if op not in ("QuantizeLinear", "DequantizeLinear"))
    known = {node.op_type for node in model.graph.node}
    verdict = "moves" if set(kept) <= known else "integer"
    if _reads_floats(graph):
        verdict = "direct" if probe.moves and takes_integers(probe, activation) else "float"
    return Fused(verdict, kept, ops.count("QuantizeLinear"), ops.count("DequantizeLinear"))


def takes_integers(probe: Probe, activation: str) -> bool:
    """Whether the runtime has a kernel for the operator itself on integers."""
    inputs = probe.inputs.replace("float", activation)
    try:
        optimized(parsed(inputs, probe.weights, probe.body, probe.outputs, probe.opset))
    except Exception:  # the type is not allowed, or has no kernel
        return False
    return True


def optimized(model: onnx.ModelProto) -> onnx.GraphProto:
    """The graph as the runtime runs it."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.log_severity_level = 4
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath).graph


def _reads_floats(graph: onnx.GraphProto) -> bool:
    floats = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    floats |= {tensor.name for tensor in graph.input}
    return any(name in floats for node in graph.node if node.op_type != "QuantizeLinear" for name in node.input)


def differences(found: Mapping[str, Fused], target: Target) -> list[str]:
    """Where a target claims what the runtime does not do, one sentence each."""
    wrong = []
    for claim, form, wanted in CLAIMS:
        for op in sorted(getattr(target, claim)):
            name = WRITTEN_AS.get((claim, op), form.format(op))
            if name not in found:
                wrong.append(f"{claim}: nobody probes '{name}'. Add it to FUSION.")
            elif found[name].verdict not in wanted:
                wrong.append(f"{claim}: {op} should be {' or '.join(wanted)}, but the runtime makes {found[name]}.")
    return wrong


def unused(found: Mapping[str, Fused], target: Target) -> list[str]:
    """Operators that the runtime has on integers and the target does not name; it may have its reasons."""
    named = {op for claim, _, _ in CLAIMS for op in getattr(target, claim)}
    return [
        name
        for name, fused in found.items()
        if fused.verdict in ("integer", "moves", "direct") and "," not in name and name not in named
    ]


# ---- command line --------------------------------------------------------------------------------------------------


def conditions() -> dict[str, str]:
    """What the findings depend on."""
    information = Path("/proc/cpuinfo")
    words = set(information.read_text().split()) if information.exists() else set()
    return {
        "onnxruntime": str(ort.__version__),
        "machine": platform.machine(),
        "instructions": " ".join(flag for flag in INSTRUCTIONS if flag in words) or "unknown",
        "load": f"{os.getloadavg()[0]:.1f}",  # on a busy machine, long kernels seem slower than they are
    }


def fusion_table(found: Mapping[str, Mapping[str, Fused]]) -> Table:
    """One row for each probe; what signed activations change is shown only where it differs."""
    heads = ("operator", "verdict", "what remains", "Q", "DQ", "int8 activations")
    table = Table(*heads, title="Q/DQ on every input and output")
    for name, fused in found["uint8"].items():
        signed = found["int8"][name]
        other = "the same" if signed == fused else str(signed)
        table.add_row(name, fused.verdict, " ".join(fused.ops), str(fused.quantize), str(fused.dequantize), other)
    return table


def main(words: Sequence[str]) -> int:
    """Probe, print, save. 1 where `--check` finds a claim that does not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare onnxq/targets/cpu.py with the runtime")
    parser.add_argument("--json", type=Path, help="file to write the findings to")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each layer; default: 3")
    arguments = parser.parse_args(words)
    found = {kind: {name: fuse(probe, kind) for name, probe in FUSION.items()} for kind in TYPES}
    wrong, rest = differences(found[CPU.activation], CPU), unused(found[CPU.activation], CPU)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    console.print(", ".join(f"{key} {value}" for key, value in conditions().items()))
    speeds = [] if arguments.check else [measure(layer, arguments.seconds) for layer in LAYERS]
    for table in () if arguments.check else (fusion_table(found), speed_table(speeds)):
        console.print(table)
    console.print(*(wrong or [f"The runtime does what the target '{CPU.name}' claims."]), sep="\n")
    console.print(f"On integers, and not named in the target: {', '.join(rest) or 'none'}.")
    if arguments.json:
        fusion = {kind: {name: asdict(fused) for name, fused in rows.items()} for kind, rows in found.items()}
        document = {**conditions(), "differences": wrong, "fusion": fusion, "speed": [asdict(s) for s in speeds]}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 1 if arguments.check and wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
