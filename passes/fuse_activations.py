"""Activations that are spelled out in small operators become the one operator that computes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxq.graph import MICROSOFT, Graph, Tensor, is_constant, weight
from onnxq.layers import only_reader
from onnxq.pipeline import Close, Context, Promise
from onnxq.rewrite import Bind, Change, Either, Match, Op, Pattern, Rule, apply
from onnxq.spec import Fact

NUMBERS = {
    "half": 0.5,
    "one": 1.0,
    "two": 2.0,
    "three": 3.0,
    "six": 6.0,
    "sixth": 1 / 6,
    "root": 2**0.5,
    "root_inverse": 0.5**0.5,
    "cubic": 0.044715,
    "slope": (2 / np.pi) ** 0.5,
    "zero": 0.0,
}
"""What the constants of the pictures must be."""


@dataclass(frozen=True)
class FuseActivations:
    """Write GELU, HardSwish and SiLU as one operator, whichever way an exporter spells them.

        x * (0.5 * (1 + Erf(x / 1.4142)))                        => Gelu(x)
        0.5 * x * (1 + Tanh(0.7979 * (x + 0.044715 * x**3)))     => FastGelu(x)
        x * Clip(x + 3, 0, 6) / 6                                => HardSwish(x)
        x * Sigmoid(alpha * x)                                   => QuickGelu<alpha>(x)

    The runtime knows some orders of the factors itself and runs the others one by one, which takes two to three times
    as long. It knows the last one too, but not behind a quantized layer, where it gives each of the two readers of x
    a DequantizeLinear of its own. Leaves alone what is not float32, what has other constants, and a Sigmoid that
    somebody else reads.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset()
    gives: ClassVar[frozenset[Fact]] = frozenset()
    promise: ClassVar[Promise] = Close(rtol=1e-5)

    def __call__(self, graph: Graph, context: Context, /) -> Iterator[Change]:
        """Yield a change for each activation."""
        yield from apply(RULES, graph, context)


def number(name: str) -> Pattern:
    """One of the constants."""
    return Bind(name, constant=True)


def both(kind: str, left: Pattern, right: Pattern, name: str = "") -> Pattern:
    """An operator whose two operands may come in either order."""
    return Op(kind, (left, right), name=name, swap=True)


def product(x: Pattern, other: Pattern, factor: Pattern) -> Pattern:
    """x * other * factor in any order of multiplication; the last product is called `last`."""
    return Either(
        (
            both("Mul", x, both("Mul", other, factor), "last"),
            both("Mul", both("Mul", x, other), factor, "last"),
            both("Mul", both("Mul", x, factor), other, "last"),
        )
    )


X = Bind("x")
AGAIN = Bind("again")
HALF_AGAIN = Either((Op("Div", (AGAIN, number("root"))), both("Mul", AGAIN, number("root_inverse"))))
CUBE = Either(
    (
        Op("Pow", (Bind("third"), number("three"))),
        both("Mul", both("Mul", Bind("third"), Bind("fourth")), Bind("fifth")),
    )
)
POLYNOMIAL = both("Mul", both("Add", AGAIN, both("Mul", CUBE, number("cubic"))), number("slope"))
SIX = Op("Clip", (both("Add", AGAIN, number("three")), number("zero"), number("six")))
SIXTH = Either(
    (
        Op("Div", (both("Mul", X, SIX), number("six_again")), name="last"),
        both("Mul", X, Op("Div", (SIX, number("six_again"))), "last"),
        product(X, SIX, number("sixth")),
    )
)


@dataclass(frozen=True)
class Twice(Pattern):
    """A formula that reads x in a second place, `again`; without this, every gate x * Sigmoid(z) would match."""

    inner: Pattern

    def match(self, tensor: Tensor) -> Match | None:
        """Binds what the formula binds."""
        found = self.inner.match(tensor)
        return found if found is not None and found["again"] is found["x"] else None


def gated(argument: Pattern) -> tuple[Pattern, Pattern]:
    """x * Sigmoid(argument) and Sigmoid(argument) * x."""
    sigmoid = Op("Sigmoid", (argument,), name="sigmoid")
    return Twice(Op("Mul", (X, sigmoid), name="last")), Twice(Op("Mul", (sigmoid, X), name="last"))


SWISH = Either((*gated(AGAIN), *gated(both("Mul", AGAIN, number("alpha")))))


def right_numbers(match: Match, graph: Graph, context: Context) -> str | None:
    """The constants are those of the formula, up to the digits that exporters write."""
    for name, tensor in match.tensors.items():
        wanted = NUMBERS.get(name.removesuffix("_again"))
        if wanted is not None and is_constant(tensor):
            values = weight(tensor)
            if values.size != 1 or abs(float(values.reshape(-1)[0]) - wanted) > 1e-6 * max(wanted, 1.0):
                return f"Its constant '{tensor.name}' is not {wanted:.7g}."
    return None


def same_source(match: Match, graph: Graph, context: Context) -> str | None:
    """Every place of the formula reads the same tensor, in float32."""
    x = match["x"]
    if any(match[name] is not x for name in ("again", "third", "fourth", "fifth") if match.get(name) is not None):
        return "It multiplies different tensors."
    return None if x.dtype == np.float32 else f"It computes in {x.dtype}; the one operator is made for float32."


def knows_hardswish(match: Match, graph: Graph, context: Context) -> str | None:
    """HardSwish came with opset 14."""
    return None if graph.opset >= 14 else f"HardSwish came with opset 14; the model has {graph.opset}."


def sigmoid_read_once(match: Match, graph: Graph, context: Context) -> str | None:
    """Nobody else wants the Sigmoid, which would be computed twice."""
    sigmoid = match.nodes["sigmoid"].outputs[0]
    return None if only_reader(graph, sigmoid) is not None else f"'{sigmoid.name}' is read elsewhere too."


def single_alpha(match: Match, graph: Graph, context: Context) -> str | None:
    """The operator knows one alpha for all of x, and returns the axes of x."""
    alpha = match.get("alpha")
    if alpha is None or (weight(alpha).size == 1 and weight(alpha).ndim <= len(match["x"].shape or ())):
        return None
    return f"Its factor '{alpha.name}' is no single number."


def build_gelu(match: Match, graph: Graph, context: Context) -> None:
    """Gelu of the standard where the model's opset has it, that of the runtime before."""
    standard = graph.opset >= 20
    graph.add("Gelu", [match["x"]], [match.output], name=match.nodes["last"].name, domain="" if standard else MICROSOFT)


def build_fast_gelu(match: Match, graph: Graph, context: Context) -> None:
    """As above, by tanh."""
    name = match.nodes["last"].name
    if graph.opset >= 20:
        graph.add("Gelu", [match["x"]], [match.output], name=name, approximate="tanh")
    else:
        graph.add("FastGelu", [match["x"]], [match.output], name=name, domain=MICROSOFT)


def build_hardswish(match: Match, graph: Graph, context: Context) -> None:
    """HardSwish."""
    graph.add("HardSwish", [match["x"]], [match.output], name=match.nodes["last"].name)


def build_quick_gelu(match: Match, graph: Graph, context: Context) -> None:
    """QuickGelu, which was named for its alpha of 1.702; SiLU has 1."""
    alpha = match.get("alpha")
    value = 1.0 if alpha is None else float(weight(alpha).item())
    name = match.nodes["last"].name
    graph.add("QuickGelu", [match["x"]], [match.output], name=name, domain=MICROSOFT, alpha=value)


def shifted(kind: str, inner: Pattern) -> Pattern:
    """1 + a function."""
    return both("Add", Op(kind, (inner,)), number("one"))


RULES = (
    Rule(
        "Gelu", product(X, shifted("Erf", HALF_AGAIN), number("half")), build_gelu, "last", (right_numbers, same_source)
    ),
    Rule(
        "FastGelu",
        product(X, shifted("Tanh", POLYNOMIAL), number("half")),
        build_fast_gelu,
        "last",
        (right_numbers, same_source),
    ),
    Rule("HardSwish", SIXTH, build_hardswish, "last", (right_numbers, same_source, knows_hardswish)),
    Rule("QuickGelu", SWISH, build_quick_gelu, "last", (same_source, single_alpha, sigmoid_read_once)),
)
