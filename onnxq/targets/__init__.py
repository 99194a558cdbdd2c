"""One file per execution provider: a frozen table of what it runs as integers, and how."""

from onnxq.targets.cpu import CPU
from onnxq.targets.table import Target

TARGETS = {target.name: target for target in (CPU,)}

__all__ = ["CPU", "TARGETS", "Target"]
