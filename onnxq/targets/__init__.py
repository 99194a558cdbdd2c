"""One file per execution provider: a frozen table of what it runs in which numbers, and how."""

from onnxq.targets.cpu import CPU
from onnxq.targets.cuda import CUDA
from onnxq.targets.table import Target

TARGETS = {target.name: target for target in (CPU, CUDA)}

__all__ = ["CPU", "CUDA", "TARGETS", "Target"]
