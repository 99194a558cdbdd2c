"""The standard operators of ONNX in PyTorch, opsets 7 to 23, one small function each.

Control flow, sequences, strings and random numbers are not among them; an interpreter says so when it is made.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnxq.training.operators.activations import ACTIVATIONS
from onnxq.training.operators.calls import Call, Operator
from onnxq.training.operators.convolutions import CONVOLUTIONS
from onnxq.training.operators.elementwise import ELEMENTWISE
from onnxq.training.operators.indexing import INDEXING
from onnxq.training.operators.matrices import MATRICES
from onnxq.training.operators.norms import NORMS
from onnxq.training.operators.pools import POOLS
from onnxq.training.operators.recurrent import RECURRENT
from onnxq.training.operators.reductions import REDUCTIONS
from onnxq.training.operators.resizing import RESIZING
from onnxq.training.operators.shapes import SHAPES

__all__ = ["OPERATORS", "Call", "Operator"]

OPERATORS: Mapping[str, Operator] = {
    **ACTIVATIONS,
    **CONVOLUTIONS,
    **ELEMENTWISE,
    **INDEXING,
    **MATRICES,
    **NORMS,
    **POOLS,
    **RECURRENT,
    **REDUCTIONS,
    **RESIZING,
    **SHAPES,
}
