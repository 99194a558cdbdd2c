"""Whether two revisions make the same bytes of the sample models: the test of a refactor, which must change nothing.

    python tools/identical.py [BEFORE] [AFTER]     BEFORE is HEAD by default, AFTER the working tree as it is

Models and data are those of the working tree, for both.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ("--recipe static-int8", "--recipe static-int8 --format qdq", "--recipe dynamic-int8", "--recipe weight-int8")


class Failed(Exception):
    """A command did not work; the message is its last line."""


def run(command: Sequence[str | Path], tree: Path = ROOT) -> None:
    """Run a command in a tree, with the modules of that tree."""
    done = subprocess.run(command, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, stderr=subprocess.PIPE)
    if done.returncode:
        raise Failed(f"{tree.name}: {[f'exit {done.returncode}', *done.stderr.decode().splitlines()][-1]}")


@contextmanager
def checked_out(revision: str | None, folder: Path) -> Iterator[Path]:
    """The files of a revision; of the working tree where none is named."""
    if revision is None:
        yield ROOT
        return
    run(["git", "worktree", "add", "--quiet", "--detach", folder, revision])
    try:
        yield folder
    finally:
        run(["git", "worktree", "remove", "--force", folder])


def optimized(tree: Path, model: Path, recipe: str) -> bytes:
    """What the tree makes of a model."""
    data = model.with_name(f"{model.stem}_calibration.npz")
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "model.onnx"
        options = ["--no-validate", "--quiet", *recipe.split()]
        run([sys.executable, "-m", "onnxq", "optimize", model, "--data", data, "-o", output, *options], tree)
        return output.read_bytes()


def compare(trees: tuple[Path, Path]) -> Iterator[bool]:
    """Whether both trees make the same, for each model and recipe; printed as it is found."""
    with ThreadPoolExecutor(2) as pool:
        for model in sorted((ROOT / "models").glob("*.onnx")):
            for recipe in RECIPES:
                first, second = pool.map(partial(optimized, model=model, recipe=recipe), trees)
                print("same   " if first == second else "DIFFERS", model.name, recipe, flush=True)
                yield first == second


def main(words: Sequence[str]) -> int:
    """Say of each model and recipe whether the bytes are the same. 1 where some are not, 2 where a command fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", nargs="?", default="HEAD", help="a revision; default: HEAD")
    parser.add_argument("after", nargs="?", help="a revision; default: the working tree")
    arguments = parser.parse_args(words)
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            checked_out(arguments.before, Path(folder) / "before") as before,
            checked_out(arguments.after, Path(folder) / "after") as after,
        ):
            return 0 if all(list(compare((before, after)))) else 1
    except Failed as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
