"""What draws a comparison, where the packages for that are installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from onnxq.errors import RecipeError
from onnxq.graphdiff.findings import GraphDiff

INSTALL = "Install it with: pip install 'onnxq[report]'."


def page_writer() -> Callable[[GraphDiff, Path], None]:
    """What draws a comparison as a page. Raises RecipeError where the packages for that are missing."""
    try:
        from onnxq.graphdiff.layout import VERSION, is_safe
        from onnxq.graphdiff.page import write
    except ModuleNotFoundError as error:
        raise RecipeError(f"--html needs the package {error.name}. {INSTALL}") from None
    if not is_safe(VERSION):
        raise RecipeError(f"--html needs another igraph than {VERSION}, which crashes now and then. {INSTALL}")
    return write
