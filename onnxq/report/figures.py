"""How numbers are written for a reader, by what they count."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from onnxq.quantities import milliseconds, size_of

NONE = "–"
"""Where there is no number."""


def microseconds(value: float) -> str:
    """`17 µs`."""
    return f"{value:,.0f} µs"


def percent(share: float) -> str:
    """`26.3 %`; small shares keep two digits."""
    return f"{100 * share:.1f} %" if share == 0 or abs(share) >= 0.01 else f"{100 * share:.2g} %"


def significant(value: float) -> str:
    """Four digits: `0.01611`."""
    return f"{value:.4g}"


FORMS: Mapping[str, Callable[[float], str]] = {
    "size": size_of,
    "ms": milliseconds,
    "us": microseconds,
    "seconds": lambda value: f"{value:.3g} s",
    "percent": percent,
    "times": lambda value: f"{value:.2f}×",
    "db": lambda value: f"{value:.1f} dB",
    "cosine": lambda value: f"{value:.5f}",
    "count": lambda value: f"{value:,.0f}",
    "number": significant,
}
"""Every way to write a number."""
