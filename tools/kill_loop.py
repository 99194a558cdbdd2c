"""Kills `onnxq optimize` at random moments: the output is the old model, the new one, or none, and never half of one.

    python tools/kill_loop.py [--times 200] [--seed 0] [MODEL ...]

The models are models/digits.onnx, and models/decoder.onnx, whose weights lie in a file beside it and are carried over
into one. Runs of each begin with another output in place, of another recipe or other weights, or by turns with none,
and are ended by SIGKILL: half of them anywhere in
the time of a whole run, half while files are written. In the end a run that nobody kills makes the same bytes as ever,
and nothing else is left beside it. The exit code is 1 where something was broken.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

ROOT = Path(__file__).resolve().parent.parent
MODELS = (ROOT / "models" / "digits.onnx", ROOT / "models" / "decoder.onnx")
OUTPUT = "out.onnx"
RECIPES = (["--recipe", "weight-int8"], ["--recipe", "dynamic-int8"])
CARRIED = ["--recipe", "dynamic-int8", "--keep-float", "*"]
"""With this no weight changes, and those in a file stay in one."""

WRITING = 0.06
"""Seconds that it takes to write one of these models, about."""

Files = dict[str, bytes]


@dataclass(frozen=True)
class Bench:
    """A model, a folder for its output, and what belongs there before and after a run.

    Attributes:
        words: what makes the new model.
        folder: where the output lies, and the cache beside it.
        old: the files of another recipe.
        new: the files that a whole run makes.
        seconds: what a whole run takes.
    """

    words: Sequence[str]
    folder: Path
    old: Files
    new: Files
    seconds: float

    @property
    def place(self) -> Path:
        """The folder of the output."""
        return self.folder / "place"

    @property
    def command(self) -> list[str]:
        """A run."""
        more = ["-o", str(self.place / OUTPUT), "--quiet", "--no-validate", "--cache", str(self.folder / "cache")]
        return [sys.executable, "-m", "onnxq", "optimize", *self.words, *more]

    def files(self) -> Files:
        """What lies beside the output, hidden folders aside."""
        return {path.name: path.read_bytes() for path in self.place.iterdir() if path.is_file()}

    def hidden(self) -> list[str]:
        """Folders that runs left; one that was made and not yet locked when its run was killed stays for a minute."""
        return sorted(path.name for path in self.place.iterdir() if path.is_dir() and any(path.iterdir()))

    def put(self, files: Files) -> None:
        """Lay these files out, and no others."""
        for path in [path for path in self.place.iterdir() if path.is_file()]:
            path.unlink()
        for name, content in files.items():
            (self.place / name).write_bytes(content)

    def broken(self) -> str | None:
        """The sentence what is wrong beside the output; None where it is one of the models, or none."""
        found = self.files()
        model = found.get(OUTPUT)
        if model is None:
            return None
        for whole in (self.old, self.new):
            if model == whole[OUTPUT]:
                wrong = [name for name in whole if found.get(name) != whole[name]]
                return f"The model is whole, and {', '.join(wrong)} is that of another." if wrong else None
        return f"The model has {len(model)} bytes, and is neither the old one nor the new one."


def requests(model: Path, folder: Path) -> list[list[str]]:
    """The words that make the old model and the new one."""
    stored = onnx.load(model)
    if not any(path.is_file() for path in (model.with_suffix(".data"), model.with_suffix(".weights"))):
        return [[str(model), *recipe] for recipe in RECIPES]
    made = [folder / "first.onnx", folder / "second.onnx"]
    for path in made:
        onnx.save(stored, path, save_as_external_data=True, location=f"{path.stem}.weights", size_threshold=256)
        stored = onnx.load(model)
        for tensor in stored.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.dtype == np.float32:
                tensor.CopyFrom(numpy_helper.from_array(np.asarray(values / 2, np.float32), tensor.name))
    return [[str(path), *CARRIED] for path in made]


def bench(model: Path, folder: Path) -> Bench:
    """Run both requests to their end."""
    (folder / "place").mkdir(parents=True)
    first, second = requests(model, folder)
    made: list[Files] = []
    seconds = 0.0
    for words in (first, second, second):  # the second time with all that is remembered
        trial = Bench(words, folder, {}, {}, 0.0)
        trial.put({})
        began = time.monotonic()
        subprocess.run(trial.command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - began
        made.append(trial.files())
    assert made[1] == made[2] != made[0], "the same command gave other bytes"
    return Bench(second, folder, made[0], made[2], seconds)


def kill(bench: Bench, moment: float, *, writing: bool) -> str:
    """Run, and kill the run after so many seconds, counted from when it begins to write, if that is asked for.

    Returns what became of the output: old, new, none or broken.
    """
    before = set(bench.hidden())
    process = subprocess.Popen(
        bench.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while writing and process.poll() is None and not set(bench.hidden()) - before:
        time.sleep(0.001)
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the command and the process that does its work
        process.wait()
        with suppress(ProcessLookupError):
            while True:
                os.killpg(process.pid, 0)
    wrong = bench.broken()
    if wrong is not None:
        return f"broken: {wrong}"
    found = bench.files().get(OUTPUT)
    return "none" if found is None else "old" if found == bench.old[OUTPUT] else "new"


def loop(bench: Bench, times: int, seed: int = 0) -> Counter[str]:
    """Kill a run so many times, and let one end. Returns how often each outcome came about."""
    outcomes: Counter[str] = Counter()
    dice = random.Random(seed)
    for number in range(times):
        bench.put(bench.old if number % 4 < 3 else {})
        writing = number % 2 == 1
        outcomes[kill(bench, dice.uniform(0.0, WRITING if writing else bench.seconds), writing=writing)] += 1
        if len(bench.hidden()) > 2:  # that of a whole run, and its rounded weights
            outcomes[f"broken: {', '.join(bench.hidden())} pile up"] += 1
    bench.put(bench.old)
    subprocess.run(bench.command, check=True, stdout=subprocess.DEVNULL)
    left = {name: content for name, content in bench.files().items() if name in bench.new}
    if left != bench.new or bench.hidden():
        outcomes[f"broken: in the end there are {', '.join([*bench.files(), *bench.hidden()])}"] += 1
    return outcomes


def main(words: Sequence[str]) -> int:
    """Kill runs of each model, and say what became of their outputs. 1 where one was broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, default=MODELS, help="default: digits and decoder")
    parser.add_argument("--times", type=int, default=200, help="of all models together")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args(words)
    failed = False
    for model in arguments.models:
        with tempfile.TemporaryDirectory(prefix="kill.") as folder:
            made = bench(model, Path(folder))
            outcomes = loop(made, arguments.times // len(arguments.models), arguments.seed)
        failed |= any(outcome.startswith("broken") for outcome in outcomes)
        told = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
        print(f"{model.name}: killed {arguments.times // len(arguments.models)} times: {told}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
