"""ONNX Runtime's CUDA provider: half precision, and weights in blocks of integers.

It has no integer kernels worth using: `QLinearConv` and `QLinearMatMul` run on the CPU, with copies around them. What
has a kernel in float16 is read off docs/OperatorKernels.md of the runtime; whatever is missing there would run on the
CPU in float32. The operators that can run between Q and DQ are those of TensorRT, whose models are built here too
(`--format qdq`); it takes symmetric int8 alone.
"""

from __future__ import annotations

from onnxq.targets.table import Target

NEWER = 12
"""The version of the standard operators since which Clip, Max and Min have kernels in half precision."""

COUNTS = "It counts or sums up, and half precision counts to 2048 only."
NO_KERNEL = "The CUDA provider has no kernel for it in half precision."
SQUARES = "It sums up squares or exponentials, which go past half precision."
SCALES = "Its scales are float32."
DICE = "It draws float32 numbers."

_MOVES = (
    "Flatten Identity Reshape Squeeze Transpose Unsqueeze Expand Slice Split Gather Concat DepthToSpace "
    "SpaceToDepth Tile GatherElements GatherND ReverseSequence Compress Trilu ScatterElements ScatterND Scatter"
)
MOVERS = frozenset(_MOVES.split())
"""Operators that move numbers without looking at them."""

_COMPUTES = (
    "Abs Add ArgMax ArgMin Attention AveragePool BatchNormalization Cast CastLike Ceil Conv ConvTranspose Cos Div "
    "Dropout Einsum Elu Equal Erf Exp Floor GRU Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual "
    "GroupNormalization HardSigmoid HardSwish InstanceNormalization IsNaN LRN LSTM LayerNormalization LeakyRelu Less "
    "LessOrEqual Log LogSoftmax MatMul MaxPool Mean Mod Mul Neg OneHot PRelu Pad Pow RMSNormalization RNN Reciprocal "
    "ReduceL1 ReduceMax ReduceMean ReduceMin ReduceSum Relu Resize RotaryEmbedding Round Selu Sigmoid Sign "
    "SimplifiedLayerNormalization Sin Softmax Softplus Softsign Sqrt Sub Sum Swish Tanh ThresholdedRelu Upsample Where"
)
_CONTRIBUTED = (
    "Attention BiasAdd BiasGelu BiasSoftmax BiasSplitGelu EmbedLayerNormalization FastGelu FusedMatMul Gelu "
    "GroupQueryAttention MultiHeadAttention PackedAttention QuickGelu RotaryEmbedding SkipLayerNormalization "
    "SkipSimplifiedLayerNormalization"
)

CUDA = Target(
    name="cuda",
    provider="CUDAExecutionProvider",
    layers=frozenset({"Conv", "Gemm", "MatMul"}),
    float_output=frozenset({"Conv", "Gemm", "MatMul"}),
    followers=frozenset({"Add", "AveragePool", "GlobalAveragePool"}),
    movers=frozenset({"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Resize"}),
    joins=frozenset({"Concat"}),
    absorbed=frozenset(),
    fixed={},
    activation="int8",
    stem_channels=0,
    why_float={
        "ConvTranspose": "Only Conv, Gemm and MatMul get Q/DQ.",
        "LSTM": "TensorRT has no int8 LSTM.",
        "GRU": "TensorRT has no int8 GRU.",
        "RNN": "TensorRT has no int8 RNN.",
    },
    half={
        **dict.fromkeys([*_COMPUTES.split(), *_MOVES.split()], 1),
        **dict.fromkeys([f"com.microsoft.{op}" for op in _CONTRIBUTED.split()], 1),
        **dict.fromkeys(("Clip", "Max", "Min"), NEWER),
    },
    single={
        "Range": COUNTS,
        "CumSum": COUNTS,
        "ConstantOfShape": "Its value is stored in float32.",
        "EyeLike": "Its type is stored in it.",
        "TopK": "Values that differ in float32 tie in half precision, and the order is what it is for.",
        "NonMaxSuppression": "It compares overlaps of boxes in float32 alone.",
        "RoiAlign": NO_KERNEL,
        "GridSample": NO_KERNEL,
        "ReduceSumSquare": SQUARES,
        "ReduceL2": SQUARES,
        "ReduceProd": SQUARES,
        "ReduceLogSum": SQUARES,
        "ReduceLogSumExp": SQUARES,
        "LpNormalization": SQUARES,
        "QuantizeLinear": SCALES,
        "DequantizeLinear": SCALES,
        "DynamicQuantizeLinear": SCALES,
        "RandomNormal": DICE,
        "RandomUniform": DICE,
        "RandomNormalLike": DICE,
        "RandomUniformLike": DICE,
        "Multinomial": DICE,
        "Bernoulli": DICE,
    },
)
