"""Data from a text file, one text per line: `text:FILE?tokenizer=tokenizer.json&length=128`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.calibration.caches import empty_caches, find_cache, fixed_rows, is_branch, row_axes
from onnxq.calibration.feeds import Feed, Source, blamed, grouped
from onnxq.calibration.options import Options
from onnxq.errors import DataError
from onnxq.interface import TensorSpec, describe

OPTIONS = ("tokenizer", "length", "pad")
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


def from_text(file: Path, options: str, inputs: Sequence[TensorSpec]) -> Source:
    """The lines of a UTF-8 file through a tokenizer, as whichever of `INPUTS` the model takes.

    Options:
        tokenizer: the tokenizer.json of the model; it has no default.
        length: cut texts to so many tokens; by default what the model fixes, else what the tokenizer states, else 128.
        pad: `longest` fills up to the longest text of a batch, `max` always to `length`, on the right.
    The caches of a decoder are empty, so the mask covers just the text, and `use_cache_branch` is false.
    A model that fixes the length gets `pad=max`. Without an attention mask, padding would count as text, so there
    texts of different lengths go into different batches, unless `pad=max` or a fixed batch ask for it.

    Raises:
        DataError: tokenizers or a file is missing, an option is wrong, or the model has an input that text
            cannot fill.
    """
    asked = Options.parse("text", options, OPTIONS)
    names = {spec.name for spec in inputs}
    _check_inputs(inputs)
    lines = _lines(file)
    tokenizer = _tokenizer(asked.values.get("tokenizer"))
    length, is_fixed = _length(asked, inputs, tokenizer)
    padding = _padding(tokenizer)
    tokenizer.enable_truncation(length)
    tokenizer.no_padding()
    fills_up = asked.choice("pad", "longest", ("longest", "max")) == "max" or is_fixed
    rows = [spec for spec in inputs if spec.name in INPUTS]
    texts = _Texts(file, lines, tokenizer, rows, padding, length if fills_up else 0, empty_caches(inputs, 1))
    batch = _fixed(inputs, 0) or fixed_rows(inputs) or 1
    source = Source(
        description=f"text:{file}",
        count=len(lines),
        read=texts.feed,
        where=texts.where,
        padding=padding if "attention_mask" in names or batch > 1 else {},
        tokenizer=tokenizer,
    )
    return grouped(source, batch, row_axes(inputs))


def _check_inputs(inputs: Sequence[TensorSpec]) -> None:
    """Raise DataError unless text, with empty caches, fills all inputs."""
    others = [spec for spec in inputs if not (spec.name in INPUTS or find_cache(spec) or is_branch(spec))]
    if others or all(spec.name != "input_ids" for spec in inputs):
        raise DataError(
            f"Text fills the inputs {', '.join(INPUTS)}, and caches of a length that may be 0. "
            f"The model expects {describe(others or inputs)}."
        )


@dataclass(frozen=True)
class _Texts:
    file: Path
    lines: Sequence[tuple[int, str]]
    tokenizer: Any
    inputs: Sequence[TensorSpec]
    padding: Mapping[str, int]
    length: int
    """Fill up to so many tokens; 0 for not at all."""
    caches: Feed
    """What a decoder takes beside the text: nothing that it has seen."""

    def where(self, index: int) -> str:
        return f"{self.file}, line {self.lines[index][0]}"

    def feed(self, index: int) -> Feed:
        with blamed(self.where(index)):
            encoding = self.tokenizer.encode(self.lines[index][1])
        count = len(encoding.ids)
        if count == 0:
            raise DataError(f"{self.where(index)}: the tokenizer finds no tokens. Take the line away.")
        rows = {
            "input_ids": encoding.ids,
            "attention_mask": encoding.attention_mask,
            "token_type_ids": encoding.type_ids,
            "position_ids": range(count),
        }
        feed = {spec.name: np.array([rows[spec.name]], np.int64) for spec in self.inputs}
        missing = ((0, 0), (0, max(self.length - count, 0)))
        return self.caches | {
            name: np.pad(row, missing, constant_values=self.padding[name]) for name, row in feed.items()
        }


def _lines(file: Path) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise DataError(
            f"text:{file} cannot be read ({error.strerror}). Give a file with one text per line."
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"text:{file} is not UTF-8 ({error}). Convert it.") from error
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def _tokenizer(file: str | None) -> Any:
    if file is None:
        raise DataError("Data 'text' needs the tokenizer of the model: text:FILE?tokenizer=tokenizer.json.")
    return open_tokenizer(file)


def open_tokenizer(file: str) -> Any:
    """The `tokenizers.Tokenizer` in a tokenizer.json. Raises DataError."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise DataError('Text needs tokenizers, which is not installed: pip install "onnxq[text]".') from error
    try:
        return Tokenizer.from_file(file)
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"{file} is not a readable tokenizer.json ({error}). Save it with the model.") from error


def _fixed(inputs: Sequence[TensorSpec], axis: int) -> int | None:
    """The size of an axis, where one of the inputs fixes it."""
    sizes = [spec.shape[axis] for spec in inputs if spec.shape is not None and len(spec.shape) == 2]
    return next((size for size in sizes if isinstance(size, int)), None)


def _length(options: Options, inputs: Sequence[TensorSpec], tokenizer: Any) -> tuple[int, bool]:
    """The most tokens of a text, and whether the model fixes the length."""
    fixed = _fixed(inputs, 1)
    stated = (tokenizer.truncation or {}).get("max_length")
    length = options.whole("length", fixed or stated or 128)
    if fixed and length != fixed:
        raise DataError(f"Data 'text': length={length}, but the model fixes {fixed}: {describe(inputs)}. Drop length.")
    return length, fixed is not None


def _padding(tokenizer: Any) -> Mapping[str, int]:
    """What fills up each input: the padding tokens of the tokenizer, and 0 elsewhere."""
    stated = tokenizer.padding or {}
    known = (tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>", "<|endoftext|>"))
    pad = stated.get("pad_id", next((number for number in known if number is not None), 0))
    return dict.fromkeys(INPUTS, 0) | {"input_ids": pad, "token_type_ids": stated.get("pad_type_id", 0)}
