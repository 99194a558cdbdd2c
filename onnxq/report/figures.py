"""How numbers are written for a reader, by what they count."""

from __future__ import annotations

from collections.abc import Callable, Mapping

NONE = "–"
"""Where there is no number."""


def size(count: float) -> str:
    """Bytes: `3.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


def milliseconds(value: float) -> str:
    """`0.226 ms`."""
    return f"{value:.3g} ms" if value < 100 else f"{value:.0f} ms"


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
    "size": size,
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
