"""Models that PyTorch exports after quantization-aware training: what folding makes of them, and how fast that is.

    python tools/trained_elsewhere.py [--out FOLDER] [--threads 1] [--seconds 2] [--json FILE] [MODEL.onnx ...]

Exports small models with learned scales by both of PyTorch's exporters and by `torch.ao.quantization`, folds each one
without data, and prints a table: nodes before and after, the largest difference to the Q/DQ model without any of the
runtime's optimizations, in steps of the output, and the speed over the runtime's own fusion of the Q/DQ model. Models
that are named are looked at too. Needs PyTorch and onnxscript.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from onnxq import optimize
from onnxq.graph import is_constant, weight
from onnxq.modelfile import load
from onnxq.options import Options
from onnxq.runtime import Session, interleave

Array = np.ndarray[Any, Any]
SIDE = 32
CLASSES = 10
LAYERS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Bits:
    """The integers of activations and of weights."""

    low: int = 0
    high: int = 255
    weight_low: int = -128
    weight_high: int = 127
    per_channel: bool = True


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        form: what was exported, and how.
        nodes: before.
        folded: after.
        left: layers whose weight is still dequantized.
        steps: the largest difference of an output, in steps; None for one without a scale.
        moved: the share of outputs that differ at all.
        speedup: over the runtime's own fusion.
        bytes: share of the size.
    """

    form: str
    nodes: int
    folded: int
    left: int
    steps: float | None
    moved: float
    speedup: float
    bytes: float


class Rounded(torch.autograd.Function):
    """Fake quantization to any integers, exported as QuantizeLinear, Clip and DequantizeLinear (QCDQ)."""

    @staticmethod
    def forward(context: Any, x: Any, scale: Any, zeros: tuple[int, ...], bits: tuple[int, int], axis: int) -> Any:
        """On the grid."""
        shape = [1] * x.dim()
        if scale.numel() > 1:
            shape[axis] = -1
        zero = torch.tensor(zeros, dtype=torch.float32).reshape(shape)
        steps = torch.clamp(torch.round(x / scale.reshape(shape)) + zero, *bits)
        return (steps - zero) * scale.reshape(shape)

    @staticmethod
    def symbolic(graph: Any, x: Any, scale: Any, zeros: tuple[int, ...], bits: tuple[int, int], axis: int) -> Any:
        """In the standard operators."""
        dtype = torch.int8 if bits[0] < 0 else torch.uint8
        zero = graph.op("Constant", value_t=torch.tensor(zeros, dtype=dtype))
        ends = [graph.op("Constant", value_t=torch.tensor(end, dtype=dtype)) for end in bits]
        integers = graph.op("QuantizeLinear", x, scale, zero, axis_i=axis)
        clipped = graph.op("Clip", integers, *ends)
        return graph.op("DequantizeLinear", clipped, scale, zero, axis_i=axis)


class FakeQuant(nn.Module):
    """Fake quantization with a learned scale."""

    def __init__(self, scale: Any, zero: int, bits: tuple[int, int], axis: int | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.as_tensor(scale, dtype=torch.float32).reshape(-1), requires_grad=False)
        self.zero: Any
        self.register_buffer("zero", torch.full((self.scale.numel(),), zero, dtype=torch.int32))
        self.bits, self.axis = bits, axis

    def forward(self, x: Any) -> Any:
        """On the grid."""
        if self.bits not in ((0, 255), (0, 127), (-128, 127)):  # what PyTorch's own operators export
            apply: Any = Rounded.apply
            return apply(x, self.scale, tuple(self.zero.tolist()), self.bits, self.axis or 0)
        if self.axis is None:
            return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero, *self.bits)
        return torch.fake_quantize_per_channel_affine(x, self.scale, self.zero, self.axis, *self.bits)


def activation(bits: Bits, reach: float, *, positive: bool = False) -> FakeQuant:
    """The grid of an activation, of this reach to either side, or to one."""
    steps = bits.high - bits.low
    scale = reach / steps if positive else 2 * reach / steps
    zero = bits.low if positive else (bits.low + bits.high + 1) // 2
    return FakeQuant(scale, zero, (bits.low, bits.high))


def kernel(values: Any, bits: Bits) -> FakeQuant:
    """The grid of a weight."""
    flat = values.detach().abs()
    largest = flat.flatten(1).amax(1) if bits.per_channel else flat.max()
    return FakeQuant(
        largest / bits.weight_high, 0, (bits.weight_low, bits.weight_high), 0 if bits.per_channel else None
    )


class Block(nn.Module):
    """Convolution, batch normalization, ReLU; Q/DQ behind that, or before ReLU."""

    def __init__(self, inputs: int, outputs: int, bits: Bits, *, stride: int, norm: bool, early: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        self.kernel, self.early = kernel(self.conv.weight, bits), early
        self.norm: nn.Module = nn.Identity()
        if norm:
            moments: Any = nn.BatchNorm2d(outputs)
            moments.running_var.uniform_(0.3, 1)
            moments.running_mean.normal_(0, 0.1)
            self.norm = moments
        self.out = activation(bits, 4, positive=not early)

    def forward(self, x: Any) -> Any:
        """Through the block."""
        conv = self.conv
        y = self.norm(nn.functional.conv2d(x, self.kernel(conv.weight), conv.bias, conv.stride, conv.padding))
        return torch.relu(self.out(y)) if self.early else self.out(torch.relu(y))


class Network(nn.Module):
    """Two blocks with a residual between them, pooling and two linear layers."""

    def __init__(self, bits: Bits, *, norm: bool = False, early: bool = False, width: int = 32) -> None:
        super().__init__()
        self.into = activation(bits, 4)
        self.first = Block(3, width, bits, stride=2, norm=norm, early=early)
        self.second = Block(width, width, bits, stride=1, norm=norm, early=early)
        self.sum = activation(bits, 6, positive=True)
        self.pool = nn.MaxPool2d(2)
        self.hidden, self.head = nn.Linear(width * SIDE * SIDE // 16, 64), nn.Linear(64, CLASSES)
        self.kernels = nn.ModuleList(kernel(layer.weight, bits) for layer in (self.hidden, self.head))
        self.outs = nn.ModuleList([activation(bits, 4), activation(bits, 2)])

    def forward(self, x: Any) -> Any:
        """Images to classes."""
        x = self.first(self.into(x))
        x = self.pool(self.sum(torch.relu(x + self.second(x)))).flatten(1)
        for layer, fake, out in zip((self.hidden, self.head), self.kernels, self.outs, strict=True):
            x = out(nn.functional.linear(x, fake(layer.weight), layer.bias))
        return x


def by_torch_ao(backend: str) -> nn.Module:
    """The same kind of network as `torch.ao.quantization` prepares it."""
    from torch.ao import quantization as ao

    layers = nn.Sequential(
        ao.QuantStub(),
        nn.Conv2d(3, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * SIDE * SIDE // 16, CLASSES),
        ao.DeQuantStub(),
    )
    layers.train()
    quantization: Any = ao  # which has no types
    model: nn.Module = quantization.fuse_modules_qat(layers, [["1", "2", "3"], ["4", "5", "6"]])
    model.qconfig = quantization.get_default_qat_qconfig(backend, version=0)  # later versions do not export
    quantization.prepare_qat(model, inplace=True)
    for _ in range(5):
        model(torch.randn(8, 3, SIDE, SIDE))
    model.apply(ao.disable_observer)
    return model.eval()


FORMS: Mapping[str, Callable[[], nn.Module]] = {
    "int8 per channel": lambda: Network(Bits()),
    "int8 per tensor": lambda: Network(Bits(per_channel=False)),
    "activations 0..127": lambda: Network(Bits(high=127)),
    "activations -128..127": lambda: Network(Bits(-128, 127)),
    "weights -127..127": lambda: Network(Bits(weight_low=-127)),
    "batch normalization": lambda: Network(Bits(), norm=True),
    "Q/DQ before ReLU": lambda: Network(Bits(), early=True),
    "6 bits": lambda: Network(Bits(0, 63, -32, 31)),
    "4 bits": lambda: Network(Bits(0, 15, -8, 7)),
    "torch.ao, fbgemm": lambda: by_torch_ao("fbgemm"),
    "torch.ao, qnnpack": lambda: by_torch_ao("qnnpack"),
}


def exports(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every form by every exporter that takes it."""
    images = (torch.randn(1, 3, SIDE, SIDE),)
    for form, make in FORMS.items():
        for exporter in ("TorchScript", "dynamo"):
            torch.manual_seed(0)
            path = folder / f"{form} {exporter}.onnx".replace(" ", "_").replace("/", "").replace(",", "")
            options: dict[str, Any] = {"external_data": False} if exporter == "dynamo" else {}
            opset = 18 if exporter == "dynamo" else 17
            try:
                with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
                    warnings.simplefilter("ignore")
                    torch.onnx.export(
                        make().eval(),
                        images,
                        str(path),
                        opset_version=opset,
                        dynamo=exporter == "dynamo",
                        verbose=False,
                        **options,
                    )
            except Exception as error:  # an exporter raises whatever it likes
                print(f"{form}, {exporter}: not exported ({type(error).__name__})")
                continue
            yield f"{form}, {exporter}", path


def last_step(path: Path) -> float | None:
    """The scale of the output; None where it is not quantized."""
    graph = load(path)
    node = graph.outputs[0].inputs[0]
    scale = node.inputs[1] if node.op == "DequantizeLinear" else None
    return float(weight(scale).reshape(-1)[0]) if scale is not None and is_constant(scale) else None


def dequantized_weights(path: Path) -> int:
    """How many layers still read a weight through DequantizeLinear."""
    graph = load(path)
    made = {n.outputs[0].name for n in graph.nodes if n.op == "DequantizeLinear" and is_constant(n.inputs[0])}
    return sum(node.op in LAYERS and node.inputs[1].name in made for node in graph.nodes)


def measure(form: str, path: Path, target: Path, threads: int, seconds: float) -> Row:
    """Fold a model, and hold it against what it was."""
    optimize(path, target, options=Options(threads=threads, seconds=0.2, force=True))
    plain, fused, folded = (
        Session(path, threads=threads, optimize=False),
        Session(path, threads=threads),
        Session(target, threads=threads),
    )
    (spec,) = fused.inputs
    shape = [size if isinstance(size, int) else 1 for size in spec.shape or ()]
    step, most = last_step(target), 0.0
    moved: list[float] = []
    for seed in range(8):
        feeds = {spec.name: np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}
        (want,), (have,) = plain.run(feeds).values(), folded.run(feeds).values()
        gaps = np.abs(want - have)
        most = max(most, float(gaps.max()))
        moved.append(float((gaps > 1e-6 * np.abs(want).max()).mean()))
    timing = interleave([fused, folded], feeds, seconds=seconds)[1]
    before, after = (len(onnx.load(file).graph.node) for file in (path, target))
    return Row(
        form,
        before,
        after,
        left=dequantized_weights(target),
        steps=None if step is None else most / step,
        moved=float(np.mean(moved)),
        speedup=timing.speedup,
        bytes=target.stat().st_size / path.stat().st_size,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", type=Path, help="other Q/DQ models")
    parser.add_argument("--out", type=Path, help="folder to keep the models in")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{'form':44} {'nodes':>11} {'left':>5} {'steps':>6} {'moved':>7} {'speed':>6} {'size':>6}")
        for form, path in [*exports(folder), *((path.name, path) for path in asked.models)]:
            row = measure(form, path, folder / f"folded_{path.name}", asked.threads, asked.seconds)
            steps = "-" if row.steps is None else f"{row.steps:.2f}"
            print(
                f"{form:44} {row.nodes:5} > {row.folded:3} {row.left:5} {steps:>6} {100 * row.moved:6.2f}% "
                f"{row.speedup:5.2f}x {100 * row.bytes:5.1f}%",
                flush=True,
            )
            rows.append(row)
    if asked.json is not None:
        asked.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
