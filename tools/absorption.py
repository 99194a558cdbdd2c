"""What absorbing high biases could gain: channels that are always above zero, and how far ranges would shrink.

    python tools/absorption.py MODEL.onnx DATA.npz

A channel that never touches the zero of its Relu or Clip can be shifted down, and the next bias takes the shift back
(Nagel et al., Data-Free Quantization, arXiv:1906.04721, section 4.1.3). That helps where it narrows the range that all
channels share: so for each tensor between two layers it prints the end of its range before and after.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from onnxq.build import Build, prepare
from onnxq.calibration.collect import collect
from onnxq.calibration.data import open_data
from onnxq.channels import spaces
from onnxq.modelfile import load
from onnxq.recipe import Recipe

SAMPLES = 64


def main() -> int:
    """Print a line for each tensor with such channels, and how many tensors there are."""
    model, data = map(Path, sys.argv[1:3])
    source = load(model)
    build = Build(source.copy(), Recipe(), "static-int8")
    known = prepare(build).tensors
    names = [name for space in spaces(build.graph) for name in space.tensors if name in known]
    feeds = open_data(data, source.interface().inputs).take(slice(0, SAMPLES))
    for name, seen in collect(build.graph, names, feeds, threads=1).items():
        low, high = np.atleast_1d(seen.channels.low), np.atleast_1d(seen.channels.high)
        shift = np.maximum(low, 0)
        if shift.any():
            channels = f"{np.count_nonzero(shift)} of {low.size} channels"
            print(f"{name}: {channels}, {high.max():.3f} -> {(high - shift).max():.3f}")
    print(f"{model.name}: {len(names)} tensors between layers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
