"""What two models write after the same prompt, side by side: a float model, and what it became."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxq.calibration.data import Data, mask_of
from onnxq.calibration.text import open_tokenizer
from onnxq.comparison import decisions
from onnxq.errors import RecipeError
from onnxq.generation import Decoder, Generation, find_roles, generate
from onnxq.interface import Interface
from onnxq.numerics.metrics import cosine
from onnxq.options import Options
from onnxq.plan import Record
from onnxq.runtime import Session

USUAL = 32
"""New tokens, where a prompt was given and no number."""

LEAST_ROUNDS, MOST_ROUNDS = 3, 15
"""How often both models write, after a first time that is not counted."""

CAUSAL = 0.99
"""The cosine of scores of a text before and after it grew; below it, the model looks ahead."""


class Continuations(Record):
    """What two models write after one prompt.

    Attributes:
        prompt: its tokens.
        prompt_text: the same as text; None without a tokenizer.
        reference: what the float model writes, and how fast: medians over rounds in which both write by turns.
        candidate: the same of the quantized model.
        reference_text: the new tokens as text; None without a tokenizer.
        candidate_text: the same of the quantized model.
        first_difference: at which new token the texts part, counted from 0; None where they are the same.
        agreement: share of the float model's tokens that the quantized model takes too, after the float model's text
            up to there; None where it scores only the last token of a run.
        prefill_speedup: how many times as fast the quantized model reads the prompt: median over rounds.
        decode_speedup: how many times as fast it writes; None where there is one new token only.
        rounds: how often both were timed.
    """

    prompt: list[int]
    prompt_text: str | None
    reference: Generation
    candidate: Generation
    reference_text: str | None
    candidate_text: str | None
    first_difference: int | None
    agreement: float | None
    prefill_speedup: float
    decode_speedup: float | None
    rounds: int


@dataclass(frozen=True)
class Prompt:
    """What is to be continued.

    Attributes:
        tokens: as the model takes them.
        count: how many new ones are wanted.
        tokenizer: what makes text of tokens; None for nothing.
    """

    tokens: tuple[int, ...]
    count: int
    tokenizer: Any = None

    def text(self, tokens: Sequence[int]) -> str | None:
        """The tokens as text."""
        return None if self.tokenizer is None else str(self.tokenizer.decode(list(tokens)))


def find_prompt(options: Options, data: Data | None, interface: Interface) -> Prompt | None:
    """What is to be continued, found out before the work: the prompt of the options, or half of the first sample.

    Args:
        options: `generate`, `prompt` and `tokenizer` count.
        data: its first sample gives the prompt where none was given, and its tokenizer serves where none was named.
        interface: what the model takes and returns.

    Returns:
        None where no text is wanted.

    Raises:
        RecipeError: the model is no language model, or there is no text to continue.
        DataError: the tokenizer cannot be read.
    """
    count = options.generate or (USUAL if options.prompt is not None else 0)
    if count < 1:
        if options.tokenizer is not None:
            raise RecipeError("A tokenizer alone generates no text. Say how many tokens to generate, or give a prompt.")
        return None
    roles = find_roles(interface.inputs, interface.outputs)
    known = None if data is None else data.source.tokenizer
    tokenizer = known if options.tokenizer is None else open_tokenizer(str(options.tokenizer))
    if options.prompt is not None:
        return Prompt(_encoded(options.prompt, tokenizer), count, tokenizer)
    if data is None or data.is_random:
        raise RecipeError("There is no text to continue. Give a prompt with its tokenizer, or data that holds texts.")
    sample = data.sample(0)
    mask = mask_of(sample)
    row = sample[roles.tokens.name][0]
    real = row if mask is None or mask.shape[1:] != row.shape else row[mask[0]]
    return Prompt(tuple(real[: (real.size + 1) // 2].tolist()), count, tokenizer)


def _encoded(prompt: str, tokenizer: Any) -> tuple[int, ...]:
    """All tokens of the prompt, however long texts of the data may be."""
    if tokenizer is None:
        raise RecipeError("A prompt needs the tokenizer of the model. Name its tokenizer.json, or give text as data.")
    whole = type(tokenizer).from_str(tokenizer.to_str())
    whole.no_truncation()
    whole.no_padding()
    found = tuple(whole.encode(prompt).ids)
    if not found:
        raise RecipeError(f"The tokenizer finds no tokens in the prompt '{prompt}'. Give a longer one.")
    return found


def compare_generation(reference: Session, candidate: Session, prompt: Prompt, seconds: float = 3.0) -> Continuations:
    """Let both models continue a prompt, by turns, so that a slow moment of the machine hits both alike.

    Args:
        reference: the float model.
        candidate: what it became.
        prompt: what to continue, and for how long.
        seconds: how long to time them, at least three rounds.

    Raises:
        RecipeError: one of them is no language model.
        DataError: a model fails on the prompt.
    """
    check_causal(reference, prompt.tokens)
    sessions = (reference, candidate)
    first, second = (generate(session, prompt.tokens, prompt.count) for session in sessions)  # the first run allocates
    rounds = _rounds(sessions, prompt, seconds)
    pairs = [(a.prefill_seconds / b.prefill_seconds, _ratio(a.decode_seconds, b.decode_seconds)) for a, b in rounds]
    return Continuations(
        prompt=list(prompt.tokens),
        prompt_text=prompt.text(prompt.tokens),
        reference=_median(first, [one for one, _ in rounds]),
        candidate=_median(second, [other for _, other in rounds]),
        reference_text=prompt.text(first.tokens),
        candidate_text=prompt.text(second.tokens),
        first_difference=_first_difference(first.tokens, second.tokens),
        agreement=_agreement(candidate, prompt.tokens, first.tokens),
        prefill_speedup=statistics.median(prefill for prefill, _ in pairs),
        decode_speedup=statistics.median(decode for _, decode in pairs) if prompt.count > 1 else None,
        rounds=len(rounds),
    )


def _ratio(one: float, other: float) -> float:
    return one / max(other, 1e-9)


def _rounds(sessions: tuple[Session, Session], prompt: Prompt, seconds: float) -> list[tuple[Generation, Generation]]:
    taken: list[tuple[Generation, Generation]] = []
    began = time.perf_counter()
    while len(taken) < LEAST_ROUNDS or (len(taken) < MOST_ROUNDS and time.perf_counter() - began < seconds):
        one, other = (generate(session, prompt.tokens, prompt.count) for session in sessions)
        taken.append((one, other))
    return taken


def _median(first: Generation, taken: Sequence[Generation]) -> Generation:
    """The tokens of the first, in the median of the times."""
    prefill = statistics.median(one.prefill_seconds for one in taken)
    decode = statistics.median(one.decode_seconds for one in taken)
    return Generation.of(first.tokens, first.prompt, first.cached, prefill, decode)


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    return next((place for place, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]), None)


def _agreement(candidate: Session, prompt: Sequence[int], written: Sequence[int]) -> float | None:
    """Share of what was written that a model would write too, step by step."""
    scores = Decoder.of(candidate).feed([*prompt, *written[:-1]])
    if len(scores) < len(written):
        return None
    return float(np.mean(decisions(scores[-len(written) :]) == np.array(written)))


def check_causal(session: Session, prompt: Sequence[int]) -> None:
    """Raise RecipeError where what is to come changes the scores of what was: such a model fills gaps.

    A cache makes that impossible, and where a run scores its last token only, it cannot be seen.
    """
    if Decoder.of(session).cached:
        return
    other = 1 if prompt[0] == 0 else 0
    texts = [[*prompt, other], prompt[:1]]
    longer, shorter = (Decoder.of(session).feed(text) for text in texts)
    if len(longer) == len(texts[0]) and cosine(longer[:1], shorter) < CAUSAL:
        raise RecipeError(
            "No text can be generated: what comes later in a text changes the model's scores of its first token, so it "
            "fills gaps and does not predict the next token. Take a causal language model."
        )
