"""Whether a quantized model keeps to its contract: accuracy, speed and size, each in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from onnxq.metric import Unbounded
from onnxq.plan import Record

if TYPE_CHECKING:
    from onnxq.metric import Score
    from onnxq.proof import Proof
    from onnxq.recipe import Contract

CLEARLY_SLOWER = 0.95
"""A speed-up below this is no noise of the measurement."""

SENTENCES: Mapping[str, str] = {
    "top1": "Top-1 accuracy of output '{output}' {falls} by {drop} points, from {before} % to {after} %",
    "agreement": "Output '{output}' decides otherwise than the float model in {drop} % of cases",
    "cosine": "The mean cosine of output '{output}' to the float model's is {drop} % below 1",
    "sqnr": "The noise of output '{output}' is {drop} % of its signal",
    "kl": "The probabilities of output '{output}' diverge by {drop} nats",
    "perplexity": "The perplexity of output '{output}' {grows} by {drop} %, from {before} to {after}",
}
OWN_SENTENCE = "'{metric}' {falls} by {drop} %, from {before} to {after}"


class Verdict(Record):
    """Whether a contract holds.

    Attributes:
        holds: whether it does.
        accurate: whether the accuracy does.
        reasons: one sentence for each limit that is broken.
        notes: what could not be judged, or not for sure.
    """

    holds: bool
    accurate: bool = True
    reasons: list[str] = []
    notes: list[str] = []


class Limit(Record):
    """One limit of a contract beside what was measured.

    Attributes:
        of: what is limited: the loss of accuracy, the speed beside the float model, or the size in bytes.
        metric: what accuracy is measured by; empty for the others.
        measured: what was measured; None for a loss without bound.
        allowed: the largest loss or size that keeps it, the least speed.
        holds: whether it is kept.
        sentence: the same in words.
    """

    of: Literal["accuracy", "speed", "size"]
    metric: str = ""
    measured: Unbounded
    allowed: float
    holds: bool
    sentence: str


def limits(contract: Contract, proof: Proof, random: bool, provider: str = "", timed: bool = True) -> list[Limit]:
    """Every limit that could be judged, kept or not; of speed only where that counts (`timed`)."""
    found, score, most = [], proof.score, contract.most_bytes(proof.size_float)
    if score is not None and not random:
        allowed, words = contract.limit(score.metric), f"{beside_limit(score, contract)}."
        kept = keeps(score, contract)
        found.append(
            Limit(of="accuracy", metric=score.metric, measured=score.drop, allowed=allowed, holds=kept, sentence=words)
        )
    if timed and contract.min_speedup and provider in ("", proof.provider):
        words = _too_slow(contract, proof) or f"{proof.speedup:.3g} times the float model's speed."
        kept = proof.speedup >= contract.min_speedup
        found.append(
            Limit(of="speed", measured=proof.speedup, allowed=contract.min_speedup, holds=kept, sentence=words)
        )
    if most is not None:
        words = _too_large(contract, proof) or f"The model takes {proof.size:,} bytes of {most:,} allowed."
        found.append(Limit(of="size", measured=proof.size, allowed=most, holds=proof.size <= most, sentence=words))
    return found


def judge(contract: Contract, proof: Proof, random: bool, provider: str = "") -> Verdict:
    """Hold a proof against a contract.

    Args:
        contract: the limits.
        proof: what was measured.
        random: whether it was measured on made-up data: then nothing is said about accuracy.
        provider: what the model is for: measured on another one, its speed says nothing. Empty: whatever measured.
    """
    broken, notes = [], []
    elsewhere = provider not in ("", proof.provider)
    if random or proof.score is None:
        why = "the data is random. Give --data" if random else "no output holds numbers. Compare the outputs yourself"
        notes.append(f"The accuracy was not judged: {why}.")
    else:
        broken += [] if keeps(proof.score, contract) else [f"{beside_limit(proof.score, contract)}."]
        notes += _doubts(proof.score, contract)
    slow = "" if elsewhere else _too_slow(contract, proof)
    reasons = [reason for reason in (*broken, slow, _too_large(contract, proof)) if reason]
    return Verdict(holds=not reasons, accurate=not broken, reasons=reasons, notes=notes)


def keeps(score: Score, contract: Contract) -> bool:
    """Whether a drop is allowed; a limit of 1 % allows one sample in a hundred, however that is rounded.

    Where nobody asked for a certain limit, a few samples do not condemn a model: the drop counts less two standard
    errors.
    """
    doubt = 2 * (score.standard_error or 0.0) if contract.max_drop is None else 0.0
    return score.drop - doubt <= contract.limit(score.metric) + 1e-12


def beside_limit(score: Score, contract: Contract) -> str:
    """What the quantized model loses and how much of it is allowed, without a full stop."""
    allowed = contract.limit(score.metric)
    doubt = ", which so few samples do not show to be broken" if score.drop > allowed and keeps(score, contract) else ""
    return f"{sentence(score)} (limit {_number(_factor(score) * allowed)}{doubt})"


def sentence(score: Score) -> str:
    """What the quantized model loses, without a full stop."""
    shown = 100 if score.metric == "top1" else 1  # shares in percent, perplexities and scores as they are
    return SENTENCES.get(score.metric, OWN_SENTENCE).format(
        metric=score.metric,
        output=score.output,
        drop=_number(abs(_factor(score) * score.drop)),
        falls="drops" if score.drop >= 0 else "rises",
        grows="grows" if score.drop >= 0 else "falls",
        before=_value(score.float_value, shown),
        after=_value(score.value, shown),
    )


def _factor(score: Score) -> int:
    """Drops are printed in percent, but for nats."""
    return 1 if score.metric == "kl" else 100


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) >= 1e-6 else "0"


def _value(value: float | None, factor: int) -> str:
    return "no bound" if value is None else f"{factor * value:.4g}"


def _doubts(score: Score, contract: Contract) -> list[str]:
    """Whether the limit lies within two standard errors of the drop, so that other samples may decide otherwise."""
    error = score.standard_error
    if error is None or abs(score.drop - contract.limit(score.metric)) >= 2 * error:
        return []
    return [
        f"{score.samples} samples do not settle the accuracy: the standard error of the drop is {_number(100 * error)} "
        f"{'points' if score.metric == 'top1' else '%'}, and the limit is near. Give more data."
    ]


def _too_slow(contract: Contract, proof: Proof) -> str:
    asked = contract.min_speedup
    if proof.speedup >= asked:
        return ""
    words = f"{proof.speedup:.3g} times the float model's speed"
    if "min_speedup" not in contract.model_fields_set:
        return f"{words}: it would be slower."
    return f"{words}, below the {asked:g} that --min-speedup asks for."


def _too_large(contract: Contract, proof: Proof) -> str:
    most = contract.most_bytes(proof.size_float)
    if most is None or proof.size <= most:
        return ""
    share = f" ({contract.max_size} of the float model)" if isinstance(contract.max_size, str) else ""
    return f"The model takes {proof.size:,} bytes, more than the {most:,}{share} that --max-size allows."
