"""What two models write after one prompt: where the prompt comes from, where the texts part, and who is faster."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

import onnxq as package
from onnxq import continuation
from onnxq.calibration.data import open_data
from onnxq.continuation import Continuations, Prompt, compare_generation, find_prompt
from onnxq.errors import DataError, RecipeError
from onnxq.generation import Generation
from onnxq.interface import Interface
from onnxq.options import Options
from onnxq.recipe import Override
from onnxq.runtime import Session
from tests.decoders import VOCABULARY, decoder
from tests.onnx_text import read, serialize

if TYPE_CHECKING:
    from tests.conftest import Command

LETTERS = "abcdefghijklmnopqrstuvwx"
QUICK = Options(seconds=0)


def model_of(noise: float = 0.0) -> onnx.ModelProto:
    return decoder("split", sure=1.2, noise=noise)


def session(noise: float = 0.0) -> Session:
    return Session(model_of(noise).SerializeToString(), threads=1)


def interface(model: Session) -> Interface:
    return Interface(model.inputs, model.outputs)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a tokenizer of letters, texts, a decoder and a noisy one."""
    monkeypatch.chdir(tmp_path)
    tokenizer = Tokenizer(WordLevel({letter: place for place, letter in enumerate(LETTERS)}, unk_token="a"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save("tokenizer.json")
    Path("texts.txt").write_text("\n".join(" ".join((LETTERS * 2)[start : start + 7]) for start in range(12)))
    onnx.save(model_of(), "float.onnx")
    onnx.save(model_of(0.1), "noisy.onnx")
    return tmp_path


TEXTS = "text:texts.txt?tokenizer=tokenizer.json&length=5"


# where the prompt comes from


@pytest.mark.usefixtures("folder")
def test_the_first_half_of_the_first_text() -> None:
    model = session()
    found = find_prompt(Options(generate=4), open_data(TEXTS, model.inputs), interface(model))
    assert found is not None
    assert (found.tokens, found.count, found.text(found.tokens)) == ((0, 1, 2), 4, "a b c")


def test_padding_is_no_part_of_it_and_tokens_need_no_tokenizer() -> None:
    model = session()
    rows = {"input_ids": [[5, 6, 7, 8, 0, 0]], "attention_mask": [[1] * 4 + [0] * 2], "position_ids": [[0] * 6]}
    caches = {name: np.zeros((1, 2, 0, 12), np.float32) for name in (s.name for s in model.inputs) if "past" in name}
    data = open_data({**{name: np.array(value) for name, value in rows.items()}, **caches}, model.inputs)
    found = find_prompt(Options(generate=4), data, interface(model))
    assert found is not None
    assert (found.tokens, found.text([1])) == ((5, 6), None)


@pytest.mark.usefixtures("folder")
def test_a_prompt_of_the_users_is_not_cut() -> None:
    model, prompt = session(), "a b c d e f g h"
    for data in (open_data(TEXTS, model.inputs), None):
        options = Options(prompt=prompt, tokenizer=None if data else Path("tokenizer.json"))
        found = find_prompt(options, data, interface(model))
        assert found is not None
        assert (found.tokens, found.count) == (tuple(range(8)), continuation.USUAL)


def test_no_text_is_wanted() -> None:
    assert find_prompt(Options(), None, Interface((), ())) is None


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(generate=3), "no text to continue. Give a prompt with its tokenizer, or data"),
        (Options(prompt="a"), "A prompt needs the tokenizer of the model"),
        (Options(tokenizer=Path("tokenizer.json")), "A tokenizer alone generates no text"),
        (Options(prompt=" ", tokenizer=Path("tokenizer.json")), "finds no tokens in the prompt ' '"),
    ],
)
def test_a_prompt_that_cannot_be_had_is_refused(options: Options, message: str) -> None:
    model = session()
    for data in (None, open_data("random", model.inputs)):
        with pytest.raises(RecipeError, match=message):
            find_prompt(options, data, interface(model))


def test_a_missing_tokenizer_is_named() -> None:
    model = session()
    with pytest.raises(DataError, match=r"nowhere\.json is not a readable tokenizer"):
        find_prompt(Options(prompt="a", tokenizer=Path("nowhere.json")), None, interface(model))


# two models


def test_equal_models_write_the_same() -> None:
    found = compare_generation(session(), session(), Prompt((0, 1, 2), 8), 0)
    assert (found.first_difference, found.agreement) == (None, 1.0)
    assert found.reference.tokens == found.candidate.tokens
    assert (found.prompt, found.prompt_text, found.reference_text) == ([0, 1, 2], None, None)
    assert found.rounds == continuation.LEAST_ROUNDS
    assert Continuations.model_validate_json(found.model_dump_json()) == found


def test_where_texts_part() -> None:
    """After the same text, the noisy model takes most of the tokens that the other one takes."""
    one, other = session(), session(0.1)
    found = compare_generation(one, other, Prompt((20, 21, 22, 23, 0, 1), 16), 0)
    place = found.first_difference
    assert place is not None
    assert found.reference.tokens[:place] == found.candidate.tokens[:place]
    assert found.reference.tokens[place] != found.candidate.tokens[place]
    assert found.agreement is not None
    assert place / 16 <= found.agreement < 1


def test_times_are_medians_of_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first time of each does not count; speed-ups are ratios within a round."""
    reference, candidate = session(), session()
    prefill = {id(reference): iter([99.0, 4.0, 2.0, 3.0]), id(candidate): iter([99.0, 2.0, 2.0, 1.0])}
    turns = []

    def timed(model: Session, prompt: Sequence[int], count: int) -> Generation:
        turns.append(model is candidate)
        taken = next(prefill[id(model)])
        return Generation.of([0] * count, len(prompt), True, taken, 10 * taken)

    monkeypatch.setattr(continuation, "generate", timed)
    found = compare_generation(reference, candidate, Prompt((0, 1), 2), 0)
    assert turns == [False, True] * 4
    assert (found.reference.prefill_seconds, found.candidate.prefill_seconds) == (3.0, 2.0)
    assert (found.reference.decode_seconds, found.candidate.decode_seconds) == (30.0, 20.0)
    assert (found.prefill_speedup, found.decode_speedup) == (2.0, 2.0)


def test_one_token_is_not_decoded() -> None:
    assert compare_generation(session(), session(), Prompt((0, 1), 1), 0).decode_speedup is None


def test_a_model_that_looks_ahead_is_refused() -> None:
    """The scores of each token hold the mean over all."""
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal((VOCABULARY, VOCABULARY)).astype(np.float32) for name in ("e", "w")}
    text = """(int64[b,s] input_ids) => (float[b,s,24] logits)
        { x = Gather(e, input_ids) m = ReduceMean<axes=[1]>(x) y = Add(x, m) logits = MatMul(y, w) }"""
    model = Session(serialize(read(text, weights)), threads=1)
    for prompt in ((0, 1, 2), (3,)):
        with pytest.raises(RecipeError, match="what comes later in a text changes the model's scores of its first"):
            compare_generation(model, model, Prompt(prompt, 2), 0)


# the API and the command line


@pytest.mark.usefixtures("folder")
def test_validate_generates_where_it_is_asked_to() -> None:
    options = Options(seconds=0, generate=6)
    (proof,) = package.validate("float.onnx", "noisy.onnx", data=TEXTS, options=options)
    assert proof.generation is not None
    assert (proof.generation.prompt_text, len(proof.generation.candidate.tokens)) == ("a b c", 6)
    (proof,) = package.validate("float.onnx", "noisy.onnx", data=TEXTS, options=QUICK)
    assert proof.generation is None


@pytest.mark.usefixtures("folder")
def test_validate_on_the_command_line(onnxq: Command) -> None:
    words = ("validate", "float.onnx", "noisy.onnx", "--data", TEXTS, "--seconds", 0, "--min-cosine", 0)
    done = onnxq(*words, "--prompt", "u v w x a b", "--generate", 16)
    assert (done.code, done.err) == (0, "")
    for said in ("Tokens per second", "Prompt of 6", "16 new ones", "u v w x a b", "The texts part at new token"):
        assert said in done.out
    done = onnxq(*words, "--generate", 1, "--json", "--quiet")
    found = Continuations.model_validate(done.json["proofs"][0]["generation"])
    assert (found.prompt_text, found.reference_text, found.decode_speedup) == ("a b c", "d", None)


@pytest.mark.usefixtures("folder")
def test_what_cannot_be_generated_is_said_in_one_line(onnxq: Command, model: Path, data: Path) -> None:
    words = ("validate", "float.onnx", "noisy.onnx", "--data", "random", "--seconds", 0)
    for more, said in (
        (("--generate", 3), "no text to continue"),
        (("--prompt", "a"), "A prompt needs the tokenizer"),
        (("--tokenizer", "tokenizer.json"), "A tokenizer alone"),
    ):
        done = onnxq(*words, *more, "--json")
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert said in json.loads(done.out)["error"]["message"]
    for command in (("validate", model, model), ("optimize", model)):
        done = onnxq(*command, "--data", data, "--generate", 3)
        assert done.code == 2
        assert "none of that is tokens" in done.err


@pytest.mark.usefixtures("folder")
def test_optimize_generates(onnxq: Command) -> None:
    words = ("optimize", "float.onnx", "--data", TEXTS, "--recipe", "static-int8", "--seconds", 0, "--no-cache")
    done = onnxq(*words, "--generate", 6, "--force", "--json")
    assert done.code == 0, done.err
    found = Continuations.model_validate(done.json["generation"])
    assert len(found.candidate.tokens) == len(found.reference.tokens) == 6
    assert "Tokens per second" in done.err
    assert done.json["seconds"]["generate"] > 0


@pytest.mark.usefixtures("folder")
def test_nothing_is_generated_where_nothing_was_written() -> None:
    options = Options(seconds=0, generate=6)
    recipe = package.Recipe(mode="dynamic-int8")
    result = package.optimize(model_of(), data=TEXTS, recipe=recipe, options=options)
    assert result.generation is None
    assert "No texts were compared: no model was written." in result.warnings
    recipe = package.Recipe(mode="dynamic-int8", nodes={"*": Override(quantize=False)})
    result = package.optimize("float.onnx", data=TEXTS, recipe=recipe, options=options)
    assert result.warnings[-1] == "No texts were compared: the model is as it was."
