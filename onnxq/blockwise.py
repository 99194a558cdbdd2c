"""Weights in blocks rounded with data: layer after layer, each for what the rounded layers before it hand on.

    float model    ── x ──┐
                          ├─ Gram matrices ── round the layers that read x ── next
    rounded model  ── y ──┘

Rounding sees y, for that is what a layer will read, and aims at what the layer makes of x and y halfway between: so a
layer also makes up for the errors before it, but not for more than its few samples show.

Frantar et al., GPTQ, arXiv:2210.17323; Li et al., GPTAQ, arXiv:2504.02692.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from onnxq.calibration.collect import Progress, silent, unmasked
from onnxq.calibration.data import Data, mask_of
from onnxq.errors import DataError
from onnxq.graph import Array, Graph, weight
from onnxq.layers import Layer
from onnxq.nbits import blocked_layers
from onnxq.numerics.formats import FORMATS
from onnxq.numerics.rounding.blocks import Blocked, with_integers
from onnxq.numerics.rounding.gptq import Ahead, gptq
from onnxq.numerics.rounding.shrinkage import shrinkage, shrunk
from onnxq.plan import Plan
from onnxq.recipe import Weight
from onnxq.relay import Relay
from onnxq.search.region import successors
from onnxq.shelf import Shelf
from onnxq.weights import as_matrix, blocked_weight, matrix_shape, shelf_name

Float64Array = NDArray[np.float64]

HALFWAY = 0.5
"""How far a layer goes to make up for the errors before it. All the way fits the noise of the samples."""

DAMPING = 0.01
"""Share of the mean square of all inputs that is added to that of each."""

PART = 1 << 24
"""Weights that are rounded at a time: float64 copies of them are made."""

ENOUGH = 2
"""Rows for each input from which on it is no chance that errors cancel on them."""

LOUD = 1.0
"""How much noise 8-bit activations may add beside that of the weight, before a kernel that rounds none is taken."""

ROWS = 512
"""Rows of a layer's input on which that is measured."""


@dataclass(frozen=True, eq=False)
class View:
    """What layers that read one tensor see of the data.

    Attributes:
        gram: (inputs, inputs), sum of y^T y in the rounded model.
        moved: sum of y^T (x - y), where x is what the float model has there.
        rows: some of the y.
        count: how many y there were.
    """

    gram: Float64Array
    moved: Float64Array
    rows: Array
    count: int

    @property
    def tells_enough(self) -> bool:
        """Whether there are enough rows to tell what cancels from what does so by chance."""
        return self.count >= ENOUGH * len(self.gram)

    @cached_property
    def ahead(self) -> Ahead:
        """How the inputs make up for each other's errors."""
        return Ahead.of(self.gram, damping=DAMPING, act_order=True)

    @cached_property
    def _change(self) -> Float64Array | None:
        """HALFWAY from the identity to cross^T gram^-1, less the identity; None where nothing was rounded before."""
        if not self.moved.any():
            return None
        ridge = DAMPING * self.gram.trace() / max(len(self.gram), 1) or 1.0
        damped = self.gram + ridge * np.eye(len(self.gram))
        return np.asarray(HALFWAY * scipy.linalg.solve(damped, self.moved, assume_a="pos")).T

    def aim(self, exact: Float64Array) -> Float64Array:
        """From a weight w towards the one that makes of y what w makes of x, as far as that is to be believed.

        argmin of |y w'^T - x w^T|^2 = w cross^T gram^-1
        """
        return exact if self._change is None else exact + exact @ self._change


@dataclass(frozen=True)
class Work:
    """A model whose weights are rounded with data.

    Attributes:
        graph: the float model, with types.
        rounded: the same with `MatMulNBits`, whose weights come from the shelf.
        plan: which layers are rounded, and how.
        shelf: where rounded weights go; what lies there already is not rounded again.
        data: what to calibrate on; None to round each weight for itself.
        threads: of the runtime.
        progress: told after each layer.
    """

    graph: Graph
    rounded: Graph
    plan: Plan
    shelf: Shelf
    data: Data | None
    threads: int = 0
    progress: Progress = silent

    @property
    def settings(self) -> Weight:
        """What the recipe says about weights."""
        return self.plan.recipe.weight

    def run(self) -> dict[str, int]:
        """Round every weight. Returns the layers for which a kernel is better that rounds no activations, and 0."""
        groups = self._groups()
        if self.data is None:
            self._alone([layer for layers in groups.values() for layer in layers])
            return {}
        batches = list(self.data.batches())
        exact, rounded = (Relay.start(graph, batches, self.threads) for graph in (self.graph, self.rounded))
        total, done, levels = sum(map(len, groups.values())), 0, dict[str, int]()
        nodes = successors(self.graph, self.rounded)
        for name, layers in groups.items():
            pairs = zip(batches, exact.reach(name), rounded.reach(name), strict=True)
            view = self._view(layers[0], pairs, max(1, ROWS // len(batches)))
            for layer in layers:
                loud, node = self._round(layer, view) > LOUD, nodes[layer.node.name]
                if loud and node.attrs.get("bits") == 4:
                    levels[layer.node.name] = node.attrs["accuracy_level"] = 0
                done += 1
                self.progress("round", done, total)
        return levels

    def _alone(self, layers: Sequence[Layer]) -> None:
        """Round each weight for itself; progress is told in bytes."""
        sizes = [int(np.prod(matrix_shape(layer))) * np.dtype(layer.weight.dtype).itemsize for layer in layers]
        for place, layer in enumerate(layers):
            bits = self.plan.nodes[layer.node.name].bits
            name = shelf_name(layer, bits)
            if name not in self.shelf:
                self.shelf.put(name, blocked_weight(layer, self.settings, bits))
            self.progress("bytes", sum(sizes[: place + 1]), sum(sizes))

    def _groups(self) -> dict[str, list[Layer]]:
        """Layers by the tensor that they read, in order."""
        found: dict[str, list[Layer]] = {}
        for layer in blocked_layers(self.graph, self.plan.nodes):
            found.setdefault(layer.data.name, []).append(layer)
        return found

    def _view(self, layer: Layer, pairs: Iterator[tuple[Mapping[str, Array], Array, Array]], most: int) -> View:
        """`most` is how many rows of a batch are kept."""
        halves, moved, kept, count = [np.zeros(()), np.zeros(())], np.zeros(()), list[Array](), 0
        for number, (feeds, exact, rounded) in enumerate(pairs):
            x, y = (rows_of(value, feeds, layer) for value in (exact, rounded))
            finite = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
            x, y = x[finite], y[finite]
            halves[number % 2], moved = halves[number % 2] + y.T @ y, moved + y.T @ (x - y)
            count += len(y)
            kept.append(y[:: max(1, -(-len(y) // most))].astype(np.float32))
        rows = np.concatenate(kept)
        if not len(rows):
            raise DataError(
                f"Tensor '{layer.data.name}' is NaN or infinite for all of the data. Check the preprocessing."
            )
        gram = np.asarray(halves[0] + halves[1])
        return View(believed(halves, gram), np.asarray(moved), rows[:ROWS], count)

    def _round(self, layer: Layer, view: View) -> float:
        """Put the rounded weight on the shelf; noise of 8-bit activations over that of the weight."""
        bits = self.plan.nodes[layer.node.name].bits
        name, exact = shelf_name(layer, bits), as_matrix(layer, weight(layer.weight))
        found = self.shelf.get(name)
        if found is None:
            found = blocked_weight(layer, self.settings, bits, view.gram.diagonal())
            if self.settings.method in ("auto", "gptq"):
                found = cancelling(exact, found, view)
            self.shelf.put(name, found)
        return activation_noise(found, np.asarray(exact, np.float32), view)


def rows_of(value: Array, feeds: Mapping[str, Array], layer: Layer) -> Float64Array:
    """What a linear layer reads, one row for each position that is no padding. Raises DataError where none fits it."""
    width = matrix_shape(layer)[1]
    if value.shape[-1:] != (width,):
        raise DataError(
            f"On the data, tensor '{layer.data.name}' has shape {list(value.shape)}, and layer '{layer.node.name}' "
            f"reads rows of {width} numbers. Give data of the shapes that the model is for."
        )
    return unmasked(value, mask_of(feeds)).reshape(-1, value.shape[-1]).astype(np.float64)


def cancelling(exact: Array, found: Blocked, view: View) -> Blocked:
    """The integers on these grids whose errors cancel at the output."""
    grid = FORMATS[f"uint{found.bits}"]
    zero = np.full(found.scale.shape, found.middle) if found.zero_point is None else found.zero_point
    parts = []
    height = max(1, PART // exact.shape[1])
    for start in range(0, len(exact), height):
        rows = slice(start, start + height)
        target = view.aim(np.asarray(exact[rows], np.float64))
        where = (found.scale[rows], zero[rows], grid)
        parts.append(gptq(target, view.gram, *where, block_size=found.block, ahead=view.ahead))
    return with_integers(found, np.concatenate(parts))


def believed(halves: Sequence[Array], gram: Float64Array) -> Float64Array:
    """The Gram matrix, with its correlations as far as those of one half of the data are those of the other.

    What chance adds to a half is smaller by as much again in the whole.
    """
    if any(half.ndim == 0 for half in halves):
        return gram
    share = shrinkage(halves[0], halves[1], least=0.0)
    return shrunk(gram, share / (2 - share))


def activation_noise(found: Blocked, exact: Array, view: View) -> float:
    """Noise of rounding a layer's input to 8 bits in blocks, over that of its rounded weight, at the output.

    Where errors cancel on few rows, that says nothing of rows to come: then the weight counts as rounded to nearest,
    with a mean square error of scale^2 / 12.
    """
    rows, seen = view.rows, found.seen()
    width = -rows.shape[1] % found.block
    blocks = np.pad(rows, ((0, 0), (0, width))).reshape(len(rows), -1, found.block)
    step = np.maximum(np.abs(blocks).max(axis=2, keepdims=True) / 127, np.finfo(np.float32).smallest_normal)
    rounded = (np.rint(blocks / step) * step).reshape(len(rows), -1)[:, : rows.shape[1]]
    own = float(np.square((rounded - rows) @ seen.T).sum())
    if view.tells_enough:
        other = float(np.square(rows @ (seen - exact).T).sum())
    else:
        other = float((np.square(found.scale) / 12 @ np.square(blocks).sum(axis=(0, 2))).sum())
    return own / other if other > 0 else 0.0
