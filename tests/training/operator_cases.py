"""One-node models for every operator: each form that an opset knows, and the awkward ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

Array = NDArray[Any]
Case = tuple[str, int, Sequence[Array | None], dict[str, Any], int]
RANDOM = np.random.default_rng(7)


def f(*shape: int) -> Array:
    """Normal numbers."""
    return RANDOM.standard_normal(shape).astype(np.float32)


def u(*shape: int) -> Array:
    """Numbers between 0.1 and 0.9."""
    return RANDOM.uniform(0.1, 0.9, shape).astype(np.float32)


def i(*values: Any) -> Array:
    """Integers of 64 bits."""
    return np.array(values, np.int64)


def s(value: Any) -> Array:
    """A float without axes."""
    return np.array(value, np.float32)


def case(op: str, opset: int, *inputs: Array | None, outputs: int = 1, **attributes: Any) -> Case:
    """A node, with its inputs."""
    return op, opset, inputs, attributes, outputs


X = f(2, 3, 4)
PICTURE = f(2, 4, 7, 6)
WHOLE = RANDOM.integers(-9, 9, (3, 4))
ZEROS = np.where(RANDOM.random((3, 4)) < 0.5, 0, WHOLE).astype(np.float32)
TRUE = RANDOM.random((3, 4)) < 0.5
ODD = np.array([np.nan, np.inf, -np.inf, 0.5, -1.5, 2.5], np.float32)
EQUAL = np.array([[1, 3, 3, 2], [5, 5, 1, 5]], np.float32)

UNARY = "Abs Atan Atanh Ceil Cos Cosh Acos Asin Asinh Erf Exp Floor Identity Neg Reciprocal Round Sign Sin Sinh Tan"
UNARY += " Log Sqrt Tanh Sigmoid Relu Softplus Softsign Elu Selu Celu LeakyRelu ThresholdedRelu HardSigmoid Shrink"
RAMPS = ("Relu", "Elu", "Celu", "Selu", "Softplus", "ThresholdedRelu")
BINARY = "Add Sub Mul Div Pow"
COMPARISONS = "Equal Greater Less GreaterOrEqual LessOrEqual"

ELEMENTWISE = [
    *(case(op, 16, u(3, 4)) for op in UNARY.split()),
    *(case(op, 16, 3 * f(3, 4)) for op in (*RAMPS, "Erf", "Round", "Floor")),
    *(case(op, 16, u(2, 3, 4), u(3, 1)) for op in (BINARY + " " + COMPARISONS).split()),
    *(case(op, 16, WHOLE, WHOLE[:1] + 20) for op in (BINARY.replace(" Pow", "") + " " + COMPARISONS).split()),
    *(case(op, 16, TRUE, TRUE[::-1]) for op in ("And", "Or", "Xor")),
    *(case(op, 18, WHOLE, WHOLE[::-1]) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    *(case(op, 13, f(3, 4), f(4), f(1)) for op in ("Max", "Min", "Sum", "Mean")),
    *(
        case("BitShift", 11, np.arange(6, dtype=np.uint8), np.full(6, 2, np.uint8), direction=d)
        for d in ("LEFT", "RIGHT")
    ),
    case("Acosh", 9, 1 + u(3)),
    case("BitwiseNot", 18, WHOLE),
    case("Cast", 13, 9 * f(5), to=TensorProto.INT32),
    case("Cast", 13, ODD[3:], to=TensorProto.BOOL),
    case("Cast", 13, WHOLE, to=TensorProto.FLOAT16),
    case("CastLike", 15, 9 * f(5), i(1)),
    case("Clip", 7, X, min=-0.5, max=0.5),
    case("Clip", 7, X, min=0.0),
    case("Clip", 11, X, s(-0.5), s(0.5)),
    case("Clip", 13, X, None, s(0.5)),
    case("Clip", 13, X),
    case("Clip", 13, X, s(0.5), s(-0.5)),
    case("Clip", 12, WHOLE, np.array(-2), np.array(3)),
    case("Div", 14, np.array([-7, 7, -7], np.int32), np.array([2, -2, -2], np.int32)),
    case("Elu", 7, X, alpha=0.3),
    case("Gelu", 20, X),
    case("Gelu", 20, X, approximate="tanh"),
    case("HardSigmoid", 7, 4 * X, alpha=0.3, beta=0.4),
    case("HardSwish", 14, 4 * X),
    case("IsInf", 10, ODD),
    case("IsInf", 10, ODD, detect_negative=0),
    case("IsInf", 10, ODD, detect_positive=0),
    case("IsNaN", 13, ODD),
    case("LeakyRelu", 7, X, alpha=0.3),
    case("Mish", 18, 3 * X),
    case("Mod", 13, np.array([-7, 7, -7, 7]), np.array([3, -3, -3, 3])),
    case("Mod", 13, np.array([-7, 7, -7, 7]), np.array([3, -3, -3, 3]), fmod=1),
    case("Mod", 13, f(5), f(5), fmod=1),
    case("Not", 7, TRUE),
    case("PRelu", 9, X, f(3, 1)),
    case("Pow", 13, u(3), i(2)),
    case("Pow", 13, i(2, 3), s(2.0)),
    case("Selu", 7, X, alpha=1.5, gamma=1.1),
    case("Shrink", 9, X, lambd=0.4, bias=0.2),
    case("Where", 16, TRUE, f(3, 4), f(4)),
    case("Where", 16, TRUE, WHOLE, i(7)),
    case("Affine", 7, X, alpha=2.0, beta=0.5),
    case("ImageScaler", 7, PICTURE, scale=2.0, bias=[1.0, 2.0, 3.0, 4.0]),
]

SOFTMAXES = [
    case(op, opset, X, **attributes)
    for op in ("Softmax", "LogSoftmax", "Hardmax")
    for opset, attributes in ((11, {}), (11, {"axis": 2}), (11, {"axis": 0}), (13, {}), (13, {"axis": 1}))
]

SHAPES = [
    case("Concat", 13, X, f(2, 1, 4), axis=1),
    case("Concat", 13, X, X, axis=-1),
    case("ConstantOfShape", 9, i(2, 3)),
    case("ConstantOfShape", 9, i(2, 3), value=numpy_helper.from_array(i(5))),
    case("Crop", 7, PICTURE, border=[1, 2, 1, 0]),
    case("Crop", 7, PICTURE, border=[1, 2, 1, 0], scale=[3, 2]),
    case("DepthToSpace", 13, PICTURE, blocksize=2),
    case("DepthToSpace", 13, PICTURE, blocksize=2, mode="CRD"),
    case("Dropout", 10, X, ratio=0.5),
    case("Dropout", 13, X, outputs=2),
    case("Expand", 13, f(3, 1), i(2, 1, 4)),
    case("Expand", 13, WHOLE, i(1)),
    case("EyeLike", 9, WHOLE, k=1),
    case("EyeLike", 9, WHOLE, dtype=TensorProto.FLOAT, k=-1),
    case("Flatten", 13, X),
    case("Flatten", 13, X, axis=0),
    case("Flatten", 13, X, axis=-1),
    case("Pad", 10, PICTURE, pads=[0, 0, 1, 2, 0, 0, 3, 0], value=1.5),
    case("Pad", 10, PICTURE, pads=[0, 0, 1, 2, 0, 0, 3, 0], mode="reflect"),
    case("Pad", 13, PICTURE, i(0, 1, 1, -1, 0, 0, -2, 1), s(0.5)),
    case("Pad", 13, PICTURE, i(0, 0, 1, 2, 0, 1, 3, 0), mode="edge"),
    case("Pad", 13, WHOLE, i(1, 0, 0, 1)),
    case("Pad", 18, PICTURE, i(2, 1, 1, 3), None, i(-1, 2), mode="reflect"),
    case("Pad", 19, PICTURE, i(2, 1, 1, 3), None, i(3, 1), mode="wrap"),
    case("Range", 11, np.array(2), np.array(11), np.array(3)),
    case("Range", 11, np.array(5), np.array(-2), np.array(-2)),
    case("Range", 11, s(0.5), s(3.0), s(0.4)),
    case("Reshape", 13, X, i(0, -1)),
    case("Reshape", 14, f(0, 3), i(3, 0), allowzero=1),
    case("Reshape", 14, f(1), i()),
    case("ReverseSequence", 10, X, i(1, 2, 0)),
    case("ReverseSequence", 10, X, i(3, 1), time_axis=1, batch_axis=0),
    case("Shape", 13, X),
    case("Shape", 15, X, start=1, end=-1),
    case("Size", 13, X),
    case("Slice", 9, X, starts=[1, 0], ends=[3, -1], axes=[1, 2]),
    case("Slice", 9, X, starts=[0, 1], ends=[9, 2]),
    case("Slice", 13, X, i(-1, 3), i(-1000, 0), i(1, 2), i(-1, -2)),
    case("Slice", 13, X, i(0), i(2**62), i(-1), i(2)),
    case("Slice", 13, X, i(2), i(1), i(2)),
    case("SpaceToDepth", 13, PICTURE[:, :, :6], blocksize=2),
    case("Split", 11, X, axis=1, split=[1, 2], outputs=2),
    case("Split", 11, X, axis=2, outputs=2),
    case("Split", 13, X, i(1, 2), axis=1, outputs=2),
    case("Split", 18, X, axis=1, num_outputs=2, outputs=2),
    case("Squeeze", 11, f(2, 1, 3, 1), axes=[1]),
    case("Squeeze", 13, f(2, 1, 3, 1), i(1, -1)),
    case("Squeeze", 13, f(2, 1, 3, 1)),
    case("Tile", 13, X, i(2, 1, 3)),
    case("Transpose", 13, X),
    case("Transpose", 13, X, perm=[1, 2, 0]),
    case("Trilu", 14, PICTURE),
    case("Trilu", 14, PICTURE, np.array(-1), upper=0),
    case("Unsqueeze", 11, X, axes=[0, 4]),
    case("Unsqueeze", 13, X, i(-1, 1)),
]

INDEXING = [
    *(case(op, 13, EQUAL) for op in ("ArgMax", "ArgMin")),
    *(case(op, 13, EQUAL, axis=-1, keepdims=0, select_last_index=1) for op in ("ArgMax", "ArgMin")),
    case("Compress", 11, X, np.array([True, False, True]), axis=1),
    case("Compress", 11, X, np.array([False, True, True])),
    case("CumSum", 14, X, np.array(1)),
    case("CumSum", 14, X, np.array(-1), exclusive=1, reverse=1),
    case("CumSum", 14, WHOLE.astype(np.int32), np.array(0), reverse=1),
    case("Gather", 13, X, i([0, -1], [2, 1]), axis=1),
    case("Gather", 13, X, np.array(-2), axis=2),
    case("Gather", 13, WHOLE, i(1)),
    case("GatherElements", 13, X, i([[0, -1, 1, 2]], [[1, 1, 0, 0]]), axis=1),
    case("GatherND", 13, X, i([0, 1], [1, -1])),
    case("GatherND", 13, X, i([2], [0]), batch_dims=1),
    case("NonZero", 13, ZEROS),
    case("OneHot", 11, i([0, 2], [-1, 1]), np.array(3), np.array([0.5, 2], np.float32)),
    case("OneHot", 11, i(0, 2), i(3), i(0, 1), axis=0),
    case("Scatter", 10, X, i([[0, 2, 1, 1]], [[1, 1, 0, 0]]), f(2, 1, 4), axis=1),
    case("ScatterElements", 13, X, i([[0, -1, 1, 1]], [[1, 1, 0, 0]]), f(2, 1, 4), axis=1),
    *(
        case("ScatterElements", 18, X, i([[0, 0], [0, 1]]), f(1, 2, 2), axis=2, reduction=how)
        for how in ("add", "mul", "max", "min")
    ),
    case("ScatterND", 13, X, i([0, 1], [1, -1]), f(2, 4)),
    *(case("ScatterND", 18, X, i([0, 1], [0, 1]), f(2, 4), reduction=how) for how in ("add", "mul", "max", "min")),
    case("TopK", 9, X, k=2, outputs=2),
    case("TopK", 11, EQUAL, i(3), outputs=2),
    case("TopK", 11, X, i(2), axis=1, largest=0, outputs=2),
]

REDUCED = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
REDUCTIONS = [
    *(case(f"Reduce{op}", 11, u(2, 3, 4), axes=[0, -1], keepdims=0) for op in REDUCED),
    *(case(f"Reduce{op}", 11, u(2, 3, 4)) for op in REDUCED),
    *(case(f"Reduce{op}", 18, u(2, 3, 4), i(1)) for op in REDUCED),
    *(case(f"Reduce{op}", 18, u(2, 3, 4), i(), noop_with_empty_axes=1) for op in ("Sum", "Mean", "Max")),
    case("ReduceMax", 13, WHOLE.astype(np.int32), axes=[1]),
    case("ReduceSum", 13, WHOLE.astype(np.int32)),
    case("ReduceMean", 13, np.array([[5, 2], [-4, -3]], np.int32), axes=[1]),
    case("ReduceSum", 13, X, i(0, 2), keepdims=0),
    case("ReduceL2", 18, s(-2.0)),
    case("ReduceL2", 13, WHOLE.astype(np.int32), axes=[0]),
]

FILTER, SEPARATE = f(5, 4, 3, 2), f(8, 1, 3, 3)
CONVOLUTIONS = [
    case("Conv", 11, PICTURE, FILTER),
    case("Conv", 11, PICTURE, FILTER, f(5), pads=[1, 1, 1, 1], strides=[2, 1]),
    case("Conv", 11, PICTURE, FILTER, f(5), pads=[1, 0, 2, 1], dilations=[2, 1]),
    case("Conv", 11, PICTURE, SEPARATE, group=4),
    *(case("Conv", 11, PICTURE, FILTER, auto_pad=p, strides=[2, 2]) for p in ("SAME_UPPER", "SAME_LOWER", "VALID")),
    case("Conv", 11, X, f(5, 3, 3), f(5), pads=[0, 1]),
    case("Conv", 11, f(1, 2, 4, 4, 4), f(3, 2, 2, 2, 2)),
    case("ConvTranspose", 11, PICTURE, f(4, 3, 3, 2), f(3)),
    case("ConvTranspose", 11, PICTURE, f(4, 3, 3, 3), strides=[2, 3], pads=[1, 0, 0, 2], output_padding=[1, 2]),
    case("ConvTranspose", 11, PICTURE, f(4, 3, 3, 3), f(6), group=2, dilations=[2, 1], pads=[1, 1, 1, 1]),
    *(
        case("ConvTranspose", 11, PICTURE, f(4, 3, 3, 3), strides=[2, 2], auto_pad=p)
        for p in ("SAME_UPPER", "SAME_LOWER")
    ),
    case("ConvTranspose", 11, PICTURE, f(4, 3, 3, 3), strides=[2, 2], output_shape=[14, 12]),
    case("ConvTranspose", 11, PICTURE, f(4, 3, 3, 3), strides=[2, 2], output_shape=[14, 12], auto_pad="SAME_UPPER"),
    case("ConvTranspose", 11, X, f(3, 2, 3), strides=[2], output_padding=[1]),
]

POOLED = ("MaxPool", "AveragePool", "LpPool")
POOLS = [
    *(case(op, 18, PICTURE, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 1, 1, 1]) for op in POOLED),
    *(case(op, 18, PICTURE, kernel_shape=[3, 2], pads=[0, 1, 2, 0]) for op in POOLED),
    *(
        case(op, 18, PICTURE, kernel_shape=[3, 3], strides=[2, 2], auto_pad=p)
        for op in POOLED
        for p in ("SAME_UPPER", "SAME_LOWER")
    ),
    *(case(op, 18, PICTURE, kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1) for op in POOLED),
    *(case(op, 12, PICTURE, kernel_shape=[3, 3], strides=[3, 3], pads=[1, 1, 1, 1], ceil_mode=1) for op in POOLED[:2]),
    *(case(op, 12, X, kernel_shape=[2]) for op in POOLED),
    *(case(op, 12, f(1, 2, 4, 4, 4), kernel_shape=[2, 2, 2], strides=[2, 2, 2]) for op in POOLED),
    *(case(op, 12, PICTURE) for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")),
    case("AveragePool", 11, PICTURE, kernel_shape=[3, 2], pads=[1, 0, 0, 1], count_include_pad=1),
    case("AveragePool", 19, PICTURE, kernel_shape=[2, 2], dilations=[2, 1], pads=[1, 1, 1, 1]),
    case(
        "AveragePool",
        19,
        PICTURE,
        kernel_shape=[3, 3],
        strides=[2, 2],
        pads=[1, 1, 1, 1],
        ceil_mode=1,
        count_include_pad=1,
    ),
    *(case(op, 19, f(1, 1, 4, 4), kernel_shape=[2, 2], strides=[5, 5], pads=[1] * 4, ceil_mode=1) for op in POOLED[:2]),
    case("MaxPool", 12, PICTURE, kernel_shape=[2, 2], dilations=[2, 3]),
    case("MaxPool", 12, PICTURE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 1], outputs=2),
    case("LpPool", 18, PICTURE, kernel_shape=[2, 2], p=3),
    case("GlobalLpPool", 7, PICTURE, p=1),
]

CHANNELS = [f(4), f(4)]
NORMS = [
    case("BatchNormalization", 7, PICTURE, *CHANNELS, f(4), u(4)),
    case("BatchNormalization", 9, PICTURE, *CHANNELS, f(4), u(4), epsilon=0.01),
    case("BatchNormalization", 15, f(3, 4), *CHANNELS, f(4), u(4)),
    case("GroupNormalization", 21, PICTURE, *CHANNELS, num_groups=2),
    case("GroupNormalization", 18, PICTURE, f(2), f(2), num_groups=2),
    case("InstanceNormalization", 7, PICTURE, *CHANNELS, epsilon=0.01),
    case("LRN", 13, f(1, 7, 3, 3), size=3, alpha=0.5, beta=0.6, bias=1.5),
    case("LayerNormalization", 17, X, f(4), f(4)),
    case("LayerNormalization", 17, X, f(3, 4), axis=1, epsilon=0.1),
    case("LayerNormalization", 17, X, f(4), f(4), outputs=3),
    case("LpNormalization", 7, X),
    case("LpNormalization", 7, X, axis=1, p=1),
    case("MeanVarianceNormalization", 13, PICTURE),
    case("MeanVarianceNormalization", 13, PICTURE, axes=[2, 3]),
    case("RMSNormalization", 23, X, f(4)),
    case("RMSNormalization", 23, X, f(3, 4), axis=1, epsilon=0.1),
]

Q, K, V = f(2, 4, 3, 8), f(2, 2, 5, 8), f(2, 2, 5, 6)
MATRICES = [
    case("Attention", 23, Q, f(2, 4, 5, 8), f(2, 4, 5, 6)),
    case("Attention", 23, Q, K, V, f(3, 5), scale=0.3, softcap=2.0),
    case("Attention", 23, Q, K, V, RANDOM.random((2, 1, 3, 5)) < 0.8),
    case("Attention", 23, Q, K, V, np.tril(np.ones((3, 5), bool), -1)),
    *(
        case("Attention", 23, Q, K, V, f(3, 5), None, None, softcap=1.0, outputs=4, qk_matmul_output_mode=m)
        for m in range(4)
    ),
    case("Attention", 23, Q, f(2, 4, 3, 8), f(2, 4, 3, 8), is_causal=1),
    case("Attention", 23, f(2, 3, 32), f(2, 5, 16), f(2, 5, 16), q_num_heads=4, kv_num_heads=2),
    case("Attention", 23, Q, K[:, :, :3], V[:, :, :3], None, f(2, 2, 4, 8), f(2, 2, 4, 6), outputs=3),
    case("Det", 11, f(2, 3, 3)),
    case("Einsum", 12, X, f(2, 4, 5), equation="b i j, b j k -> b i k"),
    case("Einsum", 12, X, equation="...ij->...ji"),
    case("Gemm", 13, f(3, 4), f(4, 5), f(5)),
    case("Gemm", 13, f(4, 3), f(5, 4), f(3, 1), transA=1, transB=1, alpha=0.5, beta=2.0),
    case("Gemm", 13, f(3, 4), f(4, 5), s(2.0)),
    case("Gemm", 13, f(3, 4), f(4, 5), alpha=0.5),
    case("MatMul", 13, X, f(4, 5)),
    case("MatMul", 13, f(4), f(2, 4, 5)),
    case("MatMul", 13, WHOLE, WHOLE.T),
]


def layer(op: str, opset: int, gates: int, count: int, *more: Array | None, **attributes: Any) -> Case:
    """A recurrent layer of four cells over five steps of a batch of two."""
    states = 3 if op == "LSTM" else 2
    weights = (f(5, 2, 3), f(count, gates * 4, 3), f(count, gates * 4, 4))
    return case(op, opset, *weights, *more, outputs=states, hidden_size=4, **attributes)


RECURRENT = [
    *(layer(op, 14, gates, 1) for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1))),
    *(layer(op, 7, g, 1, f(1, 8 * g), direction="reverse") for op, g in (("LSTM", 4), ("GRU", 3), ("RNN", 1))),
    *(
        layer(op, 14, g, 2, f(2, 8 * g), np.array([5, 3], np.int32), f(2, 2, 4), direction="bidirectional")
        for op, g in (("GRU", 3), ("RNN", 1))
    ),
    layer("LSTM", 14, 4, 2, None, np.array([2, 5], np.int32), f(2, 2, 4), f(2, 2, 4), direction="bidirectional"),
    layer("LSTM", 14, 4, 1, f(1, 32), None, None, None, f(1, 12), clip=0.5),
    layer("LSTM", 14, 4, 1, activations=["HardSigmoid", "Softsign", "Relu"]),
    layer("GRU", 14, 3, 1, f(1, 24), linear_before_reset=1),
    layer("RNN", 14, 1, 1, f(1, 8), activations=["Relu"]),
]

MODES = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
RESIZING = [
    *(
        case("Resize", 13, PICTURE, None, s([1, 1, 1.7, 0.6]), mode=mode, coordinate_transformation_mode=where)
        for mode in ("nearest", "linear", "cubic")
        for where in MODES
    ),
    *(
        case("Resize", 11, PICTURE, f(0), f(0), i(2, 4, 5, 11), mode="nearest", nearest_mode=rounding)
        for rounding in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
    ),
    case("Resize", 10, PICTURE, s([1, 1, 2, 2])),
    case("Resize", 10, PICTURE, s([1, 1, 0.6, 0.6])),
    case("Resize", 10, PICTURE, s([1, 1, 2, 1.5]), mode="linear"),
    case("Resize", 13, PICTURE, None, None, i(2, 4, 1, 12), mode="linear", coordinate_transformation_mode=MODES[3]),
    case("Resize", 13, PICTURE, None, s([1, 1, 1.5, 0.7]), mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5),
    case("Resize", 18, PICTURE, None, None, i(10, 11), axes=[2, 3], keep_aspect_ratio_policy="not_larger"),
    case(
        "Resize",
        19,
        PICTURE,
        None,
        s([1.5, 1.5]),
        axes=[2, 3],
        mode="linear",
        coordinate_transformation_mode="half_pixel_symmetric",
    ),
    case("Upsample", 7, PICTURE, scales=[1.0, 1.0, 2.0, 2.0]),
    case("Upsample", 9, PICTURE, s([1, 1, 2, 3]), mode="linear"),
    *(
        case("GridSample", 16, PICTURE, f(2, 3, 5, 2), mode=mode, padding_mode=padding, align_corners=1)
        for mode in ("bilinear", "nearest", "bicubic")
        for padding in ("zeros", "border", "reflection")
    ),
    case("GridSample", 20, PICTURE, f(2, 3, 5, 2), mode="linear"),
    case("AffineGrid", 20, f(2, 2, 3), i(2, 4, 5, 6)),
    case("AffineGrid", 20, f(2, 2, 3), i(2, 4, 5, 6), align_corners=1),
]

CASES = [*ELEMENTWISE, *SOFTMAXES, *SHAPES, *INDEXING, *REDUCTIONS, *CONVOLUTIONS, *POOLS, *NORMS, *MATRICES]
CASES += [*RECURRENT, *RESIZING]
