"""Write a Llama-shaped decoder of any size with random weights, one piece of a weight in memory at a time.

    python tools/make_llama.py OUT.onnx [--preset tiny|1b|7b|8b] [--dtype float32|float16] [--seed N]
                               [--no-cache] [--tied] [--hidden N] [--layers N] ...

It stands in for a language model whose weights are elsewhere: graph, names, shapes and bytes are those of an export,
values are normal with a deviation of 1/sqrt(inputs), so that activations stay finite. A weight depends on its name,
its shape and the seed alone. All weights go to OUT.onnx.data, each at a multiple of 4096 bytes.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO
from zlib import crc32

import numpy as np
from llama_graph import ELEMENT, Shape, decoder
from llama_weights import Weight
from onnx import ModelProto, TensorProto, helper
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from onnxq.errors import OutputError
from onnxq.modelfile import check_output, replacing

PRESETS: Mapping[str, Shape] = MappingProxyType({
    "tiny": Shape(hidden=64, layers=2, heads=4, kv_heads=2, intermediate=176, vocab=320, positions=256),
    "1b": Shape(hidden=2048, layers=16, heads=32, kv_heads=8, intermediate=8192, vocab=32000),
    "7b": Shape(hidden=4096, layers=32, heads=32, kv_heads=32, intermediate=11008, vocab=32000),  # Llama-2-7B
    "8b": Shape(hidden=4096, layers=32, heads=32, kv_heads=8, intermediate=14336, vocab=128256, positions=8192,
                theta=5e5),  # Llama-3-8B
})  # fmt: skip
NUMBERS = ("hidden", "layers", "heads", "kv_heads", "intermediate", "vocab", "positions")
OPSET, IR_VERSION = 17, 9
ALIGNMENT = 4096
"""Weights start at a page, so that they can be memory-mapped."""


class ShapeError(Exception):
    """There is no decoder of this shape."""


def make(shape: Shape, path: Path, seed: int = 0, progress: Progress | None = None) -> None:
    """Write the model and its data; neither is there before both are whole. Raises ShapeError or OutputError."""
    check(shape)
    check_output(b"", path)
    graph, weights = decoder(shape)
    _check_space(shape, weights, path)
    model = helper.make_model(
        graph, producer_name="onnxq", ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)]
    )
    with replacing(path) as file, Progress(disable=True) as silent:
        _fill(model, shape, weights, file.with_name(f"{path.name}.data"), seed, progress or silent)
        file.write_bytes(model.SerializeToString(deterministic=True))


def check(shape: Shape) -> None:
    """Raise ShapeError where the numbers do not fit each other."""
    for part, whole in (("heads", "hidden"), ("kv_heads", "heads")):
        smaller, larger = getattr(shape, part), getattr(shape, whole)
        if larger % smaller:
            raise ShapeError(f"{whole} is {larger}, which {part} = {smaller} does not divide. Change one of them.")
    if shape.head % 2:
        raise ShapeError(f"A head is {shape.head} wide; rotary positions need an even width. Change hidden or heads.")


def size(weight: Weight, shape: Shape) -> int:
    """Bytes of a weight."""
    return int(np.prod(weight.shape)) * np.dtype(shape.dtype).itemsize


def _check_space(shape: Shape, weights: Mapping[str, Weight], path: Path) -> None:
    needed = sum(size(weight, shape) + ALIGNMENT for weight in weights.values())
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise OutputError(
            f"'{path.parent}' has {free / 1e9:.2f} GB left, and the model takes {needed / 1e9:.2f} GB. Free some space."
        )


def _fill(
    model: ModelProto, shape: Shape, weights: Mapping[str, Weight], file: Path, seed: int, progress: Progress
) -> None:
    """Write the weights to a file, and say in the model where they are."""
    task = progress.add_task("weights", total=sum(size(weight, shape) for weight in weights.values()))
    with open(file, "wb") as data:
        for name, weight in weights.items():
            data.write(bytes(-data.tell() % ALIGNMENT))
            place = {"location": file.name, "offset": data.tell(), "length": size(weight, shape)}
            tensor = model.graph.initializer.add(name=name, dims=weight.shape, data_type=ELEMENT[shape.dtype])
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            _write(weight, np.random.default_rng([seed, crc32(name.encode())]), shape.dtype, data)
            progress.advance(task, size(weight, shape))


def _write(weight: Weight, random: np.random.Generator, dtype: str, data: BinaryIO) -> None:
    for values in weight.chunks(random):
        data.write(values.astype(dtype, copy=False).data)


# ---- command line ----------------------------------------------------------------------------------------------------


def main(words: Sequence[str]) -> int:
    """Write a model and say what it took. 2 if that cannot be."""
    arguments = _arguments(words)
    chosen = {field.name: getattr(arguments, field.name, None) for field in fields(Shape)}
    shape = replace(PRESETS[arguments.preset], **{name: value for name, value in chosen.items() if value is not None})
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    start = time.perf_counter()
    try:
        with Progress(*columns, console=Console(stderr=True)) as progress:
            make(shape, arguments.out, arguments.seed, progress)
    except (ShapeError, OutputError) as error:
        print(error, file=sys.stderr)
        return 2
    print(_summary(shape, arguments.out, time.perf_counter() - start))
    return 0


def _summary(shape: Shape, path: Path, seconds: float) -> str:
    written = sum(file.stat().st_size for file in (path, path.with_name(f"{path.name}.data")))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    numbers = sum(int(np.prod(weight.shape)) for weight in decoder(shape)[1].values())
    return (
        f"{path}: {numbers:,} {shape.dtype} values, {written / 1e9:.4f} GB, "
        f"written in {seconds:.1f} s with {peak:.0f} MiB of memory"
    )


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write a Llama-shaped decoder with random weights.")
    parser.add_argument("out", type=Path, help="the model; its weights go to OUT.data")
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="default: tiny")
    for name in NUMBERS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=_positive, metavar="N", help="default: the preset's")
    parser.add_argument("--theta", type=float, help="base of the rotary angles; default: the preset's")
    parser.add_argument("--dtype", choices=ELEMENT, help="of weights, caches and logits; default: float32")
    parser.add_argument("--seed", type=_whole, default=0, help="default: 0")
    cache = argparse.BooleanOptionalAction
    parser.add_argument("--cache", action=cache, help="keys and values of earlier positions; default: with them")
    parser.add_argument("--tied", action="store_true", help="make the logits from the embedding table")
    return parser.parse_args(words)


def _positive(text: str) -> int:
    """A number from a command line. Raises ArgumentTypeError."""
    if not _whole(text):
        raise argparse.ArgumentTypeError("give 1 or more")
    return int(text)


def _whole(text: str) -> int:
    """A number from a command line that may be 0. Raises ArgumentTypeError."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError("give a whole number")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
