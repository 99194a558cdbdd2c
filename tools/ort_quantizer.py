"""ONNX Runtime's own quantizer, as its documentation advises to use it, in a process of its own.

    python tools/ort_quantizer.py VARIANT MODEL CALIBRATION.npz OUT THREADS

All variants pre-process the model first, and none reduces the range of weights (that is meant for processors without
VNNI). The quantizer has no thread option: its sessions are given one here. Pre-processing needs the package sympy,
nbits onnx-ir.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime as ort
from zoo import Array, Items


@dataclass(frozen=True)
class Static:
    """`quantize_static`, weights int8 per channel. Texts are names in the quantizer's own enumerations.

    Args:
        method: how the ranges of activations are chosen.
        activation: the type of activations.
        symmetric: whether 0 lies in the middle of their range.
        format: Q/DQ pairs, or quantized operators.
        operators: what to quantize; all that it can where empty.
    """

    method: str = "MinMax"
    activation: str = "QUInt8"
    symmetric: bool = False
    format: str = "QDQ"
    operators: tuple[str, ...] = ()

    def quantize(self, model: Path, data: str, out: str) -> None:
        """Write the quantized model."""
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

        quantize_static(
            model,
            out,
            _Reader(data),
            quant_format=QuantFormat[self.format],
            op_types_to_quantize=list(self.operators) or None,
            per_channel=True,
            activation_type=QuantType[self.activation],
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[self.method],
            extra_options={"ActivationSymmetric": self.symmetric},
        )


@dataclass(frozen=True)
class Dynamic:
    """`quantize_dynamic`, weights int8: activations are quantized while the model runs."""

    per_channel: bool

    def quantize(self, model: Path, data: str, out: str) -> None:
        """Write the quantized model."""
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(model, out, per_channel=self.per_channel, weight_type=QuantType.QInt8)


@dataclass(frozen=True)
class Blocks:
    """`MatMulNBitsQuantizer`: weights with a scale for each block.

    Accuracy level 4 lets the kernel quantize activations to 8 bits while the model runs. Of its algorithms `default`
    and `rtn` round to nearest; only `gptq` looks at data.
    """

    bits: int
    block_size: int
    symmetric: bool = True
    algorithm: str = "default"

    def quantize(self, model: Path, data: str, out: str) -> None:
        """Write the quantized model."""
        import onnx
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        quantizer = MatMulNBitsQuantizer(
            onnx.load(model),
            bits=self.bits,
            block_size=self.block_size,
            is_symmetric=self.symmetric,
            accuracy_level=4,
            algo_config=self._config(data),
        )
        quantizer.process()
        quantizer.model.save_model_to_file(out, use_external_data_format=False)

    def _config(self, data: str) -> Any:
        """The algorithm with its own settings."""
        from onnxruntime.quantization import matmul_nbits_quantizer as own

        if self.algorithm == "hqq":
            return own.HQQWeightOnlyQuantConfig(block_size=self.block_size, bits=self.bits)
        if self.algorithm == "rtn":
            return own.RTNWeightOnlyQuantConfig()
        if self.algorithm == "k-quant":
            return own.KQuantWeightOnlyQuantConfig()
        if self.algorithm == "gptq":
            return own.GPTQWeightOnlyQuantConfig(_Reader(data), block_size=self.block_size, actorder=True)
        return None


VARIANTS: Mapping[str, Static | Dynamic | Blocks] = MappingProxyType({
    "minmax": Static(),
    "percentile": Static("Percentile"),
    "entropy": Static("Entropy"),
    "signed": Static(activation="QInt8", symmetric=True),
    "qoperator": Static(format="QOperator"),
    "sixteen": Static(activation="QUInt16"),
    "minmax-matmul": Static(operators=("MatMul",)),
    "percentile-matmul": Static("Percentile", operators=("MatMul",)),
    "dynamic": Dynamic(per_channel=True),
    "dynamic-tensor": Dynamic(per_channel=False),
    "nbits8": Blocks(8, 32),
    "nbits8-128": Blocks(8, 128),
    "nbits4": Blocks(4, 32),
    "nbits4-128": Blocks(4, 128),
    "nbits4-affine": Blocks(4, 32, symmetric=False),
    "nbits4-hqq": Blocks(4, 32, algorithm="hqq"),
    "nbits4-rtn": Blocks(4, 32, algorithm="rtn"),
    "nbits4-kquant": Blocks(4, 32, algorithm="k-quant"),
    "nbits4-gptq": Blocks(4, 32, algorithm="gptq"),
})  # fmt: skip

FOR_TRANSFORMERS = tuple(
    name for name, variant in VARIANTS.items() if not isinstance(variant, Static) or variant.operators
)
"""Variants that leave convolutions alone, or whose documentation advises against them there (dynamic)."""


def missing_packages(variant: str) -> list[str]:
    """What has to be installed for a variant beside ONNX Runtime, which does not ask for it itself."""
    needed = {"sympy": "sympy"} | ({"onnx_ir": "onnx-ir"} if isinstance(VARIANTS[variant], Blocks) else {})
    return [package for module, package in needed.items() if find_spec(module) is None]


def main(words: Sequence[str]) -> int:
    """Quantize one model. What goes wrong ends the process with the quantizer's own error."""
    variant, model, data, out, threads = words
    _limit_threads(int(threads))
    with tempfile.TemporaryDirectory() as folder:
        VARIANTS[variant].quantize(_preprocess(model, Path(folder) / "prepared.onnx"), data, out)
    return 0


def _limit_threads(threads: int) -> None:
    """Give every session of this process so many threads: the quantizer makes its own."""
    original = ort.SessionOptions

    def limited() -> Any:
        options = original()
        options.intra_op_num_threads = threads
        return options

    ort.SessionOptions = limited


def _preprocess(model: str, prepared: Path) -> Path:
    """Bring the model to what the quantizer needs, as a patient user would.

    Opset 13: below it, its per-channel models do not load. Symbolic shape inference fails on some exports
    ("Incomplete symbolic shape inference"): it is left out there.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    model = _with_opset_13(model, prepared.with_name("opset13.onnx"))
    try:
        quant_pre_process(model, prepared)
    except ImportError:  # a package is missing: no reason to give the quantizer less than it needs
        raise
    except Exception:
        quant_pre_process(model, prepared, skip_symbolic_shape=True)
    return prepared


def _with_opset_13(model: str, converted: Path) -> str:
    """The path of the model itself, or of a copy if its opset is older."""
    import onnx
    from onnx.version_converter import convert_version

    loaded = onnx.load(model, load_external_data=False)
    if next(entry.version for entry in loaded.opset_import if entry.domain in ("", "ai.onnx")) >= 13:
        return model
    onnx.save(convert_version(loaded, 13), converted)
    return str(converted)


class _Reader:
    """The items of an .npz one at a time, as the quantizer asks for them."""

    def __init__(self, path: str) -> None:
        with np.load(path) as stored:
            items = Items(dict(stored))
        self._feeds = [items.item(i) for i in range(len(items))]  # GPTQ copies its reader, and no generator can be

    def get_next(self) -> dict[str, Array] | None:
        return self._feeds.pop(0) if self._feeds else None

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return iter(self.get_next, None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
