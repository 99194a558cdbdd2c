"""Coverage-guided fuzzing of the loader: no file may bring out anything but an `OnnxqError`.

    python tools/fuzz_loader.py [--seconds 600] [--corpus DIR] [--keep DIR]

Begins with our models and with those of the onnx package, and changes their fields and bytes wherever that reaches new
lines. What is loaded is written and loaded again, and must be the same, also to `onnxq diff`. Needs atheris:
pip install "onnxq[fuzz]". The exit code is 1 where something was found; the file that does it is kept then.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from mutations import mutate

ROOT = Path(__file__).resolve().parent.parent

LONGEST = 100_000
"""Bytes of a model that fuzzing begins with: larger ones take too long."""

MEMORY, SECONDS = 3000, 20
"""MiB and seconds that one file may take."""


def write_corpus(folder: Path) -> int:
    """Put small models into a folder. Returns how many."""
    from sweep_models import all_cases

    count = 0
    own = [path.read_bytes() for path in sorted((ROOT / "models").glob("*.onnx"))]
    others = [case.model if isinstance(case.model, bytes) else case.model.read_bytes() for case in all_cases(None)]
    for content in (content for content in (*own, *others) if len(content) <= LONGEST):
        (folder / sha256(content).hexdigest()[:16]).write_bytes(content)
        count += 1
    return count


def check(content: bytes, folder: Path) -> None:
    """Load a file; what can be loaded is the same after it was written. Raises what should not come out."""
    from onnxq.diffing import diff
    from onnxq.errors import OnnxqError
    from onnxq.inspection import summarize
    from onnxq.modelfile import load, save

    first, second = folder / "first.onnx", folder / "second.onnx"
    first.write_bytes(content)
    try:
        graph = load(first)
    except OnnxqError:
        return
    summarize(graph)
    save(graph, second)
    again = load(second)
    assert again.interface() == graph.interface(), "another interface"
    once = second.read_bytes()
    save(again, first)
    assert first.read_bytes() == once, "other bytes after loading and saving again"
    found = diff(content, second)
    assert not found.edits, found.edits
    assert not [change for change in found.interface if change.what in ("input", "output")], found.interface


def fuzz(arguments: argparse.Namespace) -> int:
    """Run until something is found or the time is over. Returns the exit code."""
    try:
        import atheris
    except ImportError as error:
        print(f"{error}. Install it with: pip install 'onnxq[fuzz]'; it runs on Linux and macOS.", file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=["onnxq"]):
        import onnxq.diffing
        import onnxq.inspection
        import onnxq.modelfile  # noqa: F401

    os.chdir(tempfile.mkdtemp(prefix="fuzz."))
    seeds, found, scratch = Path("seeds"), arguments.corpus or Path("found"), Path("scratch")
    for folder in (seeds, found, scratch):
        folder.mkdir(exist_ok=True, parents=True)
    (scratch / "weights.bin").write_bytes(bytes(4096))
    print(f"{write_corpus(seeds)} models to begin with", file=sys.stderr)
    kept = f"{arguments.keep.resolve()}{os.sep}"
    limits = [f"-max_total_time={arguments.seconds}", f"-rss_limit_mb={MEMORY}", f"-timeout={SECONDS}"]
    words = [*limits, f"-max_len={LONGEST}", f"-artifact_prefix={kept}", "-print_final_stats=1"]
    atheris.Setup(
        [sys.argv[0], *words, str(found), str(seeds)],
        lambda content: check(content, scratch),
        custom_mutator=lambda content, most, seed: mutate(content, most, seed, atheris.Mutate),
    )
    atheris.Fuzz()  # ends the process
    return 0


def main(words: Sequence[str]) -> int:
    """Fuzz, or check single files. 1 where something is wrong with one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="check these alone, without fuzzing")
    parser.add_argument("--seconds", type=int, default=600, help="how long")
    parser.add_argument("--corpus", type=Path, help="a folder for inputs that reach new lines, to go on with later")
    parser.add_argument("--keep", type=Path, default=Path(), help="a folder for what breaks the loader")
    arguments = parser.parse_args(words)
    if not arguments.files:
        return fuzz(arguments)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (scratch / "weights.bin").write_bytes(bytes(4096))
        for file in arguments.files:
            check(file.read_bytes(), scratch)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
