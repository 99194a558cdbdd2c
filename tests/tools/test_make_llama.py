"""The smallest decoder: its bytes, whether the runtime takes it, and whether its cache does what a cache is for."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_graph
import make_llama
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from llama_graph import Shape
from llama_weights import Array

TINY = make_llama.PRESETS["tiny"]
TOLERANCE = {"float32": 1e-5, "float16": 1e-2}


def made(folder: Path, shape: Shape, seed: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    make_llama.make(shape, folder / "llama.onnx", seed)
    return folder / "llama.onnx"


def opened(path: Path) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def tokens(positions: int) -> Array:
    return np.random.default_rng(0).integers(0, TINY.vocab, (2, positions))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_decoding_with_the_cache_is_the_full_run(tmp_path: Path, dtype: str) -> None:
    shape = replace(TINY, dtype=dtype)
    path = made(tmp_path, shape)
    onnx.checker.check_model(str(path), full_check=True)
    session, ids = opened(path), tokens(12)
    full = session.run(None, llama_graph.feeds(shape, ids))
    parts: list[Any] = []
    for piece in np.split(ids, [7, 8, 9], axis=1):
        parts.append(session.run(None, llama_graph.feeds(shape, piece, parts[-1][1:] if parts else ())))
    logits = np.concatenate([part[0] for part in parts], axis=1)
    assert full[0].dtype == dtype
    for whole, stepped in zip(full, [logits, *parts[-1][1:]], strict=True):
        np.testing.assert_allclose(stepped, whole, atol=TOLERANCE[dtype])


def test_float16_computes_what_float32_does(tmp_path: Path) -> None:
    shapes = [replace(TINY, dtype=dtype) for dtype in ("float32", "float16")]
    wide, half = (
        opened(made(tmp_path / shape.dtype, shape)).run(["logits"], llama_graph.feeds(shape, tokens(12)))[0]
        for shape in shapes
    )
    assert 0.5 < wide.std() < 2
    np.testing.assert_allclose(half, wide, atol=0.02)


def test_without_a_cache_the_logits_are_the_same(tmp_path: Path) -> None:
    bare = replace(TINY, cache=False)
    given = llama_graph.feeds(TINY, tokens(9))
    expected = opened(made(tmp_path / "cache", TINY)).run(["logits"], given)[0]
    session = opened(made(tmp_path / "bare", bare))
    assert [each.name for each in session.get_outputs()] == ["logits"]
    (found,) = session.run(None, {each.name: given[each.name] for each in session.get_inputs()})
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_padding_and_later_tokens_are_not_seen(tmp_path: Path) -> None:
    session, ids = opened(made(tmp_path, TINY)), tokens(8)
    other = ids.copy()
    other[:, [0, 7]] = (other[:, [0, 7]] + 1) % TINY.vocab  # a padded one, and the last one
    logits = []
    for each in (ids, other):
        given = llama_graph.feeds(TINY, each)
        given["attention_mask"][:, 0] = 0
        logits.append(session.run(["logits"], given)[0])
    np.testing.assert_array_equal(logits[0][:, 1:7], logits[1][:, 1:7])
    assert np.abs(logits[0][:, 7] - logits[1][:, 7]).max() > 0.1


def test_tied_logits_come_from_the_embeddings(tmp_path: Path) -> None:
    tied = replace(TINY, tied=True)
    path = made(tmp_path, tied)
    assert "lm_head.weight" not in {tensor.name for tensor in onnx.load(path).graph.initializer}
    logits = opened(path).run(["logits"], llama_graph.feeds(tied, tokens(3)))[0]
    assert logits.shape == (2, 3, TINY.vocab)


def test_a_weight_depends_on_its_name_and_the_seed_alone(tmp_path: Path) -> None:
    first, again, other = (made(tmp_path / name, TINY, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    deeper = made(tmp_path / "d", replace(TINY, layers=3, tied=True))
    for suffix in ("", ".data"):
        assert Path(f"{first}{suffix}").read_bytes() == Path(f"{again}{suffix}").read_bytes()
    name = "model.layers.1.self_attn.k_proj.weight"
    values = [_weight(path, name) for path in (first, deeper, other)]
    np.testing.assert_array_equal(values[0], values[1])
    assert not np.array_equal(values[0], values[2])


def _weight(path: Path, name: str) -> Array:
    (tensor,) = (each for each in onnx.load(path).graph.initializer if each.name == name)
    return onnx.numpy_helper.to_array(tensor)


def test_weights_are_aligned_and_spread_as_promised(tmp_path: Path) -> None:
    path = made(tmp_path, TINY)
    stored = onnx.load(path, load_external_data=False).graph.initializer
    places = [{entry.key: entry.value for entry in each.external_data} for each in stored if each.external_data]
    assert {place["location"] for place in places} == {"llama.onnx.data"}
    assert all(int(place["offset"]) % 4096 == 0 for place in places)
    weight = _weight(path, "model.layers.0.mlp.gate_proj.weight")
    assert weight.shape == (TINY.hidden, TINY.intermediate)
    assert weight.std() == pytest.approx(TINY.hidden**-0.5, rel=0.05)


def test_the_presets_are_as_large_as_their_models() -> None:
    sizes = {}
    for name, shape in make_llama.PRESETS.items():
        weights = llama_graph.decoder(replace(shape, dtype="float16"))[1].values()
        sizes[name] = sum(make_llama.size(weight, replace(shape, dtype="float16")) for weight in weights)
    assert 13.4e9 < sizes["7b"] < 13.6e9
    assert 16.0e9 < sizes["8b"] < 16.1e9
    assert 2.2e9 < sizes["1b"] < 2.3e9


@pytest.mark.parametrize("wrong", [{"heads": 3}, {"kv_heads": 3}, {"heads": 64, "kv_heads": 64}])
def test_a_shape_that_cannot_be_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(make_llama.ShapeError, match=r"Change"):
        make_llama.make(replace(TINY, **wrong), tmp_path / "llama.onnx")
    assert not list(tmp_path.iterdir())


def test_too_little_space_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    assert make_llama.main([str(tmp_path / "llama.onnx")]) == 2
    assert "Free some space" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_llama.main([str(tmp_path / "llama.onnx"), "--layers", "1", "--no-cache", "--tied"]) == 0
    assert "float32 values" in capsys.readouterr().out
    assert sorted(file.name for file in tmp_path.iterdir()) == ["llama.onnx", "llama.onnx.data"]
