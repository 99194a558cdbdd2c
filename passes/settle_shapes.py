"""Shapes that are put together on each run although the graph tells them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxq.axes import Shape
from onnxq.graph import Graph, Node, Tensor, is_constant
from onnxq.pipeline import Context, Exact, Promise
from onnxq.rewrite import Change, maker, replace_output
from onnxq.sizes import read_sizes
from onnxq.spec import Fact


@dataclass(frozen=True)
class SettleShapes:
    """Write the shape of a Reshape as a constant, in which 0 keeps an axis.

        Reshape(x, Concat(Shape(x)[0], Shape(x)[1], 12, 32)) => Reshape(x, [0, 0, 12, 32])
        Reshape(Reshape(x, s), [0, 0, 384])                  => Reshape(x, [0, 0, 384])
        Reshape(x, Shape(x))                                 => x

    The small operators that put the shape together cost as much time as large ones on short inputs. Leaves alone what
    the graph does not tell, and what a file with `allowzero` means otherwise.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset()
    gives: ClassVar[frozenset[Fact]] = frozenset()
    promise: ClassVar[Promise] = Exact()

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each Reshape that is simpler now."""
        sizes = read_sizes(graph)
        for node in [n for n in graph.nodes if n.op == "Reshape" and not n.domain]:
            source, target = _source(node.inputs[0]), sizes.of(node.outputs[0])
            if target is None:
                continue
            if target == sizes.of(source) and _removable(graph, node, source):
                replace_output(graph, node, source)
                yield Change(node.name, "Reshape", "nothing", "Its input has that shape already.")
                continue
            wish = _constant_shape(target, sizes.of(source), sizes.values.get(node.inputs[1].name) or [])
            if wish is None or (source is node.inputs[0] and is_constant(node.inputs[1])):
                continue
            node.attrs.pop("allowzero", None)
            node.inputs[0] = source
            node.inputs[1] = graph.constant(f"{node.name}_shape", np.asarray(wish, np.int64))
            yield Change(node.name, "Reshape", "Reshape", f"Its shape is always {wish}.")


def _source(tensor: Tensor) -> Tensor:
    """What stands before one or several Reshapes."""
    while (node := maker(tensor, "Reshape")) is not None:
        tensor = node.inputs[0]
    return tensor


def _removable(graph: Graph, node: Node, source: Tensor) -> bool:
    return not graph.kept(node.outputs[0]) or (bool(source.inputs) and not graph.kept(source))


def _constant_shape(target: Shape, source: Shape | None, given: Shape) -> list[int] | None:
    """The shape with 0 for an axis that keeps its size and -1 for one that was -1; None where that is not enough."""
    wish: list[int] = []
    for axis, size in enumerate(target):
        if isinstance(size, int):
            wish.append(size)
        elif source is not None and axis < len(source) and source[axis] == size:
            wish.append(0)
        elif axis < len(given) and given[axis] == -1:
            wish.append(-1)
        else:
            return None
    return wish if 0 not in [size for size in target if isinstance(size, int)] else None
