"""What is different between two models: the page that strings the floors together."""

from __future__ import annotations

from pathlib import Path

from onnxq.build import typed
from onnxq.errors import UnsupportedModel
from onnxq.graph import Graph
from onnxq.graphdiff.compare import compare
from onnxq.graphdiff.findings import GraphDiff
from onnxq.intake import NAMELESS
from onnxq.modelfile import Source, load


def diff(before: Source, after: Source) -> GraphDiff:
    """Say what is different between two models, whoever made them.

    Nodes are matched across fusion, folding, renaming and quantization. The order of nodes and the names of nodes and
    inner tensors make no difference.

    Args:
        before: a path, the bytes of a model, or a `ModelProto`.
        after: likewise.

    Raises:
        ModelError: a model cannot be read.
    """
    return compare(_read(before), _read(after), (_name(before), _name(after)))


def _read(source: Source) -> Graph:
    """The graph, with the types that the runtime infers; with those of the file where the runtime refuses it."""
    graph = load(source)
    try:
        return typed(graph)
    except UnsupportedModel:
        return graph


def _name(source: Source) -> str:
    return Path(source).name if isinstance(source, (str, Path)) else str(NAMELESS)
