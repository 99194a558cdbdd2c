"""What one decoder writes: the same with and without a cache, by name from present to past, and every refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxq.errors import RecipeError
from onnxq.generation import Decoder, Generation, find_roles, generate, next_token
from onnxq.interface import Dimension, TensorSpec
from onnxq.runtime import Session
from tests.decoders import LONGEST, VOCABULARY, Style, decoder

PROMPT = [3, 4, 5]


def session(style: Style = "split", **options: Any) -> Session:
    return Session(decoder(style, **options).SerializeToString(), threads=1)


def by_hand(count: int) -> list[int]:
    """The likeliest token after all that was written, by one run each."""
    model, text = session("none"), list(PROMPT)
    for _ in range(count):
        length = len(text)
        feeds = {"input_ids": [text], "attention_mask": [[1] * length], "position_ids": [list(range(length))]}
        logits = model.run({name: np.array(value, np.int64) for name, value in feeds.items()})["logits"]
        text.append(int(logits[0, -1].argmax()))
    return text[len(PROMPT) :]


@pytest.mark.parametrize("style", ["none", "split", "stacked", "merged"])
def test_every_style_writes_the_same(style: Style) -> None:
    found = generate(session(style), PROMPT, 20)
    assert found.tokens == by_hand(20)
    assert len(set(found.tokens)) > 5  # it depends on what was seen
    assert (found.prompt, found.cached) == (3, style != "none")


def test_speeds_follow_from_times() -> None:
    found = generate(session(), PROMPT, 5)
    assert found.prefill_per_second == pytest.approx(3 / found.prefill_seconds)
    assert found.decode_per_second == pytest.approx(4 / found.decode_seconds)
    one = generate(session(), PROMPT, 1)
    assert (len(one.tokens), one.decode_per_second) == (1, None)
    assert Generation.model_validate_json(found.model_dump_json()) == found


def test_a_run_of_a_fixed_length_is_filled_up() -> None:
    """On the right, where a causal model does not see it; with a cache, one token at a time."""
    assert generate(session("none", sequence=12), PROMPT, 8).tokens == by_hand(8)
    assert generate(session("split", sequence=1), PROMPT, 8).tokens == by_hand(8)
    with pytest.raises(RecipeError, match=r"a run takes 12 tokens, and there are 13\. Take"):
        generate(session("none", sequence=12), PROMPT, 11)
    with pytest.raises(RecipeError, match="a run takes 2 tokens, and there are 1"):
        generate(session("split", sequence=2), PROMPT, 8)


def test_scores_of_all_tokens_or_of_the_last() -> None:
    every = Decoder.of(session()).feed([3, 4, 5])
    decoder = Decoder.of(session())
    parts = np.concatenate([decoder.feed([3, 4]), decoder.feed([5])])
    assert every.shape == (3, VOCABULARY)
    np.testing.assert_allclose(parts, every, atol=1e-5)
    assert decoder.seen == [3, 4, 5]
    assert {value.shape[2] for value in decoder.past.values()} == {3}


def test_a_model_that_scores_the_last_token_only() -> None:
    model = decoder("split")
    model.graph.node[-1].output[0] = "all_logits"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1]), "last"))
    model.graph.node.append(onnx.helper.make_node("Gather", ["all_logits", "last"], ["logits"], axis=1))
    assert generate(Session(model.SerializeToString(), threads=1), PROMPT, 20).tokens == by_hand(20)


def test_nan_is_never_the_next_token() -> None:
    assert next_token(np.array([[9.0, 0.0, 0.0], [1.0, np.nan, 2.0]])) == 2


@pytest.mark.parametrize(("prompt", "count"), [([], 3), ([1], 0)])
def test_no_text_is_refused(prompt: list[int], count: int) -> None:
    with pytest.raises(RecipeError, match="make no text"):
        generate(session(), prompt, count)


def test_a_text_that_becomes_too_long_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"fails at \d+ tokens .*Ask for fewer"):
        generate(session(), PROMPT, LONGEST)


def test_a_token_of_another_vocabulary_is_refused() -> None:
    model = decoder("none")
    for index, tensor in enumerate(model.graph.initializer):
        if tensor.name == "head":
            values = onnx.numpy_helper.to_array(tensor)[:, :4]
            model.graph.initializer[index].CopyFrom(onnx.numpy_helper.from_array(values, "head"))
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 4
    with pytest.raises(RecipeError, match="'logits' scores 4 tokens, and token 5 is none of them"):
        generate(Session(model.SerializeToString(), threads=1), PROMPT, 2)


# roles


def spec(name: str, *shape: Dimension, dtype: Any = np.float32) -> TensorSpec:
    return TensorSpec(name, np.dtype(dtype), shape)


IDS = spec("input_ids", "b", "s", dtype=np.int64)
LOGITS = spec("logits", "b", "s", 9)


@pytest.mark.parametrize(
    ("cache", "present"),
    [
        ("past_key_values.0.key", "present.0.key"),
        ("past_key_values.0.key", "present_key_values.0.key"),
        ("past_0", "present_0"),
        ("past.3.value", "present.3.value"),
        ("key_cache_in_0", "key_cache_out_0"),
        ("k_cache_0", "k_cache_0_out"),
        ("cache_0", "new_cache_0"),
    ],
)
def test_caches_are_continued_by_name(cache: str, present: str) -> None:
    found = find_roles([IDS, spec(cache, "b", 2, "past", 4)], [spec(present, "b", 2, "all", 4), LOGITS])
    assert found.presents == {cache: present}
    assert (found.tokens, found.logits, found.length, found.rows) == (IDS, "logits", None, 1)


def test_other_names_of_tokens_and_scores() -> None:
    tokens = spec("tokens", 2, 16, dtype=np.int32)
    found = find_roles([tokens], [spec("hidden", "b", 4), spec("scores", "b", "s", 9)])
    assert (found.tokens.name, found.logits, found.length, found.rows) == ("tokens", "scores", 16, 2)


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ([spec("pixels", "b", 3)], [LOGITS], r"takes pixels: float32\[b, 3\], and none of that is tokens"),
        ([IDS, spec("image", "b", 3)], [LOGITS], r"nothing is known of input 'image: float32\[b, 3\]'"),
        ([IDS, spec("past_0", "b", 2, 8, 4)], [LOGITS], "nothing is known of input 'past_0.*a length that may be 0"),
        ([IDS], [spec("logits", "b", 9)], r"needs an output 'logits' \[batch, length, vocabulary\], and returns"),
        ([IDS], [spec("one", "b", "s", 9), spec("two", "b", "s", 9)], "needs an output 'logits'"),
        ([IDS, spec("past_0", "b", 2, "p", 4)], [LOGITS], "no output continues the cache 'past_0'.*as 'present_0'"),
    ],
)
def test_what_writes_no_text_is_refused(inputs: list[TensorSpec], outputs: list[TensorSpec], message: str) -> None:
    with pytest.raises(RecipeError, match=f"No text can be generated: .*{message}"):
        find_roles(inputs, outputs)


def test_past_the_context_of_a_model() -> None:
    """The rotary tables of the sample decoder end at 512 positions."""
    session = Session(Path(__file__).parents[1] / "models" / "decoder.onnx", threads=1)
    with pytest.raises(RecipeError, match=r"No text can be generated: the model fails at 513 tokens"):
        Decoder.of(session).feed([0] * 513)
