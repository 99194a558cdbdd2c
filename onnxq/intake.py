"""What comes into a call and where its result goes: models as files, data for calibration and proof, output names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from onnxq.build import Build
from onnxq.calibration.data import Data
from onnxq.calibration.feeds import Source as Feeds
from onnxq.errors import UnsupportedModel
from onnxq.graph import Graph
from onnxq.modelfile import Source, check_output, save
from onnxq.quantities import plural
from onnxq.recipe import Mode, Recipe

NAMELESS = Path("model.onnx")
"""What a model that is only in memory is called."""

NO_DATA = Data(Feeds("no data", 0, lambda _: {}, str), (), ())
"""What a model is proven on that nothing can be fed to."""


def why_unfed(graph: Graph) -> str | None:
    """The sentence why no data can be fed to a model; None where some can."""
    if not graph.inputs:
        return "The model has no inputs: what it computes is always the same."
    kinds = {info.name: info.type.WhichOneof("value") or "type" for info in graph.shell.graph.input}
    for name, kind in ((tensor.name, kinds[tensor.name]) for tensor in graph.inputs):
        if kind not in ("tensor_type", "type"):
            what = kind.removesuffix("_type").replace("_", " ")
            return f"Input '{name}' takes a {what}, and data holds tensors alone: nothing could be proven."
    return None


def about_weights(graph: Graph) -> list[str]:
    """What a careful person would want to know about how the weights of a model are stored."""
    listed = {info.name for info in graph.shell.graph.input} & {tensor.name for tensor in graph.weights()}
    if not listed or graph.shell.ir_version < 4:  # before that, every weight had to be listed
        return []
    return [
        f"{plural(len(listed), 'weight')} of the float model may be fed as inputs too, so that ONNX Runtime folds "
        "nothing into them: it is slower than it need be, and part of any speed-up is that they are plain weights now. "
        "Export it without keep_initializers_as_inputs."
    ]


def split(feeds: Data | None, samples: int, mode: Mode, build: Build) -> tuple[Data | None, Data | None]:
    """Data for calibration and for validation; the same where there is one sample only."""
    if feeds is None:
        return None, None
    if len(feeds) < 2:
        build.warnings.append("One sample only: validated on what calibration saw. Give more data, or --validation.")
        return feeds, feeds
    calibration, held = feeds.split(min(samples, len(feeds) - max(1, len(feeds) // 4)))
    return calibration, held


def at_most(feeds: Data, samples: int) -> Data:
    """So many samples, spread over all of them."""
    return feeds.split(samples)[0] if len(feeds) > samples else feeds


def target_of(model: Source, output: Path | str | None, wanted: Recipe) -> Path | None:
    """Where to write. Raises OutputError where that cannot be."""
    if output is None and not isinstance(model, (str, Path)):
        return None
    mode = "fp16" if (wanted.mode, wanted.target) == ("auto", "cuda") else wanted.mode
    suffix = {"weight-int4": ".int4.onnx", "fp16": ".fp16.onnx"}.get(mode, ".int8.onnx")
    target = Path(output) if output is not None else Path(str(model)).with_suffix(suffix)
    check_output(model, target)
    return target


@contextmanager
def as_file(model: Source, graph: Graph) -> Iterator[Path]:
    """The float model as a file: its own, or a temporary one for a model that is only in memory."""
    if isinstance(model, (str, Path)):
        yield Path(model)
        return
    with TemporaryDirectory(prefix="onnxq.") as folder:
        file = Path(folder) / NAMELESS
        save(graph, file)
        yield file


@contextmanager
def named(model: Source) -> Iterator[None]:
    """What the runtime refuses is said with the name of the file."""
    try:
        yield
    except UnsupportedModel as error:
        if not isinstance(model, (str, Path)) or str(error).startswith("'"):
            raise
        raise UnsupportedModel(f"'{Path(model).name}': {error}") from None
