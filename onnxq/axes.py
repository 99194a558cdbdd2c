"""Sizes of axes: a number, or a name that stands for the same number wherever it appears; and how sizes combine."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from onnxq.graph import Tensor, weight

Size = int | str
Shape = list[Size]

CUT = "~"
"""What the names of axes begin with that Slice cut out of a fixed number."""

VAGUE = frozenset({"none", "unknown", "unk", "dynamic", "dim", "n", "m"})
"""Names that exporters give to any axis."""

MOST = 16
"""An integer tensor with more numbers than this is no shape."""


@dataclass
class Sizes:
    """What is known.

    Attributes:
        shapes: the sizes of the axes of each tensor whose number of axes is known.
        values: the numbers in small integer tensors that are sizes themselves, on their way from Shape to Reshape.
    """

    shapes: dict[str, Shape] = field(default_factory=dict)
    values: dict[str, Shape] = field(default_factory=dict)

    def of(self, tensor: Tensor) -> Shape | None:
        """The sizes of a tensor's axes; None where not even their number is known."""
        return self.shapes.get(tensor.name)

    def settle(self, tensor: Tensor, found: Shape | None) -> None:
        """Remember a tensor: by numbers, else by names that were found, that are declared, or of its own."""
        stated = declared_sizes(tensor)
        if not tensor.name or (found is None and stated is None):
            return
        rank = len(found if found is not None else stated or ())
        names: Sequence[Size | None] = found if found is not None else [None] * rank
        stated = stated if stated is not None and len(stated) == rank else [None] * rank
        self.shapes[tensor.name] = [
            next((size for size in pair if isinstance(size, int)), None) or pair[0] or pair[1] or own(tensor.name, axis)
            for axis, pair in enumerate(zip(names, stated, strict=True))
        ]

    def settle_constant(self, tensor: Tensor) -> None:
        """Remember a weight, and its numbers where these may be sizes."""
        shape = [int(size) for size in tensor.shape or ()]  # type: ignore[arg-type]
        self.shapes[tensor.name] = list(shape)
        if tensor.dtype is not None and tensor.dtype.kind == "i" and len(shape) < 2 and math.prod(shape) <= MOST:
            self.values[tensor.name] = [int(number) for number in weight(tensor).reshape(-1)]


def declared_sizes(tensor: Tensor) -> list[Size | None] | None:
    """What the file or the runtime says of each axis; None for a name that says nothing, like "None" or "?"."""
    if tensor.shape is None:
        return None
    names = Counter(size for size in tensor.shape if isinstance(size, str))
    clear = {name for name, count in names.items() if count == 1 and _tells(name)}
    return [size if isinstance(size, int) or size in clear else None for size in tensor.shape]


def _tells(name: str) -> bool:
    return name.isidentifier() and name.lower() not in VAGUE and not name.startswith("unk__")


def stretch(shapes: Sequence[Shape], name: str) -> Shape:
    """The shape that operands take together; an axis about which they differ gets a name of its own.

    A table of fixed length, cut to the length of what it meets (positions, masks), does not differ from that.
    """
    rank = max(len(shape) for shape in shapes)
    padded: list[Shape] = [[*[1] * (rank - len(shape)), *shape] for shape in shapes]
    result: Shape = []
    for axis, column in enumerate(zip(*padded, strict=True)):
        larger = list(dict.fromkeys(size for size in column if size != 1)) or [1]
        number = next((size for size in larger if isinstance(size, int)), None)
        firm = [size for size in larger if not _is_cut(size)] or larger
        named = firm[0] if len(firm) == 1 else own(name, axis)
        result.append(named if number is None else number)
    return result


def own(name: str, axis: int, cut: bool = False) -> str:
    """A name for an axis of which nothing is known; one that was cut out of a table is told apart."""
    return f"{CUT if cut else ''}{name}:{axis}"


def _is_cut(size: Size) -> bool:
    return isinstance(size, str) and size.startswith(CUT)


def quotient(whole: Sequence[Size], part: Sequence[Size]) -> Size | None:
    """What has to be multiplied with the sizes of a part to give the whole; None where names do not cancel out."""
    names = Counter(size for size in whole if isinstance(size, str))
    names.subtract(size for size in part if isinstance(size, str))
    left = [name for name, count in names.items() if count]
    count = math.prod(size for size in whole if isinstance(size, int))
    divisor = math.prod(size for size in part if isinstance(size, int))
    if divisor == 0 or count % divisor or any(names[name] != 1 for name in left):
        return None
    if not left:
        return count // divisor
    return left[0] if len(left) == 1 and count == divisor else None
