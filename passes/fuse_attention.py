"""Attention that is spelled out becomes the one operator that computes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from onnxq.axes import Size, Sizes
from onnxq.graph import Graph, Tensor, Variable, weight
from onnxq.pipeline import Close, Context, Promise
from onnxq.rewrite import Bind, Change, Either, Match, Op, Pattern, Rule, apply, maker
from onnxq.sizes import read_sizes
from onnxq.spec import Fact

HEADS_FIRST = (0, 2, 1, 3)
"""[batch, positions, heads, channels] -> [batch, heads, positions, channels]"""

POSITIONS_LAST = (0, 2, 3, 1)
"""[batch, positions, heads, channels] -> [batch, heads, channels, positions]"""

SWAP = (0, 1, 3, 2)


@dataclass(frozen=True)
class FuseAttention:
    """Write scaled dot-product attention as one operator.

        Transpose(MatMul(Softmax(MatMul(Transpose(q), Transpose(k)) * scale + mask), Transpose(v)))
            => Reshape(Attention(Reshape(q), Reshape(k), Reshape(v), Expand(mask)))

    q, k and v are [batch, positions, heads, channels]; to join the last two axes costs nothing. The mask is stretched
    to a number for each pair of positions, since the runtime's kernel stretches none. Where a graph puts 0 for NaN
    behind Softmax, for positions that may look at nothing, it does so behind the attention now. Leaves alone models
    before opset 23, types other than float32, and weights of the attention that are read elsewhere too.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset()
    gives: ClassVar[frozenset[Fact]] = frozenset()
    promise: ClassVar[Promise] = Close(rtol=1e-5)

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each attention."""
        yield from apply(RULES, graph, Work(read_sizes(graph)))


@dataclass
class Work:
    """What the rules share: the sizes of all axes, and the masks that were stretched."""

    sizes: Sizes
    masks: dict[tuple[str, Size, Size], Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Turned(Pattern):
    """A tensor behind transpositions that make up one permutation; binds what stands before them.

    Some exporters swap the last two axes by Reshape, Transpose and Reshape; these tensors are bound for `swaps`. Keys
    and values whose heads serve several queries are repeated on the way; these tensors are bound for `repeats`.
    """

    name: str
    permutation: tuple[int, ...]

    def match(self, tensor: Tensor) -> Match | None:
        """Follows the makers for as long as they only transpose."""
        found = Match()
        done: tuple[int, ...] = (0, 1, 2, 3)
        while (node := maker(tensor, ("Transpose", "Reshape"))) is not None:
            if node.op == "Transpose":
                inner, tensor = tuple(node.attrs.get("perm", ())), node.inputs[0]
            elif (repeat := REPEATED.match(tensor)) is not None and done in ((0, 1, 2, 3), SWAP):
                parts = {"repeated": tensor, "once": repeat["once"], "axes": repeat["axes"]}
                found |= Match({f"{self.name}_{what}": part for what, part in parts.items()})
                inner, tensor = (0, 1, 2, 3), repeat["once"]
            elif (swap := SWAPPED.match(tensor)) is not None and "straight" not in found.tensors:
                found |= swap | Match({"swapped": tensor})
                inner, tensor = SWAP, swap["straight"]
            else:
                return None
            if len(inner) != 4:
                return None
            done = tuple(inner[axis] for axis in done)
            if done == self.permutation:
                return found | Match({self.name: tensor})
        return None


def both(kind: str, left: Pattern, right: Pattern, name: str = "") -> Pattern:
    """An operator whose two operands may come in either order."""
    return Op(kind, (left, right), name=name, swap=True)


def scaled(inner: Pattern, name: str) -> Pattern:
    """Something times or over a constant, or as it is."""
    factor, divisor = Bind(f"{name}_factor", constant=True), Bind(f"{name}_divisor", constant=True)
    return Either((both("Mul", inner, factor), Op("Div", (inner, divisor)), inner))


SWAPPED = Op(
    "Reshape",
    (
        Op("Transpose", (Op("Reshape", (Bind("straight"), Bind("flat_shape")), name="flatten"),), name="swap"),
        Bind("shape"),
    ),
    name="unflatten",
)
REPEATED = Op(
    "Reshape",
    (
        Op("Expand", (Op("Unsqueeze", (Bind("once"), Bind("axes", constant=True))), Bind("wish"))),
        Bind("repeated_shape"),
    ),
    name="repeat",
)
PRODUCT = Op("MatMul", (scaled(Turned("q", HEADS_FIRST), "q"), scaled(Turned("k", POSITIONS_LAST), "k")), name="scores")
SCORES = scaled(PRODUCT, "scores")
SOFTMAX = Op("Softmax", (Either((both("Add", SCORES, Bind("mask")), SCORES)),), name="softmax")
GUARDED = Op("Where", (Op("IsNaN", (SOFTMAX,)), Bind("zero", constant=True), Bind("softmax_too")), name="where")
MIXED = Op("MatMul", (Either((SOFTMAX, GUARDED)), Turned("v", HEADS_FIRST)), name="mixed")
ATTENTION = Op("Transpose", (MIXED,), name="last")


def has_operator(match: Match, graph: Graph, work: Work) -> str | None:
    """Attention came with opset 23."""
    return None if graph.opset >= 23 else f"Attention came with opset 23; the model has {graph.opset}."


def plain(match: Match, graph: Graph, work: Work) -> str | None:
    """Softmax over the keys, factors of one number, float32, and the result turned back."""
    if tuple(match.nodes["last"].attrs.get("perm", ())) != HEADS_FIRST:
        return "Its result is not turned back to [batch, positions, heads, channels]."
    if match.nodes["softmax"].attrs.get("axis", -1) not in (-1, 3):
        return "Its Softmax does not run over the keys."
    if match["q"].dtype != np.float32:
        return f"It computes in {match['q'].dtype}, not in float32."
    if any(name.endswith(("_factor", "_divisor")) and weight(t).size != 1 for name, t in match.tensors.items()):
        return "It scales by more than one number."
    return None


def guards_nan(match: Match, graph: Graph, work: Work) -> str | None:
    """NaN becomes 0, in the weights themselves."""
    if "where" not in match.nodes:
        return None
    same = match["softmax_too"] is match.nodes["softmax"].outputs[0]
    return None if same and not weight(match["zero"]).any() else "It replaces NaN by something else than 0."


def read_once(match: Match, graph: Graph, work: Work) -> str | None:
    """Nobody else wants the scores or the weights."""
    for name in ("scores", "softmax", "where", "mixed"):
        if name in match.nodes:
            tensor = match.nodes[name].outputs[0]
            most = 2 if name == "softmax" and "where" in match.nodes else 1
            if len(tensor.outputs) > most or graph.kept(tensor):
                return f"'{tensor.name}' is read elsewhere too."
    return None


def heads(match: Match, work: Work, name: str) -> int:
    """How many heads q, k or v has; 0 where that is not known."""
    shape = work.sizes.of(match[name])
    count = shape[2] if shape is not None and len(shape) == 4 else 0
    return count if isinstance(count, int) else 0


def heads_known(match: Match, graph: Graph, work: Work) -> str | None:
    """The number of heads is known, and each of k and of v serves one query or as many as the others."""
    q, k, v = (heads(match, work, name) for name in "qkv")
    if not q * k * v:
        return "The number of its heads is not known."
    return None if k == v and q % k == 0 else f"{q} heads of queries meet {k} of keys and {v} of values."


def repeats(match: Match, graph: Graph, work: Work) -> str | None:
    """Unsqueeze, Expand, Reshape repeat each head, and leave batch and channels as they are."""
    for name in "kv":
        if f"{name}_once" not in match.tensors:
            continue
        once, repeated = (work.sizes.of(match[f"{name}_{what}"]) for what in ("once", "repeated"))
        if once is None or repeated is None or len(once) != 4 or len(repeated) != 4:
            return "Its keys or values are repeated in a way that is not known."
        alike = once[0] == repeated[0] and once[3] == repeated[3] and repeated[1] == heads(match, work, "q")
        if not alike or weight(match[f"{name}_axes"]).reshape(-1).tolist() != [2]:
            return "Its keys or values are repeated along something else than heads."
    return None


def swaps(match: Match, graph: Graph, work: Work) -> str | None:
    """Reshape, Transpose, Reshape do no more than to swap the last two axes."""
    if "straight" not in match.tensors:
        return None
    flat = work.sizes.of(match.nodes["flatten"].outputs[0])
    before, after = (work.sizes.of(match[name]) for name in ("straight", "swapped"))
    turned = tuple(match.nodes["swap"].attrs.get("perm", ())) == (0, 2, 1)
    known = before is not None and flat is not None and len(before) == 4 and len(flat) == 3
    if known and turned and flat[1:] == before[2:] and after == [*before[:2], before[3], before[2]]:  # type: ignore[index]
        return None
    return "Its keys go through a Reshape that may do more than swap two axes."


def build(match: Match, graph: Graph, work: Work) -> None:
    """Attention on three axes, and the result on four."""
    name, old = match.nodes["last"].name, match.output.name
    flat = [_flat(graph, match[part], work.sizes, f"{old}_{part}") for part in "qkv"]
    inputs = [*flat, *([_stretched(match, graph, work)] if "mask" in match.tensors else [])]
    joined = graph.variable(f"{old}_joined", np.dtype(np.float32), (None, None, None))
    count, groups = heads(match, work, "q"), heads(match, work, "k")
    graph.add("Attention", inputs, [joined], name=name, scale=_scale(match), q_num_heads=count, kv_num_heads=groups)
    if "where" in match.nodes:
        joined = _without_nan(match, graph, joined)
    apart = graph.constant(f"{old}_shape", np.asarray([0, 0, count, channels(work.sizes, match["v"])]))
    graph.add("Reshape", [joined, apart], [match.output], name=f"{name}_heads")


def channels(sizes: Sizes, tensor: Tensor) -> int:
    """Channels of a head; -1, which lets Reshape find out, where the graph does not tell."""
    last = (sizes.of(tensor) or [""])[-1]
    return last if isinstance(last, int) else -1


def _flat(graph: Graph, tensor: Tensor, sizes: Sizes, name: str) -> Tensor:
    """[batch, positions, heads, channels] as [batch, positions, heads * channels]."""
    count, each = (sizes.of(tensor) or [0, 0, -1])[2], channels(sizes, tensor)
    shape = graph.constant(f"{name}_shape", np.asarray([0, 0, int(count) * each if each > 0 else -1]))
    flat = graph.variable(f"{name}_joined", tensor.dtype, (None, None, None))
    graph.add("Reshape", [tensor, shape], [flat], name=f"{name}_join")
    return flat


def _scale(match: Match) -> float:
    scale = 1.0
    for name, tensor in match.tensors.items():
        if name.endswith("_factor"):
            scale *= float(weight(tensor).item())
        elif name.endswith("_divisor"):
            scale /= float(weight(tensor).item())
    return scale


def _stretched(match: Match, graph: Graph, work: Work) -> Tensor:
    """The mask with a number for each query and each key; as it is where the graph tells that it has that."""
    mask, shape = match["mask"], work.sizes.of(match["mask"])
    ends = [(work.sizes.of(match[name]) or [])[1] for name in "qk"]
    if shape is not None and shape[-2:] == ends:
        return mask
    key = (mask.name, ends[0], ends[1])
    if key not in work.masks:
        one = graph.constant(f"{mask.name}_ones", np.asarray([1, 1]))
        parts: list[Tensor] = [graph.variable(f"{mask.name}_{part}") for part in ("queries", "keys")]
        for part, source in zip(parts, ("q", "k"), strict=True):
            graph.add("Shape", [match[source]], [part], name=f"{part.name}_size", start=1, end=2)
        wish = graph.variable(f"{mask.name}_size", np.dtype(np.int64), (4,))
        graph.add("Concat", [one, *parts], [wish], name=f"{mask.name}_sizes", axis=0)
        work.masks[key] = graph.variable(f"{mask.name}_stretched", mask.dtype)
        graph.add("Expand", [mask, wish], [work.masks[key]], name=f"{mask.name}_stretch")
    return work.masks[key]


def _without_nan(match: Match, graph: Graph, tensor: Variable) -> Variable:
    name = match.nodes["where"].name
    missing, result = graph.variable(f"{tensor.name}_missing"), graph.variable(f"{tensor.name}_present", tensor.dtype)
    graph.add("IsNaN", [tensor], [missing], name=f"{name}_isnan")
    graph.add("Where", [missing, match["zero"], tensor], [result], name=name)
    return result


RULES = (
    Rule(
        "Attention",
        ATTENTION,
        build,
        "last",
        (has_operator, plain, guards_nan, read_once, heads_known, repeats, swaps),
    ),
)
