"""Folders that killed runs left are cleared away by the next one; those of others that run stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from onnxq.abandoned import LOCK, clear_abandoned, held

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks: nothing is cleared there.")


def folder(parent: Path, name: str = ".out.onnx.abcdefgh", *, locked: bool = True) -> Path:
    made = parent / name
    made.mkdir()
    (made / "out.onnx").write_text("half")
    if locked:
        (made / LOCK).touch()
    return made


def test_what_nobody_holds_goes(tmp_path: Path) -> None:
    made = folder(tmp_path)
    clear_abandoned(tmp_path / "out.onnx")
    assert not made.exists()


def test_what_somebody_holds_stays(tmp_path: Path) -> None:
    made = folder(tmp_path)
    with held(made):
        clear_abandoned(tmp_path / "out.onnx")
        assert made.exists()
    clear_abandoned(tmp_path / "out.onnx")
    assert not made.exists()


def test_what_another_process_holds_stays_until_it_is_killed(tmp_path: Path) -> None:
    made = folder(tmp_path)
    code = "import sys, time; from pathlib import Path; from onnxq.abandoned import held\n"
    code += "with held(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(made)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        clear_abandoned(tmp_path / "out.onnx")
        assert made.exists()
        process.kill()
    clear_abandoned(tmp_path / "out.onnx")
    assert not made.exists()


def test_without_a_lock_only_what_is_old_goes(tmp_path: Path) -> None:
    made = folder(tmp_path, locked=False)
    clear_abandoned(tmp_path / "out.onnx")
    assert made.exists(), "its owner may be about to lock it"
    os.utime(made, (0, 0))
    clear_abandoned(tmp_path / "out.onnx")
    assert not made.exists()


@pytest.mark.parametrize("name", [".out.onnx.rounded", ".out.onnx.abc", ".other.onnx.abcdefgh", "out.onnx.abcdefgh"])
def test_what_is_no_such_folder_stays(tmp_path: Path, name: str) -> None:
    made = folder(tmp_path, name)
    clear_abandoned(tmp_path / "out.onnx")
    assert made.exists()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    made = folder(tmp_path, "mine")
    (tmp_path / ".out.onnx.abcdefgh").symlink_to(made)
    clear_abandoned(tmp_path / "out.onnx")
    assert (made / "out.onnx").exists()


def test_a_folder_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    clear_abandoned(tmp_path / "absent" / "out.onnx")
