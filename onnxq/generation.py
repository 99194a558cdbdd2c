"""Text that a decoder writes: greedy continuation of tokens, with or without a cache of keys and values.

    prompt --prefill--> first new token --decode--> the others, one run for each

What a cache holds after a run goes into the next one by name: `present.0.key` -> `past_key_values.0.key`. It is copied
on the way, so a serving loop that binds its memory is faster, for every model alike. Without a cache each run takes the
whole text again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxq.calibration.caches import Cache, empty_caches, find_cache, find_caches, is_branch, switch
from onnxq.comparison import decisions
from onnxq.errors import DataError, RecipeError
from onnxq.interface import TensorSpec, describe
from onnxq.metric_choice import TOKENS
from onnxq.plan import Record
from onnxq.runtime import Session

Array = np.ndarray[Any, Any]

BESIDE = ("attention_mask", "position_ids", "token_type_ids")
"""What can be made for any text."""

PRESENTS = (
    ("past_key_values", "present"),
    ("past_key_values", "present_key_values"),
    ("past", "present"),
    ("_in", "_out"),
    ("cache", "new_cache"),
)
"""How the output is called that continues a cache: the part of the input's name, and what stands in its place."""


class Generation(Record):
    """What one model wrote.

    Attributes:
        tokens: the new ones.
        prompt: how many tokens it continued.
        cached: whether it has a cache.
        prefill_seconds: time for the prompt, and with it the first new token.
        decode_seconds: time for all other new tokens.
        prefill_per_second: tokens of the prompt per second.
        decode_per_second: new tokens per second after the first; None where there is no other.
    """

    tokens: list[int]
    prompt: int
    cached: bool
    prefill_seconds: float
    decode_seconds: float
    prefill_per_second: float
    decode_per_second: float | None

    @classmethod
    def of(cls, tokens: Sequence[int], prompt: int, cached: bool, prefill: float, decode: float) -> Generation:
        """With the speeds that follow from the times."""
        more = len(tokens) - 1
        return cls(
            tokens=list(tokens),
            prompt=prompt,
            cached=cached,
            prefill_seconds=prefill,
            decode_seconds=decode,
            prefill_per_second=prompt / max(prefill, 1e-9),
            decode_per_second=more / max(decode, 1e-9) if more else None,
        )


@dataclass(frozen=True)
class Roles:
    """What the inputs and outputs of a decoder are for.

    Attributes:
        inputs: all of them.
        tokens: the input of tokens.
        logits: the output of scores, [batch, length, vocabulary].
        presents: for each cache, the output that continues it.
    """

    inputs: tuple[TensorSpec, ...]
    tokens: TensorSpec
    logits: str
    presents: Mapping[str, str]

    @property
    def caches(self) -> tuple[Cache, ...]:
        """The caches."""
        return find_caches(self.inputs)

    @property
    def length(self) -> int | None:
        """How many tokens a run takes, where that is fixed."""
        size = (self.tokens.shape or (None, None))[1]
        return size if isinstance(size, int) else None

    @property
    def rows(self) -> int:
        """How many texts a run takes."""
        size = (self.tokens.shape or (None,))[0]
        return size if isinstance(size, int) else 1


def find_roles(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Roles:
    """Find out how text can be generated. Raises RecipeError where it cannot be, with the reason."""
    tokens = _tokens(inputs)
    for spec in inputs:
        known = spec == tokens or spec.name in BESIDE or is_branch(spec) or find_cache(spec)
        if not known:
            raise RecipeError(
                f"No text can be generated: nothing is known of input '{spec}'. A decoder takes {tokens.name}, "
                f"{', '.join(BESIDE)}, and caches of a length that may be 0."
            )
    presents = {cache.spec.name: _present(cache.spec.name, outputs) for cache in find_caches(inputs)}
    return Roles(tuple(inputs), tokens, _logits(outputs, set(presents.values())), presents)


def _tokens(inputs: Sequence[TensorSpec]) -> TensorSpec:
    fitting = {spec.name: spec for spec in inputs if spec.dtype.kind in "iu" and len(spec.shape or ()) == 2}
    for name in TOKENS:
        if name in fitting:
            return fitting[name]
    raise RecipeError(
        f"No text can be generated: the model takes {describe(inputs)}, and none of that is tokens, such as input_ids: "
        "int64[batch, length]. Take a language model."
    )


def _present(name: str, outputs: Sequence[TensorSpec]) -> str:
    made = {spec.name for spec in outputs}
    guesses = [name.replace(old, new, 1) for old, new in PRESENTS if old in name]
    for guess in (*guesses, f"{name}_out", f"new_{name}"):
        if guess in made:
            return guess
    raise RecipeError(
        f"No text can be generated: no output continues the cache '{name}'. The outputs are "
        f"{', '.join(sorted(made))}; export it as '{guesses[0] if guesses else f'{name}_out'}'."
    )


def _logits(outputs: Sequence[TensorSpec], presents: set[str]) -> str:
    scores = [
        spec.name
        for spec in outputs
        if spec.name not in presents and spec.dtype.kind == "f" and (spec.shape is None or len(spec.shape) == 3)
    ]
    if "logits" in scores:
        return "logits"
    if len(scores) != 1:
        raise RecipeError(
            "No text can be generated: the model needs an output 'logits' [batch, length, vocabulary], and returns "
            f"{describe(outputs)}. Take a language model."
        )
    return scores[0]


@dataclass
class Decoder:
    """A model that is in the middle of a text.

    Attributes:
        session: the model.
        roles: what its inputs and outputs are for.
        seen: the text so far.
        past: its caches; empty for a model without.
    """

    session: Session
    roles: Roles
    seen: list[int] = field(default_factory=list)
    past: dict[str, Array] = field(default_factory=dict)

    @classmethod
    def of(cls, session: Session) -> Decoder:
        """At the start of a text. Raises RecipeError where the model writes none."""
        return cls(session, find_roles(session.inputs, session.outputs))

    @property
    def cached(self) -> bool:
        """Whether the model remembers what it has seen."""
        return bool(self.roles.presents)

    def feed(self, tokens: Sequence[int]) -> Array:
        """Go on with these tokens.

        Returns:
            The scores of what follows on each of them, [tokens, vocabulary]; of what follows on the last one alone,
            where the model tells no more.
        """
        if not self.cached:
            self.seen += tokens
            return self._run(self.seen, 0)[-len(tokens) :]
        step, found = self.roles.length or len(tokens), []
        for start in range(0, len(tokens), step):
            part = list(tokens[start : start + step])
            found.append(self._run(part, len(self.seen)))
            self.seen += part
        return np.concatenate(found)

    def _run(self, tokens: Sequence[int], before: int) -> Array:
        """One run on tokens of which the cache holds those `before`: their scores, [tokens or 1, vocabulary]."""
        missing = (self.roles.length or len(tokens)) - len(tokens)
        if missing < 0 or (missing and self.cached):
            raise RecipeError(
                f"No text can be generated: a run takes {self.roles.length} tokens, and there are {len(tokens)}. "
                "Take a shorter prompt and fewer new tokens, or export the model with a free length."
            )
        try:
            outputs = self.session.run(self._feeds(tokens, before, missing), [self.roles.logits, *self._presents()])
        except DataError as error:
            raise RecipeError(
                f"No text can be generated: the model fails at {before + len(tokens)} tokens ({error}) Ask for fewer "
                "if it takes no more, and give its own tokenizer."
            ) from None
        self.past = {cache: outputs[present] for cache, present in self.roles.presents.items()}
        scores = outputs[self.roles.logits]
        if scores.ndim != 3 or scores.shape[1] not in (1, len(tokens) + missing):
            raise RecipeError(
                f"No text can be generated: output '{self.roles.logits}' is {list(scores.shape)} for {len(tokens)} "
                "tokens, and no [batch, length, vocabulary]. Take a language model."
            )
        if max(tokens) >= scores.shape[2]:
            raise RecipeError(
                f"No text can be generated: output '{self.roles.logits}' scores {scores.shape[2]} tokens, and token "
                f"{max(tokens)} is none of them. Take a language model, and its own tokenizer."
            )
        found: Array = scores[0, : len(tokens)]
        return found

    def _presents(self) -> Sequence[str]:
        return list(self.roles.presents.values())

    def _feeds(self, tokens: Sequence[int], before: int, missing: int) -> dict[str, Array]:
        new = len(tokens) + missing
        rows = {
            self.roles.tokens.name: [*tokens, *[0] * missing],
            "attention_mask": [1] * (before + len(tokens)) + [0] * missing,
            "position_ids": range(before, before + new),
            "token_type_ids": [0] * new,
        }
        feeds = {
            spec.name: np.array([rows[spec.name]] * self.roles.rows, spec.dtype)
            for spec in self.roles.inputs
            if spec.name in rows
        }
        flags = {spec.name: switch(spec, before > 0) for spec in self.roles.inputs if is_branch(spec)}
        return feeds | (self.past or empty_caches(self.roles.inputs, self.roles.rows)) | flags


def generate(session: Session, prompt_ids: Sequence[int], count: int) -> Generation:
    """Continue tokens by the likeliest next one, again and again; what ends a text does not end it here.

    Args:
        session: a decoder; `find_roles` says which are known.
        prompt_ids: at least one token.
        count: how many new ones.

    Raises:
        RecipeError: the model is no decoder that is known, there is no prompt, or nothing to write.
        DataError: the model fails on it, perhaps because the text becomes too long.
    """
    if not prompt_ids or count < 1:
        raise RecipeError(
            f"{count} tokens after a prompt of {len(prompt_ids)} make no text. Give one of each at least."
        )
    decoder = Decoder.of(session)
    start = time.perf_counter()
    tokens = [next_token(decoder.feed(list(prompt_ids)))]
    filled = time.perf_counter()
    while len(tokens) < count:
        tokens.append(next_token(decoder.feed(tokens[-1:])))
    done = time.perf_counter()
    return Generation.of(tokens, len(prompt_ids), decoder.cached, filled - start, done - filled)


def next_token(scores: Array) -> int:
    """The likeliest token after the last one of [tokens, vocabulary]; NaN is never it."""
    return int(decisions(scores[-1:])[0])
