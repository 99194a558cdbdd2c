"""The kernels of a model that really ran: how many, how long, and where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from onnxq.runtime import CPU, Feeds, Kernel, Session

COPIES = frozenset({"MemcpyFromHost", "MemcpyToHost"})
"""What the runtime puts between operators on different devices."""


def profile(model: Path, provider: str, threads: int, feeds: Feeds) -> list[Kernel]:
    """The kernels that run, as the median over a few runs."""
    session = Session(model, provider=provider, threads=threads, profile=True)
    for _ in range(5):
        session.run(feeds)
    return session.kernels()


def by_operator(kernels: Sequence[Kernel]) -> tuple[dict[str, int], dict[str, float]]:
    """Number and time of kernels by operator, the slowest first."""
    counts = Counter(kernel.op for kernel in kernels)
    times = {op: sum(kernel.microseconds for kernel in kernels if kernel.op == op) for op in counts}
    order = sorted(counts, key=lambda op: (-times[op], op))
    return {op: counts[op] for op in order}, {op: round(times[op], 1) for op in order}


def elsewhere(kernels: Sequence[Kernel], provider: str) -> tuple[dict[str, int], int]:
    """Operators that the CPU took from another provider, the most frequent first, and copies between the two."""
    copies = sum(kernel.op in COPIES for kernel in kernels)
    strangers = Counter(k.op for k in kernels if k.provider == CPU != provider and k.op not in COPIES)
    return dict(sorted(strangers.items(), key=lambda item: (-item[1], item[0]))), copies
