"""Data, plans and recipes that are damaged, or made to do harm, for a plain model that is whole."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hostile_models import FILE, LENGTH, plain

from onnxq.plan import NodePlan, Plan, Treatment
from onnxq.recipe import Recipe

DATA, PLAN, RECIPE = "data.npz", "plan.json", "recipe.toml"
STATIC = ("--recipe", "static-int8", "--seconds", "0", "--quiet")
Make = Callable[[Path], list[str]]


class Payload:
    """What a pickle of this would do when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("pickle_was_run", "w")


def data(write: Callable[[Path], object]) -> Make:
    """A plain model, and data that `write` puts into a file."""

    def make(folder: Path) -> list[str]:
        (folder / FILE).write_bytes(plain().SerializeToString())
        write(folder / DATA)
        return ["optimize", FILE, "--data", DATA, *STATIC]

    return make


def array(values: Any) -> Make:
    """Data with this array for x."""
    return data(lambda path: np.savez(path, x=values))


def raw(content: bytes) -> Make:
    """Data with these bytes."""
    return data(lambda path: path.write_bytes(content))


def header(shape: str, dtype: str = "'<f4'") -> bytes:
    """The head of an .npy file."""
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (63 - (len(text) + 10) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("latin1")


def member(content: bytes, kind: int = zipfile.ZIP_STORED, name: str = "x.npy") -> bytes:
    """An archive with one file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def pickled() -> bytes:
    """An archive whose array is a pickle."""
    return member(header("(2, 16)", "'|O'") + pickle.dumps(Payload()))


def bomb() -> bytes:
    """A few MB that unpack to 4 GiB of zeros, and say that they unpack to a terabyte."""
    rows = 2**40 // (4 * LENGTH)
    packer, zeros = zlib.compressobj(9, wbits=-15), bytes(2**24)
    head = header(f"({rows}, {LENGTH})")
    packed = packer.compress(head) + b"".join(packer.compress(zeros) for _ in range(256)) + packer.flush()
    return _deflated(packed, len(head) + 2**40)


def _deflated(packed: bytes, size: int) -> bytes:
    """An archive around one deflated stream, with sizes in the 64-bit form, whatever its checksum."""
    name, extra = b"x.npy", struct.pack("<HHQQ", 1, 16, size, len(packed))
    common = struct.pack("<HHHHHIII", 45, 0, 8, 0, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF) + struct.pack("<HH", len(name), 20)
    local = b"PK\x03\x04" + common + name + extra
    central = b"PK\x01\x02" + struct.pack("<H", 45) + common + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name + extra
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, len(central), len(local) + len(packed), 0)
    return local + packed + central + end


def flipped(content: bytes, place: int) -> bytes:
    """The same with other bytes at a place."""
    return content[:place] + bytes(b ^ 255 for b in content[place : place + 40]) + content[place + 40 :]


def locked() -> bytes:
    """An archive that says it needs a password."""
    content = bytearray(member(header("(2, 16)") + bytes(128)))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def plan(edit: Callable[[dict[str, Any]], Any]) -> Make:
    """A plan for the plain model, edited."""

    def make(folder: Path) -> list[str]:
        node = NodePlan(op="MatMul", treatment=Treatment.DYNAMIC, reason="")
        made: dict[str, Any] = json.loads(Plan(recipe=Recipe(mode="dynamic-int8"), nodes={"mul0": node}).to_json())
        edit(made)
        return written(PLAN, json.dumps(made), "--plan")(folder)

    return make


def written(name: str, text: str, flag: str) -> Make:
    """A plain model, and a file with this text."""

    def make(folder: Path) -> list[str]:
        (folder / FILE).write_bytes(plain().SerializeToString())
        (folder / name).write_text(text, encoding="utf-8")
        return ["optimize", FILE, flag, name, "--seconds", "0", "--quiet"]

    return make


def recipe(text: str) -> Make:
    """A plain model, and a recipe with this text."""
    return written(RECIPE, text, "--recipe")


def json_plan(text: str) -> Make:
    """A plain model, and a plan with this text."""
    return written(PLAN, text, "--plan")
