"""Files that are damaged, or made to do harm, and the one line that each gets.

    python tools/hostile_files.py [--match TEXT] [--markdown]

Each is met by the command line in a folder of its own, in a process that is limited in memory and time. The exit code
is 2 for what must be refused, 0 for what only looks odd; nothing may be left behind, and no traceback come out. The
exit code of this script is 1 where one is met otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import hostile_data as d
import hostile_models as m
import numpy as np
from hostile_models import Hostile, rows
from limited import Gone, Limited, Limits

LIMITS = Limits(seconds=60.0, memory=10 * 2**30)
"""For one file. Address space is more than memory: the runtime and its threads reserve some GiB."""

GROWTH = 600
"""MiB that a process may grow by when it meets a file."""

MODELS = {
    "a file that is empty": (m.content(b""), "is empty"),
    "a folder": (lambda folder: ["optimize", str(folder)], "is a folder"),
    "a file that is not there": (lambda _: ["optimize", "absent.onnx"], "does not exist"),
    "a link to nowhere": (m.link_of_model("absent.onnx"), "does not exist"),
    "a link to itself": (m.link_of_model(m.FILE), "cannot be read"),
    "a device that never ends": (lambda _: ["optimize", "/dev/zero", "-o", "o.onnx"], "no plain file"),
    "a link to such a device": (m.link_of_model("/dev/zero"), "no plain file"),
    "a pipe": (m.pipe(m.FILE), "no plain file"),
    "a file of 100 GiB": (m.enormous, "2 GiB"),
    "a picture": (m.content(b"\x89PNG\r\n\x1a\n" + bytes(99)), "is not an ONNX model"),
    "an archive": (m.content(b"PK\x03\x04" + bytes(99)), "is not an ONNX model"),
    "a text": (m.content(b"# Readme\n\nNo model.\n"), "is not an ONNX model"),
    "a pointer of Git LFS": (m.content(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "all bytes": (m.content(bytes(range(256)) * 40), "is not an ONNX model"),
    "a name with NUL": (lambda _: ["optimize", "a\0b.onnx"], "null byte"),
    "a name of 5000 letters": (lambda _: ["optimize", "a" * 5000], "cannot be read"),
    **{
        f"cut off at {share:.1%}": (m.cut(share), "model.onnx")
        for share in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.999)
    },
    "a text where a number belongs": (m.patched(b"\x08\x08", b"\x0a\x08"), "model.onnx"),
    "a number where a text belongs": (m.patched(b"\x22\x06MatMul", b"\x20\x06MatMul"), "model.onnx"),
    "a text that is none": (m.patched(b"MatMul", b"\xff\xfetMul"), "no valid text"),
}

OUTSIDE = {
    "an absolute path": (m.outside({"location": "/etc/passwd"}), "outside the model's folder"),
    "a path that goes up": (m.outside({"location": "../../w.bin"}), "outside the model's folder"),
    "a path that goes in and up": (m.outside({"location": "a/../../w.bin"}), "outside the model's folder"),
    "no path": (m.outside({"location": ""}), "outside the model's folder"),
    "a path with NUL": (m.outside({"location": "w\0.bin"}), "no readable location"),
    "a path of 5000 letters": (m.outside({"location": "w" * 5000}), "no readable location"),
    "a link to outside": (m.linked("/etc/passwd"), "outside the model's folder"),
    "a link to a device": (m.linked("/dev/zero"), "outside the model's folder"),
    "a link to itself": (m.linked("w.bin"), "no readable location"),
    "a pipe": (m.pipe("w.bin"), "is missing"),
    "a folder": (m.outside({"location": "."}, None), "is missing"),
    "a missing file": (m.outside({}, None), "is missing"),
    "a file that is too short": (m.outside({}, bytes(100)), "was cut off"),
    "a negative offset": (m.outside({"offset": -4}), "no readable offset"),
    "a huge offset": (m.outside({"offset": 2**63}), "was cut off"),
    "an offset of 5000 digits": (m.outside({"offset": "9" * 5000}), "no readable offset"),
    "an offset that is a word": (m.outside({"offset": "four"}), "no readable offset"),
    "a negative length": (m.outside({"length": -1}), "no readable length"),
    "a huge length": (m.outside({"length": 2**62}), "needs 1024"),
    "an offset at the end": (m.outside({"offset": 1024}), "was cut off"),
}

TENSORS = {
    "2**62 numbers, and none there": (m.weight(dims=[2**62], raw_data=None), "holds 0 values"),
    "2**62 rows of nothing": (m.weight(dims=[0, 2**62], raw_data=b""), "mul0"),
    "sizes whose product overflows": (m.weight(dims=[2**33, 2**33], raw_data=None), "holds 0 values"),
    "a negative size": (m.weight(dims=[-16, 16]), "negative size"),
    "too few bytes": (m.weight(raw_data=b"1234"), "holds 4 bytes"),
    "too many bytes": (m.weight(raw_data=bytes(9999)), "holds 9999 bytes"),
    "an element type that is not there": (m.weight(data_type=77), "element type 77"),
    "no element type": (m.weight(data_type=0), "element type 0"),
    "numbers in segments": (m.model(lambda made: made.graph.initializer[0].segment.SetInParent()), "in segments"),
    "texts": (m.weight(data_type=8, raw_data=None, string_data=[b"a"] * 256), "model.onnx"),
    "texts in bytes": (m.weight(data_type=8), "0 values"),
    "whole numbers": (m.weight(data_type=6), "model.onnx"),
    "a sparse weight of 2**62 numbers": (m.model(m.sparse), "model.onnx"),
    "a constant of a terabyte": (m.huge("ConstantOfShape", [2**38]), "The model fails"),
    "a constant that is stretched to a terabyte": (m.huge("Expand", [2**19, 2**19]), "The model fails"),
    "a constant that is repeated to a terabyte": (m.huge("Tile", [2**19, 2**19]), "The model fails"),
    "all numbers up to 2**40": (m.huge("Range", [2**40]), "The model fails"),
    "a scale that is NaN": (m.quantized(float("nan")), "scale"),
    "a scale of 0": (m.quantized(0.0), "scale"),
    "a scale that is infinite": (m.quantized(float("inf")), "scale"),
}

GRAPHS = {
    "bodies nested 30 deep": (m.content(m.nested(30)), "model.onnx"),
    "bodies nested 5000 deep": (m.content(m.nested(5000)), "is not an ONNX model"),
    "50,000 operators in a row": (m.inspected(m.chain("Neg", 50_000)), None),
    "20,000 operators that do nothing": (m.chain("Identity", 20_000, "--no-validate"), None),
    "no graph": (m.model(lambda made: made.ClearField("graph")), "holds no graph"),
    "no nodes": (m.model(lambda made: made.graph.ClearField("node")), "made by no node"),
    "no inputs": (m.model(lambda made: made.graph.ClearField("input")), "reads tensor 'x'"),
    "no outputs": (m.model(lambda made: made.graph.ClearField("output")), "has no outputs"),
    "an output that nobody makes": (
        m.model(lambda made: setattr(made.graph.output[0], "name", "z")),
        "made by no node",
    ),
    "a tensor that nobody makes": (m.model(lambda made: made.graph.node[1].input.__setitem__(0, "z")), "'z'"),
    "a cycle": (m.model(lambda made: made.graph.node[0].input.__setitem__(0, "m0")), "needs its own output"),
    "a tensor made twice": (m.model(lambda made: made.graph.node.append(made.graph.node[0])), "made twice"),
    "a weight without a name": (m.model(lambda made: setattr(made.graph.initializer[0], "name", "")), "has no name"),
    "an input without a name": (m.model(lambda made: setattr(made.graph.input[0], "name", "")), "has no name"),
    "a weight made twice": (m.model(lambda made: made.graph.initializer.append(made.graph.initializer[0])), "twice"),
    "an output twice": (m.model(lambda made: made.graph.output.append(made.graph.output[0])), None),
    "an input twice": (m.model(lambda made: made.graph.input.append(made.graph.input[0])), "made twice"),
    "an input without a type": (m.model(lambda made: made.graph.input[0].ClearField("type")), "input 'x'"),
    "an input of a type that is not there": (
        m.model(lambda made: setattr(made.graph.input[0].type.tensor_type, "elem_type", 99)),
        "input 'x'",
    ),
    "an operator without a name": (m.model(lambda made: setattr(made.graph.node[1], "op_type", "")), "model.onnx"),
    "an operator without inputs": (m.model(lambda made: made.graph.node[1].ClearField("input")), "model.onnx"),
    "a function that calls itself": (m.model(m.recursive), "model.onnx"),
    "no opset": (m.opsets(), "no opset"),
    "opset 0": (m.opsets(("", 0)), "model.onnx"),
    "a negative opset": (m.opsets(("", -1)), "model.onnx"),
    "opset 10**9": (m.opsets(("", 10**9)), "model.onnx"),
    "two opsets": (m.opsets(("", 17), ("", 11)), None),
    "an opset of another domain alone": (m.opsets(("ai.onnx.ml", 3)), "names no opset for those"),
    "opset 2**62": (m.opsets(("", 2**62)), "asks for version"),
    "more inputs than an operator takes": (
        m.model(lambda made: made.graph.node[1].input.append("x")),
        "has 2 inputs, and takes 1",
    ),
    "an input left out that must be there": (
        m.model(lambda made: made.graph.node[0].input.__setitem__(1, "")),
        "lacks its input 'B'",
    ),
    "an attribute of another type": (m.flattened(axis="one"), "'axis' of node 'flat' (Flatten) is STRING, not INT"),
    "an attribute of a function that is not there": (m.flattened(), "refers to attribute 'axis' of a function"),
    "an input with a size of -1": (m.sized(-1), None),
    "an input of 2**31 numbers": (m.sized(2**27), "Give real data"),
    "an IR version of 2**40": (m.model(lambda made: setattr(made, "ir_version", 2**40)), "model.onnx"),
    "a name that clears the terminal": (m.model(m.broken("\x1b[2J\x07\x00")), "\\x1b[2J"),
    "a name of several lines": (m.model(m.broken("a\nonnxq: done\r\n")), "model.onnx"),
    "a name of a million letters": (m.model(m.broken("n" * 10**6)), "model.onnx"),
    "names with slashes and dots": (m.model(m.renamed("../../a/b")), None),
    "names in other alphabets": (m.model(m.renamed("слой/层/طبقة/🧠")), None),
    "names with control characters": (m.model(m.renamed("\x00\x1b[2J\n")), None),
    "names of 100,000 letters": (m.model(m.renamed("n" * 100_000)), None),
}

DATA = {
    "a pickle": (d.raw(d.pickled()), "data.npz"),
    "an array of objects": (d.array(np.array([{}, {}], object)), "data.npz"),
    "a wrong shape": (d.array(np.zeros((4, 7), np.float32)), "[1, 7]"),
    "NaN": (d.array(np.full((4, 16), np.nan, np.float32)), "NaN"),
    "infinity": (d.array(np.full((4, 16), np.inf, np.float32)), "infinite"),
    "texts": (d.array(np.full((4, 16), "word")), "x"),
    "no arrays": (d.data(lambda path: np.savez(path)), "missing"),
    "no samples": (d.array(np.zeros((0, 16), np.float32)), "no samples"),
    "an empty file": (d.raw(b""), "data.npz"),
    "an archive that was cut off": (d.raw(d.member(bytes(9999))[:500]), "data.npz"),
    "an archive with a lock": (d.raw(d.locked()), "data.npz"),
    "terabytes that are not there": (d.raw(d.member(d.header("(2147483648, 16)"))), "data.npz"),
    "terabytes, packed, that are not there": (d.raw(d.member(d.header("(2147483648, 16)"), 8)), "data.npz"),
    "a terabyte of zeros in 4 MB": (d.raw(d.bomb()), "data.npz"),
    "sizes that overflow": (d.raw(d.member(d.header("(9223372036854775807, 16)"))), "data.npz"),
    "a negative size": (d.raw(d.member(d.header("(-4, 16)"))), "data.npz"),
    "a head that is code": (d.raw(d.member(d.header("__import__('os').getcwd()"))), "data.npz"),
    "a head of 60,000 brackets": (d.raw(d.member(d.header("(" * 60_000))), "data.npz"),
    "packed bytes that are damaged": (
        d.raw(d.flipped(d.member(d.header("(9999, 16)") + os.urandom(9999 * 64), 8), 700)),
        "data.npz",
    ),
    "an array that is none": (d.raw(d.member(b"x" * 99)), "data.npz"),
}

WISHES = {
    "a plan that is no JSON": (d.json_plan("{"), "JSON"),
    "a plan that is a list": (d.json_plan("[1, 2]"), "plan"),
    "a plan nested 100,000 deep": (d.json_plan("[" * 100_000), "JSON"),
    "a plan with a number of 5000 digits": (d.json_plan(f'{{"version": {"9" * 5000}}}'), "JSON"),
    "a plan of NUL": (d.json_plan("\0" * 100), "JSON"),
    "a plan with texts for numbers": (d.plan(lambda made: made["nodes"]["mul0"].update(bits="many")), "bits"),
    "a plan with huge numbers": (d.plan(lambda made: made.update(opset=10**30)), None),
    "a plan with NaN": (d.plan(lambda made: made["nodes"]["mul0"].update(measured={"noise": float("nan")})), None),
    "a plan with an operator that differs": (
        d.plan(lambda made: made["nodes"].update(gone=made["nodes"]["mul0"])),
        "gone",
    ),
    "a recipe that is no TOML": (d.recipe("mode = = 1"), "TOML"),
    "a recipe nested 100,000 deep": (d.recipe(f"a = {'[' * 100_000}"), "TOML"),
    "a recipe with NaN": (d.recipe("[contract]\nmax_drop = nan\n"), "max_drop"),
    "a recipe with infinity": (d.recipe("[contract]\nmin_speedup = inf\n"), "min_speedup"),
    "a recipe with huge numbers": (d.recipe(f"[contract]\nmax_size = {'9' * 5000}\n"), "recipe.toml"),
    "a recipe with a text for a number": (d.recipe('[weight]\nblock_size = "many"\n'), "block_size"),
    "a recipe with a date": (d.recipe("mode = 1979-05-27\n"), "mode"),
}

ALL: tuple[Hostile, ...] = (
    *rows("model", MODELS),
    *rows("weights in a file", OUTSIDE),
    *rows("weights", TENSORS),
    *rows("graph", GRAPHS),
    *rows("data", DATA),
    *rows("wishes", WISHES),
)


@dataclass(frozen=True)
class Met:
    """How an input was met.

    Attributes:
        code: the exit code.
        out: standard output.
        err: standard error.
        seconds: how long it took.
        grown: by how many MiB the process grew.
        left: files that were there afterwards and not before.
    """

    code: int
    out: str
    err: str
    seconds: float
    grown: float
    left: tuple[str, ...]

    def problems(self, hostile: Hostile) -> Iterator[str]:
        """What is wrong with that."""
        if "Traceback" in self.err:
            yield "a traceback came out"
        if self.grown > GROWTH:
            yield f"took {self.grown:.0f} MiB"
        if hostile.says is None:
            yield from [f"exit code {self.code}: {self.err.strip()[-300:]}"] if self.code else []
            return
        if self.code != 2 or self.err.count("\n") != 1 or not self.err.startswith("onnxq: error: "):
            yield f"exit code {self.code}, {self.err.count(chr(10))} lines: {self.err[-2000:]}"
        if hostile.says not in self.err:
            yield f"does not say {hostile.says!r}: {self.err.strip()[:300]}"
        if not self.err.removesuffix("\n").isprintable():
            yield f"prints control characters: {self.err[:200]!r}"
        if self.left:
            yield f"left behind: {', '.join(self.left)}"


def meet(number: int) -> Met:
    """Meet an input in this process, in a folder of its own."""
    from onnxq.__main__ import run

    home, began, out, err = Path.cwd(), time.monotonic(), io.StringIO(), io.StringIO()
    with tempfile.TemporaryDirectory(prefix="hostile.") as name:
        folder = Path(name)
        words = ALL[number].make(folder)
        before, held = _listing(folder), _memory()
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = run([*words, *(["--no-cache"] if words[0] == "optimize" else [])])
        finally:
            os.chdir(home)
        left = tuple(sorted(_listing(folder) - before))
    return Met(code, out.getvalue(), err.getvalue(), time.monotonic() - began, _memory() - held, left)


def _listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _memory() -> float:
    """The most MiB that this process ever held; 0 where the system does not tell."""
    if sys.platform == "win32":
        return 0.0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(words: Sequence[str]) -> int:
    """Meet every input, and print how. 1 where one is met as it should not be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--match", default="", help="only inputs with this in their name")
    parser.add_argument("--markdown", action="store_true", help="print rows of a table")
    arguments = parser.parse_args(words)
    failed = 0
    with Limited(meet, LIMITS) as process:
        for number, hostile in enumerate(ALL):
            if arguments.match not in hostile.name:
                continue
            try:
                met = process(number)
                said = met.err.strip().removeprefix("onnxq: error: ") or "(works)"
                problems = list(met.problems(hostile))
            except Gone as gone:
                said, problems = str(gone), [str(gone)]
            failed += bool(problems)
            said = said if len(said) < 220 else f"{said[:200]} …"
            print(f"| {hostile.name} | {said} |" if arguments.markdown else f"{hostile.name}\n    {said}", flush=True)
            for problem in problems:
                print(f"    FAILED: {problem}", flush=True)
    print(f"{failed} of {len(ALL)} failed", file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
