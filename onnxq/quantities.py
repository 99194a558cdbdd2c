"""Sizes, shares and counts as people write them: `500MB`, `2 GiB`, `0.5%`, `1,000 nodes`."""

from __future__ import annotations

import math
import re


def bytes_of(text: str) -> int:
    """`500MB`, `2 GiB` or `1000000` in bytes. Raises ValueError."""
    found = re.fullmatch(r"([0-9]+\.?[0-9]*)\s*(?:([KMGT]?)(I?)B)?", text.strip().upper())
    if found is None or not float(found[1]):
        raise ValueError(f"{text!r} is no size. Write a number and KB, MB or GB, like 500MB.")
    base, letter = 1024 if found[3] else 1000, found[2] or " "
    return int(float(found[1]) * base ** " KMGT".index(letter))


def share_of(text: str) -> float:
    """`0.5%` or `0.005` as a number. From 1 on it needs its `%`: somebody who writes 1 may mean 1 % or 100 %.

    Raises:
        ValueError: it is neither, negative, or not less than 1 without a `%`.
    """
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError(f"{text!r} is no share. Write it like 0.5% or 0.005.")
    if value >= 1 and not percent:
        raise ValueError(f"{text!r} may mean {value:g} % or {100 * value:g} %. Write which, with the %.")
    return value


def plural(count: int, what: str) -> str:
    """`1 node`, `1,000 nodes`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def size_of(count: float) -> str:
    """Bytes: `3.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


def milliseconds(value: float) -> str:
    """`0.226 ms`."""
    return f"{value:.3g} ms" if value < 100 else f"{value:.0f} ms"
