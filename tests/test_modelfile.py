"""Files that are no models are named, external data is found and kept, and a result is written whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from onnxq import modelfile
from onnxq.errors import ModelError, OnnxqError, OutputError
from onnxq.graph import Constant, Graph, is_external, to_model, upgrade, weight
from onnxq.modelfile import ALIGNMENT, check_output, load, replacing, save

TEXT = """
<ir_version: 7, opset_import: ["" : 13]>
g (float[N, 2] x) => (float[N, 3] y)
<float[2, 3] w = {1, 2, 3, 4, 5, 6}>
{
  m = MatMul(x, w)
  y = Relu(m)
}
"""
WEIGHT = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
ONE = np.ones((1, 2), np.float32)


def small() -> ModelProto:
    """Relu(MatMul(x, w))."""
    return parser.parse_model(TEXT)


def reference(location: str, **place: object) -> ModelProto:
    """The same model with its weight in a file."""
    made = small()
    stored = made.graph.initializer[0]
    del stored.float_data[:]
    stored.ClearField("raw_data")
    stored.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **place}.items():
        stored.external_data.add(key=key, value=str(value))
    return made


def write(folder: Path, made: ModelProto, name: str = "m.onnx") -> Path:
    path = folder / name
    path.write_bytes(made.SerializeToString())
    return path


def run(path: Path) -> list[list[float]]:
    """What the runtime makes of a file."""
    found: list[list[float]] = ort.InferenceSession(str(path)).run(None, {"x": ONE})[0].tolist()
    return found


def big(folder: Path, name: str = "big.onnx", data: str | None = None) -> Path:
    """A model with four weights in a data file, and one that is too small for it."""
    rng = np.random.default_rng(0)
    arrays = {f"w{i}": rng.standard_normal((40, 40)).astype(np.float32) for i in range(4)}
    arrays["b"] = np.ones(40, np.float32)
    nodes = [helper.make_node("MatMul", ["x" if i == 0 else f"t{i - 1}", f"w{i}"], [f"t{i}"]) for i in range(4)]
    nodes.append(helper.make_node("Add", ["t3", "b"], ["y"]))
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 40]) for n in "xy")
    weights = [numpy_helper.from_array(a, n) for n, a in arrays.items()]
    made = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], weights), opset_imports=[helper.make_opsetid("", 13)]
    )
    made.ir_version = 7
    path = folder / name
    onnx.save(made, path, save_as_external_data=True, location=data or f"{name}.bin", size_threshold=256)
    return path


def big_output(path: Path) -> np.ndarray:
    found: np.ndarray = ort.InferenceSession(str(path)).run(None, {"x": np.ones((1, 40), np.float32)})[0]
    return found


# --- what is no model ---


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty. Export the model again"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is not an ONNX model"),
        (b"# Readme\n\nThis is a text, not a model.\n", "is not an ONNX model"),
        (bytes(range(256)) * 4, "is not an ONNX model"),
        (b'{"a": 1}', "is not an ONNX model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (ModelProto(ir_version=7).SerializeToString(), "holds no graph or no opset"),
        (ModelProto(opset_import=[helper.make_opsetid("", 13)]).SerializeToString(), "holds no graph or no opset"),
    ],
    ids=["empty", "png", "text", "bytes", "json", "lfs", "nothing", "no graph"],
)
def test_what_is_no_model_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "photo.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=words) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone\.onnx' does not exist"):
        load(tmp_path / "gone.onnx")
    with pytest.raises(ModelError, match=r"is a folder. Name the \.onnx file in it"):
        load(str(tmp_path))
    with pytest.raises(ModelError, match="cannot be read"):
        load("a\0b.onnx")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    write(tmp_path, small())
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ModelError, match=r"m\.onnx' cannot be read \(Permission denied\)"):
        load(tmp_path / "m.onnx")


def test_a_model_that_was_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    content, path = small().SerializeToString(), tmp_path / "cut.onnx"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ModelError, match=r"cut\.onnx"):
            load(path)


@pytest.mark.parametrize("name", ["MatMul", "long_graph_name", "long_input_name"])
def test_a_name_that_is_no_text_is_shown(name: str) -> None:
    made = small()
    made.graph.name = "long_graph_name"
    made.graph.input[0].name = made.graph.node[0].input[0] = "long_input_name"
    content = made.SerializeToString().replace(name.encode(), b"\xff" * len(name))
    with pytest.raises(ModelError, match=r"b'\\xff.* no valid text"):
        load(content)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=4))
def test_damaged_bytes_make_a_model_or_an_error_of_ours(place: int, damage: bytes) -> None:
    content = bytearray(small().SerializeToString())
    place %= len(content)
    content[place : place + len(damage)] = damage
    try:
        graph = load(bytes(content))
    except OnnxqError:
        return
    assert graph.outputs


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_an_error_of_ours(content: bytes) -> None:
    with pytest.raises(ModelError):
        load(content)


def test_a_model_without_outputs_or_opset_is_refused(tmp_path: Path) -> None:
    made = small()
    del made.graph.output[:]
    with pytest.raises(ModelError, match=r"m\.onnx' has no outputs"):
        load(write(tmp_path, made))
    made = small()
    del made.opset_import[:]
    with pytest.raises(ModelError, match="holds no graph or no opset"):
        load(made)


def test_errors_inside_the_graph_name_the_file(tmp_path: Path) -> None:
    made = small()
    made.graph.initializer.append(made.graph.initializer[0])
    with pytest.raises(ModelError, match=r"^m\.onnx: Initializer 'w' is defined twice"):
        load(write(tmp_path, made))


def test_bytes_and_models_in_memory_load_as_files_do(tmp_path: Path) -> None:
    for source in (small(), small().SerializeToString(), write(tmp_path, small()), str(write(tmp_path, small()))):
        assert weight(load(source).weights()[0]).tolist() == WEIGHT.tolist()


def test_a_model_in_memory_is_not_edited() -> None:
    made = small()
    before = made.SerializeToString(deterministic=True)
    graph = load(made)
    graph.nodes[1].op = "Abs"
    graph.tidy()
    assert made.SerializeToString(deterministic=True) == before


# --- weights that do not fit their shape ---


def with_weight(stored: TensorProto) -> ModelProto:
    made = small()
    made.graph.initializer[0].CopyFrom(stored)
    return made


def raw(code: int, sizes: list[int], content: bytes) -> TensorProto:
    return TensorProto(name="w", data_type=code, dims=sizes, raw_data=content)


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (raw(TensorProto.FLOAT, [2, 3], b"\0" * 20), r"'w' holds 20 bytes where its shape \[2, 3\] needs 24"),
        (raw(TensorProto.FLOAT, [2, 3], b"\0" * 25), "holds 25 bytes"),
        (raw(TensorProto.INT4, [3], b"\0"), r"holds 1 bytes where its shape \[3\] needs 2"),
        (raw(TensorProto.FLOAT, [2**40, 2**40], b"\0" * 24), "holds 24 bytes"),
        (raw(TensorProto.FLOAT, [-2, -3], b"\0" * 24), r"'w' has a negative size: \[-2, -3\]"),
        (raw(99, [2, 3], b"\0" * 24), "'w' has element type 99, which ONNX does not know"),
        (raw(0, [2, 3], b"\0" * 24), "'w' has element type 0"),
        (TensorProto(name="w", data_type=1, dims=[2, 3], float_data=[1, 2]), "holds 2 values where .* needs 6"),
        (TensorProto(name="w", data_type=1, dims=[2, 3]), "holds 0 values"),
        (TensorProto(name="w", data_type=8, dims=[2], string_data=[b"a"]), "holds 1 values"),
        (TensorProto(name="w", data_type=14, dims=[2], float_data=[1, 2]), "holds 2 values where .* needs 4"),
        (TensorProto(name="w", data_type=22, dims=[3], int32_data=[1]), "holds 1 values where .* needs 2"),
    ],
)
def test_a_weight_of_the_wrong_size_is_named(stored: TensorProto, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        load(with_weight(stored))


def test_broken_tensors_in_attributes_and_bodies_are_named() -> None:
    broken = raw(TensorProto.FLOAT, [2], b"\0")
    made = small()
    made.graph.node.append(helper.make_node("Constant", [], ["k"], name="const", value=broken))
    with pytest.raises(ModelError, match="Attribute 'value' of node 'const' holds 1 bytes"):
        load(made)
    made = small()
    info = helper.make_tensor_value_info("o", TensorProto.FLOAT, [2])
    body = helper.make_graph([helper.make_node("Identity", ["w"], ["o"])], "b", [], [info], [broken])
    made.graph.node.append(helper.make_node("If", ["c"], ["k"], then_branch=body, else_branch=body))
    with pytest.raises(ModelError, match="Tensor 'w' holds 1 bytes"):
        load(made)


def test_broken_tensors_in_lists_functions_and_sparse_weights_are_named() -> None:
    broken = raw(TensorProto.FLOAT, [2], b"\0")
    made = small()
    made.graph.node[0].attribute.append(helper.make_attribute("many", [broken]))
    with pytest.raises(ModelError, match="Attribute 'many' of node 'MatMul' holds 1 bytes"):
        load(made)
    made = small()
    made.functions.add(name="F", domain="mine").node.append(helper.make_node("Constant", [], ["k"], value=broken))
    with pytest.raises(ModelError, match="Attribute 'value' of node 'Constant' holds 1 bytes"):
        load(made)
    for part in ("values", "indices"):
        made = small()
        sound = raw(TensorProto.INT64, [1], b"\0" * 8)
        made.graph.sparse_initializer.add(values=sound, indices=sound, dims=[2])
        getattr(made.graph.sparse_initializer[0], part).CopyFrom(broken)
        made.graph.sparse_initializer[0].values.name = "s"
        with pytest.raises(ModelError, match="Sparse tensor 's' holds 1 bytes"):
            load(made)


@pytest.mark.skipif(not hasattr(TensorProto, "FLOAT6E2M3"), reason="this onnx knows no 6-bit floats")
def test_six_bit_values_share_bytes_in_raw_data_alone() -> None:
    code = TensorProto.DataType.Value("FLOAT6E2M3")
    for stored in (raw(code, [4], b"\0" * 3), TensorProto(name="w", data_type=code, dims=[4], int32_data=[0] * 4)):
        assert load(with_weight(stored)).weights()[0].shape == (4,)


# --- external data ---


@pytest.mark.parametrize(
    ("location", "place", "words"),
    [
        ("gone.bin", {}, r"tensor 'w' is missing: there is no 'gone\.bin' beside the model"),
        ("", {}, "keeps its data in '', outside the model's folder"),
        ("{home}/w.bin", {}, "outside the model's folder"),
        ("../w.bin", {}, r"keeps its data in '\.\./w\.bin', outside the model's folder"),
        ("sub/../../w.bin", {}, "outside the model's folder"),
        ("out.bin", {}, r"keeps its data in 'out\.bin', outside the model's folder"),
        (".", {}, "missing"),
        ("sub", {}, "missing"),
        ("short.bin", {}, r"needs 24 bytes of 'short\.bin', which has 20. Copy the file again"),
        ("w.bin", {"offset": 8}, r"needs 32 bytes of 'w\.bin', which has 24"),
        ("w.bin", {"offset": -4}, "has no readable offset: '-4'"),
        ("w.bin", {"offset": "many"}, "has no readable offset: 'many'"),
        ("w.bin", {"offset": ""}, "has no readable offset: ''"),
        ("w.bin", {"length": "²"}, "has no readable length"),
        ("w.bin", {"length": 20}, r"has 20 bytes in 'w\.bin' where its shape \[2, 3\] needs 24"),
    ],
)
def test_external_data_that_is_not_there_is_named(
    tmp_path: Path, location: str, place: dict[str, object], words: str
) -> None:
    # Arrange
    home = tmp_path / "home"
    (home / "sub").mkdir(parents=True)
    (home / "w.bin").write_bytes(WEIGHT.tobytes())
    (home / "short.bin").write_bytes(WEIGHT.tobytes()[:20])
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    (home / "out.bin").symlink_to(tmp_path / "w.bin")
    path = write(home, reference(location.format(home=home), **place))
    # Act and assert
    with pytest.raises(ModelError, match=words) as caught:
        load(path)
    assert str(caught.value).startswith("m.onnx: ")


def test_external_data_with_a_negative_size_is_named(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    made = reference("w.bin")
    made.graph.initializer[0].dims[:] = [-2, 3]
    with pytest.raises(ModelError, match="negative size"):
        load(write(tmp_path, made))


@pytest.mark.parametrize("source", [reference("w.bin"), reference("w.bin").SerializeToString()], ids=["model", "bytes"])
def test_external_data_needs_a_path(source: ModelProto | bytes) -> None:
    with pytest.raises(ModelError, match=r"'w' keeps its data in 'w\.bin', .* Give the path of the model"):
        load(source)


@pytest.mark.parametrize(("padding", "place"), [(0, {}), (4, {"offset": 4}), (5, {"offset": 5, "length": 24})])
def test_external_weights_are_mapped_not_read(tmp_path: Path, padding: int, place: dict[str, object]) -> None:
    (tmp_path / "w.bin").write_bytes(b"\7" * padding + WEIGHT.tobytes())
    tensor = load(write(tmp_path, reference("w.bin", **place))).weights()[0]
    found = weight(tensor)
    assert is_external(tensor)
    assert found.tolist() == WEIGHT.tolist()
    assert not found.flags.owndata
    assert not found.flags.writeable


@pytest.mark.parametrize("code", [TensorProto.BFLOAT16, TensorProto.INT4, TensorProto.BOOL, TensorProto.FLOAT8E4M3FN])
def test_external_weights_of_odd_types_are_read(tmp_path: Path, code: int) -> None:
    values = np.array([[1, 0, 1], [0, 1, 1]], helper.tensor_dtype_to_np_dtype(code))
    (tmp_path / "w.bin").write_bytes(numpy_helper.from_array(values).raw_data)
    made = reference("w.bin")
    made.graph.initializer[0].data_type = code
    found = weight(load(write(tmp_path, made)).weights()[0])
    assert found.dtype == values.dtype
    assert found.astype(np.float32).tolist() == values.astype(np.float32).tolist()


def test_a_store_that_links_model_and_data_is_understood(tmp_path: Path) -> None:
    # Arrange: as the cache of a model hub lays them out
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    (blobs / "1f").write_bytes(reference("w.bin").SerializeToString())
    (blobs / "2e").write_bytes(WEIGHT.tobytes())
    (snapshot / "m.onnx").symlink_to("../blobs/1f")
    (snapshot / "w.bin").symlink_to("../blobs/2e")
    # Act
    graph = load(snapshot / "m.onnx")
    # Assert
    assert weight(graph.weights()[0]).tolist() == WEIGHT.tolist()
    assert graph.files == {(blobs / "2e").resolve()}
    options = ort.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph.folder))
    content = to_model(graph).SerializeToString()
    assert ort.InferenceSession(content, options).run(None, {"x": ONE})[0].tolist() == [[5, 7, 9]]


def test_a_model_is_read_from_wherever_python_moves_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    write(tmp_path, reference("w.bin"))
    monkeypatch.chdir(tmp_path)
    graph = load("m.onnx")
    monkeypatch.chdir("/")
    assert weight(graph.weights()[0]).tolist() == WEIGHT.tolist()


def test_an_upgrade_leaves_external_weights_where_they_are(tmp_path: Path) -> None:
    graph = load(big(tmp_path))
    newer = upgrade(graph, 17)
    assert (newer.opset, newer.folder, newer.files) == (17, graph.folder, graph.files)
    assert all(is_external(tensor) for tensor in newer.weights() if tensor.name != "b")
    np.testing.assert_array_equal(weight(newer.tensors()["w3"]), weight(graph.tensors()["w3"]))


# --- saving ---


def test_a_small_model_is_one_file(tmp_path: Path) -> None:
    with replacing(tmp_path / "out.onnx") as path:
        save(load(small()), path)
    assert [item.name for item in tmp_path.iterdir()] == ["out.onnx"]
    assert run(tmp_path / "out.onnx") == [[5, 7, 9]]


def test_external_data_stays_external_and_moves_along(tmp_path: Path) -> None:
    # Arrange
    there = tmp_path / "elsewhere"
    there.mkdir()
    source = big(tmp_path)
    # Act
    with replacing(there / "out.onnx") as path:
        save(load(source), path)
    # Assert
    expected = big_output(source)
    for item in tmp_path.glob("big*"):
        item.unlink()
    np.testing.assert_array_equal(big_output(there / "out.onnx"), expected)
    stored = {t.name: t for t in onnx.load(there / "out.onnx", load_external_data=False).graph.initializer}
    assert {n for n, t in stored.items() if t.data_location == TensorProto.EXTERNAL} == {"w0", "w1", "w2", "w3"}
    places = [{e.key: e.value for e in stored[f"w{i}"].external_data} for i in range(4)]
    assert [int(place["offset"]) for place in places] == [0, 2 * ALIGNMENT, 4 * ALIGNMENT, 6 * ALIGNMENT]
    assert {place["location"] for place in places} == {"out.onnx.data"}
    assert {place["length"] for place in places} == {"6400"}
    assert sorted(item.name for item in there.iterdir()) == ["out.onnx", "out.onnx.data"]


def test_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    source = big(tmp_path)
    contents = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        with replacing(tmp_path / str(number) / "out.onnx") as path:
            save(load(source).copy(), path)
        contents.append([(f.name, f.read_bytes()) for f in sorted((tmp_path / str(number)).iterdir())])
    assert contents[0] == contents[1]


def test_large_models_get_a_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelfile, "EMBEDDED_LIMIT", 23)
    monkeypatch.setattr(modelfile, "OUTSIDE_LIMIT", 24)
    save(load(small()), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").read_bytes() == WEIGHT.tobytes()
    assert run(tmp_path / "out.onnx") == [[5, 7, 9]]
    monkeypatch.setattr(modelfile, "EMBEDDED_LIMIT", 24)
    save(load(small()), tmp_path / "whole.onnx")
    assert not (tmp_path / "whole.onnx.data").exists()


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize(
    "code",
    [
        TensorProto.BFLOAT16,
        TensorProto.INT4,
        TensorProto.FLOAT16,
        TensorProto.BOOL,
        TensorProto.INT64,
        TensorProto.STRING,
    ],
)
def test_weights_of_every_kind_reach_the_data_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, typed: bool
) -> None:
    # Arrange: a weight that the file holds in raw bytes or in typed fields, and a new one beside it
    monkeypatch.setattr(modelfile, "EMBEDDED_LIMIT", 0)
    monkeypatch.setattr(modelfile, "OUTSIDE_LIMIT", 0)
    dtype = helper.tensor_dtype_to_np_dtype(code)
    values = np.array(["a", "b", "c"], object) if code == TensorProto.STRING else np.array([1, 0, 1]).astype(dtype)
    stored = numpy_helper.from_array(values, "w")
    if typed and code != TensorProto.STRING:
        stored = helper.make_tensor("w", code, [3], [1, 0, 1])
    info = helper.make_tensor_value_info("y", code, [3])
    body = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [info], [stored])
    graph = load(helper.make_model(body, opset_imports=[helper.make_opsetid("", 21)]))
    graph.outputs.append(Constant("new", values))
    # Act
    save(graph, tmp_path / "out.onnx")
    found = {t.name: weight(t) for t in load(tmp_path / "out.onnx").weights()}
    # Assert
    assert found["w"].dtype == values.dtype
    assert found["w"].tolist() == values.tolist()
    made = onnx.load(tmp_path / "out.onnx")
    assert all(numpy_helper.to_array(t).tolist() == values.tolist() for t in made.graph.initializer)
    assert len(made.graph.initializer) == 2


def test_external_weights_of_odd_types_are_saved_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelfile, "OUTSIDE_LIMIT", 0)
    values = np.array([[1, -2, 3], [4, 5, 6]], helper.tensor_dtype_to_np_dtype(TensorProto.INT4))
    (tmp_path / "w.bin").write_bytes(numpy_helper.from_array(values).raw_data)
    made = reference("w.bin")
    made.graph.initializer[0].data_type = TensorProto.INT4
    save(load(write(tmp_path, made)), tmp_path / "out.onnx")
    assert weight(load(tmp_path / "out.onnx").weights()[0]).tolist() == values.tolist()


def test_external_weights_that_only_bodies_or_outputs_read_are_saved_too(tmp_path: Path) -> None:
    # Arrange: the weight is captured by both branches, and read by no node of the graph itself
    made = parser.parse_model("""
    <ir_version: 7, opset_import: ["" : 13]>
    g (float[2, 3] x, bool c) => (float[2, 3] y)
    <float[2, 3] w = {1, 2, 3, 4, 5, 6}>
    {
      y = If(c) <
        then_branch = yes () => (float[2, 3] a) { a = Add(x, w) },
        else_branch = no () => (float[2, 3] b) { b = Sub(x, w) }
      >
    }
    """)
    made.graph.initializer[0].CopyFrom(reference("w.bin").graph.initializer[0])
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    there = tmp_path / "there"
    there.mkdir()
    # Act
    save(load(write(tmp_path, made)), there / "out.onnx")
    # Assert
    feeds = {"x": WEIGHT, "c": np.array(False)}
    assert not ort.InferenceSession(str(there / "out.onnx")).run(None, feeds)[0].any()


def test_external_data_inside_bodies_and_attributes_moves_into_the_model(tmp_path: Path) -> None:
    # Arrange
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    stored = reference("w.bin").graph.initializer[0]
    info = helper.make_tensor_value_info("o", TensorProto.FLOAT, [2, 3])
    body = helper.make_graph([helper.make_node("Add", ["k", "w"], ["o"])], "b", [], [info], [stored])
    nodes = [
        helper.make_node("Constant", [], ["k"], value=stored),
        helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body),
    ]
    c = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])
    made = helper.make_model(helper.make_graph(nodes, "g", [c], [y]), opset_imports=[helper.make_opsetid("", 13)])
    made.ir_version = 7
    there = tmp_path / "there"
    there.mkdir()
    # Act
    save(load(write(tmp_path, made)), there / "out.onnx")
    # Assert
    assert [item.name for item in there.iterdir()] == ["out.onnx"]
    found = ort.InferenceSession(str(there / "out.onnx")).run(None, {"c": np.array(True)})[0]
    assert found.tolist() == (2 * WEIGHT).tolist()


def test_one_weight_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = big(tmp_path)
    written: list[int] = []
    real = modelfile.DataFile.__call__

    def watch(self: modelfile.DataFile, constant: Constant) -> TensorProto:
        found = real(self, constant)
        written.append(found.ByteSize())
        return found

    monkeypatch.setattr(modelfile.DataFile, "__call__", watch)
    save(load(source), tmp_path / "out.onnx")
    assert max(written) < 1000  # references, and the small bias; the weights have 6400 bytes each


# --- not over the input ---


def test_the_data_file_of_the_input_is_not_written_over(tmp_path: Path) -> None:
    # Arrange: somebody renamed the model, not its data
    source = big(tmp_path, "float.onnx", data="model.onnx.data")
    before, expected = (tmp_path / "model.onnx.data").read_bytes(), big_output(source)
    graph = load(source)
    graph.redirect(graph.tensors()["w0"], graph.constant("v", np.zeros((40, 40), np.float32)))
    # Act
    with replacing(tmp_path / "model.onnx") as path:
        save(graph, path)
    # Assert
    assert (tmp_path / "model.onnx.data").read_bytes() == before
    np.testing.assert_array_equal(big_output(source), expected)
    assert (big_output(tmp_path / "model.onnx") == 1).all()
    assert (tmp_path / "model.onnx.1.data").exists()


def test_the_output_may_not_be_a_data_file_of_the_input(tmp_path: Path) -> None:
    source = big(tmp_path)
    before = (tmp_path / "big.onnx.bin").read_bytes()
    with (
        pytest.raises(OutputError, match=r"'big\.onnx\.bin' holds weights of the input model"),
        replacing(tmp_path / "big.onnx.bin") as path,
    ):
        save(load(source), path)
    assert (tmp_path / "big.onnx.bin").read_bytes() == before


def test_a_copy_remembers_the_data_files_of_the_input(tmp_path: Path) -> None:
    assert load(big(tmp_path)).copy().files == {(tmp_path / "big.onnx.bin").resolve()}


# --- whole or not at all ---


class Interrupted(BaseException):
    """As a keyboard interrupt."""


@pytest.mark.parametrize("error", [ValueError, ModelError, Interrupted])
def test_nothing_remains_after_an_error(tmp_path: Path, error: type[BaseException]) -> None:
    output = tmp_path / "out.onnx"
    output.write_bytes(b"old")

    def fail() -> None:
        with replacing(output) as path:
            path.write_bytes(b"half")
            path.with_name("out.onnx.data").write_bytes(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert [item.name for item in tmp_path.iterdir()] == ["out.onnx"]
    assert output.read_bytes() == b"old"


def test_a_full_disk_is_an_error_that_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    output = tmp_path / "out.onnx"
    output.write_bytes(b"old")
    graph = load(small())
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with (
            pytest.raises(OutputError, match=r"out\.onnx' cannot be written \(No space left on device\)\. Free some"),
            replacing(output) as path,
        ):
            save(graph, path)
    assert [item.name for item in tmp_path.iterdir()] == ["out.onnx"]
    assert output.read_bytes() == b"old"


def test_a_folder_that_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with (
        pytest.raises(OutputError, match=r"cannot be written to \(Permission denied\)\. Choose another folder"),
        replacing(tmp_path / "out.onnx"),
    ):
        pass


def test_the_model_is_moved_after_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    real = os.replace

    def watch(source: Path, target: Path) -> None:
        moved.append(Path(target).name)
        real(source, target)

    monkeypatch.setattr(os, "replace", watch)
    with replacing(tmp_path / "a.onnx") as path:
        path.write_bytes(b"model")
        path.with_name("a.onnx.data").write_bytes(b"data")
    assert moved == ["a.onnx.data", "a.onnx"]


def test_a_model_that_uses_none_of_its_operators_keeps_their_versions(tmp_path: Path) -> None:
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    made = helper.make_model(helper.make_graph([], "g", [info], [info]), opset_imports=[helper.make_opsetid("a.b", 1)])
    save(load(made), tmp_path / "out.onnx")
    assert load(tmp_path / "out.onnx").opsets == {"a.b": 1}


def test_the_old_file_is_replaced(tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    output.write_bytes(b"old")
    with replacing(output) as path:
        path.write_bytes(b"new")
        assert output.read_bytes() == b"old"
    assert output.read_bytes() == b"new"
    assert [item.name for item in tmp_path.iterdir()] == ["out.onnx"]


def test_outputs_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path, small())
    (tmp_path / "link.onnx").symlink_to(source)
    for same in (source, tmp_path / "." / "m.onnx", tmp_path / "link.onnx"):
        with pytest.raises(OutputError, match=r"is the input model\. Name another file"):
            check_output(str(source), same)
    with pytest.raises(OutputError, match=r"is a folder\. Name a file in it"):
        check_output(source, tmp_path)
    with pytest.raises(OutputError, match=r"folder '.*gone' does not exist. Create it"):
        check_output(source, tmp_path / "gone" / "out.onnx")
    check_output(source, tmp_path / "new.onnx")
    check_output(small(), source)  # a model in memory is not the file


def test_graphs_without_a_file_have_no_folder() -> None:
    graph: Graph = load(small())
    assert graph.folder is None
    assert graph.files == frozenset()


def test_an_old_model_is_never_found_with_new_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, seen = tmp_path / "out.onnx", []
    with replacing(output) as path:
        save(load(big(tmp_path)), path)
    real = os.replace

    def watch(source: Path, target: Path) -> None:
        real(source, target)
        seen.append((output.exists(), (tmp_path / "out.onnx.data").exists()))

    monkeypatch.setattr(os, "replace", watch)
    with replacing(output) as path:
        save(load(tmp_path / "big.onnx"), path)
    assert seen == [(False, True), (False, True), (True, True)]


@pytest.mark.parametrize("failing", [1, 2])
def test_the_old_model_comes_back_where_its_data_is_still_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    output, moves = tmp_path / "out.onnx", []
    with replacing(output) as path:
        save(load(big(tmp_path)), path)
    before, real = output.read_bytes(), os.replace

    def full(source: Path, target: Path) -> None:
        moves.append(target)
        if len(moves) == failing + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    def again() -> None:
        with replacing(output) as path:
            save(load(tmp_path / "big.onnx"), path)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        again()
    assert output.exists() == (failing == 1)
    assert failing == 2 or output.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
