"""The passes, in the order in which they run, with the reason beside a line that needs one."""

from __future__ import annotations

if __name__ != "onnxq.passes":
    raise ImportError(
        f"Import this package as onnxq.passes, not as {__name__}: a second copy of every class would load."
    )

from onnxq.passes.fold_constants import FoldConstants
from onnxq.passes.fold_integer import FoldInteger
from onnxq.passes.fuse_batchnorm import FuseBatchnorm
from onnxq.passes.fuse_pad import FusePad
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.passes.remove_identity import RemoveIdentity
from onnxq.pipeline import Pass

NORMALIZE: tuple[Pass, ...] = (
    FoldConstants(),  # first: weights that reach a layer through Constant, Transpose or Cast become weights
    RemoveIdentity(),
    FusePad(),
    FuseBatchnorm(),
)
"""What every model goes through before anybody decides about it."""

STATIC: tuple[Pass, ...] = (InsertQdq(),)
"""Write a plan with static integers into the graph."""

FOLD: tuple[Pass, ...] = (FoldInteger(),)
"""From Q/DQ to the operators that the target runs."""

PIPELINES = {"normalize": NORMALIZE, "static": STATIC, "fold": FOLD}

__all__ = ["FOLD", "NORMALIZE", "PIPELINES", "STATIC"]
