"""Attention masks that are low enough, and no lower."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxq.graph import Graph, Tensor
from onnxq.layers import is_masking
from onnxq.pipeline import Close, Context, Promise
from onnxq.rewrite import Change
from onnxq.spec import Fact


@dataclass(frozen=True)
class BoundMasks:
    """Raise an attention mask of -3e38 or -inf to what already hides a position.

        Softmax(scores + mask) => Softmax(scores + Max(mask, bound))

    exp of a score far below the largest is a denormal number in the runtime's kernel, and processors compute with these
    many times slower: half of a quantized encoder's time on padded text. The plan names the sums, with a bound that
    leaves a hidden position less than a float32 can show beside 1; it does so only where the scores were seen to stay
    close enough together. Leaves all others alone.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NORMAL})
    gives: ClassVar[frozenset[Fact]] = frozenset()
    promise: ClassVar[Promise] = Close(rtol=1e-5)

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each sum; a mask that several share is bounded once."""
        assert context.plan is not None
        bounded: dict[str, Tensor] = {}
        for node in [n for n in graph.nodes if is_masking(n) and n.name in context.plan.masks]:
            choice = context.plan.masks[node.name]
            side = next((i for i, t in enumerate(node.inputs) if t.name == choice.mask), None)
            if side is None:
                continue  # bounded already
            mask = node.inputs[side]
            if mask.name not in bounded:
                limit = graph.constant(f"{mask.name}_bound", np.asarray(choice.bound, np.float32))
                bounded[mask.name] = graph.variable(f"{mask.name}_bounded", mask.dtype, mask.shape)
                graph.add("Max", [mask, limit], [bounded[mask.name]], name=f"{mask.name}_max")
            node.inputs[side] = bounded[mask.name]
            yield Change(node.name, node.op, "Max", f"Mask '{mask.name}' ends at {choice.bound:g}: denormals are slow.")
