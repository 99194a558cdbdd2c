"""Weights alone in integers, from file to file: written layer by layer, and gone on with after an interruption."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest

import onnxq
from onnxq import Options, Recipe, proof, weights
from onnxq.graph import Graph, to_model, weight
from onnxq.memo import Memo
from onnxq.modelfile import load
from onnxq.numerics.rounding.blocks import Blocked, block_round
from onnxq.recipe import make_recipe
from onnxq.runtime import Session
from onnxq.tensors import Stored
from tests.onnx_text import floats, read, sqnr

Array = np.ndarray[Any, Any]
Mode = Literal["weight-int4", "weight-int8"]

WIDTH, WORDS, CLASSES = 32, 520, 40
TEXT = """(int64[n,t] ids, float[n,t,32] x) => (float[n,t,40] y) {
    [emb] e = Gather(table, ids) [add] i = Add(e, x) [one] a = MatMul(i, w1) [bias] b = Add(a, k) [act] r = Relu(b)
    [two] c = MatMul(r, w2) [sum] s = Add(c, i) [three] d = MatMul(s, w3) [tanh] t = Tanh(d)
    [head] y = MatMul(t, w4) }"""
WEIGHTS = {
    "table": floats(WORDS, WIDTH),
    "w1": floats(WIDTH, 48) / 6,
    "k": floats(48),
    "w2": floats(48, WIDTH) / 7,
    "w3": floats(WIDTH, WIDTH) / 6,
    "w4": floats(WIDTH, CLASSES) / 6,
}
LAYERS = ("w1", "w2", "w3", "w4")
ROUNDED = ("round", "bytes")
"""Stages of progress that tell of a weight: with data and without."""
UNPROVEN = Options(check=False, memo=Memo(None))


def graph() -> Graph:
    return read(TEXT, WEIGHTS)


def samples(count: int = 6) -> list[dict[str, Array]]:
    random = np.random.default_rng(1)
    return [{"ids": random.integers(0, WORDS, (1, 12)), "x": floats(1, 12, WIDTH, seed=seed)} for seed in range(count)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model with its weights in a file beside it."""
    path = tmp_path / "in" / "model.onnx"
    path.parent.mkdir()
    onnx.save(to_model(graph()), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


@pytest.fixture
def output(tmp_path: Path) -> Path:
    path = tmp_path / "out" / "q.onnx"
    path.parent.mkdir()
    return path


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the weights that are rounded."""
    shapes: list[tuple[int, ...]] = []

    def counted(values: Array, **wish: Any) -> Blocked:
        shapes.append(values.shape)
        return block_round(values, **wish)

    monkeypatch.setattr(weights, "block_round", counted)
    return shapes


SHAPES = [WEIGHTS[name].shape for name in LAYERS]


def files(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(output.parent.iterdir())}


Given = list[dict[str, Array]] | None


@pytest.mark.parametrize("given", [None, samples()], ids=["no data", "data"])
def test_every_weight_is_rounded_once_and_nothing_is_left_behind(
    given: Given, source: Path, output: Path, rounds: list[tuple[int, ...]]
) -> None:
    result = onnxq.optimize(source, output, data=given, recipe=Recipe(mode="weight-int4"), options=UNPROVEN)
    assert result.status == "optimized"
    assert rounds == SHAPES
    assert files(output).keys() == {"q.onnx", "q.onnx.data"}
    made = load(output)
    assert [node.op for node in made.nodes].count("MatMulNBits") == 4
    x = samples(8)[-1]
    (want,), (have,) = (list(Session(path, threads=1).run(x).values()) for path in (source, output))
    assert sqnr(want, have) > 12


def test_weights_are_never_copied_as_a_whole(source: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are maps of the file; what is rounded goes to the disk before the next one is."""
    maps: Counter[str] = Counter()
    plain = Stored.load

    def watched(self: Stored) -> Array:
        values = plain(self)
        if self.external:
            assert not values.flags.owndata
            assert not values.flags.writeable
            maps[self.tensor.name] += 1
        return values

    monkeypatch.setattr(Stored, "load", watched)
    held: list[int] = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage in ROUNDED:
            held.append(len(list((output.parent / ".q.onnx.rounded").glob("*.npz"))))

    recipe, options = Recipe(mode="weight-int4"), Options(check=False, memo=Memo(None), progress=progress)
    onnxq.optimize(source, output, recipe=recipe, options=options)
    assert held == [1, 2, 3, 4]
    assert {name: maps[name] for name in LAYERS} == dict.fromkeys(LAYERS, 1)


@pytest.mark.parametrize("mode", ["weight-int4", "weight-int8"])
@pytest.mark.parametrize("given", [None, samples()], ids=["no data", "data"])
def test_a_second_run_writes_the_same_bytes(given: Given, mode: Mode, source: Path, output: Path) -> None:
    made = []
    for _ in range(2):
        onnxq.optimize(source, output, data=given, recipe=Recipe(mode=mode), options=UNPROVEN)
        made.append(files(output))
    assert made[0] == made[1]


def stop_at(number: int) -> Callable[[str, int, int], None]:
    """Progress that interrupts after so many layers."""
    seen: list[int] = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage in ROUNDED:
            seen.append(done)
            if len(seen) == number:
                raise KeyboardInterrupt

    return progress


def interrupted(source: Path, output: Path, given: Given, recipe: Recipe, number: int = 2) -> None:
    options = Options(check=False, memo=Memo(None), progress=stop_at(number))
    with pytest.raises(KeyboardInterrupt):
        onnxq.optimize(source, output, data=given, recipe=recipe, options=options)
    assert list(output.parent.iterdir()) == [output.with_name(".q.onnx.rounded")], "no output, and no part of one"


@pytest.mark.parametrize("given", [None, samples()], ids=["no data", "data"])
def test_an_interrupted_run_goes_on_where_it_stopped(
    given: Given, source: Path, output: Path, rounds: list[tuple[int, ...]]
) -> None:
    recipe = Recipe(mode="weight-int4")
    onnxq.optimize(source, output, data=given, recipe=recipe, options=UNPROVEN)
    whole = files(output)
    for path in output.parent.iterdir():
        path.unlink()
    del rounds[:]
    interrupted(source, output, given, recipe)
    assert rounds == SHAPES[:2]
    onnxq.optimize(source, output, data=given, recipe=recipe, options=UNPROVEN)
    assert rounds == SHAPES
    assert files(output) == whole


CHANGES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "another recipe": lambda _: {"recipe": make_recipe({"mode": "weight-int4", "weight": {"block_size": 16}})},
    "another width": lambda _: {"recipe": Recipe(mode="weight-int8")},
    "other data": lambda _: {"data": samples(7)[1:]},
    "other weights": lambda source: touched(source),
}


def touched(source: Path) -> dict[str, Any]:
    """Another file of the same size."""
    data = source.with_name("weights.bin")
    values = np.frombuffer(data.read_bytes(), np.uint8).copy()
    values[3] ^= 1
    data.write_bytes(values.tobytes())
    return {}


@pytest.mark.parametrize("case", CHANGES)
def test_what_was_rounded_for_something_else_is_not_taken(
    case: str, source: Path, output: Path, rounds: list[tuple[int, ...]]
) -> None:
    recipe = Recipe(mode="weight-int4")
    interrupted(source, output, samples(), recipe)
    del rounds[:]
    wishes: dict[str, Any] = {"recipe": recipe, "data": samples()} | CHANGES[case](source)
    onnxq.optimize(source, output, options=UNPROVEN, **wishes)
    assert rounds == SHAPES
    assert files(output).keys() == {"q.onnx", "q.onnx.data"}


def test_a_model_in_one_file_needs_no_folder(tmp_path: Path, output: Path) -> None:
    onnx.save(to_model(graph()), tmp_path / "model.onnx")
    seen: list[set[str]] = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage in ROUNDED:
            seen.append({path.name for path in output.parent.iterdir()})

    options = Options(check=False, memo=Memo(None), progress=progress)
    onnxq.optimize(tmp_path / "model.onnx", output, recipe=Recipe(mode="weight-int4"), options=options)
    assert seen == [set()] * 4
    assert files(output).keys() == {"q.onnx"}


def test_a_layer_with_enormous_inputs_is_named(tmp_path: Path, output: Path) -> None:
    text = "(float[n,64] x) => (float[n,12] y) { [loud] a = MatMul(x, v) [act] r = Tanh(a) [quiet] y = MatMul(r, w) }"
    v = floats(64, 48) / 8
    v[5] /= 1000
    onnx.save(to_model(read(text, {"v": v, "w": floats(48, 12) / 6})), tmp_path / "model.onnx")
    x = floats(256, 64)
    x[:, 5] *= 1000
    recipe = Recipe(mode="weight-int4")
    result = onnxq.optimize(tmp_path / "model.onnx", output, data={"x": x}, recipe=recipe, options=UNPROVEN)
    (said,) = [words for words in result.warnings if "accuracy level" in words]
    assert said.startswith("At the slower accuracy level 0 for 'loud':")
    assert result.plan is not None
    assert {name: node.accuracy_level for name, node in result.plan.nodes.items()} == {"loud": 0, "quiet": 4}
    levels = [node.attrs["accuracy_level"] for node in load(output).nodes if node.op == "MatMulNBits"]
    assert levels == [0, 4]


def halved() -> Graph:
    """The same model in float16, activations and all."""
    text = TEXT.replace("float[", "float16[")
    return read(text, {name: values.astype(np.float16) for name, values in WEIGHTS.items()})


@pytest.mark.parametrize(("mode", "least"), [("weight-int4", 12), ("weight-int8", 35)])
@pytest.mark.parametrize("given", [False, True], ids=["no data", "data"])
@pytest.mark.parametrize("outside", [False, True], ids=["one file", "external data"])
def test_a_model_in_half_precision(
    outside: bool,
    given: bool,
    mode: Mode,
    least: float,
    tmp_path: Path,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is proven as well; that takes a process of its own only to measure memory."""
    monkeypatch.setattr(proof, "loaded_memory", lambda *_: 0)
    path = tmp_path / "half.onnx"
    onnx.save(to_model(halved()), path, save_as_external_data=outside, location="weights.bin", size_threshold=0)
    feeds = [{"ids": one["ids"], "x": one["x"].astype(np.float16)} for one in samples(8)]
    data = feeds[:6] if given else None
    result = onnxq.optimize(
        path, output, data=data, recipe=Recipe(mode=mode), options=Options(memo=Memo(None), seconds=0.0)
    )
    assert result.status == "optimized"
    made = load(output)
    nodes = [node for node in made.nodes if node.op == "MatMulNBits"]
    assert len(nodes) == 4
    for node in nodes:
        assert [str(tensor.dtype) for tensor in node.inputs[1:4]] == ["uint8", "float16", "uint8"]
        assert np.isfinite(weight(node.inputs[2])).all()
    session, x = Session(output, threads=1), feeds[-1]
    (have,) = session.run(x).values()
    assert have.dtype == np.float16
    (want,) = Session(path, threads=1).run(x).values()
    assert sqnr(want, have) > least
    assert made.interface() == load(path).interface()


@pytest.mark.parametrize("method", ["auto", "awq"])
def test_data_of_another_width_is_refused(method: str) -> None:
    """The runtime is not asked about what a first layer reads."""
    model = to_model(read("(float[n,k] x) => (float[n,4] y) { [fc] y = MatMul(x, w) }", {"w": floats(32, 4)}))
    recipe = make_recipe({"mode": "weight-int4", "weight": {"method": method}})
    with pytest.raises(onnxq.OnnxqError, match=r"'x' has shape \[\d+, 16\], and layer 'fc' reads rows of 32 numbers"):
        onnxq.optimize(model, data={"x": floats(8, 16)}, recipe=recipe, options=UNPROVEN)
