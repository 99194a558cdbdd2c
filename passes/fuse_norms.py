"""Normalizations that are spelled out, in a form that the runtime computes at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxq.graph import Graph, Node, Tensor, is_constant, weight
from onnxq.pipeline import Close, Context, Promise
from onnxq.rewrite import Bind, Change, Either, Match, Op, Pattern, Rule, apply
from onnxq.spec import Fact


@dataclass(frozen=True)
class FuseNorms:
    """Let the runtime normalize in one go, whichever way an exporter spells it.

        Mul(d, 1 / Sqrt(mean(d * d) + eps)) * g + b,  d = x - mean(x)  => LayerNormalization(x, g, b)
        Mul(x, 1 / Sqrt(mean(x * x) + eps)) * g                        => x / Sqrt(mean(x ** 2) + eps) * g

    The runtime fuses the second form on the right itself, and neither form on the left; these take half as long again,
    or twice as long. Leaves alone what does not normalize the last axis by itself, what is not float32, and whatever
    the runtime knows.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset()
    gives: ClassVar[frozenset[Fact]] = frozenset()
    promise: ClassVar[Promise] = Close(rtol=1e-5)

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each normalization."""
        yield from apply(RULES, graph, context)


def both(kind: str, left: Pattern, right: Pattern, name: str = "") -> Pattern:
    """An operator whose two operands may come in either order."""
    return Op(kind, (left, right), name=name, swap=True)


def number(name: str) -> Pattern:
    """A constant of one number."""
    return Bind(name, constant=True)


def mean(inner: Pattern, name: str) -> Pattern:
    """ReduceMean with its axes as an attribute or as an input."""
    return Either((Op("ReduceMean", (inner,), name=name), Op("ReduceMean", (inner, number(f"{name}_axes")), name=name)))


def squared(name: str) -> Pattern:
    """A tensor times itself; the product is called `square`."""
    return both("Mul", Bind(name), Bind(f"{name}_too"), "square")


def deviation(square: Pattern) -> Pattern:
    """The root of the mean square."""
    return Op("Sqrt", (both("Add", mean(square, "variance"), number("epsilon")),), name="root")


def inverse(square: Pattern) -> Pattern:
    """1 / root, the ways in which the runtime does not know it."""
    shifted = both("Add", mean(square, "variance"), number("epsilon"))
    return Either((Op("Reciprocal", (deviation(square),)), Op("Pow", (shifted, number("minus_half")))))


def power(name: str) -> Pattern:
    """A tensor to the power of two."""
    return Op("Pow", (Bind(name), number("two")), name="square")


SQUARE = Either((power("d"), squared("d")))
CENTERED = Op("Sub", (Bind("x"), mean(Bind("x_too"), "mean")), name="center")
ANY_INVERSE = Either((inverse(SQUARE), Op("Div", (number("one"), deviation(SQUARE)))))
DIVIDED = Either((Op("Div", (CENTERED, deviation(SQUARE))), both("Mul", CENTERED, ANY_INVERSE)))
LAYER = both("Add", both("Mul", DIVIDED, number("g")), number("b"), "last")
GAIN = both("Mul", ANY_INVERSE, number("g"), "gain")
FLAT = both(
    "Add",
    both("Mul", Bind("x"), GAIN),
    Op("Sub", (number("b"), both("Mul", mean(Bind("x_too"), "mean"), Bind("gain_too")))),
    "last",
)
"""As TensorFlow spells it: x * k + (b - mean * k)."""

UNKNOWN_ROOT = Either((power("x_too"), squared("x_too")))
ROOT_MEAN_SQUARE = both(
    "Mul",
    Either(
        (
            both("Mul", Bind("x"), inverse(UNKNOWN_ROOT)),
            both("Mul", Bind("x"), Op("Div", (number("one"), deviation(squared("x_too"))))),
            Op("Div", (Bind("x"), deviation(squared("x_too")))),
        )
    ),
    number("g"),
    "last",
)

NUMBERS = {"two": 2.0, "one": 1.0, "minus_half": -0.5}


def right_numbers(match: Match, graph: Graph, context: Context) -> str | None:
    """Powers and numerators are those of the formula, and epsilon is one number."""
    for name, wanted in NUMBERS.items():
        if name in match.tensors and not (weight(match[name]).size == 1 and weight(match[name]).item() == wanted):
            return f"Its constant '{match[name].name}' is not {wanted:g}."
    return None if weight(match["epsilon"]).size == 1 else "Its epsilon is not one number."


def one_source(match: Match, graph: Graph, context: Context) -> str | None:
    """Every place of the formula reads the same tensor, in float32."""
    pairs = [(match[name], match.get(f"{name}_too")) for name in ("x", "d") if name in match.tensors]
    if "gain" in match.nodes:
        pairs.append((match.nodes["gain"].outputs[0], match["gain_too"]))
    if "d" in match.tensors and not _is_centered(match["d"], match):
        return "It squares something else than it divides."
    if any(second is not None and second is not first for first, second in pairs):
        return "It multiplies different tensors."
    return None if match["x"].dtype == np.float32 else f"It computes in {match['x'].dtype}, not in float32."


def _is_centered(d: Tensor, match: Match) -> bool:
    """Whether this is x less its mean; exporters may subtract twice."""
    maker = d.inputs[0] if d.inputs else None
    means = match.nodes["mean"].outputs[0]
    return maker is not None and maker.op == "Sub" and list(maker.inputs) == [match["x"], means]


def last_axis(match: Match, graph: Graph, context: Context) -> str | None:
    """Means along the last axis, which keep it as 1; gain and shift as one number for each place of it."""
    x = match["x"]
    rank = len(x.shape or ())
    for node in [match.nodes[name] for name in ("mean", "variance") if name in match.nodes]:
        if not node.attrs.get("keepdims", 1) or _axes(node) not in ([-1], [rank - 1]) or not rank:
            return f"'{node.name}' is no mean along the last axis."
    for name in ("g", "b"):
        if name in match.tensors and tuple(match[name].shape or ()) != tuple((x.shape or ())[-1:]):
            return f"'{match[name].name}' does not hold one number for each place of the last axis."
    return None


def _axes(node: Node) -> list[int] | None:
    if "axes" in node.attrs:
        return [int(axis) for axis in node.attrs["axes"]]
    given = node.inputs[1] if len(node.inputs) > 1 and node.inputs[1].name else None
    return [int(axis) for axis in weight(given).reshape(-1)] if given is not None and is_constant(given) else None


def knows_norm(match: Match, graph: Graph, context: Context) -> str | None:
    """LayerNormalization came with opset 17."""
    return None if graph.opset >= 17 else f"LayerNormalization came with opset 17; the model has {graph.opset}."


def build_layer(match: Match, graph: Graph, context: Context) -> None:
    """LayerNormalization."""
    epsilon = float(weight(match["epsilon"]).item())
    inputs = [match["x"], match["g"], match["b"]]
    name = match.nodes["last"].name
    graph.add("LayerNormalization", inputs, [match.output], name=name, axis=-1, epsilon=epsilon)


def build_root(match: Match, graph: Graph, context: Context) -> None:
    """The spelling that the runtime fuses: Pow, ReduceMean, Add, Sqrt, Div, Mul."""
    x, name, mean_node = match["x"], match.nodes["last"].name, match.nodes["variance"]
    two = graph.constant(f"{name}_two", np.asarray(2, np.float32))
    steps = [
        graph.variable(f"{match.output.name}_{part}", x.dtype) for part in ("square", "mean", "sum", "root", "unit")
    ]
    square, variance, shifted, root, unit = steps
    graph.add("Pow", [x, two], [square], name=f"{name}_square")
    graph.add("ReduceMean", [square, *mean_node.inputs[1:]], [variance], name=f"{name}_mean", **mean_node.attrs)
    graph.add("Add", [variance, match["epsilon"]], [shifted], name=f"{name}_sum")
    graph.add("Sqrt", [shifted], [root], name=f"{name}_root")
    graph.add("Div", [x, root], [unit], name=f"{name}_unit")
    graph.add("Mul", [unit, match["g"]], [match.output], name=name)


GUARDS = (right_numbers, one_source, last_axis)
RULES = (
    Rule("LayerNormalization", LAYER, build_layer, "last", (*GUARDS, knows_norm)),
    Rule("LayerNormalization", FLAT, build_layer, "last", (*GUARDS, knows_norm)),
    Rule("a known form", ROOT_MEAN_SQUARE, build_root, "last", GUARDS),
)
