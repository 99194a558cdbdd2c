"""Which samples to use when not all are."""

from __future__ import annotations

from itertools import pairwise

_GOLDEN = 0.6180339887498949  # (sqrt 5 - 1) / 2: its multiples modulo 1 are spread evenly and repeat no period


def spread(count: int, total: int) -> list[int]:
    """`count` different indices below `total`, in order, always the same and spread over the whole range.

    One index is taken out of each of `count` equal stretches, so sorted data is covered. Its place in the stretch
    varies, so data in which classes take turns is covered as well; every k-th sample could be all of one class.
    """
    edges = [index * total // count for index in range(count + 1)] if count else [0]
    return [low + int((index * _GOLDEN) % 1 * (high - low)) for index, (low, high) in enumerate(pairwise(edges))]
