"""What is installed is what lies in the repository, once."""

from __future__ import annotations

import importlib
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import onnxq
import onnxq.passes
from onnxq.passes import fold_integer

ROOT = Path(__file__).parents[1]


def project() -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_folder_of_code_is_a_package_that_is_installed() -> None:
    here = {path.parent for path in (ROOT / "onnxq").rglob("__init__.py")} | {ROOT / "passes"}
    names = {".".join(path.relative_to(ROOT).parts) for path in here if "passes" not in path.parts}
    setuptools = project()["tool"]["setuptools"]
    assert sorted(setuptools["packages"]) == sorted(names | {"onnxq.passes"})
    assert setuptools["package-dir"] == {"onnxq.passes": "passes"}
    assert setuptools["package-data"]["onnxq"] == ["py.typed"]
    assert (ROOT / "onnxq" / "py.typed").exists()


def test_no_folder_of_code_lacks_its_init() -> None:
    folders = {path.parent for path in (ROOT / "onnxq").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_link_leads_to_the_passes() -> None:
    link = ROOT / "onnxq" / "passes"
    assert link.is_symlink()
    assert link.readlink() == Path("../passes")


def test_passes_are_loaded_once() -> None:
    home = (ROOT / "passes").resolve()
    assert Path(str(onnxq.passes.__file__)).resolve() == home / "__init__.py"
    loaded = [name for name, module in sys.modules.items() if lies_in(module, home)]
    assert loaded
    assert all(name.startswith("onnxq.passes") for name in loaded)
    assert any(type(step) is fold_integer.FoldInteger for step in onnxq.passes.FOLD)


def lies_in(module: object, folder: Path) -> bool:
    """Whether a module was loaded from a file in this folder."""
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).resolve().is_relative_to(folder)


def test_passes_refuse_their_bare_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    with pytest.raises(ImportError, match=r"Import this package as onnxq\.passes, not as passes"):
        importlib.import_module("passes")
    assert "passes" not in sys.modules


def test_the_version_is_the_same_everywhere() -> None:
    assert onnxq.__version__ == project()["project"]["version"]


def test_every_public_name_is_there() -> None:
    assert [name for name in onnxq.__all__ if getattr(onnxq, name, None) is None] == []


def test_the_command_exists() -> None:
    module, _, function = project()["project"]["scripts"]["onnxq"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
