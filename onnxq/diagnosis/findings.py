"""What is known about the error of a quantized model, as records, and in one sentence each."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator

from onnxq.plan import Record

CureKind = Literal["per channel", "range", "balance", "keep float", "16 bits"]

Boundless = Annotated[float, BeforeValidator(lambda value: math.inf if value is None else value)]
"""A number that may be infinite, for which JSON has null."""

MANY_TIMES = 4.0
"""A channel that reaches so many times as far as the median one takes two bits from the others."""

MUCH_CLIPPED = 1e-3
MUCH_SATURATED = 1e-4
"""Shares from which values that are cut off are worth a word."""

MASK = 1e30
"""Values that reach so far are masks."""


def decibels(noise: float) -> float | None:
    """Signal over noise in dB, from noise over signal; None where there is no noise."""
    return None if noise <= 0 else -10 * math.log10(noise)


class Outlier(Record):
    """The channel that reaches farthest.

    Attributes:
        channel: its index.
        times: how many times as far as the median channel; infinity where that is all zeros.
    """

    channel: int
    times: Boundless

    @property
    def reach(self) -> str:
        """How far it reaches, in words that follow `reaches`."""
        return (
            f"{self.times:.0f} times as far as the median one" if self.times < math.inf else "far, most others nowhere"
        )


class Cure(Record):
    """Something that could be done about an operator, and what that would bring.

    Attributes:
        kind: `per channel`: a scale for each output channel; `range`: another rule for its input's range; `balance`:
            factors between the channels of its input and of its weight (SmoothQuant, cross-layer equalization);
            `keep float`; `16 bits`: an input of 16 bits.
        gain_db: by how much the noise of the outputs falls, simulated with everything else as it is;
            infinity where nothing is left of it.
        sqnr_db: signal over noise of the worst output then; None where nothing is left of the noise.
        nodes: what to keep in float.
        rule: the range rule.
        sentence: what to do.
    """

    kind: CureKind
    gain_db: Boundless
    sqnr_db: float | None
    nodes: list[str] = []
    rule: str = ""
    sentence: str

    @property
    def promise(self) -> str:
        """What it should do, in words that follow `should`."""
        return f"gain {self.gain_db:.1f} dB" if self.gain_db < math.inf else "leave no noise"


class Finding(Record):
    """What quantization of one operator costs.

    Attributes:
        node: its name.
        op: its operator.
        treatment: `static`, `dynamic` or `weight`, as a plan calls them; `between` for an operator without a weight.
        noise: noise over signal that it alone causes at the output which it harms most.
        sqnr_db: the same in dB; None for no noise.
        share: of the noise that all operators cause alone.
        weight_noise: of `noise`, by its weight and bias; None where that was too little to be looked into.
        activation_noise: of `noise`, by what it reads (or hands on to operators without a weight); likewise.
        local_db: signal over noise at its own output when it alone is quantized; None for no noise, or not looked into.
        accumulated_db: signal over noise there with all errors that come before.
        input: the activation that is rounded: what a layer reads, what an operator without a weight hands on.
        input_range: the smallest and the largest value there; None where it was not looked at.
        input_outlier: the channel that reaches farthest there; None where channels are not known.
        weight_outlier: the output channel of its weight that does.
        per_channel: whether its weight has several scales.
        clipped: share of the values there that lie beyond the grid.
        int16_overflow: share of its outputs that are wrong on processors without VNNI; None where that cannot be.
        rescaled: whether the tool moved factors between its channels and those of its neighbours.
        cures: what could be done, the most reasonable first; empty where that was not looked into.
        sentence: all of it in words.
    """

    node: str
    op: str
    treatment: Literal["static", "dynamic", "weight", "between"]
    noise: float
    sqnr_db: float | None
    share: float
    weight_noise: float | None = None
    activation_noise: float | None = None
    local_db: float | None = None
    accumulated_db: float | None = None
    input: str = ""
    input_range: tuple[float, float] | None = None
    input_outlier: Outlier | None = None
    weight_outlier: Outlier | None = None
    per_channel: bool = False
    clipped: float | None = None
    int16_overflow: float | None = None
    rescaled: bool = False
    cures: list[Cure] = []
    sentence: str = ""


class Diagnosis(Record):
    """Where the error of a quantized model comes from.

    Attributes:
        data: what it was measured on.
        samples: how many samples the noise was measured on.
        output: the output with the most noise; the figures below are its.
        measured_db: signal over noise of the quantized model; None for no noise.
        simulated_db: the same for the float model with all that was found in the quantized one switched on.
        additivity: sum of what the operators cause alone, over what they cause together; 1 where errors add up.
        findings: every operator that was quantized, the one that costs most first.
        all_float: what keeping the worst ones in float would bring together; None where that was not simulated.
        layers: how many layers with a weight are quantized.
        notes: what a careful person would want to know.
    """

    data: str
    samples: int
    output: str
    measured_db: float | None
    simulated_db: float | None
    additivity: float
    findings: list[Finding]
    all_float: Cure | None = None
    layers: int
    notes: list[str] = []


def sentence(finding: Finding) -> str:
    """A finding in words: how much, from where, why, and what would help."""
    parts = [_cost(finding), *_reasons(finding)]
    if finding.cures:
        best = finding.cures[0]
        parts.append(f"{best.sentence} That should {best.promise}.")
    return " ".join(parts)


def _cost(finding: Finding) -> str:
    alone = "no noise" if finding.sqnr_db is None else f"{finding.sqnr_db:.1f} dB"
    said = f"{finding.op} '{finding.node}' causes {_percent(finding.share)} of the noise ({alone} alone)"
    weight, activation = finding.weight_noise, finding.activation_noise
    if finding.treatment == "between" and not weight:
        return f"{said}, by what it hands on."
    if weight is None or activation is None or weight + activation == 0:
        return f"{said}."
    part = weight / (weight + activation)
    return f"{said}, {_percent(max(part, 1 - part))} of it by its {'weight' if part > 0.5 else 'input'}."


def _reasons(finding: Finding) -> list[str]:
    by_weight = (finding.weight_noise or 0) > (finding.activation_noise or 0)
    found = _about_weight(finding) if by_weight else _about_activation(finding)
    if finding.clipped is not None and finding.clipped >= MUCH_CLIPPED:
        found.append(f"{_percent(finding.clipped)} of the values of '{finding.input}' lie beyond the range.")
    if finding.int16_overflow is not None and finding.int16_overflow >= MUCH_SATURATED:
        found.append(f"Without VNNI, {_percent(finding.int16_overflow)} of its outputs overflow 16 bits.")
    if finding.rescaled:
        found.append("Its channels were rescaled; that was taken out before the comparison.")
    return found


def _about_activation(finding: Finding) -> list[str]:
    low, high = finding.input_range or (0.0, 0.0)
    if max(-low, high) > MASK:
        end = low if -low > high else high
        return [f"'{finding.input}' reaches to {end:.2g}, a mask: its grid has room for little else."]
    channel = finding.input_outlier
    if channel is None or channel.times < MANY_TIMES:
        return []
    return [f"Channel {channel.channel} of '{finding.input}' reaches {channel.reach}."]


def _about_weight(finding: Finding) -> list[str]:
    channel = finding.weight_outlier
    if channel is None or channel.times < MANY_TIMES or finding.per_channel:
        return []
    return [f"Channel {channel.channel} of its weight reaches {channel.reach}, and all channels share one scale."]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"
