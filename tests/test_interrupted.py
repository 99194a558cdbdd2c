"""Whatever stops a run, what is on disk is whole: killed, out of space, two at once; all runs make the same bytes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxq.modelfile import load

if sys.platform == "win32":
    pytest.skip("Windows has no signals and limits like these.", allow_module_level=True)

sys.path.append(str(Path(__file__).parents[1] / "tools"))

import kill_loop
from kill_loop import CARRIED, OUTPUT, RECIPES, Bench, bench, loop

MODELS = Path(__file__).parents[1] / "models"
DIGITS, DATA = MODELS / "digits.onnx", MODELS / "digits_calibration.npz"
QUICK = ("--no-validate", "--quiet", "--samples", "8")


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "onnxq", *map(str, words)]


def run(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, env={**os.environ, **variables})


# --- killed ---


@pytest.fixture(scope="module")
def external(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights lie in a file beside it."""
    path = tmp_path_factory.mktemp("external") / "model.onnx"
    stored = onnx.load(DIGITS)
    onnx.save(stored, path, save_as_external_data=True, location="model.weights", size_threshold=256)
    return path


@pytest.mark.parametrize("kind", ["embedded", "external"])
def test_a_killed_run_leaves_the_old_model_the_new_one_or_none(kind: str, external: Path, tmp_path: Path) -> None:
    """`tools/kill_loop.py --times 200` does the same more often."""
    made = bench(DIGITS if kind == "embedded" else external, tmp_path)
    outcomes = loop(made, 4, seed=1)
    assert sum(outcomes.values()) == 4
    assert set(outcomes) <= {"old", "new", "none"}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({OUTPUT: b"half"}, "neither the old one nor the new one"),
        ({OUTPUT: b"new", "out.onnx.data": b"old data"}, r"whole, and out\.onnx\.data is that of another"),
        ({OUTPUT: b"old"}, r"out\.onnx\.data is that of another"),
    ],
)
def test_what_is_broken_is_seen(files: Mapping[str, bytes], words: str, tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    old, new = ({OUTPUT: name, "out.onnx.data": name + b" data"} for name in (b"old", b"new"))
    made = Bench([], tmp_path, old, new, 0.0)
    for whole in (old, new, {}):
        made.put(whole)
        assert made.broken() is None
    made.put(dict(files))
    assert re.search(words, made.broken() or "")


# --- a full disk ---

LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.argv = ["onnxq", *sys.argv[2:]]
runpy.run_module("onnxq", run_name="__main__")
"""
"""A limit on the size of files stands for the full disk: what is larger is cut off there."""


@pytest.mark.parametrize("size", [100, 200_000])
@pytest.mark.parametrize("more", [(), ("--no-validate",)], ids=["validated", "not validated"])
def test_a_full_disk_is_one_clear_error(size: int, more: Sequence[str], tmp_path: Path) -> None:
    output = tmp_path / OUTPUT
    output.write_bytes(b"what was there before")
    words = ["optimize", DIGITS, "-o", output, "--data", DATA, "--recipe", "static-int8", "--range", "minmax"]
    words += ["--samples", "4", "--seconds", "0", "--no-cache", "--quiet", *more]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(size), *map(str, words)],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("onnxq: error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Free some space" in done.stderr or "Check the disk" in done.stderr
    assert output.read_bytes() == b"what was there before"
    assert [path.name for path in tmp_path.iterdir()] == [OUTPUT]


# --- two at once ---


@pytest.mark.parametrize("source", ["embedded", "external"])
def test_two_runs_into_one_cache_and_one_output(source: str, external: Path, tmp_path: Path) -> None:
    model = DIGITS if source == "embedded" else external
    words = ["optimize", model, "-o", tmp_path / OUTPUT, *(CARRIED if source == "external" else RECIPES[0]), *QUICK]
    words += ["--cache", tmp_path / "cache"]
    both = [subprocess.Popen(command(*words), stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert [(process.returncode, text) for process, text in zip(both, said, strict=True)] == [(0, "")] * 2
    load(tmp_path / OUTPUT)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert run(*words).returncode == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == first
    assert {path.name for path in tmp_path.iterdir()} <= {*first, "cache"}


# --- the same bytes ---


@pytest.mark.parametrize("mode", ["static-int8", "weight-int4"])
def test_the_same_bytes_in_every_process(mode: str, tmp_path: Path) -> None:
    """Whatever the seed of hashes, the number of threads, and whether anything is remembered."""
    made = set()
    for number, (seed, threads, cache) in enumerate([("0", 1, ()), ("1", 2, ()), ("2", 1, ("--no-cache",))]):
        output = tmp_path / f"{number}.onnx"
        words = [
            "optimize",
            DIGITS,
            "-o",
            output,
            "--data",
            DATA,
            "--recipe",
            mode,
            "--threads",
            threads,
            *QUICK,
            *cache,
        ]
        done = run(*words, PYTHONHASHSEED=seed, ONNXQ_CACHE=str(tmp_path / "cache"))
        assert done.returncode == 0, done.stderr
        made.add(output.read_bytes())
    assert len(made) == 1
    assert np.all(np.array([len(content) for content in made]) > 0)


def test_the_tool_has_its_models() -> None:
    assert all(path.is_file() for path in kill_loop.MODELS)
