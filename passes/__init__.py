"""The passes, in the order in which they run, with the reason beside a line that needs one."""

from __future__ import annotations

if __name__ != "onnxq.passes":
    raise ImportError(
        f"Import this package as onnxq.passes, not as {__name__}: a second copy of every class would load."
    )

from onnxq.passes.balance import Balance
from onnxq.passes.bound_masks import BoundMasks
from onnxq.passes.find_fake_quant import FindFakeQuant
from onnxq.passes.fold_constants import FoldConstants
from onnxq.passes.fold_focus import FoldFocus
from onnxq.passes.fold_integer import FoldInteger
from onnxq.passes.fuse_activations import FuseActivations
from onnxq.passes.fuse_attention import FuseAttention
from onnxq.passes.fuse_batchnorm import FuseBatchnorm
from onnxq.passes.fuse_norms import FuseNorms
from onnxq.passes.fuse_pad import FusePad
from onnxq.passes.half_precision import HalfPrecision
from onnxq.passes.halve_weights import HalveWeights
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.passes.keep_float import KeepFloat
from onnxq.passes.merge_clips import MergeClips
from onnxq.passes.merge_linear import MergeLinear
from onnxq.passes.pack_weights import PackWeights
from onnxq.passes.pad_channels import PadChannels
from onnxq.passes.quantize_bodies import QuantizeBodies
from onnxq.passes.quantize_dynamic import QuantizeDynamic
from onnxq.passes.quantize_embeddings import QuantizeEmbeddings
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.passes.regain_weights import RegainWeights
from onnxq.passes.remove_identity import RemoveIdentity
from onnxq.passes.restore_weights import RestoreWeights
from onnxq.passes.scale_weights import ScaleWeights
from onnxq.passes.settle_qdq import SettleQdq
from onnxq.passes.settle_shapes import SettleShapes
from onnxq.passes.standard_qdq import StandardQdq
from onnxq.passes.sum_residuals import SumResiduals
from onnxq.passes.turn_weights import TurnWeights
from onnxq.passes.unsigned_activations import UnsignedActivations
from onnxq.pipeline import Pass

NORMALIZE: tuple[Pass, ...] = (
    FoldConstants(),  # first: weights that reach a layer through Constant, Transpose or Cast become weights
    RemoveIdentity(),
    FusePad(),
    FuseBatchnorm(),
)
"""What every model goes through before anybody decides about it."""

FASTER: tuple[Pass, ...] = (
    FuseActivations(),
    FuseNorms(),
    SumResiduals(),  # after the norms are one operator: it looks for them
    FuseAttention(),
    SettleShapes(),  # after attention, which joins and parts axes that were parted and joined
    FoldFocus(),
    MergeLinear(),  # after attention, which looks for q, k and v behind layers of their own
)
"""What makes some models faster on some machines; each is kept where it was measured to."""

BALANCE: tuple[Pass, ...] = (Balance(),)
"""What the ranges of a plan are collected after: channels that share a scale are made alike."""

QUANTIZE: tuple[Pass, ...] = (
    BoundMasks(),
    HalfPrecision(),  # before weights go into integers: their scales are as wide as what they are multiplied with
    HalveWeights(),
    QuantizeEmbeddings(),
    QuantizeDynamic(),
    QuantizeWeights(),
    QuantizeBodies(),
    InsertQdq(),  # last: only static operators are written as Q/DQ
)
"""Write the plan into the graph; each pass takes the nodes of its own treatment."""

FIND: tuple[Pass, ...] = (StandardQdq(), FindFakeQuant())
"""What a model goes through that was trained with quantization, before it is normalized: weights stay integers."""

SETTLE: tuple[Pass, ...] = (
    TurnWeights(),
    RegainWeights(),
    ScaleWeights(),  # after that: it wants DequantizeLinear right before the layer
    SettleQdq(),
)
"""What a model goes through that brings Q/DQ along, before it is folded."""

FOLD: tuple[Pass, ...] = (
    UnsignedActivations(),  # before folding: the kernels take unsigned activations only
    FoldInteger(),
    MergeClips(),  # after folding, which writes some
    PackWeights(),  # after folding, which takes those whose input is quantized
    PadChannels(),  # after folding: only integer convolutions want channels in fours
    RestoreWeights(),  # after folding: what is still dequantized found no kernel
    KeepFloat(),  # after that: its weights are floats again
)
"""From Q/DQ to the operators that the target runs."""

PIPELINES = {
    "normalize": NORMALIZE,
    "faster": FASTER,
    "balance": BALANCE,
    "quantize": QUANTIZE,
    "find": FIND,
    "settle": SETTLE,
    "fold": FOLD,
}

__all__ = ["BALANCE", "FASTER", "FIND", "FOLD", "NORMALIZE", "PIPELINES", "QUANTIZE", "SETTLE"]
